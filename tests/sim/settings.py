"""What is drawn for one seed: the size of everything, and which faults exist at all (swarm testing,
Groce et al., ISSTA 2012: leaving kinds out makes the others meet)."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from proglog import limits
from proglog.config import LogConfig
from proglog.limits import KiB
from proglog.raft.config import RaftConfig

ELECTION_SECONDS = 0.3
BATCHES_PER_SECOND_MAX = 300
"""Producers ask for no more than this: faults come by virtual time, so that a world of twice the
load has half the faults for the same CPU."""
FAULT_KINDS = (
    "partition",
    "isolate_leader",
    "cut",
    "slow_network",
    "stall",
    "power_cut",
    "power_cut_at_operation",
    "power_cut_all",
    "kill",
    "stop",
    "pause",
    "clock",
    "slow_disk",
    "disk_full",
    "disk_error",
    "rot",
    "wipe",
    "remove",
    "transfer",
)
LATER_FAULT_KINDS = ("replay", "ignorable", "fix_time")
"""Drawn by a chance of their own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """One world. Times are virtual seconds."""

    seed: int
    nodes: int
    spare_nodes: int
    """Added and removed while everything goes on."""
    safety_seconds: float
    log: LogConfig
    raft: RaftConfig
    limits: dict[str, float] = field(default_factory=dict)
    latency_seconds: float
    buffer_bytes: int
    """Of a stream that is stalled, before its sender must wait."""
    disk_seconds: float
    reader_seconds: float
    """Likewise of reads that miss the cache."""
    uncached_rate: float
    producers: int
    window: int
    values_max: int
    records_max: int
    call_seconds: float
    """A client asks again, perhaps elsewhere, without an answer in this time."""
    client_loss_rate: float
    """Of requests, and of answers."""
    pause_seconds: float
    """Between two rounds of a producer, on average."""
    faults: tuple[str, ...]
    fault_seconds: float
    """Between two faults, on average."""
    learners: int
    """Servers beyond those that may be voters."""
    wrong_clocks: int | None
    """Of the last nodes so many have wall clocks that are wrong; None: all clocks may be."""
    monotonic_rates: tuple[float, ...]
    """Monotonic clocks run by one of these, another one in each life."""

    @classmethod
    def draw(cls, seed: int, nodes: int | None = None) -> Settings:
        """The settings of a seed."""
        chance = random.Random(f"{seed}/settings")
        segment_bytes = 12 * KiB + chance.choice((5, 6, 8, 16, 64)) * KiB
        nodes = nodes or chance.choice((3, 3, 3, 5))
        # Fine ticks, or as coarse as a heartbeat, which simulates faster; the times are the same.
        ticks = chance.choice((1, 5, 5))
        producers, window = chance.randint(2, 6), chance.choice((1, 4, 16))
        pause = chance.choice((0.05, 0.1, 0.3))
        replay_bytes = chance.choice((200, 4_000, limits.replay_bytes))
        # A disk so slow that it reads a batch or two at a time would need minutes for a replay.
        reader_seconds = chance.choice((0.0, 0.01, 0.2 if replay_bytes > 200 else 0.01))
        clocks = random.Random(f"{seed}/clocks")
        chosen = [kind for kind in FAULT_KINDS if chance.random() < chance.choice((0.3, 0.7))]
        spare_nodes = chance.choice((0, 0, 1)) if nodes < limits.voters_max else 0
        learners = clocks.choice((0, 0, 1)) if nodes < limits.voters_max and not spare_nodes else 0
        return cls(
            seed=seed,
            nodes=nodes,
            spare_nodes=spare_nodes,
            learners=learners,
            wrong_clocks=clocks.choice((0, 1, 1, 2, None)),
            monotonic_rates=clocks.choice(((1.0,), (1.0,), (0.7, 1.0, 1.4))),
            safety_seconds=chance.uniform(4.0, 12.0),
            log=_draw_log(chance, clocks, segment_bytes),
            raft=RaftConfig(
                heartbeat_ticks=5 // ticks,
                election_ticks=30 // ticks,
                append_entries_max=chance.choice((1, 3, 1024)),
                append_bytes_max=chance.choice((400, 1 << 20)),
                inflight_messages_max=chance.choice((1, 3, 64)),
                inflight_bytes_max=chance.choice((1 << 20, 16 << 20)),
                uncommitted_bytes_max=chance.choice((1 << 20, 64 << 20)),
                snapshot_ticks_max=chance.choice((60, 300)) // ticks,
                promotion_lag_entries_max=chance.choice((2, 20, 1024)),
            ),
            limits={
                "tick_seconds": 0.01 * ticks,
                "producers_max": chance.choice((2, 4, limits.producers_max)),
                "tail_bytes_max": chance.choice((1, 5_000, 50_000, limits.tail_bytes_max)),
                "read_batches_max": chance.choice((2, 50, limits.read_batches_max)),
                "replay_bytes": replay_bytes,
                "walk_window_bytes": chance.choice((300, 64 * KiB)),
                "scrub_pause_seconds": 0.2 if "rot" in chosen else 60.0,
                "inflight_bytes_max": chance.choice((2_000, limits.inflight_bytes_max)),
                "answer_seconds_max": chance.choice((1.0, 30.0)),
                "write_group_bytes_max": chance.choice((300, limits.write_group_bytes_max)),
                # By a chance of its own, so that the worlds of old seeds stay what they were.
                "voters_max": nodes if learners else limits.voters_max,
                "stores_open_max": random.Random(f"{seed}/stores").choice((1, 3, 32)),
            },
            latency_seconds=chance.choice((0.0003, 0.001, 0.01)),
            buffer_bytes=chance.choice((100, 64 * KiB)),
            disk_seconds=chance.choice((0.0, 0.001, 0.01)),
            reader_seconds=reader_seconds,
            uncached_rate=chance.choice((0.0, 0.1, 0.5)),
            producers=producers,
            window=window,
            values_max=chance.choice((10, 100, 400)),
            records_max=chance.choice((1, 3)),
            call_seconds=chance.choice((0.1, 0.5, 2.0)),
            client_loss_rate=chance.choice((0.0, 0.01, 0.05)),
            pause_seconds=max(pause, producers * (window + 1) / 2 / BATCHES_PER_SECOND_MAX),
            faults=(*chosen, *(kind for kind in LATER_FAULT_KINDS if clocks.random() < 0.5)),
            fault_seconds=chance.choice((0.15, 0.4, 1.0)),
        )

    @contextmanager
    def in_force(self) -> Iterator[None]:
        """Bounds that are nobody's to choose are made small for one world."""
        before = {name: getattr(limits, name) for name in self.limits}
        for name, value in self.limits.items():
            setattr(limits, name, value)
        try:
            yield
        finally:
            for name, value in before.items():
                setattr(limits, name, value)


def _draw_log(chance: random.Random, clocks: random.Random, segment_bytes: int) -> LogConfig:
    return LogConfig(
        segment_bytes=segment_bytes,
        segment_batches=chance.choice((4, 6, 16, 200)),
        retention_bytes=chance.choice((None, 2, 4)) and segment_bytes * chance.randint(2, 6),
        retention_check_seconds=chance.uniform(0.05, 1.0),
        retention_seconds=clocks.choice((None, 2.0, 5.0)),
    )
