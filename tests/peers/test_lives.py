"""Which start of a node another node believes: older ones, copies, and two at a time."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
from structlog.testing import capture_logs

from proglog import limits
from proglog.peers.frames import Lane, Type, frame
from proglog.peers.hello import Life, Refusal, encode_refusal
from proglog.peers.local import Known
from proglog.peers.peers import Peers
from tests.peers.doubles import (
    GROUP,
    Home,
    Network,
    Receiver,
    Wire,
    call,
    hello,
    make_peers,
    stood,
)

pytestmark = pytest.mark.virtual_time

THEM = Known("them", "them", "them:1", is_voter=True)
VOTE = b"".join(frame(Type.VOTE, GROUP, b"x"))


@pytest.fixture
def network() -> Network:
    return Network()


@pytest.fixture
def receiver() -> Receiver:
    return Receiver()


@pytest.fixture
def home() -> Home:
    return Home()


@pytest.fixture
async def peers(network: Network, receiver: Receiver, home: Home) -> AsyncIterator[Peers]:
    made = make_peers(network, home)
    made.attach(GROUP, receiver)
    yield made
    made.close()
    await asyncio.sleep(0.001)
    assert home.failures == []


def life(incarnation: int, session: str = "s") -> dict[str, Any]:
    return {"life": Life("them", "them", incarnation, session)}


def refusal_on(wire: Wire) -> str:
    """The code of the last that was said, if it is a refusal."""
    type_, _, payload = wire.frames[-1]
    return str(json.loads(payload)["code"]) if type_ == Type.REFUSAL else ""


async def answer(wire: Wire) -> None:
    """The process at the other end is there, and answers what it was asked last."""
    asked = [payload for type_, _, payload in wire.frames if type_ == Type.PING]
    wire.protocol.data_received(b"".join(frame(Type.PONG, 0, asked[-1] + bytes(8))))


async def test_an_earlier_life_is_refused_and_told_once(peers: Peers) -> None:
    _, latest = await call(peers, hello("them", **life(5)))
    with capture_logs() as lines:
        for _ in range(3):
            _, wire = await call(peers, hello("them", **life(4, "another")))
            assert (refusal_on(wire), wire.closed) == ("OLD_LIFE", True)
    assert not latest.aborted
    assert [line["code"] for line in lines] == ["OLD_LIFE"]
    assert "start 5 was seen" in lines[0]["why"]
    refusal = peers.refusal_of("them")
    assert refusal is not None
    assert refusal.code == "OLD_LIFE"


async def test_of_two_that_bear_one_number_the_later_is_refused(peers: Peers) -> None:
    _, first = await call(peers, hello("them", **life(5)))
    _, second = await call(peers, hello("them", **life(5, "another")))
    await answer(first)
    await asyncio.sleep(0.001)
    assert (refusal_on(second), second.closed) == ("TWIN", True)
    assert not first.aborted
    _, again = await call(peers, hello("them", **life(5)))
    assert not again.closed


async def test_a_number_that_was_given_already_is_of_an_older_directory(peers: Peers) -> None:
    """It is on the disk before anybody hears of it. Where the other one is gone, there are not two:
    what was given it is not what is there."""
    first, _ = await call(peers, hello("them", **life(5)))
    first.connection_lost(None)
    _, second = await call(peers, hello("them", **life(5, "another")))
    assert (refusal_on(second), second.closed) == ("OLD_LIFE", True)


async def test_a_node_under_another_name_is_refused(peers: Peers) -> None:
    peers.configure(GROUP, [THEM])
    _, wire = await call(peers, hello("them", life=Life("them", "him", 1, "s")))
    assert (refusal_on(wire), wire.closed) == ("NAME", True)


async def test_a_start_waits_for_one_before_that_may_still_be_there(peers: Peers) -> None:
    """Its host is gone without a word: nobody answers, and the new one has its place."""
    _, before = await call(peers, hello("them", **life(5)))
    _, after = await call(peers, hello("them", **life(6)))
    assert after.frames == []
    await asyncio.sleep(limits.twin_seconds_max)
    assert after.frames[0][0] == Type.WELCOME
    assert before.aborted
    _, late = await call(peers, hello("them", **life(5)))
    assert refusal_on(late) == "OLD_LIFE"


async def test_after_a_plain_restart_nobody_waits(peers: Peers) -> None:
    before, _ = await call(peers, hello("them", **life(5)))
    before.connection_lost(None)
    _, after = await call(peers, hello("them", **life(6)))
    assert after.frames[0][0] == Type.WELCOME


async def test_one_that_ends_while_it_is_asked_is_gone(peers: Peers) -> None:
    before, _ = await call(peers, hello("them", **life(5)))
    _, after = await call(peers, hello("them", **life(6)))
    assert after.frames == []
    before.connection_lost(None)
    await asyncio.sleep(0.001)
    assert after.frames[0][0] == Type.WELCOME


async def test_two_processes_of_one_node_are_told_apart(peers: Peers, receiver: Receiver) -> None:
    first, wire = await stood(peers, hello("them", **life(5)))
    _, second = await call(peers, hello("them", **life(6)))
    await answer(wire)
    await asyncio.sleep(0.001)
    assert (refusal_on(second), second.closed) == ("TWIN", True)
    first.data_received(VOTE)
    assert receiver.received == [("them", Type.VOTE, b"x")]


async def test_what_was_answered_before_it_was_asked_proves_nothing(peers: Peers) -> None:
    """A process may have died with its answers on the way."""
    _, wire = await call(peers, hello("them", **life(5)))
    _, after = await call(peers, hello("them", **life(6)))
    wire.protocol.data_received(b"".join(frame(Type.PONG, 0, bytes(16))))
    await asyncio.sleep(limits.twin_seconds_max + 0.01)
    assert after.frames[0][0] == Type.WELCOME


async def test_lanes_of_an_earlier_life_are_closed(peers: Peers, network: Network) -> None:
    peers.configure(GROUP, [THEM])
    await asyncio.sleep(0.01)
    _, bulk = await call(peers, hello("them", "bulk"))
    ours = list(network.wires)
    network.life = (2, "t")
    await call(peers, hello("them", **life(2, "t")))
    await asyncio.sleep(limits.twin_seconds_max + 0.01)
    assert bulk.aborted
    assert all(wire.aborted for wire in ours)
    await asyncio.sleep(0.1)
    lane = peers.peer("them").control.connection
    assert lane is not None
    assert lane.life.incarnation == 2


async def test_who_is_dialled_is_judged_as_well_and_told(peers: Peers, network: Network) -> None:
    """A node that does not know of us yet would never call, and lead alone."""
    await call(peers, hello("them", **life(7)))
    peers.configure(GROUP, [THEM])
    await asyncio.sleep(0.01)
    assert refusal_on(network.wires[0]) == "OLD_LIFE"
    assert not peers.peer("them").control.is_open


# --- what we are told ----------------------------------------------------------------------------


async def test_a_refusal_is_believed_of_a_configured_address_only(
    peers: Peers, network: Network, home: Home
) -> None:
    network.greets = False
    network.down.add("them:1")
    peers.hint("them", "them", "liar:1")
    peers.configure(GROUP, [THEM])
    await asyncio.sleep(2 * limits.dial_apart_seconds)
    told = b"".join(encode_refusal(Refusal("OLD_LIFE", "a lie")))
    network.wires[0].protocol.data_received(told)
    assert (network.dialled, home.doubts) == (["them:1", "liar:1"], [])
    network.down.clear()
    await asyncio.sleep(1.0)
    network.wires[-1 if network.dialled[-1] == "them:1" else -2].protocol.data_received(told)
    assert home.doubts == [("OLD_LIFE", "them")]


@pytest.mark.parametrize("dialled", [True, False])
async def test_a_refusal_on_a_connection_is_taken(
    peers: Peers, network: Network, home: Home, dialled: bool
) -> None:
    if dialled:
        peers.configure(GROUP, [THEM])
        await asyncio.sleep(0.01)
        wire = network.wires[0]
    else:
        _, wire = await call(peers, hello("them"))
    wire.protocol.data_received(b"".join(encode_refusal(Refusal("ROLLED_BACK", "why"))))
    assert home.doubts == [("ROLLED_BACK", "them")]
    assert wire.aborted


# --- statements ----------------------------------------------------------------------------------


async def test_nothing_counts_of_who_has_not_said_where_it_stands(
    peers: Peers, receiver: Receiver
) -> None:
    connection, wire = await call(peers, hello("them"))
    connection.data_received(VOTE)
    receiver.refusal = Refusal("ROLLED_BACK", "why")
    connection.data_received(b"".join(frame(Type.STAND, GROUP, b"")) + VOTE)
    assert (refusal_on(wire), wire.closed) == ("ROLLED_BACK", True)
    assert receiver.received == []
    assert peers.refusal_of("them") == receiver.refusal
    assert peers.refusals(GROUP) == []
    peers.configure(GROUP, [THEM])
    assert peers.refusals(GROUP) == [("them", receiver.refusal)]
    receiver.refusal = None
    connection, _ = await stood(peers, hello("them"))
    connection.data_received(VOTE)
    assert receiver.received == [("them", Type.VOTE, b"x")]
    assert peers.refusal_of("them") is None


async def test_each_lane_begins_with_where_we_stand(
    peers: Peers, network: Network, receiver: Receiver
) -> None:
    peers.configure(GROUP, [THEM])
    await asyncio.sleep(0.01)
    for wire in network.wires:
        assert [each for each in wire.frames if each[1] == GROUP] == [(Type.STAND, GROUP, b"we")]
    peers.state(GROUP)
    control, _ = network.wires
    assert control.frames[-1] == (Type.STAND, GROUP, b"we")
    receiver.states = None
    said = [len(wire.frames) for wire in network.wires]
    peers.state(GROUP)
    assert [len(wire.frames) for wire in network.wires] == said


async def test_lives_that_were_known_before_are_judged_by(peers: Peers) -> None:
    peers.remember([Life("them", "them", 9, "s")])
    _, wire = await call(peers, hello("them", Lane.CONTROL.value, **life(8)))
    assert refusal_on(wire) == "OLD_LIFE"
