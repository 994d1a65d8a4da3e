"""Reading on at the next offset, whatever interrupts it."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing
from typing import Literal, NamedTuple, TypeAlias, get_args

from proglog import limits
from proglog.batch import BadBatch, Buffer, RecordBatch, decode_all
from proglog.client.backend import Backend, Start
from proglog.client.retry import Backoff, behind, may_read_again
from proglog.errors import (
    ConsumerGap,
    InvalidBatch,
    InvalidRequest,
    OffsetOutOfRange,
    ProglogError,
    RangeCorrupt,
    Unavailable,
    from_reason,
)
from proglog.types import Chunk

Consistency: TypeAlias = Literal["session", "any", "leader", "linearizable"]
"""What a read is promised. docs/guarantees.md says it in full."""


def contract_of(consistency: object) -> dict[str, bool]:
    """Fields of a contract. Raises InvalidRequest."""
    match consistency:
        case "session" | "any":
            return {}
        case "leader":
            return {"leader": True}
        case "linearizable":
            return {"linearizable": True}
    known = ", ".join(get_args(Consistency))
    raise InvalidRequest(f"consistency is one of {known}, not {consistency!r}")


class Contract(NamedTuple):
    """What a reader is promised, beside that nothing is missing and nothing comes twice."""

    follow: bool
    """Whether it waits at the end for more."""
    leader: bool = False
    """Whether only the node is asked that is believed to lead."""
    linearizable: bool = False
    """Whether it is shown all that was acknowledged to anybody before it asked."""
    after: int | None = None
    """A record that it is shown, or which it waits for."""


class Piece(NamedTuple):
    """Batches that came together: the offset at which they begin, and their bytes as they came."""

    begins: int
    batches: list[RecordBatch]
    size: int


class Reading:
    """Where one reader is, and what it does about each interruption.

    Nothing is skipped and nothing comes twice: the offsets of its records are consecutive. Where
    retention overtook it, or a repair gave up what was damaged, it ends with an error that says so.
    `is_resumed`: a node showed the offset at which it begins.
    """

    def __init__(
        self,
        backend: Backend,
        start: Start,
        contract: Contract,
        *,
        is_resumed: bool,
        timeout_seconds: float,
        chance: random.Random,
    ) -> None:
        self._backend = backend
        self._start = start
        self._contract = contract
        self._timeout = timeout_seconds
        self._started = is_resumed
        self._loop = asyncio.get_running_loop()
        self._asked_at = self._loop.time()
        self._failing_since: float | None = None
        self._backoff = Backoff(chance)
        self.position = start if isinstance(start, int) else None
        """The next offset, None where that is not known yet."""

    async def pieces(self) -> AsyncGenerator[Piece, None]:
        """What comes, batch by batch as it was appended. The first of a stream may be empty: it
        tells where the stream begins. Raises ProglogError."""
        while True:
            start = self._start if self.position is None else self.position
            self._asked_at = self._loop.time()
            try:
                # A server that accepts the call and says nothing is no server.
                async with (
                    asyncio.timeout(limits.client_first_answer_seconds_max) as silence,
                    aclosing(self._ask(start)) as chunks,
                ):
                    async for chunk in chunks:
                        silence.reschedule(None)
                        self._started = True
                        piece, failure = self._piece(chunk)
                        yield piece
                        if isinstance(failure, RangeCorrupt):
                            await chunks.athrow(failure)
                        if failure is not None:
                            raise failure
                self._ended()
                if not self._contract.follow:
                    return
            except TimeoutError:
                self._interrupted(Unavailable("the node accepted the call and says nothing"))
            except OffsetOutOfRange as error:
                self._out_of_range(error)
            except ConsumerGap:
                raise
            except ProglogError as error:
                self._interrupted(error)
            await self._backoff.pause(None)

    def _piece(self, chunk: Chunk) -> tuple[Piece, ProglogError | None]:
        """What a chunk holds, up to what is wrong with it."""
        batches: list[RecordBatch] = []
        failure: ProglogError | None = None
        try:
            for batch in self._decoded(chunk.data):
                batches.append(batch)  # noqa: PERF402  # what comes before a failure is kept
            if self.position is not None:
                _check_lost(self.position, chunk.next_offset)
            self.position = chunk.next_offset
        except (BadBatch, InvalidBatch) as error:
            failure = RangeCorrupt(
                f"the records at offset {self.position} came damaged: {error}", offset=self.position
            )
        except ConsumerGap as error:
            failure = error
        if batches:
            self._went_well()
        begins = batches[0].base_offset if batches else chunk.next_offset
        return Piece(begins, batches, len(chunk.data)), failure

    def _ask(self, start: Start) -> AsyncGenerator[Chunk, None]:
        return self._backend.consume(
            start,
            follow=self._contract.follow,
            linearizable=self._contract.linearizable,
            leader=self._contract.leader,
        )

    def _decoded(self, data: Buffer) -> Iterator[RecordBatch]:
        for batch in decode_all(data):
            if self.position is None:
                self.position = batch.base_offset
            _check_lost(self.position, batch.base_offset)
            wanted = batch.between(self.position)
            assert wanted.base_offset == self.position, "offsets are dense"
            assert len(wanted), "a log sends no records twice"
            self.position = wanted.next_offset
            yield wanted

    def _ended(self) -> None:
        """The node has sent all that it has. Raises Unavailable if that is not all that is due."""
        if self._contract.follow:
            raise Unavailable("the node ended the stream")
        if self._is_behind(self.position or 0):
            assert self._contract.after is not None, "it is behind something"
            raise behind(self._contract.after)

    def _is_behind(self, next_offset: int) -> bool:
        return self._contract.after is not None and next_offset <= self._contract.after

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
        """Returns if it is worth another try: another node showed more than this one has got."""
        earliest, next_offset = error.number("earliest"), error.number("next")
        if next_offset is not None and self._is_behind(next_offset):
            assert self._contract.after is not None, "it is behind something"
            self._interrupted(behind(self._contract.after))
            return
        if earliest is None or not self._started or earliest > (self.position or 0):
            raise error
        self._interrupted(from_reason(Unavailable.reason, str(error), error.facts))


def _check_lost(lost_from: int, lost_until: int) -> None:
    """Raises ConsumerGap where a repair gave up the records between."""
    if lost_from < lost_until:
        raise ConsumerGap(
            f"the records [{lost_from}, {lost_until}) were damaged, and a repair gave them up",
            lost_from=lost_from,
            lost_until=lost_until,
        )
