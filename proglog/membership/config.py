"""Settings of the membership protocol, with memberlist's and Serf's defaults."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from proglog.errors import ConfigurationError
from proglog.membership import limits
from proglog.membership.codec.serf_messages import encode_tags

CLUSTER_TAG = "cluster_name"
"""A node whose tag of this name differs from ours is of another cluster, and no member of ours. One
without it, such as a stock agent, may be in both."""
DEFAULT_PORT = 7946
"""Serf's port, for join addresses that name none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """How fast failures are found and news spread. All of a cluster should use the same values.

    `lan` is memberlist's and Serf's default, `local` their profile for one machine.
    """

    probe_interval_s: float = 1.0
    probe_timeout_s: float = 0.5
    """Wait for a direct answer; then others are asked, until the interval is over."""
    indirect_probes: int = 3
    awareness_max: int = 8
    suspicion_multiplier: int = 4
    suspicion_max_multiplier: int = 6
    gossip_interval_s: float = 0.2
    gossip_nodes: int = 3
    gossip_to_dead_s: float = 30.0
    """A dead node still gets gossip this long, so that it can object; then it is forgotten."""
    retransmit_multiplier: int = 4
    push_pull_interval_s: float = 30.0
    stream_timeout_s: float = 10.0
    reclaim_after_s: float = 5.0
    """A name whose node has been dead this long may be taken by a node at another address. Zero:
    at once. (A name whose node has left is free at once.)"""
    broadcast_timeout_s: float = 5.0
    """A leave waits this long for its messages to be gossiped."""
    leave_propagate_s: float = 1.0
    """A node that has left stays this long, to answer the probes of those who do not know yet."""
    reap_interval_s: float = 15.0
    reconnect_interval_s: float = 1.0
    """How often all together try a failed member again (Serf: 30 s): so late is the end of a
    partition noticed."""
    reconnect_eager_s: float = 5.0
    """For so long after a failed member is back, each node tries all others that failed."""
    rejoin_first_s: float = 1.0
    rejoin_longest_s: float = 30.0
    """Pauses between tries of a node that knows nobody who is there, doubling up to the longest."""
    failed_kept_s: float = 24 * 3600.0
    """A failed member stays listed, and is tried again, this long."""
    left_kept_s: float = 24 * 3600.0
    """The tombstone of a member that left is kept this long."""
    intent_kept_s: float = 300.0
    """An intent of a node we do not know is kept this long."""
    query_timeout_multiplier: int = 16

    def __post_init__(self) -> None:
        for name in self.__dataclass_fields__:
            if getattr(self, name) < 0:
                raise ConfigurationError(f"membership timing: {name} is negative")
        if not 0 < self.probe_timeout_s < self.probe_interval_s:
            raise ConfigurationError(
                "membership timing: probe_timeout_s must be less than probe_interval_s, "
                "so that indirect probes have time"
            )
        if min(self.gossip_interval_s, self.push_pull_interval_s, self.stream_timeout_s) <= 0:
            raise ConfigurationError("membership timing: intervals and timeouts must be positive")
        if min(self.suspicion_multiplier, self.suspicion_max_multiplier) < 1:
            raise ConfigurationError("membership timing: suspicion multipliers start at 1")

    @classmethod
    def lan(cls, **changes: Any) -> Timing:
        return replace(cls(), **changes)

    @classmethod
    def local(cls, **changes: Any) -> Timing:
        """Fast failure detection on one machine, as in `serf agent -profile=local`."""
        local = cls(
            probe_timeout_s=0.2,
            indirect_probes=1,
            suspicion_multiplier=3,
            gossip_interval_s=0.1,
            gossip_to_dead_s=15.0,
            retransmit_multiplier=2,
            push_pull_interval_s=15.0,
            stream_timeout_s=1.0,
            reclaim_after_s=1.0,
            reconnect_interval_s=0.5,
        )
        return replace(local, **changes)


@dataclass(frozen=True, slots=True, kw_only=True)
class MembershipConfig:
    """Who this node is and where it listens.

    Hosts may be names. `advertise_host` (default: `bind_host`) is resolved once, at the start,
    since gossip carries IP addresses; an unspecified one (0.0.0.0, or :: for both families) stands
    for the address of the interface that leads out. Port 0 means any free port; `advertise_port` 0
    the port bound to.
    """

    name: str
    bind_host: str = "127.0.0.1"
    bind_port: int = DEFAULT_PORT
    advertise_host: str | None = None
    advertise_port: int = 0
    tags: dict[str, str] = field(default_factory=dict)
    keys: tuple[bytes, ...] = field(default=(), repr=False)
    """Gossip encryption keys, the primary first; none: plaintext."""
    snapshot_path: Path | None = None
    """Where the addresses of peers are kept, to rejoin after a restart without being told any."""
    keyring_path: Path | None = None
    """Where the keyring is kept as operators rotate keys. Once it exists it replaces `keys`."""
    timing: Timing = field(default_factory=Timing)

    def __post_init__(self) -> None:
        if not 0 < len(self.name.encode()) <= limits.name_bytes_max:
            raise ConfigurationError(
                f"node name {self.name!r}: expected 1 to {limits.name_bytes_max} bytes"
            )
        for port in (self.bind_port, self.advertise_port):
            if not 0 <= port < 65536:
                raise ConfigurationError(f"gossip port {port}: expected 0 to 65535")
        size = len(encode_tags(self.tags))
        if size > limits.meta_bytes_max:
            raise ConfigurationError(
                f"tags of node {self.name} take {size} bytes, more than {limits.meta_bytes_max}"
            )
        if any(len(key) not in {16, 24, 32} for key in self.keys):
            raise ConfigurationError("a gossip key has 16, 24 or 32 bytes")
