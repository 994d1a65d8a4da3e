"""Our nodes and stock Serf agents in one cluster. The judge is the agent: Debian's `serf`."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from proglog.membership import (
    Event,
    JoinFailed,
    Member,
    MemberFailed,
    MemberJoined,
    MemberLeaving,
    MemberLeft,
    Membership,
    MembershipConfig,
    MemberUpdated,
    Query,
    Status,
    Subscription,
    Timing,
    UserEvent,
    encode_key,
)
from tests.membership.stock import Agent, agents
from tests.waiting import until

KEY_A, KEY_B = bytes(range(32)), bytes(range(32, 64))
RPC_ADDR = "127.0.0.1:8400"
RETRANSMIT_SECONDS = 3.0
"""A broadcast among two agents has left their queues by then: gossip goes out five times a second,
and each message a handful of times."""


class Node:
    """One of ours, and every event it has reported."""

    def __init__(self, name: str, **settings: Any) -> None:
        settings.setdefault("tags", {"role": "proglog", "rpc_addr": RPC_ADDR})
        settings.setdefault("bind_port", 0)
        settings.setdefault("timing", Timing.local(reconnect_interval_s=2.0, reap_interval_s=1.0))
        self.config = MembershipConfig(name=name, **settings)
        self.membership = Membership(self.config)
        self.subscription: Subscription = self.membership.subscribe()
        self.seen: list[Event] = []

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.membership.local.port}"

    def events(self) -> list[Event]:
        while (event := self.subscription.get_nowait()) is not None:
            self.seen.append(event)
        return self.seen

    def member(self, name: str) -> Member | None:
        return next((one for one in self.membership.members() if one.name == name), None)

    def sees(self, name: str, status: str) -> bool:
        member = self.member(name)
        return member is not None and member.status == status


@contextlib.asynccontextmanager
async def node(name: str = "ours", **settings: Any) -> AsyncIterator[Node]:
    one = Node(name, **settings)
    await one.membership.start()
    try:
        yield one
    finally:
        await one.membership.close()


def happened(one: Node, kind: type, name: str) -> bool:
    return any(isinstance(event, kind) and event.member.name == name for event in one.events())


async def test_we_join_an_agent(tmp_path: Path) -> None:
    async with agents(tmp_path, "stock") as stock, node() as ours:
        assert await ours.membership.join([stock.address]) == 1
        await until(lambda: stock.sees("ours", "alive"))
        listed = (await stock.members())["ours"]
        assert listed["tags"] == {"role": "proglog", "rpc_addr": RPC_ADDR}
        assert listed["addr"] == ours.address
        assert listed["protocol"] == {"min": 2, "max": 5, "version": 5}
        member = ours.member("stock")
        assert member is not None
        assert (member.status, member.port) == (Status.ALIVE, stock.port)
        assert happened(ours, MemberJoined, "stock")


async def test_an_agent_joins_us_and_all_meet_all(tmp_path: Path) -> None:
    async with agents(tmp_path, "one", "two") as (one, two), node("a") as a, node("b") as b:
        assert "joined" in await one.command("join", a.address)
        await b.membership.join([a.address])
        names = {"a", "b", "one", "two"}
        for ours in (a, b):
            await until(lambda ours=ours: all(ours.sees(name, "alive") for name in names))
        for stock in (one, two):
            await until(lambda stock=stock: _all_alive(stock, names))
        # Pings pass in both directions without anybody being doubted.
        assert "Suspect" not in one.log + two.log


async def _all_alive(stock: Agent, names: set[str]) -> bool:
    members = await stock.members()
    return {name for name, one in members.items() if one["status"] == "alive"} == names


async def test_tags_change_both_ways(tmp_path: Path) -> None:
    async with agents(tmp_path, "stock") as stock, node() as ours:
        await ours.membership.join([stock.address])
        ours.membership.set_tags({"rpc_addr": RPC_ADDR, "cluster": "c1"})
        await until(lambda: _has_tags(stock, {"rpc_addr": RPC_ADDR, "cluster": "c1"}))
        await stock.command("tags", "-set", "colour=blue")
        await until(lambda: ours.member("stock").tags == {"colour": "blue"})
        assert happened(ours, MemberUpdated, "stock")
        await stock.command("tags", "-delete", "colour")
        await until(lambda: ours.member("stock").tags == {})


async def _has_tags(stock: Agent, tags: dict[str, str]) -> bool:
    return (await stock.members())["ours"]["tags"] == tags


async def test_we_leave_gracefully_and_return(tmp_path: Path) -> None:
    async with agents(tmp_path, "stock") as stock:
        async with node() as ours:
            await ours.membership.join([stock.address])
            await ours.membership.leave()
            assert ours.sees("ours", "left")
            await until(lambda: stock.sees("ours", "left"))
        assert "EventMemberFailed" not in stock.log
        async with node() as ours:
            await ours.membership.join([stock.address])
            await until(lambda: stock.sees("ours", "alive"))
            await until(lambda: ours.sees("ours", "alive"))


async def test_an_agent_leaves_gracefully(tmp_path: Path) -> None:
    async with agents(tmp_path, "stock", "other") as (stock, other), node() as ours:
        await ours.membership.join([stock.address])
        await until(lambda: ours.sees("other", "alive"))
        await other.command("leave")
        await until(lambda: ours.sees("other", "left"))
        assert happened(ours, MemberLeaving, "other")
        assert happened(ours, MemberLeft, "other")
        assert not happened(ours, MemberFailed, "other")


async def test_a_killed_agent_fails_and_rejoins(tmp_path: Path) -> None:
    async with agents(tmp_path, "stock", "other") as (stock, other), node() as ours:
        await ours.membership.join([stock.address])
        await until(lambda: ours.sees("other", "alive"))
        await other.kill()
        await until(lambda: ours.sees("other", "failed"))
        assert happened(ours, MemberFailed, "other")
        await other.start()
        await other.command("join", ours.address)
        await until(lambda: ours.sees("other", "alive"))
        await until(lambda: stock.sees("other", "alive"))


async def test_when_we_stop_without_a_word_agents_see_us_fail(tmp_path: Path) -> None:
    async with agents(tmp_path, "stock") as stock, node("other") as other:
        await other.membership.join([stock.address])
        async with node() as ours:
            await ours.membership.join([stock.address])
            await until(lambda: stock.sees("ours", "alive"))
            await until(lambda: other.sees("ours", "alive"))
            port = ours.membership.local.port
        await until(lambda: stock.sees("ours", "failed"))
        await until(lambda: other.sees("ours", "failed"))
        # The stock agent and our other node both try to reconnect; the node does nothing itself.
        async with node(bind_port=port) as ours:
            await until(lambda: ours.sees("stock", "alive"))
            await until(lambda: stock.sees("ours", "alive"))


async def test_a_failed_agent_is_made_to_leave_by_us(tmp_path: Path) -> None:
    async with agents(tmp_path, "stock", "other") as (stock, other), node() as ours:
        await ours.membership.join([stock.address])
        await until(lambda: ours.sees("other", "alive"))
        await other.kill()
        await until(lambda: stock.sees("other", "failed"))
        await until(lambda: ours.sees("other", "failed"))
        ours.membership.force_leave("other")
        await until(lambda: stock.sees("other", "left"))
        ours.membership.force_leave("other", prune=True)
        await until(lambda: ours.member("other") is None)
        await until(lambda: _unlisted(stock, "other"))


async def test_our_failed_node_is_made_to_leave_by_an_agent(tmp_path: Path) -> None:
    async with agents(tmp_path, "stock") as stock, node("other") as other:
        await other.membership.join([stock.address])
        async with node() as ours:
            await ours.membership.join([stock.address])
            await until(lambda: stock.sees("ours", "alive"))
            await until(lambda: other.sees("ours", "alive"))
        await until(lambda: stock.sees("ours", "failed"))
        await until(lambda: other.sees("ours", "failed"))
        await stock.command("force-leave", "ours")
        await until(lambda: other.sees("ours", "left"))
        assert happened(other, MemberLeft, "ours")


async def _unlisted(stock: Agent, name: str) -> bool:
    return name not in await stock.members()


async def test_a_member_that_is_alive_denies_that_it_left(tmp_path: Path) -> None:
    # Three: a stock agent tells nobody of a forced leave if nobody else is alive.
    async with agents(tmp_path, "stock", "other") as (stock, other), node() as ours:
        await ours.membership.join([stock.address])
        await until(lambda: _all_alive(stock, {"stock", "other", "ours"}))
        await until(lambda: other.sees("ours", "alive"))

        async def other_heard_of_it() -> bool:
            # Among three members it is said twice, by chance to the same one.
            await stock.command("force-leave", "ours")
            return "messageLeaveType: ours" in other.log

        await until(other_heard_of_it)
        await until(lambda: stock.sees("ours", "alive"))
        await until(lambda: other.sees("ours", "alive"))

        async def stock_denies_it() -> bool:
            ours.membership.force_leave("stock")
            await until(lambda: happened(ours, MemberLeaving, "stock"))
            await asyncio.sleep(1)
            return ours.sees("stock", "alive")

        await until(stock_denies_it)


async def test_user_events_both_ways(tmp_path: Path) -> None:
    async with agents(tmp_path, "stock", "other") as (stock, other), node() as ours:
        await ours.membership.join([stock.address])
        await until(lambda: ours.sees("other", "alive"))
        ours.membership.user_event("deploy", b"v2")
        await until(lambda: "Received event: user-event: deploy" in other.log)
        await until(lambda: "Received event: user-event: deploy" in stock.log)
        await other.command("event", "-coalesce=false", "restart", "now")
        await until(lambda: _user_events(ours, "restart") == [b"now"])
        assert _user_events(ours, "deploy") == [b"v2"]


def _user_events(one: Node, name: str) -> list[bytes]:
    return [e.payload for e in one.events() if isinstance(e, UserEvent) and e.name == name]


async def test_past_user_events_are_not_told_to_one_who_joins(tmp_path: Path) -> None:
    async with agents(tmp_path, "stock", "other") as (stock, other), node() as ours:
        await stock.command("event", "-coalesce=false", "old")
        await until(lambda: "Received event: user-event: old" in other.log)
        # Until then it is news still, which goes to everybody, by packets that may be faster.
        await asyncio.sleep(RETRANSMIT_SECONDS)
        await ours.membership.join([stock.address])
        await stock.command("event", "-coalesce=false", "new")
        await until(lambda: _user_events(ours, "new") == [b""])
        assert _user_events(ours, "old") == []


async def test_queries_both_ways(tmp_path: Path) -> None:
    script = "query:load=cat > /dev/null; printf 0.7"
    options = (f"-event-handler={script}",)
    async with agents(tmp_path, "stock", options=options) as stock, node() as ours:
        await ours.membership.join([stock.address])
        await until(lambda: stock.sees("ours", "alive"))

        async def all_answer_us() -> bool:
            result = await ours.membership.query("load", b"5m", timeout_s=1)
            acknowledged = sorted(result.acknowledged) == ["ours", "stock"]
            return acknowledged and result.answers == {"stock": b"0.7"}

        await until(all_answer_us)

        async def answer() -> None:
            async for event in ours.membership.subscribe():
                if isinstance(event, Query) and event.name == "uptime":
                    ours.membership.respond(event, event.payload.upper())

        answers = ("Ack from 'ours'", "Response from 'ours': DAYS")
        answering = asyncio.create_task(answer())
        await until(lambda: _is_told(stock, answers, "uptime", "days"))
        answering.cancel()


async def _is_told(stock: Agent, answers: tuple[str, ...], *query: str) -> bool:
    """Whether the answers come in time, which gossip does not promise."""
    output = await stock.command("query", "-timeout=1s", *query)
    return all(answer in output for answer in answers)


async def test_queries_are_filtered_by_name_and_tag(tmp_path: Path) -> None:
    async with agents(tmp_path, "stock") as stock, node() as ours:
        await ours.membership.join([stock.address])
        await until(lambda: stock.sees("ours", "alive"))
        ack = ("Ack from 'ours'",)
        for wanted in ("-node=ours", "-tag=role=^prog"):
            await until(lambda wanted=wanted: _is_told(stock, ack, wanted, "hello"), wanted)
        for unwanted in ("-node=stock", "-tag=role=web"):
            assert not await _is_told(stock, ack, unwanted, "hello"), unwanted


async def test_every_agent_reaches_us(tmp_path: Path) -> None:
    """`serf reachability` asks `_serf_ping` of everybody."""
    async with agents(tmp_path, "stock") as stock, node("a") as a, node("b") as b:
        await a.membership.join([stock.address])
        await b.membership.join([stock.address])
        await until(lambda: _all_alive(stock, {"stock", "a", "b"}))

        async def all_reached() -> bool:
            _, output = await stock.run("reachability")
            return "Successfully contacted all live nodes" in output

        await until(all_reached)


async def test_relayed_answers_arrive_once(tmp_path: Path) -> None:
    async with agents(tmp_path, "stock", "other") as (stock, other), node() as ours:
        await ours.membership.join([stock.address])
        await until(lambda: ours.sees("other", "alive"))
        await until(lambda: _all_alive(other, {"stock", "other", "ours"}))

        async def all_acknowledge() -> bool:
            output = await stock.command("query", "-relay-factor=2", "-timeout=1s", "hello")
            found = re.search(r"Total Acks: (\d+)", output)
            assert found and int(found[1]) <= 3, output
            return int(found[1]) == 3

        await until(all_acknowledge)


def encrypted(key: bytes) -> tuple[str, ...]:
    return (f"-encrypt={base64.b64encode(key).decode()}",)


async def test_encrypted_gossip_and_refusal_of_strangers(tmp_path: Path) -> None:
    async with (
        agents(tmp_path, "stock", options=encrypted(KEY_A)) as stock,
        node("ours", keys=(KEY_A,)) as ours,
        node("plain") as plain,
        node("wrong", keys=(KEY_B,)) as wrong,
    ):
        await ours.membership.join([stock.address])
        await until(lambda: stock.sees("ours", "alive"))
        assert ours.sees("stock", "alive")
        for stranger in (plain, wrong):
            for target in (stock.address, ours.address):
                with pytest.raises(JoinFailed):
                    await stranger.membership.join([target])
        assert set(await stock.members()) == {"stock", "ours"}
        assert {member.name for member in ours.membership.members()} == {"stock", "ours"}
        ours.membership.user_event("secret")
        await until(lambda: "Received event: user-event: secret" in stock.log)


async def test_keys_are_rotated_under_us(tmp_path: Path) -> None:
    keyring = tmp_path / "keyring.json"
    async with agents(tmp_path, "stock", options=encrypted(KEY_A)) as stock:
        async with node(keys=(KEY_A,), keyring_path=keyring) as ours:
            await ours.membership.join([stock.address])
            await until(lambda: stock.sees("ours", "alive"))
            for step in ("-install", "-use"):
                output = await stock.command("keys", f"{step}={encode_key(KEY_B)}")
                assert "Successfully" in output, output
            assert ours.membership.keys == (KEY_B, KEY_A)
            output = await stock.command("keys", f"-remove={encode_key(KEY_A)}")
            assert "Successfully" in output, output
            assert ours.membership.keys == (KEY_B,)
            listed = await stock.command("keys", "-list")
            assert re.search(re.escape(encode_key(KEY_B)) + r"\s+\[2/2\]", listed), listed
            # The primary key cannot be removed, and the operator is told that we refuse, too.
            code, output = await stock.run("keys", f"-remove={encode_key(KEY_B)}")
            assert code != 0
            assert "ours" in output
            ours.membership.user_event("after")
            await until(lambda: "Received event: user-event: after" in stock.log)
        # A restart finds the keys that were rotated, not those of its configuration.
        async with node(keys=(KEY_A,), keyring_path=keyring) as ours:
            assert ours.membership.keys == (KEY_B,)
            await ours.membership.join([stock.address])


async def test_a_claimed_name_is_reported_and_ignored(tmp_path: Path) -> None:
    async with agents(tmp_path, "stock") as stock, node() as ours, node("stock") as impostor:
        await ours.membership.join([stock.address])
        with contextlib.suppress(JoinFailed):
            await impostor.membership.join([ours.address])
        await until(lambda: any(type(e).__name__ == "NameConflict" for e in ours.events()))
        member = ours.member("stock")
        assert member is not None
        assert member.port == stock.port
        assert member.status is Status.ALIVE


async def test_a_snapshot_brings_us_back(tmp_path: Path) -> None:
    snapshot = tmp_path / "peers.json"
    async with agents(tmp_path, "stock") as stock:
        async with node(snapshot_path=snapshot) as ours:
            await ours.membership.join([stock.address])
            await stock.command("event", "-coalesce=false", "old")
            await until(lambda: _user_events(ours, "old") == [b""])
        async with node(snapshot_path=snapshot) as ours:
            await until(lambda: ours.sees("stock", "alive"))
            await until(lambda: stock.sees("ours", "alive"))
            assert _user_events(ours, "old") == []
            await ours.membership.leave()
        async with node(snapshot_path=snapshot) as ours:
            # Who has left does not come back unasked.
            assert ours.membership.statistics().core.exchanges == 0
            assert [member.name for member in ours.membership.members()] == ["ours"]
