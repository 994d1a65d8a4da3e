"""Who is in the cluster: HashiCorp's Serf gossip protocol, spoken natively.

`Membership` is the door; DESIGN.md says how it works inside.
"""

from __future__ import annotations

from proglog.membership.address import Address
from proglog.membership.codec.keyring import decode_key, encode_key
from proglog.membership.config import CLUSTER_TAG, MembershipConfig, Timing
from proglog.membership.driver.driver import Membership, MembershipStatistics
from proglog.membership.driver.subscription import Subscription
from proglog.membership.errors import (
    BindFailed,
    EventTooLarge,
    JoinFailed,
    KeyRefused,
    MembershipError,
    NotRunning,
    TagsTooLarge,
)
from proglog.membership.events import (
    Event,
    EventsLost,
    KeyringChanged,
    Member,
    MemberFailed,
    MemberJoined,
    MemberLeaving,
    MemberLeft,
    MemberReaped,
    MemberUpdated,
    NameConflict,
    NodeRefused,
    Query,
    QueryResult,
    Status,
    UserEvent,
)

__all__ = [
    "CLUSTER_TAG",
    "Address",
    "BindFailed",
    "Event",
    "EventTooLarge",
    "EventsLost",
    "JoinFailed",
    "KeyRefused",
    "KeyringChanged",
    "Member",
    "MemberFailed",
    "MemberJoined",
    "MemberLeaving",
    "MemberLeft",
    "MemberReaped",
    "MemberUpdated",
    "Membership",
    "MembershipConfig",
    "MembershipError",
    "MembershipStatistics",
    "NameConflict",
    "NodeRefused",
    "NotRunning",
    "Query",
    "QueryResult",
    "Status",
    "Subscription",
    "TagsTooLarge",
    "Timing",
    "UserEvent",
    "decode_key",
    "encode_key",
]
