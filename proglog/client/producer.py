"""The producer: gathers records into batches, in the order in which they are added.

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
from itertools import chain

from proglog import limits
from proglog.batch import Body, RecordHeaders, encode
from proglog.client.backend import Backend, to_milliseconds
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
from proglog.client.sender import Batch, Sender, Series
from proglog.errors import ProglogError


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
        self._timeout = timeout_seconds
        self._compress = compress
        self._loop = asyncio.get_running_loop()
        self._create_future = self._loop.create_future
        self._budget = Budget(limits.client_buffer_bytes_max)
        self._gathering = _Gathering()
        self._sender = Sender(backend, self, self._budget, idempotent=idempotent, chance=chance)

    async def close(self, *, flush: bool = True) -> None:
        """Takes no more records; waits for all answers, or with `flush=False` for none."""
        await self._sender.close(flush=flush)

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
        if self._gathering.values:
            self._reserve(-self._gathering.room)
            done, self._gathering = self._gathering, _Gathering()
            body = done.encode(compress=self._compress)
            self._sender.enqueue(Batch(body, done.futures, done.size, done.deadline))

    async def add_many(
        self, records: Columns, series: Series, expected_offset: int | None = None
    ) -> Sequence[int]:
        """Accepts many records as whole batches, without an object for each; gives their offsets.

        With `expected_offset` they are one batch, which is appended there or not at all.

        Raises ProglogError, the first one, once all batches are answered.
        """
        parts = records.parts() if expected_offset is None else records.whole()
        answers: list[asyncio.Future[int]] = []
        counts: list[int] = []
        try:
            async with series.turn:
                for part, size in parts:
                    await self._take(size)
                    self.finish()
                    body = records.encode(part, compress=self._compress)
                    answers.append(self._create_future())
                    counts.append(body.count)
                    deadline = self._loop.time() + self._timeout
                    self._sender.enqueue(
                        Batch(body, answers[-1:], size, deadline, expected_offset, series)
                    )
            answered = await asyncio.gather(*answers, return_exceptions=True)
        except BaseException:  # cancelled too: nobody asks for the answers any more
            for answer in answers:
                answer.cancel()
            raise
        return _offsets(answered, counts)

    async def _take(self, size: int) -> None:
        self._check_open()
        await self._budget.take(size)
        if self._sender.closed is not None:
            self._budget.give(size)
            self._check_open()

    def _check_open(self) -> None:
        if self._sender.closed is not None:
            raise copy.copy(self._sender.closed)


def _offsets(firsts: Sequence[int | BaseException], counts: Sequence[int]) -> Sequence[int]:
    """The offsets of batches by their first offsets: a range where they are consecutive."""
    ranges: list[range] = []
    for first, count in zip(firsts, counts, strict=True):
        if isinstance(first, ProglogError):
            first.facts = first.facts | {"appended": str(sum(map(len, ranges)))}
        if isinstance(first, BaseException):
            raise first
        if ranges and ranges[-1].stop == first:
            ranges[-1] = range(ranges[-1].start, first + count)
        else:
            ranges.append(range(first, first + count))
    if len(ranges) > 1:
        return list(chain.from_iterable(ranges))
    return ranges[0] if ranges else range(0)
