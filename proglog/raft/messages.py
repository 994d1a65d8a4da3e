"""What servers say to each other and what the core says to its driver.

Named tuples: immutable, and the cheapest objects Python can make a thousand times a second.
Messages carry the uuids of both ends; a message for another uuid (an address that now belongs to
somebody else) is dropped by the core, whatever it says. (`index` hides the method tuple.index,
which nobody calls; hence the ignored assignments.)
"""

from __future__ import annotations

import enum
from collections.abc import Hashable
from typing import NamedTuple

from proglog.raft.configuration import Configuration, NodeId


class Role(enum.Enum):
    """What a server is at the moment; pre-candidates ask before they disturb (thesis 9.6)."""

    FOLLOWER = "follower"
    PRE_CANDIDATE = "pre-candidate"
    CANDIDATE = "candidate"
    LEADER = "leader"


class Entry(NamedTuple):
    """What the core knows of one batch. Size 0 and no configuration: the no-op of a new leader,
    which the driver makes itself."""

    index: int  # type: ignore[assignment]  # hides tuple.index
    term: int
    size_bytes: int
    configuration: Configuration | None = None


class HardState(NamedTuple):
    """What must be durable before anybody hears of it."""

    term: int = 0
    voted_for: NodeId | None = None


# --- between servers -----------------------------------------------------------------------------


class AppendRequest(NamedTuple):
    """The range (prev_index, last_index] follows (prev_index, prev_term).

    On the way out `entries` is empty: the core names the range and the driver attaches the bytes
    of its batches. On the way in the driver has parsed and checked them and fills `entries`.
    """

    sender: NodeId
    to: NodeId
    term: int
    prev_index: int
    prev_term: int
    last_index: int
    commit: int
    entries: tuple[Entry, ...] = ()


class AppendResponse(NamedTuple):
    """Accepted: all up to `index` is durable here and equals the leader's log. Rejected: `index` is
    the prev_index that did not match, the hint is the last place that may."""

    sender: NodeId
    to: NodeId
    term: int
    index: int  # type: ignore[assignment]  # hides tuple.index
    rejected: bool = False
    hint_index: int = 0
    hint_term: int = 0


class Heartbeat(NamedTuple):
    """Small and apart from appends: it must never queue behind bulk. `commit` is bounded by what
    the receiver is known to hold; `round` confirms leadership for reads."""

    sender: NodeId
    to: NodeId
    term: int
    commit: int
    round: int


class HeartbeatResponse(NamedTuple):
    sender: NodeId
    to: NodeId
    term: int
    round: int


class VoteRequest(NamedTuple):
    """`pre_vote`: would you vote for me in this term? `transfer`: the leader asked me to run, so do
    not protect it."""

    sender: NodeId
    to: NodeId
    term: int
    last_index: int
    last_term: int
    pre_vote: bool
    transfer: bool


class VoteResponse(NamedTuple):
    """A granted pre-vote carries the term asked for, everything else the responder's own."""

    sender: NodeId
    to: NodeId
    term: int
    granted: bool
    pre_vote: bool


class InstallSnapshot(NamedTuple):
    """The receiver needs what is not in the leader's log any more: start over behind `index`.

    On the way out `configuration` is None: the driver sends its newest snapshot, which is at this
    index, the base of the log, or later, and says so in the message. On the way in the driver
    holds the whole snapshot, checked, and fills in the configuration it contains.
    """

    sender: NodeId
    to: NodeId
    term: int
    index: int  # type: ignore[assignment]  # hides tuple.index
    snapshot_term: int
    configuration: Configuration | None = None


class TimeoutNow(NamedTuple):
    """Leadership is handed over: run at once, without a pre-vote."""

    sender: NodeId
    to: NodeId
    term: int


Message = (
    AppendRequest
    | AppendResponse
    | Heartbeat
    | HeartbeatResponse
    | VoteRequest
    | VoteResponse
    | InstallSnapshot
    | TimeoutNow
)


# --- to the driver -------------------------------------------------------------------------------


class ReadResult(NamedTuple):
    """A linearizable read may be answered once `index` is applied; None: leadership was lost before
    it could be confirmed, ask the next leader."""

    ticket: Hashable
    index: int | None  # type: ignore[assignment]  # hides tuple.index


class Snapshot(NamedTuple):
    """The snapshot to install: the one that came with the InstallSnapshot of this index."""

    index: int  # type: ignore[assignment]  # hides tuple.index
    term: int
    configuration: Configuration


class SoftState(NamedTuple):
    """Who leads, and what this server is: for waiters, redirects and logs. Nothing to persist."""

    role: Role
    leader: NodeId | None
    term: int


class Ready(NamedTuple):
    """All effects of what happened since the last one; DESIGN.md says in which order they are done.

    A driver takes the next Ready only after the hard state of this one is durable.
    """

    hard_state: HardState | None
    """Make durable first: before messages_after_persist leave, before the entries are written."""
    messages: list[Message]
    """May leave at once, in parallel with all disk writes."""
    messages_after_persist: list[Message]
    """May leave when hard_state, if there is one, is durable."""
    truncate_from: int | None
    """Cut this index and everything behind it from the log, before `entries` are written."""
    entries: list[Entry]
    """To be written in this order behind what is there."""
    write: int
    """Number of the log write made by truncate_from and entries, for `Raft.persisted`; counts up.
    0: there is nothing to write."""
    snapshot: Snapshot | None
    """Install durably (after the writes above), then call `Raft.snapshot_installed`."""
    commit: int | None
    """The new commit index. On a follower it may be ahead of its own durable writes."""
    reads: list[ReadResult]
    soft_state: SoftState | None
    configuration: tuple[int, Configuration] | None
    """The configuration now in force and its index, when it changed (also by truncation)."""
