"""Connections between servers: who they are is proved first, then frames flow one way, from the
one that dialled (`outbound`) to the other (`inbound`)."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from typing import Protocol, TypeVar

import structlog

from proglog import limits
from proglog.batch import Buffer
from proglog.errors import RangeCorrupt
from proglog.log.log import Log
from proglog.raft import frames
from proglog.raft.configuration import Configuration
from proglog.raft.driver import Driver, ReceivedBatch
from proglog.raft.frames import Hello
from proglog.raft.hard_state import Identity
from proglog.raft.inbound import Inbound
from proglog.raft.messages import Message
from proglog.raft.outbound import Peer

_logger = structlog.get_logger("raft")
_T = TypeVar("_T")

Connect = Callable[[str, Callable[[], asyncio.Protocol]], Awaitable[object]]
"""Opens a connection to an address with a protocol. Raises OSError."""


class TransportHost(Protocol):
    """What the transport needs of the replica."""

    @property
    def identity(self) -> Identity: ...

    async def adopt_cluster(self, cluster_id: str) -> None:
        """This server joins a cluster, durably. Raises Unavailable if it belongs to another."""

    def configuration_of(self, state: bytes) -> Configuration:
        """The configuration in a snapshot's state."""

    def range_wanted(self, peer: str, first: int, last: int) -> None:
        """A peer whose batches are damaged asks for ours."""

    def range_received(self, batches: list[ReceivedBatch]) -> None:
        """The answer to `Transport.fetch`, from whoever it is."""

    def damaged(self, error: RangeCorrupt) -> None:
        """A batch that a follower needs cannot be read."""

    def failed(self, error: BaseException) -> None: ...


class Transport:
    """All connections of one replica."""

    def __init__(
        self,
        *,
        host: TransportHost,
        log: Log,
        log_id: str,
        rpc_addr: str,
        connect: Connect,
        chance: random.Random,
    ) -> None:
        self.host = host
        self.log = log
        self.log_id = log_id
        self.rpc_addr = rpc_addr
        self.connect = connect
        self.chance = chance
        self.driver: Driver
        """Set once, when the driver is made: the two need each other."""
        self._peers: dict[str, Peer] = {}
        self._configuration = Configuration()
        self._hints: dict[str, tuple[str, str]] = {}
        """(name, address) of servers that were heard of."""
        # In the order of their making, unlike a set: so that a simulated run is always the same.
        self._inbound: dict[Inbound, None] = {}
        self._refused: dict[str, str] = {}
        """Why each of those that called was refused last; they call again every second."""
        self._closed = False

    def send(self, message: Message) -> None:
        """Sends a message or drops it."""
        if not self._closed:
            self._peer(message.to).send(message)

    def fetch(self, uuid: str, first: int, last: int) -> None:
        """Asks a peer for committed batches; perhaps it answers by `range_received`."""
        self._peer(uuid).send_control(frames.encode_fetch(first, last))

    def answer_fetch(self, uuid: str, data: Buffer) -> None:
        """Sends a peer the batches that it asked for, if it can be reached."""
        self._peer(uuid).send_bulk(frames.encode_fetched(data))

    def _peer(self, uuid: str) -> Peer:
        peer = self._peers.get(uuid)
        if peer is None:
            peer = self._peers[uuid] = Peer(self, uuid)
        return peer

    def address_of(self, uuid: str) -> str:
        """Where a server is: the newest address heard of, or the configured one; may be ""."""
        if uuid == self.host.identity.uuid:
            return self.rpc_addr
        _, address = self._hints.get(uuid, ("", ""))
        server = self._configuration.find(uuid)
        return address or (server.address if server else "")

    def name_of(self, uuid: str) -> str:
        """What to call a server in front of people."""
        name, _ = self._hints.get(uuid, ("", ""))
        server = self._configuration.find(uuid)
        return (server.name if server else "") or name or uuid

    def set_configuration(self, configuration: Configuration) -> None:
        """Forgets connections to servers that are no members any more."""
        self._configuration = configuration
        for uuid in list(self._peers):
            if configuration.find(uuid) is None and uuid not in self._hints:
                self._peers.pop(uuid).close()

    def keep_warm(self) -> None:
        """Has the connections to all other servers ready, as far as they can be reached: a new
        leader that had to dial first would lose a heartbeat or two before it can commit."""
        for server in self._configuration.servers:
            if server.uuid != self.host.identity.uuid:
                self._peer(server.uuid).dial_soon()

    def hint(self, uuid: str, name: str, address: str) -> None:
        """Someone told where a server can be reached. The handshake proves who answers there."""
        if address and self._hints.get(uuid) != (name, address):
            before = self.address_of(uuid)
            _remember(self._hints, uuid, (name, address))
            if before != address and uuid in self._peers:
                # What is open to the old address may be open to nobody, and TCP would not say so
                # for a quarter of an hour.
                self._peers[uuid].dial_again()

    def disconnected(self, uuid: str) -> None:
        """A control lane that a peer had dialled has ended; by now there may be another one."""
        if not self._closed and all(each.heartbeats_of != uuid for each in self._inbound):
            self.driver.disconnected(uuid)

    def refused(self, hello: Hello, why: str) -> None:
        """A caller is turned away; told once."""
        if self._refused.get(hello.sender) != why:
            _remember(self._refused, hello.sender, why)
            peer = f"{hello.sender_name} at {hello.sender_addr}"
            _logger.warning("peer refused", peer=peer, why=why)

    def accept(self) -> asyncio.Protocol:
        """The protocol of a connection that another server dialled; PROLOGUE comes first."""
        return Inbound(self, self._inbound)

    def close(self) -> None:
        self._closed = True
        for peer in self._peers.values():
            peer.close()
        for inbound in list(self._inbound):
            inbound.close()


def _remember(known: dict[str, _T], uuid: str, what: _T) -> None:
    """Of servers that were heard of; there is a bound on them, and the oldest goes."""
    if len(known) >= limits.peer_hints_max:
        known.pop(next(iter(known)))
    known[uuid] = what
