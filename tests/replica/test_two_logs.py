"""Two logs on one node share its connections, its timer and its bounds, and nothing else."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from proglog.config import Address, LogConfig
from proglog.log.names import DEFAULT_GROUP
from proglog.peers.peers import Peers
from proglog.ports import Ports
from proglog.raft.config import RaftConfig
from proglog.raft.configuration import Configuration, Server
from proglog.replica.budgets import Budget, Budgets
from proglog.replica.identity import NodeDirectory, open_node
from proglog.replica.logs import Logs
from proglog.replica.replica import Replica, open_replica
from tests.doubles.disk import SimDisk
from tests.doubles.files import SimFiles
from tests.doubles.loop import SimClock, SimLoop
from tests.doubles.network import on_host
from tests.doubles.worker import SimWorker
from tests.replica.support import proposed
from tests.waiting import until

pytestmark = pytest.mark.virtual_time

PORT = 8400
SECOND = 17


class SimNode:
    """A node with as many logs as one likes."""

    def __init__(self, number: int) -> None:
        self.name = f"n{number}"
        self.address = f"{self.name}:{PORT}"
        loop = asyncio.get_running_loop()
        assert isinstance(loop, SimLoop)
        chance = random.Random(number)
        self.ports = Ports(
            files=SimFiles(SimDisk(number)),
            clock=SimClock(loop=loop),
            random=chance,
            worker=lambda name: SimWorker(name, chance=chance, delay_seconds_max=0.001),
        )
        self.budgets = Budgets()
        self.failures: list[BaseException] = []
        self.logs: dict[int, Replica] = {}
        self.directory: NodeDirectory
        self.peers: Peers

    async def start(self) -> None:
        with on_host(self.name):
            self.peers = Peers(
                connect=_connect,
                chance=self.ports.random,
                clock=self.ports.clock,
                rpc_addr=self.address,
            )
            data_dir = Path("/data")
            self.directory = await open_node(data_dir, node_name=self.name, ports=self.ports)
            await asyncio.get_running_loop().create_server(self.peers.accept, self.name, PORT)

    async def open(self, group: int, *, bootstrap: bool = False, is_new: bool = False) -> Replica:
        with on_host(self.name):
            self.logs[group] = await open_replica(
                str(group),
                self.directory,
                rpc_addr=self.address,
                bootstrap=bootstrap,
                config=LogConfig.for_tests(),
                raft_config=RaftConfig(),
                ports=self.ports,
                observer=self,
                peers=self.peers,
                group=group,
                is_new=is_new,
                budgets=self.budgets,
            )
        return self.logs[group]

    async def stop(self) -> None:
        for replica in self.logs.values():
            await replica.close()
        self.peers.close()
        self.directory.close()

    @property
    def server(self) -> Server:
        identity = self.directory.identity
        return Server(identity.uuid, identity.name, self.address)

    def group_written(self, batches: int, size: int, seconds: float) -> None: ...

    def appended(self, records: int, size: int, seconds: float) -> None: ...

    def consumed(self, size: int) -> None: ...

    def failed(self, error: BaseException) -> None:
        self.failures.append(error)


async def _connect(address: str, factory: Callable[[], asyncio.Protocol]) -> None:
    host, port = Address.parse(address)
    await asyncio.get_running_loop().create_connection(factory, host, port)


@asynccontextmanager
async def three_nodes() -> AsyncIterator[list[SimNode]]:
    """Each with two logs of three voters."""
    nodes = [SimNode(number) for number in range(3)]
    for node in nodes:
        await node.start()
        await node.open(DEFAULT_GROUP, bootstrap=node is nodes[0])
    first = nodes[0].logs[DEFAULT_GROUP]
    await first.wait_ready()
    for node in nodes[1:]:
        await first.members.add(node.server)
    await until(lambda: len(first.leadership.configuration.voters) == 3)
    await until(lambda: all(node.directory.identity.cluster_id for node in nodes))
    for node in nodes:
        await node.open(SECOND, is_new=True)
    # One that is not where the first is led, so that both kinds meet on every node.
    begun = nodes[1].logs[SECOND]
    await begun.begin(Configuration(tuple(node.server for node in nodes)))
    await until(lambda: leader_of(nodes, SECOND) is not None)
    await begun_everywhere(nodes)
    try:
        yield nodes
        assert [node.failures for node in nodes] == [[], [], []]
    finally:
        for node in nodes:
            await node.stop()


async def begun_everywhere(nodes: list[SimNode]) -> None:
    await until(
        lambda: all(
            len(node.logs[group].leadership.configuration.voters) == 3
            for node in nodes
            for group in (DEFAULT_GROUP, SECOND)
        )
    )


def leader_of(nodes: list[SimNode], group: int) -> Replica | None:
    found = [node.logs[group] for node in nodes if node.logs[group].leadership.is_mine]
    return found[0] if len(found) == 1 and found[0].is_ready else None


async def produce(replica: Replica, *values: bytes) -> None:
    for value in values:
        await (await replica.propose(proposed(value)))


async def test_each_log_has_its_own_leader_and_records() -> None:
    async with three_nodes() as nodes:
        first, second = nodes[0].logs[DEFAULT_GROUP], leader_of(nodes, SECOND)
        assert second is not None
        await asyncio.gather(
            produce(first, *[b"first"] * 20), produce(second, *[b"the second"] * 10)
        )
        for node in nodes:
            own, other = node.logs[DEFAULT_GROUP], node.logs[SECOND]
            await until(lambda own=own: own.next_offset == 20)
            await until(lambda other=other: other.next_offset == 10)
            assert b"second" not in bytes((await own.read(0, 2**20)).data)
            assert bytes((await other.read(0, 2**20)).data).count(b"second") == 10
            logs = Logs([own, other])
            assert (logs.get(str(DEFAULT_GROUP)), logs.get(str(SECOND))) == (own, other)
        await second.members.transfer()
        await until(lambda: leader_of(nodes, SECOND) not in {None, second})
        assert first.leadership.is_mine, "what moves one log moves no other"


async def test_a_node_has_one_timer_and_dials_once_for_all_its_logs() -> None:
    async with three_nodes() as nodes:
        rung: dict[str, int] = dict.fromkeys(("n0", "n1", "n2"), 0)

        def count(name: str) -> Callable[[int], int]:
            def ring(_ticks: int) -> int:
                rung[name] += 1
                return 1000

            return ring

        for node in nodes:
            assert set(node.peers._local.groups) == {DEFAULT_GROUP, SECOND}
            assert len(node.peers._peers) == 2
            node.peers.ticker.add(count(node.name))
        await asyncio.sleep(2.0)
        # Heartbeats of two leaders, which may be on two nodes: not those of each tick.
        assert all(20 <= times < 100 for times in rung.values()), rung


async def test_one_log_that_is_closed_leaves_the_other_its_connections() -> None:
    async with three_nodes() as nodes:
        await nodes[2].logs.pop(SECOND).close()
        first = nodes[0].logs[DEFAULT_GROUP]
        await produce(first, b"still")
        await until(lambda: nodes[2].logs[DEFAULT_GROUP].next_offset == 1)
        leader = await until(lambda: leader_of(nodes[:2], SECOND))
        await produce(leader, b"two of three")
        third = await nodes[2].open(SECOND)
        await until(lambda: third.next_offset == leader.next_offset)


def test_logs_share_a_bound_and_none_can_take_the_last_piece_of_another() -> None:
    told: list[str] = []
    budget = Budget(lambda: 100)
    budget.watch(lambda: told.append("one"))
    assert budget.has_room(80, own=0)
    budget.take(80)
    assert not budget.has_room(30, own=80)
    assert budget.has_room(30, own=0), "a log with nothing out is never stopped by others"
    budget.take(30)
    assert not budget.has_room(1, own=30)
    budget.give(30)
    assert told == ["one"]
    assert budget.has_room(20, own=80)


async def test_what_is_proposed_to_one_log_counts_for_the_other(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("proglog.limits.inflight_bytes_max", 1000)
    async with three_nodes() as nodes:
        first, shared = nodes[0].logs[DEFAULT_GROUP], nodes[0].budgets.inflight
        shared.take(900)  # What another log has out.
        one = await first.propose(proposed(b"one"))
        two = asyncio.ensure_future(first.propose(proposed(b"two")))
        await asyncio.sleep(0)
        assert not two.done(), "there is no room for a second piece"
        shared.give(900)
        await asyncio.gather(one, await two)
        await until(lambda: shared.taken == 0)
