"""Who waits for which batch to be committed."""

from __future__ import annotations

import asyncio
from typing import NamedTuple

from proglog.batch import BatchHeader
from proglog.errors import OutcomeUnknown, Unavailable
from proglog.types import Appended


class _Waiter(NamedTuple):
    term: int
    deadline: float
    future: asyncio.Future[Appended]


class CommitWaiters:
    """Keyed by (index, term), as given in the step that appended.

    A batch is known to be committed when one of its index *and* term is; it is known not to be when
    one of another term is committed at its index. Losing leadership, truncation and snapshots say
    nothing: whoever else holds the batch may still win and commit it.
    """

    def __init__(self) -> None:
        self._waiters: dict[int, list[_Waiter]] = {}

    def __len__(self) -> int:
        return len(self._waiters)

    def add(self, index: int, term: int, deadline: float) -> asyncio.Future[Appended]:
        future: asyncio.Future[Appended] = asyncio.get_running_loop().create_future()
        self._waiters.setdefault(index, []).append(_Waiter(term, deadline, future))
        return future

    def committed(self, header: BatchHeader) -> None:
        """The batch of this header is committed at its index."""
        for waiter in self._waiters.pop(header.index, ()):
            if waiter.future.done():
                continue
            if waiter.term == header.term:
                waiter.future.set_result(Appended(header.base_offset, header.timestamp))
            else:
                waiter.future.set_exception(
                    Unavailable("another leader took over before the batch was committed")
                )

    def hurry(self, deadline: float) -> None:
        """All wait until then at most: this server leads no more. Who does decides about their
        batches in a moment, or this server is cut off and will not hear of it; whoever waits may
        ask the others."""
        for index, waiters in self._waiters.items():
            self._waiters[index] = [
                each._replace(deadline=min(each.deadline, deadline)) for each in waiters
            ]

    def expire(self, now: float) -> None:
        """Gives up on the batches whose deadline has passed."""
        for index in list(self._waiters):
            waiters = self._waiters[index]
            if waiters[0].deadline > now:
                # Deadlines grow with the index, but for what a new leader put below.
                continue
            del self._waiters[index]
            for waiter in waiters:
                _fail(waiter.future, "the batch was not committed in time")

    def give_up(self) -> None:
        """Nobody will tell the outcome any more: the node stops."""
        self._give_up(
            list(self._waiters), "the node stopped before the batch was known to be committed"
        )

    def skipped(self, last_index: int) -> None:
        """A snapshot stands for all batches up to this one: which they were is not told."""
        indexes = [index for index in self._waiters if index <= last_index]
        self._give_up(indexes, "a snapshot took the place of what this server had of the log")

    def _give_up(self, indexes: list[int], why: str) -> None:
        for index in indexes:
            for waiter in self._waiters.pop(index):
                _fail(waiter.future, why)


def _fail(future: asyncio.Future[Appended], why: str) -> None:
    if not future.done():
        future.set_exception(OutcomeUnknown(f"{why}: it may or may not be in the log"))
        # Whoever lost interest in the answer need not be reminded of it.
        future.exception()
