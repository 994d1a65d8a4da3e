"""The time of one log: what a majority of its voters' wall clocks say, so that one wrong clock of
three, in whatever direction, decides nothing.

| clock | is | decides |
|---|---|---|
| own monotonic | the loop's time, never steps | all waiting, and how long something has stood |
| agreed time | the latest that a majority of the voters' walls have reached | what is too old |
| log time | stamps of batches: the stamp clock, but never less than the one before | seeking, age |
| own wall | | one vote in the agreed time, lines of this process's log; nothing else |

All wall clocks are known relative to our monotonic one: a step of ours moves one vote, as that of
any other. Of a voter that has not told its clock lately the earliest time there is is assumed: that
deletes nothing. Learners have no vote.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import NamedTuple

import structlog

from proglog import limits
from proglog.ports import Clock
from proglog.raft.quorum import majority, reached_by_majority

_logger = structlog.get_logger("replica")


class StampClock:
    """What batches are stamped with, in place of a wall clock. Runs on every server, so that a new
    leader has one that has settled.

    It goes by the monotonic clock and follows the agreed time: at once if that is near, after a
    step only once that has stood for some time. Without an agreed time it runs on; before there
    ever was one it shows 0, and stamps are those of the batch before: no write waits for clocks.
    """

    def __init__(self, clock: Clock, time: Callable[[], float]) -> None:
        self._time = time
        self._offset: float | None = None
        self._step: float | None = None
        """The agreed time that is not followed yet,"""
        self._stands_since = 0.0
        """and since when it is that."""
        self.stopwatch = clock.stopwatch

    def now_ms(self) -> int:
        """Milliseconds since the epoch, as far as the voters know."""
        return 0 if self._offset is None else max(round(self._offset + 1000 * self._time()), 0)

    def follow(self, agreed: float, *, may_step: bool) -> None:
        """`agreed` is the agreed time less the monotonic one, in ms. Unless it `may_step` a step is
        left for later: somebody has made room for a batch of about this time."""
        now = self._time()
        if self._offset is not None and abs(agreed - self._offset) <= limits.clock_apart_ms_max:
            self._offset, self._step = agreed, None
            return
        if self._step is None or abs(agreed - self._step) > limits.clock_apart_ms_max:
            self._stands_since = now
        self._step = agreed
        has_stood = self._offset is None or now - self._stands_since >= limits.clock_step_seconds
        if may_step and has_stood:
            self._offset, self._step = agreed, None


class _View(NamedTuple):
    """All clocks at one moment, less our monotonic one, in ms."""

    own: float
    voters: tuple[float, ...]
    """-inf for one that is not known."""

    @property
    def agreed(self) -> float:
        return reached_by_majority(self.voters) if self.voters else -math.inf

    @property
    def is_told_by_majority(self) -> bool:
        """Whether a majority of the clocks show the agreed time, more or less."""
        near = sum(abs(each - self.agreed) <= limits.clock_apart_ms_max for each in self.voters)
        return self.agreed > -math.inf and near >= majority(len(self.voters))


class Timekeeper:
    """Looks at the clocks. `look` is called with every tick."""

    def __init__(
        self,
        *,
        stamps: StampClock,
        clock: Clock,
        time: Callable[[], float],
        own_uuid: str,
        voters: Callable[[], Iterable[str]],
        offset_of: Callable[[str], float | None],
        last_stamp: Callable[[], int],
    ) -> None:
        """`offset_of` tells another server's wall clock less our monotonic one, in ms."""
        self._stamps = stamps
        self._clock = clock
        self._time = time
        self._own_uuid = own_uuid
        self._voters = voters
        self._offset_of = offset_of
        self._last_stamp = last_stamp
        self._agreed = -math.inf
        self._view = _View(0.0, ())
        self._steady_since = self._next_look = time()
        self._warned: dict[str, float] = {}
        """What is wrong, and when that was told last."""
        self.look(may_step=True)

    def look(self, *, may_step: bool) -> None:
        """Compares the clocks, if that is due. `may_step`: see StampClock."""
        now = self._time()
        if now < self._next_look:
            return
        self._next_look = now + limits.clock_look_seconds
        self._view = view = self._look()
        has_stepped = not abs(view.agreed - self._agreed) <= limits.clock_apart_ms_max
        if has_stepped or not view.is_told_by_majority:
            self._steady_since = now
        self._agreed = view.agreed
        if view.agreed > -math.inf:
            self._stamps.follow(view.agreed, may_step=may_step)
        self._warn(now)

    def _look(self) -> _View:
        own = self._clock.now_ms() - 1000 * self._time()
        others = (
            own if uuid == self._own_uuid else self._offset_of(uuid) for uuid in self._voters()
        )
        return _View(own, tuple(-math.inf if each is None else each for each in others))

    def begin(self) -> None:
        """This server leads from now on: whatever it saw as a follower, it waits before it deletes
        anything."""
        self._steady_since = self._time()

    # --- what is deleted for its age -------------------------------------------------------------

    @property
    def agreed_ms(self) -> float | None:
        """The agreed time, in ms since the epoch; None if too few voters have told their clocks."""
        agreed = self._view.agreed
        return None if agreed == -math.inf else agreed + 1000 * self._time()

    @property
    def steady_seconds(self) -> float:
        """For how long, by the monotonic clock, a majority of the voters' clocks have shown the
        agreed time, that has made no step, and this server has led."""
        return self._time() - self._steady_since

    @property
    def stamp_ms(self) -> int:
        """What a batch would be stamped with, were it not for the one before it."""
        return self._stamps.now_ms()

    def why_not_corrected(self) -> str | None:
        """Why log time may not be set to the agreed time, if so. *All* voters' clocks must show it,
        and have for some time: what is set too low makes records older than they are."""
        view, stamps = self._view, self._stamps.now_ms()
        if self._last_stamp() - stamps <= limits.clock_apart_ms_max:
            return "log time is not ahead of the voters' clocks: there is nothing to correct"
        apart = limits.clock_apart_ms_max
        agrees = all(abs(each - view.agreed) <= apart for each in view.voters)
        settled = abs((self.agreed_ms or 0.0) - stamps) <= apart
        if not agrees or not settled or self.steady_seconds < limits.clock_step_seconds:
            return (
                f"not all voters' clocks have agreed for {limits.clock_step_seconds:g} s: see "
                "`cluster status` of each, and mend them first"
            )
        return None

    # --- what is told ----------------------------------------------------------------------------

    def notes(self) -> list[str]:
        """What is wrong with clocks, in sentences for operators."""
        return [f"{what} {by}" for what, by in self._faults().items()]

    def _faults(self) -> dict[str, str]:
        """What is wrong, and by how much."""
        view, found = self._view, {}
        if view.agreed == -math.inf:
            return {}
        off = view.own - view.agreed
        if abs(off) > limits.clock_apart_ms_max:
            found["the wall clock of this node differs from those of most voters:"] = _told(off)
        ahead = self._last_stamp() - self._stamps.now_ms()
        if ahead > limits.clock_apart_ms_max:
            found["log time stands still until then, or `cluster fix-time`:"] = _told(ahead)
        return found

    def _warn(self, now: float) -> None:
        faults = self._faults()
        for what in [what for what in self._warned if what not in faults]:
            del self._warned[what]
            _logger.info("no more", what=what.rstrip(":"))
        for what, by in faults.items():
            if now - self._warned.get(what, -math.inf) >= limits.clock_warn_seconds:
                self._warned[what] = now
                _logger.warning(what.rstrip(":"), by=by)


def _told(ms: float) -> str:
    seconds = abs(ms) / 1000
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {unit} {'ahead' if ms > 0 else 'behind'}"
    return f"{seconds:.1f} s {'ahead' if ms > 0 else 'behind'}"
