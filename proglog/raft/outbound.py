"""What this server dials: two connections to each other one.

Sending never waits: what cannot be sent is dropped, and the core is told where it must know
(`unreachable`).
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING, cast

import structlog

from proglog import limits
from proglog.batch import Buffer
from proglog.errors import ProglogError, RangeCorrupt, Unavailable, reason_of
from proglog.raft import frames
from proglog.raft.frames import FrameError, Hello, Lane, Type
from proglog.raft.messages import AppendRequest, InstallSnapshot, Message

if TYPE_CHECKING:
    from proglog.raft.transport import Transport

_logger = structlog.get_logger("raft")


class Peer:
    """Both lanes to one server."""

    def __init__(self, transport: Transport, uuid: str) -> None:
        self._transport = transport
        self.uuid = uuid
        self._control = Outbound(transport, uuid, Lane.CONTROL)
        self._bulk = Outbound(transport, uuid, Lane.BULK)
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
        if self._feeding is None and self._is_sent_at_once(message):
            return
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

    def _is_sent_at_once(self, message: AppendRequest | InstallSnapshot) -> bool:
        """What is in memory, as all is for a follower that keeps up, needs no task."""
        if not isinstance(message, AppendRequest) or self._bulk.is_blocked:
            return False
        if not self._is_of_this_term(message):
            return False
        run = self._transport.log.read_newest(
            message.prev_index + 1, message.last_index, limits.batch_bytes_max
        )
        if run is None or len(run.headers) < message.last_index - message.prev_index:
            return False
        self._bulk.write(frames.encode_append(message, [run.data]))
        return True

    async def _feed(self) -> None:
        """Attaches the batches and writes, as fast as the connection takes them."""
        try:
            while self._queue:
                await self._bulk.writable()
                message = self._queue.popleft()
                if isinstance(message, AppendRequest):
                    parts = await self._batches_of(message)
                    if not self._is_of_this_term(message):
                        raise Unavailable("the term it was meant for is over")
                    self._bulk.write(frames.encode_append(message, parts))
                else:
                    self._bulk.write(await self._snapshot_for(message))
        except ProglogError as error:
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

    async def _snapshot_for(self, message: InstallSnapshot) -> list[Buffer]:
        """The newest snapshot is sent, whichever was the base when the core asked for one: it is
        committed too, and what follows it is all in the log."""
        snapshot = await self._transport.log.read_snapshot()
        tip = snapshot.tip
        assert tip.index >= message.index, "a snapshot at the base is kept until there is a newer"
        newest = message._replace(index=tip.index, snapshot_term=tip.term)
        return frames.encode_install(newest, snapshot)

    async def _batches_of(self, request: AppendRequest) -> list[Buffer]:
        log = self._transport.log
        parts: list[Buffer] = []
        index = request.prev_index + 1
        while index <= request.last_index:
            if not log.first_index <= index or request.last_index > log.tip.index:
                raise Unavailable("the log was cut or compacted since")
            run = await log.read(index, request.last_index, limits.batch_bytes_max)
            parts.append(run.data)
            index = run.headers[-1].index + 1
        return parts

    def _is_of_this_term(self, request: AppendRequest) -> bool:
        """Within a term the log of its leader only grows, so what is read from it are the batches
        that were meant. In a later one others may stand there, which do not follow `prev_term`."""
        return self._transport.driver.term == request.term

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


class Outbound(asyncio.Protocol):
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
            why = reason_of(error) if isinstance(error, OSError) else str(error)
            self._back_off(why or f"no connection in {limits.dial_seconds_max:g} s")
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
