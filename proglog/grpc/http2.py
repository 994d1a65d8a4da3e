"""HTTP/2 as both ends of a gRPC connection use it: grpclib's classes, bounded and copying less.

grpclib is right but trusting and generous with copies. Changed here, by subclassing:

* a server takes the frames of its connections a share at a time (`proglog.aio.turns`), and does not
  read a peer whose frames wait, or that does not read what we answer;
* DATA goes out without being copied, and what is written in one turn goes out together;
* a peer's mistake ends its connection with a GOAWAY that names it, and one line in the log.

`proglog.grpc.frames` has h2's side of this.
"""

from __future__ import annotations

import asyncio
import logging
import struct
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, cast

from grpclib.config import Configuration
from grpclib.encoding.base import GRPC_CONTENT_TYPE
from grpclib.protocol import AbstractHandler, EventsProcessor, H2Protocol
from grpclib.protocol import Connection as GrpclibConnection
from grpclib.protocol import Stream as GrpclibStream
from grpclib.utils import Wrapper
from h2.config import H2Configuration
from h2.connection import ConnectionInputs
from h2.errors import ErrorCodes
from h2.events import Event, WindowUpdated
from h2.exceptions import DenialOfServiceError, ProtocolError
from h2.settings import SettingCodes
from h2.stream import StreamInputs
from hyperframe.frame import DataFrame, HeadersFrame

from proglog import limits
from proglog.aio.turns import Turns
from proglog.batch import Buffer
from proglog.grpc.budgets import Budgets, Pool, Seldom
from proglog.grpc.frames import Http2Connection
from proglog.grpc.outbox import Outbox
from proglog.grpc.receiving import ReceiveBuffer

_FRAME_HEADER = struct.Struct(">HBBBL")
_END_STREAM, _END_HEADERS = 0x1, 0x4
_MESSAGE_PREFIX_BYTES = 5
_SMALL_FRAME_BYTES = 16 * 1024
"""Any peer takes a frame of this size."""

ANSWER_HEADERS = ((":status", "200"), ("content-type", GRPC_CONTENT_TYPE + "+proto"))
ANSWER_TRAILERS = (("grpc-status", "0"),)


class Stream(GrpclibStream):
    """One HTTP/2 stream."""

    def init_stream(self, stream_id: int, connection: GrpclibConnection) -> None:
        super().init_stream(stream_id, connection)
        own = cast("Connection", connection)
        self.buffer: Any = ReceiveBuffer(partial(connection.ack, stream_id), own.hold)

    async def send_data(self, data: Buffer, end_stream: bool = False) -> None:
        await self.send_parts((data,), end_stream=end_stream)

    async def send_parts(self, parts: Sequence[Buffer], *, end_stream: bool = False) -> None:
        """Sends the bytes of some buffers, which must not change until they are on their way."""
        waiting = deque(memoryview(part) for part in parts if len(part))
        left = sum(map(len, waiting))
        connection = cast("Connection", self.connection)
        connection.hold(left)
        try:
            while left:
                size = min(left, await self._room())
                left -= size
                connection.hold(-size)
                self._send_frame(_take(waiting, size), size, end_stream=end_stream and not left)
        finally:
            connection.hold(-left)
        if end_stream and not parts:
            await self.end()

    async def _room(self) -> int:
        """Waits until something can be sent, and says how many bytes fit into one frame."""
        while True:
            await self.connection.write_ready.wait()
            state = cast("Http2Connection", self._h2_connection)
            window = state.local_flow_control_window(cast("int", self.id))
            if window > 0:
                return min(window, state.outbound_frame_bytes_max)
            self.window_updated.clear()
            state.blocked[self] = None
            try:
                await self.window_updated.wait()
            finally:
                state.blocked.pop(self, None)

    def _send_frame(self, parts: list[memoryview], size: int, *, end_stream: bool) -> None:
        # What h2's `send_data` does, except that it would copy the data five times.
        state = cast("Http2Connection", self._h2_connection)
        stream = state._get_stream_by_id(self.id)
        state.state_machine.process_input(ConnectionInputs.SEND_DATA)
        stream.state_machine.process_input(StreamInputs.SEND_DATA)
        if end_stream:
            stream.state_machine.process_input(StreamInputs.SEND_END_STREAM)
        state.outbound_flow_control_window -= size
        stream.outbound_flow_control_window -= size
        assert stream.outbound_flow_control_window >= 0, "more was sent than the peer's window"
        flags = _END_STREAM if end_stream else 0
        header = _frame(DataFrame.type, flags, cast("int", self.id), size)
        state.data_was_sent()
        self.connection.flush()
        self._transport.writelines([header, *parts])


def _frame(kind: int, flags: int, stream_id: int, size: int) -> bytes:
    return _FRAME_HEADER.pack(size >> 8, size & 0xFF, kind, flags, stream_id)


def _take(parts: deque[memoryview], size: int) -> list[memoryview]:
    """Removes `size` bytes from the front of some buffers."""
    taken = []
    while size:
        part = parts.popleft()
        if len(part) > size:
            parts.appendleft(part[size:])
            part = part[:size]
        taken.append(part)
        size -= len(part)
    return taken


_ANSWER_STEPS = (
    StreamInputs.SEND_HEADERS,
    StreamInputs.SEND_DATA,
    StreamInputs.SEND_HEADERS,
    StreamInputs.SEND_END_STREAM,
)


class Connection(GrpclibConnection):
    """One connection: h2's state and the transport, an Outbox."""

    def create_stream(
        self, *, stream_id: int | None = None, wrapper: Wrapper | None = None
    ) -> Stream:
        return Stream(self, self._connection, self._transport, stream_id=stream_id, wrapper=wrapper)

    pool: Pool | None = None
    """Where what the peer makes us hold is counted."""
    held_bytes = 0
    give_way: Callable[[], None]
    register: Callable[[GrpclibStream], Callable[[], None]]
    """Tells a stream of what comes for it, until what this answers is called."""

    @property
    def state(self) -> Http2Connection:
        """h2's side of it."""
        return cast("Http2Connection", self._connection)

    def hold(self, size: int) -> None:
        """So many bytes more, or less, are held for the peer."""
        if self.pool is not None and size > 0:
            self.pool.hold(self, size)
        elif self.pool is not None:
            self.pool.release(self, -size)

    def answer(self, stream_id: int, message: bytes) -> bool:
        """Sends all of a unary answer: headers, one small message, status. False where the peer has
        no room for it now; nothing is sent then, nor where the call is over."""
        state = self.state
        stream = state.streams.get(stream_id)
        if stream is None or stream.closed or self.is_closing():
            return True
        size = _MESSAGE_PREFIX_BYTES + len(message)
        room = min(state.outbound_flow_control_window, stream.outbound_flow_control_window)
        if size > min(room, _SMALL_FRAME_BYTES):
            return False
        for step in _ANSWER_STEPS:
            stream.state_machine.process_input(step)
        state.outbound_flow_control_window -= size
        stream.outbound_flow_control_window -= size
        state.data_was_sent()
        head = state.encoder.encode_known(ANSWER_HEADERS)
        tail = state.encoder.encode_known(ANSWER_TRAILERS)
        self.flush()
        frames = (
            _frame(HeadersFrame.type, _END_HEADERS, stream_id, len(head)),
            head,
            _frame(DataFrame.type, 0, stream_id, size),
            len(message).to_bytes(_MESSAGE_PREFIX_BYTES, "big"),
            message,
            _frame(HeadersFrame.type, _END_HEADERS | _END_STREAM, stream_id, len(tail)),
            tail,
        )
        self._transport.write(b"".join(frames))
        return True

    def answer_headers(self, stream_id: int, headers: Sequence[tuple[str, str]]) -> None:
        """Sends an answer that is nothing but headers, unless the call is over."""
        state = self.state
        stream = state.streams.get(stream_id)
        if stream is None or stream.closed or self.is_closing():
            return
        for step in (StreamInputs.SEND_HEADERS, StreamInputs.SEND_END_STREAM):
            stream.state_machine.process_input(step)
        block = state.encoder.encode(headers)
        assert len(block) <= _SMALL_FRAME_BYTES, "what an error says is bounded"
        self.flush()
        flags = _END_HEADERS | _END_STREAM
        self._transport.write(_frame(HeadersFrame.type, flags, stream_id, len(block)) + block)

    def flush(self) -> None:
        if not self._connection._data_to_send:
            return
        data = self._connection.data_to_send()
        if not self.is_closing():
            self._transport.write(data)

    def cut(self) -> None:
        """Sends what is due if the peer takes it, and closes."""
        self.flush()
        if not self.write_ready.is_set() and not self.is_closing():
            self._transport.abort()


class Processor(EventsProcessor):
    """Hands the events of one connection to its streams."""

    def process(self, event: Event) -> None:
        # Of no interest, or the connection was closed by an event before: grpclib drops the table.
        handle = getattr(self, "processors", {}).get(type(event))
        if handle is not None:
            handle(event)

    def register(self, stream: GrpclibStream) -> Callable[[], None]:
        release = super().register(stream)

        def release_all() -> None:
            release()
            stream.buffer.drop()  # type: ignore[attr-defined]  # ours, see Stream.init_stream

        return release_all

    def process_window_updated(self, event: WindowUpdated) -> None:
        if event.stream_id:
            super().process_window_updated(event)
            return
        for stream in cast("Connection", self.connection).state.blocked:
            stream.window_updated.set()


def configuration(*, client_side: bool) -> H2Configuration:
    """h2's settings for one end. Its checks of headers are off, as in grpclib: what a call needs of
    them is checked by the call. Any bytes may stand in them."""
    return H2Configuration(
        client_side=client_side,
        header_encoding="latin-1",
        validate_inbound_headers=False,
        validate_outbound_headers=False,
        normalize_inbound_headers=False,
        normalize_outbound_headers=False,
    )


class Protocol(H2Protocol):
    """The asyncio protocol of one connection, of a client or a server (`h2_config.client_side`)."""

    def __init__(
        self,
        handler: AbstractHandler,
        config: Configuration,
        h2_config: H2Configuration,
        turns: Turns | None = None,
        budgets: Budgets | None = None,
        seldom: Seldom | None = None,
    ) -> None:
        """With `turns` frames are taken a share at a time; else at once, all that have come. What a
        peer makes us hold is counted by `budgets`, and what it does wrong told by `seldom`."""
        super().__init__(handler, config, h2_config)
        self._budgets = budgets
        self._seldom = seldom or Seldom(asyncio.get_running_loop().time, 0)
        self._turns = turns
        self._in_line = False
        self._pauses: set[str] = set()
        """Why the peer is not read now."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # By its methods: uvloop has a class of its own.
        transport = cast("asyncio.Transport", transport)
        transport.set_write_buffer_limits(high=limits.http2_write_buffer_bytes_max)
        state = Http2Connection(self.h2_config, asyncio.get_running_loop().time)
        state.initiate_connection()
        state.update_settings(
            {
                SettingCodes.INITIAL_WINDOW_SIZE: limits.http2_stream_window_bytes,
                SettingCodes.MAX_FRAME_SIZE: limits.http2_frame_bytes_max,
                SettingCodes.MAX_HEADER_LIST_SIZE: limits.http2_header_list_bytes_max,
                SettingCodes.MAX_CONCURRENT_STREAMS: limits.streams_per_connection_max,
            }
        )
        state.increment_flow_control_window(
            limits.http2_connection_window_bytes - state.inbound_flow_control_window
        )
        own = self.connection = Connection(state, Outbox(transport), config=self.config)
        own.give_way = self._give_way
        if self._budgets is not None:
            own.pool = self._budgets.pool
        self.connection.flush()
        self.connection.initialize()
        self.processor = self.new_processor()

    def new_processor(self) -> Processor:
        """What the events of this connection are handed to."""
        return Processor(self.handler, self.connection)

    @property
    def state(self) -> Http2Connection:
        """h2's side of the connection."""
        return cast("Connection", self.connection).state

    def data_received(self, data: bytes) -> None:
        if self.connection.is_closing():
            return
        try:
            self.state.add(data)
        except ProtocolError as error:
            self._cut(error)
            return
        if self._turns is None:
            self._process()
        elif not self._in_line:
            self._in_line = True
            self._turns.enter(self)

    def step(self, units: int) -> tuple[int, bool]:
        """Takes frames that have come, for about so many units. See `proglog.aio.turns`."""
        done = 0
        more = not self.connection.is_closing()
        if more:
            try:
                done = self._process(units)
            except BaseException:
                self.connection._transport.abort()  # nobody would take the rest of its frames
                raise
            more = self.state.incoming_buffer.has_more and not self.connection.is_closing()
        self._in_line = more
        if more:
            # libuv would go on reading within the turn, as much as it gets.
            self.pause("frames")
        else:
            self.resume("frames")
        return done, more

    def _process(self, *units: int) -> int:
        try:
            events, done = self.state.process(*units)
        except ProtocolError as error:
            self._cut(error)
            return 1
        for event in events:
            self.processor.process(event)
        self.connection.flush()
        return done

    def _cut(self, error: ProtocolError) -> None:
        peer = self.connection._transport.get_extra_info("peername")
        self._seldom.tell(logging.INFO, "an HTTP/2 connection ends", f"{peer}: {error}")
        if self._budgets is not None and isinstance(error, DenialOfServiceError):
            self._budgets.count(self.state.limit_reached)
        connection = cast("Connection", self.connection)
        connection.cut()
        self.processor.close(f"HTTP/2 error: {error}")

    def _give_way(self) -> None:
        """All clients together make the node hold too much, and this one most of it."""
        if not self.connection.is_closing():
            self.state._terminate_connection(ErrorCodes.ENHANCE_YOUR_CALM)
            self._cut(ProtocolError("it makes the node hold too much"))

    def connection_lost(self, exc: BaseException | None) -> None:
        super().connection_lost(exc)
        if self._budgets is not None:
            self._budgets.pool.leave(cast("Connection", self.connection))

    def pause(self, reason: str) -> None:
        """Does not read the peer until each reason has ended."""
        if not self._pauses and not self.connection.is_closing():
            self.connection._transport.pause_reading()
        self._pauses.add(reason)

    def resume(self, reason: str) -> None:
        """Ends one reason."""
        if reason not in self._pauses:
            return
        self._pauses.discard(reason)
        if not self._pauses and not self.connection.is_closing():
            self.connection._transport.resume_reading()

    def pause_writing(self) -> None:
        super().pause_writing()
        # Frames of the peer make us write answers: one that does not read them is not read itself.
        # Not on the client as well, or each end could wait for the other.
        if not self.h2_config.client_side:
            self.pause("answers")

    def resume_writing(self) -> None:
        super().resume_writing()
        self.resume("answers")
