"""One gRPC call of the client.

grpclib's own client ends a call by cancelling the task that uses it, which loses answers that have
already arrived and leaves a mark on the user's task. Here a call that ends only wakes who waits:
first come all messages that arrived, then how it ended.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from contextlib import suppress
from typing import Any, NamedTuple

from grpclib.const import Status as GrpcStatus
from grpclib.encoding.base import GRPC_CONTENT_TYPE
from grpclib.metadata import USER_AGENT, decode_bin_value, decode_grpc_message
from h2.errors import ErrorCodes
from h2.exceptions import ProtocolError

from proglog import errors, limits, wire
from proglog.client.channel import Connection
from proglog.errors import OutcomeUnknown, ProglogError
from proglog.grpc import http2

_CODEC = wire.Codec()
_PREFIX = struct.Struct(">BI")


class Method(NamedTuple):
    """A call by name, and the generated classes of its messages."""

    name: str
    request_type: type
    reply_type: type
    service: str = "log.v1.Log"

    @property
    def path(self) -> str:
        return f"/{self.service}/{self.name}"


class CallEnded(Exception):
    """Nothing more can be sent: `receive` tells why."""


class Call(http2.Stream):
    """One call. Whoever starts it closes it."""

    def __init__(self, connection: Connection, method: Method) -> None:
        link = connection.connection
        super().__init__(link, link._connection, link._transport)
        self._carrier = connection
        connection.take_on(self)
        self._method = method
        self._release: Callable[[], None] | None = None
        self._lost: str | None = None

    async def start(self, scheme: str, authority: str) -> None:
        """Sends the head of the request. Nothing has happened if it fails. Raises Unavailable."""
        headers = [
            (":method", "POST"),
            (":scheme", scheme),
            (":path", self._method.path),
            (":authority", authority),
            ("te", "trailers"),
            ("content-type", GRPC_CONTENT_TYPE),
            ("user-agent", USER_AGENT),
        ]
        await self._turn()
        try:
            self._release = await self.send_request(headers, _processor=self._carrier.processor)
        except ProtocolError as error:
            raise errors.Unavailable(f"the connection ended: {error}") from None

    async def _turn(self) -> None:
        """Waits until the connection has room for one more call.

        `send_request` would, but it does not notice that the connection ends.
        """
        state = self._h2_connection
        while True:
            await self.connection.write_ready.wait()
            if not self._carrier.takes_calls:
                self._check_accepted()
                raise errors.Unavailable("the connection ended before the call could begin")
            if state.open_outbound_streams < state.remote_settings.max_concurrent_streams:
                return
            self.connection.stream_close_waiter.clear()
            await self.connection.stream_close_waiter.wait()

    async def send(self, message: Any, *, end: bool = False) -> None:
        """Sends one message, as fast as flow control lets it. Raises CallEnded."""
        parts = _CODEC.parts(message, self._method.request_type)
        prefix = _PREFIX.pack(0, sum(map(len, parts)))
        await self.send_parts((prefix, *parts), end_stream=end)
        self.connection.data_send_process()

    async def end(self) -> None:
        """Says that nothing more will be sent."""
        if not self._over:
            with suppress(ProtocolError):  # It may be over by the time there is room to write.
                await super().end()

    async def receive(self) -> Any:
        """The next message; None if the call ended well. Raises ProglogError: how it ended."""
        prefix = await self._read(_PREFIX.size)
        if prefix is None:
            self._raise_for_status()
            return None
        compressed, size = _PREFIX.unpack(prefix)
        if compressed or size > limits.message_bytes_max:
            raise OutcomeUnknown(f"the server sent a message of {size} bytes, or a compressed one")
        data = await self._read(size)
        if data is None:
            self._raise_for_status()
            raise OutcomeUnknown("the server ended the call within a message")
        try:
            return _CODEC.decode(data, self._method.reply_type)
        except wire.BadMessage as error:
            raise OutcomeUnknown(f"the server's answer is malformed: {error}") from None

    async def _read(self, size: int) -> bytes | None:
        """Exactly so many bytes; None if the call ended before them."""
        with suppress(wire.BadMessage):
            data: bytes = await self.buffer.read(size)
            if len(data) == size:
                return data
        self.window_updated.set()  # Whoever waits to send waits in vain.
        return None

    def distrust(self) -> None:
        """Answers are missing: new calls need another connection."""
        self._carrier.draining = True

    def close(self) -> None:
        """Lets go of the call; the server hears of it if it is not over."""
        if self._release is not None:
            if self.closable:
                self.reset_nowait(ErrorCodes.CANCEL)
            self._release()
            self._release = None
        self._carrier.let_go(self)

    def __terminated__(self, reason: str) -> None:
        self._lost = reason
        self.buffer.eof()
        self.window_updated.set()
        if self.connection.is_closing():
            self.connection.write_ready.set()

    @property
    def _stream_id(self) -> int:
        assert self.id is not None, "the call was started"
        return self.id

    @property
    def _over(self) -> bool:
        return self._lost is not None or self.trailers is not None or self.connection.is_closing()

    async def _room(self) -> int:
        # As inherited, but it also ends: a call that is over is only woken.
        while True:
            await self.connection.write_ready.wait()
            if self._over:
                raise CallEnded
            window = self._h2_connection.local_flow_control_window(self._stream_id)
            if window > 0:
                return min(window, self._h2_connection.max_outbound_frame_size)
            self.window_updated.clear()
            await self.window_updated.wait()

    def _check_accepted(self) -> None:
        """Raises Unauthenticated if nothing has happened since we are not welcome."""
        if self._carrier.refused:
            raise errors.Unauthenticated(self._carrier.refused)

    def _raise_for_status(self) -> None:
        headers = dict(self.trailers or self.headers or ())
        status = headers.get("grpc-status")
        if status == "0":
            return
        if status is not None:
            raise _error_of(status, headers)
        http_status = headers.get(":status", "200")
        if http_status != "200":
            raise OutcomeUnknown(f"HTTP status {http_status}: is this a Proglog node?")
        self._check_accepted()
        raise OutcomeUnknown(f"the connection was lost: {self._lost or 'no status came'}")


_WITHOUT_DETAIL: dict[int, type[ProglogError]] = {
    GrpcStatus.INVALID_ARGUMENT.value: errors.InvalidRequest,
    GrpcStatus.DEADLINE_EXCEEDED.value: errors.DeadlineExceeded,
    GrpcStatus.PERMISSION_DENIED.value: errors.PermissionDenied,
    GrpcStatus.UNIMPLEMENTED.value: errors.InvalidRequest,
    GrpcStatus.UNAUTHENTICATED.value: errors.Unauthenticated,
}
"""What a status means that carries no detail of ours. It may come from a proxy: any other says
nothing about the outcome."""


def _error_of(status: str, headers: dict[str, str]) -> ProglogError:
    details = headers.get("grpc-status-details-bin")
    error = wire.decode_error(decode_bin_value(details.encode("ascii"))) if details else None
    if error is not None:
        return error
    message = decode_grpc_message(headers.get("grpc-message", "")) or f"gRPC status {status}"
    code = int(status) if status.isdecimal() else -1
    return _WITHOUT_DETAIL.get(code, OutcomeUnknown)(message)
