"""A log of many segments: how soon it opens, what it holds open, what dropping its prefix costs who
appends; and how much memory it takes to open one that many producers have written to.

Each measurement is a process of its own: `python -m scripts.bench.segments WHAT FOLDER`.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import sys
import tempfile
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from time import perf_counter

import uvloop

from proglog import batch as batches
from proglog import limits
from proglog.batch import BatchHeader, Body, Kind, ProposedBatch
from proglog.cli.bench import percentile
from proglog.config import LogConfig
from proglog.log import format as fmt
from proglog.log import snapshot as snapshots
from proglog.log.format import ORIGIN, Place, SegmentHeader, Tip
from proglog.log.index import Index
from proglog.log.log import Log
from proglog.log.names import DEFAULT_GROUP, group_folder, index_name, store_name
from proglog.log.operations import Group
from proglog.log.recovery import Recovered, recover
from proglog.log.snapshot import Snapshot
from proglog.peers.peers import Peers
from proglog.ports import Offload, Ports, RealFiles, ThreadWorker
from proglog.raft.config import RaftConfig
from proglog.replica.identity import open_node
from proglog.replica.replica import Replica, open_replica
from scripts.bench.servers import ROOT

SEGMENTS = 2_000
PRODUCERS = 10_000
CONFIG = LogConfig(segment_bytes=64 * limits.KiB, segment_batches=100)
_BATCHES = 8
_INFLIGHT = 200
_SECONDS_MAX = 120


def _following(tip: Tip, body: Body) -> tuple[BatchHeader, bytes]:
    """The header of the batch after `tip`."""
    return batches.build(
        body,
        kind=Kind.DATA,
        index=tip.index + 1,
        term=1,
        base_offset=tip.next_offset,
        timestamp=1,
        chain_crc=tip.chain,
    )


def make_segments(folder: Path, count: int) -> Tip:
    """Sealed segments and an empty active one, with a snapshot of what they built, as a node would
    have left them; the tip at the end."""
    folder.mkdir(parents=True)
    place, tip = Place(DEFAULT_GROUP), ORIGIN
    body = batches.encode([bytes(100)])
    for _ in range(count):
        index = Index(place, tip)
        store = bytearray(fmt.pack_preamble(SegmentHeader(place, tip)))
        for _ in range(_BATCHES):
            header, packed = _following(tip, body)
            store += packed + body.data
            index.append(header)
            tip = index.last
        (folder / store_name(index.before.index + 1)).write_bytes(store)
        (folder / index_name(index.before.index + 1)).write_bytes(index.pack())
    active = fmt.pack_preamble(SegmentHeader(place, tip)).ljust(CONFIG.segment_bytes, b"\0")
    (folder / store_name(tip.index + 1)).write_bytes(active)
    snapshots.write(RealFiles(), folder, Snapshot(tip, b""))
    os.sync()
    return tip


def opened(folder: Path) -> Recovered:
    return recover(
        RealFiles(),
        folder,
        segment_bytes=CONFIG.segment_bytes,
        segment_batches=CONFIG.segment_batches,
        with_hard_state=False,
    )


def measure_opening(folder: Path) -> dict[str, float]:
    """The best of three, since the machine's other work only ever adds to it."""
    seconds = []
    for _ in range(3):
        began = perf_counter()
        found = opened(folder)
        seconds.append(perf_counter() - began)
        descriptors = len(os.listdir("/proc/self/fd"))
        assert len(found.segments) == SEGMENTS + 1
        found.close()
    return {"seconds": min(seconds), "descriptors": descriptors}


# --- dropping a prefix ---------------------------------------------------------------------------


class Appends:
    """Appends one batch after the other, and notes how long each took beyond its fdatasync."""

    def __init__(self) -> None:
        self.excess_ms: list[float] = []
        self._durable = asyncio.Event()
        self._group_seconds = 0.0

    def durable(self, index: int) -> None:
        del index
        self._durable.set()

    def group_written(self, group: Group) -> None:
        self._group_seconds = group.seconds
        self._durable.set()

    def sealed(self, last: Tip) -> None: ...

    def failed(self, error: BaseException) -> None:
        raise error

    async def run(self, log: Log, seconds: float) -> None:
        loop, body = asyncio.get_running_loop(), batches.encode([bytes(100)])
        until = loop.time() + seconds
        while loop.time() < until:
            tip = log.tip
            header, packed = _following(tip, body)
            await log.make_room(header.size)
            began = perf_counter()
            log.append(header, (packed, body.data))
            while log.durable_index < header.index:
                self._durable.clear()
                await self._durable.wait()
            self.excess_ms.append((perf_counter() - began - self._group_seconds) * 1e3)


async def measure_drop(folder: Path) -> dict[str, float]:
    """Appends without anything beside them, then while the prefix goes."""
    appends = Appends()
    reader = Offload(ThreadWorker("reader"))
    found = await asyncio.to_thread(opened, folder)
    log = Log(folder, found, CONFIG, Ports(), appends, reader)
    await appends.run(log, 2.0)
    alone, appends.excess_ms = appends.excess_ms, []
    appending = asyncio.ensure_future(appends.run(log, 12.0))
    await asyncio.sleep(0.5)
    dropped = log.drop_prefix(log.tip.index)
    assert dropped >= SEGMENTS, "the snapshot stands at their end"
    await appending
    left = len(log._garbage)
    await log.close()
    reader.stop()
    return {
        "alone_p99_ms": percentile(sorted(alone), 0.99),
        "alone_worst_ms": max(alone),
        "p99_ms": percentile(sorted(appends.excess_ms), 0.99),
        "worst_ms": max(appends.excess_ms),
        "appends": len(appends.excess_ms),
        "files_left": left,
    }


# --- producers -----------------------------------------------------------------------------------


class _Unobserved:
    def consumed(self, size: int) -> None: ...

    def group_written(self, batches: int, size: int, seconds: float) -> None: ...

    def appended(self, records: int, size: int, seconds: float) -> None: ...

    def failed(self, error: BaseException) -> None:
        raise error


async def _nobody(address: str, factory: object) -> None:
    raise OSError(f"{address} is nobody")


@asynccontextmanager
async def _replica(data_dir: Path) -> AsyncIterator[Replica]:
    ports = Ports()
    directory = await open_node(data_dir, node_name="", ports=ports)
    peers = Peers(connect=_nobody, chance=random.Random(1), clock=ports.clock, rpc_addr="")
    replica = await open_replica(
        "default",
        directory,
        rpc_addr="",
        bootstrap=True,
        config=CONFIG,
        raft_config=RaftConfig(),
        ports=ports,
        observer=_Unobserved(),
        peers=peers,
    )
    await replica.wait_ready()
    try:
        yield replica
    finally:
        await replica.close()
        peers.close()
        directory.close()


async def fill_by_producers(data_dir: Path) -> dict[str, float]:
    """A batch of each of many producers, over some hundred segments."""
    body = batches.encode([b"x"])
    async with _replica(data_dir) as replica:
        for first in range(1, PRODUCERS + 1, _INFLIGHT):
            numbers = range(first, first + _INFLIGHT)
            waiting = [await replica.propose(ProposedBatch(body, each, 0)) for each in numbers]
            await asyncio.gather(*waiting)
    return {}


async def measure_producers(data_dir: Path) -> dict[str, float]:
    """Memory that opening takes, before anything is served."""
    before = _memory_bytes()
    async with _replica(data_dir) as replica:
        after = _memory_bytes()
        segments = len(replica.log.segment_facts())
        folder = group_folder(data_dir, DEFAULT_GROUP)
        size = sum(path.stat().st_size for path in folder.glob("snapshot-*"))
    return {
        "memory_mb": (after - before) / 1e6,
        "segments": segments,
        "snapshots_mb": size / 1e6,
    }


def _memory_bytes() -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    raise AssertionError("Linux says how much memory a process takes")


# --- as processes --------------------------------------------------------------------------------

_WHAT: dict[str, Callable[[Path], object]] = {
    "open": measure_opening,
    "drop": lambda folder: uvloop.run(measure_drop(folder)),
    "fill": lambda folder: uvloop.run(fill_by_producers(folder)),
    "producers": lambda folder: uvloop.run(measure_producers(folder)),
}


async def _process(what: str, folder: Path) -> dict[str, float]:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "scripts.bench.segments",
        what,
        folder,
        cwd=ROOT,
        stdout=asyncio.subprocess.PIPE,
    )
    async with asyncio.timeout(_SECONDS_MAX):
        output, _ = await process.communicate()
    assert process.returncode == 0, f"{what} ended with {process.returncode}"
    # Before that the node's own log lines.
    figures: dict[str, float] = json.loads(output.splitlines()[-1])
    return figures


async def many_segments(folder: Path) -> tuple[dict[str, float], dict[str, float]]:
    """Opening, and dropping the prefix of, a log of many segments."""
    with tempfile.TemporaryDirectory(dir=folder) as own:
        log = group_folder(Path(own), DEFAULT_GROUP)
        await asyncio.to_thread(make_segments, log, SEGMENTS)
        return await _process("open", log), await _process("drop", log)


async def many_producers(folder: Path) -> dict[str, float]:
    """Opening a log that many producers have written to."""
    with tempfile.TemporaryDirectory(dir=folder) as own:
        await _process("fill", Path(own) / "data")
        return await _process("producers", Path(own) / "data")


if __name__ == "__main__":
    print(json.dumps(_WHAT[sys.argv[1]](Path(sys.argv[2]))))
