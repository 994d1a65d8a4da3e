"""Frames of one HTTP/2 connection: cut, charged, bounded; h2's state behind them.

h2 is right but trusting. Changed here, by subclassing:

* frames of unknown type are ignored (RFC 9113, 5.5), and oversized ones refused by their header;
* on a server each frame costs units of the node's budget of a turn (`proglog.aio.turns`), resets
  and other frames that cost more than they carry are bounded in number, and so are CONTINUATIONs;
* what the peer says of its own limits is clamped where it would cost us;
* DATA comes in with two copies instead of five (h2 also renders each frame received as hexadecimal
  text, for a log that is off).

RFC 9113; CVE-2019-9512 and following, CVE-2023-44487, CVE-2024-27316, CVE-2025-8671.
"""

from __future__ import annotations

from collections.abc import Callable, Sized
from typing import Any, cast

import h2.frame_buffer
from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.errors import ErrorCodes
from h2.events import Event, StreamReset
from h2.exceptions import (
    DenialOfServiceError,
    FrameTooLargeError,
    ProtocolError,
    StreamClosedError,
    StreamIDTooLowError,
)
from hyperframe.frame import (
    ContinuationFrame,
    DataFrame,
    ExtensionFrame,
    Frame,
    HeadersFrame,
    PingFrame,
    PriorityFrame,
    RstStreamFrame,
    SettingsFrame,
    WindowUpdateFrame,
)

from proglog import limits
from proglog.grpc.headers import AnswerEncoder, Decoder, RequestEncoder

_PADDED = 0x8

# What a frame costs in units of about 8 us, beside what it carries.
_UNITS = {
    PingFrame.type: 2,
    ContinuationFrame.type: 2,
    SettingsFrame.type: 3,
    PriorityFrame.type: 3,
    HeadersFrame.type: 8,
}
_BYTES_A_UNIT = 16 * 1024
_STREAMS_A_UNIT = 8
"""All streams are looked at for a change of SETTINGS, all that wait for a window of them all."""
_ENDLESS = 2**62
_UNACKNOWLEDGED_MAX = 4 * limits.http2_idle_frames_per_second_max
"""WINDOW_UPDATEs of DATA sent that a peer may still send all at once."""


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


class _Data(DataFrame):
    def __repr__(self) -> str:
        # The inherited text is the whole of the data.
        return "DATA"


class FrameBuffer(h2.frame_buffer.FrameBuffer):
    """Cuts received bytes into frames, as far as its units reach."""

    def __init__(self, *, server: bool, streams: Sized, blocked: Sized) -> None:
        """`streams` and `blocked` are the streams that some frames make the connection look at."""
        super().__init__(server=server)
        self.units = _ENDLESS
        self.has_more = False
        """Whether it stopped for want of units."""
        self._streams = streams
        self._blocked = blocked

    @property
    def is_begun(self) -> bool:
        """Whether the whole preface has come."""
        return not self._preamble_len

    @property
    def size(self) -> int:
        """Bytes that wait to be cut."""
        return len(self._data)

    def __next__(self) -> Frame:
        data = self._data
        if len(data) < 9:
            raise StopIteration
        length = int.from_bytes(data[:3], "big")
        kind = data[3]
        # h2 would first wait for all of a frame, up to 16 MiB, and then find it too long.
        # Not the size of the settings in force: our own larger one may be acknowledged by the very
        # bytes that this frame came with.
        if length > limits.http2_frame_bytes_max:
            raise FrameTooLargeError(f"a frame of {length} bytes")
        if kind != DataFrame.type and length > limits.http2_header_list_bytes_max:
            raise FrameTooLargeError(f"a frame of {length} bytes that is not DATA")
        if len(data) < 9 + length:
            raise StopIteration
        if self.units <= 0:
            self.has_more = True
            raise StopIteration
        stream_id = int.from_bytes(data[5:9], "big") & 0x7FFFFFFF
        self.units -= self._cost(kind, length, stream_id)
        plain = kind == DataFrame.type and not data[4] & _PADDED and stream_id
        if not plain or self._headers_buffer:
            return super().__next__()
        frame = _Data(stream_id)
        if data[4] & 0x1:
            frame.flags.add("END_STREAM")
        with memoryview(data) as view:
            frame.data = bytes(view[9 : 9 + length])
        frame.body_len = length
        del data[: 9 + length]
        return frame

    def _cost(self, kind: int, length: int, stream_id: int) -> int:
        units = _UNITS.get(kind, 1) + length // _BYTES_A_UNIT
        if kind == SettingsFrame.type:
            units += len(self._streams) // _STREAMS_A_UNIT
        elif kind == WindowUpdateFrame.type and not stream_id:
            units += len(self._blocked) // _STREAMS_A_UNIT
        return units

    def _update_header_buffer(self, f: Frame | None) -> Frame | None:
        frame = super()._update_header_buffer(f)
        # Up to 64 frames of up to the maximum frame size could otherwise gather here.
        waiting = sum(len(part.data) for part in self._headers_buffer)
        if (
            waiting > limits.http2_header_list_bytes_max
            or len(self._headers_buffer) > limits.http2_continuations_max
        ):
            raise DenialOfServiceError("a header block is too long")
        return frame


class Http2Connection(H2Connection):
    """The HTTP/2 state of one connection."""

    def __init__(self, config: H2Configuration, clock: Callable[[], float]) -> None:
        super().__init__(config)
        self.encoder: Any = RequestEncoder() if config.client_side else AnswerEncoder()
        self.blocked: dict[Any, None] = {}
        """Streams that wait for room in the peer's window."""
        self.incoming_buffer: FrameBuffer = FrameBuffer(
            server=not config.client_side, streams=self.streams, blocked=self.blocked
        )
        self._frame_dispatch_table[_Data] = self._receive_data_frame
        self.decoder = Decoder()
        self.decoder.max_header_list_size = limits.http2_header_list_bytes_max
        # A server answers each refused call with a reset, so a client does not count them.
        self._resets = RateBound(limits.resets_per_second_max, clock)
        self._idle_frames = RateBound(limits.http2_idle_frames_per_second_max, clock)
        self._streams_swept = 0
        self._frames_to_acknowledge = 0
        self._has_settings = False
        self.limit_reached = "headers"
        """Which limit it was, where one ends the connection."""

    def add(self, data: bytes) -> None:
        """Takes received bytes. Raises ProtocolError where they are not HTTP/2's preface."""
        try:
            self.incoming_buffer.add_data(data)
        except ProtocolError as error:
            self._terminate_connection(error.error_code)
            raise

    def process(self, units: int = _ENDLESS) -> tuple[list[Event], int]:
        """What the frames that have come mean, as far as so many units reach, and the units that it
        took; `incoming_buffer.has_more` says whether frames are left. Raises ProtocolError."""
        buffer = self.incoming_buffer
        buffer.units, buffer.has_more = units, False
        events = self.receive_data(b"")
        return events, units - buffer.units

    @property
    def open_inbound_streams(self) -> int:
        """Never less than the number of open streams, and that number itself where it matters.

        h2 looks at all streams for each new one. Here those that are closed still count, until
        there are twice as many as were open, or as many as may be.
        """
        count = len(self.streams)
        if count < min(2 * self._streams_swept + 16, self.local_settings.max_concurrent_streams):
            return count
        self._streams_swept = self._open_streams(int(not self.config.client_side))
        return self._streams_swept

    @property
    def outbound_frame_bytes_max(self) -> int:
        """The largest frame of DATA for the peer."""
        return min(self.max_outbound_frame_size, limits.http2_frame_bytes_max)

    @property
    def has_begun(self) -> bool:
        """Whether the peer has said its preface, and its SETTINGS."""
        return self.incoming_buffer.is_begun and self._has_settings

    def data_was_sent(self) -> None:
        """Allows for what a peer says for each frame of DATA: more room in two windows."""
        self._frames_to_acknowledge = min(self._frames_to_acknowledge + 2, _UNACKNOWLEDGED_MAX)

    def _receive_frame(self, frame: Frame) -> list[Event]:
        is_server = not self.config.client_side
        if is_server and self._is_idle(frame) and self._idle_frames.exceeded():
            self.limit_reached = "idle_frames"
            raise DenialOfServiceError("too many frames that carry nothing")
        events = self._dispatch(frame)
        self._has_settings |= isinstance(frame, SettingsFrame)
        # Resets by the peer, and those that it makes us send by breaking the rules of a stream.
        reset = isinstance(frame, RstStreamFrame) or any(isinstance(e, StreamReset) for e in events)
        if is_server and reset and self._resets.exceeded():
            self.limit_reached = "resets"
            raise DenialOfServiceError("too many streams were reset")
        return events

    def _dispatch(self, frame: Frame) -> list[Event]:
        """What h2's `_receive_frame` does, except that it would render the frame as text."""
        events: list[Event]
        try:
            frames, events = self._frame_dispatch_table[frame.__class__](frame)
        except StreamClosedError as error:
            if not self._stream_is_closed_by_reset(error.stream_id):
                raise
            self._refuse_frame(error.stream_id, error.error_code)
            return cast("list[Event]", error._events)
        except StreamIDTooLowError as error:
            if self._stream_is_closed_by_reset(error.stream_id):
                self._refuse_frame(error.stream_id, ErrorCodes.STREAM_CLOSED)
                return []
            if self._stream_is_closed_by_end(error.stream_id):
                raise StreamClosedError(error.stream_id) from error
            raise
        self._prepare_for_sending(frames)
        return events

    def _refuse_frame(self, stream_id: int, code: ErrorCodes | int) -> None:
        if self._idle_frames.exceeded():
            self.limit_reached = "idle_frames"
            raise DenialOfServiceError("too many frames of streams that are over")
        reset = RstStreamFrame(stream_id)
        reset.error_code = code
        self._prepare_for_sending([reset])

    def _is_idle(self, frame: Frame) -> bool:
        """Whether a frame costs an answer or a turn and moves no call forward."""
        if isinstance(frame, DataFrame):
            stream = self.streams.get(frame.stream_id)
            is_over = stream is None or stream.closed
            return is_over or (not frame.data and "END_STREAM" not in frame.flags)
        if isinstance(frame, WindowUpdateFrame):
            if self._frames_to_acknowledge:
                self._frames_to_acknowledge -= 1
                return False
            return True
        return isinstance(frame, PingFrame | SettingsFrame | PriorityFrame | ExtensionFrame)
