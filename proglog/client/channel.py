"""Connections to one node, made when a call needs one and ended when none does.

Calls survive a GOAWAY.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable
from typing import Any

from grpclib.client import Handler
from grpclib.config import Configuration
from h2.events import Event
from hyperframe.frame import GoAwayFrame

from proglog import limits
from proglog.client.backend import log_closed
from proglog.client.silence import Watch
from proglog.config import Address
from proglog.errors import Overloaded, ProglogError, Unauthenticated, Unavailable, reason_of
from proglog.grpc import http2
from proglog.net.dialling import Way

_CONFIGURATION = Configuration(
    _keepalive_time=limits.client_keepalive_seconds,
    _keepalive_timeout=limits.client_keepalive_seconds,
    _http2_max_pings_without_data=0,
    _http2_min_sent_ping_interval_without_data=limits.client_keepalive_seconds / 2,
).__for_client__()


_SIGN_OF_LIFE = b"are you "
"""What a PING holds: eight bytes."""


class Connection(http2.Protocol):
    """One connection. `draining`: calls on it go on, new ones need another connection.

    `calls` are those that begin or are under way. A draining connection ends with the last of them.
    """

    def __init__(self, channel: Channel) -> None:
        super().__init__(Handler(), _CONFIGURATION, http2.configuration(client_side=True))
        self.draining = False
        self.calls: set[object] = set()
        self.version = 0
        self.refused = ""
        """Why the other end does not accept who we are, once it has said so."""
        self._heard = False
        self._channel = channel
        self._watch = Watch(
            waits=lambda: bool(self.calls) and not self.connection.is_closing(),
            ping=self._ping,
            silent=channel.is_silent,
        )

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        # h2 takes a GOAWAY for the end and drops the calls in flight, which a draining server still
        # answers. So h2 does not hear of it.
        state: Any = self.connection._connection
        state._frame_dispatch_table[GoAwayFrame] = self._goaway_received
        state.increment_flow_control_window(
            limits.client_connection_window_bytes - limits.http2_connection_window_bytes
        )
        self.connection.flush()

    @property
    def takes_calls(self) -> bool:
        """Whether new calls may begin. It closes a moment before it is known to be lost."""
        return not self.draining and not self.connection.is_closing()

    @property
    def has_room(self) -> bool:
        """Whether one more call may begin."""
        allowed = self.connection._connection.remote_settings.max_concurrent_streams
        most = min(allowed, limits.client_calls_per_connection_max)
        return self.takes_calls and len(self.calls) < most

    def take_on(self, call: object) -> None:
        """A call begins."""
        self.calls.add(call)
        self._watch.begin()

    def let_go(self, call: object) -> None:
        """A call is over."""
        self.calls.discard(call)
        self._channel.has_got_room()

    def abort(self) -> None:
        """Ends a connection without calls, or one that calls wait for in vain."""
        self.draining = True
        if not self.connection.is_closing():
            # Nobody waits for what is still to be sent, and the node may not take it.
            self.connection._transport.abort()

    def data_received(self, data: bytes) -> None:
        self._heard = True
        self._watch.heard()
        super().data_received(data)

    def _ping(self) -> None:
        self.state.ping(_SIGN_OF_LIFE)
        self.connection.flush()

    def _goaway_received(self, frame: GoAwayFrame) -> tuple[list[Any], list[Event]]:
        self.draining = True
        for stream_id, stream in self.processor.streams.items():
            if stream_id > frame.last_stream_id:
                stream.__terminated__("the server goes away and did not take this call")
        return [], []

    def connection_lost(self, exc: BaseException | None) -> None:
        self.draining = True
        self._watch.end()
        if isinstance(exc, ssl.SSLError) and not self._heard:
            # In TLS 1.3 a server judges our certificate after we take the connection for made.
            self.refused = (
                f"{self._channel.address} does not accept our certificate: {_words_of(exc)}"
            )
        super().connection_lost(exc)
        # Whoever waits to begin a call waits in vain.
        self.connection.write_ready.set()
        self.connection.stream_close_waiter.set()
        self._channel.has_lost(self)


class Channel:
    """Connects to one address when a call needs it: `connections_max` take calls at a time."""

    def __init__(
        self,
        address: Address,
        way: Way,
        *,
        connections_max: int,
        silent: Callable[[Address], None] | None = None,
    ) -> None:
        """`silent` is called over and over while calls wait and nothing comes: there are other
        nodes to be asked."""
        self.address = address
        self._silent = silent
        self._dialling: asyncio.Timeout | None = None
        self._dial_seconds = (
            limits.client_dial_seconds_first if silent else limits.client_dial_seconds_max
        )
        self._way = way
        self._connections_max = connections_max
        self._lock = asyncio.Lock()
        self._room = asyncio.Event()
        """Set where a connection may have got room, or there may be room for one."""
        self._open: list[Connection] = []
        self._closed = False

    async def connection(self) -> Connection:
        """A connection with room for one call, which begins before anything else is awaited.

        Raises Unavailable, Unauthenticated, Overloaded; InvalidRequest once the channel is closed.
        """
        await self._renew()
        try:
            # Who waits for room keeps the lock: the others wait in the order of asking.
            async with asyncio.timeout(limits.client_room_seconds_max), self._lock:
                while (found := self._with_room()) is None:
                    if self._may_connect():
                        return await self._connect()
                    self._room.clear()
                    await self._room.wait()
                return found
        except TimeoutError:
            raise self._no_room() from None

    async def _renew(self) -> None:
        """Where certificates have changed, new calls need new connections."""
        await self._way.refresh()
        for connection in self._open:
            if connection.version != self._way.version:
                connection.draining = True

    def is_silent(self) -> None:
        """Calls wait, and nothing comes."""
        if self._silent is not None:
            self._silent(self.address)

    def abandon(self) -> None:
        """Ends what is there, since nothing comes of it; a later call may try anew."""
        if self._dialling is not None and not self._dialling.expired():
            self._dialling.reschedule(asyncio.get_running_loop().time())
        for connection in list(self._open):
            connection.abort()

    def has_got_room(self) -> None:
        """A call is over. Connections without any end, but for one with room for the next call."""
        self._room.set()
        for idle in [each for each in reversed(self._open) if not each.calls]:
            if idle.draining or any(each.has_room for each in self._open if each is not idle):
                idle.abort()

    def has_lost(self, connection: Connection) -> None:
        """A connection is over."""
        if connection in self._open:
            self._open.remove(connection)
        self._room.set()

    def close(self) -> None:
        """Ends all connections, and what calls on them wait for."""
        self._closed = True
        for connection in list(self._open):
            connection.draining = True
            connection.processor.close("the client was closed")
        self._room.set()

    def _with_room(self) -> Connection | None:
        """The oldest, so that the others end. Raises InvalidRequest."""
        self._check_open()
        return next((each for each in self._open if each.has_room), None)

    def _may_connect(self) -> bool:
        # Those that drain do not count: each ends with the last of its calls.
        return sum(each.takes_calls for each in self._open) < self._connections_max

    async def _connect(self) -> Connection:
        connection = await self._dial()
        self._open.append(connection)
        self._check_open()
        if not connection.takes_calls:
            self._open.remove(connection)
            raise Unavailable(f"{self.address} ended the connection at once")
        return connection

    def _no_room(self) -> ProglogError:
        if self._may_connect():
            return Unavailable(
                f"no connection to {self.address} within {limits.client_room_seconds_max:g} s"
            )
        return Overloaded(
            f"all {self._connections_max} connections to {self.address} carry as many calls as they"
            " may: end some consumers, or read in several processes"
        )

    def _check_open(self) -> None:
        if self._closed:
            self.close()  # Once more: a connection may have come since.
            raise log_closed()

    async def _dial(self) -> Connection:
        seconds = self._dial_seconds
        watch = Watch(
            waits=lambda: self._dialling is not None, ping=lambda: None, silent=self.is_silent
        )
        watch.begin()
        try:
            async with asyncio.timeout(seconds) as self._dialling:
                _, connection = await self._way.dial(lambda: Connection(self), self.address)
                connection.version = self._way.version
        except TimeoutError:
            # It may be far away, or the network slow.
            self._dial_seconds = min(2 * seconds, limits.client_dial_seconds_max)
            raise Unavailable(f"no connection to {self.address} within {seconds:g} s") from None
        except ssl.SSLCertVerificationError as error:
            raise Unauthenticated(
                f"the certificate of {self.address} is not trusted: {error.verify_message}"
            ) from None
        except ssl.SSLError as error:
            # A node that speaks no TLS, or one that refuses ours, as far as it can say so.
            raise Unauthenticated(f"no TLS with {self.address}: {_words_of(error)}") from None
        except OSError as error:
            message = f"cannot connect to {self.address}: {reason_of(error)}"
            raise Unavailable(message) from None
        finally:
            self._dialling = None
            watch.end()
        return connection


def _words_of(error: ssl.SSLError) -> str:
    return str(error.reason or error).lower().replace("_", " ")
