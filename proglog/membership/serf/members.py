"""Serf's view: members with a status, ordered by Lamport times, on top of SWIM's nodes.

SWIM says whether a node is there; *intents* say whether it means to be. A node that goes after it
has announced to leave has left; one that goes without has failed. Intents travel apart from SWIM's
news and may come before the node is known at all; each carries a Lamport time, and of two about one
node the later wins.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from proglog.membership import limits
from proglog.membership.address import Address
from proglog.membership.codec.messages import State, Versions
from proglog.membership.codec.serf_messages import JoinIntent, LeaveIntent, decode_tags
from proglog.membership.config import Timing
from proglog.membership.errors import MalformedMessage
from proglog.membership.events import (
    Member,
    MemberFailed,
    MemberJoined,
    MemberLeaving,
    MemberLeft,
    MemberReaped,
    MemberUpdated,
    Status,
)
from proglog.membership.serf.lamport import LamportClock
from proglog.membership.swim.nodes import Node
from proglog.membership.swim.outbox import Outbox
from proglog.membership.swim.timers import Timers

Intent = JoinIntent | LeaveIntent


@dataclass(slots=True, kw_only=True)
class MemberRecord:
    """One member. `status_ltime` is the Lamport time of the last intent that counted."""

    name: str
    address: Address
    versions: Versions
    tags: dict[str, str]
    status: Status = Status.ALIVE
    status_ltime: int = 0
    heard: bool = False
    """It has answered us itself, and is not only spoken of."""
    gone_since: float = 0.0

    @property
    def gone(self) -> bool:
        return self.status.gone

    def view(self) -> Member:
        return Member(
            name=self.name,
            address=self.address.host,
            port=self.address.port,
            status=self.status,
            tags=dict(self.tags),
            protocol=self.versions.delegate,
            heard=self.heard,
        )

    def take(self, node: Node) -> None:
        """Takes over what SWIM knows of the node."""
        self.address = node.address
        self.versions = node.versions
        self.tags = readable_tags(node.meta)


def readable_tags(meta: bytes) -> dict[str, str]:
    """A node whose tags cannot be read is still a member: it has none."""
    try:
        return decode_tags(meta)
    except MalformedMessage:
        return {}


class RecentIntents:
    """Intents of nodes that are not known yet: the latest of each, for a while, and not too many:
    the oldest gives way."""

    def __init__(self, kept_s: float) -> None:
        self._kept_s = kept_s
        self._intents: dict[str, tuple[Intent, float]] = {}

    def add(self, intent: Intent, now: float) -> bool:
        """True if this is news, to be passed on."""
        known = self._intents.get(intent.node)
        if known is not None and intent.ltime <= known[0].ltime:
            return False
        if known is None and len(self._intents) >= limits.nodes_max:
            self._intents.pop(next(iter(self._intents)))
        self._intents[intent.node] = (intent, now)
        return True

    def pop(self, name: str) -> Intent | None:
        known = self._intents.pop(name, None)
        return None if known is None else known[0]

    def expire(self, now: float) -> None:
        for name in [
            name for name, (_, since) in self._intents.items() if now - since > self._kept_s
        ]:
            del self._intents[name]


class MemberTable:
    """All members that are or were, and what is reported of them."""

    def __init__(self, local_name: str, timing: Timing, timers: Timers, outbox: Outbox) -> None:
        self._local_name = local_name
        self._timing = timing
        self._timers = timers
        self._outbox = outbox
        self._records: dict[str, MemberRecord] = {}
        self._intents = RecentIntents(timing.intent_kept_s)
        self.clock = LamportClock()

    def __iter__(self) -> Iterator[MemberRecord]:
        return iter(self._records.values())

    def get(self, name: str) -> MemberRecord | None:
        return self._records.get(name)

    def members(self) -> list[Member]:
        return sorted((record.view() for record in self), key=lambda member: member.name)

    # --- news of SWIM ----------------------------------------------------------------------------

    def node_joined(self, node: Node) -> None:
        record = self._records.get(node.name)
        if record is None:
            record = self._admit(node)
        else:
            record.take(node)
            record.status = Status.ALIVE
        self._outbox.report(MemberJoined(record.view()))

    def _admit(self, node: Node) -> MemberRecord:
        self._make_room()
        record = MemberRecord(
            name=node.name,
            address=node.address,
            versions=node.versions,
            tags=readable_tags(node.meta),
            heard=node.heard,
        )
        intent = self._intents.pop(node.name)
        if intent is not None:
            record.status_ltime = intent.ltime
        if isinstance(intent, LeaveIntent):
            record.status = Status.LEAVING
        self._records[node.name] = record
        return record

    def _make_room(self) -> None:
        # SWIM's nodes are fewer than the members listed: so one that is gone can be found; rather
        # one that has never answered.
        if len(self._records) >= limits.members_max:
            gone = (record for record in self if record.gone)
            self._erase(min(gone, key=lambda record: (record.heard, record.gone_since)))

    def node_heard(self, node: Node) -> None:
        """The node has answered us."""
        record = self._records.get(node.name)
        if record is not None:
            record.heard = True

    def node_dropped(self, node: Node) -> None:
        """SWIM has forgotten a node to make room: it may be anything now, so it is no member."""
        record = self._records.get(node.name)
        if record is not None and not record.gone:
            self._erase(record)

    def node_updated(self, node: Node) -> None:
        record = self._records.get(node.name)
        if record is not None:
            record.take(node)
            self._outbox.report(MemberUpdated(record.view()))

    def node_gone(self, node: Node) -> None:
        record = self._records.get(node.name)
        if record is None or record.gone:
            return
        record.gone_since = self._timers.now
        # The node itself has said that it goes: its intent, which says the same, may have been lost
        # or overtaken.
        if record.status is Status.LEAVING or node.state is State.LEFT:
            record.status = Status.LEFT
            self._outbox.report(MemberLeft(record.view()))
        else:
            record.status = Status.FAILED
            self._outbox.report(MemberFailed(record.view()))

    # --- intents ---------------------------------------------------------------------------------

    def on_join_intent(self, intent: JoinIntent) -> bool:
        """True if the intent is news, to be passed on."""
        self.clock.witness(intent.ltime)
        record = self._records.get(intent.node)
        if record is None:
            return self._intents.add(intent, self._timers.now)
        if intent.ltime <= record.status_ltime:
            return False
        record.status_ltime = intent.ltime
        if record.status is Status.LEAVING:
            # The leave was meant before: the node has thought better of it, or it was another life.
            record.status = Status.ALIVE
            self._outbox.report(MemberUpdated(record.view()))
        return True

    def on_leave_intent(self, intent: LeaveIntent) -> bool:
        """True if the intent is news, to be passed on. Not for an intent about us that we deny."""
        self.clock.witness(intent.ltime)
        record = self._records.get(intent.node)
        if record is None:
            return self._intents.add(intent, self._timers.now)
        if intent.ltime <= record.status_ltime:
            return False
        # Always taken over, whatever the status: otherwise two such intents about a node that has
        # left would each be news for ever, and be passed round without end.
        record.status_ltime = intent.ltime
        if record.status is Status.ALIVE:
            record.status = Status.LEAVING
            self._outbox.report(MemberLeaving(record.view()))
        elif record.status is Status.FAILED:
            record.status = Status.LEFT
            self._outbox.report(MemberLeft(record.view()))
        if intent.prune and intent.node != self._local_name:
            self._prune(record)
        return True

    def _prune(self, record: MemberRecord) -> None:
        if record.gone:
            self._erase(record)
            return
        # It leaves: it is forgotten when that is done, unless it has changed its mind.
        delay = self._timing.broadcast_timeout_s + self._timing.leave_propagate_s

        def erase() -> None:
            if self._records.get(record.name) is record and record.gone:
                self._erase(record)

        self._timers.after(delay, erase)

    # --- forgetting ------------------------------------------------------------------------------

    def reap(self) -> None:
        """Forgets members that are gone long enough, and intents that nobody came for."""
        now = self._timers.now
        kept = {Status.FAILED: self._timing.failed_kept_s, Status.LEFT: self._timing.left_kept_s}
        for record in [record for record in self if record.gone]:
            if now - record.gone_since > kept[record.status] and record.name != self._local_name:
                self._erase(record)
        self._intents.expire(now)

    def _erase(self, record: MemberRecord) -> None:
        del self._records[record.name]
        self._outbox.report(MemberReaped(record.view()))
