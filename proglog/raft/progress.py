"""What a leader knows of one follower, and how it therefore sends to it."""

from __future__ import annotations

import enum

from proglog.raft.config import RaftConfig
from proglog.raft.configuration import NodeId
from proglog.raft.inflight import Inflight
from proglog.raft.promotion import CatchUp


class Flow(enum.Enum):
    """How appends flow to a follower.

    PROBE: it is not known where the logs match; one append at a time, one entry each.
    REPLICATE: they match at `match`; appends are pipelined optimistically from `next`.
    SNAPSHOT: it needs what is not in the leader's log any more; nothing is sent until it says that
    it has installed the snapshot, or until it took too long.
    """

    PROBE = "probe"
    REPLICATE = "replicate"
    SNAPSHOT = "snapshot"


class Progress:
    """Invariant: match < next. In REPLICATE everything in (match, next) is in flight."""

    __slots__ = (
        "catch_up",
        "commit_sent",
        "flow",
        "heard",
        "id",
        "inflight",
        "match",
        "next",
        "nudge",
        "probe_sent",
        "round",
        "silent_checks",
        "snapshot_index",
        "snapshot_ticks",
    )

    def __init__(self, peer: NodeId, *, next_: int, config: RaftConfig, now: int) -> None:
        self.id = peer
        self.match = 0
        """Durable there and equal to ours. Only grows, in one life of the follower."""
        self.next = next_
        """The first index of the next append."""
        self.flow = Flow.PROBE
        self.inflight = Inflight(config.inflight_messages_max, config.inflight_bytes_max)
        self.probe_sent = False
        """PROBE: one is on its way; the next goes when it, or a later heartbeat, is answered."""
        self.nudge = False
        """REPLICATE: send an append now even if there is nothing new or the window is full."""
        self.snapshot_index = 0
        self.snapshot_ticks = 0
        self.heard = False
        """It has answered since the last quorum check."""
        self.silent_checks = 1
        """How many quorum checks in a row it had not answered before; of one that is new to this
        leader nothing is known, so that it counts neither as active nor as silent."""
        self.commit_sent = 0
        """The commit index last told to it."""
        self.round = 0
        """The last heartbeat round that it answered."""
        self.catch_up = CatchUp(target=next_ - 1, now=now, ticks_max=config.election_ticks)

    @property
    def active(self) -> bool:
        """It has answered since the quorum check before the last one. Since the last one would not
        do: right after it that is true of nobody."""
        return self.heard or self.silent_checks == 0

    @property
    def silent(self) -> bool:
        """It has not answered between two quorum checks, nor since."""
        return not self.heard and self.silent_checks > 1

    def checked(self) -> None:
        """A quorum check is done."""
        self.silent_checks = 0 if self.heard else self.silent_checks + 1
        self.heard = False

    def become_probe(self, next_: int | None = None) -> None:
        self.flow = Flow.PROBE
        self.next = self.match + 1 if next_ is None else next_
        self.probe_sent = False
        self.inflight.clear()

    def become_replicate(self) -> None:
        self.flow = Flow.REPLICATE
        self.next = self.match + 1
        self.inflight.clear()

    def become_snapshot(self, index: int) -> None:
        self.flow = Flow.SNAPSHOT
        self.snapshot_index = index
        self.snapshot_ticks = 0
        self.inflight.clear()

    def accepted(self, index: int, base_index: int) -> bool:
        """An ack. True if it is news. Acks may be repeated and come in any order: match is the
        greatest ever heard, since what was durable and equal once stays so in this term."""
        news, proved = index > self.match, index >= self.next - 1
        if news:
            self.match = index
            self.next = max(self.next, index + 1)
        if self.flow is Flow.REPLICATE:
            self.inflight.free_to(index)
        elif self.flow is Flow.PROBE and proved:
            # An ack of less is of what was sent before; the probe is still under way.
            self.become_replicate()
        elif self.flow is Flow.SNAPSHOT and self.match >= base_index:
            # Whatever it got it from: what follows its log is in ours.
            self.become_replicate()
        elif self.flow is Flow.SNAPSHOT and news:
            # It has installed another one: ours before the base moved, or an earlier leader's. If
            # it is at ours now it drops the probe, which is repeated; else it says what it needs.
            self.become_probe(self.snapshot_index + 1)
        return news

    def rejected(self, prev_index: int, possible_match: int) -> None:
        """It does not hold the entry at prev_index; the logs may match at `possible_match`.

        Stale if it was overtaken: in REPLICATE by an ack behind prev_index, in PROBE if it answers
        another probe than the one under way. The step back is one entry at least, and never behind
        match, which this follower has acknowledged in this term. It is a guess, which the next
        probe proves: what the follower has in memory and not yet on disk is not sent again.
        """
        probed = self.flow is Flow.PROBE and prev_index == self.next - 1
        if probed or (self.flow is Flow.REPLICATE and prev_index > self.match):
            self.become_probe(max(min(prev_index, possible_match + 1), self.match + 1))

    def answered_heartbeat(self, round_: int, last_index: int) -> None:
        """It is alive, so an append that it did not answer may be lost: send one again.

        In REPLICATE with a lost last append (or a full window of them) no later one would ever be
        rejected, and nothing would move again. An empty append behind the last one sent finds out:
        accepted, or rejected and probed. It goes the way of the appends, so it cannot overtake
        those that are merely slow.
        """
        self.heard = True
        self.round = max(self.round, round_)
        self.probe_sent = False
        self.nudge = self.flow is Flow.REPLICATE and self.match < last_index
