"""A bound on bytes, waited for in the order of asking."""

from __future__ import annotations

import asyncio
from collections import deque


class Budget:
    """So many bytes may be out at once.

    One request larger than everything is granted when all else is back, so nothing waits for ever.
    """

    def __init__(self, bytes_max: int) -> None:
        self._bytes_max = bytes_max
        self._taken = 0
        self._waiters: deque[tuple[int, asyncio.Future[None]]] = deque()

    @property
    def taken(self) -> int:
        """Bytes that are out."""
        return self._taken

    def take_now(self, least: int, most: int) -> int:
        """Takes between `least` and `most` bytes, as many as there are; 0 where it must wait."""
        if self._waiters or not self._fits(least):
            return 0
        granted = max(least, min(most, self._bytes_max - self._taken))
        self._taken += granted
        return granted

    async def take(self, size: int) -> None:
        """Takes `size` bytes as soon as all who asked before have theirs."""
        if self.take_now(size, size):
            return
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiters.append((size, waiter))
        try:
            await waiter
        except asyncio.CancelledError:
            if waiter.done() and not waiter.cancelled():
                self.give(size)  # Granted and cancelled in the same turn of the loop.
            else:
                self._grant()  # Those behind may need less.
            raise

    def give(self, size: int) -> None:
        """Gives bytes back."""
        self._taken -= size
        assert self._taken >= 0, "more given back than taken"
        self._grant()

    def _fits(self, size: int) -> bool:
        return self._taken == 0 or self._taken + size <= self._bytes_max

    def _grant(self) -> None:
        while self._waiters:
            size, waiter = self._waiters[0]
            if not waiter.done():
                if not self._fits(size):
                    return
                self._taken += size
                waiter.set_result(None)
            self._waiters.popleft()
