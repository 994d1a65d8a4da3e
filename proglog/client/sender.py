"""The sender: batches go out in order, and again until they are answered.

    enqueue -> queue -> in flight -> answered
                 ^          |
                 +----------+  refused for now, or the answer was lost: back to the front, in order

Batches carry a producer id and a sequence number, by which the log knows a batch that it has: one
whose answer was lost is sent again, the same bytes, and gets the offset of the first time. Three
rules keep the numbers sound:

* A batch that *may be in the log* keeps its number. Nothing that is said of a later try, but where
  the batch is, tells what became of an earlier one: that may still be on its way.
* All others have none: what was certainly refused gives its number back, so that no gap stays. A
  stream appends nothing behind what it did not append, so those that may be in the log are the
  first of all that are unanswered, and the free numbers begin behind them.
* So all others wait until those are answered, even when nobody waits for their answers any more.
  Where one cannot be had, the sender becomes a new producer to the log and starts at 0.

The log knows so many producers, and forgets the one that is idle longest. To one that it has
forgotten it is for the sender to become a new one, which a batch that was certainly never appended
does not notice. One that may be in the log ends with OutcomeUnknown: it is never sent under another
id. (`seen_index`, by which the log tells the new from the forgotten: see `replica/producers.py`.)

At its deadline a batch that may be in the log fails with OutcomeUnknown, and any other with why it
was refused. Without idempotence nothing is sent again that may be in the log.
"""

from __future__ import annotations

import asyncio
import copy
import random
from collections import deque
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from itertools import chain
from typing import Protocol

from proglog import limits
from proglog.batch import Body, ProposedBatch
from proglog.client.backend import Backend, ProduceStream, log_closed
from proglog.client.budget import Budget
from proglog.client.retry import RETRIED, Backoff
from proglog.client.session import Session
from proglog.errors import (
    Action,
    EarlierRefused,
    Outcome,
    OutcomeUnknown,
    PartialDuplicate,
    ProglogError,
    SequenceGap,
    Unavailable,
    UnknownProducer,
    from_reason,
    let_go,
)
from proglog.types import Appended

_DISOWNED = (UnknownProducer, SequenceGap, PartialDuplicate)
"""The log remembers less of this producer than it was told (it forgets those idle longest), or
other things: under the same id it would refuse all that follows."""

_EARLY_SECONDS = 0.001
"""So much too early a loop may find that it is time (uvloop counts milliseconds)."""


class Unresolved(OutcomeUnknown):
    """An unknown outcome that is still being found out.

    `first` gets the offset of the batch's first record, and this is about the `position`th.
    """

    def __init__(
        self, message: str, facts: dict[str, str], first: asyncio.Future[int], position: int
    ) -> None:
        super().__init__(message, **facts)
        self.first = first
        self.position = position

    def __copy__(self) -> Unresolved:
        return Unresolved(str(self), self.facts, self.first, self.position)


class Series:
    """Batches that are appended in the order in which they were handed over, up to the first that
    is not: nothing is appended behind it."""

    def __init__(self) -> None:
        self.has_failed = False
        """Whether a batch was certainly not appended, or will never be known to be."""
        self.failure: BaseException | None = None
        """What the first that failed was told, also where its outcome is still being found out."""
        self.appended = 0
        """Records, before the first batch that failed."""
        self.change = asyncio.Event()
        self._underway = 0
        self._has_hole = False
        self._is_broken_off = False
        self._turn = asyncio.Lock()

    @property
    def is_settled(self) -> bool:
        """Whether each batch was answered, or has failed."""
        return self._underway == 0

    def enqueued(self) -> None:
        self._underway += 1

    def was_appended(self, count: int) -> None:
        self._underway -= 1
        if not self._has_hole:
            self.appended += count
        self.change.set()

    def failed(self, error: BaseException) -> None:
        """A batch has failed; before it was enqueued even."""
        self.failure = self.failure or error
        self.change.set()

    def ended_badly(self, error: BaseException) -> None:
        self._underway -= 1
        self._has_hole = True
        self.failed(error)

    @asynccontextmanager
    async def in_turn(self) -> AsyncIterator[None]:
        """For the call that hands over its batches. Where one did not hand over all, no later one
        may hand over any. Raises EarlierRefused."""
        try:
            async with self._turn:
                if self._is_broken_off:
                    raise _behind_a_failure()
                yield
        except BaseException as error:
            self._is_broken_off = True
            self.failed(error if isinstance(error, Exception) else _behind_a_failure())
            raise


class Batch:
    """An encoded batch on its way: whenever it is sent again, it is the same bytes.

    `futures` get the offsets from the first record's on, one each. `deadline` is loop time.
    `may_be_in_log`: it was sent, and not answered with a refusal. `is_given_up`: its deadline is
    over, and whom `futures` told an offset was told that it is unknown. The offset, should it be
    found out within `client_resolve_seconds_max`, goes to the one future that took their place.
    """

    __slots__ = (
        "answer",
        "body",
        "deadline",
        "expected_offset",
        "futures",
        "is_given_up",
        "may_be_in_log",
        "sequence",
        "series",
        "size",
    )

    def __init__(
        self,
        body: Body,
        futures: list[asyncio.Future[int]],
        size: int,
        deadline: float,
        expected_offset: int | None = None,
        series: Series | None = None,
    ) -> None:
        self.body = body
        self.futures = futures
        self.size = size
        self.deadline = deadline
        self.expected_offset = expected_offset
        self.series = series
        self.sequence = 0
        self.may_be_in_log = False
        self.is_given_up = False
        self.answer: asyncio.Future[Appended] | None = None

    @property
    def next_sequence(self) -> int:
        return self.sequence + self.body.count

    @property
    def is_behind_a_failure(self) -> bool:
        return self.series is not None and self.series.has_failed

    def result(self) -> Appended | ProglogError:
        """What became of it on the stream that it was sent on last."""
        if self.answer is None or not self.answer.done() or self.answer.cancelled():
            return OutcomeUnknown("no answer came in time")
        # Not by raising it: it would keep this frame, and so itself and the batch.
        error = self.answer.exception()
        return error if isinstance(error, ProglogError) else self.answer.result()


class Source(Protocol):
    """Where records gather that are no batch yet."""

    @property
    def deadline(self) -> float | None:
        """The first record's, loop time; None if there is no record."""

    def finish(self) -> None:
        """Enqueues the records as a batch."""


class Sender:
    """Sends the batches of one producer, and answers their futures.

    Each answered batch gives its bytes back to `budget`, and so does one that nobody waits for any
    more, although it is kept: there are at most `client_inflight_batches_max` of those.
    """

    def __init__(
        self,
        backend: Backend,
        source: Source,
        budget: Budget,
        *,
        idempotent: bool,
        chance: random.Random,
        session: Session,
    ) -> None:
        self._backend = backend
        self._session = session
        self._source = source
        self._budget = budget
        self._idempotent = idempotent
        self._chance = chance
        self._loop = asyncio.get_running_loop()
        self._queue: deque[Batch] = deque()
        self._inflight: deque[Batch] = deque()
        self._producer_id = self._next_sequence = self._answered_sequence = 0
        self._needs_new_id = True
        """So it is at first, and where it will never be known which number comes next."""
        self._told_index = 0
        """The newest commit index that the log told."""
        self._seen_index = 0
        """What it was when the producer id was made up."""
        self._broken = False
        self._heard_at = 0.0
        """When the stream last answered, or something was sent while nothing was under way."""
        self._patience = limits.client_patience_seconds_first
        self._refusal: ProglogError | None = None
        self._backoff = Backoff(chance)
        self.closed: BaseException | None = None
        """Why nothing more is accepted."""
        self._wake = asyncio.Event()
        self._pump = self._loop.create_task(self._run(), name="proglog-sender")
        self._pump.add_done_callback(self._stopped)

    @property
    def is_idle(self) -> bool:
        """Whether nothing is under way or waits, so that what gathers would wait for nothing."""
        return not self._queue and not self._inflight

    def enqueue(self, batch: Batch) -> None:
        """Takes a batch, to be sent behind all others."""
        if batch.series is not None:
            batch.series.enqueued()
        if batch.is_behind_a_failure:
            self._fail(batch, _behind_a_failure())
            return
        self._queue.append(batch)
        self._wake.set()

    def wake(self) -> None:
        """Something gathers at the source that was empty."""
        self._wake.set()

    async def close(self, *, flush: bool) -> None:
        """Waits for the answers that somebody waits for, or with `flush=False` for none."""
        self.closed = self.closed or log_closed()
        self._wake.set()
        if not flush:
            self.abort()
        await asyncio.wait([self._pump])
        if not self._pump.cancelled():
            self._pump.result()

    def abort(self) -> None:
        """As `close` without `flush`, where nobody can wait for it."""
        self.closed = self.closed or log_closed()
        self._pump.cancel()

    # --- batches go out --------------------------------------------------------------------------

    async def _run(self) -> None:
        while await self._has_work():
            if await self._send():
                await self._backoff.pause(self._deadline())
            self._expire()

    async def _has_work(self) -> bool:
        """Waits for something to send or to be answered; False if there will be nothing more."""
        while self.is_idle and self._source.deadline is None and self.closed is None:
            self._wake.clear()
            await self._wake.wait()
        return self.closed is None or next(self._live_deadlines(), None) is not None

    async def _send(self) -> bool:
        """Sends on one stream until a batch fails. Whether to pause before the next."""
        self._begin_numbering()
        self._fail_what_is_behind()
        if self.is_idle and self._source.deadline is None:
            return False
        try:
            async with asyncio.timeout_at(self._deadline()):
                stream = await self._backend.open_produce()
        except TimeoutError:
            return self._not_open(self._refusal or Unavailable("no node answered in time"))
        except ProglogError as error:
            return self._not_open(error)
        try:
            await self._feed(stream)
        finally:
            await stream.close()
        return self._settle()

    async def _feed(self, stream: ProduceStream) -> None:
        """Returns when all is answered and a batch was refused, or when an answer is late."""
        self._broken = False
        try:
            while await self._has_work() and not self._is_over():
                async with asyncio.timeout_at(self._stream_deadline()):
                    await self._feed_one(stream)
        except TimeoutError:
            self._patience *= 2

    def _is_over(self) -> bool:
        """Whether the stream takes no more, and all that it took is answered."""
        return self._broken and all(
            batch.answer is not None and batch.answer.done() for batch in self._inflight
        )

    async def _feed_one(self, stream: ProduceStream) -> None:
        """Sends one batch or, where none may be sent now, waits for an answer."""
        batch = self._next()
        if batch is None:
            self._wake.clear()
            await self._wake.wait()
            return
        if not self._inflight:
            self._heard_at = self._loop.time()
        self._inflight.append(batch)
        batch.answer = None
        if not batch.may_be_in_log:
            batch.sequence = self._next_sequence
        assert batch.sequence == self._next_sequence, "nothing is missing before it"
        self._next_sequence = batch.next_sequence
        try:
            batch.answer = await stream.submit(self._proposed(batch))
        except ProglogError as error:
            let_go(error)
            batch.answer = self._loop.create_future()
            batch.answer.set_exception(error)
        batch.answer.add_done_callback(self._answered)

    def _proposed(self, batch: Batch) -> ProposedBatch:
        sequence = batch.sequence if self._idempotent else 0
        return ProposedBatch(
            batch.body, self._producer_id, sequence, batch.expected_offset, self._seen_index
        )

    def _next(self) -> Batch | None:
        if self._broken or len(self._inflight) >= limits.client_inflight_batches_max:
            return None
        if self.is_idle:
            self._source.finish()
        return self._queue.popleft() if self._queue else None

    def _live_deadlines(self) -> Iterator[float]:
        """Deadlines of all that somebody waits for, ascending."""
        for batch in chain(self._inflight, self._queue):
            if not batch.is_given_up:
                yield batch.deadline
        if self._source.deadline is not None:
            yield self._source.deadline

    def _deadline(self) -> float | None:
        """When the next thing is late. What is given up stands before all else."""
        first = next(chain(self._inflight, self._queue), None)
        live = next(self._live_deadlines(), None)
        if first is None or not first.is_given_up:
            return live
        return first.deadline if live is None else min(first.deadline, live)

    def _stream_deadline(self) -> float | None:
        """Also a node that says nothing for long is late, if others may be asked."""
        deadline = self._deadline()
        if deadline is None or not self._inflight or not self._idempotent:
            return deadline
        return min(deadline, self._heard_at + self._patience)

    # --- answers come in -------------------------------------------------------------------------

    def _answered(self, answer: asyncio.Future[Appended]) -> None:
        self._wake.set()
        failed = answer.cancelled() or answer.exception() is not None
        if not any(batch.answer is answer for batch in self._inflight):
            return  # Of a stream that was given up; its batches are settled.
        self._heard_at = self._loop.time()
        if self._broken or failed:
            self._broken = True
            return
        batch = self._inflight.popleft()
        assert batch.answer is answer, "answers come in the order of the batches"
        self._deliver(batch, answer.result().offset)

    def _deliver(self, batch: Batch, offset: int) -> None:
        self._backoff.reset()
        self._patience = limits.client_patience_seconds_first
        self._refusal = None
        self._answered_sequence = batch.next_sequence
        self._budget.give(batch.size)
        self._session.reaches(offset + batch.body.count)
        if batch.series is not None and not batch.is_given_up:
            batch.series.was_appended(batch.body.count)
        for future in batch.futures:
            if not future.done():
                future.set_result(offset)
            offset += 1

    def _settle(self) -> bool:
        """Decides about the batches of a stream that ended. Whether to pause before the next."""
        inflight, self._inflight = self._inflight, deque()
        again: list[Batch] = []
        gave_up = refused = False
        for batch in inflight:
            result = batch.result()
            if isinstance(result, Appended):
                self._deliver(batch, result.offset)
                continue
            if not refused:
                self._refusal = result
            # Nothing behind it was appended, also where handing it over was cut short.
            refused |= result.outcome is Outcome.DEFINITE
            batch.may_be_in_log |= not refused
            if self._is_sent_again(result):
                again.append(batch)
            else:
                gave_up = True
                self._fail(batch, result)
        self._queue.extendleft(reversed(again))
        return not gave_up

    def _is_sent_again(self, error: ProglogError) -> bool:
        if not self._idempotent:
            return error.action in RETRIED
        if isinstance(error, _DISOWNED):
            self._needs_new_id = True
            self._told_index = max(self._told_index, error.number("seen_index") or 0)
            return True
        return error.action in RETRIED or error.outcome is Outcome.UNKNOWN

    def _not_open(self, error: ProglogError) -> bool:
        """No stream could be opened: nothing was sent. Whether to pause before the next try."""
        self._refusal = error
        if error.action is not Action.GIVE_UP:
            return True
        self._source.finish()
        self._fail_all(error)
        return False

    # --- batches end -----------------------------------------------------------------------------

    def _expire(self) -> None:
        """Ends the waiting for all that is late."""
        now = self._loop.time() + _EARLY_SECONDS
        if self._source.deadline is not None and self._source.deadline <= now:
            self._source.finish()
        batches, self._queue = self._queue, deque()
        for batch in batches:
            if batch.deadline > now:
                self._queue.append(batch)
            elif batch.may_be_in_log and not batch.is_given_up:
                self._give_up(batch, now)
                self._queue.append(batch)
            else:
                self._fail(batch, self._refusal or Unavailable("there was no time to send it"))

    def _give_up(self, batch: Batch, now: float) -> None:
        """Tells those who wait for a batch that its outcome is unknown, for now."""
        first: asyncio.Future[int] = self._loop.create_future()
        first.add_done_callback(look_at)
        unknown = _unknown(self._refusal)
        for position, future in enumerate(batch.futures):
            if not future.done():
                future.set_exception(Unresolved(str(unknown), unknown.facts, first, position))
        self._tell_series(batch, Unresolved(str(unknown), unknown.facts, first, 0))
        self._release(batch)
        batch.futures = [first]
        batch.is_given_up = True
        batch.deadline = now + limits.client_resolve_seconds_max

    def _fail(self, batch: Batch, error: BaseException) -> None:
        """The end of a batch: `error` tells why, and whether it may be in the log the batch."""
        self._needs_new_id |= batch.may_be_in_log
        if batch.series is not None:
            batch.series.has_failed = True
        if isinstance(error, ProglogError) and batch.may_be_in_log:
            error = _unknown(error)
        elif isinstance(error, ProglogError) and error.outcome is Outcome.UNKNOWN:
            error = Unavailable(f"it was not sent, since for another batch {error}")
        self._release(batch)
        for future in batch.futures:
            if not future.done():
                # Each gets its own: a shared one would collect the traceback of every task.
                future.set_exception(copy.copy(error))
        if not batch.is_given_up:
            self._tell_series(batch, copy.copy(error))

    def _tell_series(self, batch: Batch, error: BaseException) -> None:
        """A series tells its user what failed, whoever looks at the futures."""
        if batch.series is None:
            return
        batch.series.ended_badly(error)
        for future in batch.futures:
            look_at(future)

    def _fail_what_is_behind(self) -> None:
        """Ends the batches whose series has failed: nothing is under way, so none was sent."""
        batches, self._queue = self._queue, deque()
        for batch in batches:
            if batch.is_behind_a_failure:
                self._fail(batch, _behind_a_failure())
            else:
                self._queue.append(batch)

    def _fail_all(self, error: BaseException) -> None:
        while self._queue:
            self._fail(self._queue.popleft(), error)

    def _release(self, batch: Batch) -> None:
        self._budget.give(batch.size)
        batch.size = 0

    def _stopped(self, pump: asyncio.Task[None]) -> None:
        """The pump ended: closed, or by a fault, which then is everybody's."""
        fault = None if pump.cancelled() else pump.exception()
        self.closed = fault or self.closed or log_closed()
        for batch in self._inflight:
            batch.may_be_in_log = True
        self._source.finish()
        self._queue.extendleft(reversed(self._inflight))
        self._inflight.clear()
        self._fail_all(self.closed)

    # --- sequence numbers ------------------------------------------------------------------------

    def _begin_numbering(self) -> None:
        """A new stream: numbers go on behind what is answered, all else is sent once more."""
        if self._needs_new_id:
            # What may be in the log under the old id can neither keep its number nor get another.
            while self._queue and self._queue[0].may_be_in_log:
                self._fail(self._queue.popleft(), _unknown(self._refusal))
            self._producer_id = self._chance.getrandbits(63) or 1 if self._idempotent else 0
            self._seen_index = self._told_index
            self._answered_sequence = 0
            self._needs_new_id = False
        self._next_sequence = self._answered_sequence


def _behind_a_failure() -> ProglogError:
    return EarlierRefused("records before these were not appended, so these were not either")


def _unknown(error: ProglogError | None) -> ProglogError:
    """OutcomeUnknown, with what is known of why."""
    if error is None:
        return OutcomeUnknown("no answer came in time")
    return from_reason(OutcomeUnknown.reason, str(error), error.facts)


def look_at(future: asyncio.Future[int]) -> None:
    """Nobody need ask for it: so that asyncio does not warn of an exception never retrieved."""
    if not future.cancelled():
        future.exception()
