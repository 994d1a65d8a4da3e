"""What the connections between servers tell, without any network."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Iterable
from typing import Any, cast

import pytest
from structlog.testing import capture_logs

from proglog import limits
from proglog.errors import ConfigurationError
from proglog.log.format import Tip
from proglog.log.tail import Run
from proglog.ports import RealClock
from proglog.raft import frames
from proglog.raft.configuration import Configuration, Server
from proglog.raft.frames import Hello, Lane, Welcome
from proglog.raft.hard_state import Identity
from proglog.raft.messages import AppendRequest, HeartbeatResponse
from proglog.raft.transport import Transport
from proglog.replica.opening import first_batch

pytestmark = pytest.mark.virtual_time

OURS = Identity(cluster_id="cluster", uuid="us", name="us")


class Host:
    identity = OURS

    def __init__(self) -> None:
        self.failures: list[BaseException] = []

    def failed(self, error: BaseException) -> None:
        self.failures.append(error)


class Driver:
    def __init__(self) -> None:
        self.term = 1
        self.disconnections: list[str] = []
        self.unreachables: list[str] = []

    def disconnected(self, uuid: str) -> None:
        self.disconnections.append(uuid)

    def unreachable(self, uuid: str) -> None:
        self.unreachables.append(uuid)


class Log:
    """Of one batch of term 1."""

    def __init__(self) -> None:
        header, packed, body = first_batch(Configuration(), RealClock())
        self.first_index = 1
        self.tip = Tip.after(header)
        self.run = Run(packed + body, [header])

    async def read(self, *_range: int) -> Run:
        return self.run

    def read_newest(self, first: int, last: int, _bytes_max: int) -> Run | None:
        if last > self.tip.index:
            return None
        return self.run if first <= last else Run(b"", [])


class Wire:
    """A connection that takes everything."""

    def __init__(self) -> None:
        self.written = b""
        self.aborted = self.closed = False

    def is_closing(self) -> bool:
        return self.closed

    def writelines(self, parts: Iterable[bytes]) -> None:
        self.written += b"".join(parts)

    def pause_reading(self) -> None: ...
    def resume_reading(self) -> None: ...

    def abort(self) -> None:
        self.aborted = True

    def close(self) -> None:
        self.closed = True


@pytest.fixture
async def transport() -> Transport:
    async def connect(address: str, factory: Callable[[], asyncio.Protocol]) -> None:
        """Whoever is dialled welcomes us, and then reads nothing."""
        connection = factory()
        connection.connection_made(cast("Any", Wire()))
        welcome = frames.encode_welcome(Welcome("cluster", address.partition(":")[0]))
        connection.data_received(b"".join(welcome))
        connection.pause_writing()

    made = Transport(
        host=cast("Any", Host()),
        log=cast("Any", Log()),
        log_id="default",
        rpc_addr="us:1",
        connect=connect,
        chance=random.Random(1),
    )
    made.driver = cast("Any", Driver())
    return made


async def dialled(
    transport: Transport, sender: str, lane: Lane, to: str = "us"
) -> asyncio.Protocol:
    """A connection on which a server has said who it is."""
    connection = transport.accept()
    connection.connection_made(cast("Any", Wire()))
    hello = Hello(
        cluster_id="cluster",
        log_id="default",
        sender=sender,
        sender_name=sender,
        sender_addr=f"{sender}:1",
        to=to,
        lane=lane.value,
    )
    connection.data_received(b"".join([frames.PROLOGUE, *frames.encode_hello(hello)]))
    await asyncio.sleep(0.001)
    return connection


async def test_the_end_of_a_control_lane_is_told(transport: Transport) -> None:
    told = cast("Driver", transport.driver).disconnections
    for lane in (Lane.BULK, Lane.CONTROL):
        (await dialled(transport, "them", lane)).connection_lost(None)
    assert told == ["them"]


async def test_the_end_of_an_old_control_lane_is_not(transport: Transport) -> None:
    told = cast("Driver", transport.driver).disconnections
    old = await dialled(transport, "them", Lane.CONTROL)
    other = await dialled(transport, "others", Lane.CONTROL)
    new = await dialled(transport, "them", Lane.CONTROL)
    old.connection_lost(None)
    assert told == []
    new.connection_lost(None)
    assert told == ["them"]
    transport.close()
    other.connection_lost(None)
    assert told == ["them"]


@pytest.mark.parametrize("is_over", [False, True])
async def test_an_append_leaves_in_its_term_or_not_at_all(
    transport: Transport, is_over: bool
) -> None:
    """In a later term other batches may stand where those stood that it was made for: a follower
    that took them under the old term would have a log that is newer than its hard state."""
    transport.hint("them", "them", "them:1")
    transport.send(AppendRequest("us", "them", 1, 0, 0, 0, 0))
    await asyncio.sleep(0.001)
    driver, bulk = cast("Driver", transport.driver), transport._peer("them")._bulk
    driver.unreachables.clear()
    transport.send(AppendRequest("us", "them", 1, 0, 0, 1, 0))
    await asyncio.sleep(0.001)
    driver.term += is_over
    bulk.resume_writing()
    await asyncio.sleep(0.001)
    batch = cast("Log", transport.log).run.data
    assert cast("Wire", bulk._wire).written.endswith(batch) is not is_over
    assert driver.unreachables == ["them"] * is_over


@pytest.mark.parametrize("is_over", [False, True])
async def test_an_append_from_memory_leaves_at_once(transport: Transport, is_over: bool) -> None:
    transport.hint("them", "them", "them:1")
    transport.send(AppendRequest("us", "them", 1, 0, 0, 0, 0))
    await asyncio.sleep(0.001)
    driver, bulk = cast("Driver", transport.driver), transport._peer("them")._bulk
    bulk.resume_writing()
    driver.unreachables.clear()
    driver.term += is_over
    transport.send(AppendRequest("us", "them", 1, 0, 0, 1, 0))
    batch = cast("Log", transport.log).run.data
    assert cast("Wire", bulk._wire).written.endswith(batch) is not is_over
    await asyncio.sleep(0.001)
    assert cast("Wire", bulk._wire).written.count(batch) == (not is_over)
    assert driver.unreachables == ["them"] * is_over


async def test_no_append_overtakes_one_that_waits_for_the_disk(transport: Transport) -> None:
    transport.hint("them", "them", "them:1")
    transport.send(AppendRequest("us", "them", 1, 0, 0, 0, 0))
    await asyncio.sleep(0.001)
    log, bulk = cast("Log", transport.log), transport._peer("them")._bulk
    bulk.resume_writing()
    in_memory, log.read_newest = log.read_newest, lambda *_: None  # type: ignore[method-assign]
    first, second = (AppendRequest("us", "them", 1, 0, 0, 1, commit) for commit in (0, 1))
    transport.send(first)
    log.read_newest = in_memory  # type: ignore[method-assign]
    transport.send(second)
    await asyncio.sleep(0.001)
    appends = [b"".join(frames.encode_append(each, [log.run.data])) for each in (first, second)]
    assert cast("Wire", bulk._wire).written.endswith(b"".join(appends))


async def test_who_is_refused_again_and_again_is_told_once(transport: Transport) -> None:
    with capture_logs() as lines:
        for to in ("us before we were wiped", "us before we were wiped", "somebody else"):
            connection = cast("Any", await dialled(transport, "them", Lane.CONTROL, to=to))
            assert to.encode() in connection._wire.written
            assert connection._wire.closed
    assert [(line["event"], line["peer"]) for line in lines] == [
        ("peer refused", "them at them:1")
    ] * 2
    assert [line["why"].rpartition(" not ")[2] for line in lines] == [
        "us before we were wiped",
        "somebody else",
    ]


async def test_one_that_does_not_answer_a_greeting_is_given_up(transport: Transport) -> None:
    """Its host may have died before it answered: nothing is sent again, and TCP says nothing."""

    async def connect(_address: str, factory: Callable[[], asyncio.Protocol]) -> None:
        factory().connection_made(cast("Any", Wire()))

    transport.connect = connect
    transport.hint("them", "them", "them:1")
    transport.send(HeartbeatResponse("us", "them", 1, 0))
    await asyncio.sleep(0.001)
    wire = cast("Wire", transport._peer("them")._control._wire)
    await asyncio.sleep(limits.sniff_seconds_max - 0.1)
    assert not wire.aborted
    await asyncio.sleep(0.1)
    assert wire.aborted


async def test_connections_to_where_a_server_was_are_given_up(transport: Transport) -> None:
    transport.set_configuration(Configuration((Server("them", "them", "them:1"),)))
    transport.keep_warm()
    await asyncio.sleep(0.001)
    peer = transport._peer("them")
    wires = [cast("Wire", lane._wire) for lane in (peer._control, peer._bulk)]
    transport.hint("them", "their name", "them:1")
    assert not any(wire.aborted for wire in wires)
    transport.hint("them", "their name", "them:2")
    assert all(wire.aborted for wire in wires)


@pytest.mark.parametrize("error", [ConfigurationError("no address"), UnicodeError("no name")])
async def test_an_address_that_is_none_is_tried_again_like_any_other(
    transport: Transport, error: Exception
) -> None:
    async def connect(*_: object) -> None:
        raise error

    transport.connect = connect
    transport.hint("them", "them", "them")
    lane = transport._peer("them")._control
    lane.dial_soon()
    dialling = lane._dialling
    assert dialling is not None
    await dialling
    assert (lane._failures, lane._dialling) == (1, None)
    lane.dial_soon()
    assert lane._dialling is None  # Not at once.


async def test_an_append_with_batches_of_a_later_term_is_not_taken(transport: Transport) -> None:
    batch = cast("Log", transport.log).run.data
    connection = cast("Any", await dialled(transport, "them", Lane.BULK))
    append = frames.encode_append(AppendRequest("them", "us", 0, 0, 0, 1, 0), [batch])
    connection.data_received(b"".join(append))
    assert connection._wire.aborted


async def test_a_server_may_be_removed_while_it_is_sent_something(transport: Transport) -> None:
    transport.set_configuration(Configuration((Server("them", "them", "them:1"),)))
    transport.keep_warm()
    await asyncio.sleep(0.001)
    transport.send(AppendRequest("us", "them", 1, 0, 0, 1, 0))
    await asyncio.sleep(0.001)
    for _ in range(100):  # Nothing in them: one for each heartbeat that is answered meanwhile.
        transport.send(AppendRequest("us", "them", 1, 1, 1, 1, 0))
    transport.send(AppendRequest("us", "them", 1, 1, 1, 2, 0))
    assert len(transport._peer("them")._queue) == 2
    (feeding,) = (task for task in asyncio.all_tasks() if "_feed" in repr(task))
    transport.set_configuration(Configuration())
    await asyncio.wait([feeding])
    assert feeding.cancelled()
    assert cast("Host", transport.host).failures == []
