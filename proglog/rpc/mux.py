"""One port for Raft, gRPC and HTTP: the first bytes of a connection decide what it speaks.

0x01 is Raft, `PRI ` is HTTP/2 and so gRPC, anything else HTTP/1.1. What begins as TLS is the
business of `handshake`. A connection has a deadline to say what it is, and there is a bound on
their number.

Own accept loop rather than `loop.create_server`: it looks at the first byte before it chooses the
protocol, takes the TLS contexts that are in force at that moment, reports a failed handshake, and
answers a peer that speaks TLS to a plaintext port, or the reverse, in words that its user sees.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import functools
import logging
import os
import socket
from collections import Counter

from proglog import limits
from proglog.auth.client_hello import RECORD_HEADER_BYTES, record_bytes
from proglog.auth.principal import anonymous
from proglog.grpc.budgets import Budgets, Seldom
from proglog.net.listening import unmapped
from proglog.ports import connections_max
from proglog.rpc.handshake import ALERT_NO_PROTOCOL, Handshake, NoProtocol, Tls, tls_wanted
from proglog.rpc.routes import HTTP2_PREFACE, ProtocolFactory, Routes, is_undecided

log = logging.getLogger(__name__)

_TLS_HANDSHAKE = 0x16
_ALERT_PROTOCOL_VERSION = bytes.fromhex("15030100020246")
"""A TLS alert, fatal, protocol_version: what makes a TLS client say more than "connection lost"."""
_ACCEPT_RETRY_SECONDS = 0.5


class Mux:
    """Accepts connections on one listening socket, which it owns from then on."""

    def __init__(
        self,
        listener: socket.socket,
        routes: Routes,
        *,
        tls: Tls | None = None,
        budgets: Budgets | None = None,
    ) -> None:
        """Without `tls` the port is plaintext."""
        self._budgets = budgets or Budgets()
        self._seldom = Seldom(asyncio.get_running_loop().time)
        self._listener = listener
        self._routes = routes
        self._tls = tls
        self._open: dict[_Socket, None] = {}  # the oldest first
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
            if not self._has_place(connection):
                connection.close()
                continue
            task = loop.create_task(self._admit(connection))
            self._openings.add(task)
            task.add_done_callback(functools.partial(self._admitted, connection))

    def _has_place(self, newcomer: _Socket) -> bool:
        """Whether there is room for one more, which whoever has most connections may have to make.

        So one source that opens all it can keeps nobody else out; among the connections of one
        source those that were there first stay."""
        full = len(self._open) > connections_max()
        if not full and len(self._openings) < limits.undecided_connections_max:
            return True
        self._budgets.count("connections" if full else "undecided_connections")
        candidates = [each for each in self._open if not each.is_peer]
        if not full:
            candidates = [each for each in candidates if not each.has_transport]
        counts = Counter(each.host for each in candidates)
        busiest = max(counts, key=counts.__getitem__)
        if counts[busiest] <= counts[newcomer.host]:
            text = f"from {newcomer.source}: {len(self._open) - 1:,} are open"
            self._seldom.tell(logging.WARNING, "refused a connection", text)
            return False
        oldest = next(each for each in candidates if each.host == busiest)
        text = f"the oldest of {counts[busiest]:,} from {busiest}: another source needs one"
        self._seldom.tell(logging.WARNING, "ended a connection", text)
        with contextlib.suppress(OSError):
            oldest.shutdown(socket.SHUT_RDWR)
        return True

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
            if isinstance(error, TimeoutError):
                self._budgets.count("preface_seconds")
            text = f"from {connection.source}: {error or 'it says nothing'}"
            self._seldom.tell(logging.INFO, "dropped a connection", text)

    def _admitted(self, connection: _Socket, task: asyncio.Task[None]) -> None:
        # Here and not in the task, which may be cancelled before its first step.
        self._openings.discard(task)
        if not connection.has_transport:
            connection.close()

    async def _route(self, connection: _Socket) -> None:
        prefix = await _peek(connection)
        tls = self._tls
        if prefix[:1] == bytes((_TLS_HANDSHAKE,)):
            if tls is None:
                _refuse(connection, _ALERT_PROTOCOL_VERSION)
            else:
                await self._shake_hands(connection, tls)
        elif tls is not None and tls.is_required:
            tls.refused(connection.source, "it does not speak TLS")
            _refuse(connection, tls_wanted(prefix))
        elif prefix:
            await self._hand_over(connection, self._routes.by_prefix(prefix))

    async def _hand_over(self, connection: _Socket, factory: ProtocolFactory | None) -> None:
        connection.is_peer = factory is not None and factory is self._routes.raft
        if factory is not None and (connection.is_peer or self._leaves_room_for_peers()):
            connection.has_transport = True
            principal = anonymous(connection.source)
            loop = asyncio.get_running_loop()
            await loop.connect_accepted_socket(lambda: factory(principal), connection)

    def _leaves_room_for_peers(self) -> bool:
        """Whether a client may come in: some places are for other nodes alone."""
        most = connections_max()
        reserved = min(limits.peer_connections_reserved, most // 4)
        if len(self._open) <= most - reserved:
            return True
        clients = sum(not each.is_peer for each in self._open)
        if clients <= most - reserved:
            return True
        self._budgets.count("peer_connections_reserved")
        text = f"{clients - 1:,} clients are connected"
        self._seldom.tell(logging.WARNING, "refused a connection", text)
        return False

    async def _shake_hands(self, connection: _Socket, tls: Tls) -> None:
        hello = await _peek_record(connection)
        try:
            handshake = Handshake(tls, self._routes, hello, connection.source)
        except NoProtocol as error:
            tls.refused(connection.source, str(error))
            _refuse(connection, ALERT_NO_PROTOCOL)
            return
        connection.is_peer = handshake.is_peer
        if not connection.is_peer and not self._leaves_room_for_peers():
            return
        # By the time that a handshake has failed, the loop has closed the descriptor it was given.
        with socket.socket(fileno=os.dup(connection.fileno())) as spare:
            spare.setblocking(False)
            connection.has_transport = True
            await handshake.run(connection, spare)


def _refuse(connection: _Socket, answer: bytes) -> None:
    # The buffer of a fresh connection has room; what the peer sent is read, or closing would reset.
    with contextlib.suppress(OSError):
        connection.recv(65536)
        connection.send(answer)


def source_of(peer: object) -> str:
    """Host and port of an address, as people write it."""
    if not isinstance(peer, tuple):
        return str(peer)
    host, port = unmapped(peer[0]), peer[1]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


class _Socket(socket.socket):
    """An accepted socket that counts among the open ones until it is closed."""

    is_peer = False
    """Whether it speaks as another node does."""
    has_transport = False
    """Whether a transport owns it, and closes it."""

    def __init__(
        self, accepted: socket.socket, peer: object, connections: dict[_Socket, None]
    ) -> None:
        self.peer = peer
        self.source = source_of(peer)
        self.host = unmapped(peer[0]) if isinstance(peer, tuple) else str(peer)
        super().__init__(fileno=accepted.detach())
        self.setblocking(False)
        # Finds peers that are gone without a word: after a minute of silence, then three probes.
        self.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        self.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 60)
        self.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 10)
        self.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3)
        self._connections = connections
        connections[self] = None

    def close(self) -> None:
        self._connections.pop(self, None)
        super().close()

    def detach(self) -> int:
        # uvloop closes the descriptor itself, and detaches the socket from it.
        self._connections.pop(self, None)
        return super().detach()


async def _peek(connection: _Socket) -> bytes:
    """The first bytes, as many as decide the route; fewer if the peer sends no more. They stay in
    the socket."""
    prefix = b""
    while is_undecided(prefix):
        # So that the bytes already there do not wake us again.
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, len(prefix) + 1)
        await _readable(connection)
        longer = connection.recv(len(HTTP2_PREFACE), socket.MSG_PEEK)
        if len(longer) == len(prefix):
            break
        prefix = longer
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, 1)
    return prefix


async def _peek_record(connection: _Socket) -> bytes:
    """The first record of TLS, or as much of it as comes. It stays in the socket. However it is cut
    into packets, this wakes up twice."""
    record = b""
    wanted = RECORD_HEADER_BYTES
    while len(record) < wanted:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, wanted)
        await _readable(connection)
        longer = connection.recv(wanted, socket.MSG_PEEK)
        if len(longer) == len(record):
            break
        record = longer
        if len(record) >= RECORD_HEADER_BYTES:
            wanted = record_bytes(record)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, 1)
    return record


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
