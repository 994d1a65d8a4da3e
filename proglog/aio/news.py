"""Waking everybody who waits for something to have changed, without polling."""

from __future__ import annotations

import asyncio
import copy

from proglog.errors import ProglogError


class News:
    """A condition without a lock: on one loop, whoever is woken looks again for what it needs."""

    __slots__ = ("_closed", "_waiting")

    def __init__(self) -> None:
        # By the future, in their order: one that goes away is not searched for among all.
        self._waiting: dict[asyncio.Future[None], None] = {}
        self._closed: ProglogError | None = None

    async def wait(self) -> None:
        """Until the next `tell`. Raises what `close` was given."""
        self._check()
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting[future] = None
        try:
            await future
        finally:
            self._waiting.pop(future, None)
        self._check()

    def _check(self) -> None:
        if self._closed is not None:
            # One of its own for each: a shared one would keep the frames of all who got it.
            raise copy.copy(self._closed)

    def tell(self) -> None:
        """Wakes all who wait."""
        waiting, self._waiting = self._waiting, {}
        for future in waiting:
            if not future.done():
                future.set_result(None)

    def close(self, error: ProglogError) -> None:
        """From now on nothing will change: all who wait, or will, get `error`."""
        self._closed = error
        self.tell()
