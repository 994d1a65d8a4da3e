"""Three nodes and one client on one machine: `make bench-cluster`.

A record is acknowledged once two of three disks have it. Figures are medians of the runs.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from itertools import islice, pairwise
from pathlib import Path
from statistics import median, quantiles
from time import perf_counter

from proglog._generated.log import v1
from proglog.cli.bench import concurrently, one_at_a_time, values_of
from proglog.client.admin import Cluster
from proglog.client.client import Log
from proglog.config import Address
from proglog.errors import ProglogError
from scripts.bench.report import Report, Row, show, tell
from scripts.bench.servers import Server
from scripts.bench.systems import HOST, Proglog
from scripts.bench.workloads import Cpu, batched, p50_ms, p99_ms

SMALL, LARGE = 100, 1024
NODES = 3
WHOLE_SECONDS_MAX = 60.0
ASK_SECONDS_MAX = 1.0
_BEHIND_MAX = 100
"""Batches that a follower may be behind to count as well."""
_TRANSFER_TASKS = 64
_LASTING_PORTS = range(15_000, 30_000)
"""Below those that the kernel gives to outgoing connections: a node that is down keeps its own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """How much is done; `seconds` for each run of a load."""

    runs: int = 3
    seconds: float = 1.5
    pairs: int = 100
    """Runs side by side, with and without what is compared. Many and short: the machine's own pace
    drifts within seconds by more than the few percent that are looked for."""
    pair_seconds: float = 0.3
    kills: int = 20
    transfers: int = 6

    @classmethod
    def quick(cls) -> Plan:
        """For who develops the benchmark."""
        return cls(runs=1, seconds=0.5, pairs=20, kills=2, transfers=2)


# --- the nodes -----------------------------------------------------------------------------------


def _lasting_ports(count: int) -> list[int]:
    """Free ones, all different."""
    ports = random.SystemRandom().sample(_LASTING_PORTS, len(_LASTING_PORTS))
    return list(islice(filter(_is_free, ports), count))


def _is_free(port: int) -> bool:
    with (
        contextlib.suppress(OSError),
        socket.create_server((HOST, port)),
        socket.socket(type=socket.SOCK_DGRAM) as datagrams,
    ):
        datagrams.bind((HOST, port))
        return True
    return False


class Nodes:
    """A cluster of processes, of which any may be killed and started again."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        ports = [Address(HOST, port) for port in _lasting_ports(2 * NODES)]
        self.addresses, self._gossip = ports[:NODES], ports[NODES:]
        self.servers: dict[int, Server] = {}

    def start(self, number: int) -> None:
        others = [str(self._gossip[other]) for other in range(NODES) if other != number]
        command = [
            *(sys.executable, "-m", "proglog.cli", "serve", "--quiet", "--log-level=warning"),
            *(f"--data-dir={self._folder / f'node-{number}'}", f"--node-name=node-{number}"),
            *(f"--rpc-port={self.addresses[number].port}", "--http-addr=none"),
            f"--bind-addr={self._gossip[number]}",
            *(f"--start-join-addrs={address}" for address in others),
            "--no-bootstrap" if number else "--bootstrap",
        ]
        self.servers[number] = Server(command, self._folder / f"output-{number}")

    def kill(self, number: int) -> None:
        self.servers.pop(number).kill()

    def stop(self) -> None:
        for server in self.servers.values():
            server.stop()

    async def whole(self) -> int:
        """Waits until all are voters that keep up; which one leads."""
        async with asyncio.timeout(WHOLE_SECONDS_MAX):
            while True:
                for server in self.servers.values():
                    server.check()
                statuses = await asyncio.gather(*map(self._status, self.addresses))
                for number, status in enumerate(statuses):
                    if status is not None and _is_whole(status):
                        return number
                await asyncio.sleep(0.05)

    async def _status(self, address: Address) -> v1.StatusResponse | None:
        with contextlib.suppress(ProglogError):
            async with Cluster([address], timeout_seconds=ASK_SECONDS_MAX) as cluster:
                return await cluster.status()
        return None


def _is_whole(status: v1.StatusResponse) -> bool:
    """Whether the leader says so."""
    if status.role != "leader" or len(status.servers) != NODES:
        return False
    return all(
        server.suffrage == "voter" and (server.is_leader or _keeps_up(server, status.commit_index))
        for server in status.servers
    )


def _keeps_up(server: v1.ServerStatus, commit_index: int) -> bool:
    return bool(server.active) and (server.match_index or 0) + _BEHIND_MAX >= commit_index


@asynccontextmanager
async def _nodes(folder: Path) -> AsyncIterator[Nodes]:
    nodes = Nodes(folder)
    try:
        for number in range(NODES):
            nodes.start(number)
        await nodes.whole()
        yield nodes
    finally:
        await asyncio.to_thread(nodes.stop)


# --- failures ------------------------------------------------------------------------------------


class Witness:
    """Appends numbered records and remembers what was acknowledged, and when."""

    def __init__(self, log: Log) -> None:
        self._log = log
        self.acknowledged: dict[int, int] = {}
        self.times: list[float] = []
        self.failures: list[ProglogError] = []
        self._numbers = 0

    async def run(self) -> None:
        """Appends one record after the other until it is cancelled."""
        while True:
            number, self._numbers = self._numbers, self._numbers + 1
            try:
                offset = await self._log.produce(b"%d" % number)
            except ProglogError as error:
                self.failures.append(error)
            else:
                self.acknowledged[offset] = number
                self.times.append(perf_counter())

    async def acknowledged_after(self, moment: float) -> float:
        """When the first record was acknowledged that was not under way at `moment`."""
        while not (self.times and self.times[-1] > moment):
            await asyncio.sleep(0.001)
        # This one may have been under way, its answer even sent.
        count = len(self.times)
        while len(self.times) <= count:
            await asyncio.sleep(0.001)
        return self.times[count]

    async def check(self, log: Log, first: int) -> int:
        """Compares the log with what was acknowledged: all of it there, and nothing twice."""
        found: dict[int, int] = {}
        async for record in log.consume(first, follow=False):
            found[record.offset] = int(record.value)
        assert found.items() >= self.acknowledged.items(), "an acknowledged record is lost"
        assert len(set(found.values())) == len(found), "a record is in the log twice"
        return len(found)


# --- the benchmark -------------------------------------------------------------------------------


class Bench:
    """Measures one thing after the other, on one cluster."""

    def __init__(self, plan: Plan, nodes: Nodes, report: Report) -> None:
        def at_least(load: str, target: float | None, unit: str = "records/s") -> Row:
            return report.add(Row(load=load, unit=unit, target=target))

        def at_most(load: str, target: float | None, unit: str = "ms") -> Row:
            return report.add(Row(load=load, unit=unit, target=target, less_is_better=True))

        self._plan = plan
        self._nodes = nodes
        self._report = report
        self._awaits = {
            256: at_least("produce, 256 concurrent awaits, 100 B", 140_000),
            1024: at_least("produce, 1,024 concurrent awaits, 100 B", None),
        }
        self._batched = {
            SMALL: at_least("best batched produce, 100 B", 700_000),
            LARGE: at_least("best batched produce, 1 KiB", 80, "MB/s"),
        }
        self._one_p50 = at_most("one task, one record at a time, p50", 1.0)
        self._one_p99 = at_most("one task, one record at a time, p99", None)
        self._idempotence_cost = at_most("what idempotence costs of 256 awaits", 5, "%")
        self._kill_p50 = at_most("kill -9 of the leader to next ack, p50", 0.6, "s")
        self._kill_worst = at_most("kill -9 of the leader to next ack, worst", 1.5, "s")
        self._transfer_failed = at_most("leadership transfer under load, failed", 0, "calls")
        self._transfer_worst = at_most("leadership transfer under load, worst pause", 200)

    async def run(self) -> None:
        async with self._client(idempotent=True) as client:
            await self._produce(client)
        await self._idempotence()
        await self._transfers()
        await self._kills()

    @asynccontextmanager
    async def _client(self, *, idempotent: bool) -> AsyncIterator[Proglog]:
        client = await Proglog.at(self._nodes.addresses, idempotent=idempotent)
        try:
            yield client
        finally:
            await client.close()

    async def _produce(self, client: Proglog) -> None:
        plan = self._plan
        alone = [
            await one_at_a_time(client.append, values_of(SMALL)[0], plan.seconds)
            for _ in range(plan.runs)
        ]
        self._one_p50.put(client.name, [p50_ms(run) for run in alone])
        self._one_p99.put(client.name, [p99_ms(run) for run in alone])
        for tasks, row in self._awaits.items():
            async with self._watched(f"{tasks} awaits"):
                row.put(client.name, await self._rates(client, tasks))
        for size, row in self._batched.items():
            async with self._watched(f"batched, {size} B"):
                rates = [
                    await batched(client, values_of(size), plan.seconds) for _ in range(plan.runs)
                ]
            scale = 1 if size == SMALL else size / 1e6
            row.put(client.name, [rate * scale for rate in rates])

    async def _rates(self, client: Proglog, tasks: int) -> list[float]:
        seconds = self._plan.seconds
        return [await self._rate(client, tasks, seconds) for _ in range(self._plan.runs)]

    async def _rate(self, client: Proglog, tasks: int, seconds: float) -> float:
        rate, _ = await concurrently(client.append, values_of(SMALL)[:tasks], seconds)
        return rate

    @asynccontextmanager
    async def _watched(self, load: str) -> AsyncIterator[None]:
        """Notes how busy everybody was."""
        leader = await self._nodes.whole()
        meters = {number: Cpu(server) for number, server in self._nodes.servers.items()}
        yield
        busy = {number: meter.busy() for number, meter in meters.items()}
        followers = ", ".join(f"{busy[n][1]:.0%}" for n in busy if n != leader)
        own, leading = busy[leader]
        self._report.note(
            f"  {load}: client {own:.0%} of a core, leader {leading:.0%}, followers {followers}"
        )

    async def _idempotence(self) -> None:
        rates: dict[bool, list[float]] = {True: [], False: []}
        async with self._client(idempotent=True) as one, self._client(idempotent=False) as other:
            clients = [(True, one), (False, other)]
            for _ in range(self._plan.pairs):
                for idempotent, client in clients:
                    rate = await self._rate(client, 256, self._plan.pair_seconds)
                    rates[idempotent].append(rate)
                clients.reverse()  # Neither is always the first.
        pairs = zip(rates[True], rates[False], strict=True)
        costs = [100 * (1 - having / lacking) for having, lacking in pairs]
        self._idempotence_cost.put(Proglog.name, costs)
        quarter, _, three_quarters = quantiles(costs, n=4)
        self._report.note(
            f"Idempotence: {show(median(rates[True]))} records/s with it, "
            f"{show(median(rates[False]))} without; half of the pairs differ by "
            f"{quarter:.0f} to {three_quarters:.0f} %"
        )

    async def _transfers(self) -> None:
        """Hands leadership over, again and again, while many tasks append."""
        async with self._client(idempotent=True) as client, Cluster(self._nodes.addresses) as admin:
            witnesses = [Witness(client.log) for _ in range(_TRANSFER_TASKS)]
            pauses = []
            async with _running(witnesses):
                for _ in range(self._plan.transfers):
                    await self._nodes.whole()
                    await asyncio.sleep(0.3)
                    began = perf_counter()
                    await admin.transfer()
                    await asyncio.sleep(0.7)
                    pauses.append(_worst_pause(witnesses, began, perf_counter()))
        failures = [failure for witness in witnesses for failure in witness.failures]
        for failure in failures[:3]:
            self._report.note(f"  failed during a transfer: {failure!r}")
        self._transfer_failed.put(Proglog.name, [len(failures)])
        self._transfer_worst.put(Proglog.name, [max(pauses) * 1e3])

    async def _kills(self) -> None:
        """Kills the leader, again and again, while one task appends."""
        async with self._client(idempotent=True) as client:
            first = (await client.log.describe()).next
            witness = Witness(client.log)
            pauses = []
            async with _running([witness]):
                for trial in range(self._plan.kills):
                    leader = await self._nodes.whole()
                    await asyncio.sleep(0.2)
                    killed = perf_counter()
                    self._nodes.kill(leader)
                    async with asyncio.timeout(WHOLE_SECONDS_MAX):
                        pauses.append(await witness.acknowledged_after(killed) - killed)
                    self._nodes.start(leader)
                    tell(f"  kill {trial + 1}: {pauses[-1]:.2f} s")
            held = await witness.check(client.log, first)
        self._kill_p50.put(Proglog.name, pauses)
        self._kill_worst.put(Proglog.name, [max(pauses)])
        self._report.note(
            f"After {self._plan.kills} kills of the leader: {len(witness.acknowledged):,} records "
            f"acknowledged, all there; {held:,} in the log, none twice; "
            f"{len(witness.failures)} calls failed"
        )


@asynccontextmanager
async def _running(witnesses: Sequence[Witness]) -> AsyncIterator[None]:
    tasks = [asyncio.create_task(witness.run()) for witness in witnesses]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)


def _worst_pause(witnesses: Sequence[Witness], start: float, end: float) -> float:
    """The longest time without any acknowledgement."""
    times = sorted(time for witness in witnesses for time in witness.times if start <= time <= end)
    return max(after - before for before, after in pairwise([start, *times, end]))


async def run(folder: Path, *, quick: bool) -> Report:
    """Measures a cluster."""
    plan = Plan.quick() if quick else Plan()
    report = Report(
        f"Three nodes and a client, a process each, on one machine; medians of {plan.runs}",
        [Proglog.name],
    )
    async with _nodes(folder) as nodes:
        await Bench(plan, nodes, report).run()
    return report
