"""Gathers records into batches, in the order in which they are added.

Records gather, without any lingering, while the batch before them is under way: alone a record
leaves at once, under load batches grow by themselves. Full batches do not wait for an answer; up to
`client_inflight_batches_max` are under way. `sender` brings them to the log.
"""

from __future__ import annotations

import asyncio
import copy
import random
from collections.abc import Awaitable, Sequence
from datetime import datetime

from proglog import limits
from proglog.client.answers import Answers
from proglog.client.backend import Backend
from proglog.client.budget import Budget
from proglog.client.columns import (
    LENGTH_BYTES,
    ArrivingRows,
    Checked,
    Columns,
    HeadersLike,
    Rows,
    check_record,
    check_size,
)
from proglog.client.sender import Batch, Sender, Series
from proglog.client.session import Session
from proglog.errors import Internal


class _Gathering(Columns):
    """Records that will be the next batch.

    `reserved` bytes of the log's budget are meant for it, and `room` of them are still free.
    """

    __slots__ = ("deadline", "futures", "reserved", "room")

    def __init__(self) -> None:
        super().__init__()
        self.futures: list[asyncio.Future[int]] = []
        self.reserved = 0
        self.room = 0
        self.deadline = 0.0

    @property
    def size(self) -> int:
        return self.reserved - self.room


class Lane:
    """Where records gather that are appended in the order in which they are added.

    With a series, none of them is appended behind one that was not.
    """

    def __init__(
        self,
        sender: Sender,
        budget: Budget,
        *,
        timeout_seconds: float,
        compress: bool,
        series: Series | None = None,
    ) -> None:
        self._sender = sender
        self._budget = budget
        self._timeout = timeout_seconds
        self._compress = compress
        self._series = series
        self._loop = asyncio.get_running_loop()
        self._create_future = self._loop.create_future
        self._gathering = _Gathering()

    def add(
        self,
        value: bytes,
        key: bytes | None = None,
        headers: HeadersLike | None = None,
        timestamp: int | datetime | None = None,
    ) -> Awaitable[int]:
        """Accepts one record; awaiting gives its offset. Await it at once: it may have to wait.

        Every record of `Log.produce` takes this path, so it is a plain function and does as little
        as it can.
        Raises ProglogError or TypeError.
        """
        if (
            type(value) is not bytes
            or key is not None
            or headers is not None
            or timestamp is not None
        ):
            record = check_record(value, key, headers, timestamp)
            return self._place(record) if self._make_room(record[0]) else self._add_later(record)
        size = len(value) + LENGTH_BYTES
        if size > self._gathering.room and not self._make_room(size):
            return self._add_later((size, value, None, (), None))
        gathering = self._gathering
        gathering.room -= size
        gathering.values.append(value)
        future = self._create_future()
        gathering.futures.append(future)
        return future

    async def accept(
        self,
        value: bytes,
        key: bytes | None = None,
        headers: HeadersLike | None = None,
        timestamp: int | datetime | None = None,
    ) -> asyncio.Future[int]:
        """Accepts one record as soon as there is room; its offset to come.

        Raises ProglogError or TypeError. Cancelled, it has not accepted the record.
        """
        record = check_record(value, key, headers, timestamp)
        if not self._make_room(record[0]):
            await self._wait_for_room(record[0])
        return self._place(record)

    async def _add_later(self, record: Checked) -> int:
        await self._wait_for_room(record[0])
        return await self._place(record)

    async def _wait_for_room(self, size: int) -> None:
        await take_budget(self._sender, self._budget, size)
        self._cut(size)
        self._reserve(size)

    def _place(self, record: Checked) -> asyncio.Future[int]:
        gathering = self._gathering
        gathering.room -= record[0]
        gathering.add(record)
        future = self._create_future()
        gathering.futures.append(future)
        return future

    def _make_room(self, size: int) -> bool:
        """Makes room for `size` bytes in the gathering batch; False if it has to be waited for.

        Raises TooLarge, or what closed this producer.
        """
        check_open(self._sender)
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
            self._sender.wake()

    def _cut(self, size: int) -> None:
        """Ends the gathering batch if `size` more bytes were too much for it."""
        if self._gathering.size + size > limits.client_batch_bytes_target:
            self.finish()

    @property
    def deadline(self) -> float | None:
        """Of the first record that gathers, loop time; None if there is no record."""
        return self._gathering.deadline if self._gathering.values else None

    def finish(self) -> None:
        """Makes a batch of the records that gather."""
        if not self._gathering.values:
            return
        self._reserve(-self._gathering.room)
        done, self._gathering = self._gathering, _Gathering()
        try:
            body = done.encode(compress=self._compress)
        except Exception as error:  # noqa: BLE001  # Whatever it is: these records alone fail.
            self._budget.give(done.size)
            failure = Internal(f"the batch could not be encoded: {error!r}")
            if self._series is not None:
                self._series.failed(failure)
            for future in done.futures:
                if not future.done():
                    future.set_exception(copy.copy(failure))
            return
        self._sender.enqueue(
            Batch(body, done.futures, done.size, done.deadline, series=self._series)
        )


class Batcher:
    """All that is appended through one log object."""

    def __init__(
        self,
        backend: Backend,
        *,
        timeout_seconds: float,
        compress: bool,
        idempotent: bool,
        chance: random.Random,
        session: Session,
    ) -> None:
        self._timeout = timeout_seconds
        self._compress = compress
        self._loop = asyncio.get_running_loop()
        self._budget = Budget(limits.client_buffer_bytes_max)
        self._sender = Sender(
            backend, self, self._budget, idempotent=idempotent, chance=chance, session=session
        )
        self._lanes: list[Lane] = []
        self.lane = self.open_lane(None)
        """Of `Log.produce`."""

    def open_lane(self, series: Series | None) -> Lane:
        """Another lane, for a series of its own. Raises what closed the log."""
        check_open(self._sender)
        lane = Lane(
            self._sender,
            self._budget,
            timeout_seconds=self._timeout,
            compress=self._compress,
            series=series,
        )
        self._lanes.append(lane)
        return lane

    def close_lane(self, lane: Lane) -> None:
        """Nothing more is added to it."""
        lane.finish()
        self._lanes.remove(lane)

    async def close(self, *, flush: bool = True) -> None:
        """Takes no more records; waits for all answers, or with `flush=False` for none."""
        await self._sender.close(flush=flush)

    def abort(self) -> None:
        """As `close` without `flush`, where nobody can wait for it."""
        self._sender.abort()

    @property
    def deadline(self) -> float | None:
        """Of the first record that gathers, loop time; None if there is no record."""
        deadlines = [lane.deadline for lane in self._lanes if lane.deadline is not None]
        return min(deadlines, default=None)

    def finish(self) -> None:
        """Makes batches of the records that gather."""
        for lane in self._lanes:
            lane.finish()

    async def add_many(
        self,
        records: Rows | ArrivingRows,
        series: Series,
        expected_offset: int | None = None,
        timeout_seconds: float | None = None,
    ) -> Sequence[int]:
        """Accepts many records as whole batches, without an object for each; gives their offsets.

        With `expected_offset` they are one batch, which is appended there or not at all.

        Raises ProglogError, the first one, once all batches are answered; or what `records` raise.
        OutcomeUnknown where it takes longer than `timeout_seconds`.
        """
        answers = Answers()
        try:
            async with asyncio.timeout(timeout_seconds) as limit:
                try:
                    await self._hand_over(records, series, expected_offset, answers)
                except Exception as error:
                    await answers.all()  # Where a record before it was refused, that is raised.
                    answers.note(error)
                    raise
                await answers.all()
        except TimeoutError as error:
            if not limit.expired():
                raise
            raise answers.unknown(f"not all was answered within {timeout_seconds:g} s") from error
        except BaseException:  # cancelled too: nobody asks for the answers any more
            answers.cancel()
            raise
        finally:
            await records.close()
        return answers.offsets()

    async def _hand_over(
        self,
        records: Rows | ArrivingRows,
        series: Series,
        expected_offset: int | None,
        answers: Answers,
    ) -> None:
        """Takes records batch by batch, and stops at the first batch that was refused."""
        async with series.in_turn():
            while not answers.has_failed:
                if expected_offset is None:
                    taken, size = await records.take(limits.client_batch_bytes_target)
                else:
                    taken, size = await records.take_all()
                if not taken.values:
                    return
                body = taken.encode(compress=self._compress)
                await take_budget(self._sender, self._budget, size)
                self.finish()
                deadline = self._loop.time() + self._timeout
                answer = answers.expect(self._loop.create_future(), body.count)
                self._sender.enqueue(Batch(body, [answer], size, deadline, expected_offset, series))
                await asyncio.sleep(0)  # For other tasks, though there may be room for more.


async def take_budget(sender: Sender, budget: Budget, size: int) -> None:
    """Takes bytes of the budget, in the order of asking. Raises what closed the log."""
    check_open(sender)
    await budget.take(size)
    if sender.closed is not None:
        budget.give(size)
        check_open(sender)


def check_open(sender: Sender) -> None:
    """Raises what closed the log."""
    if sender.closed is not None:
        raise copy.copy(sender.closed)
