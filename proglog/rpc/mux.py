"""One port for Raft, gRPC and HTTP: the first bytes of a connection decide what it speaks.

0x01 is Raft, `PRI ` is HTTP/2 and so gRPC, anything else HTTP/1.1. With TLS the protocol that was
negotiated (ALPN) decides; where none was, the first bytes inside do. A connection has a deadline to
say what it is, and there is a bound on their number.

Own accept loop rather than `loop.create_server`: it looks at the first byte before it chooses the
protocol, takes the TLS context that is in force at that moment, reports a failed handshake, and
answers a peer that speaks TLS to a plaintext port, or the reverse, in words that its user sees.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import functools
import logging
import socket
import ssl
from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

from proglog import limits
from proglog.ports import connections_max

log = logging.getLogger(__name__)

ProtocolFactory = Callable[[], asyncio.BaseProtocol]

ALPN_RAFT, ALPN_HTTP, ALPN_GRPC = "proglog-raft/1", "http/1.1", "h2"
ALPN = (ALPN_RAFT, ALPN_HTTP, ALPN_GRPC)
"""In this order for `SSLContext.set_alpn_protocols`: curl offers both h2 and http/1.1 and must land
on HTTP, while gRPC clients offer h2 only."""

_HTTP2_PREFACE = b"PRI "
_TLS_HANDSHAKE = 0x16
_RAFT = 0x01
_ALERT_PROTOCOL_VERSION = bytes.fromhex("15030100020246")
"""A TLS alert, fatal, protocol_version: what makes a TLS client say more than "connection lost"."""
_PLAINTEXT_ANSWER = (
    b"HTTP/1.1 400 Bad Request\r\nContent-Type: text/plain\r\nConnection: close\r\n"
    b"Content-Length: 22\r\n\r\nThis port speaks TLS.\n"
)
_ACCEPT_RETRY_SECONDS = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Routes:
    """Who takes a connection. Without `raft` its connections are closed."""

    grpc: ProtocolFactory
    http: ProtocolFactory
    raft: ProtocolFactory | None = None

    def by_prefix(self, prefix: bytes) -> ProtocolFactory | None:
        if prefix[:1] == bytes((_RAFT,)):
            return self.raft
        return self.grpc if prefix.startswith(_HTTP2_PREFACE) else self.http

    def by_alpn(self, name: str) -> ProtocolFactory | None:
        return {ALPN_RAFT: self.raft, ALPN_HTTP: self.http, ALPN_GRPC: self.grpc}[name]


def _is_undecided(prefix: bytes) -> bool:
    return len(prefix) < len(_HTTP2_PREFACE) and _HTTP2_PREFACE.startswith(prefix)


class Mux:
    """Accepts connections on one listening socket, which it owns from then on."""

    def __init__(
        self,
        listener: socket.socket,
        routes: Routes,
        *,
        tls: Callable[[], ssl.SSLContext] | None = None,
    ) -> None:
        """`tls` gives the context in force, with `ALPN` set; without it the port is plaintext."""
        self._listener = listener
        self._routes = routes
        self._tls = tls
        self._open: set[_Socket] = set()
        self._openings: set[asyncio.Task[None]] = set()
        self._accepting: asyncio.Task[None] | None = None

    @property
    def address(self) -> tuple[str, int]:
        """Host and port that it listens on."""
        host, port = self._listener.getsockname()[:2]
        return host, port

    @property
    def connections(self) -> int:
        """Open connections, whatever they speak."""
        return len(self._open)

    async def serve(self) -> None:
        """Accepts connections until `close`."""
        self._accepting = asyncio.get_running_loop().create_task(self._accept_all())
        try:
            await asyncio.wait([self._accepting])
        finally:
            self._accepting.cancel()
        if not self._accepting.cancelled():
            self._accepting.result()

    async def close(self) -> None:
        """Stops accepting, and drops connections that have not yet said what they speak. The others
        belong to their protocols."""
        tasks = [*self._openings]
        if self._accepting is not None:
            tasks.append(self._accepting)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._listener.close()

    # --- accepting

    async def _accept_all(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            # Not `loop.sock_accept`: cancelled after it accepted, it would lose the connection.
            await _readable(self._listener)
            try:
                connection = _Socket(*self._listener.accept(), self._open)
            except OSError as error:
                await self._pause(error)
                continue
            if len(self._open) > connections_max():
                log.warning("refused a connection: %d are open", len(self._open) - 1)
                connection.close()
                continue
            task = loop.create_task(self._admit(connection))
            self._openings.add(task)
            task.add_done_callback(functools.partial(self._admitted, connection))

    async def _pause(self, error: OSError) -> None:
        if error.errno not in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM):
            log.info("a connection was lost before it was accepted: %s", error)
            return
        # The connection stays in the backlog: without a pause this would spin.
        log.error("cannot accept connections: %s; trying again", error)
        await asyncio.sleep(_ACCEPT_RETRY_SECONDS)

    async def _admit(self, connection: _Socket) -> None:
        try:
            async with asyncio.timeout(limits.sniff_seconds_max):
                await self._route(connection)
        except (OSError, TimeoutError) as error:  # ssl.SSLError is an OSError
            log.info("connection from %s dropped: %s", connection.peer, error or "it says nothing")

    def _admitted(self, connection: _Socket, task: asyncio.Task[None]) -> None:
        # Here and not in the task, which may be cancelled before its first step.
        self._openings.discard(task)
        if not connection.has_transport:
            connection.close()

    async def _route(self, connection: _Socket) -> None:
        prefix = await _peek(connection)
        speaks_tls = prefix[:1] == bytes((_TLS_HANDSHAKE,))
        if self._tls is not None and speaks_tls:
            await self._open_tls(connection, self._tls())
        elif self._tls is not None or speaks_tls or not prefix:
            answer = _ALERT_PROTOCOL_VERSION if speaks_tls else _PLAINTEXT_ANSWER
            _refuse(connection, answer if prefix else b"")
        else:
            await self._hand_over(connection, self._routes.by_prefix(prefix))

    async def _hand_over(self, connection: _Socket, factory: ProtocolFactory | None) -> None:
        if factory is not None:
            connection.has_transport = True
            await asyncio.get_running_loop().connect_accepted_socket(factory, connection)

    async def _open_tls(self, connection: _Socket, context: ssl.SSLContext) -> None:
        loop = asyncio.get_running_loop()
        decided = loop.create_future()
        connection.has_transport = True
        transport, _ = await loop.connect_accepted_socket(
            lambda: _TlsSniffer(self._routes, decided), connection, ssl=context
        )
        try:
            await decided
        except BaseException:
            transport.abort()
            raise


def _refuse(connection: _Socket, answer: bytes) -> None:
    # The buffer of a fresh connection has room; what the peer sent is read, or closing would reset.
    with contextlib.suppress(OSError):
        connection.recv(65536)
        connection.send(answer)


class _Socket(socket.socket):
    """An accepted socket that counts among the open ones until it is closed."""

    has_transport = False
    """Whether a transport owns it, and closes it."""

    def __init__(self, accepted: socket.socket, peer: object, connections: set[_Socket]) -> None:
        self.peer = peer
        super().__init__(fileno=accepted.detach())
        self.setblocking(False)
        # Finds peers that are gone without a word: after a minute of silence, then three probes.
        self.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        self.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 60)
        self.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 10)
        self.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3)
        self._connections = connections
        connections.add(self)

    def close(self) -> None:
        self._connections.discard(self)
        super().close()

    def detach(self) -> int:
        # uvloop closes the descriptor itself, and detaches the socket from it.
        self._connections.discard(self)
        return super().detach()


async def _peek(connection: _Socket) -> bytes:
    """The first bytes, as many as decide the route; fewer if the peer sends no more. They stay in
    the socket."""
    prefix = b""
    while _is_undecided(prefix):
        # So that the bytes already there do not wake us again.
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, len(prefix) + 1)
        await _readable(connection)
        longer = connection.recv(len(_HTTP2_PREFACE), socket.MSG_PEEK)
        if len(longer) == len(prefix):
            break
        prefix = longer
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, 1)
    return prefix


async def _readable(waited_for: socket.socket) -> None:
    loop = asyncio.get_running_loop()
    ready = loop.create_future()
    descriptor = waited_for.fileno()

    def wake() -> None:
        if not ready.done():
            ready.set_result(None)

    loop.add_reader(descriptor, wake)
    try:
        await ready
    finally:
        loop.remove_reader(descriptor)


class _TlsSniffer(asyncio.Protocol):
    """Takes a connection after its handshake, until its protocol is known."""

    def __init__(self, routes: Routes, decided: asyncio.Future[None]) -> None:
        self._routes = routes
        self._decided = decided
        self._received = b""
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # By its methods: uvloop has a class of its own.
        transport = cast("asyncio.Transport", transport)
        self._transport = transport
        chosen = transport.get_extra_info("ssl_object").selected_alpn_protocol()
        if chosen is not None:
            self._hand_over(self._routes.by_alpn(chosen))

    def data_received(self, data: bytes) -> None:
        self._received += data
        if not _is_undecided(self._received):
            self._hand_over(self._routes.by_prefix(self._received))

    def connection_lost(self, exc: Exception | None) -> None:
        if not self._decided.done():
            self._decided.set_exception(exc or ConnectionResetError("closed after the handshake"))

    def _hand_over(self, factory: ProtocolFactory | None) -> None:
        assert self._transport is not None
        if not self._decided.done():
            self._decided.set_result(None)
        if factory is None:
            self._transport.close()
            return
        protocol = factory()
        self._transport.set_protocol(protocol)
        protocol.connection_made(self._transport)
        if self._received:
            _feed(protocol, self._received)


def _feed(protocol: asyncio.BaseProtocol, data: bytes) -> None:
    if isinstance(protocol, asyncio.Protocol):
        protocol.data_received(data)
        return
    assert isinstance(protocol, asyncio.BufferedProtocol)
    view = memoryview(data)
    while view:
        buffer = memoryview(protocol.get_buffer(len(view)))
        size = min(len(view), len(buffer))
        buffer[:size] = view[:size]
        protocol.buffer_updated(size)
        view = view[size:]
