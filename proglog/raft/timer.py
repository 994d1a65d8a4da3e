"""How long no leader was heard, and when that is too long."""

from __future__ import annotations

import random


class ElectionTimer:
    """In ticks, which may be told several at a time."""

    __slots__ = ("_is_new", "_rng", "_shortest", "elapsed", "timeout")

    def __init__(self, shortest: int, rng: random.Random) -> None:
        self._shortest = shortest
        self._rng = rng
        self.reset()

    def reset(self) -> None:
        """A new random timeout each time: two servers that collided once part the next time."""
        self.elapsed = 0
        self.timeout = self._rng.randrange(self._shortest, 2 * self._shortest)
        self._is_new = True

    def passed(self, ticks: int) -> None:
        """So many ticks have passed since this was told last. How many of them after the reset is
        not known: one counts. Too late by a heartbeat, once, is better than too soon."""
        self.elapsed += 1 if self._is_new else ticks
        self._is_new = False

    @property
    def protects(self) -> bool:
        """The shortest timeout has not passed: a leader that was heard is believed to be there."""
        return self.elapsed < self._shortest

    @property
    def left(self) -> int:
        """Ticks until it has expired; none or less if it has."""
        return self.timeout - self.elapsed

    @property
    def quiet(self) -> int:
        """Ticks that may be told with the one after them: only that one may let it expire."""
        return 0 if self._is_new else max(self.left - 1, 0)

    def hurry(self, ticks: int) -> None:
        """Protects no more, and expires after so many ticks; never later than without this."""
        left = min(ticks, self.left)
        self.elapsed = self._shortest
        self.timeout = self._shortest + left
        self._is_new = True
