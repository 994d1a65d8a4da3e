"""When to try again, and how soon."""

from __future__ import annotations

import asyncio
import copy
import random
from collections.abc import Awaitable, Callable
from typing import TypeVar

from proglog import limits
from proglog.errors import Action, DeadlineExceeded, Outcome, ProglogError, Unavailable, let_go

T = TypeVar("T")

RETRIED = frozenset({Action.RETRY_HERE, Action.RETRY_ELSEWHERE})


def may_read_again(error: ProglogError) -> bool:
    """Whether a call that changes nothing is worth another try."""
    return error.action in RETRIED or error.outcome is Outcome.UNKNOWN


def behind(after: int) -> Unavailable:
    """What a node is that has not got the record at `after` yet: it will, or another node has."""
    return Unavailable(f"the node has not got the record at offset {after} yet")


class Backoff:
    """Exponential delays with full jitter, capped (Brooker, "Exponential Backoff And Jitter")."""

    def __init__(self, chance: random.Random) -> None:
        self._chance = chance
        self.reset()

    def reset(self) -> None:
        """Something went well: the next delay is short again."""
        self._bound = limits.client_backoff_seconds_first

    def next(self) -> float:
        """Seconds to wait before the next try."""
        bound = self._bound
        self._bound = min(2 * bound, limits.client_backoff_seconds_max)
        return self._chance.uniform(0, bound)

    async def pause(self, deadline: float | None) -> None:
        """Waits for the next delay, but not beyond `deadline`, a time of the loop."""
        delay = self.next()
        if deadline is not None:
            delay = min(delay, max(deadline - asyncio.get_running_loop().time(), 0))
        await asyncio.sleep(delay)


async def call_until(
    call: Callable[[], Awaitable[T]], timeout_seconds: float, chance: random.Random
) -> T:
    """Tries a call that changes nothing until it succeeds, fails for good, or the time is over.

    Raises the last error.
    """
    loop = asyncio.get_running_loop()
    deadline = loop.time() + timeout_seconds
    backoff = Backoff(chance)
    failure: ProglogError | None = None
    while True:
        try:
            async with asyncio.timeout_at(deadline):
                return await call()
        except TimeoutError:
            late = DeadlineExceeded(f"no answer within {timeout_seconds:g} s")
            raise copy.copy(failure or late) from None
        except ProglogError as error:
            if not may_read_again(error) or loop.time() >= deadline:
                raise
            let_go(error)
            failure = error
        await backoff.pause(deadline)
