"""The producer: gathers records into batches, keeps them in order, and resends what was refused.

Records gather, without any lingering, while the batch before them is under way: alone a record
leaves at once, under load batches grow by themselves. Full batches do not wait for an answer; up to
`client_inflight_batches_max` are under way.

    add -> gathering -> queue -> in flight -> answered
                          ^          |
                          +----------+  refused for now: back to the front, in order

Batches carry a producer id and a sequence number, by which the log knows a batch that it has: so
one whose answer was lost is sent again, the same bytes, until it is answered. A record that has no
answer by its deadline fails with OutcomeUnknown; its batch is still resolved before any later one
is sent, for a while, since otherwise nobody could tell which sequence number comes next.

A sequence number is final once a batch may be in the log. A batch that was certainly refused gives
its number to the one that comes after it. Without idempotence only certain refusals are retried.
"""

from __future__ import annotations

import asyncio
import copy
import random
from collections import deque
from collections.abc import Awaitable, Iterable, Sequence
from datetime import datetime
from itertools import chain

from proglog import limits
from proglog.batch import Body, ProposedBatch, RecordHeaders, encode
from proglog.client.backend import Backend, ProduceStream, to_milliseconds
from proglog.client.budget import Budget
from proglog.client.columns import (
    KEY_BYTES,
    LENGTH_BYTES,
    TIMESTAMP_BYTES,
    Columns,
    HeadersLike,
    check_size,
    headers_size,
    to_bytes,
    to_headers,
)
from proglog.client.retry import RETRIED, Backoff
from proglog.errors import (
    Action,
    InvalidRequest,
    Outcome,
    OutcomeUnknown,
    ProglogError,
    Unavailable,
    UnknownProducer,
    from_reason,
)
from proglog.types import Appended


class _Gathering:
    """Records that will be the next batch, as columns; the optional ones by position.

    `reserved` bytes of the producer's budget are meant for it, and `room` of them are still free.
    """

    __slots__ = (
        "deadline",
        "futures",
        "headers",
        "keys",
        "reserved",
        "room",
        "timestamps",
        "values",
    )

    def __init__(self) -> None:
        self.values: list[bytes] = []
        self.keys: dict[int, bytes] = {}
        self.headers: dict[int, RecordHeaders] = {}
        self.timestamps: dict[int, int] = {}
        self.futures: list[asyncio.Future[int]] = []
        self.reserved = 0
        self.room = 0
        self.deadline = 0.0

    @property
    def size(self) -> int:
        return self.reserved - self.room

    def encode(self, *, compress: bool) -> Body:
        positions = range(len(self.values))
        return encode(
            self.values,
            [self.keys.get(i) for i in positions] if self.keys else None,
            [self.timestamps.get(i) for i in positions] if self.timestamps else None,
            [self.headers.get(i, ()) for i in positions] if self.headers else None,
            compress=compress,
        )


class _Batch:
    """An encoded batch on its way: whenever it is resent, it is the same bytes.

    `futures` get the offsets from the first record's on, one each. `deadline` is loop time.
    `sequence` is None until it is sent. `may_be_in_log`: an answer was lost, so it may be in the
    log, whatever is said of it later but where it is.
    """

    __slots__ = ("answer", "body", "deadline", "futures", "may_be_in_log", "sequence", "size")

    def __init__(
        self, body: Body, futures: list[asyncio.Future[int]], size: int, deadline: float
    ) -> None:
        self.body = body
        self.futures = futures
        self.size = size
        self.deadline = deadline
        self.sequence: int | None = None
        self.may_be_in_log = False
        self.answer: asyncio.Future[Appended] | None = None

    @property
    def is_given_up(self) -> bool:
        """Nobody waits for it any more: it is only resolved for the sake of those behind it."""
        return not self.futures

    def failure(self) -> ProglogError | None:
        """Why it was not appended; None if it was."""
        if self.answer is None or not self.answer.done() or self.answer.cancelled():
            return _unknown(None)
        error = self.answer.exception()
        if error is not None and not isinstance(error, ProglogError):
            raise error
        if error is not None and error.action is Action.RAISE_UNKNOWN:
            return _unknown(error)
        return error


class Producer:
    """Appends records to one log, in the order in which they are added."""

    def __init__(
        self,
        backend: Backend,
        *,
        timeout_seconds: float,
        compress: bool,
        idempotent: bool,
        chance: random.Random,
    ) -> None:
        self._backend = backend
        self._idempotent = idempotent
        self._chance = chance
        self._id = self._next_sequence = 0
        self._answered_sequence = 0
        """What follows the last batch that is known to be in the log."""
        self._begin_sequence()
        self._timeout = timeout_seconds
        self._compress = compress
        self._loop = asyncio.get_running_loop()
        self._create_future = self._loop.create_future
        self._budget = Budget(limits.client_buffer_bytes_max)
        self._gathering = _Gathering()
        self._queue: deque[_Batch] = deque()
        self._inflight: deque[_Batch] = deque()
        self._broken = False
        self._refusal: ProglogError | None = None
        self._closed: BaseException | None = None
        self._backoff = Backoff(chance)
        self._wake = asyncio.Event()
        self._pump = self._loop.create_task(self._run(), name="proglog-producer")
        self._pump.add_done_callback(self._stopped)

    def _begin_sequence(self) -> None:
        """Becomes a new producer to the log: what came before is not connected any more."""
        self._id = self._chance.getrandbits(63) or 1 if self._idempotent else 0
        self._next_sequence = self._answered_sequence = 0

    async def close(self, *, flush: bool = True) -> None:
        """Takes no more records; waits for all answers, or with `flush=False` for none."""
        self._closed = self._closed or InvalidRequest("the log is closed")
        self._wake.set()
        if not flush:
            self._pump.cancel()
        await asyncio.wait([self._pump])
        if not self._pump.cancelled():
            self._pump.result()

    # --- records come in -------------------------------------------------------------------------

    def add(
        self,
        value: bytes,
        key: bytes | None = None,
        headers: HeadersLike | None = None,
        timestamp: int | datetime | None = None,
    ) -> Awaitable[int]:
        """Accepts one record; awaiting gives its offset. Await it at once: it may have to wait.

        Every record takes this path, so it is a plain function and does as little as it can.
        Raises ProglogError or TypeError.
        """
        if (
            type(value) is not bytes
            or key is not None
            or headers is not None
            or timestamp is not None
        ):
            return self._add_columns(value, key, headers, timestamp)
        size = len(value) + LENGTH_BYTES
        if size > self._gathering.room and not self._make_room(size):
            return self._add_later(size, value)
        gathering = self._gathering
        gathering.room -= size
        gathering.values.append(value)
        future = self._create_future()
        gathering.futures.append(future)
        return future

    def _add_columns(
        self,
        value: bytes,
        key: bytes | None,
        headers: HeadersLike | None,
        timestamp: int | datetime | None,
    ) -> Awaitable[int]:
        value = to_bytes("value", value)
        size = LENGTH_BYTES + len(value)
        if key is not None:
            key = to_bytes("key", key)
            size += KEY_BYTES + len(key)
        pairs = to_headers(headers)
        if pairs:
            size += headers_size(pairs)
        if timestamp is not None:
            timestamp = to_milliseconds(timestamp)
            size += TIMESTAMP_BYTES
        if not self._make_room(size):
            return self._add_later(size, value, key, pairs, timestamp)
        return self._place(size, value, key, pairs, timestamp)

    async def _add_later(
        self,
        size: int,
        value: bytes,
        key: bytes | None = None,
        headers: RecordHeaders = (),
        timestamp: int | None = None,
    ) -> int:
        await self._take(size)
        self._cut(size)
        self._reserve(size)
        return await self._place(size, value, key, headers, timestamp)

    def _place(
        self,
        size: int,
        value: bytes,
        key: bytes | None,
        headers: RecordHeaders,
        timestamp: int | None,
    ) -> asyncio.Future[int]:
        gathering = self._gathering
        position = len(gathering.values)
        gathering.room -= size
        gathering.values.append(value)
        if key is not None:
            gathering.keys[position] = key
        if headers:
            gathering.headers[position] = headers
        if timestamp is not None:
            gathering.timestamps[position] = timestamp
        future = self._create_future()
        gathering.futures.append(future)
        return future

    def _make_room(self, size: int) -> bool:
        """Makes room for `size` bytes in the gathering batch; False if it has to be waited for.

        Raises TooLarge, or what closed this producer.
        """
        self._check_open()
        check_size(size)
        if size <= self._gathering.room:
            return True
        self._cut(size)
        most = limits.client_batch_bytes_target - self._gathering.size
        granted = self._budget.take_now(size, most)
        # Where this record has to wait, no smaller one may slip in before it.
        self._reserve(granted or -self._gathering.room)
        return granted > 0

    def _reserve(self, size: int) -> None:
        """Adds bytes taken from the budget to the gathering batch, or gives unused ones back."""
        gathering = self._gathering
        gathering.reserved += size
        gathering.room += size
        if size < 0:
            self._budget.give(-size)
        elif size > 0 and not gathering.values:
            gathering.deadline = self._loop.time() + self._timeout
            self._wake.set()

    def _cut(self, size: int) -> None:
        """Ends the gathering batch if `size` more bytes were too much for it."""
        if self._gathering.size + size > limits.client_batch_bytes_target:
            self._finish_gathering()

    def _finish_gathering(self) -> None:
        if self._gathering.values:
            self._reserve(-self._gathering.room)
            done, self._gathering = self._gathering, _Gathering()
            body = done.encode(compress=self._compress)
            self._enqueue(body, done.futures, done.size, done.deadline)

    async def add_many(self, records: Columns) -> Sequence[int]:
        """Accepts many records as whole batches, without an object for each; gives their offsets.

        Raises ProglogError, the first one, once all batches are answered.
        """
        answers: list[asyncio.Future[int]] = []
        counts: list[int] = []
        try:
            for part, size in records.parts():
                await self._take(size)
                self._finish_gathering()
                body = records.encode(part, compress=self._compress)
                answers.append(self._create_future())
                counts.append(body.count)
                self._enqueue(body, answers[-1:], size, self._loop.time() + self._timeout)
            answered = await asyncio.gather(*answers, return_exceptions=True)
        except BaseException:
            for answer in answers:
                answer.cancel()
            raise
        return _offsets(answered, counts)

    async def _take(self, size: int) -> None:
        self._check_open()
        await self._budget.take(size)
        if self._closed is not None:
            self._budget.give(size)
            self._check_open()

    def _check_open(self) -> None:
        if self._closed is not None:
            raise copy.copy(self._closed)

    def _enqueue(
        self, body: Body, futures: list[asyncio.Future[int]], size: int, deadline: float
    ) -> None:
        self._queue.append(_Batch(body, futures, size, deadline))
        self._wake.set()

    # --- batches go out --------------------------------------------------------------------------

    async def _run(self) -> None:
        while await self._has_work():
            if await self._send():
                await self._backoff.pause(self._oldest_deadline())
            self._expire()

    async def _has_work(self) -> bool:
        """Waits for something to send; False if there will be nothing more."""
        while not (self._queue or self._gathering.values) and self._closed is None:
            self._wake.clear()
            await self._wake.wait()
        if self._closed is None:
            return True
        return bool(self._gathering.values) or not all(batch.is_given_up for batch in self._queue)

    async def _send(self) -> bool:
        """Sends on one stream until a batch fails. Whether to pause before the next."""
        try:
            async with asyncio.timeout_at(self._oldest_deadline()):
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
        """Returns when all batches in flight are answered, one of them badly, or one is late."""
        self._broken = False
        try:
            while not self._broken and (self._inflight or await self._has_work()):
                async with asyncio.timeout_at(self._oldest_deadline()):
                    await self._feed_one(stream)
            async with asyncio.timeout_at(self._oldest_deadline()):
                await _all_done([batch.answer for batch in self._inflight])
        except TimeoutError:
            return

    async def _feed_one(self, stream: ProduceStream) -> None:
        """Sends one batch or, where none may be sent now, waits for an answer."""
        batch = self._next()
        if batch is None:
            self._wake.clear()
            await self._wake.wait()
            return
        self._inflight.append(batch)
        batch.answer = None
        if batch.sequence is None:
            batch.sequence = self._next_sequence
            self._next_sequence += batch.body.count
        try:
            batch.answer = await stream.submit(
                ProposedBatch(batch.body, self._id, batch.sequence if self._id else 0)
            )
        except ProglogError as error:
            batch.answer = self._loop.create_future()
            batch.answer.set_exception(error)
        batch.answer.add_done_callback(self._answered)

    def _next(self) -> _Batch | None:
        if len(self._inflight) >= limits.client_inflight_batches_max:
            return None
        if not self._queue and not self._inflight:
            self._finish_gathering()
        return self._queue.popleft() if self._queue else None

    def _oldest_deadline(self) -> float | None:
        oldest = self._inflight or self._queue or (self._gathering,)
        if isinstance(oldest[0], _Batch) and oldest[0].is_given_up:
            # It has longer than those behind it.
            return min(batch.deadline for batch in chain(self._inflight, self._queue))
        return oldest[0].deadline or None

    # --- answers come in -------------------------------------------------------------------------

    def _answered(self, answer: asyncio.Future[Appended]) -> None:
        self._wake.set()
        if not any(batch.answer is answer for batch in self._inflight):
            return  # Of a stream that was given up; its batches are settled.
        if self._broken or answer.cancelled() or answer.exception() is not None:
            self._broken = True
            return
        batch = self._inflight.popleft()
        assert batch.answer is answer, "answers come in the order of the batches"
        self._deliver(batch)

    def _deliver(self, batch: _Batch) -> None:
        assert batch.answer is not None, "only an answered batch is delivered"
        self._backoff.reset()
        self._refusal = None
        self._answered_sequence = (batch.sequence or 0) + batch.body.count
        self._budget.give(batch.size)
        offset = batch.answer.result().offset
        for future in batch.futures:
            if not future.done():
                future.set_result(offset)
            offset += 1

    def _settle(self) -> bool:
        """Decides about the batches of a stream that ended. Whether to pause before resending."""
        now = self._loop.time()
        gave_up = lost_track = False
        again: list[_Batch] = []
        for batch in self._inflight:
            error = batch.failure()
            if error is None:
                self._deliver(batch)
                continue
            batch.may_be_in_log |= error.outcome is Outcome.UNKNOWN
            self._refusal = self._refusal if again else error
            if self._is_tried_again(batch, error, now):
                again.append(batch)
                continue
            gave_up = True
            lost_track |= batch.may_be_in_log
            self._fail(batch, error)
        self._inflight.clear()
        self._renumber(again, lost_track=lost_track)
        self._queue.extendleft(reversed(again))
        return not gave_up

    def _is_tried_again(self, batch: _Batch, error: ProglogError, now: float) -> bool:
        if isinstance(error, UnknownProducer) and not batch.may_be_in_log:
            # The log has forgotten us, after a day without a record: we come as somebody else.
            self._begin_sequence()
            return self._idempotent and now < batch.deadline
        if batch.may_be_in_log and self._idempotent:
            if now >= batch.deadline:
                self._give_up_on(batch, now)
            # Also a certain refusal says nothing of the first time that it was sent.
            retried = error.action in RETRIED or error.outcome is Outcome.UNKNOWN
            return retried and now < batch.deadline
        return error.action in RETRIED and now < batch.deadline

    def _renumber(self, again: list[_Batch], *, lost_track: bool) -> None:
        """Gives the numbers of batches that are certainly not in the log to what is sent next."""
        if lost_track:
            # Whether that number is taken cannot be known any more. What may be in the log under
            # the old id stays unknown; the others begin anew.
            for batch in [batch for batch in again if batch.may_be_in_log]:
                again.remove(batch)
                self._fail(batch, _unknown(None))
            self._begin_sequence()
        for batch in again:
            if not batch.may_be_in_log:
                batch.sequence = None
        for batch in reversed(again):
            if batch.sequence is not None:
                self._next_sequence = batch.sequence + batch.body.count
                return
        if not lost_track:
            self._next_sequence = self._answered_sequence

    def _not_open(self, error: ProglogError) -> bool:
        """No stream could be opened: nothing was sent. Whether to pause before the next try."""
        self._refusal = error
        self._expire()
        if error.action is not Action.GIVE_UP:
            return True
        self._finish_gathering()
        self._fail_all(self._queue, error)
        self._begin_sequence()
        return False

    def _fail_all(self, batches: deque[_Batch], error: BaseException) -> None:
        while batches:
            batch = batches.popleft()
            unknown = batch.may_be_in_log and isinstance(error, ProglogError)
            self._fail(batch, OutcomeUnknown(f"no answer came: {error}") if unknown else error)

    def _expire(self) -> None:
        """Fails what was not sent in time."""
        now = self._loop.time()
        if self._gathering.values and self._gathering.deadline <= now:
            self._finish_gathering()
        kept: list[_Batch] = []
        lost_track = False
        for batch in self._queue:
            if batch.deadline > now or self._give_up_on(batch, now):
                kept.append(batch)
                continue
            lost_track |= batch.may_be_in_log
            error = self._refusal or Unavailable("the records could not be sent in time")
            self._fail(batch, error)
        if len(kept) < len(self._queue):
            self._renumber(kept, lost_track=lost_track)
            self._queue = deque(kept)

    def _give_up_on(self, batch: _Batch, now: float) -> bool:
        """Tells those who wait for a batch that its outcome is unknown. Whether it goes on being
        resolved: for the first time yes."""
        if not batch.may_be_in_log or batch.is_given_up or not self._idempotent:
            return False
        self._fail(batch, _unknown(self._refusal))
        batch.deadline = now + limits.client_resolve_seconds_max
        return True

    def _fail(self, batch: _Batch, error: BaseException) -> None:
        self._budget.give(batch.size)
        futures, batch.futures, batch.size = batch.futures, [], 0
        for future in futures:
            if not future.done():
                # Each gets its own: a shared one would collect the traceback of every task.
                future.set_exception(copy.copy(error))

    def _stopped(self, pump: asyncio.Task[None]) -> None:
        """The pump ended: closed, or by a fault, which then is everybody's."""
        fault = None if pump.cancelled() else pump.exception()
        self._closed = fault or self._closed or InvalidRequest("the log is closed")
        for batch in self._inflight:
            self._fail(batch, fault or OutcomeUnknown("the log was closed before an answer came"))
        self._inflight.clear()
        self._finish_gathering()
        self._fail_all(self._queue, self._closed)


def _unknown(error: ProglogError | None) -> ProglogError:
    """OutcomeUnknown, with what is known of why."""
    if error is None:
        return OutcomeUnknown("no answer came in time: the records may be in the log or not")
    return from_reason(OutcomeUnknown.reason, str(error), error.facts)


async def _all_done(answers: Iterable[asyncio.Future[Appended] | None]) -> None:
    waiting = [answer for answer in answers if answer is not None]
    if waiting:
        await asyncio.wait(waiting)


def _offsets(firsts: Sequence[int | BaseException], counts: Sequence[int]) -> Sequence[int]:
    """The offsets of batches by their first offsets: a range where they are consecutive."""
    ranges: list[range] = []
    for first, count in zip(firsts, counts, strict=True):
        if isinstance(first, BaseException):
            raise first
        if ranges and ranges[-1].stop == first:
            ranges[-1] = range(ranges[-1].start, first + count)
        else:
            ranges.append(range(first, first + count))
    if len(ranges) > 1:
        return list(chain.from_iterable(ranges))
    return ranges[0] if ranges else range(0)
