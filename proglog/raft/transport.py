"""Connections between servers: who they are is proved first, then frames flow one way.

Sending never waits: what cannot be sent is dropped, and the core is told where it must know
(`unreachable`). Receiving applies backpressure by not reading.
"""

from __future__ import annotations

import asyncio
import random
from collections import deque
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Protocol, cast

import structlog

from proglog import limits
from proglog.batch import Buffer
from proglog.errors import DiskFull, ProglogError, RangeCorrupt, Unavailable
from proglog.log.log import Log
from proglog.raft import frames
from proglog.raft.configuration import Configuration
from proglog.raft.driver import Driver, ReceivedBatch
from proglog.raft.frames import FrameError, Hello, Lane, Type, Welcome
from proglog.raft.hard_state import Identity
from proglog.raft.messages import AppendRequest, InstallSnapshot, Message

_logger = structlog.get_logger("raft")

Connect = Callable[[str, Callable[[], asyncio.Protocol]], Awaitable[object]]
"""Opens a connection to an address with a protocol. Raises OSError."""


class TransportHost(Protocol):
    """What the transport needs of the replica."""

    @property
    def identity(self) -> Identity: ...

    async def adopt_cluster(self, cluster_id: str) -> None:
        """This server joins a cluster, durably. Raises Unavailable if it belongs to another."""

    def configuration_of(self, state: bytes) -> Configuration:
        """The configuration in a snapshot's state."""

    def range_wanted(self, peer: str, first: int, last: int) -> None:
        """A peer whose batches are damaged asks for ours."""

    def range_received(self, batches: list[ReceivedBatch]) -> None:
        """The answer to `Transport.fetch`, from whoever it is."""

    def damaged(self, error: RangeCorrupt) -> None:
        """A batch that a follower needs cannot be read."""

    def failed(self, error: BaseException) -> None: ...


class Transport:
    """All connections of one replica."""

    def __init__(
        self,
        *,
        host: TransportHost,
        log: Log,
        log_id: str,
        rpc_addr: str,
        connect: Connect,
        chance: random.Random,
    ) -> None:
        self.host = host
        self.log = log
        self.log_id = log_id
        self.rpc_addr = rpc_addr
        self.connect = connect
        self.chance = chance
        self.driver: Driver
        """Set once, when the driver is made: the two need each other."""
        self._peers: dict[str, _Peer] = {}
        self._configuration = Configuration()
        self._hints: dict[str, tuple[str, str]] = {}
        """(name, address) of servers that were heard of."""
        # In the order of their making, unlike a set: so that a simulated run is always the same.
        self._inbound: dict[_Inbound, None] = {}
        self._closed = False

    def send(self, message: Message) -> None:
        """Sends a message or drops it."""
        if not self._closed:
            self._peer(message.to).send(message)

    def fetch(self, uuid: str, first: int, last: int) -> None:
        """Asks a peer for committed batches; perhaps it answers by `range_received`."""
        self._peer(uuid).send_control(frames.encode_fetch(first, last))

    def answer_fetch(self, uuid: str, data: Buffer) -> None:
        """Sends a peer the batches that it asked for, if it can be reached."""
        self._peer(uuid).send_bulk(frames.encode_fetched(data))

    def _peer(self, uuid: str) -> _Peer:
        peer = self._peers.get(uuid)
        if peer is None:
            peer = self._peers[uuid] = _Peer(self, uuid)
        return peer

    def address_of(self, uuid: str) -> str:
        """Where a server is: the newest address heard of, or the configured one; may be ""."""
        if uuid == self.host.identity.uuid:
            return self.rpc_addr
        _, address = self._hints.get(uuid, ("", ""))
        server = self._configuration.find(uuid)
        return address or (server.address if server else "")

    def name_of(self, uuid: str) -> str:
        """What to call a server in front of people."""
        name, _ = self._hints.get(uuid, ("", ""))
        server = self._configuration.find(uuid)
        return (server.name if server else "") or name or uuid

    def set_configuration(self, configuration: Configuration) -> None:
        """Forgets connections to servers that are no members any more."""
        self._configuration = configuration
        for uuid in list(self._peers):
            if configuration.find(uuid) is None and uuid not in self._hints:
                self._peers.pop(uuid).close()

    def keep_warm(self) -> None:
        """Has the connections to all other servers ready, as far as they can be reached: a new
        leader that had to dial first would lose a heartbeat or two before it can commit."""
        for server in self._configuration.servers:
            if server.uuid != self.host.identity.uuid:
                self._peer(server.uuid).dial_soon()

    def hint(self, uuid: str, name: str, address: str) -> None:
        """Someone told where a server can be reached. The handshake proves who answers there."""
        if address and self._hints.get(uuid) != (name, address):
            before = self.address_of(uuid)
            if len(self._hints) >= limits.peer_hints_max:
                self._hints.pop(next(iter(self._hints)))
            self._hints[uuid] = name, address
            if before != address and uuid in self._peers:
                # What is open to the old address may be open to nobody, and TCP would not say so
                # for a quarter of an hour.
                self._peers[uuid].dial_again()

    def disconnected(self, uuid: str) -> None:
        """A control lane that a peer had dialled has ended; by now there may be another one."""
        if not self._closed and all(each.heartbeats_of != uuid for each in self._inbound):
            self.driver.disconnected(uuid)

    def accept(self) -> asyncio.Protocol:
        """The protocol of a connection that another server dialled; PROLOGUE comes first."""
        return _Inbound(self, self._inbound)

    def close(self) -> None:
        self._closed = True
        for peer in self._peers.values():
            peer.close()
        for inbound in list(self._inbound):
            inbound.close()


# --- dialled by us -------------------------------------------------------------------------------


class _Peer:
    """Both lanes to one server."""

    def __init__(self, transport: Transport, uuid: str) -> None:
        self._transport = transport
        self.uuid = uuid
        self._control = _Outbound(transport, uuid, Lane.CONTROL)
        self._bulk = _Outbound(transport, uuid, Lane.BULK)
        self._queue: deque[AppendRequest | InstallSnapshot] = deque()
        self._feeding: asyncio.Task[None] | None = None

    def dial_soon(self) -> None:
        """Begins to connect where that is not done."""
        self._control.dial_soon()
        self._bulk.dial_soon()

    def dial_again(self) -> None:
        """Gives up the connections that there are."""
        self._control.give_up("the peer has moved")
        self._bulk.give_up("the peer has moved")

    def send(self, message: Message) -> None:
        if not isinstance(message, AppendRequest | InstallSnapshot):
            self.send_control(frames.encode(message))
            return
        if not self._bulk.is_open:
            self._bulk.dial_soon()
            self._lost()
            return
        if self._feeding is not None and _is_empty(message):
            return  # It only asks for an answer, which those before it bring as well.
        # The core's window bounds what is queued here, in messages and in bytes.
        self._queue.append(message)
        if self._feeding is None:
            self._feeding = asyncio.get_running_loop().create_task(self._feed())

    def send_control(self, parts: list[Buffer]) -> None:
        if not self._control.is_blocked:
            self._control.write(parts)

    def send_bulk(self, parts: list[Buffer]) -> None:
        """Sends something that is not an append beside them, if the connection takes it."""
        if not self._bulk.is_blocked:
            self._bulk.write(parts)

    async def _feed(self) -> None:
        """Attaches the batches and writes, as fast as the connection takes them."""
        try:
            while self._queue:
                await self._bulk.writable()
                message = self._queue.popleft()
                if isinstance(message, AppendRequest):
                    self._bulk.write(await self._append_frame(message))
                else:
                    snapshot = await self._transport.log.read_snapshot(message.index)
                    self._bulk.write(frames.encode_install(message, snapshot))
        except (ProglogError, FileNotFoundError) as error:
            if isinstance(error, RangeCorrupt):
                self._transport.host.damaged(error)
            # Cut, compacted or corrupt meanwhile, or the connection is gone: the core probes again.
            name = self._transport.name_of(self.uuid)
            _logger.info("append not sent", peer=name, error=str(error))
            self._lost()
        except asyncio.CancelledError:
            raise  # The peer is no member any more, or this node stops.
        except BaseException as error:
            self._transport.host.failed(error)
            raise
        finally:
            self._feeding = None

    async def _append_frame(self, request: AppendRequest) -> list[Buffer]:
        log = self._transport.log
        parts: list[Buffer] = []
        index = request.prev_index + 1
        while index <= request.last_index:
            if not log.first_index <= index or request.last_index > log.tip.index:
                raise Unavailable("the log was cut or compacted since")
            run = await log.read(index, request.last_index, limits.batch_bytes_max)
            parts.append(run.data)
            index = run.headers[-1].index + 1
        # Within a term the log of its leader only grows, so these are the batches that were meant.
        # In a later one others may stand there, which do not follow `prev_term`.
        if self._transport.driver.term != request.term:
            raise Unavailable("the term it was meant for is over")
        return frames.encode_append(request, parts)

    def _lost(self) -> None:
        self._queue.clear()
        self._transport.driver.unreachable(self.uuid)

    def close(self) -> None:
        if self._feeding is not None:
            self._feeding.cancel()
        self._control.close()
        self._bulk.close()


def _is_empty(message: AppendRequest | InstallSnapshot) -> bool:
    return isinstance(message, AppendRequest) and message.prev_index == message.last_index


class _Outbound(asyncio.Protocol):
    """One connection that we dial: Hello, Welcome, then frames from us."""

    def __init__(self, transport: Transport, uuid: str, lane: Lane) -> None:
        self._owner = transport
        self._uuid = uuid
        self._lane = lane
        self._loop = asyncio.get_running_loop()
        self._wire: asyncio.Transport | None = None
        self._reader = frames.FrameReader()
        self._dialling: asyncio.Task[None] | None = None
        self._failures = 0
        self._retry_at = 0.0
        self._paused: asyncio.Future[None] | None = None
        self._greeting: asyncio.TimerHandle | None = None
        self._closed = False
        self.is_open = False
        """The peer has proved who it is."""

    @property
    def is_blocked(self) -> bool:
        """Nothing can be sent now. Begins to dial where that is why."""
        if not self.is_open:
            self.dial_soon()
            return True
        return self._paused is not None

    def dial_soon(self) -> None:
        if self._dialling is not None or self._wire is not None or self._closed:
            return
        if self._loop.time() >= self._retry_at and self._owner.address_of(self._uuid):
            self._dialling = self._loop.create_task(self._dial())

    async def _dial(self) -> None:
        try:
            async with asyncio.timeout(limits.dial_seconds_max):
                await self._owner.connect(self._owner.address_of(self._uuid), lambda: self)
        except (OSError, ValueError, ProglogError) as error:
            # Gossip and greetings tell addresses: one may be none, or no name.
            self._back_off(str(error) or f"no connection in {limits.dial_seconds_max:g} s")
        finally:
            self._dialling = None

    def _back_off(self, why: str) -> None:
        self._failures += 1
        longest = min(limits.redial_seconds_max, 0.02 * 2 ** min(self._failures, 10))
        self._retry_at = self._loop.time() + longest * self._owner.chance.uniform(0.5, 1.0)
        # Both lanes fail alike: one of them tells.
        told = self._failures in {3, 10} or self._failures % 100 == 0
        if told and self._lane is Lane.CONTROL:
            name = self._owner.name_of(self._uuid)
            _logger.info("cannot reach peer", peer=name, why=why, failures=self._failures)

    # --- protocol --------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._wire = cast("asyncio.Transport", transport)  # by its methods: uvloop has its own
        if self._closed:
            self._wire.abort()
            return
        self._greeting = self._loop.call_later(
            limits.sniff_seconds_max, self.give_up, "it does not answer a greeting"
        )
        self._reader = frames.FrameReader()
        identity = self._owner.host.identity
        hello = Hello(
            cluster_id=identity.cluster_id,
            log_id=self._owner.log_id,
            sender=identity.uuid,
            sender_name=identity.name,
            sender_addr=self._owner.rpc_addr,
            to=self._uuid,
            lane=self._lane.value,
        )
        self._wire.writelines([frames.PROLOGUE, *frames.encode_hello(hello)])

    def data_received(self, data: bytes) -> None:
        try:
            self._reader.feed(data)
            while (got := self._reader.next()) is not None:
                self._greet(*got)
        except FrameError as error:
            self.give_up(str(error))

    def _greet(self, type_: int, payload: memoryview) -> None:
        if type_ == Type.REFUSAL:
            self.give_up(frames.decode_refusal(payload))
        elif type_ != Type.WELCOME or self.is_open:
            raise FrameError(f"a frame of type {type_} is not expected here")
        else:
            welcome = frames.decode_welcome(payload)
            if welcome.uuid != self._uuid:
                raise FrameError(f"{welcome.uuid} answers at the address of {self._uuid}")
            if self._failures >= 3 and self._lane is Lane.CONTROL:
                _logger.info("peer reached again", peer=self._owner.name_of(self._uuid))
            self._failures = 0
            self._end_greeting()
            self.is_open = True

    def _end_greeting(self) -> None:
        if self._greeting is not None:
            self._greeting.cancel()
            self._greeting = None

    def give_up(self, why: str) -> None:
        """Ends the connection, if there is one."""
        if self._wire is not None:
            self._back_off(why)
            self._wire.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        self._wire = None
        self._end_greeting()
        self.is_open = False
        self.resume_writing()
        if self._failures == 0:
            self._back_off(str(exc or "closed by the peer"))
            self._failures = 0
        if self._lane is Lane.BULK and not self._closed:
            self._owner.driver.unreachable(self._uuid)

    def pause_writing(self) -> None:
        self._paused = self._loop.create_future()

    def resume_writing(self) -> None:
        if self._paused is not None and not self._paused.done():
            self._paused.set_result(None)
        self._paused = None

    # --- sending ---------------------------------------------------------------------------------

    async def writable(self) -> None:
        """Until the connection takes more. Raises Unavailable if it is gone."""
        while self._paused is not None:
            await self._paused
        if not self.is_open:
            raise Unavailable("the connection to the peer is lost")

    def write(self, parts: list[Buffer]) -> None:
        if self._wire is None or not self.is_open:
            raise Unavailable("the connection to the peer is lost")
        self._wire.writelines(parts)

    def close(self) -> None:
        self._closed = True
        if self._dialling is not None:
            self._dialling.cancel()
        if self._wire is not None:
            self._wire.abort()


# --- dialled by others ---------------------------------------------------------------------------


class _Inbound(asyncio.Protocol):
    """One connection that another server dialled."""

    def __init__(self, transport: Transport, connections: dict[_Inbound, None]) -> None:
        self._owner = transport
        self._connections = connections
        self._loop = asyncio.get_running_loop()
        self._wire: asyncio.Transport
        self._reader = frames.FrameReader()
        self._prologue_seen = False
        self._peer = ""
        self.heartbeats_of = ""
        """The peer, if this is the control lane that it dialled."""
        self._busy: asyncio.Task[None] | None = None
        self._greeting: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._wire = cast("asyncio.Transport", transport)  # by its methods: uvloop has its own
        self._connections[self] = None
        self._greeting = self._loop.call_later(limits.sniff_seconds_max, self._wire.abort)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002  # asyncio's
        self._connections.pop(self, None)
        if self._greeting is not None:
            self._greeting.cancel()
        if self._busy is not None:
            self._busy.cancel()
        if self.heartbeats_of:
            self._owner.disconnected(self.heartbeats_of)

    def data_received(self, data: bytes) -> None:
        if not self._prologue_seen and data:
            self._prologue_seen = True
            if data[:1] != frames.PROLOGUE:
                self._wire.abort()
                return
            data = data[1:]
        self._reader.feed(data)
        if self._busy is None:
            self._take()

    def _take(self) -> None:
        """Steps the frames that are whole, until one must wait."""
        try:
            while self._busy is None and (got := self._reader.next()) is not None:
                type_, payload = got
                if not self._peer:
                    self._wait_for(partial(self._greet, type_, payload))
                elif type_ == Type.APPEND:
                    self._append(payload)
                elif type_ == Type.INSTALL:
                    self._install(payload)
                elif type_ == Type.FETCH:
                    self._owner.host.range_wanted(self._peer, *frames.decode_fetch(payload))
                elif type_ == Type.FETCHED:
                    self._owner.host.range_received(frames.decode_fetched(payload))
                else:
                    message = frames.decode(type_, payload, self._peer, self._uuid)
                    self._owner.driver.receive(message)
        except FrameError as error:
            _logger.warning("connection of a peer ended", peer=self._peer, why=str(error))
            self._wire.abort()
        except BaseException as error:
            # A broken promise: the node must end, whatever else it does.
            self._owner.host.failed(error)
            raise

    @property
    def _uuid(self) -> str:
        return self._owner.host.identity.uuid

    def _wait_for(self, work: Callable[[], Awaitable[None]]) -> None:
        """Reads on when `work` is done. It is only called by the task: one that is cancelled before
        it begins leaves no coroutine behind that nobody awaits."""
        self._wire.pause_reading()
        self._busy = self._loop.create_task(self._run(work))

    async def _run(self, work: Callable[[], Awaitable[None]]) -> None:
        try:
            await work()
        except (FrameError, ProglogError) as error:
            _logger.warning("connection of a peer ended", peer=self._peer, why=str(error))
            self._wire.close()
            return
        except Exception as error:
            self._owner.host.failed(error)
            raise
        self._busy = None
        if not self._wire.is_closing():
            self._wire.resume_reading()
            self._take()

    # --- the beginning ---------------------------------------------------------------------------

    async def _greet(self, type_: int, payload: memoryview) -> None:
        if type_ != Type.HELLO:
            raise FrameError("a connection begins with a greeting")
        hello = frames.decode_hello(payload)
        why_not = await self._check(hello)
        if why_not:
            self._wire.writelines(frames.encode_refusal(why_not))
            raise FrameError(f"{hello.sender_name} at {hello.sender_addr}: {why_not}")
        if self._greeting is not None:
            self._greeting.cancel()
        self._reader.bytes_max = frames.FRAME_BYTES_MAX
        self._owner.hint(hello.sender, hello.sender_name, hello.sender_addr)
        identity = self._owner.host.identity
        self._wire.writelines(frames.encode_welcome(Welcome(identity.cluster_id, identity.uuid)))
        self._peer = hello.sender
        if hello.lane == Lane.CONTROL.value:
            self.heartbeats_of = hello.sender

    async def _check(self, hello: Hello) -> str:
        """Why this connection is refused; empty if it is not."""
        identity = self._owner.host.identity
        if hello.to != identity.uuid:
            return f"this is {identity.name} ({identity.uuid}), not {hello.to}"
        if hello.log_id != self._owner.log_id:
            return f"there is no log {hello.log_id!r} here"
        if not hello.cluster_id:
            return "the caller belongs to no cluster"
        if not identity.cluster_id:
            await self._owner.host.adopt_cluster(hello.cluster_id)
        elif hello.cluster_id != identity.cluster_id:
            return f"this server belongs to cluster {identity.cluster_id}"
        return ""

    # --- bulk ------------------------------------------------------------------------------------

    def _append(self, payload: memoryview) -> None:
        request, received = frames.decode_append(payload, self._peer, self._uuid)
        driver = self._owner.driver
        if received and not driver.has_room_for(received):
            self._wait_for(partial(self._append_when_room, request, received))
        else:
            driver.receive_append(request, received)

    async def _append_when_room(
        self, request: AppendRequest, received: list[ReceivedBatch]
    ) -> None:
        """Takes an append in pieces for which there can be room: the leader may put more batches
        into one message than fit into one of our segments. Each piece is an append as well."""
        driver = self._owner.driver
        most = self._owner.log.room_batches_max
        for start in range(0, len(received), most):
            piece = received[start : start + most]
            try:
                await driver.make_room_for(piece)
            except DiskFull as full:
                # Nothing is acknowledged without room for it. The leader finds out by the
                # connection that ends, and tries again.
                raise Unavailable(str(full)) from None
            before = received[start - 1].header if start else None
            driver.receive_append(
                request._replace(
                    prev_index=before.index if before else request.prev_index,
                    prev_term=before.term if before else request.prev_term,
                    last_index=piece[-1].header.index,
                ),
                piece,
            )

    def _install(self, payload: memoryview) -> None:
        request, snapshot = frames.decode_install(payload, self._peer, self._uuid)
        configuration = self._owner.host.configuration_of(snapshot.state)
        self._owner.driver.receive_snapshot(request._replace(configuration=configuration), snapshot)

    def close(self) -> None:
        self._wire.abort()
