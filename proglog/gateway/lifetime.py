"""When a gateway's requests may begin, and when those that wait must end."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable

from proglog.errors import Unavailable


class Lifetime:
    """Knows whether the gateway drains, and ends the waits of requests when it begins to."""

    def __init__(self) -> None:
        self.draining = False
        self._waits: set[asyncio.Timeout] = set()
        self._requests = 0
        self._idle = asyncio.Event()
        self._idle.set()

    @property
    def waits(self) -> int:
        """Requests that wait for new records."""
        return len(self._waits)

    def __enter__(self) -> None:
        """A request begins."""
        self._requests += 1
        self._idle.clear()

    def __exit__(self, *_: object) -> None:
        self._requests -= 1
        if not self._requests:
            self._idle.set()

    def check(self) -> None:
        """Raises Unavailable once the gateway drains."""
        if self.draining:
            raise Unavailable("the node is stopping")

    async def wait(self, awaitable: Awaitable[None]) -> None:
        """Waits as long as the gateway does not drain. Raises Unavailable when it does."""
        self.check()
        scope = asyncio.timeout(None)
        try:
            async with scope:
                self._waits.add(scope)
                await awaitable
        except TimeoutError:
            self.check()
            raise
        finally:
            self._waits.discard(scope)

    async def drain(self, seconds: float) -> None:
        """Ends all waits and gives the requests under way `seconds` to end."""
        if not self.draining:
            self.draining = True
            for scope in self._waits:
                scope.reschedule(0)
        try:
            async with asyncio.timeout(seconds):
                await self._idle.wait()
        except TimeoutError:
            return
