"""Deadlines of a core without a clock: time is what the driver says it is."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable
from dataclasses import dataclass, field


@dataclass(slots=True, order=True)
class Timer:
    """One deadline, in seconds. Cancelled by `cancel`; fires at most once."""

    deadline: float
    order: int
    action: Callable[[], None] | None = field(compare=False)

    def cancel(self) -> None:
        self.action = None


class Timers:
    """All pending deadlines. Equal deadlines fire in the order they were set."""

    def __init__(self, now: float) -> None:
        self._now = now
        self._heap: list[Timer] = []
        self._order = itertools.count()

    @property
    def now(self) -> float:
        return self._now

    @property
    def next_deadline(self) -> float | None:
        while self._heap and self._heap[0].action is None:
            heapq.heappop(self._heap)
        return self._heap[0].deadline if self._heap else None

    def after(self, delay_s: float, action: Callable[[], None]) -> Timer:
        timer = Timer(self._now + delay_s, next(self._order), action)
        heapq.heappush(self._heap, timer)
        return timer

    def observe(self, now: float) -> None:
        """Moves time on without firing anything; time never goes back."""
        self._now = max(self._now, now)

    def fire(self, now: float) -> None:
        """Moves time on and fires what is due.

        What an action sets anew waits for the next call, even if it is due already: a wake that
        comes late fires each periodic timer once, not once for every period that was missed.
        """
        self.observe(now)
        due = []
        while self._heap and self._heap[0].deadline <= now:
            due.append(heapq.heappop(self._heap))
        for timer in due:
            action, timer.action = timer.action, None
            if action is not None:
                action()


class PauseClock:
    """The driver's time, without the time in which this process stood still.

    A process that was stopped for a minute (SIGSTOP, a suspended laptop, a starved container) finds
    on waking that every deadline has passed, while the answers that would have met them wait unread
    in its sockets. Acting on those deadlines it would declare the whole cluster dead. So a gap
    between two readings counts for at most `limits.pause_seconds_max`: the core wakes often enough
    (it gossips several times a second) that a longer one is a pause.
    """

    def __init__(self, time: Callable[[], float], gap_max_s: float) -> None:
        self._time = time
        self._gap_max_s = gap_max_s
        self._last = time()
        self._lost = 0.0

    def now(self) -> float:
        real = self._time()
        gap, self._last = real - self._last, real
        self._lost += max(0.0, gap - self._gap_max_s)
        return real - self._lost
