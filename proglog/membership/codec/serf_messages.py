"""The messages of Serf, as they travel: a type byte and a msgpack map, inside memberlist's user
message; and tags, which are memberlist's metadata of a node.

Names and numbers are those of Serf 0.10, which speaks protocols 2 to 5.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from typing import Annotated

from proglog.membership import limits
from proglog.membership.address import Address
from proglog.membership.codec.wire import (
    Wire,
    decode,
    encode,
    flag,
    items,
    lamport,
    mapping,
    name,
    nested,
    pack,
    raw,
    text,
    unpack,
    unsigned,
)
from proglog.membership.errors import MalformedMessage


class SerfType(enum.IntEnum):
    """First byte of a Serf message, inside a memberlist user message."""

    LEAVE = 0
    JOIN = 1
    PUSH_PULL = 2
    USER_EVENT = 3
    QUERY = 4
    QUERY_RESPONSE = 5
    CONFLICT_RESPONSE = 6
    KEY_REQUEST = 7
    KEY_RESPONSE = 8
    RELAY = 9


_u8, _u32, _u63 = unsigned(8), unsigned(32), unsigned(63)
_port = unsigned(16)
_host = raw(16)
_payload = raw(limits.payload_bytes_max)


@dataclass(frozen=True, slots=True, kw_only=True)
class JoinIntent:
    """At this Lamport time the node was a member and meant to be."""

    ltime: Annotated[int, Wire("LTime", lamport)]
    node: Annotated[str, Wire("Node", name)]


@dataclass(frozen=True, slots=True, kw_only=True)
class LeaveIntent:
    """At this Lamport time the node meant to leave, or was made to; `prune`: forget it at once."""

    ltime: Annotated[int, Wire("LTime", lamport)]
    node: Annotated[str, Wire("Node", name)]
    prune: Annotated[bool, Wire("Prune", flag)] = False


@dataclass(frozen=True, slots=True, kw_only=True)
class UserEventMessage:
    ltime: Annotated[int, Wire("LTime", lamport)]
    name: Annotated[str, Wire("Name", text())]
    payload: Annotated[bytes, Wire("Payload", _payload)] = b""
    coalesce: Annotated[bool, Wire("CC", flag)] = False


@dataclass(frozen=True, slots=True, kw_only=True)
class KeptEvent:
    name: Annotated[str, Wire("Name", text())]
    payload: Annotated[bytes, Wire("Payload", _payload)] = b""


@dataclass(frozen=True, slots=True, kw_only=True)
class KeptEvents:
    """The user events of one Lamport time."""

    ltime: Annotated[int, Wire("LTime", lamport)]
    events: Annotated[
        tuple[KeptEvent, ...], Wire("Events", items(nested(KeptEvent), limits.array_items_max))
    ] = ()


def _kept_events(value: object) -> KeptEvents | None:
    # Go sends its whole ring buffer, mostly nil.
    return None if value is None else nested(KeptEvents)(value)


@dataclass(frozen=True, slots=True, kw_only=True)
class SerfState:
    """Serf's half of a push/pull."""

    ltime: Annotated[int, Wire("LTime", lamport)] = 0
    status_ltimes: Annotated[
        dict[str, int], Wire("StatusLTimes", mapping(name, lamport, limits.map_items_max))
    ] = field(default_factory=dict)
    left: Annotated[tuple[str, ...], Wire("LeftMembers", items(name, limits.nodes_max))] = ()
    event_ltime: Annotated[int, Wire("EventLTime", lamport)] = 0
    events: Annotated[
        tuple[KeptEvents | None, ...], Wire("Events", items(_kept_events, limits.array_items_max))
    ] = ()
    query_ltime: Annotated[int, Wire("QueryLTime", lamport)] = 0


class QueryFlag(enum.IntFlag):
    ACK = 1
    NO_BROADCAST = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class QueryMessage:
    """A question to all members that pass its filters; answers go straight to the source."""

    ltime: Annotated[int, Wire("LTime", lamport)]
    id: Annotated[int, Wire("ID", _u32)]
    host: Annotated[bytes, Wire("Addr", _host)]
    port: Annotated[int, Wire("Port", _port)]
    source: Annotated[str, Wire("SourceNode", text(limits.name_bytes_max))] = ""
    filters: Annotated[
        tuple[bytes, ...], Wire("Filters", items(raw(limits.payload_bytes_max), limits.filters_max))
    ] = ()
    flags: Annotated[int, Wire("Flags", _u32)] = 0
    relay_factor: Annotated[int, Wire("RelayFactor", _u8)] = 0
    timeout_ns: Annotated[int, Wire("Timeout", _u63)] = 0
    name: Annotated[str, Wire("Name", text())]
    payload: Annotated[bytes, Wire("Payload", _payload)] = b""

    @property
    def reply_to(self) -> Address:
        return Address.unpack(self.host, self.port)


@dataclass(frozen=True, slots=True, kw_only=True)
class QueryResponse:
    ltime: Annotated[int, Wire("LTime", lamport)]
    id: Annotated[int, Wire("ID", _u32)]
    source: Annotated[str, Wire("From", name)]
    flags: Annotated[int, Wire("Flags", _u32)] = 0
    payload: Annotated[bytes, Wire("Payload", _payload)] = b""


@dataclass(frozen=True, slots=True, kw_only=True)
class TagFilter:
    tag: Annotated[str, Wire("Tag", text())]
    expression: Annotated[str, Wire("Expr", text())]


@dataclass(frozen=True, slots=True, kw_only=True)
class ConflictResponse:
    """What the answering node knows of a name that two claim (Go: serf.Member)."""

    node: Annotated[str, Wire("Name", name)]
    host: Annotated[bytes, Wire("Addr", _host)]
    port: Annotated[int, Wire("Port", _port)]
    tags: Annotated[dict[str, str], Wire("Tags", mapping(text(), text(), limits.tags_max))] = field(
        default_factory=dict
    )
    status: Annotated[int, Wire("Status", _u8)] = 0
    protocol_min: Annotated[int, Wire("ProtocolMin", _u8)] = 0
    protocol_max: Annotated[int, Wire("ProtocolMax", _u8)] = 0
    protocol: Annotated[int, Wire("ProtocolCur", _u8)] = 0
    delegate_min: Annotated[int, Wire("DelegateMin", _u8)] = 0
    delegate_max: Annotated[int, Wire("DelegateMax", _u8)] = 0
    delegate: Annotated[int, Wire("DelegateCur", _u8)] = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyRequest:
    key: Annotated[bytes, Wire("Key", raw(64))] = b""


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyResponse:
    result: Annotated[bool, Wire("Result", flag)] = False
    message: Annotated[str, Wire("Message", text())] = ""
    keys: Annotated[tuple[str, ...], Wire("Keys", items(text(), limits.keys_max))] = ()
    primary_key: Annotated[str, Wire("PrimaryKey", text())] = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class RelayDestination:
    """Go: net.UDPAddr."""

    host: Annotated[bytes, Wire("IP", _host)]
    port: Annotated[int, Wire("Port", _port)]
    zone: Annotated[str, Wire("Zone", text())] = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class RelayHeader:
    """Before a message that is to be passed on to somebody else."""

    destination: Annotated[RelayDestination, Wire("DestAddr", nested(RelayDestination))]
    name: Annotated[str, Wire("DestName", text(limits.name_bytes_max))] = ""

    @property
    def address(self) -> Address:
        return Address.unpack(self.destination.host, self.destination.port)


SERF_BODIES: dict[SerfType, type] = {
    SerfType.LEAVE: LeaveIntent,
    SerfType.JOIN: JoinIntent,
    SerfType.PUSH_PULL: SerfState,
    SerfType.USER_EVENT: UserEventMessage,
    SerfType.QUERY: QueryMessage,
    SerfType.QUERY_RESPONSE: QueryResponse,
    SerfType.CONFLICT_RESPONSE: ConflictResponse,
    SerfType.KEY_REQUEST: KeyRequest,
    SerfType.KEY_RESPONSE: KeyResponse,
}
_SERF_TYPES = {body: kind for kind, body in SERF_BODIES.items()}


def encode_serf(message: object) -> bytes:
    """A Serf message with its type byte."""
    return bytes([_SERF_TYPES[type(message)]]) + encode(message)


def decode_serf(kind: SerfType, payload: bytes) -> object:
    """The Serf message of this kind, its type byte included. Raises MalformedMessage."""
    if not payload or payload[0] != kind:
        raise MalformedMessage(f"expected a Serf {kind.name} message")
    return decode(SERF_BODIES[kind], payload[1:])


# --- tags ----------------------------------------------------------------------------------------

_TAGS_MAGIC = b"\xff"
_tags = mapping(text(), text(), limits.tags_max)


def encode_tags(tags: dict[str, str]) -> bytes:
    """A node's tags as memberlist metadata."""
    return _TAGS_MAGIC + pack(tags)


def decode_tags(meta: bytes) -> dict[str, str]:
    """Tags of a node. Serf before protocol 3 sends only its role. Raises MalformedMessage."""
    if meta.startswith(_TAGS_MAGIC):
        tags: dict[str, str] = _tags(unpack(meta[1:]))
        return tags
    return {"role": text(limits.meta_bytes_max)(meta)} if meta else {}
