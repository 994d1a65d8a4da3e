"""Unary calls without a task, a stream object and a timer each.

Most calls of a foreign client are `Produce` with one small message that comes in one frame, and
their answers are all alike. Such a call is handed to its method whole, as an `Answer` that is given
later; any other call takes the usual way (`proglog.rpc.calls`), and so does one of these that turns
out to be different: nothing has happened by then.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, cast

from grpclib.const import Status
from grpclib.encoding.base import GRPC_CONTENT_TYPE
from grpclib.metadata import encode_bin_value, encode_grpc_message
from h2.events import DataReceived, RequestReceived, StreamEnded, StreamReset
from h2.exceptions import H2Error

from proglog import errors, limits
from proglog.auth.principal import Principal
from proglog.grpc import http2
from proglog.wire import encode_error

if TYPE_CHECKING:
    from proglog.rpc.calls import Calls

_PREFIX_BYTES = 5
_SWEEP_SECONDS = 0.02


class Answer:
    """What one call waits for: given once, or never where the caller is gone."""

    __slots__ = ("_calls", "_connection", "_given", "deadline", "stream_id")

    def __init__(
        self, calls: Calls, connection: http2.Connection, stream_id: int, deadline: float | None
    ) -> None:
        self._calls = calls
        self._connection = connection
        self._given = False
        self.stream_id = stream_id
        self.deadline = deadline

    @property
    def principal(self) -> Principal:
        """Who calls."""
        return self._calls.principal

    def send(self, message: bytes) -> None:
        """Answers with a message."""
        if self._take() and not self._connection.answer(self.stream_id, message):
            self._calls.answer_slowly(self._connection, self.stream_id, message)

    def fail(self, error: errors.ProglogError) -> None:
        """Answers with an error."""
        if self._take():
            self._connection.answer_headers(self.stream_id, failure_headers(error))

    def drop(self) -> None:
        """The caller is gone."""
        self._given = True

    def _take(self) -> bool:
        if self._given:
            return False
        self._given = True
        self._calls.answered(self)
        return True


def failure_headers(error: errors.ProglogError) -> list[tuple[str, str]]:
    """Headers and trailers in one, of a call that has sent nothing else."""
    text = errors.clip(str(error), limits.error_text_bytes_max)
    return [
        (":status", "200"),
        ("content-type", GRPC_CONTENT_TYPE + "+proto"),
        ("grpc-status", str(Status(error.status).value)),
        ("grpc-message", encode_grpc_message(text)),
        ("grpc-status-details-bin", encode_bin_value(encode_error(error)).decode()),
    ]


class Deadlines:
    """Answers that must be given by some time, looked at together and not by a timer each."""

    def __init__(self) -> None:
        self._waiting: dict[Answer, None] = {}
        self._timer: asyncio.TimerHandle | None = None

    def add(self, answer: Answer) -> None:
        self._waiting[answer] = None
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(_SWEEP_SECONDS, self._sweep)

    def discard(self, answer: Answer) -> None:
        self._waiting.pop(answer, None)

    def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def _sweep(self) -> None:
        loop = asyncio.get_running_loop()
        now = loop.time()
        late = [a for a in self._waiting if a.deadline is not None and a.deadline <= now]
        for answer in late:
            answer.fail(errors.DeadlineExceeded("the deadline of the call has passed"))
        self._timer = loop.call_later(_SWEEP_SECONDS, self._sweep) if self._waiting else None


class Processor(http2.Processor):
    """Hands the events of a server's connection to its calls."""

    def __init__(self, calls: Calls, connection: http2.Connection) -> None:
        super().__init__(calls, connection)
        connection.register = self.register
        self._calls = calls
        self._begun: dict[int, RequestReceived] = {}
        """Calls of which nothing but the headers has come."""

    def process_request_received(self, event: RequestReceived) -> None:
        headers = cast("list[tuple[str, str]]", event.headers)
        if event.stream_ended is None and self._calls.is_quick(headers):
            self._begun[event.stream_id] = event
        else:
            super().process_request_received(event)

    def process_data_received(self, event: DataReceived) -> None:
        stream_id = event.stream_id
        begun = self._begun.pop(stream_id, None)
        if begun is not None:
            message = _whole_message(event)
            if message is not None and self._accept(begun, message):
                self.connection.ack(stream_id, event.flow_controlled_length)
                return
            super().process_request_received(begun)
        super().process_data_received(event)

    def _accept(self, begun: RequestReceived, message: memoryview) -> bool:
        headers: Any = begun.headers
        connection = cast("http2.Connection", self.connection)
        return self._calls.accept_quick(connection, begun.stream_id, headers, message)

    def process_stream_ended(self, event: StreamEnded) -> None:
        self.settle(event.stream_id)
        super().process_stream_ended(event)

    def process_stream_reset(self, event: StreamReset) -> None:
        stream_id = event.stream_id
        self._begun.pop(stream_id, None)
        self._calls.cancel_quick(stream_id)
        super().process_stream_reset(event)

    def settle(self, stream_id: int) -> None:
        """A call that has begun takes the usual way: its message does not come in one frame."""
        begun = self._begun.pop(stream_id, None)
        if begun is not None:
            super().process_request_received(begun)

    def settle_all(self) -> None:
        """All that have begun take the usual way, which has deadlines for them."""
        for stream_id in list(self._begun):
            self.settle(stream_id)


def _whole_message(event: DataReceived) -> memoryview | None:
    data = memoryview(event.data or b"")
    if event.stream_ended is None or not _PREFIX_BYTES <= len(data) <= limits.quick_bytes_max:
        return None
    whole = (
        not data[0] and int.from_bytes(data[1:_PREFIX_BYTES], "big") == len(data) - _PREFIX_BYTES
    )
    return data[_PREFIX_BYTES:] if whole else None


async def send_slowly(stream: http2.Stream, message: bytes) -> None:
    """An answer for which the peer has no room now."""
    try:
        await stream.send_headers(list(http2.ANSWER_HEADERS))
        await stream.send_parts((len(message).to_bytes(_PREFIX_BYTES, "big"), message))
        await stream.send_headers(list(http2.ANSWER_TRAILERS), end_stream=True)
    except H2Error:
        return  # the peer reset the stream meanwhile
