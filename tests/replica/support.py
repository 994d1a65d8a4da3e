"""A replica that is a cluster of its own, on real files."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Self

from proglog import batch as batches
from proglog.batch import ProposedBatch, decode_all
from proglog.config import LogConfig
from proglog.log.names import DEFAULT_GROUP, group_folder
from proglog.peers.peers import Peers
from proglog.ports import Files, Ports, RealFiles, ThreadWorker, Worker
from proglog.raft.config import RaftConfig
from proglog.replica.identity import NodeDirectory, open_node
from proglog.replica.replica import Replica, open_replica
from proglog.types import Appended
from tests.waiting import DEADLINE_SECONDS

CONFIG = LogConfig.for_tests()
START_MS = 1_700_000_000_000


class Clock:
    """The wall clock stands where a test puts it."""

    def __init__(self) -> None:
        self.ms = START_MS

    def now_ms(self) -> int:
        return self.ms

    def stopwatch(self) -> float:
        return 0.0


def log_in(data_dir: Path) -> Path:
    """Where the log of this data directory is."""
    return group_folder(data_dir, DEFAULT_GROUP)


class Node:
    """A replica and what it told. Use `async with`, again and again. `folder` is the log's."""

    def __init__(
        self,
        folder: Path,
        *,
        config: LogConfig = CONFIG,
        files: Files | None = None,
        name: str = "n1",
        worker: Callable[[str], Worker] = ThreadWorker,
        bootstrap: bool = True,
        seed: int = 1,
    ) -> None:
        self.data_dir = folder.parent.parent
        assert folder == log_in(self.data_dir)
        self.folder = folder
        self.config = config
        self.files = files or RealFiles()
        self.name = name
        self.worker = worker
        self.bootstrap = bootstrap
        self.seed = seed
        self.clock = Clock()
        self.failure: BaseException | None = None
        self.failed_event = asyncio.Event()
        self.directory: NodeDirectory
        self.replica: Replica

    # --- what the replica tells ------------------------------------------------------------------

    def consumed(self, size: int) -> None: ...

    def group_written(self, batches: int, size: int, seconds: float) -> None: ...

    def appended(self, records: int, size: int, seconds: float) -> None: ...

    def failed(self, error: BaseException) -> None:
        assert self.failure is None, "a failure is told once"
        self.failure = error
        self.failed_event.set()

    # --- use -------------------------------------------------------------------------------------

    async def open(self) -> Replica:
        ports = Ports(
            files=self.files, clock=self.clock, random=random.Random(self.seed), worker=self.worker
        )
        self.peers = Peers(
            connect=_nobody, chance=random.Random(1), clock=self.clock, rpc_addr="127.0.0.1:1"
        )
        self.directory = await open_node(self.data_dir, node_name=self.name, ports=ports)
        try:
            self.replica = await open_replica(
                "default",
                self.directory,
                rpc_addr="127.0.0.1:1",
                bootstrap=self.bootstrap,
                config=self.config,
                raft_config=RaftConfig(),
                ports=ports,
                observer=self,
                peers=self.peers,
            )
        except BaseException:
            self.directory.close()
            raise
        # How log time follows the clocks is for `test_timekeeper`; here it stands where the wall
        # clock does.
        self.replica.stamps.now_ms = self.clock.now_ms  # type: ignore[method-assign]
        return self.replica

    async def close(self) -> None:
        await self.replica.close()
        self.peers.close()
        self.directory.close()

    async def __aenter__(self) -> Self:
        await self.open()
        try:
            await self.replica.wait_ready()
        except BaseException as error:
            await self.close()
            raise self.failure or error from None
        return self

    async def __aexit__(self, *_error: object) -> None:
        await self.close()

    async def restart(self) -> None:
        await self.__aexit__()
        await self.__aenter__()

    async def produce(self, *values: bytes) -> int:
        """The offset of the first, once all are committed."""
        return (await (await self.replica.propose(proposed(*values)))).offset

    async def fill(self, count: int, size: int = 10) -> list[bytes]:
        """Produces batches of one record, one after the other."""
        values = [b"%0*d" % (size, self.replica.next_offset + n) for n in range(count)]
        for value in values:
            await self.produce(value)
        return values

    async def consume(self, offset: int = 0) -> list[bytes]:
        """All values from an offset to the end."""
        values: list[bytes] = []
        while (chunk := await self.replica.read(offset, 2**20)).data:
            for batch in decode_all(chunk.data):
                values += batch.between(offset).values
            offset = chunk.next_offset
        return values

    async def written(self) -> None:
        """Until the writer has done what was asked for, snapshots too."""
        for _ in range(3):
            await asyncio.sleep(0)
            await self.replica.log.run_job(lambda: None)

    def names(self) -> list[str]:
        return sorted(path.name for path in self.folder.iterdir())

    def snapshots(self) -> list[int]:
        return [int(name[9:]) for name in self.names() if name.startswith("snapshot-")]


async def _nobody(address: str, factory: object) -> None:
    raise OSError("there is no other server")


def descriptors(folder: Path) -> int:
    """How many descriptors of this process are of files within `folder`, deleted ones too.

    All the process holds would be too many: what earlier tests left to the collector closes at any
    time.
    """
    within = f"{folder.resolve()}{os.sep}"
    count = 0
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):  # the one of this listing
            count += os.readlink(f"/proc/self/fd/{name}").startswith(within)
    return count


def proposed(
    *values: bytes,
    producer_id: int = 0,
    sequence: int = 0,
    expected_offset: int | None = None,
    compress: bool = False,
) -> ProposedBatch:
    body = batches.encode(values, compress=compress)
    return ProposedBatch(body, producer_id, sequence, expected_offset)


async def outcomes(futures: Sequence[asyncio.Future[Appended]]) -> list[object]:
    """The offset or the error that each got, within seconds."""
    async with asyncio.timeout(DEADLINE_SECONDS):
        answers = await asyncio.gather(*futures, return_exceptions=True)
    return [answer.offset if isinstance(answer, Appended) else answer for answer in answers]
