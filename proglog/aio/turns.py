"""Each turn of the loop has a budget of work for clients, and parts it among those who have some.

What outsiders can ask for at no cost to them (frames, records of one byte) must not hold the loop,
and nobody's share may depend on how many connections somebody else has opened. So the budget is the
node's, not a connection's: work is done in the order of asking, a share at a time, and who has more
goes to the end of the line. Nobody waits while the budget of the turn lasts.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Protocol

from proglog import limits


class Work(Protocol):
    """Something that is done in steps."""

    def step(self, units: int) -> tuple[int, bool]:
        """Does about `units` of it; answers how many were done, and whether there is more."""


class Turns:
    """See the module. A unit is about 8 us of the loop."""

    def __init__(
        self,
        units_max: int = limits.turn_units_max,
        share_units_max: int = limits.turn_share_units_max,
    ) -> None:
        self._units_max = units_max
        self._share_units_max = share_units_max
        self._left = units_max
        self._waiting: deque[Work] = deque()
        self._begun = False

    def enter(self, work: Work) -> None:
        """Does some of the work now if this turn has room and nobody waits, the rest in its turn.

        Who has entered and has more waits in line: it does not enter again before it is through.
        """
        if self._waiting or self._left <= 0:
            self._waiting.append(work)
            self._begin()
        else:
            self._do(work, self._left)

    async def take(self, units: int) -> None:
        """Waits until so much work may be done, in the order of asking, if it may not at once."""
        if not self._waiting and self._left > 0:
            self._left -= units
            self._begin()
            return
        ticket = _Ticket(units)
        self.enter(ticket)
        await ticket.admitted

    def _begin(self) -> None:
        """This turn is in use: the next one has a budget of its own."""
        if not self._begun:
            self._begun = True
            asyncio.get_running_loop().call_soon(self._next)

    def _next(self) -> None:
        self._begun = False
        # Work is done in whole steps: what one took beyond its share is missing now.
        self._left = min(self._units_max, self._left + self._units_max)
        waiting = self._waiting
        for _ in range(len(waiting)):
            if self._left <= 0:
                break
            work = waiting.popleft()
            self._do(work, min(self._share_units_max, self._left) if waiting else self._left)
        if waiting or self._left < self._units_max:
            self._begin()

    def _do(self, work: Work, units: int) -> None:
        self._begin()  # also where the step raises
        done, more = work.step(units)
        self._left -= done
        if more:
            self._waiting.append(work)


class _Ticket:
    """A task's place in the line."""

    def __init__(self, units: int) -> None:
        self._units = units
        self.admitted: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def step(self, _units: int) -> tuple[int, bool]:
        if self.admitted.done():
            return 0, False  # it was cancelled
        self.admitted.set_result(None)
        return self._units, False


class Gate:
    """Lets through one step of bulk work, in the order of asking, every few turns.

    A reader's step (a chunk read, checked and sent) is short, but each turn with one step of every
    reader makes a writer beside them wait for all of these, several times for each record.
    """

    def __init__(self, turns_apart: int = limits.bulk_turns_apart) -> None:
        self._turns_apart = turns_apart
        self._shut_for = 0
        self._waiting: deque[asyncio.Future[None]] = deque()

    async def enter(self) -> None:
        """Waits for its turn."""
        if not self._shut_for and not self._waiting:
            self._shut()
            return
        admitted: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(admitted)
        await admitted

    def _shut(self) -> None:
        self._shut_for = self._turns_apart
        asyncio.get_running_loop().call_soon(self._next)

    def _next(self) -> None:
        self._shut_for -= 1
        if self._shut_for:
            asyncio.get_running_loop().call_soon(self._next)
            return
        while self._waiting:
            admitted = self._waiting.popleft()
            if not admitted.done():
                admitted.set_result(None)
                self._shut()
                return
