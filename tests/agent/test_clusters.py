"""Whole nodes that find each other, come back, are replaced, and leave."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Iterator
from contextlib import aclosing
from itertools import permutations
from pathlib import Path
from types import SimpleNamespace

import pytest
from grpclib.const import Status as GrpcStatus
from grpclib.exceptions import GRPCError
from structlog.testing import capture_logs

import proglog
from proglog import limits
from proglog._generated.log import v1
from proglog.agent.cluster import ask_identity, identify
from proglog.agent.node import Node
from proglog.cli import changes
from proglog.client.admin import Cluster
from proglog.client.network import NetworkBackend
from proglog.errors import ChangeRefused, InvalidRequest
from proglog.membership import Status
from proglog.raft.config import RaftConfig
from tests.agent.nodes import Nodes, some_nodes
from tests.cluster.load import Load
from tests.membership.stock import agents
from tests.ports import free_port
from tests.rpc.fakes import new_channel
from tests.waiting import meanwhile, until

TRIO = ("a", "b", "c")


@pytest.fixture
async def nodes(tmp_path: Path) -> AsyncIterator[Nodes]:
    async with some_nodes(tmp_path) as nodes:
        yield nodes


async def produce(nodes: Nodes, count: int = 20) -> list[int]:
    async with proglog.connect(nodes.url()) as log:
        values = [b"%d" % number for number in range(count)]
        return list(await log.produce_many(values))


# --- forming -------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", [*list(permutations(TRIO))[1::2], None], ids=str)
async def test_nodes_find_each_other_in_any_order(
    nodes: Nodes, order: tuple[str, ...] | None
) -> None:
    """None: all at once."""
    for name in TRIO:
        nodes.config(name, bootstrap=name == "a")
    for name in ("b", "c"):
        nodes.config(name, start_join_addrs=nodes.gossip("a"))
    if order is None:
        await asyncio.gather(*map(nodes.start, TRIO))
    else:
        for name in order:
            await nodes.start(name)
    await nodes.voters(*TRIO)
    assert len(nodes.cluster_ids()) == 1
    assert await produce(nodes) == list(range(20))


async def test_expected_nodes_form_one_cluster(nodes: Nodes) -> None:
    for name in TRIO:
        nodes.config(name, start_join_addrs=nodes.gossip(*TRIO), bootstrap_expect=3)
    await nodes.start("c")
    await nodes.start("b")
    # Two of three are not enough, however long they wait.
    await nodes.sees("c", "b", Status.ALIVE)
    await asyncio.sleep(1.5 * limits.reconcile_seconds)
    assert nodes.cluster_ids() == {""}
    await nodes.start("a")
    await nodes.voters(*TRIO)
    assert len(nodes.cluster_ids()) == 1
    assert await produce(nodes) == list(range(20))


async def test_expected_nodes_form_one_cluster_all_at_once(nodes: Nodes) -> None:
    for name in TRIO:
        nodes.config(name, start_join_addrs=nodes.gossip(*TRIO), bootstrap_expect=3)
    await asyncio.gather(*map(nodes.start, TRIO))
    await nodes.voters(*TRIO)
    before = {server.uuid for server in nodes.running["a"].replica.servers()}
    (cluster_id,) = nodes.cluster_ids()
    # Told to expect and to join again, they go on where they were.
    await nodes.stop(*TRIO)
    await asyncio.gather(*map(nodes.start, TRIO))
    await nodes.voters(*TRIO)
    assert {server.uuid for server in nodes.running["a"].replica.servers()} == before
    assert nodes.cluster_ids() == {cluster_id}


async def test_a_late_node_joins_instead_of_forming_another(nodes: Nodes) -> None:
    for name in (*TRIO, "d"):
        nodes.config(name, start_join_addrs=nodes.gossip(*TRIO), bootstrap_expect=3)
    await asyncio.gather(*map(nodes.start, TRIO))
    await nodes.voters(*TRIO)
    await nodes.start("d")
    await nodes.voters(*TRIO, "d")
    assert len(nodes.cluster_ids()) == 1


# --- coming back ---------------------------------------------------------------------------------


async def test_all_stopped_and_started_together_are_the_same_cluster(nodes: Nodes) -> None:
    await nodes.form(*TRIO)
    offsets = await produce(nodes)
    before = {server.uuid for server in nodes.running["a"].replica.servers()}
    await nodes.stop(*TRIO)
    await asyncio.gather(*map(nodes.start, TRIO))
    await nodes.voters(*TRIO)
    assert {server.uuid for server in nodes.running["a"].replica.servers()} == before
    async with proglog.connect(nodes.url()) as log:
        assert [record.offset async for record in log.consume(0, follow=False)] == offsets


async def test_a_node_that_comes_back_elsewhere_is_the_same_server(nodes: Nodes) -> None:
    await nodes.form(*TRIO)
    before = nodes.running["c"].replica.identity.uuid
    await nodes.stop("c")
    nodes.move("c")
    await nodes.start("c")
    await nodes.voters(*TRIO)
    assert nodes.running["c"].replica.identity.uuid == before
    # It may lead, and clients that ask the others are sent to where it is now.
    async with nodes.admin() as admin:
        await admin.transfer("c")
    async with proglog.connect(nodes.url("ab")) as log:
        assert await log.produce(b"to its new address") == 0
    assert nodes.leader is nodes.running["c"]


async def test_a_wiped_node_replaces_the_server_it_was(nodes: Nodes) -> None:
    await nodes.form(*TRIO)
    await produce(nodes)
    before = nodes.running["c"].replica.identity.uuid
    await nodes.stop("c")
    await nodes.wipe("c")
    await nodes.start("c")
    await nodes.voters(*TRIO)
    after = nodes.running["c"].replica.identity.uuid
    assert after != before
    assert nodes.running["a"].replica.leadership.configuration.find(before) is None
    assert nodes.running["c"].replica.next_offset == 20


# --- strangers -----------------------------------------------------------------------------------


async def test_a_foreign_clusters_node_is_reported_and_ignored(nodes: Nodes) -> None:
    with capture_logs() as lines:
        await nodes.form("a", "b")
        await nodes.start("x", bootstrap=True, start_join_addrs=nodes.gossip("a"))

        async def reported() -> bool:
            said = [line.get("member") for line in lines if "another cluster" in line["event"]]
            return "x" in said and bool({"a", "b"} & set(said))

        await until(reported, "both clusters report the other's nodes")
        names = [
            sorted(server.name for server in node.replica.servers())
            for node in nodes.running.values()
        ]
        assert names == [["a", "b"], ["a", "b"], ["x"]]
        async with nodes.admin("a") as admin:
            with pytest.raises(ChangeRefused, match="another cluster"):
                await admin.add(str(nodes.config("x").rpc_addr))


async def test_a_second_node_of_the_same_name_is_reported_and_ignored(
    nodes: Nodes, tmp_path: Path
) -> None:
    with capture_logs() as lines:
        await nodes.form("a", "b")
        async with some_nodes(tmp_path / "elsewhere") as others:
            await others.start("b", start_join_addrs=nodes.gossip("a"))

            async def reported() -> bool:
                return any("same name" in line["event"] and line["member"] == "b" for line in lines)

            await until(reported, "the conflict is reported")
            await asyncio.sleep(1.5 * limits.reconcile_seconds)
            servers = {server.name: server.uuid for server in nodes.running["a"].replica.servers()}
            assert servers["b"] == nodes.running["b"].replica.identity.uuid
            assert await produce(nodes) == list(range(20))


async def test_a_stock_agent_is_listed_and_ignored(nodes: Nodes, tmp_path: Path) -> None:
    await nodes.form("a", "b")
    async with agents(tmp_path, "stock") as agent:
        await agent.command("join", *nodes.gossip("a"))
        await nodes.sees("b", "stock", Status.ALIVE)
        await asyncio.sleep(1.5 * limits.reconcile_seconds)
        async with nodes.admin("b") as admin:
            listed = {member.name for member in (await admin.members()).members}
            servers = {server.id for server in (await admin.status()).servers}
        assert (listed, servers) == ({"a", "b", "stock"}, {"a", "b"})
        tags = (await agent.members())["a"]["tags"]
        assert tags["rpc_addr"] == str(nodes.config("a").rpc_addr)


# --- growing, shrinking, leaving -----------------------------------------------------------------


async def leave(nodes: Nodes, name: str) -> None:
    """As `proglog leave` on that node, which then stops as its process would."""
    async with nodes.admin(name) as admin:
        await admin.leave()
    await asyncio.wait_for(asyncio.shield(nodes.running[name].left), 30)
    await nodes.stop(name)


async def test_a_cluster_grows_and_shrinks_under_load(nodes: Nodes) -> None:
    await nodes.start("a", bootstrap=True)
    addresses = [nodes.config(name).rpc_addr for name in "abcde"]
    async with Load(nodes.url("abcde"), addresses, writers=2) as load:
        joined = nodes.gossip("a")
        for more in ("bc", "de"):
            await asyncio.gather(*(nodes.start(name, start_join_addrs=joined) for name in more))
            await _servers(nodes, {"a", "b", "c", *more})
            await load.progress(50)
        leaving = ["a", next(name for name in "bcde" if nodes.running[name] is not nodes.leader)]
        for name in leaving:
            await leave(nodes, name)
            await load.progress(50)
        await _servers(nodes, set(nodes.running))
    assert load.failures == []
    load.history.check()
    await nodes.voters(*nodes.running)
    for name in nodes.running:
        async with proglog.connect(nodes.url([name])) as log:
            held = {r.offset: r.value async for r in log.consume(0, follow=False)}
        assert load.acknowledged.items() <= held.items()
        assert sorted(held) == list(range(len(held)))


async def _servers(nodes: Nodes, names: set[str]) -> None:
    async def so() -> bool:
        replicas = [node.replica for node in nodes.running.values()]
        return all(
            {server.name for server in replica.servers()} == names
            and not replica.leadership.configuration.learners
            for replica in replicas
        )

    await until(so, f"the voters are {sorted(names)}")


@pytest.mark.parametrize("who", ["leader", "follower"])
async def test_a_server_leaves(nodes: Nodes, who: str) -> None:
    await nodes.form(*TRIO)
    name = "a" if (nodes.leader is nodes.running["a"]) is (who == "leader") else "b"
    await leave(nodes, name)
    rest = [other for other in TRIO if other != name]
    await nodes.voters(*rest)
    await nodes.sees(rest[0], name, Status.LEFT)
    assert await produce(nodes) == list(range(20))


async def test_the_last_server_cannot_leave(nodes: Nodes) -> None:
    await nodes.form("a")
    async with nodes.admin("a") as admin:
        with pytest.raises(ChangeRefused, match="last"):
            await admin.leave()
        with pytest.raises(ChangeRefused):
            await admin.remove("a")
    assert await produce(nodes) == list(range(20))


async def test_nobody_leaves_where_the_rest_has_no_quorum(nodes: Nodes) -> None:
    await nodes.form(*TRIO)
    leader = await nodes.find_leader()
    follower, other = [name for name in TRIO if nodes.running[name] is not leader]
    await nodes.stop(other)
    await until(lambda: _is_silent(nodes, other), "the leader misses it")
    async with nodes.admin(follower) as admin:
        with pytest.raises(ChangeRefused, match="quorum"):
            await admin.remove(follower)
    async with nodes.admin(follower) as admin:  # which has not been sent on to the leader
        with pytest.raises(ChangeRefused, match=f"without {follower} the cluster .* no quorum"):
            await admin.leave()
        # The one that is gone may go for good.
        await admin.remove(other)
    await nodes.voters(*nodes.running)


async def _is_silent(nodes: Nodes, name: str) -> bool:
    leader = await nodes.find_leader()
    servers = leader.replica.cluster_status().servers
    return any(server.name == name and server.active is False for server in servers)


async def test_a_leave_by_gossip_alone_is_granted_by_the_leader(nodes: Nodes) -> None:
    await nodes.form(*TRIO)
    await nodes.running["c"].membership.leave()
    await nodes.stop("c")
    await nodes.voters("a", "b")


async def test_a_dead_server_is_removed_after_its_time(nodes: Nodes) -> None:
    await nodes.form(*TRIO, "d", dead_server_after_seconds=2.0)
    gone = next(name for name in (*TRIO, "d") if nodes.running[name] is not nodes.leader)
    await nodes.stop(gone)
    await nodes.voters(*nodes.running)


async def test_servers_beyond_the_most_voters_stay_learners(
    nodes: Nodes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "voters_max", 3)
    await nodes.form(*TRIO)
    await produce(nodes)
    await nodes.start("d", start_join_addrs=nodes.gossip("a"))
    await nodes.voters(*TRIO, learners=["d"])
    assert nodes.running["d"].replica.next_offset == 20
    # A seat is free: the learner takes it.
    await leave(nodes, "b")
    await nodes.voters("a", "c", "d")


async def test_the_second_server_votes_once_a_third_is_there(nodes: Nodes) -> None:
    await nodes.start("a", bootstrap=True)
    await nodes.start("b", start_join_addrs=nodes.gossip("a"))
    await nodes.voters("a", learners=["b"])
    await asyncio.sleep(5 * limits.reconcile_seconds)
    await nodes.voters("a", learners=["b"])
    # Whoever came by may go again, without a word: the first goes on alone.
    await nodes.stop("b")
    assert await produce(nodes) == list(range(20))
    await nodes.start("b")
    await nodes.start("c", start_join_addrs=nodes.gossip("a"))
    await nodes.voters(*TRIO)
    await nodes.stop("a")
    async with proglog.connect(nodes.url("bc")) as log:
        assert await log.produce(b"without the first") == 20


async def test_an_operator_gives_the_second_server_its_vote(nodes: Nodes) -> None:
    await nodes.start("a", bootstrap=True)
    await nodes.start("b", start_join_addrs=nodes.gossip("a"))
    await nodes.voters("a", learners=["b"])
    async with nodes.admin("a") as admin:
        await admin.add(str(nodes.config("b").rpc_addr))
    await nodes.voters("a", "b")


async def test_an_operator_adds_a_node_that_gossip_does_not_know(nodes: Nodes) -> None:
    await nodes.form("a", "b")
    await nodes.start("c", bootstrap=False)
    async with Cluster([nodes.running["b"].rpc_addr]) as admin:
        nobody = f"127.0.0.1:{free_port()}"
        with pytest.raises(ChangeRefused, match=f"{nobody} does not say who it is: cannot connect"):
            await admin.add(nobody)
        await admin.add(str(nodes.running["c"].rpc_addr))
    await nodes.voters(*TRIO)


@pytest.mark.parametrize("wrong", ["nonsense", "host:99999", "", "a b:1", "x" * 300 + ":1"])
async def test_what_is_no_address_is_said_to_be_none(nodes: Nodes, wrong: str) -> None:
    await nodes.start("a", bootstrap=True)
    async with nodes.admin("a") as admin:
        with pytest.raises(InvalidRequest, match="expected host:port"):
            await admin.add(wrong)


@pytest.mark.parametrize(
    ("name", "uuid"),
    [
        ("a name", ""),
        ("", ""),
        ("x" * 129, ""),
        ("n\n", ""),
        ("fine", "no uuid"),
        ("fine", "{8f14e45f-ceea-467f-a8f5-5c1d2b0a9e11}"),
    ],
)
async def test_what_a_node_says_of_itself_is_looked_at(
    monkeypatch: pytest.MonkeyPatch, name: str, uuid: str
) -> None:
    async def describe(_self: object, **_where: object) -> SimpleNamespace:
        told = uuid or "8f14e45f-ceea-467f-a8f5-5c1d2b0a9e11"
        return SimpleNamespace(cluster_id="", node=name, node_uuid=told)

    monkeypatch.setattr(NetworkBackend, "describe", describe)
    with pytest.raises(ChangeRefused, match="is no node: it calls itself"):
        await identify("127.0.0.1:1", "c1")


async def test_a_node_that_waits_for_another_cluster_is_not_added(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It would refuse every call, and the cluster wait for it."""
    uuid = "8f14e45f-ceea-467f-a8f5-5c1d2b0a9e11"

    async def describe(_self: object, **_where: object) -> SimpleNamespace:
        return SimpleNamespace(cluster_id="", node="n9", node_uuid=uuid, cluster_name="prdo")

    monkeypatch.setattr(NetworkBackend, "describe", describe)
    with pytest.raises(ChangeRefused, match=r"called 'prdo', and this one .* --cluster-name=prod"):
        await identify("127.0.0.1:1", "c1", cluster_name="prod")
    assert (await identify("127.0.0.1:1", "c1", cluster_name="prdo")).uuid == uuid


# --- producing ----------------------------------------------------------------------------------


async def test_more_producers_than_the_log_knows(
    nodes: Nodes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "producers_max", 3)
    await nodes.form(*TRIO)
    values = [b"%d" % number for number in range(20)]
    async with proglog.connect(nodes.url()) as patient:
        for number, value in enumerate(values):
            if number % 10 == 0:
                assert await patient.produce(value) == number
            else:
                async with proglog.connect(nodes.url()) as once:
                    assert await once.produce(value) == number
            if number == 7:
                leader = await nodes.find_leader()
                async with nodes.admin() as admin:
                    await admin.transfer()
                name = leader.replica.identity.name
                await nodes.stop(name)
                await nodes.start(name)
        held = [record.value async for record in patient.consume(0, follow=False)]
    assert held == values
    await nodes.voters(*TRIO)
    tables = {node.replica._applier.state.producers.encode() for node in nodes.running.values()}
    assert len(tables) == 1


# --- failing over --------------------------------------------------------------------------------


async def test_nobody_waits_for_a_timeout_when_the_leaders_connections_end(
    nodes: Nodes, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Far longer than `until` waits: no silence starts an election here.
    patient = RaftConfig(election_ticks=1_000_000, snapshot_ticks_max=1_000_000)
    monkeypatch.setattr("proglog.agent.node.RaftConfig", lambda: patient)
    await nodes.form(*TRIO)
    first = await nodes.find_leader()
    term = first.replica.leadership.state.term
    # It goes on, as if each of its connections had been reset; so it hears of its successor.
    first.peers.close()

    async def succeeded() -> bool:
        leader = nodes.leader
        return leader is not None and leader.replica.leadership.state.term > term

    await until(succeeded, "another one leads")


# --- telling -------------------------------------------------------------------------------------


@pytest.mark.parametrize("leads", [True, False], ids=["leader", "follower"])
async def test_the_originals_stream_waits_for_what_its_node_has_not_got(
    nodes: Nodes, leads: bool
) -> None:
    """A client of the original goes from node to node, and a follower knows of less."""
    await nodes.form(*TRIO)
    await produce(nodes, 3)
    leader = await nodes.find_leader()
    asked = next(node for node in nodes.running.values() if (node is leader) is leads)
    channel = new_channel(asked.rpc_addr)
    stub = v1.LogStub(channel)
    async with (
        proglog.connect(nodes.url()) as log,
        aclosing(stub.consume_stream(v1.ConsumeRequest(offset=5))) as records,
        meanwhile(anext(records)) as received,
    ):
        for value in (b"3", b"4", b"5"):
            await asyncio.sleep(0.05)
            assert not received.done()
            await log.produce(value)
        record = (await received).record
        assert (record.offset, record.value) == (5, b"5")
    with pytest.raises(GRPCError) as refused:
        await stub.consume(v1.ConsumeRequest(offset=6))
    assert refused.value.status is GrpcStatus.OUT_OF_RANGE
    channel.close()


async def test_an_operator_who_has_to_wait_for_a_leader_is_told(
    nodes: Nodes, capsys: pytest.CaptureFixture[str]
) -> None:
    await nodes.form(*TRIO)
    await nodes.stop("a", "b")
    left = nodes.running["c"]
    await until(lambda: left.replica.leadership.state.leader is None, "the last one is alone")
    changing = changes.transfer([left.rpc_addr], None, "")
    async with meanwhile(changing) as change:
        told = "c knows no leader now: waiting for one"
        await until(lambda: told in capsys.readouterr().err, "it is told")
        assert not change.done()
        await nodes.start("a")
        assert await change == 0


@pytest.fixture
def quiet() -> Iterator[None]:
    """What the nodes in this process log is kept out of what a command says."""
    with capture_logs():
        yield


@pytest.mark.usefixtures("quiet")
async def test_changes_say_what_they_did(nodes: Nodes, capsys: pytest.CaptureFixture[str]) -> None:
    await nodes.start("a", bootstrap=True)
    await nodes.start("b", bootstrap=False)
    await nodes.start("c", bootstrap=False)
    asked = [nodes.running["a"].rpc_addr]
    rpc_addr = {name: str(node.rpc_addr) for name, node in nodes.running.items()}

    async def said(doing: Awaitable[int]) -> str:
        assert await doing == 0
        return capsys.readouterr().out

    with pytest.raises(ChangeRefused, match="called 'b': there is a"):
        await changes.promote(asked, None, "b")
    added = await said(changes.add(asked, None, rpc_addr["b"]))
    assert added.startswith(("b is a learner: it gets its vote once", "b is a voter"))
    await until(lambda: len(nodes.running["a"].replica.leadership.configuration.voters) == 2)
    two = "2 voters, and the loss of either stops the cluster"
    assert await said(changes.promote(asked, None, "b")) == f"b votes already: {two}\n"
    await said(changes.add(asked, None, rpc_addr["c"]))
    assert (await said(changes.promote(asked, None, "c"))).endswith(": 3 voters\n")
    assert (await said(changes.transfer(asked, None, "b"))).startswith("b leads now, in term ")
    await nodes.stop("c")
    await until(lambda: _is_silent(nodes, "c"), "the leader misses it")
    assert await said(changes.remove(asked, None, "c")) == f"c is no server any more: {two}\n"
    left = await said(changes.leave(nodes.running["b"].rpc_addr, None))
    assert left.startswith("b has left its cluster for good")
    await nodes.stop("b")
    assert await said(changes.promote(asked, None, "a")) == "a votes already: 1 voter\n"


@pytest.mark.usefixtures("quiet")
async def test_the_second_of_two_is_promoted_by_name(
    nodes: Nodes, capsys: pytest.CaptureFixture[str]
) -> None:
    await nodes.start("a", bootstrap=True)
    await nodes.start("b", start_join_addrs=nodes.gossip("a"))
    await nodes.voters("a", learners=["b"])
    asked = [nodes.running["b"].rpc_addr]
    assert await changes.promote(asked, None, "b") == 0
    two = "2 voters, and the loss of either stops the cluster"
    assert capsys.readouterr().out == f"b votes now: {two}\n"
    # Removed while it runs, it is found again; whoever did it is told.
    assert await changes.remove([nodes.running["a"].rpc_addr], None, "b") == 0
    said = capsys.readouterr()
    assert said.out.startswith("b is no server any more")
    assert "proglog leave --server" in said.err


async def test_who_leads_is_told_by_name(nodes: Nodes) -> None:
    with capture_logs() as lines:
        await nodes.form(*TRIO)
        leader = await nodes.find_leader()
        name = leader.replica.identity.name
        await nodes.stop(name)

        def followed() -> Node | None:
            """Whoever leads then: on a busy machine it may be another one before long."""
            states = [node.replica.leadership.state for node in nodes.running.values()]
            agreed = nodes.leader is not None and len({state.term for state in states}) == 1
            return nodes.leader if agreed and all(state.leader for state in states) else None

        successor = await until(followed, "the other one follows")
        term = successor.replica.leadership.state.term
    told = [(line["event"], line.get("leader"), line["term"]) for line in lines if "term" in line]
    assert ("leading", None, term) in told
    assert ("following", successor.replica.identity.name, term) in told
    # Also by those that joined, which heard of the leader before they had a configuration.
    assert {leader for event, leader, _ in told if event == "following"} <= set(TRIO)
    added = sorted(line["server"] for line in lines if line["event"] == "server added")
    assert added == ["b", "c"]


async def test_who_is_at_an_address_is_asked_there_and_not_at_another_one(nodes: Nodes) -> None:
    """A client's backend asks whichever server is best for a read: that would add the wrong one."""
    await nodes.form("n0", "n1", "n2")
    for node in nodes.running.values():
        for _ in range(3):
            server, _ = await ask_identity(str(node.rpc_addr))
            assert server.uuid == node.replica.identity.uuid
