"""News that somebody made up, or recorded and sends again: real sockets, on the product's loop."""

from __future__ import annotations

import asyncio
import contextlib
import math
import socket
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import uvloop

from proglog.membership import MemberFailed, Membership, Status, limits
from proglog.membership.address import Address
from proglog.membership.codec import packets
from proglog.membership.codec.keyring import Keyring
from proglog.membership.codec.messages import (
    OURS,
    Alive,
    Dead,
    NodeState,
    State,
    Type,
    encode_message,
)
from proglog.membership.codec.serf_messages import (
    JoinIntent,
    LeaveIntent,
    QueryMessage,
    SerfState,
    UserEventMessage,
    encode_serf,
)
from proglog.membership.codec.snapshot import decode_snapshot
from proglog.membership.codec.streams import PushPull, encode_stream
from proglog.membership.serf.reported import Reported
from tests.membership.core import Core, alive
from tests.membership.test_driver import PLAIN, address, config, running, statuses
from tests.ports import free_port
from tests.waiting import until

KEY = bytes(range(32))
FAR = 2**62 - 1


def send(target: Membership, *messages: bytes, keyring: Keyring = PLAIN) -> list[bytes]:
    """One datagram a message, from outside; returns what was sent."""
    sealed = [packets.seal([message], keyring, checksum=False) for message in messages]
    replay(target, *sealed)
    return sealed


def replay(target: Membership, *data: bytes) -> None:
    with socket.socket(type=socket.SOCK_DGRAM) as sender:
        for packet in data:
            sender.sendto(packet, ("127.0.0.1", target.local.port))


def user(message: Any) -> bytes:
    return bytes([Type.USER]) + encode_serf(message)


def far_ahead(membership: Membership) -> int:
    return membership.statistics().core.ignored.get("Lamport time far ahead", 0)


def fake(number: int) -> Alive:
    return Alive(
        incarnation=1,
        node=f"fake{number}",
        host=Address("127.0.0.1", 1).packed,
        port=1,
        meta=b"",
        versions=OURS,
    )


@contextlib.asynccontextmanager
async def two(folder: Path, **settings: Any) -> AsyncIterator[tuple[Membership, Membership]]:
    """a and b, which know each other, in whatever life; `b` ends as if it were killed."""
    assert isinstance(asyncio.get_running_loop(), uvloop.Loop), "the loop of the product"
    one, other = folder / "a", folder / "b"
    async with (
        running("a", snapshot_path=one, **settings) as a,
        running("b", snapshot_path=other, **settings) as b,
    ):
        await b.join([address(a)])
        await until(lambda: statuses(a) == statuses(b) == {"a": "alive", "b": "alive"})
        yield a, b


# --- incarnations --------------------------------------------------------------------------------


async def test_what_was_said_of_a_former_life_is_old(tmp_path: Path) -> None:
    """All restart, and somebody sends again what was sealed with their key before."""
    keyring = Keyring((KEY,), bytes)
    async with two(tmp_path, keys=(KEY,)) as (a, b):
        said = [Dead(incarnation=n, node="b", source="c") for n in range(1, 8)]
        recorded = send(a, *map(encode_message, said), keyring=keyring)
        await until(lambda: b._running().incarnation > 1)
        await until(lambda: statuses(a)["b"] is Status.ALIVE)
        # What a kill leaves is what was written before.
        left = {name: (tmp_path / name).read_bytes() for name in "ab"}
    for name, content in left.items():
        (tmp_path / name).write_bytes(content)
    async with two(tmp_path, keys=(KEY,)) as (a, b):
        events = a.subscribe()
        for _ in range(5):
            replay(a, *recorded)
            await asyncio.sleep(0.05)
        await asyncio.sleep(0.5)
        events.close()
        assert [event async for event in events if isinstance(event, MemberFailed)] == []
        assert statuses(a) == {"a": "alive", "b": "alive"}


async def test_many_accusations_are_survived_by_what_is_written(tmp_path: Path) -> None:
    """What is on disk is always past what was said, though it is written seldom."""
    path = tmp_path / "a"
    async with running("a", snapshot_path=path) as a:
        assert decode_snapshot(path.read_bytes()).incarnation > a._running().incarnation
        for round_ in range(4):
            for n in range(100):
                send(a, encode_message(Dead(incarnation=100 * round_ + n, node="a", source="c")))
            await until(lambda done=100 * round_: a._running().incarnation > done + 90)
            await asyncio.sleep(0.1)
            assert decode_snapshot(path.read_bytes()).incarnation > a._running().incarnation
        writes = a._running().incarnation
    async with running("a", snapshot_path=path) as a:
        assert a._running().incarnation > writes


def test_nobody_is_accused_beyond_what_he_can_answer() -> None:
    core = Core()
    core.tell(alive("a", 5))
    for far in (limits.incarnation_max, 5 + limits.incarnation_ahead_max + 1):
        core.tell(Dead(incarnation=far, node="a", source="a"), alive("a", far, role="x"))
        core.tell(Dead(incarnation=far, node="us", source="us"))
    assert core.status("a") is Status.ALIVE
    core.tell(alive("a", 6, role="new"))
    assert {m.name: m.tags for m in core.serf.members()}["a"] == {"role": "new"}
    assert core.serf.incarnation == 1
    core.tell(alive("b", limits.incarnation_max))
    assert core.status("b") is None


def test_what_a_node_says_of_itself_where_it_was_asked_is_believed() -> None:
    """One that was away while somebody raised it step by step is caught up with."""
    core = Core()
    core.tell(alive("a", 5))
    far = 5 + 3 * limits.incarnation_ahead_max
    state = NodeState(**{**_fields(alive("a", far, role="new")), "state": State.ALIVE})
    reply = PushPull(join=False, nodes=(state,))
    core.serf.serve(reply, core.now)
    assert {m.name: m.tags for m in core.serf.members()}["a"] == {}
    number = core.serf.join(alive("a").address, core.now)
    core.serf.finish_exchange(number, reply, core.now)
    assert {m.name: m.tags for m in core.serf.members()}["a"] == {"role": "new"}


def test_who_is_alive_far_ahead_is_asked() -> None:
    """It was accused on and on, and answered, while we held it dead and missed its answers."""
    core = Core()
    core.tell(alive("a", 5), Dead(incarnation=5, node="a", source="c"))
    far = alive("a", 5 + 3 * limits.incarnation_ahead_max)
    core.exchanges.clear()
    core.tell(far, far, far)
    assert core.status("a") is Status.FAILED
    (asked,) = core.exchanges
    assert asked.address == far.address
    state = NodeState(**{**_fields(far), "state": State.ALIVE})
    core.serf.finish_exchange(asked.id, PushPull(join=False, nodes=(state,)), core.now)
    assert core.status("a") is Status.ALIVE


def test_few_are_asked_at_a_time_however_many_there_are() -> None:
    core = Core()
    names = [f"a{number}" for number in range(40)]
    core.tell(*(alive(name, 5) for name in names))
    core.exchanges.clear()
    core.tell(*(alive(name, 5 + 2 * limits.incarnation_ahead_max) for name in names))
    assert len(core.exchanges) == limits.asked_max


def test_a_name_belongs_to_who_has_answered() -> None:
    core = Core()
    made_up, real, third = (alive("a", n, port=n) for n in (900, 2, 3))
    core.tell(made_up)

    def port() -> int:
        return next(member.port for member in core.serf.members() if member.name == "a")

    core.tell(real)
    assert port() == 900, "who is there is about to answer"
    core.wait(core.timing.reclaim_after_s)
    assert core.status("a") is Status.ALIVE
    core.tell(real)
    assert port() == 2
    node = core.serf._swim.nodes.get("a")
    assert node is not None
    core.serf._swim.heard(node)
    core.wait(core.timing.reclaim_after_s)
    core.tell(third, made_up)
    assert port() == 2


def test_reports_are_few_however_many_names_are_made_up() -> None:
    said: Reported[int] = Reported(math.inf)
    told = [number for number in range(10_000) if said.is_due(number, number * 0.01)]
    assert told[: limits.reports_max] == list(range(limits.reports_max))
    assert len(told) == 2 * limits.reports_max, "in 100 s"
    assert not said.is_due(told[-1], 1e6), "said already"
    assert said.is_due(10_001, 1e6)
    assert len(said._when) <= limits.nodes_max


def _fields(message: Alive) -> dict[str, Any]:
    return {
        "node": message.node,
        "host": message.host,
        "port": message.port,
        "meta": message.meta,
        "incarnation": message.incarnation,
        "versions": message.versions,
    }


# --- Lamport times -------------------------------------------------------------------------------


@pytest.mark.parametrize("ltime", [FAR, 2**61, 2**20 + 1000])
async def test_a_time_that_cannot_be_makes_nobody_leave(tmp_path: Path, ltime: int) -> None:
    async with two(tmp_path) as (a, b):
        for node in (a, b):
            send(node, user(LeaveIntent(ltime=ltime, node="b")))
            send(node, user(LeaveIntent(ltime=ltime, node="a")))
        await until(lambda: far_ahead(a) == 2)
        await asyncio.sleep(0.3)
        assert statuses(a) == statuses(b) == {"a": "alive", "b": "alive"}
        assert a.statistics().core.member_time < 1000


async def test_a_time_that_can_be_is_outbid(tmp_path: Path) -> None:
    async with two(tmp_path) as (a, b):
        for step in range(1, 4):
            ltime = a.statistics().core.member_time + limits.lamport_ahead_max // 2
            send(a, user(LeaveIntent(ltime=ltime, node="b")))
            await until(lambda step=step: a.statistics().core.member_time > step * 2**18)
            await until(lambda: statuses(a) == statuses(b) == {"a": "alive", "b": "alive"})
        # So b's death is a failure, not a leave that was meant long ago.
        await b.close()
        await until(lambda: statuses(a)["b"] is Status.FAILED)


async def test_what_is_saved_can_be_read(tmp_path: Path) -> None:
    """Whatever anybody told it; and a file that an older version left with such a time."""
    path = tmp_path / "a"
    async with two(tmp_path) as (a, b):
        for message in (
            LeaveIntent(ltime=FAR, node="b"),
            JoinIntent(ltime=2**62, node="b"),
            UserEventMessage(ltime=2**62, name="x"),
            QueryMessage(
                ltime=2**62, id=1, host=bytes(4), port=1, source="x", name="q", timeout_ns=1
            ),
        ):
            send(a, user(message))
        state = SerfState(ltime=2**62, event_ltime=2**62, query_ltime=2**62)
        pushed = PushPull(join=True, nodes=(), user_state=encode_serf(state))
        reader, writer = await asyncio.open_connection("127.0.0.1", a.local.port)
        writer.write(encode_stream(pushed, PLAIN))
        await reader.read(1)
        writer.close()
        await until(lambda: far_ahead(a) == 5)
        peer = Address("127.0.0.1", b.local.port)
    saved = decode_snapshot(path.read_bytes())
    assert max(saved.member_time, saved.event_time, saved.query_time) < 1000
    assert saved.peers == (peer,)
    text = path.read_text().replace(
        f'"member_time": {saved.member_time}', f'"member_time": {2**62}'
    )
    old = decode_snapshot(text.encode())
    assert old.peers == (peer,)
    assert old.member_time == 0


def test_a_cluster_that_is_far_ahead_is_caught_up_with_by_asking_it() -> None:
    core = Core()
    core.tell(alive("a"))
    state = SerfState(ltime=2**30, status_ltimes={"a": 2**30 - 1})
    reply = PushPull(join=False, nodes=(), user_state=encode_serf(state))
    core.serf.serve(reply, core.now)
    assert core.serf.statistics().member_time < 1000
    number = core.serf.join(Address("10.0.0.9", 7), core.now)
    assert core.serf.finish_exchange(number, reply, core.now) is None
    assert core.serf.statistics().member_time >= 2**30 - 1


# --- members that do not exist -------------------------------------------------------------------


async def test_made_up_members_keep_nobody_out(tmp_path: Path) -> None:
    async with two(tmp_path) as (a, b):
        await until(lambda: all(member.heard for member in a.members() if member.name != "a"))
        for start in range(0, 2200, 100):
            send(a, *(encode_message(fake(n)) for n in range(start, start + 100)))
            await asyncio.sleep(0.02)
        await until(lambda: len(a.members()) >= 1000)
        async with running("c") as c:
            await c.join([address(a)])

            def is_in() -> bool:
                found = {member.name: member for member in a.members()}
                return "c" in found and found["c"].status is Status.ALIVE and found["c"].heard

            await until(is_in, "the newcomer is a member, and has answered")
            for start in range(3000, 5200, 100):
                send(a, *(encode_message(fake(n)) for n in range(start, start + 100)))
                await asyncio.sleep(0.02)
            assert is_in()
            assert statuses(a)["b"] is Status.ALIVE
            assert len(a.members()) <= limits.members_max
            # A next life has somebody to ask.
            known = a._running().snapshot().peers
            ports = {member.port for member in (b.local, c.local)}
            assert ports == {place.port for place in known[:2]}


async def test_connections_that_say_nothing_keep_nobody_out(tmp_path: Path) -> None:
    async with two(tmp_path) as (a, _b), contextlib.AsyncExitStack() as idle:
        for _ in range(90):
            _reader, writer = await asyncio.open_connection("127.0.0.1", a.local.port)
            idle.callback(writer.close)
        async with running("c") as c:
            for _ in range(3):
                assert await c.join([address(a)]) == 1
        assert a.statistics().transport.streams_refused >= 26


# --- finding each other again --------------------------------------------------------------------


async def test_a_start_alone_forgets_nobody(tmp_path: Path) -> None:
    path, port = tmp_path / "b", free_port()
    async with running("a", bind_port=port) as a, running("b", snapshot_path=path) as b:
        await b.join([address(a)])
    peers = (Address("127.0.0.1", port),)
    assert decode_snapshot(path.read_bytes()).peers == peers
    async with running("b", snapshot_path=path) as b:
        await asyncio.sleep(1.5)  # past the first save, and the first tries
        assert decode_snapshot(path.read_bytes()).peers == peers
        async with running("a", bind_port=port) as a:
            await until(lambda: statuses(a) == statuses(b) == {"a": "alive", "b": "alive"})
    assert decode_snapshot(path.read_bytes()).peers == peers
    b = Membership(config("b", snapshot_path=path))
    await b.start()
    await b.leave()
    await b.close()
    assert decode_snapshot(path.read_bytes()).peers == ()
