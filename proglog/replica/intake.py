"""Appends that one peer sent: taken at once where there is room for them, else in their order.

The lane that they come by is read on meanwhile, for it is not theirs alone. The window of whoever
leads bounds what waits here; more than that is refused.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Protocol

import structlog

from proglog import limits
from proglog.errors import ProglogError, UnknownFormat
from proglog.raft.driver import Driver, ReceivedBatch
from proglog.raft.messages import AppendRequest
from proglog.replica.budgets import Budget

_logger = structlog.get_logger("replica")


class Taker(Protocol):
    """Whose log the appends are for."""

    driver: Driver

    @property
    def room_batches_max(self) -> int:
        """For more batches than this at once there is never room."""

    def refuse(self, peer: str) -> None:
        """Tells a peer that what it sent was not taken."""

    def failed(self, error: BaseException) -> None: ...


class Intake:
    """Of one peer."""

    def __init__(self, taker: Taker, peer: str, budget: Budget) -> None:
        self._taker = taker
        self._budget = budget
        self._peer = peer
        self._waiting: deque[tuple[AppendRequest, list[ReceivedBatch]]] = deque()
        self._bytes = 0
        self._working: asyncio.Task[None] | None = None
        self._is_refusing = False
        """That is told once, not for each append."""

    def append(self, request: AppendRequest, received: list[ReceivedBatch]) -> None:
        """Takes an append, now or later."""
        driver = self._taker.driver
        is_one_piece = len(_starts(received, self._taker.room_batches_max)) == 1
        has_room = not received or (is_one_piece and driver.has_room_for(received))
        if self._working is None and has_room:
            driver.receive_append(request, received)
            return
        size = _size(received)
        is_full = len(self._waiting) >= limits.intake_frames_max
        if is_full or (self._waiting and not self._budget.has_room(size, self._bytes)):
            self.clear()
            self._taker.refuse(self._peer)
            return
        self._waiting.append((request, received))
        self._bytes += size
        self._budget.take(size)
        if self._working is None:
            self._working = asyncio.get_running_loop().create_task(self._work())

    async def _work(self) -> None:
        try:
            while self._waiting:
                request, received = self._waiting[0]
                await self._take(request, received)
                self._is_refusing = False
                if self._waiting and self._waiting[0][0] is request:
                    self._waiting.popleft()
                    self._give(_size(received))
        except UnknownFormat as error:
            # The leader sends what a newer version is needed for: this server cannot follow it.
            self._forget()
            self._taker.failed(error)
        except ProglogError as error:
            # Nothing is acknowledged without room for it. The leader tries again.
            if not self._is_refusing:
                _logger.warning("appends not taken", peer=self._peer, why=str(error))
            self._is_refusing = True
            self._forget()
            self._taker.refuse(self._peer)
        except asyncio.CancelledError:
            raise
        except BaseException as error:
            self._taker.failed(error)
            raise
        finally:
            if self._working is asyncio.current_task():
                self._working = None

    async def _take(self, request: AppendRequest, received: list[ReceivedBatch]) -> None:
        """Takes an append in pieces for which there can be room: the leader may put more batches
        into one message than fit into one of our segments. Each piece is an append as well."""
        driver = self._taker.driver
        if not received:
            driver.receive_append(request, received)
            return
        starts = _starts(received, self._taker.room_batches_max)
        for start, end in zip(starts, [*starts[1:], len(received)], strict=True):
            piece = received[start:end]
            await driver.make_room_for(piece)
            before = received[start - 1].header if start else None
            driver.receive_append(
                request._replace(
                    prev_index=before.index if before else request.prev_index,
                    prev_term=before.term if before else request.prev_term,
                    last_index=piece[-1].header.index,
                ),
                piece,
            )

    def clear(self) -> None:
        """Forgets what waits: it is sent again."""
        self._forget()
        if self._working is not None:
            self._working.cancel()
            self._working = None

    def _forget(self) -> None:
        self._waiting.clear()
        self._give(self._bytes)

    def _give(self, size: int) -> None:
        self._bytes -= size
        self._budget.give(size)


def _starts(received: list[ReceivedBatch], most: int) -> list[int]:
    """Where the pieces begin: none has more batches, and where time goes back a segment begins."""
    starts: list[int] = []
    for at, each in enumerate(received):
        goes_back = at and each.header.timestamp < received[at - 1].header.timestamp
        if not starts or goes_back or at - starts[-1] == most:
            starts.append(at)
    return starts


def _size(received: list[ReceivedBatch]) -> int:
    return sum(each.header.size for each in received)
