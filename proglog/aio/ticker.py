"""Time in ticks, by one timer for all that a node has to look at now and then.

The timer rings when the first of them wants it, and then tells them all: so a node wakes once a
tick at most, however many logs and connections it has, and seldom while nothing happens.

Ticks count awake time. A ring that comes late, since the process stood still or its loop was held
up, is no more ticks than it was set for: meanwhile nothing could be heard, so silence proves
nothing.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

Work = Callable[[int], int]
"""Gets how many ticks have passed; returns after how many more it wants to know, at least one."""

TICKS_MAX = 1000
"""The longest that a timer without anybody is set for."""


class Ticker:
    """See the module. Belongs to the loop that it is made on."""

    def __init__(self, tick_seconds: float) -> None:
        self._tick_seconds = tick_seconds
        self._loop = asyncio.get_running_loop()
        # In the order of their making, unlike a set: so that a simulated run is always the same.
        self._works: dict[Work, None] = {}
        self._told_at = self._loop.time()
        """When all were told last, on a steady pace: timers are late by a millisecond or two, and
        thirty of them make an election timeout."""
        self._ticks = 0
        """From then to the next ring."""
        self._timer: asyncio.TimerHandle | None = None
        self._is_telling = False
        self._wanted = TICKS_MAX
        """While they are told: after how many ticks the first of them wants to know more."""

    def add(self, work: Work) -> None:
        """Begins to tell somebody, from the next tick on."""
        assert work not in self._works
        self._works[work] = None
        self.soon()

    def remove(self, work: Work) -> None:
        """Tells it no more."""
        self._works.pop(work, None)
        if not self._works:
            self._cancel()

    def soon(self) -> None:
        """Something has happened: the next tick is told, whatever was wanted before."""
        if self._is_telling:
            self._wanted = 1
        elif self._timer is None:
            self._told_at = self._loop.time()
            self._set(1)
        elif self._ticks > 1:
            passed = int((self._loop.time() - self._told_at) / self._tick_seconds)
            if passed + 1 < self._ticks:
                self._cancel()
                self._set(passed + 1)

    def _set(self, ticks: int) -> None:
        self._ticks = ticks
        self._timer = self._loop.call_at(self._told_at + ticks * self._tick_seconds, self._ring)

    def _cancel(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _ring(self) -> None:
        self._timer = None
        due = self._told_at + self._ticks * self._tick_seconds
        now = self._loop.time()
        self._told_at = now if now - due >= self._tick_seconds else due
        self._is_telling, self._wanted = True, TICKS_MAX
        try:
            for work in list(self._works):
                if work in self._works:
                    wanted = work(self._ticks)
                    self._wanted = min(self._wanted, wanted)
        finally:
            # Also where one of them failed: the others have to be told.
            self._is_telling = False
            if self._works:
                self._set(max(self._wanted, 1))
