"""What the connections between nodes tell, without any network."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from typing import Any, cast

import pytest
from structlog.testing import capture_logs

from proglog import limits
from proglog.errors import ConfigurationError
from proglog.peers.frames import PROLOGUE, Lane, Type, frame
from proglog.peers.hello import encode_hello
from proglog.peers.local import Known
from proglog.peers.peers import Peers
from tests.peers.doubles import (
    GROUP,
    Home,
    Network,
    Receiver,
    Wire,
    call,
    called,
    hello,
    make_peers,
    stood,
)

pytestmark = pytest.mark.virtual_time

THEM = Known("them", "them", "them:1", is_voter=True)


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


async def opened(peers: Peers, network: Network) -> tuple[Wire, Wire]:
    """The control and the bulk lane to a server of the group."""
    peers.configure(GROUP, [THEM])
    await asyncio.sleep(0.01)
    control, bulk = network.wires
    assert peers.peer("them").control.is_open
    assert peers.peer("them").bulk.is_open
    return control, bulk


async def test_logs_are_told_when_a_peer_can_be_told_small_things_again(
    peers: Peers, network: Network, receiver: Receiver
) -> None:
    control, _ = await opened(peers, network)
    assert receiver.reconnections == ["them"]
    control.abort()
    await asyncio.sleep(limits.voter_redial_seconds_max)
    assert receiver.reconnections == ["them", "them"]


async def answering(wire: Wire, seconds: float) -> None:
    """The other end says that it lives."""
    for _ in range(round(seconds / 0.2)):
        await asyncio.sleep(0.2)
        wire.protocol.data_received(b"".join(frame(Type.PONG, 0, bytes(16))))


# --- lanes that others dialled -------------------------------------------------------------------


async def test_the_end_of_a_control_lane_is_told(peers: Peers, receiver: Receiver) -> None:
    for lane in (Lane.BULK, Lane.CONTROL):
        (await called(peers, "them", lane)).connection_lost(None)
    assert (receiver.disconnections, receiver.ended) == (["them"], ["them"])


async def test_the_end_of_an_old_control_lane_is_not(peers: Peers, receiver: Receiver) -> None:
    old, old_wire = await call(peers, hello("them"))
    other = await called(peers, "others", Lane.CONTROL)
    new = await called(peers, "them", Lane.CONTROL)
    assert old_wire.aborted
    assert receiver.disconnections == []
    del old
    new.connection_lost(None)
    assert receiver.disconnections == ["them"]
    peers.close()
    other.connection_lost(None)
    assert receiver.disconnections == ["them"]


async def test_a_lane_that_brings_nothing_is_given_up(peers: Peers, receiver: Receiver) -> None:
    _, wire = await call(peers, hello("them"))
    for _ in range(10):
        await asyncio.sleep(limits.control_ping_seconds)
        wire.protocol.data_received(b"".join(frame(Type.PING, 0, bytes(8))))
    await asyncio.sleep(2 * limits.control_silence_seconds_max - 0.1)
    assert not wire.aborted
    await asyncio.sleep(0.3)
    assert wire.aborted
    # That is our own word: it says nothing of the process at the other end.
    assert receiver.disconnections == []


async def test_signs_of_life_are_answered(peers: Peers) -> None:
    connection, wire = await call(peers, hello("them"))
    said = len(wire.frames)
    connection.data_received(b"".join(frame(Type.PING, 0, (7).to_bytes(8, "little"))))
    (answer,) = wire.frames[said:]
    assert answer[:2] == (Type.PONG, 0)
    assert answer[2][:8] == (7).to_bytes(8, "little")


async def test_whoever_receives_for_long_says_so_without_being_asked(peers: Peers) -> None:
    """What fills a slow connection is in the way of the question whether anybody is there."""
    connection, wire = await call(peers, hello("them", "bulk"))
    append = b"".join(frame(Type.APPEND, GROUP, bytes(100_000)))
    said = len(wire.frames)
    for start in range(0, 100_000, 10_000):
        connection.data_received(append[start : start + 10_000])
        await asyncio.sleep(limits.control_ping_seconds / 2)
    assert 3 <= len(wire.frames[said:]) <= 6
    assert {type_ for type_, *_ in wire.frames[said:]} == {Type.PONG}


async def test_who_reads_no_answers_is_given_up(peers: Peers) -> None:
    connection, wire = await call(peers, hello("them"))
    wire.is_stuck = True
    for _ in range(5000):
        if not wire.aborted:
            connection.data_received(b"".join(frame(Type.PING, 0, bytes(8))))
    assert limits.answers_bytes_max < len(wire.written) < 2 * limits.answers_bytes_max


async def test_a_frame_of_an_unknown_group_is_answered(peers: Peers, receiver: Receiver) -> None:
    connection, wire = await stood(peers, hello("them"))
    connection.data_received(b"".join(frame(Type.VOTE, 77, b"x")))
    connection.data_received(b"".join(frame(Type.VOTE, GROUP, b"y")))
    assert wire.frames[-1] == (Type.NO_GROUP, 77, b"")
    assert not wire.aborted
    assert receiver.received == [("them", Type.VOTE, b"y")]


@pytest.mark.parametrize("group", [0, GROUP])
async def test_what_a_later_version_says_is_skipped_where_it_may_be(
    peers: Peers, group: int
) -> None:
    connection, wire = await stood(peers, hello("them"))
    connection.data_received(b"".join([b"".join(frame(cast("Any", 128), group, b"x"))]))
    assert not wire.aborted
    connection.data_received(b"".join(frame(cast("Any", 127), group, b"x")))
    assert wire.aborted


async def test_who_is_refused_again_and_again_is_told_once(peers: Peers) -> None:
    with capture_logs() as lines:
        for to in ("us before we were wiped", "us before we were wiped", "somebody else"):
            _, wire = await call(peers, hello("them", to=to))
            assert to.encode() in wire.written
            assert wire.closed
    assert [(line["event"], line["peer"]) for line in lines] == [
        ("peer refused", "them at them:1")
    ] * 2
    assert [line["why"].rpartition(" not ")[2] for line in lines] == [
        "us before we were wiped",
        "somebody else",
    ]


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"protocols": (3, 9)}, "PROTOCOL"),
        ({"lane": "catch-up"}, "LANE"),
        ({"cluster_id": ""}, "CLUSTER"),
        ({"cluster_id": "another"}, "CLUSTER"),
    ],
)
async def test_who_does_not_fit_is_refused_with_a_code(
    peers: Peers, changes: dict[str, Any], code: str
) -> None:
    _, wire = await call(peers, hello("them", **changes))
    ((type_, _, payload),) = wire.frames
    assert (type_, json.loads(payload)["code"]) == (Type.REFUSAL, code)
    assert wire.closed


async def test_a_later_version_that_speaks_ours_too_is_welcome(peers: Peers) -> None:
    _, wire = await call(peers, hello("them", protocols=(1, 9), features=("beats",)))
    ((type_, _, payload),) = wire.frames
    assert (type_, json.loads(payload)["protocol"]) == (Type.WELCOME, 2)


async def test_a_node_without_a_cluster_joins_the_one_whose_name_it_knows(
    peers: Peers, home: Home
) -> None:
    home.identity = home.identity._replace(cluster_id="")
    _, wire = await call(peers, hello("them", cluster_name="strangers"))
    assert wire.closed
    assert home.identity.cluster_id == ""
    _, wire = await call(peers, hello("them"))
    assert not wire.closed
    assert home.identity.cluster_id == "cluster"


async def test_the_oldest_of_too_many_strangers_gives_way(peers: Peers) -> None:
    wires = []
    for _ in range(limits.peer_strangers_max + 1):
        connection, wire = peers.accept(), Wire()
        wire.protocol = connection
        connection.connection_made(cast("Any", wire))
        wires.append(wire)
    assert [wire.aborted for wire in wires] == [True] + [False] * limits.peer_strangers_max
    await asyncio.sleep(limits.greeting_seconds_max + 0.01)
    assert all(wire.aborted for wire in wires)


async def test_there_is_a_bound_on_lanes_of_nodes_that_are_no_servers(peers: Peers) -> None:
    peers.configure(GROUP, [THEM])
    _, ours = await call(peers, hello("them"))
    wires = []
    for n in range(limits.peer_lanes_max + 9):
        connection, wire = peers.accept(), Wire()
        wire.protocol = connection
        connection.connection_made(cast("Any", wire))
        connection.data_received(b"".join([PROLOGUE, *encode_hello(hello(f"uuid-{n}"))]))
        for _ in range(4):
            await asyncio.sleep(0)
        wires.append(wire)
    assert [wire.aborted for wire in wires] == [True] * 10 + [False] * (limits.peer_lanes_max - 1)
    assert not ours.aborted


@pytest.mark.parametrize("said", [b"GET / HTTP/1.1\r\n\r\n", PROLOGUE + b"\xff" * 64])
async def test_what_is_no_connection_between_nodes_is_ended(peers: Peers, said: bytes) -> None:
    connection, wire = peers.accept(), Wire()
    wire.protocol = connection
    connection.connection_made(cast("Any", wire))
    connection.data_received(said)
    assert wire.aborted


# --- lanes that we dial --------------------------------------------------------------------------


async def test_a_lane_that_says_nothing_is_given_up_and_dialled_again(
    peers: Peers, network: Network, receiver: Receiver
) -> None:
    control, bulk = await opened(peers, network)
    await answering(control, 0.4)
    assert not control.aborted
    assert [type_ for type_, *_ in control.frames].count(Type.PING) >= 2
    await asyncio.sleep(limits.control_silence_seconds_max - 0.1)
    assert not control.aborted
    await asyncio.sleep(0.2)
    assert control.aborted
    assert bulk.aborted, "it shares the fate of the control lane"
    assert receiver.unreachables == ["them"]
    await asyncio.sleep(limits.redial_seconds_first)
    assert len(network.wires) == 4
    assert peers.peer("them").bulk.is_open


async def test_a_bulk_lane_alone_may_be_lost(peers: Peers, network: Network) -> None:
    control, bulk = await opened(peers, network)
    await answering(control, limits.bulk_silence_seconds_max + 0.2)
    assert (control.aborted, bulk.aborted) == (False, True)


async def test_nobody_is_given_up_for_a_stall_of_our_own(
    peers: Peers, network: Network, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the others said meanwhile waits in the sockets, and is read after the first beat."""
    control, _ = await opened(peers, network)
    await answering(control, 0.6)
    awake, real = peers._local.awake, asyncio.get_running_loop().time
    monkeypatch.setattr(awake, "_time", lambda: real() + 3600)
    await asyncio.sleep(0.5)
    assert not control.aborted
    await answering(control, 1.0)
    assert not control.aborted


async def test_one_that_does_not_answer_a_greeting_is_given_up(
    peers: Peers, network: Network
) -> None:
    """Its host may have died before it answered: nothing is sent again, and TCP says nothing."""
    network.greets = False
    peers.configure(GROUP, [THEM])
    await asyncio.sleep(0.001)
    (wire,) = network.wires
    await asyncio.sleep(limits.greeting_seconds_max - 0.1)
    assert not wire.aborted
    await asyncio.sleep(0.1)
    assert wire.aborted


@pytest.mark.parametrize("is_voter", [True, False])
async def test_pauses_between_dials_grow_up_to_a_bound(
    peers: Peers, network: Network, is_voter: bool
) -> None:
    network.down.add("them:1")
    peers.configure(GROUP, [THEM._replace(is_voter=is_voter)])
    await asyncio.sleep(20)
    longest = limits.voter_redial_seconds_max if is_voter else limits.redial_seconds_max
    slowest = 20 / (limits.dial_seconds_max + longest)
    assert slowest <= len(network.dialled) <= 20 / (limits.dial_seconds_max + longest / 2) + 8


async def test_whoever_calls_is_dialled_at_once(peers: Peers, network: Network) -> None:
    network.down.add("them:1")
    peers.configure(GROUP, [THEM._replace(is_voter=False)])
    await asyncio.sleep(20)
    network.down.clear()
    while peers.peer("them").control._dialling is not None:
        await asyncio.sleep(0.01)
    await call(peers, hello("them"))
    await asyncio.sleep(0.01)
    assert peers.peer("them").control.is_open


async def test_what_others_tell_is_tried_beside_the_configured_address(
    peers: Peers, network: Network
) -> None:
    """Anybody can tell by gossip where a server is said to be."""
    for n in range(100):
        peers.hint("them", "them", f"liar-{n}:1")
    peers.configure(GROUP, [THEM])
    await asyncio.sleep(0.01)
    assert network.dialled == ["them:1", "them:1"]
    assert peers.address_of("them") == "them:1"
    for n in range(100):
        peers.hint("them", "them", f"liar-{n}:1")
        await asyncio.sleep(0.005)
    assert not any(wire.aborted for wire in network.wires)
    assert peers.address_of("them") == "them:1"
    assert network.dialled == ["them:1", "them:1"]


async def test_a_server_that_moved_is_found_where_others_say(
    peers: Peers, network: Network
) -> None:
    network.down.add("them:1")
    peers.hint("them", "them", "them:2")
    peers.hint("them", "them", "liar:1")
    peers.configure(GROUP, [THEM])
    await asyncio.sleep(3 * limits.dial_apart_seconds)
    assert peers.peer("them").control.is_open
    assert peers.address_of("them") == "them:2"
    assert network.dialled == ["them:1", "liar:1", "them:2", "them:2"]


@pytest.mark.parametrize("error", [ConfigurationError("no address"), UnicodeError("no name")])
async def test_an_address_that_is_none_is_tried_again_like_any_other(
    peers: Peers, network: Network, error: Exception
) -> None:
    dialled = 0

    async def connect(_address: str, _factory: Callable[[], asyncio.Protocol]) -> None:
        nonlocal dialled
        dialled += 1
        raise error

    peers._local.connect = connect
    peers.configure(GROUP, [THEM])
    await asyncio.sleep(0.005)
    assert dialled == 1  # Not again at once.
    await asyncio.sleep(1.0)
    assert 4 <= dialled <= 12


async def test_an_answer_for_an_unknown_group_is_told(
    peers: Peers, network: Network, receiver: Receiver
) -> None:
    control, _ = await opened(peers, network)
    control.protocol.data_received(b"".join(frame(Type.NO_GROUP, GROUP)))
    control.protocol.data_received(b"".join(frame(Type.NO_GROUP, 77)))
    assert receiver.unreachables == ["them"]
    assert not control.aborted


async def test_servers_of_no_group_are_forgotten(peers: Peers, network: Network) -> None:
    control, bulk = await opened(peers, network)
    peers.attach(16, Receiver())
    peers.configure(16, [THEM])
    peers.configure(GROUP, [])
    assert not control.aborted
    peers.detach(16)
    assert control.aborted
    assert bulk.aborted
    await asyncio.sleep(5)
    assert len(network.wires) == 2


async def test_there_is_a_bound_on_those_that_were_heard_of(peers: Peers) -> None:
    peers.configure(GROUP, [THEM])
    for n in range(10 * limits.peers_max):
        peers.hint(f"uuid-{n}", "name", f"liar:{n + 1}")
    assert len(peers._peers) <= limits.peers_max
    assert peers.address_of("them") == "them:1"
