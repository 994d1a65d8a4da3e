"""A node that says nothing while calls wait for it, and what the others know meanwhile.

A process that hangs keeps its connections, and a network that swallows everything ends none. So a
connection that carries calls and brings nothing is asked for a sign of life; without one, the other
nodes of the cluster are asked who leads. A node is left only on their word: one that is merely
slow, or held up by what all of us ask of it, still leads for them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence

from proglog import limits
from proglog.config import Address
from proglog.errors import ProglogError


class Watch:
    """Of one connection, or of one that is to be made. Costs nothing while no call waits."""

    def __init__(
        self, *, waits: Callable[[], bool], ping: Callable[[], None], silent: Callable[[], None]
    ) -> None:
        """`silent` is called over and over while nothing comes."""
        self._waits = waits
        self._ping = ping
        self._silent = silent
        self._loop = asyncio.get_running_loop()
        self._heard_at = self._pinged_at = 0.0
        self._timer: asyncio.TimerHandle | None = None

    def heard(self) -> None:
        """Something came."""
        self._heard_at = self._loop.time()

    def begin(self) -> None:
        """A call waits from now on."""
        if self._timer is None:
            self.heard()
            self._look_at(self._heard_at + limits.client_quiet_seconds)

    def end(self) -> None:
        """The connection is over."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _look_at(self, when: float) -> None:
        self._timer = self._loop.call_at(when, self._look)

    def _look(self) -> None:
        self._timer = None
        if not self._waits():
            return
        now = self._loop.time()
        due = self._heard_at + limits.client_quiet_seconds
        # A millisecond more or less: loops count them.
        if now + 0.001 < due:
            self._look_at(due)
        elif self._pinged_at <= self._heard_at:
            # Also after our own process stood still: what came meanwhile is read before the answer.
            self._pinged_at = now
            self._ping()
            self._look_at(now + limits.client_pong_seconds)
        else:
            self._silent()
            self._look_at(now + limits.client_pong_seconds)


async def another_leader(
    asked: Sequence[Address], silent: Address, ask: Callable[[Address], Awaitable[str]]
) -> str:
    """Where the leader is by the word of the first of those asked that names another one than the
    silent node; empty if none does in time."""
    tasks = [asyncio.ensure_future(ask(address)) for address in asked]
    try:
        async with asyncio.timeout(limits.client_word_seconds_max):
            for task in asyncio.as_completed(tasks):
                try:
                    leader = await task
                except ProglogError:
                    continue
                if leader not in {"", str(silent)}:
                    return leader
    except TimeoutError:
        pass
    finally:
        for each in tasks:
            each.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    return ""
