"""What other servers dial. Backpressure is not to read."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from functools import partial
from typing import TYPE_CHECKING, cast

import structlog

from proglog import limits
from proglog.errors import DiskFull, ProglogError, Unavailable, UnknownFormat
from proglog.raft import frames
from proglog.raft.driver import ReceivedBatch
from proglog.raft.frames import FrameError, Hello, Lane, Type, Welcome
from proglog.raft.messages import AppendRequest

if TYPE_CHECKING:
    from proglog.raft.transport import Transport

_logger = structlog.get_logger("raft")


class Inbound(asyncio.Protocol):
    """One connection that another server dialled."""

    def __init__(self, transport: Transport, connections: dict[Inbound, None]) -> None:
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
        except UnknownFormat as error:
            self._end(error)
        except BaseException as error:
            # A broken promise: the node must end, whatever else it does.
            self._owner.host.failed(error)
            raise

    def _end(self, error: UnknownFormat) -> None:
        """The leader sends what a newer version is needed for: this node cannot follow it."""
        self._owner.host.failed(error)
        self._wire.abort()

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
        except UnknownFormat as error:
            self._end(error)
            return
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
            self._owner.refused(hello, why_not)
            self._wire.writelines(frames.encode_refusal(why_not))
            self._wire.close()
            return
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
