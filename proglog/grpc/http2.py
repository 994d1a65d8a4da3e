"""HTTP/2 as both ends of a gRPC connection use it: grpclib's classes, bounded and copying less.

h2 and grpclib are right but trusting and generous with copies. Changed here, by subclassing:

* frames of unknown type are ignored (RFC 9113, 5.5), and oversized ones refused by their header;
* on a server, resets and other frames that cost more than they carry are bounded in number, and a
  peer that does not read what we answer is not read either;
* DATA goes out without being copied, and comes in with two copies instead of five (h2 also renders
  each frame received as hexadecimal text, for a log that is off);
* headers go out in time that grows with their length, not with its square;
* a peer's mistake ends its connection with a GOAWAY that names it, and one line in the log.

RFC 9113; CVE-2019-9512 and following, CVE-2023-44487, CVE-2024-27316, CVE-2025-8671.
"""

from __future__ import annotations

import asyncio
import copy
import logging
import struct
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, cast

import h2.frame_buffer
import hpack
from grpclib.protocol import Connection as GrpclibConnection
from grpclib.protocol import EventsProcessor, H2Protocol
from grpclib.protocol import Stream as GrpclibStream
from grpclib.utils import Wrapper
from h2.config import H2Configuration
from h2.connection import ConnectionInputs, H2Connection
from h2.events import Event, StreamReset
from h2.exceptions import DenialOfServiceError, FrameTooLargeError, ProtocolError
from h2.settings import SettingCodes
from h2.stream import StreamInputs
from hyperframe.frame import (
    DataFrame,
    ExtensionFrame,
    Frame,
    PingFrame,
    PriorityFrame,
    RstStreamFrame,
    SettingsFrame,
)

from proglog import limits
from proglog.batch import Buffer
from proglog.wire import BadMessage

log = logging.getLogger(__name__)

_FRAME_HEADER = struct.Struct(">HBBBL")
_END_STREAM, _PADDED = 0x1, 0x8


class RateBound:
    """Lets a number of events pass a second, with as many at once after a quiet second."""

    def __init__(self, per_second_max: float, clock: Callable[[], float]) -> None:
        self._per_second_max = per_second_max
        self._clock = clock
        self._left = per_second_max
        self._at = clock()

    def exceeded(self) -> bool:
        """Counts one event and says whether it is one too many."""
        now = self._clock()
        gained = (now - self._at) * self._per_second_max
        self._left = min(self._per_second_max, self._left + gained) - 1
        self._at = now
        return self._left < 0


# --- h2 ------------------------------------------------------------------------------------------


class _Data(DataFrame):
    def __repr__(self) -> str:
        # h2 renders every frame for its trace log; the inherited text is the whole of the data.
        return "DATA"


class FrameBuffer(h2.frame_buffer.FrameBuffer):
    """Cuts received bytes into frames."""

    def __next__(self) -> Frame:
        data = self._data
        if len(data) < 9:
            raise StopIteration
        length = int.from_bytes(data[:3], "big")
        # h2 would first wait for all of a frame, up to 16 MiB, and then find it too long.
        # Not the size of the settings in force: our own larger one may be acknowledged by the very
        # bytes that this frame came with.
        if length > limits.http2_frame_bytes_max:
            raise FrameTooLargeError(f"a frame of {length} bytes")
        if data[3] != DataFrame.type and length > limits.http2_header_list_bytes_max:
            raise FrameTooLargeError(f"a frame of {length} bytes that is not DATA")
        stream_id = int.from_bytes(data[5:9], "big") & 0x7FFFFFFF
        plain = data[3] == DataFrame.type and not data[4] & _PADDED and stream_id
        if not plain or self._headers_buffer:
            return super().__next__()
        if len(data) < 9 + length:
            raise StopIteration
        frame = _Data(stream_id)
        if data[4] & _END_STREAM:
            frame.flags.add("END_STREAM")
        with memoryview(data) as view:
            frame.data = bytes(view[9 : 9 + length])
        frame.body_len = length
        del data[: 9 + length]
        return frame

    def _update_header_buffer(self, f: Frame | None) -> Frame | None:
        frame = super()._update_header_buffer(f)
        # Up to 64 frames of up to the maximum frame size could otherwise gather here.
        waiting = sum(len(part.data) for part in self._headers_buffer)
        if waiting > limits.http2_header_list_bytes_max:
            raise DenialOfServiceError("a header block is too long")
        return frame


class _Encoder(hpack.Encoder):
    """Encodes headers without Huffman's code, for which hpack takes time by the square of the
    length: 50 ms for 16 KiB, an hour for 4 MiB."""

    def encode(self, headers: Any, huffman: bool = False) -> bytes:
        return super().encode(headers, huffman)


class Http2Connection(H2Connection):
    """The HTTP/2 state of one connection."""

    def __init__(self, config: H2Configuration, clock: Callable[[], float]) -> None:
        super().__init__(config)
        self.encoder = _Encoder()
        self.incoming_buffer = FrameBuffer(server=not config.client_side)
        self._frame_dispatch_table[_Data] = self._receive_data_frame
        self.decoder.max_header_list_size = limits.http2_header_list_bytes_max
        # A server answers each refused call with a reset, so a client does not count them.
        self._resets = RateBound(limits.resets_per_second_max, clock)
        self._idle_frames = RateBound(limits.http2_idle_frames_per_second_max, clock)

    def _receive_frame(self, frame: Frame) -> list[Event]:
        if self.config.client_side:
            return super()._receive_frame(frame)
        if _is_idle(frame) and self._idle_frames.exceeded():
            raise DenialOfServiceError("too many frames that carry nothing")
        events = super()._receive_frame(frame)
        # Resets by the peer, and those that it makes us send by breaking the rules of a stream.
        reset = isinstance(frame, RstStreamFrame) or any(isinstance(e, StreamReset) for e in events)
        if reset and self._resets.exceeded():
            raise DenialOfServiceError("too many streams were reset")
        return events


def _is_idle(frame: Frame) -> bool:
    """Whether a frame costs an answer or a turn and moves no call forward."""
    if isinstance(frame, DataFrame):
        return not frame.data and "END_STREAM" not in frame.flags
    return isinstance(frame, PingFrame | SettingsFrame | PriorityFrame | ExtensionFrame)


# --- grpclib -------------------------------------------------------------------------------------


class ReceiveBuffer:
    """DATA of one stream, received but not read. Bounded by the stream's window.

    `acknowledge` gives that many bytes back to the peer's window: once some have been read, or
    earlier where a large message waits for its rest, which the window could keep from coming.
    """

    def __init__(self, acknowledge: Callable[[int], None]) -> None:
        self._acknowledge = acknowledge
        self._parts: deque[memoryview] = deque()
        self._unacknowledged = 0
        self._ended = False
        self._error: Exception | None = None
        self._waiter: asyncio.Future[None] | None = None
        self.size = 0
        """Bytes that can be read without waiting."""

    def add(self, data: bytes, flow_controlled_size: int) -> None:
        if len(data) < flow_controlled_size:
            self._acknowledge(flow_controlled_size - len(data))  # padding
        if data:
            self._parts.append(memoryview(data))
            self.size += len(data)
            self._unacknowledged += len(data)
            self._wake()

    def eof(self) -> None:
        self._ended = True
        self._wake()

    def fail(self, error: Exception) -> None:
        """What is read from here on raises `error`, whatever has been received."""
        self._error = error
        self._wake()

    async def read(self, size: int) -> Buffer:
        """Exactly `size` bytes; none at the end. Raises BadMessage if it ends in between."""
        while self._error is None and self.size < size and not self._ended:
            if size > limits.http2_acknowledge_bytes_min:
                self._acknowledge_all_but(0)
            await self._more()
        if self._error is not None:
            raise copy.copy(self._error)  # the same one goes to all calls of a node that stops
        if self.size >= size:
            return self.take(size)
        if self.size:
            raise BadMessage("the stream ended within a message")
        return b""

    def peek(self, size: int) -> bytes:
        """Up to `size` of the next bytes, which stay unread."""
        found = b""
        for part in self._parts:
            found += part[: size - len(found)]
            if len(found) == size:
                break
        return found

    def take(self, size: int) -> Buffer:
        """Exactly `size` bytes, which must be there."""
        assert size <= self.size, "only what has been received can be taken"
        parts: list[memoryview] = []
        missing = size
        while missing:
            part = self._parts.popleft()
            if len(part) > missing:
                self._parts.appendleft(part[missing:])
                part = part[:missing]
            parts.append(part)
            missing -= len(part)
        self.size -= size
        self._acknowledge_all_but(self.size)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def unacked_size(self) -> int:
        """Bytes to give back to the window when nobody reads any more."""
        size, self._unacknowledged = self._unacknowledged, 0
        return size

    def _acknowledge_all_but(self, kept: int) -> None:
        if self._unacknowledged - kept >= limits.http2_acknowledge_bytes_min:
            size, self._unacknowledged = self._unacknowledged - kept, kept
            self._acknowledge(size)

    async def _more(self) -> None:
        assert self._waiter is None, "one task reads a stream"
        self._waiter = asyncio.get_running_loop().create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


class Stream(GrpclibStream):
    """One HTTP/2 stream."""

    def init_stream(self, stream_id: int, connection: GrpclibConnection) -> None:
        super().init_stream(stream_id, connection)
        self.buffer: Any = ReceiveBuffer(partial(connection.ack, stream_id))

    async def send_data(self, data: Buffer, end_stream: bool = False) -> None:
        await self.send_parts((data,), end_stream=end_stream)

    async def send_parts(self, parts: Sequence[Buffer], *, end_stream: bool = False) -> None:
        """Sends the bytes of some buffers, which must not change until they are on their way."""
        waiting = deque(memoryview(part) for part in parts if len(part))
        left = sum(map(len, waiting))
        while left:
            size = min(left, await self._room())
            left -= size
            self._send_frame(_take(waiting, size), size, end_stream=end_stream and not left)
        if end_stream and not parts:
            await self.end()

    async def _room(self) -> int:
        """Waits until something can be sent, and says how many bytes fit into one frame."""
        while True:
            await self.connection.write_ready.wait()
            window = self._h2_connection.local_flow_control_window(cast("int", self.id))
            if window > 0:
                return min(window, self._h2_connection.max_outbound_frame_size)
            self.window_updated.clear()
            await self.window_updated.wait()

    def _send_frame(self, parts: list[memoryview], size: int, *, end_stream: bool) -> None:
        # What h2's `send_data` does, except that it would copy the data five times.
        state = self._h2_connection
        stream = state._get_stream_by_id(self.id)
        state.state_machine.process_input(ConnectionInputs.SEND_DATA)
        stream.state_machine.process_input(StreamInputs.SEND_DATA)
        if end_stream:
            stream.state_machine.process_input(StreamInputs.SEND_END_STREAM)
        state.outbound_flow_control_window -= size
        stream.outbound_flow_control_window -= size
        assert stream.outbound_flow_control_window >= 0, "more was sent than the peer's window"
        flags = _END_STREAM if end_stream else 0
        header = _FRAME_HEADER.pack(size >> 8, size & 0xFF, DataFrame.type, flags, self.id)
        self.connection.flush()
        self._transport.writelines([header, *parts])


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


class Connection(GrpclibConnection):
    """One connection: h2's state and the transport."""

    def create_stream(
        self, *, stream_id: int | None = None, wrapper: Wrapper | None = None
    ) -> Stream:
        return Stream(self, self._connection, self._transport, stream_id=stream_id, wrapper=wrapper)

    def flush(self) -> None:
        data = self._connection.data_to_send()
        if data and not self.is_closing():
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
        self.connection = Connection(state, transport, config=self.config)
        self.connection.flush()
        self.connection.initialize()
        self.processor = Processor(self.handler, self.connection)

    def data_received(self, data: bytes) -> None:
        if self.connection.is_closing():
            return
        try:
            events = self.connection.feed(data)
        except ProtocolError as error:
            self._cut(error)
            return
        for event in events:
            self.processor.process(event)
        self.connection.flush()

    def _cut(self, error: ProtocolError) -> None:
        transport = self.connection._transport
        log.info("HTTP/2 connection with %s ends: %s", transport.get_extra_info("peername"), error)
        connection = cast("Connection", self.connection)
        connection.cut()
        self.processor.close(f"HTTP/2 error: {error}")

    def pause_writing(self) -> None:
        super().pause_writing()
        # Frames of the peer make us write answers: one that does not read them is not read itself.
        # Not on the client as well, or each end could wait for the other.
        if not self.h2_config.client_side and not self.connection.is_closing():
            self.connection._transport.pause_reading()

    def resume_writing(self) -> None:
        super().resume_writing()
        if not self.h2_config.client_side and not self.connection.is_closing():
            self.connection._transport.resume_reading()
