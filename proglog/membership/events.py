"""What the membership tells its user: members, and what happens to them."""

from __future__ import annotations

import enum
from dataclasses import dataclass

from proglog.membership.address import Address


class Status(enum.StrEnum):
    ALIVE = "alive"
    LEAVING = "leaving"
    LEFT = "left"
    FAILED = "failed"

    @property
    def gone(self) -> bool:
        return self in {Status.FAILED, Status.LEFT}


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """One member at one moment. `address` is an IP address, `protocol` Serf's protocol version.
    `heard`: it has answered this node itself; of others there is only talk."""

    name: str
    address: str
    port: int
    status: Status
    tags: dict[str, str]
    protocol: int
    heard: bool = False


@dataclass(frozen=True, slots=True)
class MemberJoined:
    """A node is there: new, or again."""

    member: Member


@dataclass(frozen=True, slots=True)
class MemberUpdated:
    """Its tags have changed."""

    member: Member


@dataclass(frozen=True, slots=True)
class MemberLeaving:
    """It has said that it is about to leave."""

    member: Member


@dataclass(frozen=True, slots=True)
class MemberLeft:
    """It has left, or was made to leave after it had failed."""

    member: Member


@dataclass(frozen=True, slots=True)
class MemberFailed:
    """It has not answered for so long that it is held dead."""

    member: Member


@dataclass(frozen=True, slots=True)
class MemberReaped:
    """It has been gone for so long that it is not listed any more."""

    member: Member


@dataclass(frozen=True, slots=True)
class NameConflict:
    """Another node, at `address`:`port`, claims the name of `member`. The claim is ignored."""

    member: Member
    address: str
    port: int


@dataclass(frozen=True, slots=True)
class NodeRefused:
    """Gossip names a node that is not taken as a member; `why` is for people. Told once."""

    name: str
    address: Address
    why: str


@dataclass(frozen=True, slots=True)
class UserEvent:
    """Something that a user told the whole cluster."""

    name: str
    payload: bytes
    ltime: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Query:
    """A question to this node; answer it with `Membership.respond`, within `timeout_s`."""

    name: str
    payload: bytes
    source: str
    reply_to: Address
    ltime: int
    id: int
    timeout_s: float
    relay_factor: int


@dataclass(frozen=True, slots=True)
class KeyringChanged:
    """An operator has changed the encryption keys; the primary is the first."""

    keys: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class EventsLost:
    """This subscriber was too slow: `count` events are missing here. `members()` tells what is."""

    count: int


@dataclass(frozen=True, slots=True)
class QueryResult:
    """What came back to a query of ours: names of those who got it, and answers by name."""

    acknowledged: tuple[str, ...]
    answers: dict[str, bytes]


Event = (
    MemberJoined
    | MemberUpdated
    | MemberLeaving
    | MemberLeft
    | MemberFailed
    | MemberReaped
    | NameConflict
    | NodeRefused
    | UserEvent
    | Query
    | KeyringChanged
    | EventsLost
)
