"""One node beside its peers: `make bench`.

Client and server are one process each, on loopback, with data in a temporary directory. Figures are
medians of the runs. All that is read is compared with what was appended.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import cast
from urllib.request import urlopen

from proglog.cli import bench
from proglog.cli.bench import concurrently, one_at_a_time, values_of
from scripts.bench import foreign, node
from scripts.bench.opening import opening
from scripts.bench.report import Report, Row, tell
from scripts.bench.segments import many_producers, many_segments
from scripts.bench.servers import Server, serving
from scripts.bench.stages import stages
from scripts.bench.systems import HOST, SYSTEMS, Proglog, System
from scripts.bench.workloads import (
    Cpu,
    batched,
    beside_readers,
    check_appended,
    end_to_end,
    fill,
    p50_ms,
    p99_ms,
    read,
)

SMALL, LARGE = 100, 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """How much is done: `seconds` for each run of a load, and what is loaded before reading."""

    runs: int = 3
    seconds: float = 1.0
    fill_bytes: int = 300_000_000
    fill_seconds_max: float = 4.0
    load_streams: int = 2
    memory_bytes: int = 1_000_000_000
    open_records: int = 1_000_000

    @classmethod
    def quick(cls) -> Plan:
        """For who develops the benchmark."""
        return cls(
            runs=1,
            seconds=0.3,
            fill_bytes=20_000_000,
            fill_seconds_max=0.5,
            memory_bytes=100_000_000,
            open_records=50_000,
        )


class Rows:
    """The table, in the order in which it is shown."""

    def __init__(self, report: Report) -> None:
        def at_least(load: str, target: float | None, unit: str = "records/s") -> Row:
            return report.add(Row(load=load, unit=unit, target=target))

        def at_most(load: str, target: float | None, unit: str = "ms") -> Row:
            return report.add(Row(load=load, unit=unit, target=target, less_is_better=True))

        self.tasks_256 = at_least("produce, 256 concurrent awaits, 100 B", 200_000)
        self.tasks_1024 = at_least("produce, 1,024 concurrent awaits, 100 B", None)
        self.batched_small = at_least("best batched produce, 100 B", 1_400_000)
        self.batched_large = at_least("best batched produce, 1 KiB", 230, "MB/s")
        self.read_small = at_least("consume 100 B, record by record", 500_000)
        self.lists_small = at_least("consume 100 B, by batches", 2_500_000)
        self.read_large = at_least("consume 1 KiB, record by record", None, "MB/s")
        self.lists_large = at_least("consume 1 KiB, by batches", 350, "MB/s")
        self.one_p50 = at_most("one task, one record at a time, p50", 0.6)
        self.one_p99 = at_most("one task, one record at a time, p99", None)
        self.end_p50 = at_most("500/s, produce to another's consumer, p50", 0.9)
        self.end_p99 = at_most("500/s, produce to another's consumer, p99", None)
        self.beside_p50 = at_most("500/s, the server's core full, p50", None)
        self.beside_p99 = at_most("500/s, the server's core full, p99", 8)
        self.go_unary = at_least("Go, unary produce, 256 callers", 9000, "calls/s")
        self.go_one_p50 = at_most("Go, unary produce, one at a time, p50", 0.5)
        self.go_stream = at_least("Go, ConsumeStream, 100 B", 70_000)
        self.grpcio_unary = at_least("grpcio, unary produce, 256 callers", None, "calls/s")
        self.h2load_unary = at_least("h2load, unary produce, 256 streams", None, "calls/s")
        self.slow_rows = {
            delay: (
                at_least(f"fdatasync +{delay} ms: 256 concurrent awaits", None),
                at_least(f"fdatasync +{delay} ms: best batched, 100 B", None),
                at_most(f"fdatasync +{delay} ms: one at a time, p50", None),
            )
            for delay in (5, 20)
        }
        self.open_batches = at_most("open after kill -9, big batches", 0.5, "s")
        self.open_singles = at_most("open after kill -9, one record a batch", 0.5, "s")
        self.open_segments = at_most("open 2,000 segments", 0.5, "s")
        self.open_descriptors = at_most("descriptors then", 100, "open")
        self.drop_alone = at_most("append beyond its fdatasync, p99", None)
        self.drop_p99 = at_most("while 2,000 segments are dropped, p99", None)
        self.drop_worst = at_most("while 2,000 segments are dropped, worst", 20)
        self.open_producers = at_most("open 100 segments of 10,000 producers", 20, "MB")
        self.memory_loaded = at_most("server's RssAnon after loading", 120, "MB")
        self.memory_reading = at_most("server's RssAnon while consuming, worst", 120, "MB")


class Bench:
    """Measures one thing after the other."""

    def __init__(self, plan: Plan, folder: Path, report: Report) -> None:
        self._plan = plan
        self._folder = folder
        self._report = report
        self._rows = Rows(report)

    async def run(self, systems: list[type[System]]) -> None:
        for system in systems:
            tell(f"{system.name}:")
            await self._produce(system)
            for size in (SMALL, LARGE):
                await self._batched(system, size)
                await self._read(system, size)
        await self._foreign()
        await self._stages()
        for delay, rows in self._rows.slow_rows.items():
            await self._slow_disk(delay, rows)
        await self._memory()
        await self._opening()
        await self._segments()

    @asynccontextmanager
    async def _watched(
        self, load: str, client: System, server: Server, port: int
    ) -> AsyncIterator[None]:
        """Notes how busy both ends were and, for Proglog, what the disk had to do."""
        before = await _metrics(port) if isinstance(client, Proglog) else {}
        cpu = Cpu(server)
        yield
        own, other = cpu.busy()
        text = f"  {client.name}, {load}: client {own:.0%} of a core, server {other:.0%}"
        if before:
            after = await _metrics(port)
            text += _disk({name: value - before.get(name, 0.0) for name, value in after.items()})
        self._report.note(text)

    # --- all systems -----------------------------------------------------------------------------

    async def _produce(self, system: type[System]) -> None:
        plan, rows, name = self._plan, self._rows, system.name
        values = values_of(SMALL)
        async with serving(system, self._folder) as (client, server, port):
            ones, ends = [], []
            async with self._watched("one at a time", client, server, port):
                for _ in range(plan.runs):
                    ones.append(await one_at_a_time(client.append, values[0], plan.seconds))
            rows.one_p50.put(name, [p50_ms(run) for run in ones])
            rows.one_p99.put(name, [p99_ms(run) for run in ones])
            for tasks, row in ((256, rows.tasks_256), (1024, rows.tasks_1024)):
                async with self._watched(f"{tasks} awaits", client, server, port):
                    row.put(name, [await self._awaits(client, tasks) for _ in range(plan.runs)])
            for _ in range(plan.runs):
                ends.append(await end_to_end(client, port, SMALL, 2 * plan.seconds))
            rows.end_p50.put(name, [p50_ms(run) for run in ends])
            rows.end_p99.put(name, [p99_ms(run) for run in ends])

    async def _awaits(self, client: System, tasks: int) -> float:
        values = values_of(SMALL)[:tasks]
        rate, answers = await concurrently(client.append, values, self._plan.seconds)
        if isinstance(client, Proglog):
            await check_appended(client, values, cast("list[list[int]]", answers))
        return rate

    async def _batched(self, system: type[System], size: int) -> None:
        values = values_of(size)
        async with (
            serving(system, self._folder) as (client, server, port),
            self._watched(f"batched, {size} B", client, server, port),
        ):
            rates = [
                await batched(client, values, self._plan.seconds) for _ in range(self._plan.runs)
            ]
        if size == SMALL:
            self._rows.batched_small.put(system.name, rates)
        else:
            self._rows.batched_large.put(system.name, [rate * size / 1e6 for rate in rates])

    async def _read(self, system: type[System], size: int) -> None:
        plan, rows = self._plan, self._rows
        values = values_of(size)
        async with serving(system, self._folder) as (client, server, port):
            records = min(plan.fill_bytes, system.log_bytes_max) // size
            await fill(client, values, records, plan.fill_seconds_max)
            by_lists = {
                False: (rows.read_small, rows.read_large),
                True: (rows.lists_small, rows.lists_large),
            }
            for lists, (small, large) in by_lists.items():
                how = "by batches" if lists else "record by record"
                async with self._watched(f"consume {size} B {how}", client, server, port):
                    rates = [
                        await read(client, values, plan.seconds, lists=lists)
                        for _ in range(plan.runs)
                    ]
                if size == SMALL:
                    small.put(system.name, rates)
                else:
                    large.put(system.name, [rate * size / 1e6 for rate in rates])
            if size == LARGE:
                await self._beside_readers(client, server, port)

    async def _beside_readers(self, client: System, server: Server, port: int) -> None:
        plan, rows = self._plan, self._rows
        runs = [
            await beside_readers(client, server, port, SMALL, 2 * plan.seconds, plan.load_streams)
            for _ in range(plan.runs)
        ]
        rows.beside_p50.put(client.name, [p50_ms(latencies) for latencies, _ in runs])
        rows.beside_p99.put(client.name, [p99_ms(latencies) for latencies, _ in runs])
        busy = median(busy for _, busy in runs)
        self._report.note(f"  {client.name}, beside consumers: server {busy:.0%} of a core")

    # --- Proglog alone ---------------------------------------------------------------------------

    async def _stages(self) -> None:
        for tasks in (1, 256):
            found = await stages(self._folder, tasks, self._plan.seconds)
            whole = sum(found.ms.values())
            self._report.note()
            self._report.note(
                f"Where a produce spends its time, {tasks} await{'s' * (tasks > 1)}, "
                f"{found.batch_records:.0f} records a batch: {whole:.2f} ms"
            )
            for stage, ms in found.ms.items():
                self._report.note(f"  {stage:<40}{ms:>8.3f} ms {ms / whole:>5.0%}")
        self._report.note()

    async def _foreign(self) -> None:
        plan, rows, name = self._plan, self._rows, Proglog.name
        go = await asyncio.to_thread(foreign.go_client, self._folder)
        if go is None:
            self._report.note("Go or its gRPC is not installed: its rows are empty")
        async with serving(Proglog, self._folder) as (client, server, port):
            for own, row in ((go, rows.go_unary), (foreign.grpcio_client(), rows.grpcio_unary)):
                if own is not None:
                    async with self._watched(row.load, client, server, port):
                        runs = [
                            await foreign.measured(own, port, "unary", 256, plan.seconds)
                            for _ in range(plan.runs)
                        ]
                    row.put(name, [run["rate"] for run in runs])
            if go is not None:
                one = await foreign.measured(go, port, "unary", 1, plan.seconds)
                rows.go_one_p50.put(name, [one["p50"]])
            by_h2load = await foreign.h2load(self._folder, port, plan.seconds)
            if by_h2load is not None:
                rows.h2load_unary.put(name, [by_h2load])
        if go is not None:
            async with serving(Proglog, self._folder) as (client, _, port):
                await fill(client, values_of(SMALL), 300_000, plan.fill_seconds_max)
                stream = await foreign.measured(go, port, "stream", 2 * plan.seconds)
                rows.go_stream.put(name, [stream["rate"]])

    async def _slow_disk(self, delay: int, rows: tuple[Row, Row, Row]) -> None:
        awaits, many, alone = rows
        values = values_of(SMALL)

        def command(folder: Path, port: int) -> list[str]:
            return node.command(folder, port, delay_ms=delay)

        async with serving(Proglog, self._folder, command) as (client, server, port):
            async with self._watched(f"+{delay} ms, 256 awaits", client, server, port):
                awaits.put(
                    client.name, [await self._awaits(client, 256) for _ in range(self._plan.runs)]
                )
            async with self._watched(f"+{delay} ms, batched", client, server, port):
                rates = [
                    await batched(client, values, self._plan.seconds)
                    for _ in range(self._plan.runs)
                ]
                many.put(client.name, rates)
            latencies = await one_at_a_time(client.append, values[0], self._plan.seconds)
            alone.put(client.name, [p50_ms(latencies)])

    async def _memory(self) -> None:
        values = values_of(LARGE)
        async with serving(Proglog, self._folder) as (client, server, _):
            before = server.memory_bytes()
            loaded = 0
            while loaded < self._plan.memory_bytes:
                rate, _ = await bench.produce_many(client.log, values, 0.5)
                loaded += int(rate * 0.5 * LARGE)
            after = server.memory_bytes()
            self._rows.memory_loaded.put(client.name, [after / 1e6])
            worst = after
            watching = asyncio.create_task(_worst_memory(server))
            for lists in (False, True):
                await read(client, values, self._plan.seconds, lists=lists)
            worst = max(worst, await _stopped(watching))
            self._rows.memory_reading.put(client.name, [worst / 1e6])
            self._report.note(
                f"Memory: {before / 1e6:.0f} MB before, {after / 1e6:.0f} MB after loading "
                f"{loaded / 1e9:.2g} GB, at most {worst / 1e6:.0f} MB while consuming"
            )

    async def _opening(self) -> None:
        plan, rows = self._plan, self._rows
        for batch_records, row in ((1000, rows.open_batches), (1, rows.open_singles)):
            tell(f"Building a log of {plan.open_records:,} records, {batch_records} a batch")
            opened = await opening(self._folder, plan.open_records, batch_records, plan.runs)
            row.put(Proglog.name, [each.node_seconds for each in opened])
            whole = median(each.process_seconds for each in opened)
            self._report.note(
                f"Open after kill -9, {plan.open_records:,} records, {batch_records} a batch: "
                f"{row.values[Proglog.name]:.2f} s, with the start of the program {whole:.2f} s"
            )

    async def _segments(self) -> None:
        rows, name = self._rows, Proglog.name
        tell("A log of 2,000 segments")
        opened, dropped = await many_segments(self._folder)
        rows.open_segments.put(name, [opened["seconds"]])
        rows.open_descriptors.put(name, [opened["descriptors"]])
        rows.drop_alone.put(name, [dropped["alone_p99_ms"]])
        rows.drop_p99.put(name, [dropped["p99_ms"]])
        rows.drop_worst.put(name, [dropped["worst_ms"]])
        self._report.note(
            f"While 2,000 segments were dropped: {dropped['appends']:,.0f} appends, one at a time, "
            f"the worst {dropped['worst_ms']:.1f} ms beyond its fdatasync; without that "
            f"{dropped['alone_worst_ms']:.1f} ms"
        )
        producers = await many_producers(self._folder)
        rows.open_producers.put(name, [producers["memory_mb"]])


async def _metrics(port: int) -> dict[str, float]:
    """The node's metrics that have no labels."""

    def get() -> str:
        with urlopen(f"http://{HOST}:{port}/metrics", timeout=10) as response:
            return str(response.read().decode())

    lines = [line.split() for line in (await asyncio.to_thread(get)).splitlines()]
    return {line[0]: float(line[1]) for line in lines if len(line) == 2 and "{" not in line[0]}


def _disk(delta: dict[str, float]) -> str:
    syncs = delta["proglog_fdatasync_duration_seconds_count"]
    if not syncs:
        return ""
    batches = delta["proglog_write_group_batches_sum"] / syncs
    size = delta["proglog_write_group_bytes_sum"] / syncs
    records = delta["proglog_appended_records_total"] / syncs
    ms = delta["proglog_fdatasync_duration_seconds_sum"] / syncs * 1e3
    return (
        f"; {syncs:,.0f} fdatasyncs of {records:,.0f} records, {batches:.1f} batches, "
        f"{size / 1000:,.1f} kB, {ms:.2f} ms each with the write"
    )


async def _worst_memory(server: Server) -> int:
    """The most that a server takes until this is cancelled."""
    worst = 0
    try:
        while True:
            worst = max(worst, server.memory_bytes())
            await asyncio.sleep(0.05)
    except asyncio.CancelledError:
        return worst


async def _stopped(task: asyncio.Task[int]) -> int:
    task.cancel()
    return await task


async def run(folder: Path, *, quick: bool) -> Report:
    """Measures everything that is installed."""
    plan = Plan.quick() if quick else Plan()
    systems = [system for system in SYSTEMS.values() if system.command(folder, 1) is not None]
    report = Report(
        f"One node, client and server one process each; medians of {plan.runs}",
        [system.name for system in SYSTEMS.values()],
    )
    for system in SYSTEMS.values():
        if system not in systems:
            report.note(f"{system.name} is not installed: its column is empty")
    await Bench(plan, folder, report).run(systems)
    report.note()
    report.note("JetStream acknowledges before it syncs (default sync_interval); Redis after")
    report.note("(appendfsync always), and so does Proglog.")
    return report
