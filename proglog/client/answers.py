"""What became of the batches of one call."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence
from itertools import chain

from proglog.client.sender import Unresolved, look_at
from proglog.errors import OutcomeUnknown, ProglogError


class Answers:
    """The first offsets of batches, in the order in which these were handed over.

    What is answered is kept as ranges, so that a call of any length holds little.
    """

    def __init__(self) -> None:
        self._ranges: list[range] = []
        self._expected: deque[tuple[asyncio.Future[int], int]] = deque()

    def expect(self, answer: asyncio.Future[int], count: int) -> asyncio.Future[int]:
        """Adds a batch of `count` records; `answer` gets its first offset."""
        self._expected.append((answer, count))
        return answer

    @property
    def has_failed(self) -> bool:
        """Whether a batch was refused, so that the rest of the call is to no purpose."""
        while self._expected and self._expected[0][0].done():
            answer, count = self._expected[0]
            if answer.exception() is not None:
                return True
            self._append(answer.result(), count)
            self._expected.popleft()
        return False

    async def all(self) -> None:
        """Waits for all answers.

        Raises ProglogError, the first one, whose fact `appended` says how many records are in.
        """
        if self._expected:
            await asyncio.wait([answer for answer, _ in self._expected])
        if self.has_failed:
            first, *_ = [answer.exception() for answer, _ in self._expected]
            assert first is not None, "it failed"
            self._add_fact(first)
            raise first

    def note(self, error: Exception) -> None:
        """Says in an error that ended the call early how many records are in the log before it."""
        error.add_note(f"records appended: {self._appended}")
        self._add_fact(error)

    def unknown(self, message: str) -> ProglogError:
        """Why the call ends before all answers are there: it may be found out, see `Log.resolve`.

        Its fact `appended` says how many records are in; those after them are in or not.
        """
        if self.has_failed:
            first, *_ = [answer.exception() for answer, _ in self._expected]
            assert isinstance(first, ProglogError), "batches fail with nothing else"
            error = first
        elif self._expected:
            error = Unresolved(message, {}, self._expected[0][0], 0)
        else:
            error = OutcomeUnknown(message)
        for answer, _ in self._expected:
            answer.add_done_callback(look_at)
        self._add_fact(error)
        return error

    def cancel(self) -> None:
        """Nobody asks any more."""
        for answer, _ in self._expected:
            if not answer.cancel():
                answer.exception()  # Asked for, so that asyncio does not warn of it.

    def offsets(self) -> Sequence[int]:
        """The offsets of all records: a range where they are consecutive."""
        if len(self._ranges) > 1:
            return list(chain.from_iterable(self._ranges))
        return self._ranges[0] if self._ranges else range(0)

    def _append(self, first: int, count: int) -> None:
        if self._ranges and self._ranges[-1].stop == first:
            self._ranges[-1] = range(self._ranges[-1].start, first + count)
        else:
            self._ranges.append(range(first, first + count))

    def _add_fact(self, error: BaseException) -> None:
        if isinstance(error, ProglogError):
            error.facts = error.facts | {"appended": str(self._appended)}

    @property
    def _appended(self) -> int:
        return sum(map(len, self._ranges))
