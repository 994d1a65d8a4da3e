"""TLS of one accepted connection: which context, whose certificate, which protocol inside.

What a client offers (ALPN) is read before any cryptography and decides between two contexts that
share nothing. Only-`proglog-raft/1` or only-`proglog-peer/1` is a peer's: certificates of the
peers' authority. All else is a client's. So no certificate of the one kind opens what the other
kind may do, whatever its first bytes are.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

from proglog import limits
from proglog.auth import principal as principals
from proglog.auth.certificates import facts_of_der
from proglog.auth.client_hello import offered_protocols
from proglog.auth.principal import Principal
from proglog.auth.tls import CLIENTS, PEERS, Contexts, alert_of, why_failed
from proglog.errors import Unauthenticated, let_go
from proglog.peers.hello import Refusal, encode_refusal
from proglog.rpc.routes import HTTP2_PREFACE, ProtocolFactory, Routes, is_undecided

ALERT_NO_PROTOCOL = bytes.fromhex("15030300020278")
"""A TLS alert, fatal, no_application_protocol."""
_SPEAKS_TLS = b"This port speaks TLS.\n"
_HTTP_ANSWER = (
    b"HTTP/1.1 400 Bad Request\r\nContent-Type: text/plain\r\nConnection: close\r\n"
    b"Content-Length: %d\r\n\r\n%s" % (len(_SPEAKS_TLS), _SPEAKS_TLS)
)
_FRAME = struct.Struct(">HBBBL")
_SETTINGS, _GOAWAY, _INADEQUATE_SECURITY = 4, 7, 0xC
_RAFT = b"\x01"


def tls_wanted(prefix: bytes) -> bytes:
    """What tells a plaintext client of any kind that this port speaks TLS."""
    if prefix.startswith(HTTP2_PREFACE):
        said = struct.pack(">LL", 0, _INADEQUATE_SECURITY) + _SPEAKS_TLS.strip()
        settings = _FRAME.pack(0, 0, _SETTINGS, 0, 0)
        return settings + _FRAME.pack(0, len(said), _GOAWAY, 0, 0) + said
    if prefix[:1] == _RAFT:
        return b"".join(encode_refusal(Refusal("TLS", "this port speaks TLS")))
    return _HTTP_ANSWER if prefix else b""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tls:
    """TLS on one port. `contexts` are those in force now; `refused` is told of whoever was turned
    away, from where and why."""

    contexts: Callable[[], Contexts]
    is_required: bool
    refused: Callable[[str, str], None]


class NoProtocol(Exception):
    """The other end offers nothing that is spoken here."""


class Handshake:
    """See the module."""

    def __init__(self, tls: Tls, routes: Routes, hello: bytes, source: str) -> None:
        """`hello` is the first record, which stays in the socket. Raises NoProtocol."""
        self._tls = tls
        self._routes = routes
        self._source = source
        contexts = tls.contexts()
        offered = offered_protocols(hello)
        self.is_peer = offered is not None and len(offered) == 1 and offered[0] in PEERS
        if offered and not self.is_peer and not _suit_a_client(offered):
            raise NoProtocol("it offers no protocol that is spoken here, or of both kinds")
        self._context = contexts.peers if self.is_peer else contexts.clients

    async def run(self, connection: socket.socket, spare: socket.socket) -> None:
        """Until the protocol inside is known and has taken over. `spare` is another descriptor of
        the same connection. Raises OSError."""
        loop = asyncio.get_running_loop()
        decided: asyncio.Future[None] = loop.create_future()
        try:
            transport, _ = await loop.connect_accepted_socket(
                lambda: _Sniffer(self, decided), connection, ssl=self._context
            )
        except OSError as error:
            self._tls.refused(self._source, why_failed(error))
            alert = alert_of(error)
            let_go(error)
            if alert:
                await _say(spare, alert)
            return
        try:
            await decided
        except BaseException as error:
            transport.abort()
            if not isinstance(error, Unauthenticated):
                raise
            self._tls.refused(self._source, str(error))

    def principal(self, wire: ssl.SSLObject) -> Principal:
        """Who the handshake proved. Raises Unauthenticated."""
        if wire.session_reused:
            raise Unauthenticated("a resumed session proves nothing that is still so")
        certificate = wire.getpeercert(binary_form=True)
        if certificate is None:
            return principals.anonymous(self._source)
        try:
            facts = facts_of_der(certificate)
        except ValueError:
            raise Unauthenticated("the certificate is malformed") from None
        make = principals.peer if self.is_peer else principals.client
        return make(facts, self._source)

    def by_protocol(self, name: str) -> ProtocolFactory | None:
        """None where it is not of the kind that the context was chosen for."""
        kind = PEERS if self.is_peer else CLIENTS
        return self._routes.by_protocol(name) if name in kind else None

    def by_prefix(self, prefix: bytes) -> ProtocolFactory | None:
        """Of a client that has negotiated nothing. Raft is not a client's."""
        return None if prefix[:1] == _RAFT or self.is_peer else self._routes.by_prefix(prefix)


def _suit_a_client(offered: tuple[str, ...]) -> bool:
    return any(name in CLIENTS for name in offered) and not any(name in PEERS for name in offered)


async def _say(connection: socket.socket, alert: bytes) -> None:
    """Sends the last words and waits until the other end hangs up: to close with something unread
    would reset the connection, and take the words along."""
    loop = asyncio.get_running_loop()
    left = limits.tls_farewell_bytes_max
    with contextlib.suppress(OSError):
        async with asyncio.timeout(limits.tls_farewell_seconds_max):
            await loop.sock_sendall(connection, alert)
            connection.shutdown(socket.SHUT_WR)
            while left > 0 and (got := await loop.sock_recv(connection, min(left, 4096))):
                left -= len(got)


class _Sniffer(asyncio.Protocol):
    """Takes a connection after its handshake, until its protocol is known."""

    def __init__(self, handshake: Handshake, decided: asyncio.Future[None]) -> None:
        self._handshake = handshake
        self._decided = decided
        self._received = b""
        self._transport: asyncio.Transport
        self._principal: Principal

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # By its methods: uvloop has a class of its own.
        self._transport = cast("asyncio.Transport", transport)
        wire = transport.get_extra_info("ssl_object")
        try:
            self._principal = self._handshake.principal(wire)
        except Unauthenticated as error:
            self._decided.set_exception(error)
            return
        chosen = wire.selected_alpn_protocol()
        if chosen is not None:
            self._hand_over(self._handshake.by_protocol(chosen))

    def data_received(self, data: bytes) -> None:
        if self._decided.done():
            return
        self._received += data
        if not is_undecided(self._received):
            self._hand_over(self._handshake.by_prefix(self._received))

    def connection_lost(self, exc: Exception | None) -> None:
        if not self._decided.done():
            self._decided.set_exception(exc or ConnectionResetError("closed after the handshake"))

    def _hand_over(self, factory: ProtocolFactory | None) -> None:
        if not self._decided.done():
            self._decided.set_result(None)
        if factory is None:
            self._transport.close()
            return
        protocol = factory(self._principal)
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
