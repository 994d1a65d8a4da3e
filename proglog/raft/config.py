"""Timing and windows of one Raft server (who the servers are is `configuration`)."""

from __future__ import annotations

import dataclasses

from proglog.errors import ConfigurationError


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class RaftConfig:
    """All bounds of the core. Time is counted in ticks of the driver; the defaults suit 10 ms."""

    heartbeat_ticks: int = 5
    """A leader's heartbeat interval: 50 ms."""
    election_ticks: int = 30
    """T. Followers wait a random time in [T, 2T): 300-600 ms. Also the leader's check-quorum
    interval, the time a live leader protects itself from votes, and the patience of a transfer."""
    append_entries_max: int = 1024
    append_bytes_max: int = 1 << 20
    """Per message; one entry goes out even if it alone is larger."""
    inflight_messages_max: int = 64
    inflight_bytes_max: int = 16 << 20
    """Per follower: appends sent and not yet acknowledged."""
    uncommitted_bytes_max: int = 64 << 20
    """Proposals beyond it are refused; the first one of an empty pipeline is always taken."""
    snapshot_ticks_max: int = 3000
    """How long a follower may take to install a snapshot before the leader asks again."""
    reads_pending_max: int = 4096
    promotion_lag_entries_max: int = 1024
    """A learner further behind than this is not promoted."""

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            if getattr(self, field.name) < 1:
                raise ConfigurationError(f"raft: {field.name} must be at least 1")
        # A follower must survive the loss of a heartbeat, or loss alone starts elections.
        if self.election_ticks < 2 * self.heartbeat_ticks:
            raise ConfigurationError("raft: election_ticks must be at least 2 heartbeat_ticks")
        if self.inflight_bytes_max < self.append_bytes_max:
            raise ConfigurationError("raft: inflight_bytes_max must hold one append_bytes_max")
        if self.uncommitted_bytes_max < self.append_bytes_max:
            raise ConfigurationError("raft: uncommitted_bytes_max must hold one append_bytes_max")
        if self.snapshot_ticks_max < self.election_ticks:
            raise ConfigurationError("raft: snapshot_ticks_max must be at least election_ticks")
