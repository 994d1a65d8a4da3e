"""When a learner has caught up enough to be given a vote (Raft thesis section 4.2.1)."""

from __future__ import annotations


class CatchUp:
    """Replication to a learner in rounds: each ends when the learner holds all that the leader held
    when the round began. Caught up: the last round took less than an election timeout, and the lag
    is within a bound.

    The duration of a round measures whether the learner keeps up with the present load; the lag
    alone does not (it is small when nothing is written and when much was written a moment ago). A
    voter that cannot keep up would stall commits for as long as it is needed for a majority.
    """

    __slots__ = ("_began", "_fast", "_target", "_ticks_max")

    def __init__(self, *, target: int, now: int, ticks_max: int) -> None:
        self._target = target
        self._began: int | None = now
        """None: the learner held everything when the last round ended, none is under way."""
        self._ticks_max = ticks_max
        self._fast = False

    def acknowledged(self, match: int, *, last_index: int, now: int) -> None:
        if self._began is not None:
            if match < self._target:
                return
            self._fast = now - self._began <= self._ticks_max
        self._target = last_index
        self._began = now if match < last_index else None
        if self._began is None:
            # The next round has nothing to send: it is over as it begins. Without this a learner
            # whose last round was slow (its dial took long) would stay one until the next write.
            self._fast = True

    def caught_up(self, match: int, *, last_index: int, now: int, lag_max: int) -> bool:
        on_time = self._began is None or now - self._began <= self._ticks_max
        return self._fast and on_time and last_index - match <= lag_max
