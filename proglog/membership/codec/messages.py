"""The messages of memberlist, as they travel: one type byte and a msgpack map.

Names and numbers are those of memberlist 0.5, which speaks protocols 1 to 5.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Annotated, NamedTuple

from proglog.membership import limits
from proglog.membership.address import Address
from proglog.membership.codec.wire import (
    Wire,
    encode,
    flag,
    name,
    raw,
    text,
    unsigned,
)
from proglog.membership.errors import MalformedMessage


class Type(enum.IntEnum):
    """First byte of a memberlist message."""

    PING = 0
    INDIRECT_PING = 1
    ACK = 2
    SUSPECT = 3
    ALIVE = 4
    DEAD = 5
    PUSH_PULL = 6
    COMPOUND = 7
    USER = 8
    COMPRESSED = 9
    ENCRYPTED = 10
    NACK = 11
    CHECKSUMMED = 12
    ERROR = 13


class State(enum.IntEnum):
    """What memberlist believes of a node."""

    ALIVE = 0
    SUSPECT = 1
    DEAD = 2
    LEFT = 3


class Versions(NamedTuple):
    """Protocol versions a node speaks: memberlist's (min, max, current), then Serf's."""

    protocol_min: int
    protocol_max: int
    protocol: int
    delegate_min: int
    delegate_max: int
    delegate: int

    def speaks_with(self, other: Versions) -> bool:
        """Whether each understands what the other sends."""
        return (
            other.protocol_min <= self.protocol <= other.protocol_max
            and self.protocol_min <= other.protocol <= self.protocol_max
            and other.delegate_min <= self.delegate <= other.delegate_max
            and self.delegate_min <= other.delegate <= self.delegate_max
        )


OURS = Versions(1, 5, 2, 2, 5, 5)
"""What we advertise: the same as a stock agent of Serf 0.10."""

_u8, _u16, _u32, _u63 = unsigned(8), unsigned(16), unsigned(32), unsigned(63)
_port = unsigned(16)
_host = raw(16)
_payload = raw(limits.payload_bytes_max)


def _versions(value: object) -> Versions:
    data = raw(6)(value)
    if len(data) != 6 or not 0 < data[0] <= data[1]:
        raise MalformedMessage("expected six protocol versions")
    return Versions(*data)


# --- memberlist ----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Ping:
    """Are you there? Answered by an Ack with the same sequence number."""

    sequence: Annotated[int, Wire("SeqNo", _u32)]
    node: Annotated[str, Wire("Node", text(limits.name_bytes_max))] = ""
    source_host: Annotated[bytes, Wire("SourceAddr", _host)] = b""
    source_port: Annotated[int, Wire("SourcePort", _port)] = 0
    source_name: Annotated[str, Wire("SourceNode", text(limits.name_bytes_max))] = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class IndirectPing:
    """Please ping that node for me, and pass its answer on."""

    sequence: Annotated[int, Wire("SeqNo", _u32)]
    host: Annotated[bytes, Wire("Target", _host)]
    port: Annotated[int, Wire("Port", _port)]
    node: Annotated[str, Wire("Node", name)]
    nack: Annotated[bool, Wire("Nack", flag)] = False
    source_host: Annotated[bytes, Wire("SourceAddr", _host)] = b""
    source_port: Annotated[int, Wire("SourcePort", _port)] = 0
    source_name: Annotated[str, Wire("SourceNode", text(limits.name_bytes_max))] = ""

    @property
    def target(self) -> Address:
        return Address.unpack(self.host, self.port)


@dataclass(frozen=True, slots=True, kw_only=True)
class Ack:
    sequence: Annotated[int, Wire("SeqNo", _u32)]
    payload: Annotated[bytes, Wire("Payload", _payload)] = b""


@dataclass(frozen=True, slots=True, kw_only=True)
class Nack:
    """From the helper of an indirect ping: I am well, but that node did not answer me."""

    sequence: Annotated[int, Wire("SeqNo", _u32)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Suspect:
    incarnation: Annotated[int, Wire("Incarnation", _u32)]
    node: Annotated[str, Wire("Node", name)]
    source: Annotated[str, Wire("From", text(limits.name_bytes_max))] = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Dead:
    """A node is dead; from the node itself: it has left."""

    incarnation: Annotated[int, Wire("Incarnation", _u32)]
    node: Annotated[str, Wire("Node", name)]
    source: Annotated[str, Wire("From", text(limits.name_bytes_max))] = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Alive:
    incarnation: Annotated[int, Wire("Incarnation", _u32)]
    node: Annotated[str, Wire("Node", name)]
    host: Annotated[bytes, Wire("Addr", _host)]
    port: Annotated[int, Wire("Port", _port)]
    meta: Annotated[bytes, Wire("Meta", raw(limits.meta_bytes_max))] = b""
    versions: Annotated[Versions, Wire("Vsn", _versions, bytes)]

    @property
    def address(self) -> Address:
        return Address.unpack(self.host, self.port)


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeState:
    """One node in a push/pull."""

    node: Annotated[str, Wire("Name", name)]
    host: Annotated[bytes, Wire("Addr", _host)]
    port: Annotated[int, Wire("Port", _port)]
    meta: Annotated[bytes, Wire("Meta", raw(limits.meta_bytes_max))] = b""
    incarnation: Annotated[int, Wire("Incarnation", _u32)]
    state: Annotated[int, Wire("State", _u8)] = 0
    versions: Annotated[Versions, Wire("Vsn", _versions, bytes)]


@dataclass(frozen=True, slots=True, kw_only=True)
class PushPullHeader:
    nodes: Annotated[int, Wire("Nodes", _u32)] = 0
    user_state_bytes: Annotated[int, Wire("UserStateLen", _u32)] = 0
    join: Annotated[bool, Wire("Join", flag)] = False


@dataclass(frozen=True, slots=True, kw_only=True)
class UserHeader:
    """Before a user message on a stream."""

    payload_bytes: Annotated[int, Wire("UserMsgLen", _u32)] = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class RemoteError:
    """On a stream: the peer could not read what we sent."""

    reason: Annotated[str, Wire("Error", text())] = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Compressed:
    algorithm: Annotated[int, Wire("Algo", _u8)] = 0
    data: Annotated[bytes, Wire("Buf", raw(limits.stream_bytes_max))] = b""


BODIES: dict[Type, type] = {
    Type.PING: Ping,
    Type.INDIRECT_PING: IndirectPing,
    Type.ACK: Ack,
    Type.NACK: Nack,
    Type.SUSPECT: Suspect,
    Type.ALIVE: Alive,
    Type.DEAD: Dead,
    Type.ERROR: RemoteError,
}
_TYPES = {body: kind for kind, body in BODIES.items()}

PacketMessage = Ping | IndirectPing | Ack | Nack | Suspect | Alive | Dead


def encode_message(message: object) -> bytes:
    """A memberlist message with its type byte."""
    return bytes([_TYPES[type(message)]]) + encode(message)
