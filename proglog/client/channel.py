"""Connections to one node, made when a call needs one; calls survive a GOAWAY."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable
from typing import Any

from grpclib.client import Handler
from grpclib.config import Configuration
from h2.events import Event
from hyperframe.frame import GoAwayFrame

from proglog import http2, limits
from proglog.client.backend import log_closed
from proglog.config import Address
from proglog.dialling import dial
from proglog.errors import Unauthenticated, Unavailable, reason_of

_CONFIGURATION = Configuration(
    _keepalive_time=limits.client_keepalive_seconds,
    _keepalive_timeout=limits.client_keepalive_seconds,
    _http2_max_pings_without_data=0,
    _http2_min_sent_ping_interval_without_data=limits.client_keepalive_seconds / 2,
).__for_client__()


class Connection(http2.Protocol):
    """One connection. `draining`: calls on it go on, new ones need another connection.

    `calls` are those that begin or are under way. A draining connection ends with the last of them.
    """

    def __init__(self, lost: Callable[[Connection], None]) -> None:
        super().__init__(Handler(), _CONFIGURATION, http2.configuration(client_side=True))
        self.draining = False
        self.calls: set[object] = set()
        self._lost = lost

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        # h2 takes a GOAWAY for the end and drops the calls in flight, which a draining server still
        # answers. So h2 does not hear of it.
        state: Any = self.connection._connection
        state._frame_dispatch_table[GoAwayFrame] = self._goaway_received

    @property
    def takes_calls(self) -> bool:
        """Whether new calls may begin. It closes a moment before it is known to be lost."""
        return not self.draining and not self.connection.is_closing()

    def let_go(self, call: object) -> None:
        """A call is over."""
        self.calls.discard(call)
        if self.draining and not self.calls and not self.connection.is_closing():
            # Nobody waits for what is still to be sent, and the node may not take it.
            self.connection._transport.abort()

    def _goaway_received(self, frame: GoAwayFrame) -> tuple[list[Any], list[Event]]:
        self.draining = True
        for stream_id, stream in self.processor.streams.items():
            if stream_id > frame.last_stream_id:
                stream.__terminated__("the server goes away and did not take this call")
        return [], []

    def connection_lost(self, exc: BaseException | None) -> None:
        self.draining = True
        super().connection_lost(exc)
        # Whoever waits to begin a call waits in vain.
        self.connection.write_ready.set()
        self.connection.stream_close_waiter.set()
        self._lost(self)


class Channel:
    """Connects to one address when a call needs it."""

    def __init__(self, address: Address, tls: ssl.SSLContext | None) -> None:
        self.address = address
        self._tls = tls
        self._lock = asyncio.Lock()
        self._current: Connection | None = None
        self._open: set[Connection] = set()
        self._closed = False

    async def connection(self) -> Connection:
        """A connection that takes new calls.

        Raises Unavailable or Unauthenticated; InvalidRequest once the channel is closed.
        """
        async with self._lock:
            self._check_open()
            if self._current is None or not self._current.takes_calls:
                self._current = await self._dial()
                self._open.add(self._current)
                self._check_open()
            if not self._current.takes_calls:
                raise Unavailable(f"{self.address} ended the connection at once")
            return self._current

    def close(self) -> None:
        """Ends all connections, and what calls on them wait for."""
        self._closed = True
        for connection in list(self._open):
            connection.draining = True
            connection.processor.close("the client was closed")

    def _check_open(self) -> None:
        if self._closed:
            self.close()  # Once more: a connection may have come since.
            raise log_closed()

    async def _dial(self) -> Connection:
        try:
            async with asyncio.timeout(limits.client_dial_seconds_max):
                _, connection = await dial(
                    lambda: Connection(self._open.discard), self.address, self._tls
                )
        except TimeoutError:
            raise Unavailable(
                f"no connection to {self.address} within {limits.client_dial_seconds_max:g} s"
            ) from None
        except ssl.SSLCertVerificationError as error:
            raise Unauthenticated(
                f"the certificate of {self.address} is not trusted: {error.verify_message}"
            ) from None
        except OSError as error:
            message = f"cannot connect to {self.address}: {reason_of(error)}"
            raise Unavailable(message) from None
        return connection
