"""What one node sees at one moment, what that means for an operator, and what has changed since.

Pure functions over plain values: console, status and tests say the same words of the same facts.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum


class Mood(StrEnum):
    """How bad it is."""

    OK = "ok"
    INFO = "info"
    WARN = "warn"
    BAD = "bad"


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerView:
    """One server, by consensus and by gossip."""

    name: str
    address: str
    leads: bool
    votes: bool
    here: bool
    """It is the node that tells."""
    gossip: str
    """"alive", "leaving", "left", "failed", or "unknown": gossip has not heard of it."""
    behind: int | None
    """Batches that the leader has and it lacks; only the leader knows."""
    answers: bool
    """A connection for consensus is open to it, and it answers there; or it is here."""

    @property
    def silent(self) -> bool:
        return not self.answers


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """A node's view. Times are ms since the epoch, sizes bytes."""

    at: int
    node: str
    version: str
    started_at: int
    cluster: str
    cluster_id: str
    role: str
    term: int
    leader: str
    leader_address: str
    servers: tuple[ServerView, ...]
    commit_index: int
    applied_index: int
    earliest: int
    next: int
    bytes: int
    disk_free: int
    disk_total: int
    leader_changes: int
    """Leaders seen since the start, but for the first."""
    leaderless_seconds: float
    """Time since the start in which no leader was known, in whole looks."""
    not_ready: str
    """Why requests should go elsewhere; empty if they should not."""
    not_live: str
    """Why the node is about to end; empty if it is not."""

    @property
    def voters(self) -> list[ServerView]:
        return [server for server in self.servers if server.votes]

    @property
    def answering(self) -> int:
        """Voters that are heard."""
        return sum(not server.silent for server in self.voters)

    @property
    def needed(self) -> int:
        """Voters that make a quorum."""
        return len(self.voters) // 2 + 1


@dataclass(frozen=True, slots=True)
class Reason:
    """One fact behind a verdict."""

    mood: Mood
    what: str
    why: str


@dataclass(frozen=True, slots=True)
class Verdict:
    """Is it well, and if not, why."""

    mood: Mood
    title: str
    text: str
    reasons: tuple[Reason, ...] = ()


_DISK_SHARE_LOW = 0.1
_BEHIND_MANY = 1000


def explain(view: View) -> Verdict:
    """What an operator reads first."""
    if view.not_live:
        return Verdict(Mood.BAD, f"{view.node} is about to end", view.not_live)
    if not view.servers:
        return Verdict(Mood.BAD, "The cluster is not formed yet", view.not_ready or "It begins.")
    reasons = (*_silent(view), *_behind(view), *_disk(view))
    if not view.leader:
        return Verdict(
            Mood.BAD,
            "No leader: nothing can be written",
            _voters(view)
            + " Reads go on where they need no leader; writers are told to try again.",
            reasons,
        )
    worst = next((reason for reason in reasons if reason.mood != Mood.INFO), None)
    if worst is None:
        return Verdict(Mood.OK, "All is well", _leads(view), reasons)
    return Verdict(Mood.WARN, worst.what, _spare(view), reasons)


def _voters(view: View) -> str:
    answering, voters = view.answering, len(view.voters)
    return f"{answering} of {voters} voters {'answers' if answering == 1 else 'answer'}, " + (
        "enough to elect one." if answering >= view.needed else f"{view.needed} are needed."
    )


def _leads(view: View) -> str:
    disks = view.needed
    return f"{view.leader} leads term {view.term}. Every acknowledged record is on " + (
        "its disk." if disks == 1 else f"at least {disks} disks."
    )


def _spare(view: View) -> str:
    spare = view.answering - view.needed
    if len(view.voters) == 1:
        return _leads(view)
    more = "If one more fails, writes stop." if spare <= 0 else f"{spare} more may fail."
    return f"Writes go on: {_voters(view).replace('enough to elect one', 'enough')} {more}"


def _silent(view: View) -> Iterator[Reason]:
    for server in view.servers:
        if not server.silent:
            continue
        if server.votes:
            yield Reason(Mood.WARN, f"{server.name} does not answer", f"Gossip: {server.gossip}.")
        else:
            yield Reason(Mood.INFO, f"{server.name}, a learner, does not answer", "It has no vote.")


def _behind(view: View) -> Iterator[Reason]:
    for server in view.servers:
        if server.behind is not None and server.behind > _BEHIND_MANY and not server.silent:
            what = f"{server.name} is {server.behind} batches behind"
            yield Reason(Mood.WARN if server.votes else Mood.INFO, what, "It is catching up.")


def _disk(view: View) -> Iterator[Reason]:
    if view.disk_total and view.disk_free < _DISK_SHARE_LOW * view.disk_total:
        share = 100 * view.disk_free // view.disk_total
        yield Reason(
            Mood.WARN,
            f"{view.node} has {share} % of its disk left",
            "A full disk acknowledges nothing until there is room.",
        )


@dataclass(frozen=True, slots=True)
class Event:
    """Something that has happened."""

    at: int
    mood: Mood
    text: str
    detail: str


def changes(before: View, after: View) -> Iterator[Event]:
    """What has happened between two views of one node."""
    yield from (Event(after.at, *told) for told in _leadership(before, after))
    old, new = _by_name(before), _by_name(after)
    yield from (Event(after.at, *told) for told in _servers(old, new))
    if after.earliest > before.earliest:
        yield Event(after.at, Mood.INFO, "Retention moved the start", f"to offset {after.earliest}")
    if after.not_ready != before.not_ready:
        mood = Mood.WARN if after.not_ready else Mood.OK
        text = "is not ready" if after.not_ready else "is ready"
        yield Event(after.at, mood, f"{after.node} {text}", after.not_ready)


Told = tuple[Mood, str, str]


def _leadership(before: View, after: View) -> Iterator[Told]:
    if after.leader and (after.leader, after.term) != (before.leader, before.term):
        yield Mood.OK, f"{after.leader} leads", f"term {after.term}"
    elif before.leader and not after.leader:
        yield Mood.BAD, "No leader", f"{before.leader} led term {before.term}"


def _by_name(view: View) -> Mapping[str, ServerView]:
    return {server.name: server for server in view.servers}


def _servers(old: Mapping[str, ServerView], new: Mapping[str, ServerView]) -> Iterator[Told]:
    for name in sorted(new.keys() - old.keys()):
        yield Mood.INFO, f"{name} was added", "a voter" if new[name].votes else "a learner"
    for name in sorted(old.keys() - new.keys()):
        yield Mood.INFO, f"{name} was removed", old[name].address
    for name in sorted(old.keys() & new.keys()):
        was, now = old[name], new[name]
        if now.votes != was.votes:
            yield Mood.INFO, f"{name} is a {'voter' if now.votes else 'learner'} now", now.address
        if now.silent and not was.silent:
            yield Mood.BAD, f"{name} does not answer", f"gossip: {now.gossip}"
        elif was.silent and not now.silent:
            yield Mood.OK, f"{name} answers again", now.address
