"""The consumer: reads on at the next offset, whatever interrupts it."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing
from typing import Literal, TypeAlias

from proglog.batch import BadBatch, Buffer, Record, RecordBatch, decode_all
from proglog.client.backend import Backend, Start
from proglog.client.retry import Backoff, behind, may_read_again
from proglog.errors import (
    ConsumerGap,
    InvalidBatch,
    OffsetOutOfRange,
    ProglogError,
    RangeCorrupt,
    Unavailable,
    from_reason,
)
from proglog.types import Chunk

OnGap: TypeAlias = Literal["raise", "skip"]


class Consumer:
    """Where one reader is, and what it does about each interruption.

    Nothing is skipped and nothing comes twice: the offsets of its records are consecutive, except
    where retention overtook it, or a repair gave up what was damaged, and it was told to skip.
    """

    def __init__(
        self,
        backend: Backend,
        start: Start,
        *,
        follow: bool,
        linearizable: bool,
        after: int | None,
        on_gap: OnGap,
        timeout_seconds: float,
        chance: random.Random,
    ) -> None:
        self._backend = backend
        self._start = start
        self._follow = follow
        self._linearizable = linearizable
        self._after = after
        self._on_gap = on_gap
        self._timeout = timeout_seconds
        self._position = start if isinstance(start, int) else None
        self._started = False
        self._loop = asyncio.get_running_loop()
        self._asked_at = self._loop.time()
        self._failing_since: float | None = None
        self._backoff = Backoff(chance)

    async def records(self) -> AsyncGenerator[Record, None]:
        """The records, one by one. Raises ProglogError."""
        async with aclosing(self.batches()) as batches:
            async for batch in batches:
                for record in batch:
                    yield record

    async def batches(self) -> AsyncGenerator[RecordBatch, None]:
        """The records, batch by batch as they were appended. Raises ProglogError."""
        while True:
            start = self._start if self._position is None else self._position
            self._asked_at = self._loop.time()
            try:
                async with aclosing(self._ask(start)) as chunks:
                    async for chunk in chunks:
                        self._started = True
                        try:
                            for batch in self._decoded(chunk.data):
                                yield batch
                        except (BadBatch, InvalidBatch) as error:
                            await chunks.athrow(self._damaged(error))
                        if self._position is not None:
                            self._skip_lost(self._position, chunk.next_offset)
                        self._position = chunk.next_offset
                self._ended()
                if not self._follow:
                    return
            except OffsetOutOfRange as error:
                self._out_of_range(error)
            except ProglogError as error:
                self._interrupted(error)
            await self._backoff.pause(None)

    def _ask(self, start: Start) -> AsyncGenerator[Chunk, None]:
        return self._backend.consume(start, follow=self._follow, linearizable=self._linearizable)

    def _decoded(self, data: Buffer) -> Iterator[RecordBatch]:
        for batch in decode_all(data):
            if self._position is None:
                self._position = batch.base_offset
            self._skip_lost(self._position, batch.base_offset)
            wanted = batch.between(self._position)
            assert wanted.base_offset == self._position, "offsets are dense"
            assert len(wanted), "a log sends no records twice"
            self._position = wanted.next_offset
            self._went_well()
            yield wanted

    def _skip_lost(self, lost_from: int, lost_until: int) -> None:
        """Goes on after records that a repair gave up, if there are any. Raises ConsumerGap."""
        if lost_from >= lost_until:
            return
        if self._on_gap != "skip":
            raise ConsumerGap(
                f"the records [{lost_from}, {lost_until}) were damaged, and a repair gave them up",
                lost_from=lost_from,
                lost_until=lost_until,
            )
        self._position = lost_until

    def _damaged(self, error: BadBatch | InvalidBatch) -> RangeCorrupt:
        return RangeCorrupt(
            f"the records at offset {self._position} came damaged: {error}", offset=self._position
        )

    def _ended(self) -> None:
        """The node has sent all that it has. Raises Unavailable if that is not all that is due."""
        if self._follow:
            raise Unavailable("the node ended the stream")
        if self._after is not None and (self._position or 0) <= self._after:
            raise behind(self._after)

    def _went_well(self) -> None:
        self._failing_since = None
        self._backoff.reset()

    def _interrupted(self, error: ProglogError) -> None:
        """Returns if it is worth another try."""
        now = self._loop.time()
        if now - self._asked_at >= self._timeout:
            self._went_well()  # With nothing to read: the stream lasted.
        if self._failing_since is None:
            self._failing_since = now
        if not may_read_again(error) or now - self._failing_since >= self._timeout:
            raise error

    def _out_of_range(self, error: OffsetOutOfRange) -> None:
        earliest, lost_from = error.number("earliest"), self._position
        next_offset = error.number("next")
        if self._after is not None and next_offset is not None and next_offset <= self._after:
            self._interrupted(behind(self._after))
            return
        if earliest is None or lost_from is None or not (self._started or earliest > lost_from):
            raise error
        if earliest <= lost_from:
            # The node has not got yet what another one showed: it will, or another one is asked.
            self._interrupted(from_reason(Unavailable.reason, str(error), error.facts))
        elif self._on_gap == "skip":
            self._position = earliest
        elif self._started:
            raise ConsumerGap(
                f"retention deleted the records [{lost_from}, {earliest}) before they were read",
                lost_from=lost_from,
                lost_until=earliest,
            )
        else:
            raise error
