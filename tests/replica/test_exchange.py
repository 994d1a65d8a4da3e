"""What a replica sends and takes, on connections that take everything."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any, cast

import pytest

from proglog import limits
from proglog.errors import DiskFull, ProglogError
from proglog.log.format import Tip
from proglog.log.tail import Run
from proglog.peers.frames import Lane, Type
from proglog.peers.hello import Life
from proglog.peers.peers import Peers
from proglog.raft.configuration import Configuration, Server
from proglog.raft.driver import ReceivedBatch
from proglog.raft.messages import AppendRequest, HeartbeatResponse
from proglog.replica import messages
from proglog.replica.budgets import Budgets
from proglog.replica.exchange import Exchange
from proglog.replica.floors import Memory
from proglog.replica.opening import first_batch
from proglog.replica.standing import Statement
from tests.peers.doubles import GROUP, Home, Network, Wire, called, hello, make_peers, stood

pytestmark = pytest.mark.virtual_time


class Driver:
    def __init__(self) -> None:
        self.term = 1
        self.disconnections: list[str] = []
        self.reconnections: list[str] = []
        self.unreachables: list[str] = []
        self.appended: list[AppendRequest] = []
        self.messages: list[object] = []
        self.room = asyncio.Event()
        self.room.set()
        self.refusal: ProglogError | None = None

    def reconnected(self, uuid: str) -> None:
        self.reconnections.append(uuid)

    def disconnected(self, uuid: str) -> None:
        self.disconnections.append(uuid)

    def unreachable(self, uuid: str) -> None:
        self.unreachables.append(uuid)

    def receive(self, message: object) -> None:
        self.messages.append(message)

    def has_room_for(self, _received: list[ReceivedBatch]) -> bool:
        return self.room.is_set()

    async def make_room_for(self, _received: list[ReceivedBatch]) -> None:
        if self.refusal is not None:
            raise self.refusal
        await self.room.wait()

    def receive_append(self, request: AppendRequest, _received: list[ReceivedBatch]) -> None:
        self.appended.append(request)


class Standing:
    """All stand, until they are doubted."""

    def __init__(self) -> None:
        self.doubt = ""
        self.is_news = self.has_voted_since = False
        self.memory = Memory({}, {})
        self.statements = 0
        self.judged: list[tuple[str, Statement]] = []

    def state(self) -> bytes | None:
        self.statements += 1
        self.is_news = self.has_voted_since = False
        return None if self.doubt else Statement(1, 2, 3, self.statements).encode()

    def judge(self, life: Life, statement: Statement) -> None:
        self.judged.append((life.uuid, statement))

    def look(self) -> None: ...


class Log:
    """Of one batch of term 1."""

    room_batches_max = 1000

    def __init__(self) -> None:
        header, packed, body = first_batch(Configuration().encode(), 1)
        self.first_index = 1
        self.tip = Tip.after(header)
        self.run = Run(packed + body, [header])

    async def read(self, *_range: int) -> Run:
        return self.run

    def read_newest(self, first: int, last: int, _bytes_max: int) -> Run | None:
        if last > self.tip.index:
            return None
        return self.run if first <= last else Run(b"", [])


class World:
    """A replica's exchange, and all around it."""

    def __init__(self) -> None:
        self.network, self.home = Network(), Home()
        self.peers: Peers = make_peers(self.network, self.home)
        self.log, self.driver, self.standing = Log(), Driver(), Standing()
        self.held = Budgets().held
        self.exchange = Exchange(
            host=cast("Any", self.home),
            log=cast("Any", self.log),
            peers=self.peers,
            group=GROUP,
            uuid="us",
            held=self.held,
            standing=cast("Any", self.standing),
        )
        self.exchange.begin(cast("Any", self.driver))

    async def opened(self) -> tuple[Wire, Wire]:
        """The control and the bulk lane to another server."""
        self.exchange.set_configuration(Configuration((Server("them", "them", "them:1"),)))
        await asyncio.sleep(0.01)
        control, bulk = self.network.wires
        return control, bulk

    def append(self, commit: int = 0, term: int = 1) -> bytes:
        """As they would send it."""
        request = AppendRequest("them", "us", term, 0, 0, 1, commit)
        return b"".join(messages.encode_append(GROUP, request, [self.log.run.data]))


@pytest.fixture
async def world() -> AsyncIterator[World]:
    world = World()
    yield world
    world.exchange.close()
    world.peers.close()
    await asyncio.sleep(0.001)
    assert world.home.failures == []


# --- out -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("is_over", [False, True])
async def test_an_append_leaves_in_its_term_or_not_at_all(world: World, is_over: bool) -> None:
    """In a later term other batches may stand where those stood that it was made for: a follower
    that took them under the old term would have a log that is newer than its hard state."""
    _, bulk = await world.opened()
    bulk.protocol.pause_writing()
    world.exchange.send(AppendRequest("us", "them", 1, 0, 0, 1, 0))
    await asyncio.sleep(0.001)
    world.driver.term += is_over
    bulk.protocol.resume_writing()
    await asyncio.sleep(0.001)
    assert bulk.written.endswith(world.log.run.data) is not is_over
    assert world.driver.unreachables == ["them"] * is_over


@pytest.mark.parametrize("is_over", [False, True])
async def test_an_append_from_memory_leaves_at_once(world: World, is_over: bool) -> None:
    _, bulk = await world.opened()
    world.driver.term += is_over
    world.exchange.send(AppendRequest("us", "them", 1, 0, 0, 1, 0))
    batch = world.log.run.data
    assert bulk.written.endswith(batch) is not is_over
    await asyncio.sleep(0.001)
    assert bulk.written.count(batch) == (not is_over)
    assert world.driver.unreachables == ["them"] * is_over


async def test_no_append_overtakes_one_that_waits_for_the_disk(world: World) -> None:
    _, bulk = await world.opened()
    log = world.log
    in_memory, log.read_newest = log.read_newest, lambda *_: None  # type: ignore[method-assign]
    first, second = (AppendRequest("us", "them", 1, 0, 0, 1, commit) for commit in (0, 1))
    world.exchange.send(first)
    log.read_newest = in_memory  # type: ignore[method-assign]
    world.exchange.send(second)
    await asyncio.sleep(0.001)
    appends = [
        b"".join(messages.encode_append(GROUP, each, [log.run.data])) for each in (first, second)
    ]
    assert bulk.written.endswith(b"".join(appends))


async def test_what_is_sent_to_nobody_is_lost_and_said_to_be(world: World) -> None:
    world.network.down.add("them:1")
    world.exchange.set_configuration(Configuration((Server("them", "them", "them:1"),)))
    world.exchange.send(AppendRequest("us", "them", 1, 0, 0, 1, 0))
    world.exchange.send(HeartbeatResponse("us", "them", 1, 0))
    assert world.driver.unreachables == ["them"]


async def test_a_server_may_be_removed_while_it_is_sent_something(world: World) -> None:
    _, bulk = await world.opened()
    bulk.protocol.pause_writing()
    world.exchange.send(AppendRequest("us", "them", 1, 0, 0, 1, 0))
    await asyncio.sleep(0.001)
    for _ in range(100):  # Nothing in them: one for each heartbeat that is answered meanwhile.
        world.exchange.send(AppendRequest("us", "them", 1, 1, 1, 1, 0))
    world.exchange.send(AppendRequest("us", "them", 1, 1, 1, 2, 0))
    assert len(world.exchange._outgoing["them"]._queue) == 2
    (feeding,) = (task for task in asyncio.all_tasks() if "_feed" in repr(task))
    world.exchange.set_configuration(Configuration())
    await asyncio.wait([feeding])
    assert feeding.cancelled()


async def test_one_that_was_forgotten_and_is_back_is_sent_to(world: World) -> None:
    await world.opened()
    world.exchange.send(AppendRequest("us", "them", 1, 0, 0, 1, 0))
    world.exchange.set_configuration(Configuration())
    await asyncio.sleep(0.01)
    world.network.wires.clear()
    _, bulk = await world.opened()
    world.exchange.send(AppendRequest("us", "them", 1, 0, 0, 1, 0))
    assert bulk.written.endswith(world.log.run.data)


# --- in ------------------------------------------------------------------------------------------


async def test_the_end_of_a_control_lane_is_told(world: World) -> None:
    for lane in (Lane.BULK, Lane.CONTROL):
        (await called(world.peers, "them", lane)).connection_lost(None)
    assert world.driver.disconnections == ["them"]


async def test_an_append_with_batches_of_a_later_term_is_not_taken(world: World) -> None:
    connection, wire = await stood(world.peers, hello("them", "bulk"))
    connection.data_received(world.append(term=0))
    assert wire.aborted


async def test_appends_without_room_wait_in_their_order_and_hold_nobody_up(world: World) -> None:
    connection, wire = await stood(world.peers, hello("them", "bulk"))
    world.driver.room.clear()
    connection.data_received(world.append(commit=0) + world.append(commit=1))
    vote = messages.encode(GROUP, HeartbeatResponse("them", "us", 1, 0))
    connection.data_received(b"".join(vote))
    await asyncio.sleep(0.01)
    assert world.driver.appended == []
    assert len(world.driver.messages) == 1, "the connection is read on"
    world.driver.room.set()
    connection.data_received(world.append(commit=2))
    await asyncio.sleep(0.01)
    assert [request.commit for request in world.driver.appended] == [0, 1, 2]
    assert not wire.aborted


@pytest.mark.parametrize("why", ["the disk is full", "there are too many"])
async def test_appends_that_cannot_be_taken_are_refused(
    world: World, monkeypatch: pytest.MonkeyPatch, why: str
) -> None:
    control, _ = await world.opened()
    connection, wire = await stood(world.peers, hello("them", "bulk"))
    world.driver.room.clear()
    if why == "the disk is full":
        world.driver.refusal = DiskFull(why)
    else:
        monkeypatch.setattr(limits, "intake_frames_max", 1)
    connection.data_received(world.append() + world.append())
    await asyncio.sleep(0.01)
    assert (Type.BUSY, GROUP, b"") in control.frames
    assert not wire.aborted
    world.driver.room.set()
    connection.data_received(world.append(commit=7))
    await asyncio.sleep(0.01)
    assert [request.commit for request in world.driver.appended] == [7]


async def test_one_that_was_refused_is_probed_again(world: World) -> None:
    connection, _ = await stood(world.peers, hello("them"))
    world.exchange.refuse("nobody")
    connection.data_received(b"".join(messages.frame(Type.BUSY, GROUP)))
    assert world.driver.unreachables == ["them"]


async def test_what_waits_is_forgotten_with_its_lane(world: World) -> None:
    connection, wire = await stood(world.peers, hello("them", "bulk"))
    world.driver.room.clear()
    connection.data_received(world.append())
    wire.abort()
    await asyncio.sleep(0.01)
    world.driver.room.set()
    await asyncio.sleep(0.01)
    assert world.driver.appended == []
