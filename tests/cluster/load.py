"""Clients that produce and read all the time, and remember every answer they got."""

from __future__ import annotations

import asyncio
import contextlib
import time
from types import TracebackType
from typing import Self

import proglog
from proglog._generated.log import v1
from proglog.batch import decode_all
from proglog.client.client import Log
from proglog.client.network import _CONSUME, NetworkBackend
from proglog.config import Address
from proglog.errors import OffsetOutOfRange, Outcome, ProglogError
from tests.cluster.harness import Processes
from tests.cluster.stores import check_equal, read_store
from tests.sim.history import Append, History
from tests.waiting import until

WRITERS = 4
TASKS_OF_A_WRITER = 4
CALL_SECONDS_MAX = 30.0
PAUSE_SECONDS = 0.004
"""Between two records of a task: the load is there for its answers, not for its weight."""


def now() -> float:
    return time.perf_counter()


class Load:
    """An async context manager: the clients run within, and have their answers after it."""

    def __init__(self, url: str, addresses: list[Address], writers: int = WRITERS) -> None:
        self._url = url
        self._addresses = addresses
        self._writers = writers
        self._stopping = False
        self._tasks: list[asyncio.Task[None]] = []
        self.history = History()
        self.acknowledged: dict[int, bytes] = {}
        self.failures: list[ProglogError] = []
        self.unknown = 0
        self.longest_pause_seconds = 0.0
        self._last_answer = now()

    async def __aenter__(self) -> Self:
        loop = asyncio.get_running_loop()
        self._tasks = [loop.create_task(self._write(number)) for number in range(self._writers)]
        self._tasks += [loop.create_task(self._follow()), loop.create_task(self._look())]
        await self.progress()
        self.longest_pause_seconds = 0.0
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._stopping = True
        *writers, follower, looker = self._tasks
        if exc is not None:
            for task in self._tasks:
                task.cancel()
        await asyncio.gather(*writers, looker, return_exceptions=exc is not None)
        if exc is None:
            await until(self._all_read, "the follower has read what was acknowledged")
        follower.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await follower

    async def _all_read(self) -> bool:
        for task in self._tasks:
            if task.done():
                task.result()
        return self._read_upto > max(self.acknowledged, default=-1)

    async def progress(self, records: int = 100) -> None:
        """Until so many more records are acknowledged."""
        wanted = len(self.acknowledged) + records

        async def there() -> bool:
            for task in self._tasks:
                if task.done():
                    task.result()
            return len(self.acknowledged) >= wanted

        await until(there, f"{records} more records are acknowledged")

    # --- writing ---------------------------------------------------------------------------------

    async def _write(self, number: int) -> None:
        async with proglog.connect(self._url, timeout_seconds=CALL_SECONDS_MAX) as log:
            async with asyncio.TaskGroup() as tasks:
                for part in range(TASKS_OF_A_WRITER):
                    tasks.create_task(self._write_records(log, f"{number}.{part}"))

    async def _write_records(self, log: Log, name: str) -> None:
        sequence = 0
        while not self._stopping:
            sequence += 1
            value = f"{name}:{sequence}:".encode().ljust(64 + sequence % 100, b".")
            append = self.history.invoke(value, 0, sequence, now())
            try:
                offset = await log.produce(value)
            except ProglogError as error:
                self._failed(append, error)
            else:
                self._answered(append, offset)
            await asyncio.sleep(PAUSE_SECONDS)

    def _answered(self, append: Append, offset: int) -> None:
        at = now()
        self.longest_pause_seconds = max(self.longest_pause_seconds, at - self._last_answer)
        self._last_answer = at
        self.history.acknowledge(append, offset, at)
        self.acknowledged[offset] = append.value

    def _failed(self, append: Append, error: ProglogError) -> None:
        self.failures.append(error)
        if error.outcome is Outcome.DEFINITE:
            self.history.refuse(append)
        else:
            self.unknown += 1

    # --- reading ---------------------------------------------------------------------------------

    _read_upto = 0

    async def _follow(self) -> None:
        """Reads everything once, in order, from whichever server it is connected to."""
        async with proglog.connect(self._url, timeout_seconds=CALL_SECONDS_MAX) as log:
            async for record in log.consume(0):
                assert record.offset == self._read_upto, "a consumer skips and repeats nothing"
                self._read_upto = record.offset + 1
                self.history.read(record.offset, [record.value], now())

    async def _look(self) -> None:
        """Linearizable reads at the end of the log: no leader of yesterday may answer one."""
        backend = NetworkBackend(self._addresses, "", None)
        try:
            while not self._stopping:
                with contextlib.suppress(ProglogError, TimeoutError):
                    async with asyncio.timeout(2.0):
                        await self._look_once(backend)
                await asyncio.sleep(0.02)
        finally:
            await backend.close()

    async def _look_once(self, backend: NetworkBackend) -> None:
        expected = max(self.acknowledged, default=-1) + 1
        request = v1.ConsumeBatchesRequest(offset=expected, linearizable=True)
        invoked, values = now(), []
        try:
            async with backend._call(_CONSUME, request, backend._servers.to_write) as call:
                while (reply := await call.receive()) is not None:
                    for batch in decode_all(reply.batches):
                        values += [(record.offset, record.value) for record in batch]
        except OffsetOutOfRange as error:
            raise AssertionError(f"a linearizable read did not see what was: {error}") from error
        for offset, value in values:
            self.history.read(offset, [value], now())
        end = max((offset for offset, _ in values), default=expected - 1) + 1
        self.history.found_end(end, invoked)


def load_on(cluster: Processes, writers: int = WRITERS) -> Load:
    """A load on a cluster of processes."""
    return Load(cluster.url, [server.address for server in cluster.servers], writers)


async def verify(cluster: Processes, load: Load) -> None:
    """Nothing acknowledged is lost, the history is one of a log, and all stores hold the same."""
    load.history.check()
    commit = await cluster.whole()
    for server in cluster.servers:
        if server.is_running:
            await server.stop()
    stores = [read_store(server.data_dir) for server in cluster.servers]
    batches = check_equal(stores, commit)
    held: dict[int, bytes] = {}
    for batch in batches:
        held.update(enumerate(batch.values, batch.base_offset))
    first = min(held, default=0)
    assert sorted(held) == list(range(first, first + len(held))), "offsets are dense"
    lost = {
        offset: value for offset, value in load.acknowledged.items() if held.get(offset) != value
    }
    assert not lost, f"acknowledged and not there: {sorted(lost)[:20]}"
    assert len(set(held.values())) == len(held), "nothing is there twice"
    for offset, value in held.items():
        load.history.read(offset, [value], now())
    load.history.check()
