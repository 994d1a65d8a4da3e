"""Whether this server should lead: not with damaged batches, a full disk, one that stalls, or
where others say that it has forgotten something."""

from __future__ import annotations

from proglog import limits
from proglog.batch import HEADER_BYTES
from proglog.log.log import Log
from proglog.raft.driver import Driver
from proglog.replica.leadership import Leadership
from proglog.replica.standing import Standing


class Fitness:
    """Belongs to a replica, which looks at every tick."""

    def __init__(
        self, log: Log, driver: Driver, leadership: Leadership, standing: Standing
    ) -> None:
        self._log = log
        self._standing = standing
        self._leadership = leadership
        self._driver = driver
        self._durable_index = log.durable_index
        self._progress_at = 0.0
        self._room_at = 0.0
        self.is_damaged = False
        """Set by the repair while some committed batches cannot be read."""

    def look(self, now: float) -> bool:
        """Whether this server is fit to lead on, at a time of the loop. Tells the core whether it
        may run, which it may not without room for the first batch."""
        log = self._log
        if log.durable_index != self._durable_index or log.durable_index == log.tip.index:
            self._durable_index = log.durable_index
            self._progress_at = now
        stalled = now - self._progress_at > limits.disk_stall_seconds_max
        has_room = self._has_room(now)
        # Between a segment that is full and the next one there is no room for a moment: that is no
        # full disk. Only a refusal is one, or an answer that does not come.
        waits_long = now - self._room_at > limits.disk_stall_seconds_max
        full = not has_room and (log.is_refused_room or waits_long)
        unfit = self.is_damaged or stalled or bool(self._standing.doubt)
        self._driver.raft.may_campaign = has_room and not unfit
        return not (unfit or full)

    def _has_room(self, now: float) -> bool:
        # A leader must be able to append its no-op, and what clients send beyond it. Alone, the
        # no-op will do: then at least what is stored can be read.
        alone = len(self._leadership.configuration.voters) == 1
        needed = HEADER_BYTES if alone else limits.control_bytes_reserved
        needed += self._driver.pending_bytes
        if self._log.has_room(needed):
            self._room_at = now
            return True
        # Nobody else asks while nothing is appended: all servers restarted with their segments
        # full, and space enough on their disks, would wait for each other to lead.
        self._log.ask_for_room(needed)
        return False
