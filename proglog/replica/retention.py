"""Retention by size and by age: the leader moves the start of the log, every node follows.

Age is told by the agreed time (see `timekeeper`), and what one majority of clocks says is not
believed at once, for what is deleted is gone:

* Nothing goes for its age before the clocks have agreed for some time without a step (*quiet*).
* Then no more goes in ten minutes than is usual.
* More than that is *held*, and told, until they have agreed for an hour. So a clock that is wrong
  alone (a node by itself), or with others, leaves an hour to see it. A log that was stopped for
  long, or whose limit was lowered, waits for that hour too.

Both times are shorter where the limit is. All waiting is by the monotonic clock.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections import deque
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import NamedTuple

import structlog

from proglog import limits
from proglog.config import LogConfig
from proglog.errors import NotLeader, Overloaded, Unavailable
from proglog.log.format import Tip
from proglog.log.log import Log
from proglog.raft.driver import Driver
from proglog.replica import commands
from proglog.replica.applier import Applier
from proglog.replica.commands import SetStart
from proglog.replica.members import Members
from proglog.replica.timekeeper import Timekeeper

_logger = structlog.get_logger("replica")


class Retention:
    """Belongs to a replica, which calls `trim` when the start moved."""

    def __init__(
        self,
        *,
        log: Log,
        driver: Driver,
        members: Members,
        applier: Applier,
        timekeeper: Timekeeper,
        config: LogConfig,
        leads: Callable[[], bool],
    ) -> None:
        self._log = log
        self._driver = driver
        self._members = members
        self._applier = applier
        self._timekeeper = timekeeper
        self._config = config
        self._leads = leads
        self._time = asyncio.get_running_loop().time
        self._aged = _Allowance(config.retention_seconds or math.inf)
        self._proposed = (0, 0)
        """(term, start) that was proposed last, by this leader."""
        self.held = ""
        """What is not deleted yet though it is too old, and for how long; for operators."""

    async def run(self) -> None:
        """Looks at both limits now and then."""
        while True:
            await asyncio.sleep(self._config.retention_check_seconds)
            self.trim()
            if self._leads():
                self._look()
            else:
                self.held = ""

    def trim(self) -> None:
        """Deletes the segments that nobody is served from any more."""
        if self._log.drop_prefix(self._log.index_of_offset(self._applier.earliest)):
            self._driver.compacted(self._log.before.index)

    def _look(self) -> None:
        """Proposes another start where one is due."""
        applied = self._applier.applied_index
        total = self._log.bytes_upto(applied)
        plan = plan_start(
            self._log.segment_facts(),
            self._config,
            committed_index=applied,
            total=total,
            oldest=self._oldest_kept(),
            aged_bytes_max=self._aged.left(self._time(), total, self._timekeeper.steady_seconds),
        )
        self._tell_held(plan.held)
        proposed = (self._driver.term, plan.start)
        if plan.start <= self._applier.earliest or proposed == self._proposed:
            return
        if self._members.has_room():
            with contextlib.suppress(NotLeader, Unavailable, Overloaded):
                # The next look, or the next leader, tries again.
                self._driver.propose_command(commands.encode([SetStart(plan.start)]))
                self._proposed = proposed
                self._aged.taken(self._time(), plan.aged_bytes)

    def _oldest_kept(self) -> float:
        """Stamps of what is not too old, by the agreed time, begin here; ms since the epoch."""
        now, limit = self._timekeeper.agreed_ms, self._config.retention_seconds
        if now is None or limit is None or self._timekeeper.steady_seconds < self._aged.quiet:
            return -math.inf
        return now - 1000 * limit

    def _tell_held(self, segments: int) -> None:
        seconds = self._aged.hold - self._timekeeper.steady_seconds
        told = ""
        if segments:
            told = f"retention-time would delete {segments} segments more, in {seconds:.0f} s"
        if told and not self.held:
            _logger.warning(
                "more than usual is too old: deleted once clocks have agreed for so long",
                segments=segments,
                seconds=round(seconds),
            )
        self.held = told


class _Allowance:
    """How many bytes may go for their age at a time. Times are the loop's, in seconds."""

    def __init__(self, limit_seconds: float) -> None:
        self.quiet = min(limits.retention_quiet_seconds_max, limit_seconds / 4)
        self.hold = min(limits.retention_held_seconds_max, limit_seconds)
        window = limits.retention_window_seconds
        usual = limits.retention_times_usual * window / limit_seconds
        self._share = max(limits.retention_share, usual)
        self._taken: deque[tuple[float, int]] = deque()
        """(when, bytes) of the last window: a segment each at least, so not more than those."""

    def left(self, now: float, total: int, steady_seconds: float) -> float:
        """Bytes that may still go now, of `total`. Less than 0 where the last segment was more."""
        if steady_seconds >= self.hold:
            return math.inf
        while self._taken and now - self._taken[0][0] > limits.retention_window_seconds:
            self._taken.popleft()
        taken = sum(size for _, size in self._taken)
        return self._share * (total + taken) - taken

    def taken(self, now: float, size: int) -> None:
        """So many bytes go."""
        if size:
            self._taken.append((now, size))


class Plan(NamedTuple):
    """Where the log should begin."""

    start: int
    """The offset below which nothing need be kept; 0 if everything is."""
    aged_bytes: int
    """Of what goes for its age alone."""
    held: int
    """Segments that are too old, too, and stay for now."""


def plan_start(
    segments: Sequence[tuple[Tip, int]],
    config: LogConfig,
    *,
    committed_index: int,
    total: int,
    oldest: float,
    aged_bytes_max: float,
) -> Plan:
    """Always where a segment begins, since only whole segments can be deleted, and never behind
    what is committed.

    Args:
        segments: (tip before it, bytes) of each, oldest first.
        total: bytes of all of them.
        oldest: stamps before this one are too old; ms since the epoch.
        aged_bytes_max: no more than this goes for its age, or one segment unless it is negative.
    """
    start = aged = held = 0
    for (_before, size), (following, _size) in pairwise(segments):
        too_much = config.retention_bytes is not None and total > config.retention_bytes
        # The tip before a segment is the newest batch of the one that would go.
        too_old = following.timestamp < oldest
        if following.index > committed_index or not (too_much or too_old):
            break
        total -= size
        if held or not (too_much or _may_go(aged, size, aged_bytes_max)):
            held += 1
            continue
        start = following.next_offset
        aged += 0 if too_much else size
    return Plan(start, aged, held)


def _may_go(aged: int, size: int, aged_bytes_max: float) -> bool:
    return aged + size <= aged_bytes_max or (aged == 0 and aged_bytes_max >= 0)
