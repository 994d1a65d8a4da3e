"""Loads for any of the systems. Rates are records a second, latencies seconds."""

from __future__ import annotations

import asyncio
import itertools
import json
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing, asynccontextmanager
from time import perf_counter, process_time

from proglog.cli.bench import Check, percentile
from scripts.bench.reader import READY, stamped
from scripts.bench.servers import ROOT, Server
from scripts.bench.systems import Proglog, System

PACE_PER_SECOND = 500
READER_SECONDS_MAX = 30.0
READER_END_SECONDS_MAX = 5.0


class Cpu:
    """How busy client and server are, in cores, from here on."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._began = perf_counter(), process_time(), server.cpu_seconds()

    def busy(self) -> tuple[float, float]:
        """Cores in use by this process, and by the server."""
        wall, own, server = self._began
        wall = perf_counter() - wall
        return (process_time() - own) / wall, (self._server.cpu_seconds() - server) / wall


def pieces(values: Sequence[bytes], records: int) -> list[Sequence[bytes]]:
    """The values as arguments of `append_many`."""
    return [values[at : at + records] for at in range(0, len(values), records)]


async def batched(client: System, values: Sequence[bytes], seconds: float) -> float:
    """The quickest way to append: several calls at a time."""
    parts = itertools.cycle(pieces(values, client.call_records))
    count = 0
    began = perf_counter()

    async def work() -> None:
        nonlocal count
        while perf_counter() - began < seconds:
            part = next(parts)
            await client.append_many(part)
            count += len(part)

    async with asyncio.TaskGroup() as tasks:
        for _ in range(client.calls_inflight):
            tasks.create_task(work())
    return count / (perf_counter() - began)


async def fill(client: System, values: Sequence[bytes], records: int, seconds_max: float) -> int:
    """Appends values over and over, in order, until there are so many or it took too long."""
    end = perf_counter() + seconds_max
    count = 0
    for part in itertools.cycle(pieces(values, client.call_records)):
        if count >= records or perf_counter() > end:
            return count
        await client.append_many(part)
        count += len(part)
    raise AssertionError("a cycle has no end")


async def read(client: System, values: list[bytes], seconds: float, *, lists: bool) -> float:
    """Reads the log from its start, and compares."""
    check = Check(values, seconds)
    await (client.read_lists if lists else client.read)(check)
    assert check.count, "nothing was read"
    return check.per_second


async def check_appended(
    client: Proglog, values: Sequence[bytes], answers: Sequence[Sequence[int]]
) -> None:
    """Whether each value is at all offsets that its task was told. Raises AssertionError."""
    expected = {
        offset: value for value, offsets in zip(values, answers, strict=True) for offset in offsets
    }
    first = min(expected)
    async with aclosing(client.log.consume_batches(first, follow=False)) as batches:
        async for batch in batches:
            for offset, value in enumerate(batch.values, batch.base_offset):
                assert expected.pop(offset) == value, f"the record at {offset} is another one"
    assert not expected, f"{len(expected)} acknowledged records are not in the log"


async def paced(client: System, size: int, seconds: float) -> list[float]:
    """Appends stamped records at a fixed pace, whether the ones before are answered or not."""
    latencies = []

    async def append(number: int) -> None:
        value = stamped(size, number)
        began = perf_counter()
        await client.append(value)
        latencies.append(perf_counter() - began)

    began = perf_counter()
    async with asyncio.TaskGroup() as tasks:
        for number in range(int(seconds * PACE_PER_SECOND)):
            await asyncio.sleep(max(0, began + number / PACE_PER_SECOND - perf_counter()))
            tasks.create_task(append(number))
    return latencies


@asynccontextmanager
async def _reader(client: System, port: int, what: str, count: int) -> AsyncIterator[Process]:
    words = ("-m", "scripts.bench.reader", client.name, str(port), what, str(count))
    process = await asyncio.create_subprocess_exec(
        sys.executable, *words, cwd=ROOT, stdin=PIPE, stdout=PIPE, limit=2**24
    )
    try:
        async with asyncio.timeout(READER_SECONDS_MAX):
            assert process.stdout is not None
            line = (await process.stdout.readline()).decode().strip()
            assert line == READY, f"the reader said {line!r}"
            yield process
            await process.wait()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def _result(process: Process) -> list[float]:
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.close()
    latencies: list[float] = json.loads(await process.stdout.readline())
    return latencies


async def end_to_end(client: System, port: int, size: int, seconds: float) -> list[float]:
    """From the call of produce to the consumer of another process, at a fixed pace."""
    async with _reader(client, port, "follow", int(seconds * PACE_PER_SECOND)) as reader:
        await paced(client, size, seconds)
        return await _result(reader)


async def beside_readers(
    client: System, server: Server, port: int, size: int, seconds: float, streams: int
) -> tuple[list[float], float]:
    """Latencies of appends at a fixed pace while a process reads the log all the time, and the
    cores that the server had in use."""
    async with _reader(client, port, "load", streams) as reader:
        cpu = Cpu(server)
        latencies = await paced(client, size, seconds)
        _, busy = cpu.busy()
        try:
            async with asyncio.timeout(READER_END_SECONDS_MAX):
                await _result(reader)
        except TimeoutError:
            # It hangs (JetStream's consumers do when they fall far behind). Whether it kept the
            # server busy before is seen from the cores in use.
            reader.kill()
    return latencies, busy


def p50_ms(latencies: Sequence[float]) -> float:
    return percentile(latencies, 50) * 1e3


def p99_ms(latencies: Sequence[float]) -> float:
    return percentile(latencies, 99) * 1e3
