"""Peers without a network: connections that take everything."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple, cast

from proglog.peers.frames import PROLOGUE, FrameReader, Lane, Type, UnknownType, frame
from proglog.peers.hello import Hello, Life, Refusal, Welcome, encode_hello, encode_welcome
from proglog.peers.peers import Peers
from proglog.ports import RealClock

GROUP = 2


class Who(NamedTuple):
    cluster_id: str = "cluster"
    uuid: str = "us"
    name: str = "us"


class Home:
    def __init__(self) -> None:
        self.identity = Who()
        self.failures: list[BaseException] = []
        self.doubts: list[tuple[str, str]] = []

    async def adopt_cluster(self, cluster_id: str) -> None:
        self.identity = self.identity._replace(cluster_id=cluster_id)

    def doubted(self, refusal: Refusal, by: str) -> None:
        self.doubts.append((refusal.code, by))

    def failed(self, error: BaseException) -> None:
        self.failures.append(error)


class Receiver:
    def __init__(self) -> None:
        self.received: list[tuple[str, int, bytes]] = []
        self.unreachables: list[str] = []
        self.disconnections: list[str] = []
        self.reconnections: list[str] = []
        self.ended: list[str] = []
        self.states: bytes | None = b"we"
        self.refusal: Refusal | None = None
        """What the statements of others get."""

    def statement(self) -> bytes | None:
        return self.states

    def stands(self, life: Life, payload: memoryview) -> Refusal | None:
        return self.refusal

    def receive(self, peer: str, type_: int, payload: memoryview) -> None:
        if type_ not in range(10, 30):
            raise UnknownType(f"type {type_}")
        self.received.append((peer, type_, bytes(payload)))

    def unreachable(self, peer: str) -> None:
        self.unreachables.append(peer)

    def reconnected(self, peer: str) -> None:
        self.reconnections.append(peer)

    def disconnected(self, peer: str) -> None:
        self.disconnections.append(peer)

    def bulk_ended(self, peer: str) -> None:
        self.ended.append(peer)


class Wire:
    """A connection that takes everything."""

    def __init__(self) -> None:
        self.written = b""
        self.aborted = self.closed = False
        self.is_stuck = False
        """Nobody reads."""
        self.protocol: asyncio.Protocol

    def get_extra_info(self, _name: str) -> None:
        return None

    def is_closing(self) -> bool:
        return self.closed or self.aborted

    def writelines(self, parts: Iterable[bytes]) -> None:
        self.written += b"".join(parts)

    def get_write_buffer_size(self) -> int:
        return len(self.written) if self.is_stuck else 0

    def pause_reading(self) -> None: ...
    def resume_reading(self) -> None: ...

    def abort(self) -> None:
        if not self.aborted:
            self.aborted = True
            asyncio.get_running_loop().call_soon(self.protocol.connection_lost, None)

    def close(self) -> None:
        self.closed = True

    @property
    def frames(self) -> list[tuple[int, int, bytes]]:
        """Type, group and payload of all that was said."""
        reader, found = FrameReader(), []
        reader.bytes_max = 2**20
        reader.feed(self.written.removeprefix(PROLOGUE))
        while (got := reader.next()) is not None:
            found.append((got[0], got[1], bytes(got[2])))
        return found


class Network:
    """Whoever is dialled at NAME:PORT is the server NAME. It welcomes us, and says nothing more."""

    def __init__(self) -> None:
        self.dialled: list[str] = []
        self.wires: list[Wire] = []
        self.down: set[str] = set()
        """Addresses that do not answer."""
        self.greets = True
        self.is_called = ""
        self.life = (1, "s")
        """Number and session of whoever answers."""

    async def connect(self, address: str, factory: Callable[[], asyncio.Protocol]) -> None:
        self.dialled.append(address)
        if address in self.down:
            await asyncio.sleep(3600)
        connection, wire = factory(), Wire()
        wire.protocol = connection
        self.wires.append(wire)
        connection.connection_made(cast("Any", wire))
        if self.greets:
            name = address.partition(":")[0]
            life = Life(self.is_called or name, name, *self.life)
            welcome = encode_welcome(Welcome(life, "cluster", 2))
            connection.data_received(b"".join(welcome))


def make_peers(network: Network, home: Home) -> Peers:
    peers = Peers(
        connect=network.connect, chance=random.Random(1), clock=RealClock(), rpc_addr="us:1"
    )
    peers.begin(home)
    return peers


def hello(sender: str, lane: str = "control", **changes: Any) -> Hello:
    return Hello(
        life=Life(sender, sender, 1, "s"),
        address=f"{sender}:1",
        cluster_id="cluster",
        cluster_name="",
        to="us",
        lane=lane,
    )._replace(**changes)


async def call(peers: Peers, said: Hello) -> tuple[asyncio.Protocol, Wire]:
    """A connection on which a node has said who it is."""
    connection, wire = peers.accept(), Wire()
    wire.protocol = connection
    connection.connection_made(cast("Any", wire))
    connection.data_received(b"".join([PROLOGUE, *encode_hello(said)]))
    await asyncio.sleep(0.001)
    return connection, wire


async def called(peers: Peers, sender: str, lane: Lane) -> asyncio.Protocol:
    connection, _ = await stood(peers, hello(sender, lane.value))
    return connection


async def stood(peers: Peers, said: Hello) -> tuple[asyncio.Protocol, Wire]:
    """Likewise, and where it stands in the group."""
    connection, wire = await call(peers, said)
    connection.data_received(b"".join(frame(Type.STAND, GROUP, bytes(32))))
    return connection, wire
