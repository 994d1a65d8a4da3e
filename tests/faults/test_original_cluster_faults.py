"""The faults that the Go original has as a cluster, by the numbers of its review: W2 to W32.

Each test runs twice: as the code is, and with the fault brought back, when it must fail. Where a
fault is impossible by structure, the test asserts what makes it so.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import aiohttp
import grpc  # type: ignore[import-untyped]  # it has no types
import pytest

import proglog
from proglog import batch as batches
from proglog import limits, wire
from proglog._generated.log import v1
from proglog.agent import policy, reconciler
from proglog.agent.node import Node
from proglog.agent.reconciler import Reconciler
from proglog.batch import BadBatch, ProposedBatch
from proglog.client.call import Method
from proglog.client.network import _CONSUME, NetworkBackend
from proglog.config import Address, LogConfig
from proglog.errors import (
    ChangeRefused,
    ConfigurationError,
    Internal,
    NotLeader,
    ProglogError,
    StorageFailed,
    Unavailable,
)
from proglog.log.log import Log
from proglog.log.names import GROUPS
from proglog.membership import JoinFailed, Membership, MembershipConfig, Status, Timing
from proglog.ports import RealFiles
from proglog.raft.configuration import AddLearner, Configuration, changed
from proglog.raft.messages import Message
from proglog.replica.exchange import Exchange
from proglog.replica.identity import NodeDirectory
from proglog.replica.leadership import Leadership
from proglog.replica.opening import open_log
from proglog.replica.replica import Replica
from proglog.replica.state import ReplicatedState
from tests import waiting
from tests.agent.nodes import Nodes, some_nodes
from tests.log.support import Engine
from tests.ports import free_port
from tests.replica.support import log_in
from tests.waiting import until

_GET_SERVERS = Method("GetServers", v1.GetServersRequest, v1.GetServersResponse)
TRIO = ("a", "b", "c")
both = pytest.mark.parametrize("brought_back", [False, True], ids=["absent", "brought back"])


@contextlib.contextmanager
def fails_if(brought_back: bool) -> Iterator[None]:
    """With its fault, the scenario within ends badly."""
    if not brought_back:
        yield
        return
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(waiting, "DEADLINE_SECONDS", 3.0)
        with pytest.raises((AssertionError, ProglogError, grpc.RpcError, TimeoutError)):
            yield


async def produce(nodes: Nodes, values: list[bytes], *names: str) -> list[int]:
    url = nodes.url(names or tuple(nodes.running))
    async with proglog.connect(url) as log:
        return list(await log.produce_many(values))


async def consume(nodes: Nodes, name: str) -> dict[int, bytes]:
    async with proglog.connect(nodes.url([name]), timeout_seconds=5.0) as log:
        return {r.offset: r.value async for r in log.consume("earliest", follow=False)}


def values(count: int, size: int = 20) -> list[bytes]:
    return [f"{number}".encode().ljust(size, b".") for number in range(count)]


# --- starting again ------------------------------------------------------------------------------


@both
async def test_w2_a_restart_works(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, brought_back: bool
) -> None:
    """There, the stores of the old life were never closed, and their locks stopped the next."""
    held: list[Callable[[], None]] = []
    if brought_back:
        lock = RealFiles.lock

        def keep(self: RealFiles, folder: Path, *, shared: bool = False) -> Callable[[], None]:
            held.append(lock(self, folder, shared=shared))
            return lambda: None

        monkeypatch.setattr(RealFiles, "lock", keep)
    with fails_if(brought_back):
        async with some_nodes(tmp_path) as nodes:
            await nodes.form("a")
            await produce(nodes, values(10))
            await nodes.stop("a")
            await nodes.start("a")
            assert await consume(nodes, "a") == dict(enumerate(values(10)))
            assert await produce(nodes, [b"more"]) == [10]
    for release in held:
        release()


@both
async def test_w12_bootstrap_again_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, brought_back: bool
) -> None:
    """There, `bootstrap: true` was fatal as soon as there was something to start from."""
    if brought_back:

        def refuse(node: NodeDirectory, group: int, *, bootstrap: bool, **others: Any) -> object:
            if bootstrap and node.identity.cluster_id:
                raise ConfigurationError("bootstrap only works on new clusters")
            return open_log(node, group, bootstrap=bootstrap, **others)

        monkeypatch.setattr("proglog.replica.replica.open_log", refuse)
    with fails_if(brought_back):
        async with some_nodes(tmp_path) as nodes:
            await nodes.form("a", "b")
            (before,) = nodes.cluster_ids()
            await nodes.stop("a", "b")
            await asyncio.gather(nodes.start("a", bootstrap=True), nodes.start("b"))
            await nodes.voters("a", "b")
            assert nodes.cluster_ids() == {before}


async def test_w11_replay_duplicates_nothing(tmp_path: Path) -> None:
    """By structure: the log of Raft is the log of records, so there is nothing to be replayed into.

    What is replayed is the state beside it, from the index of its snapshot on, each batch once.
    """
    async with some_nodes(tmp_path) as nodes:
        for _ in range(3):
            await nodes.start("a")
            await produce(nodes, values(10))
            replica = nodes.running["a"].replica
            run = await replica.log.read(1, replica.applied_index, 1 << 20)
            for header, body in batches.walk(run.data):
                with pytest.raises(AssertionError):
                    replica._applier._apply_one(header, body)
            await nodes.stop("a")
        await nodes.start("a")
        assert sorted(await consume(nodes, "a")) == list(range(30))
        assert [path.name for path in (tmp_path / "a" / GROUPS).iterdir()] == [f"{2:016x}"]


# --- snapshots and cuts --------------------------------------------------------------------------

_SMALL = LogConfig(
    segment_bytes=28 * limits.KiB,
    retention_bytes=32 * limits.KiB,
    retention_check_seconds=0.05,
)


async def compacted(nodes: Nodes) -> None:
    """A node whose log does not begin at its beginning any more."""
    await nodes.start("a", bootstrap=True, log=_SMALL)
    for _ in range(8):
        await produce(nodes, values(10, size=1000))
    log = nodes.running["a"].replica.log

    async def begins_later() -> bool:
        return log.first_index > 1

    await until(begins_later, "the log is compacted")


@both
async def test_w5_w6_a_node_that_joins_after_compaction_catches_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, brought_back: bool
) -> None:
    """There, every restore of a snapshot failed: the newcomer never caught up, and with it as the
    second voter nothing could be written any more."""

    async def fail(self: Log, snapshot: object) -> None:
        raise StorageFailed("no such file or directory")

    if brought_back:
        monkeypatch.setattr(Log, "reset", fail)
    with fails_if(brought_back):
        async with some_nodes(tmp_path) as nodes:
            await compacted(nodes)
            await nodes.start("b", start_join_addrs=nodes.gossip("a"), log=_SMALL)
            await nodes.voters("a", learners=["b"])
            (offset,) = await produce(nodes, [b"both have this"])
            await nodes.voters("a", learners=["b"])
            held = await consume(nodes, "b")
            assert held[offset] == b"both have this"
            # What it was sent begins with the newest snapshot.
            all_of_them = await consume(nodes, "a")
            assert held == {at: all_of_them[at] for at in all_of_them if at >= min(held)}
            assert min(held) > 0


async def test_w7_a_snapshot_does_not_hold_the_log(tmp_path: Path) -> None:
    """By structure: a snapshot is the state beside the records, copied in one step."""
    async with some_nodes(tmp_path) as nodes:
        await nodes.form("a")
        await produce(nodes, values(200, size=1000))
        await nodes.stop("a")
        snapshots = list(log_in(tmp_path / "a").glob("snapshot-*"))
        assert snapshots
        assert all(path.stat().st_size < 2000 for path in snapshots)
        assert not any(b"....." in path.read_bytes() for path in snapshots)
    state = ReplicatedState()
    copied = state.copy()
    before = copied.encode()
    state.start_offset = 7
    assert copied.encode() == before


@both
async def test_w9_a_conflicting_suffix_is_cut_at_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, brought_back: bool
) -> None:
    """There, deleting from the end deleted from the beginning, up to everything."""
    if brought_back:
        monkeypatch.setattr(Log, "cut_suffix", lambda self, last: self.drop_prefix(last + 1))
    with fails_if(brought_back):
        async with Engine(tmp_path) as engine:
            for number in range(20):
                await engine.append(b"%d" % number)
            engine.log.cut_suffix(13)
            assert engine.log.first_index == 1
            assert engine.log.tip.index == 13
            run = await engine.log.read(1, 13, 1 << 20)
            assert [header.index for header in run.headers] == list(range(1, 14))
            await engine.append(b"instead")
            assert engine.log.tip.index == 14


async def test_w10_an_entry_stands_at_its_index(tmp_path: Path) -> None:
    """By structure: a batch holds its index and the checksum of the batch before, and a log takes
    only the one that is next."""
    async with Engine(tmp_path) as engine:
        await engine.append(b"first")
        tip = engine.log.tip
        for wrong in (tip.index, tip.index + 2):
            header, packed = batches.build(
                batches.encode([b"x"]),
                kind=batches.Kind.DATA,
                index=wrong,
                term=1,
                base_offset=tip.next_offset,
                timestamp=0,
                chain_crc=tip.chain,
            )
            with pytest.raises(BadBatch):
                engine.log.append(header, (packed, batches.encode([b"x"]).data))


# --- whom to ask ---------------------------------------------------------------------------------


async def linearizable(nodes: Nodes, name: str, offset: int) -> bytes:
    """What a node answers to a read that must not be stale."""
    backend = NetworkBackend([nodes.config(name).rpc_addr], "", None)
    request = v1.ConsumeBatchesRequest(offset=offset, linearizable=True)
    data = b""
    try:
        address = backend._servers.to_write
        async with asyncio.timeout(2.0), backend._call(_CONSUME, request, address) as call:
            while (reply := await call.receive()) is not None:
                data += reply.batches
    finally:
        await backend.close()
    return data


def partition(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """Servers whose uuids are put into this set exchange nothing with the others."""
    cut_off: set[str] = set()
    send = Exchange.send

    def send_some(self: Exchange, message: Message) -> None:
        if not {message.to, self._uuid} & cut_off:
            send(self, message)

    monkeypatch.setattr(Exchange, "send", send_some)
    return cut_off


async def other_leader(nodes: Nodes, names: list[str]) -> str:
    return next((n for n in names if nodes.running[n].replica.leadership.is_mine), "")


@both
async def test_w22_a_deposed_leader_answers_no_stale_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, brought_back: bool
) -> None:
    """There, every node answered from what it had."""
    cut_off = partition(monkeypatch)

    async def nothing(self: Replica) -> None:
        return

    if brought_back:
        monkeypatch.setattr(Replica, "barrier", nothing)
    with fails_if(brought_back):
        async with some_nodes(tmp_path) as nodes:
            await nodes.form(*TRIO)
            old = await nodes.find_leader()
            name = next(name for name, node in nodes.running.items() if node is old)
            others = [other for other in TRIO if other != name]
            assert await produce(nodes, [b"seen by all"]) == [0]
            cut_off.add(old.replica.identity.uuid)
            new = await until(lambda: other_leader(nodes, others), "the others elect one of them")
            assert await produce(nodes, [b"seen by two"], new) == [1]
            with contextlib.suppress(Unavailable, NotLeader, TimeoutError):
                assert b"seen by two" in await linearizable(nodes, name, 1), "a stale read"
            assert b"seen by two" in await linearizable(nodes, new, 1)
            cut_off.clear()
            await nodes.voters(*TRIO)


@both
async def test_w23_a_follower_names_the_leader(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, brought_back: bool
) -> None:
    """There, Produce on a follower failed with UNKNOWN and a text."""
    if brought_back:
        text = Internal("node is not the leader")
        monkeypatch.setattr(Leadership, "refusal", lambda self: text)
    with fails_if(brought_back):
        async with some_nodes(tmp_path) as nodes:
            await nodes.form(*TRIO)
            leader = await nodes.find_leader()
            name, follower = next(
                (name, node) for name, node in nodes.running.items() if node is not leader
            )
            led_by = (leader.replica.identity.name, str(leader.rpc_addr))
            assert await asyncio.to_thread(_refusal, str(follower.rpc_addr)) == led_by
            async with (
                aiohttp.ClientSession() as http,
                http.post(
                    f"http://{follower.rpc_addr}/v1/records", data=b"x", allow_redirects=False
                ) as answer,
            ):
                assert answer.status == 421
                assert answer.headers["Location"] == f"http://{leader.rpc_addr}/v1/records"
            # And clients go where they are sent.
            assert await produce(nodes, [b"x"], name) == [0]


def _refusal(address: str) -> tuple[str, str]:
    """The leader that a stock client finds in the details of the error: id and address."""
    with grpc.insecure_channel(address) as channel:
        call = channel.unary_unary("/log.v1.Log/Produce")
        with pytest.raises(grpc.RpcError) as refused:
            call(bytes(v1.ProduceRequest(record=v1.Record(value=b"x"))), timeout=10)
    error: Any = refused.value
    assert error.code() is grpc.StatusCode.FAILED_PRECONDITION
    details = dict(error.trailing_metadata())["grpc-status-details-bin"]
    refusal = wire.decode_error(details)
    assert isinstance(refusal, NotLeader)
    return refusal.facts["leader"], refusal.facts["leader_addr"]


@both
async def test_w24_a_retry_is_appended_once(tmp_path: Path, brought_back: bool) -> None:
    """There, requests had no ids: a retry after a lost answer appended again."""
    with fails_if(brought_back):
        async with some_nodes(tmp_path) as nodes:
            await nodes.form("a")
            replica = nodes.running["a"].replica
            body = batches.encode([b"once"])
            batch = ProposedBatch(body, producer_id=0 if brought_back else 7)
            first = await (await replica.propose(batch))
            again = await (await replica.propose(batch))
            assert again.offset == first.offset
            # A restart does not forget.
            await nodes.stop("a")
            await nodes.start("a")
            replica = nodes.running["a"].replica
            assert (await (await replica.propose(batch))).offset == first.offset
            assert replica.next_offset == 1


@both
async def test_w25_the_leader_is_known_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, brought_back: bool
) -> None:
    """There, the configured address was compared with an IP address: with names, nobody led."""
    if brought_back:
        servers = vars(Leadership)["servers"].fget

        def by_address(self: Leadership) -> list[Any]:
            return [
                dataclasses.replace(
                    server, is_leader=server.is_leader and server.rpc_addr.startswith("127.")
                )
                for server in servers(self)
            ]

        monkeypatch.setattr(Leadership, "servers", property(by_address))
    with fails_if(brought_back):
        async with some_nodes(tmp_path) as nodes:
            for name in "ab":
                nodes.config(name, bind_addr=Address("localhost", free_port()))
            await nodes.form("a", "b")
            leader = await nodes.find_leader()
            for node in nodes.running.values():
                backend = NetworkBackend([node.rpc_addr], "", None)
                try:
                    reply = await backend.ask(_GET_SERVERS, v1.GetServersRequest())
                finally:
                    await backend.close()
                led_by = [server.rpc_addr for server in reply.servers if server.is_leader]
                assert led_by == [str(leader.rpc_addr)]
                assert led_by[0].startswith("localhost:")


@both
async def test_w31_a_node_starts_without_a_leader(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, brought_back: bool
) -> None:
    """There, a start looked for a leader once a second and failed after three."""
    start = Node._start

    async def wait_for_a_leader(self: Node) -> None:
        await start(self)
        async with asyncio.timeout(3.0):
            await self.replica.wait_ready()

    with fails_if(brought_back):
        async with some_nodes(tmp_path) as nodes:
            await nodes.form(*TRIO)
            await produce(nodes, values(10))
            await nodes.stop(*TRIO)
            if brought_back:
                monkeypatch.setattr(Node, "_start", wait_for_a_leader)
            await nodes.start("a")
            assert not nodes.running["a"].replica.is_ready
            await asyncio.gather(nodes.start("b"), nodes.start("c"))
            await nodes.voters(*TRIO)
            # And a leader that stops hands over: there is no election to be waited for.
            old = await nodes.find_leader()
            term = old.replica.leadership.state.term
            await nodes.stop(next(name for name, node in nodes.running.items() if node is old))
            assert nodes.leader is not None
            assert nodes.leader.replica.leadership.state.term == term + 1


# --- membership ----------------------------------------------------------------------------------


@both
async def test_w27_a_join_without_a_leader_is_not_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, brought_back: bool
) -> None:
    """There, the event of a join was handled by whoever led at that moment, or by nobody."""
    cut_off = partition(monkeypatch)
    if brought_back:
        view, listen = Reconciler.view, Reconciler._listen
        handled: dict[int, set[str]] = {}
        events: dict[int, list[Any]] = {}

        def listen_for_events(self: Reconciler) -> None:
            listen(self)
            members = self._membership.members()
            known = handled.setdefault(id(self), set())
            events[id(self)] = [each for each in members if each.name not in known]
            known |= {each.name for each in members}

        def view_of_events(self: Reconciler) -> policy.View:
            return dataclasses.replace(view(self), members=events[id(self)])

        monkeypatch.setattr(Reconciler, "_listen", listen_for_events)
        monkeypatch.setattr(Reconciler, "view", view_of_events)
    with fails_if(brought_back):
        async with some_nodes(tmp_path) as nodes:
            await nodes.start("a", bootstrap=True)
            await nodes.start("b", bootstrap=False)
            async with nodes.admin("a") as admin:
                await admin.add(str(nodes.config("b").rpc_addr))
            await nodes.voters("a", "b")
            cut_off.add(nodes.running["b"].replica.identity.uuid)

            async def nobody_leads() -> bool:
                return nodes.leader is None

            await until(nobody_leads, "neither has a quorum")
            await nodes.start("c", start_join_addrs=nodes.gossip("a", "b"))
            for name in "ab":
                await nodes.sees(name, "c", Status.ALIVE)
            await asyncio.sleep(2 * limits.reconcile_seconds)
            cut_off.clear()
            await nodes.voters(*TRIO)


@both
async def test_w28_a_silent_voter_stays_a_voter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, brought_back: bool
) -> None:
    """There, a few seconds of silence shrank the quorum: three, two, one."""
    if brought_back:
        monkeypatch.setattr(policy, "may_remove_dead", lambda *_: True)
    with fails_if(brought_back):
        async with some_nodes(tmp_path) as nodes:
            await nodes.form(*TRIO, dead_server_after_seconds=0.0 if brought_back else 3600.0)
            leader = await nodes.find_leader()
            watcher, gone = [n for n in TRIO if nodes.running[n] is not leader]
            await nodes.stop(gone)
            await nodes.sees(watcher, gone, Status.FAILED)
            await asyncio.sleep(3 * limits.reconcile_seconds)
            assert len(leader.replica.leadership.configuration.voters) == 3
            await nodes.start(gone)
            await nodes.voters(*TRIO)


@both
async def test_w29_a_new_server_may_have_an_old_ones_address(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, brought_back: bool
) -> None:
    """There, the clash of addresses made the newcomer fail. Servers are uuids, addresses hints."""
    if brought_back:

        def refuse(configuration: Configuration, change: object) -> Configuration:
            if isinstance(change, AddLearner) and change.server.address in {
                server.address for server in configuration.servers
            }:
                raise ChangeRefused("found duplicate address in configuration")
            return changed(configuration, change)  # type: ignore[arg-type]

        monkeypatch.setattr("proglog.raft.leader.changed", refuse)
    with fails_if(brought_back):
        async with some_nodes(tmp_path) as nodes:
            await nodes.form(*TRIO)
            leader = await nodes.find_leader()
            gone = next(name for name in TRIO if nodes.running[name] is not leader)
            await nodes.stop(gone)
            there = nodes.config(gone)
            addresses = {"bind_addr": there.bind_addr, "rpc_port": there.rpc_port}
            joined = nodes.gossip(leader.replica.identity.name)
            await nodes.start("d", start_join_addrs=joined, **addresses)

            async def is_voter() -> bool:
                return len(leader.replica.leadership.configuration.voters) == 4

            await until(is_voter, "the newcomer votes")
            assert len(await produce(nodes, [b"x"])) == 1


@both
async def test_w30_a_member_that_hangs_holds_up_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, brought_back: bool
) -> None:
    """There, joins ran in the goroutine that handled events, without a deadline."""
    monkeypatch.setattr(limits, "reconcile_retry_seconds", 1.0)
    if brought_back:
        monkeypatch.setattr(limits, "identify_seconds_max", 600.0)
        monkeypatch.setattr(reconciler, "next_change", _first_forever())
    with fails_if(brought_back):
        async with some_nodes(tmp_path) as nodes, _silent_server() as silent:
            await nodes.form("a")
            hanging = Membership(
                MembershipConfig(
                    name="Z-first-in-line",
                    bind_host="127.0.0.1",
                    bind_port=free_port(),
                    timing=Timing.local(),
                    tags={"role": policy.ROLE, "uuid": "u", "rpc_addr": silent},
                )
            )
            await hanging.start()
            try:
                await hanging.join(nodes.gossip("a"))
                await nodes.sees("a", "Z-first-in-line", Status.ALIVE)
                await nodes.start("b", start_join_addrs=nodes.gossip("a"))
                # Gossip goes on while the leader waits, and so do calls; then the next has a turn.
                await nodes.sees("a", "b", Status.ALIVE)
                assert await produce(nodes, [b"x"], "a") == [0]
                await nodes.voters("a", learners=["b"])
            finally:
                await hanging.close()


def _first_forever() -> Callable[[policy.View], object]:
    first: list[object] = []

    def choose(view: policy.View) -> object:
        change = policy.next_change(view)
        if isinstance(change, policy.Add) and not first:
            first.append(change)
        return first[0] if first else change

    return choose


@contextlib.asynccontextmanager
async def _silent_server() -> Any:
    """Takes connections and says nothing."""
    writers = []
    server = await asyncio.start_server(lambda _, writer: writers.append(writer), "127.0.0.1", 0)
    try:
        yield "{}:{}".format(*server.sockets[0].getsockname())
    finally:
        server.close()
        for writer in writers:
            writer.close()


@both
async def test_w32_nobody_to_join_is_not_fatal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, brought_back: bool
) -> None:
    """There, nothing was accepted before the join, and the first failure ended the node."""
    if brought_back:
        join = Membership.join

        async def join_once(self: Node) -> None:
            if not await join(self.membership, self._config.start_join_addrs):
                raise JoinFailed("nobody was joined")

        monkeypatch.setattr(Node, "_join", join_once)
    with fails_if(brought_back):
        async with some_nodes(tmp_path) as nodes:
            await nodes.start("a", bootstrap=True, start_join_addrs=nodes.gossip("b"))
            assert await produce(nodes, [b"x"]) == [0]
            await asyncio.sleep(0.5)
            assert not nodes.running["a"].failure.done()
            await nodes.start("b", bootstrap=False)
            await nodes.voters("a", learners=["b"])
