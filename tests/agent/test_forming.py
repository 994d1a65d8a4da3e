"""`--bootstrap-expect`: whatever the nodes see of each other and when, one cluster or none."""

from __future__ import annotations

import asyncio
import dataclasses
import random
from collections.abc import AsyncIterator, Iterable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from proglog import limits
from proglog.agent import forming
from proglog.agent.cluster import ask_promise
from proglog.agent.forming import Forming
from proglog.errors import ChangeRefused, ProglogError, Unavailable
from proglog.membership import Member, Membership, Status
from proglog.raft.configuration import Configuration, Server
from proglog.replica.replica import Replica
from tests.agent.nodes import Nodes, some_nodes
from tests.waiting import until

EXPECTED = 3


class NewNode:
    """What a node promised and began is durable; what it sees of others is set by the test."""

    def __init__(self, world: World, name: str) -> None:
        self.world = world
        self.name = name
        self.identity = SimpleNamespace(uuid=f"uuid-{name}", cluster_id="")
        self.leadership = SimpleNamespace(configuration=Configuration())
        self.expect = EXPECTED
        self.local = self.member()
        self.view: set[str] = set()
        self.pause: asyncio.Event | None = None
        self.forming = Forming(
            cast("Replica", self),
            cast("Membership", self),
            EXPECTED,
            self.world.ask,
            self.world.identify,
            random.Random(name),
        )

    def member(self) -> Member:
        began = self.leadership.configuration.servers
        return Member(
            name=self.name,
            address="127.0.0.1",
            port=1,
            status=Status.ALIVE,
            tags={
                "role": "proglog",
                "uuid": self.identity.uuid,
                "rpc_addr": self.name,
                "expect": str(self.expect),
                **({"cluster": self.identity.cluster_id} if began else {}),
            },
            protocol=5,
        )

    # As a membership:

    def members(self) -> list[Member]:
        seen = [self.world.nodes[name].member() for name in sorted(self.view | {self.name})]
        return seen + [
            dataclasses.replace(
                self.member(),
                name=name,
                tags={**self.member().tags, "rpc_addr": name, "uuid": f"uuid-{name}"},
            )
            for name in self.world.made_up
        ]

    # As a replica, and as its home:

    @property
    def home(self) -> Any:
        return self

    async def adopt_cluster(self, cluster_id: str) -> None:
        await asyncio.sleep(0)
        if self.identity.cluster_id not in {"", cluster_id}:
            raise Unavailable(f"this server joined cluster {self.identity.cluster_id}")
        self.identity.cluster_id = cluster_id

    async def release_cluster(self, cluster_id: str) -> None:
        assert not self.leadership.configuration.servers
        await asyncio.sleep(0)
        if self.identity.cluster_id == cluster_id:
            self.identity.cluster_id = ""

    async def begin(self, configuration: Configuration) -> None:
        if self.pause is not None:
            await self.pause.wait()
        self.leadership.configuration = configuration
        self.world.began.append((self.identity.cluster_id, configuration))


class World:
    """Some new nodes."""

    def __init__(self, names: Iterable[str], chance: random.Random | None = None) -> None:
        self._chance = chance
        self.nodes: dict[str, NewNode] = {}
        self.made_up: list[str] = []
        self.began: list[tuple[str, Configuration]] = []
        """(cluster id, configuration) of each first configuration that a node wrote."""
        for name in names:
            self.nodes[name] = NewNode(self, name)

    async def ask(self, rpc_addr: str, cluster_id: str, uuids: Sequence[str]) -> None:
        """A call that takes a while and gets lost at times, or only its answer does."""
        if self._chance is None:
            await self.nodes[rpc_addr].forming.promise(cluster_id, uuids)
            return
        fate = self._chance.random()
        for _ in range(self._chance.randrange(5)):
            await asyncio.sleep(0)
        if fate < 0.1:
            raise Unavailable("lost")
        await self.nodes[rpc_addr].forming.promise(cluster_id, uuids)
        if fate < 0.2:
            raise Unavailable("the answer was lost")

    async def identify(self, rpc_addr: str) -> tuple[Server, str]:
        """The answer tells what was so when it was given."""
        if rpc_addr not in self.nodes:
            raise ChangeRefused("nobody answers")
        new = self.nodes[rpc_addr]
        answer = Server(new.identity.uuid, new.name, rpc_addr), new.identity.cluster_id
        if self._chance is not None:
            for _ in range(self._chance.randrange(5)):
                await asyncio.sleep(0)
            if self._chance.random() < 0.1:
                raise ChangeRefused("lost")
        return answer

    def see(self, *groups: str) -> None:
        """From now on the nodes of each group see each other and nobody else."""
        for group in groups:
            for name in group:
                self.nodes[name].view = set(group)

    def settle(self) -> None:
        self._chance = None
        self.see("".join(self.nodes))

    def is_settled(self) -> bool:
        """Whoever is in no cluster is bound by no promise: so the cluster can take him in."""
        taken = {server.uuid for _, began in self.began for server in began.servers}
        return all(
            new.identity.cluster_id == "" or new.identity.uuid in taken
            for new in self.nodes.values()
        )

    async def form(self, name: str) -> None:
        """One look of a node around itself, and what follows from it."""
        await self.nodes[name].forming._step()


async def pause_before_it_begins(world: World) -> asyncio.Task[None]:
    """All of a, b and c promised, and then `a` is paused for so long that the others lose it and
    find another node."""
    world.see("abc")
    world.nodes["a"].pause = asyncio.Event()
    trying = asyncio.ensure_future(world.form("a"))
    while world.nodes["c"].identity.cluster_id == "":
        await asyncio.sleep(0)
    world.see("bcd")
    return trying


async def test_a_promise_holds_for_the_nodes_it_was_given_for() -> None:
    world = World("abcd")
    trying = await pause_before_it_begins(world)
    with pytest.raises(ProglogError):
        await world.form("b")
    assert world.nodes["a"].pause is not None
    world.nodes["a"].pause.set()
    await trying
    assert len(world.began) == 1


async def test_with_an_id_that_the_coordinator_makes_up_there_are_two(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The test above fails where a promise is one to a coordinator's id only."""
    world = World("abcd")
    monkeypatch.setattr(forming, "cluster_of", lambda _uuids: "made-up")
    trying = await pause_before_it_begins(world)
    await world.form("b")
    assert world.nodes["a"].pause is not None
    world.nodes["a"].pause.set()
    await trying
    assert [cluster_id for cluster_id, _ in world.began] == ["made-up", "made-up"]


async def formed(world: World, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Lets all run until there is a cluster; the names in it."""
    monkeypatch.setattr(limits, "reconcile_seconds", 0)
    tasks = [asyncio.ensure_future(new.forming.run()) for new in world.nodes.values()]
    try:
        async with asyncio.timeout(10):
            while not world.began or not world.is_settled():
                await asyncio.sleep(0)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    assert len(world.began) == 1
    return [server.name for server in world.began[0][1].servers]


async def test_of_more_than_expected_the_smallest_names(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World("edcba")
    world.see("abcde")
    assert await formed(world, monkeypatch) == ["a", "b", "c"]


async def test_views_that_overlap_end_in_one_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    """c has promised itself to d and e, or they to it, when a and b come along."""
    world = World("abcde")
    world.see("cde")
    await world.nodes["d"].adopt_cluster(forming.cluster_of(f"uuid-{name}" for name in "cde"))
    await world.nodes["c"].adopt_cluster(forming.cluster_of(f"uuid-{name}" for name in "abc"))
    world.see("abcde")
    assert len(await formed(world, monkeypatch)) == EXPECTED


async def test_what_was_answered_before_a_promise_lets_go_of_nothing() -> None:
    world = World("abc")
    world.see("abc")
    c = world.nodes["c"]
    await c.adopt_cluster(forming.cluster_of(f"uuid-{name}" for name in "abc"))
    answered = asyncio.Event()

    async def slow(rpc_addr: str) -> tuple[Server, str]:
        answer = await world.identify(rpc_addr)  # a holds nothing: an earlier round is over
        await answered.wait()
        return answer

    c.forming._identify = slow
    asking = asyncio.ensure_future(world.form("c"))
    await asyncio.sleep(0)
    world.nodes["a"].pause = asyncio.Event()
    await world.nodes["a"].adopt_cluster(c.identity.cluster_id)
    trying = asyncio.ensure_future(world.form("a"))
    while not c.forming._promises:
        await asyncio.sleep(0)
    answered.set()
    await asking
    assert c.identity.cluster_id, "the promise of the new round stands"
    world.nodes["a"].pause.set()
    await trying
    assert len(world.began) == 1


async def test_members_that_nobody_runs_hold_up_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World("abc")
    world.see("abc")
    world.made_up = [f"0{number:03}" for number in range(100)]
    assert await formed(world, monkeypatch) == ["a", "b", "c"]


@pytest.mark.parametrize(("asks", "mute"), [("c", "a"), ("a", "b")])
async def test_a_promise_to_a_member_that_tells_no_address_is_waited_for(
    asks: str, mute: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = World("abc")
    world.see("abc")
    await world.nodes[asks].adopt_cluster(forming.cluster_of(f"uuid-{name}" for name in "abc"))
    told = world.nodes[mute].member()
    del told.tags["rpc_addr"]
    monkeypatch.setattr(world.nodes[mute], "member", lambda: told)
    with pytest.raises(ChangeRefused, match="nobody answers"):
        await world.form(asks)
    assert not world.began


async def test_it_says_what_it_waits_for(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World("abc")
    world.see("ab")
    monkeypatch.setattr(world.nodes["b"], "expect", 5)
    with pytest.raises(ChangeRefused, match=r"1 of 3 are there and free \(a\); b was started with"):
        await world.form("a")


@pytest.mark.parametrize("seed", range(60))
async def test_whatever_they_see_never_two(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    chance = random.Random(seed)
    monkeypatch.setattr(limits, "reconcile_seconds", 0)
    names = "abcdef"[: chance.randint(3, 6)]
    world = World(names, chance)
    tasks = [asyncio.ensure_future(new.forming.run()) for new in world.nodes.values()]
    try:
        for _ in range(60):
            shuffled = chance.sample(names, len(names))
            cut = chance.randint(0, len(names))
            world.see("".join(shuffled[:cut]), "".join(shuffled[cut:]))
            for _ in range(chance.randrange(40)):
                await asyncio.sleep(0)
        # In the end all see all, and nothing is lost any more.
        world.settle()
        async with asyncio.timeout(10):
            while not world.began or not world.is_settled():
                await asyncio.sleep(0)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    # Six may form two clusters of three that have nobody in common.
    assert len(world.began) <= len(names) // EXPECTED
    members = [server.uuid for _, began in world.began for server in began.servers]
    assert len(members) == len(set(members))
    assert len({cluster_id for cluster_id, _ in world.began}) == len(world.began)


# --- real nodes ----------------------------------------------------------------------------------


@pytest.fixture
async def nodes(tmp_path: Path) -> AsyncIterator[Nodes]:
    async with some_nodes(tmp_path) as nodes:
        yield nodes


async def test_a_coordinator_that_dies_half_way_goes_on_when_it_is_back(
    nodes: Nodes, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in "abc":
        nodes.config(name, start_join_addrs=nodes.gossip(*"abc"), bootstrap_expect=3)
    asked: list[str] = []

    async def ask_some(rpc_addr: str, cluster_id: str, uuids: Sequence[str], **_: object) -> None:
        by_uuid = {node.replica.identity.uuid: node for node in nodes.running.values()}
        if len(by_uuid) < 3 or rpc_addr == str(by_uuid[max(uuids)].rpc_addr):
            await asyncio.sleep(0.5)
            raise Unavailable("nobody answers")
        await ask_promise(rpc_addr, cluster_id, uuids)
        asked.append(rpc_addr)

    with monkeypatch.context() as patched:
        patched.setattr("proglog.agent.node.ask_promise", ask_some)
        await asyncio.gather(*map(nodes.start, "abc"))

        async def promised() -> bool:
            return bool(asked)

        await until(promised, "one has promised")
        uuids = {name: node.replica.identity.uuid for name, node in nodes.running.items()}
        coordinator = min(uuids, key=lambda name: uuids[name])
        await nodes.stop(coordinator)
        assert not any(each.replica.servers() for each in nodes.running.values())
    await nodes.start(coordinator)
    await nodes.voters(*"abc")
    assert nodes.cluster_ids() == {forming.cluster_of(uuids.values())}


async def test_five_that_expect_three_are_one_cluster(nodes: Nodes) -> None:
    """And have met apart: two pairs and one, of which only some know addresses of others."""
    knows = {"a": "b", "b": "", "c": "d", "d": "", "e": "bd"}
    for name, others in knows.items():
        nodes.config(name, bootstrap_expect=3, start_join_addrs=nodes.gossip(*others))
    await asyncio.gather(*(nodes.start(name) for name in "abcd"))
    said = "2 of 3 are there and free (a, b)"
    await until(lambda: said in nodes.running["a"]._why_not_ready(), "the first pair says so")
    assert nodes.cluster_ids() == {""}
    await nodes.start("e")
    await nodes.voters(*"abcde")
    assert len(nodes.cluster_ids()) == 1


async def test_a_node_gives_no_promise_to_a_coordinator_that_sees_others(nodes: Nodes) -> None:
    await nodes.start("a", bootstrap_expect=3)
    async with nodes.admin("a") as admin:
        with pytest.raises(ChangeRefused):
            await admin.promise(forming.cluster_of(["x", "y", "z"]), ["x", "y", "z"])
    await nodes.start("b")
    async with nodes.admin("b") as admin:
        with pytest.raises(ChangeRefused):
            await admin.promise(forming.cluster_of(["x"]), ["x"])
    assert nodes.running["a"].replica.identity.cluster_id == ""
