"""Runs gRPC calls: one task each, from the headers of a request to its status.

In place of grpclib's own request handler, which has no bound on messages, leaves a call unanswered
when its metadata is malformed, and logs a peer's mistakes as ours. A handler here is an `async def
handler(call)`; what it raises becomes the status: a ProglogError its own, with its detail; a
BadMessage INVALID_ARGUMENT; anything else INTERNAL and a traceback in the log.

Protocol: https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import struct
from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import Any, Protocol, TypeAlias, cast

from grpclib.const import Cardinality, Status
from grpclib.const import Handler as Method
from grpclib.encoding.base import GRPC_CONTENT_TYPE
from grpclib.events import _DispatchServerEvents
from grpclib.exceptions import GRPCError
from grpclib.metadata import decode_metadata, decode_timeout
from grpclib.protocol import AbstractHandler
from grpclib.protocol import Stream as GrpclibStream
from grpclib.server import Stream as GrpclibCall
from h2.errors import ErrorCodes
from h2.exceptions import H2Error

from proglog import errors, limits, wire
from proglog.auth.access import ACCESS, Access, Scope
from proglog.auth.gate import Gate, OpenGate
from proglog.auth.principal import ANONYMOUS, Principal
from proglog.batch import Buffer
from proglog.grpc.headers import is_malformed
from proglog.grpc.http2 import Connection, Stream
from proglog.grpc.receiving import ReceiveBuffer
from proglog.rpc.quick import Answer, Deadlines, send_slowly
from proglog.types import Log, Logs

log = logging.getLogger(__name__)

Headers: TypeAlias = list[tuple[str, str]]
Quick: TypeAlias = Callable[[memoryview, Answer], None]
"""Takes one message; gives the answer now or later. Raises BadMessage, ProglogError."""
Failure: TypeAlias = errors.ProglogError | GRPCError
_CONTENT_TYPES = (GRPC_CONTENT_TYPE, GRPC_CONTENT_TYPE + "+proto")
_SHORT_SECONDS = 0.1
"""A deadline sooner than this has a timer of its own."""
_INTERNAL = "the server failed to handle the call; its log says why"
_PREFIX = struct.Struct(">?I")
_TIMEOUT_SECONDS_MAX = 1e8
"""About three years: gRPC allows any eight digits of hours, which timers do not."""


class Service(Protocol):
    """Handlers by the path of their method."""

    def __mapping__(self) -> Mapping[str, Method]: ...


class Call(GrpclibCall[Any, Any]):
    """One call: receive messages, send messages. Made of grpclib's server stream."""

    _stream: Stream
    _codec: wire.Codec
    ending: errors.ProglogError | None = None
    """Why the server interrupts this call, once it does."""
    handling = False
    """Whether its handler runs: before and after it nothing may be interrupted."""
    timeout_seconds: float | None = None
    principal: Principal = ANONYMOUS
    """Who calls."""
    access: Access
    """What that needs."""
    gate: Gate
    is_decided = False
    """Whether the gate has let it pass: nothing is answered before."""
    _sending = False
    _held = 0

    @property
    def receive_buffer(self) -> ReceiveBuffer:
        """What has been received and not read."""
        return cast("ReceiveBuffer", self._stream.buffer)

    async def recv_message(self) -> Any:
        """The next message, or None after the last. Raises BadMessage, TooLarge."""
        self.hold(0)
        prefix = await self._stream.recv_data(_PREFIX.size)
        if not prefix:
            return None
        size = _message_size(prefix)
        data = await self._body(size)
        if len(data) < size:
            raise wire.BadMessage("the stream ended within a message")
        self.hold(size)
        return self._codec.decode(data, self._recv_type)

    async def _body(self, size: int) -> Buffer:
        """The rest of a message that has begun. Raises DeadlineExceeded where it does not come."""
        buffer = self.receive_buffer
        if buffer.size >= size:
            return buffer.take(size)
        seconds = limits.message_grace_seconds + size / limits.message_bytes_per_second_min
        try:
            async with asyncio.timeout(seconds) as patience:
                return await buffer.read(size)
        except TimeoutError:
            if not patience.expired():
                raise
            raise errors.DeadlineExceeded("the message that has begun does not come") from None

    def hold(self, size: int) -> None:
        """The node holds so many bytes of what the caller has sent, until it is asked for more."""
        connection = cast("Connection", self._stream.connection)
        connection.hold(size - self._held)
        self._held = size

    def received_message(self) -> Any:
        """The next message if all of it is here already, else None. Raises BadMessage, TooLarge."""
        buffer = self.receive_buffer
        if buffer.size < _PREFIX.size:
            return None
        size = _message_size(buffer.peek(_PREFIX.size))
        if buffer.size < _PREFIX.size + size:
            return None
        buffer.take(_PREFIX.size)
        return self._codec.decode(buffer.take(size), self._recv_type)

    async def request(self) -> Any:
        """The one message of a call that sends one. Raises BadMessage, TooLarge."""
        message = await self.recv_message()
        if message is None:
            raise wire.BadMessage("the call holds no message")
        return message

    async def decide(self) -> None:
        """Whether the caller may; of a log's calls its name decides, see `log`. Raises
        PermissionDenied."""
        if self.access.scope is not Scope.LOG:
            await self.gate.check(self.principal, self._method_name, self.access)
            self.is_decided = True

    async def log(self, name: str, logs: Logs) -> Log:
        """A log, if the caller may do this to it. Raises PermissionDenied, UnknownLog."""
        log = await self.gate.open(self.principal, self._method_name, self.access, name, logs)
        self.is_decided = True
        return log

    async def send_message(self, message: Any) -> None:
        await self.send_messages((message,))

    async def send_messages(self, messages: Sequence[Any]) -> None:
        """Sends some messages, waiting while the peer or the network has no room for them."""
        buffers: list[Buffer] = []
        for message in messages:
            parts = self._codec.parts(message, self._send_type)
            buffers.append(_PREFIX.pack(False, sum(map(len, parts))))
            buffers.extend(parts)
        await self.send_encoded(*buffers)

    async def send_encoded(self, *buffers: Buffer) -> None:
        """Likewise for messages that are encoded, each with its prefix (`wire.framed`)."""
        assert self.is_decided, "nothing is answered that nobody has decided on"
        if not self._send_initial_metadata_done:
            await self.send_initial_metadata()
        self._sending = True
        await self._stream.send_parts(buffers)
        self._sending = False
        self._send_message_done = True

    async def send_trailing_metadata(
        self, *, status_message: str | None = None, **other: Any
    ) -> None:
        """Sends the status. Whatever is said of a failure, and by whom: no more than the bound of
        it leaves, three times that once escaped."""
        if status_message is not None:
            status_message = errors.clip(status_message, limits.error_text_bytes_max)
        await super().send_trailing_metadata(status_message=status_message, **other)

    async def finish(self, error: Failure | None) -> None:
        """Sends the status."""
        if self._send_trailing_metadata_done or not self._stream.closable:
            return
        if self._sending:
            # Cut off within a message: no status could follow it.
            await self._stream.reset(ErrorCodes.CANCEL)
        elif error is None:
            await self.send_trailing_metadata()
        elif isinstance(error, GRPCError):
            await self.send_trailing_metadata(status=error.status, status_message=error.message)
        else:
            await self.send_trailing_metadata(
                status=Status(error.status), status_message=str(error), status_details=error
            )
        if self._stream.closable:
            # The peer has not ended its side: what it still sends is not read.
            self._stream.reset_nowait()


def _message_size(prefix: Buffer) -> int:
    if prefix[0]:
        raise GRPCError(Status.UNIMPLEMENTED, "compressed messages are not supported")
    size = int.from_bytes(prefix[1:], "big")
    if size > limits.message_bytes_max:
        raise errors.TooLarge(
            f"a message of {size} bytes exceeds {limits.message_bytes_max}",
            bytes=size,
            bytes_max=limits.message_bytes_max,
        )
    return size


class Calls(AbstractHandler):
    """The calls of one connection, at most `streams_per_connection_max`: h2 sees to that."""

    def __init__(
        self,
        methods: Mapping[str, Method],
        codec: wire.Codec,
        refusal: Callable[[], errors.ProglogError | None],
        principal: Principal = ANONYMOUS,
        quick: Mapping[str, Quick] | None = None,
        deadlines: Deadlines | None = None,
        gate: Gate | None = None,
    ) -> None:
        """`refusal` says why new calls are not accepted now, or None. `quick` are methods that take
        a unary call whole."""
        self.principal = principal
        self._gate = gate or OpenGate()
        self._quick = quick or {}
        self._deadlines = deadlines or Deadlines()
        self._unanswered: dict[int, Answer] = {}
        self._methods = methods
        self._codec = codec
        self._refusal = refusal
        self._tasks: dict[GrpclibStream, asyncio.Task[None]] = {}
        self._calls: dict[GrpclibStream, Call] = {}
        self._dispatch = _DispatchServerEvents()
        self._idle = asyncio.Event()
        self._idle.set()

    def accept(
        self,
        stream: GrpclibStream,
        headers: Headers,
        release_stream: Callable[[], None],
    ) -> None:
        if is_malformed(headers):
            self._begin(stream, _break_off(stream), release_stream)
            return
        try:
            method = self._method(dict(headers))
            call = self._calls[stream] = self._call(stream, headers, method)
            work = _serve(call, method, self._refusal())
        except _Refused as refused:
            work = _refuse(stream, refused)
        self._begin(stream, work, release_stream)

    def _begin(
        self,
        stream: GrpclibStream,
        work: Coroutine[None, None, None],
        release_stream: Callable[[], None],
    ) -> None:
        task = self._tasks[stream] = asyncio.get_running_loop().create_task(work)
        self._idle.clear()
        task.add_done_callback(lambda _: self._done(stream, release_stream))

    def cancel(self, stream: GrpclibStream) -> None:
        """The peer has reset the stream."""
        if stream in self._tasks:
            self._tasks[stream].cancel()

    def close(self) -> None:
        """The connection is gone."""
        for task in self._tasks.values():
            task.cancel()
        for stream_id in list(self._unanswered):
            self.cancel_quick(stream_id)

    # --- without a task

    def is_quick(self, headers: Headers) -> bool:
        """Whether a call may be taken whole, once its message is here."""
        fields = dict(headers)
        return (
            fields.get(":path") in self._quick
            and fields.get(":method") == "POST"
            and fields.get("content-type") in _CONTENT_TYPES
            and not any(name.endswith("-bin") for name in fields)
            and not is_malformed(headers)
        )

    def accept_quick(
        self, connection: Connection, stream_id: int, headers: Headers, message: memoryview
    ) -> bool:
        """Takes a call of which `is_quick` holds. False where it must take the usual way."""
        if self._refusal() is not None or len(self) >= limits.streams_per_connection_max:
            return False
        try:
            seconds = _timeout(headers)
        except ValueError:
            return False
        deadline = None
        if seconds is not None:
            if seconds < _SHORT_SECONDS:
                return False
            deadline = asyncio.get_running_loop().time() + seconds
        answer = self._unanswered[stream_id] = Answer(self, connection, stream_id, deadline)
        self._idle.clear()
        if deadline is not None:
            self._deadlines.add(answer)
        path = next(value for name, value in headers if name == ":path")
        try:
            self._quick[path](message, answer)
        except wire.BadMessage as bad:
            answer.fail(errors.InvalidRequest(f"the message is malformed: {bad}"))
        except errors.ProglogError as error:
            answer.fail(error)
        except Exception:  # it goes to the log, and as INTERNAL
            log.exception("the handler of %s failed", path)
            answer.fail(errors.Internal(_INTERNAL))
        return True

    def answered(self, answer: Answer) -> None:
        """An answer is given, or nobody waits for it."""
        self._deadlines.discard(answer)
        self._unanswered.pop(answer.stream_id, None)
        self._look_idle()

    def cancel_quick(self, stream_id: int) -> None:
        """The peer has reset the stream, or is gone."""
        answer = self._unanswered.get(stream_id)
        if answer is not None:
            answer.drop()
            self.answered(answer)

    def answer_slowly(self, connection: Connection, stream_id: int, message: bytes) -> None:
        """Sends an answer for which the peer has no room now."""
        stream = connection.create_stream(stream_id=stream_id)
        self._begin(stream, send_slowly(stream, message), connection.register(stream))

    def __len__(self) -> int:
        """Calls under way."""
        return len(self._tasks) + len(self._unanswered)

    def _look_idle(self) -> None:
        if not len(self):
            self._idle.set()

    async def wait_idle(self) -> None:
        """Until no call is running."""
        await self._idle.wait()

    def end(self, error: errors.ProglogError) -> None:
        """Ends streaming calls with `error`, each as soon as its answers are whole.

        A call that only sends is interrupted. One that receives gets `error` in place of its next
        message, so that what it has received before is answered. Unary calls take their time.
        """
        for stream, call in self._calls.items():
            if call._cardinality.client_streaming:
                call.receive_buffer.fail(error)
            elif call._cardinality.server_streaming:
                call.ending = error
                if call.handling:
                    self._tasks[stream].cancel()

    def _done(self, stream: GrpclibStream, release_stream: Callable[[], None]) -> None:
        task = self._tasks.pop(stream)
        self._calls.pop(stream, None)
        self._look_idle()
        release_stream()
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("a call failed outside its handler", exc_info=error)

    def _method(self, headers: Mapping[str, str]) -> Method:
        if headers.get(":method") != "POST":
            raise _Refused(405, Status.UNKNOWN, "a gRPC call is a POST request")
        if headers.get("content-type") not in _CONTENT_TYPES:
            raise _Refused(415, Status.UNKNOWN, "the content type is not application/grpc")
        method = self._methods.get(headers.get(":path", ""))
        if method is None:
            raise _Refused(200, Status.UNIMPLEMENTED, "there is no such method")
        return method

    def _call(self, stream: GrpclibStream, headers: Headers, method: Method) -> Call:
        call = Call(
            stream,
            dict(headers)[":path"],
            method.cardinality,
            method.request_type,
            method.reply_type,
            codec=self._codec,
            status_details_codec=wire.ErrorDetails(),
            dispatch=self._dispatch,
        )
        call.principal, call.gate = self.principal, self._gate
        call.access = ACCESS[dict(headers)[":path"]]
        try:
            call.metadata = decode_metadata(headers)
            call.timeout_seconds = _timeout(headers)
        except ValueError:
            raise _Refused(200, Status.INVALID_ARGUMENT, "the metadata is malformed") from None
        return call


class _Refused(Exception):
    """A request that is no call of ours: HTTP status, gRPC status, what is wrong."""


def _timeout(headers: Headers) -> float | None:
    found = [decode_timeout(value) for name, value in headers if name == "grpc-timeout"]
    return min(*found, _TIMEOUT_SECONDS_MAX, _TIMEOUT_SECONDS_MAX) if found else None


async def _break_off(stream: GrpclibStream) -> None:
    with contextlib.suppress(H2Error):  # the peer reset the stream meanwhile
        await stream.reset(ErrorCodes.PROTOCOL_ERROR)


async def _refuse(stream: GrpclibStream, refused: _Refused) -> None:
    http_status, status, message = refused.args
    headers = [
        (":status", str(http_status)),
        ("content-type", GRPC_CONTENT_TYPE),
        ("grpc-status", str(status.value)),
        ("grpc-message", message),
    ]
    with contextlib.suppress(H2Error):  # the peer reset the stream meanwhile
        await stream.send_headers(headers, end_stream=True)
        if stream.closable:
            stream.reset_nowait()


async def _serve(call: Call, method: Method, refusal: errors.ProglogError | None) -> None:
    with contextlib.suppress(H2Error):  # the peer reset the stream meanwhile
        await call.finish(refusal or call.ending or await _run(call, method))


async def _run(call: Call, method: Method) -> Failure | None:
    """Runs the handler of a call. Answers why it failed, if it did."""
    call.handling = True
    try:
        async with asyncio.timeout(_seconds(call)) as deadline:
            await call.decide()
            await method.func(call)
    except asyncio.CancelledError:
        if call.ending is None:
            raise  # the peer or the connection is gone
        return call.ending
    except H2Error:
        raise
    except Exception as error:  # noqa: BLE001  # what is no refusal goes to the log, and as INTERNAL
        failure = _failure(call, error, expired=deadline.expired())
        errors.let_go(error)
        return failure
    finally:
        call.handling = False
        call.hold(0)
        # It knows the task, which keeps the CancelledError that it ends with, which keeps this
        # frame and those below: a circle around all that the call was sending.
        del deadline
    return None


def _seconds(call: Call) -> float | None:
    """How long its handler may take. Streams have no end of their own."""
    if call.timeout_seconds is None and call._cardinality is Cardinality.UNARY_UNARY:
        return limits.unary_seconds_max
    return call.timeout_seconds


def _failure(call: Call, error: Exception, *, expired: bool) -> Failure:
    """What the caller is told of what its handler raised."""
    if isinstance(error, errors.ProglogError | GRPCError):
        return error
    if isinstance(error, wire.BadMessage):
        return errors.InvalidRequest(f"the message is malformed: {error}")
    if isinstance(error, TimeoutError) and expired:
        return errors.DeadlineExceeded("the deadline of the call has passed")
    log.error("the handler of %s failed", call._method_name, exc_info=error)
    return errors.Internal(_INTERNAL)
