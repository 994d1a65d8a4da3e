"""Retention by size and by age: the leader moves the start of the log, every node follows."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from itertools import pairwise

from proglog.config import LogConfig
from proglog.errors import NotLeader, Overloaded, Unavailable
from proglog.log.format import Tip
from proglog.log.log import Log
from proglog.ports import Clock
from proglog.raft.driver import Driver
from proglog.replica import commands
from proglog.replica.commands import SetStart
from proglog.replica.members import Members


class Retention:
    """Belongs to a replica, which calls `look` now and then and `trim` when the start moved."""

    def __init__(
        self, log: Log, driver: Driver, members: Members, config: LogConfig, clock: Clock
    ) -> None:
        self._log = log
        self._driver = driver
        self._members = members
        self._config = config
        self._clock = clock

    def trim(self, earliest: int) -> None:
        """Deletes the segments that nobody is served from any more."""
        if self._log.drop_prefix(self._log.index_of_offset(earliest)):
            self._driver.compacted(self._log.before.index)

    def look(self, earliest: int, applied_index: int) -> None:
        """Proposes another start where one is due. Only the leader calls this."""
        start = start_to_keep(
            self._log.segment_facts(),
            self._config,
            committed_index=applied_index,
            total=self._log.bytes_upto(applied_index),
            now=self._clock.now_ms(),
        )
        if start > earliest and self._members.has_room():
            with contextlib.suppress(NotLeader, Unavailable, Overloaded):
                # The next look, or the next leader, tries again.
                self._driver.propose_command(commands.encode([SetStart(start)]))


def start_to_keep(
    segments: Sequence[tuple[Tip, int]],
    config: LogConfig,
    *,
    committed_index: int,
    total: int,
    now: int,
) -> int:
    """The offset below which nothing need be kept; 0 if everything is.

    Always where a segment begins, since only whole segments can be deleted, and never behind what
    is committed.

    Args:
        segments: (tip before it, bytes) of each, oldest first.
        total: bytes of all of them.
        now: ms since the epoch.
    """
    start = 0
    for (_before, size), (following, _size) in pairwise(segments):
        too_much = config.retention_bytes is not None and total > config.retention_bytes
        # The tip before a segment is the newest batch of the one that would go.
        too_old = (
            config.retention_seconds is not None
            and now - following.timestamp > config.retention_seconds * 1000
        )
        if not (too_much or too_old) or following.index > committed_index:
            break
        start = following.next_offset
        total -= size
    return start
