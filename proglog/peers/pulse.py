"""Whether the other end of a connection is still there: it says something, however little, all the
time, and one that says nothing for too long is given up.

TCP by itself finds out after a quarter of an hour; and once the network is whole again, it waits
for as long as it was broken before it tries the next time.
"""

from __future__ import annotations

from collections.abc import Callable


class AwakeClock:
    """Time, without that in which this process stood still or its loop was held up.

    Meanwhile whatever the others said waits in the sockets. So a beat that comes late counts for
    one, and judges nobody, nor do those of half a beat from then on: by the next one all that waits
    has been read.
    """

    def __init__(self, time: Callable[[], float], beat_seconds: float) -> None:
        self._time = time
        self._beat_seconds = beat_seconds
        self._last = time()
        self._judges_from = 0.0
        self.now = 0.0
        """Seconds awake, as of the last beat."""

    def beat(self) -> bool:
        """To be called each `beat_seconds`, or sooner. Whether others can be judged now."""
        real = self._time()
        elapsed, self._last = real - self._last, real
        self.now += min(elapsed, self._beat_seconds)
        if elapsed >= 2 * self._beat_seconds:
            self._judges_from = self.now + self._beat_seconds / 2
        return self.now >= self._judges_from


class Pulse:
    """Of one connection, in the time of an AwakeClock."""

    __slots__ = ("_clock", "_heard", "_ping_at", "_ping_seconds", "_silence_seconds", "_told")

    def __init__(self, clock: AwakeClock, ping_seconds: float, silence_seconds: float) -> None:
        """Without `ping_seconds` the other end is the one that asks."""
        self._clock = clock
        self._ping_seconds = ping_seconds
        self._silence_seconds = silence_seconds
        self._heard = self._told = clock.now
        self._ping_at = clock.now

    def heard(self) -> None:
        """Something arrived."""
        self._heard = self._clock.now

    @property
    def is_lost(self) -> bool:
        """Nothing arrived for too long."""
        return self._clock.now - self._heard > self._silence_seconds

    def is_ping_due(self) -> bool:
        """Whether to ask for an answer; the next time is later."""
        due = self._ping_seconds > 0 and self._clock.now >= self._ping_at
        if due:
            self._ping_at = self._clock.now + self._ping_seconds
        return due

    def told(self) -> None:
        """The other end was told that something arrived."""
        self._told = self._clock.now

    def is_answer_due(self, every_seconds: float) -> bool:
        """Whether to say that something arrived, asked or not: what fills a slow connection is in
        the way of the question."""
        return self._clock.now - self._told >= every_seconds
