"""`proglog bench`: how fast a node is, seen from here.

The loads themselves know nothing of a node, so that `make bench` can put them on others too.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import socket
import sys
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, NamedTuple, TypeVar

import orjson

from proglog import limits
from proglog.cli.connection import connected, run_on_loop
from proglog.cli.parameters import Duration, Json, OptionalListenAddress
from proglog.config import Address
from proglog.errors import ConfigurationError, CorruptionError, Unavailable

if TYPE_CHECKING:
    from proglog.client.client import Log
    from proglog.client.producer import Producer

T = TypeVar("T")

SIZES = (100, 1024)
CALL_BYTES = limits.MiB
"""Values of one `produce_many`,"""
CALLS_INFLIGHT = 8
"""and how many of these calls are under way; the client's buffer holds them all."""
CHECKED_TOGETHER = 500
"""Single records, compared as a list."""
START_SECONDS_MAX = 20.0
STOP_SECONDS_MAX = 20.0
TASKS_MAX = 10_000
SECONDS_MIN, SECONDS_MAX = 0.01, 3600.0
"""Of one row."""


# --- loads ---------------------------------------------------------------------------------------


def values_of(size: int) -> list[bytes]:
    """Distinct values of `size` bytes each, `CALL_BYTES` in all."""
    return [b"%0*d" % (size, number) for number in range(CALL_BYTES // size)]


async def concurrently(
    produce: Callable[[bytes], Awaitable[T]], values: Sequence[bytes], seconds: float
) -> tuple[float, list[list[T]]]:
    """One task for each value appends it again and again, each waiting for its record before the
    next. Returns records a second, and the answers that each task got."""
    over = asyncio.Event()

    async def work(value: bytes, answers: list[T]) -> None:
        while not over.is_set():
            answers.append(await produce(value))

    answers: list[list[T]] = [[] for _ in values]
    began = perf_counter()
    async with asyncio.TaskGroup() as tasks:
        for pair in zip(values, answers, strict=True):
            tasks.create_task(work(*pair))
        asyncio.get_running_loop().call_later(seconds, over.set)
    return sum(map(len, answers)) / (perf_counter() - began), answers


async def one_at_a_time(
    produce: Callable[[bytes], Awaitable[object]], value: bytes, seconds: float
) -> list[float]:
    """The seconds that each of many calls took, made one after the other."""
    latencies = []
    now = perf_counter()
    end = now + seconds
    while (began := now) < end:
        await produce(value)
        now = perf_counter()
        latencies.append(now - began)
    return latencies


def percentile(numbers: Sequence[float], percent: float) -> float:
    """The smallest number that is not below `percent` of them (nearest rank)."""
    return sorted(numbers)[math.ceil(len(numbers) * percent / 100) - 1]


class Check:
    """Compares what is read with `values`, over and over, and tells when to stop reading."""

    def __init__(self, values: list[bytes], seconds: float) -> None:
        self.count = 0
        self._period = len(values)
        self._values = values * 2
        self._began = self._now = perf_counter()
        self._end = self._began + seconds

    def take(self, values: list[bytes]) -> bool:
        """Whether it is time to stop. At most one period of values at a time.

        Raises CorruptionError unless these are the next.
        """
        assert len(values) <= self._period, "longer lists do not fit twice into the values"
        at = self.count % self._period
        if values != self._values[at : at + len(values)]:
            raise CorruptionError(f"record {self.count} or one after it is not as it was appended")
        self.count += len(values)
        self._now = perf_counter()
        return self._now >= self._end

    @property
    def per_second(self) -> float:
        """Values a second until the last ones came."""
        return self.count / (self._now - self._began)


async def produce_many(log: Log, values: list[bytes], seconds: float) -> tuple[float, int]:
    """Several calls of `produce_many` at a time. Returns records a second, and the first offset;
    from there on the log holds `values` over and over.

    Raises ConfigurationError if records of others came between.
    """
    first = (await log.describe()).next
    offsets: list[Sequence[int]] = []
    began = perf_counter()

    async def work(out: Producer) -> None:
        while perf_counter() - began < seconds:
            offsets.append(await out.produce_many(values))

    # One producer, so that no call comes between the batches of another.
    async with log.producer() as out, asyncio.TaskGroup() as tasks:
        for _ in range(CALLS_INFLIGHT):
            tasks.create_task(work(out))
    elapsed = perf_counter() - began
    count = len(offsets) * len(values)
    if sorted(map(_ends, offsets)) != [
        (at, at + len(values)) for at in range(first, first + count, len(values))
    ]:
        raise ConfigurationError("others append to this log: what is read back cannot be checked")
    return count / elapsed, first


def _ends(offsets: Sequence[int]) -> tuple[int, int]:
    return offsets[0], offsets[-1] + 1


async def consume(log: Log, first: int, check: Check) -> None:
    """Reads record by record."""
    taken = []
    async with aclosing(log.consume(first, follow=False)) as records:
        async for record in records:
            taken.append(record.value)
            if len(taken) == CHECKED_TOGETHER:
                if check.take(taken):
                    return
                taken.clear()
    check.take(taken)


async def consume_batches(log: Log, first: int, check: Check) -> None:
    """Reads whole batches."""
    async with aclosing(log.consume_batches(first, follow=False)) as batches:
        async for batch in batches:
            if check.take(batch.values):
                return


# --- a node --------------------------------------------------------------------------------------


def free_port() -> int:
    """A port of loopback that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


@asynccontextmanager
async def _temporary_node() -> AsyncIterator[Address]:
    with tempfile.TemporaryDirectory(prefix="proglog-bench-") as folder:
        address = Address("127.0.0.1", free_port())
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            *("-m", "proglog.cli", "serve", "--quiet", "--log-level=warning"),
            f"--data-dir={Path(folder) / 'data'}",
            *("--bind-addr=127.0.0.1:0", f"--rpc-port={address.port}", "--http-addr=none"),
        )
        try:
            await _answers(address, process)
            yield address
        finally:
            await _stop(process)


async def _answers(address: Address, process: asyncio.subprocess.Process) -> None:
    loop = asyncio.get_running_loop()
    deadline = loop.time() + START_SECONDS_MAX
    while process.returncode is None and loop.time() < deadline:
        with contextlib.suppress(OSError):
            _, writer = await asyncio.open_connection(*address)
            writer.close()
            return
        await asyncio.sleep(0.05)
    raise Unavailable("the node of the benchmark did not start")


async def _stop(process: asyncio.subprocess.Process) -> None:
    if process.returncode is not None:
        return
    process.terminate()
    try:
        await asyncio.wait_for(process.wait(), STOP_SECONDS_MAX)
    except TimeoutError:
        process.kill()
        await process.wait()


# --- the command ---------------------------------------------------------------------------------


class Row(NamedTuple):
    """What is shown: a rate, or latencies."""

    load: str
    record_bytes: int
    records_per_second: float | None = None
    p50_ms: float | None = None
    p99_ms: float | None = None

    def __str__(self) -> str:
        text = f"{self.record_bytes:>5} B  {self.load:<26}"
        if self.records_per_second is None:
            return f"{text}  p50 {self.p50_ms:.2f} ms, p99 {self.p99_ms:.2f} ms"
        megabytes = self.records_per_second * self.record_bytes / 1e6
        return f"{text} {self.records_per_second:>12,.0f} records/s {megabytes:>6.0f} MB/s"


def bench(
    *,
    server: OptionalListenAddress = None,
    tasks: int = 256,
    seconds: Duration = 2.0,
    json: Json = False,
) -> int:
    """Appends records for a while in several ways, reads them back and compares them.

    Parameters
    ----------
    server
        The node to measure. What is appended stays in its log, and nobody else may append
        meanwhile. Without one, a node of its own on this machine, with data in TMPDIR.
    tasks
        How many tasks append at a time, each waiting for its record before the next.
    seconds
        How long each row takes.
    json
        Print an object for each row.
    """
    if not 1 <= tasks <= TASKS_MAX:
        raise ConfigurationError(f"--tasks is {tasks}: expected 1 to {TASKS_MAX}")
    if not SECONDS_MIN <= seconds <= SECONDS_MAX:  # Also where it is nan.
        raise ConfigurationError(
            f"--seconds is {seconds:g}: expected {SECONDS_MIN:g} to {SECONDS_MAX:g}"
        )
    return run_on_loop(_bench(server, tasks, seconds, json=json))


async def _bench(server: Address | None, tasks: int, seconds: float, *, json: bool) -> int:
    node = contextlib.nullcontext(server) if server is not None else _temporary_node()
    async with node as address, connected([address]) as log:
        async for row in _rows(log, tasks, seconds):
            print(orjson.dumps(row._asdict()).decode() if json else row, flush=True)
    return 0


async def _rows(log: Log, tasks: int, seconds: float) -> AsyncIterator[Row]:
    values = values_of(SIZES[0])
    latencies = [1e3 * taken for taken in await one_at_a_time(log.produce, values[0], seconds)]
    yield Row(
        "produce, one at a time",
        SIZES[0],
        p50_ms=percentile(latencies, 50),
        p99_ms=percentile(latencies, 99),
    )
    for size in SIZES:
        values = values_of(size)
        rate, _ = await concurrently(log.produce, (values * tasks)[:tasks], seconds)
        yield Row(f"produce, {tasks} tasks", size, rate)
        rate, first = await produce_many(log, values, seconds)
        yield Row("produce_many", size, rate)
        for name, read in (("consume", consume), ("consume_batches", consume_batches)):
            check = Check(values, seconds)
            await read(log, first, check)
            yield Row(name, size, check.per_second)
