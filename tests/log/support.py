"""A log engine on real files, with segments so small that a few batches roll them."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Self

from proglog import batch as batches
from proglog.batch import BatchHeader, Kind, decode_all
from proglog.config import LogConfig
from proglog.log import format as fmt
from proglog.log.envelope import HEAD_BYTES
from proglog.log.format import ORIGIN, Mark, Tip
from proglog.log.log import Log
from proglog.log.operations import Group, Job
from proglog.log.recovery import Recovered, recover
from proglog.log.segment import Segment
from proglog.ports import Files, Offload, Ports, RealFiles, ThreadWorker

CONFIG = LogConfig(segment_bytes=28 * 1024, segment_batches=8)


def build(
    tip: Tip,
    values: Sequence[bytes],
    *,
    term: int = 0,
    timestamp: int = 0,
    producer_id: int = 0,
    sequence: int = 0,
) -> tuple[BatchHeader, tuple[bytes, ...]]:
    """A batch that continues the log at `tip`: data, or a no-op if there are no values."""
    body = batches.encode(values) if values else batches.plain_body(b"")
    header, packed = batches.build(
        body,
        kind=Kind.DATA if values else Kind.NOOP,
        index=tip.index + 1,
        term=max(term, tip.term, 1),
        base_offset=tip.next_offset,
        timestamp=max(timestamp, tip.timestamp),
        chain_crc=tip.chain,
        producer_id=producer_id,
        sequence=sequence,
    )
    return header, (packed, bytes(body.data))


def recovered(folder: Path, config: LogConfig = CONFIG, files: Files | None = None) -> Recovered:
    """What recovery finds in a folder. Leaves its files open: `let_go` of them."""
    return recover(
        files or RealFiles(),
        folder,
        segment_bytes=config.segment_bytes,
        segment_batches=config.segment_batches,
        with_hard_state=False,
    )


def let_go(found: Recovered) -> None:
    found.close()


def contents(found: Recovered) -> list[bytes]:
    """The header and body of each batch, read from the stores and checked."""
    result: list[bytes] = []
    for segment in found.segments:
        start, end = segment.index.position(0), segment.index.end_position
        data = segment.open().pread(end - start, start)
        at = 0
        for header in segment.check(data, start, segment.first_index):
            result.append(data[at : at + header.size])
            at += header.size
    return result


async def stored(folder: Path, config: LogConfig = CONFIG) -> list[bytes]:
    """The values of all records that a folder holds once it was recovered."""
    return await asyncio.to_thread(values_in, folder, config)


def values_in(folder: Path, config: LogConfig = CONFIG) -> list[bytes]:
    """Like `stored`, where no loop runs."""
    found = recovered(folder, config)
    try:
        return [record.value for b in contents(found) for all_ in decode_all(b) for record in all_]
    finally:
        let_go(found)


class Clock:
    """The wall clock stands where a test puts it."""

    def __init__(self) -> None:
        self.ms = 0

    def now_ms(self) -> int:
        return self.ms

    def stopwatch(self) -> float:
        return 0.0


def flip(path: Path, *positions: int) -> None:
    """Rots a bit of each of these bytes of a file."""
    data = bytearray(path.read_bytes())
    for position in positions:
        data[position] ^= 0x10
    path.write_bytes(data)


class Engine:
    """A log, the batches that it was given, and what it told. Use `async with`."""

    def __init__(
        self,
        folder: Path,
        *,
        config: LogConfig = CONFIG,
        files: Files | None = None,
    ) -> None:
        self.folder = folder
        self.config = config
        self.files = files or RealFiles()
        self.clock = Clock()
        self._holds: list[threading.Event] = []
        self.durable_indexes: list[int] = []
        self.groups: list[Group] = []
        self.sealed_tips: list[Tip] = []
        self.failure: BaseException | None = None
        self._news = asyncio.Event()
        self.recovered: Recovered
        self.log: Log

    # --- what the log tells ----------------------------------------------------------------------

    def durable(self, index: int) -> None:
        self.durable_indexes.append(index)
        self._news.set()

    def group_written(self, group: Group) -> None:
        self.groups.append(group)
        self._news.set()

    def sealed(self, last: Tip) -> None:
        self.sealed_tips.append(last)

    def failed(self, error: BaseException) -> None:
        self.failure = error
        self._news.set()

    # --- use -------------------------------------------------------------------------------------

    async def __aenter__(self) -> Self:
        self.folder.mkdir(exist_ok=True)
        self.recovered = await asyncio.to_thread(recovered, self.folder, self.config, self.files)
        self._reader = Offload(ThreadWorker("reader"))
        ports = Ports(files=self.files, clock=self.clock)
        self.log = Log(self.folder, self.recovered, self.config, ports, self, self._reader)
        return self

    async def __aexit__(self, *_error: object) -> None:
        self.release()
        if not self.log._active.retired:  # a test may have closed it
            await self.log.close()
        self._reader.stop()

    async def append(self, *values: bytes, term: int = 0, timestamp: int = 0) -> BatchHeader:
        """Appends a batch, waiting for space but not for the disk."""
        header, parts = build(self.log.tip, values, term=term, timestamp=timestamp)
        await self.log.make_room(header.size)
        self.log.append(header, parts)
        return header

    async def fill(self, count: int, size: int = 10, term: int = 0) -> list[bytes]:
        """Appends batches of one record each; their values."""
        first = self.log.tip.index + 1
        values = [b"%0*d" % (size, index) for index in range(first, first + count)]
        for value in values:
            await self.append(value, term=term)
        return values

    def hold(self) -> threading.Event:
        """Keeps the writer from what is asked for from now on, until the event is set."""
        released = threading.Event()
        self._holds.append(released)
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.log._writer.submit(Job(work=lambda: _wait(released), done=done))
        return released

    def release(self) -> None:
        """Lets the writer do everything."""
        for released in self._holds:
            released.set()
        self._holds.clear()

    async def all_durable(self) -> None:
        """Until all that was appended is durable; raises what the log failed with."""
        while self.log.durable_index < self.log.tip.index:
            if self.failure is not None:
                raise self.failure
            self._news.clear()
            await self._news.wait()

    async def settled(self) -> None:
        """Until the writer has done all that was asked for, and the log heard of it."""
        await self.log.run_job(lambda: None)

    async def tidied(self) -> None:
        """Until the files that nobody needs any more are deleted."""
        await self.settled()
        while self.log._garbage._task is not None:
            await asyncio.sleep(0.001)

    async def read(self, first: int, last: int, bytes_max: int = 2**20) -> list[bytes]:
        """Values of the records of batches first..last, read in as many runs as it takes."""
        values: list[bytes] = []
        while first <= last:
            run = await self.log.read(first, last, bytes_max)
            assert [header.index for header in run.headers] == list(
                range(first, first + len(run.headers))
            )
            values += [record.value for part in decode_all(run.data) for record in part]
            first += len(run.headers)
        return values

    async def read_all(self) -> list[bytes]:
        return await self.read(self.log.first_index, self.log.tip.index)

    async def forget_tail(self) -> None:
        """Closes and opens again: what is read now comes from the disk."""
        await self.__aexit__()
        self.durable_indexes.clear()
        self.groups.clear()
        await self.__aenter__()

    @property
    def segments(self) -> list[Segment]:
        return self.log._segments

    def names(self) -> list[str]:
        return sorted(path.name for path in self.folder.iterdir())


def _wait(released: threading.Event) -> None:
    assert released.wait(5)


def length_of(head: bytes) -> int:
    """What an envelope that begins so says of its length (DESIGN.md, "Envelope")."""
    return int.from_bytes(head[12:16], "little") if len(head) >= HEAD_BYTES else 0


def marks_of(path: Path) -> list[Mark]:
    """The whole marks of a store, newest first."""
    data = path.read_bytes()
    parsed = (fmt.parse_mark(data[at:], path) for at in fmt.MARK_POSITIONS)
    return sorted((mark for mark in parsed if mark is not None), reverse=True)


def tip_after(*all_values: Sequence[bytes]) -> Tip:
    """The tip of a log of these batches."""
    tip = ORIGIN
    for values in all_values:
        header, _ = build(tip, values)
        tip = Tip.after(header)
    return tip
