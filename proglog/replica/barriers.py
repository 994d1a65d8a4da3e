"""Linearizable reads: a caller waits until this node knows all that was acknowledged before."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from proglog.errors import ProglogError, Unavailable
from proglog.raft.driver import Driver
from proglog.raft.messages import ReadResult


class Barriers:
    """Read-index requests under way (Raft thesis, section 6.4). Belongs to a replica."""

    def __init__(self, driver: Driver) -> None:
        self._driver = driver
        self._waiting: dict[object, asyncio.Future[int]] = {}

    async def index(self) -> int:
        """The index that a read which begins now must have applied.

        Raises NotLeader or Overloaded, and Unavailable if leadership is lost meanwhile.
        """
        # A new object each time: the confirmation of an earlier request says nothing of this one.
        ticket = object()
        confirmed: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._waiting[ticket] = confirmed
        try:
            self._driver.request_read(ticket)
            return await confirmed
        finally:
            del self._waiting[ticket]

    def confirmed(self, reads: Sequence[ReadResult]) -> None:
        """The core's answers."""
        for read in reads:
            future = self._waiting.get(read.ticket)
            if future is None or future.done():
                continue
            if read.index is None:
                future.set_exception(Unavailable("leadership was lost; ask the next leader"))
            else:
                future.set_result(read.index)

    def close(self, reason: ProglogError) -> None:
        """Nothing will be confirmed any more: all who wait get `reason`."""
        for future in self._waiting.values():
            if not future.done():
                future.set_exception(reason)
