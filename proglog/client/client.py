"""What users hold: a log, wherever it is."""

from __future__ import annotations

import asyncio
import random
import ssl
import warnings
from collections.abc import AsyncGenerator, Callable, Generator, Iterable, Sequence
from datetime import datetime
from types import TracebackType
from typing import Any, Literal, Self

from proglog import limits
from proglog.batch import Record, RecordBatch
from proglog.client.address import parse_url
from proglog.client.backend import (
    At,
    Backend,
    Start,
    log_closed,
    to_milliseconds,
    to_offset,
    to_timeout,
)
from proglog.client.columns import HeadersLike, Rows
from proglog.client.consumer import Consumer, OnGap
from proglog.client.producer import Producer
from proglog.client.retry import behind, call_until
from proglog.client.sender import Series, Unresolved
from proglog.client.tls import Tls, way_of
from proglog.errors import OffsetOutOfRange, OutcomeUnknown, UsageError
from proglog.types import Description


def connect(
    url: str,
    *,
    timeout_seconds: float = limits.produce_timeout_seconds_default,
    compress: bool = False,
    idempotent: bool = True,
    tls: Tls | ssl.SSLContext | None = None,
) -> Log:
    """A log served by a node or a cluster; connections are made when they are needed.

    Use it as `async with proglog.connect(url) as log`, or `log = await proglog.connect(url)` and
    `await log.close()` at the end.

    Args:
        url: `proglog://host:port[,host:port...][/log]`: some nodes of the cluster, and which log.
        timeout_seconds: how long a call keeps trying before it raises.
        compress: whether values are compressed (zstd), batch by batch, where it makes them smaller.
        idempotent: whether a batch whose answer was lost is sent again; the log knows it by its
            number, and never appends it twice.
        tls: whom to trust and who we are, or a context of your own; plaintext without.

    Raises ConfigurationError.
    """
    from proglog.client.network import NetworkBackend

    addresses, log = parse_url(url)
    return Log(
        NetworkBackend(addresses, log, way_of(tls)),
        timeout_seconds=timeout_seconds,
        compress=compress,
        idempotent=idempotent,
    )


_running_loop = asyncio._get_running_loop
"""None where no loop runs."""


def _abandon(producer: Producer | None, backend: Backend) -> None:
    """Ends what a log left behind that nobody holds any more."""
    if producer is not None:
        producer.abort()
    backend.abort()


class Log:
    """An append-only log of records with dense offsets.

    It is used once it is entered, as an async context manager or by `await`, on the event loop on
    which that was done. Used otherwise it raises UsageError, and LogClosed once it is closed.
    """

    def __init__(
        self,
        backend: Backend,
        *,
        timeout_seconds: float = limits.produce_timeout_seconds_default,
        compress: bool = False,
        idempotent: bool = True,
        chance: random.Random | None = None,
    ) -> None:
        self._backend = backend
        self._timeout = to_timeout(timeout_seconds)
        self._compress = compress
        self._idempotent = idempotent
        self._chance = chance or random.Random()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._producer: Producer | None = None
        self._closed = False

    async def produce(
        self,
        value: bytes,
        key: bytes | None = None,
        headers: HeadersLike | None = None,
        timestamp: int | datetime | None = None,
        *,
        expected_offset: int | None = None,
    ) -> int:
        """Appends one record; returns its offset once it is durable.

        Calls at the same time travel together. To cancel a call does not take its record back.
        `timestamp` is milliseconds since the epoch, or a datetime with a time zone; without one the
        record gets the time of its append. With `expected_offset` the record gets that offset or is
        not appended.

        Raises ProglogError; OutcomeUnknown where the record may be in the log or not, see
        `resolve`; OffsetMismatch where the log goes on at another offset than the expected one.
        What is no record fails its own call alone, with TypeError, InvalidRequest or InvalidBatch.
        """
        if expected_offset is not None:
            columns = [value], [key], [headers], [timestamp]
            return (await self.produce_many(*columns, expected_offset=expected_offset))[0]
        if _running_loop() is not self._loop:
            self._check_open()
        return await (self._producer or self._start_producer()).add(value, key, headers, timestamp)

    async def produce_many(
        self,
        values: Iterable[bytes],
        keys: Iterable[bytes | None] | None = None,
        headers: Iterable[HeadersLike | None] | None = None,
        timestamps: Iterable[int | datetime | None] | None = None,
        *,
        expected_offset: int | None = None,
        series: Series | None = None,
    ) -> Sequence[int]:
        """Appends many records in their order; returns their offsets once all are durable.

        Any iterables will do, also endless ones: they are gone through once, no faster than there
        is room for what they yield. The records travel in several batches, between which records of
        others may come. If it raises, the first of them may have been appended, and nothing behind
        one that was not: the error's fact `appended` says how many. An error of an iterable passes
        as it is, with a note of that number. With `expected_offset` they are one batch, of which
        the first record gets that offset, or nothing is appended.

        Calls that share a `series` do so as if they were one: none waits for the answer to the one
        before it, and yet they are appended in the order in which they were made, and nothing
        behind a record that was not appended (EarlierRefused).

        Raises ProglogError, as `produce` does, and TypeError for what is no record.
        """
        self._check_loop()
        records = Rows(values, keys, headers, timestamps)
        expected = None if expected_offset is None else to_offset(expected_offset)
        return await (self._producer or self._start_producer()).add_many(
            records, series or Series(), expected
        )

    async def resolve(self, unknown: OutcomeUnknown) -> int:
        """Waits for what became of a record after all; returns its offset.

        An idempotent producer goes on finding out what it did not know by the deadline of a call,
        before it appends anything else, until the log is closed. `unknown` is what `produce` or
        `produce_many` raised; for the latter this is the first record that it is about.

        Raises OutcomeUnknown if it cannot be known.
        """
        if not isinstance(unknown, Unresolved):
            raise unknown
        return await asyncio.shield(unknown.first) + unknown.position

    def consume(
        self,
        offset: int | Literal["earliest", "latest"] = "earliest",
        *,
        timestamp: int | datetime | None = None,
        follow: bool = True,
        linearizable: bool = False,
        after: int | None = None,
        on_gap: OnGap = "raise",
    ) -> AsyncGenerator[Record, None]:
        """The records from an offset on or, with `timestamp`, from those appended since that time.

        Goes on at the next offset when the connection or the node is lost. With `follow=False` it
        ends at the end of the log; otherwise it waits there for more. Where retention deletes
        records before they were read it raises ConsumerGap, which says which, or skips them.

        What was acknowledged is there to be read at once on the leader, but a follower may be a
        moment behind. With `linearizable` only the leader is asked, and only after it made sure
        that it is. `after` is cheaper: an offset that `produce` returned, maybe to somebody else; a
        node that has not got it yet is waited for.

        Raises ProglogError: OffsetOutOfRange if the log does not hold the offset.
        """
        return self._consumer(offset, timestamp, follow, linearizable, after, on_gap).records()

    def consume_batches(
        self,
        offset: int | Literal["earliest", "latest"] = "earliest",
        *,
        timestamp: int | datetime | None = None,
        follow: bool = True,
        linearizable: bool = False,
        after: int | None = None,
        on_gap: OnGap = "raise",
    ) -> AsyncGenerator[RecordBatch, None]:
        """Like `consume`, but whole batches at a time: several times faster."""
        return self._consumer(offset, timestamp, follow, linearizable, after, on_gap).batches()

    async def read(self, offset: int, *, after: int | None = None) -> Record:
        """One record. Raises OffsetOutOfRange where there is none (yet, or any more).

        A node that has not got the record at `after` yet is waited for, as in `consume`.
        """
        self._check_open()
        checked = to_offset(offset)
        return await call_until(lambda: self._read(checked, after), self._timeout, self._chance)

    async def _read(self, offset: int, after: int | None) -> Record:
        try:
            return await self._backend.read(offset)
        except OffsetOutOfRange as error:
            next_offset = error.number("next")
            if after is None or next_offset is None or next_offset > after:
                raise
            raise behind(after) from None

    async def describe(self) -> Description:
        """What the log holds, and who leads it."""
        self._check_open()
        return await call_until(self._backend.describe, self._timeout, self._chance)

    async def close(self) -> None:
        """Waits for the answers to all records accepted, then lets go of everything.

        Consumers and reads of other tasks then raise LogClosed.
        """
        await self._close(flush=True)

    async def __aenter__(self) -> Self:
        if self._closed:
            raise log_closed()
        if self._loop is not None:
            raise UsageError("the log was entered before: `open` or `connect` makes another one")
        self._loop = asyncio.get_running_loop()
        try:
            await self._backend.open()
        except BaseException:
            self._closed = True
            raise
        return self

    def __await__(self) -> Generator[Any, None, Self]:
        """As entering; `close` is then its user's business."""
        return self.__aenter__().__await__()

    def __del__(self, _warn: Callable[..., None] = warnings.warn) -> None:
        # `__init__` may have raised before it set anything.
        loop = getattr(self, "_loop", None)
        if loop is None or self._closed:
            return
        _warn(f"{self!r} was dropped without being closed", ResourceWarning, source=self)
        if loop.is_closed():
            return
        # Its tasks and connections know nothing of this object, or it could not be dropped. The
        # collector may run in any thread.
        loop.call_soon_threadsafe(_abandon, self._producer, self._backend)

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self._close(flush=exc is None)

    async def _close(self, *, flush: bool) -> None:
        if self._loop is not None and not self._closed:
            self._check_loop()
        self._closed = True
        try:
            if self._producer is not None:
                await self._producer.close(flush=flush)
        finally:
            await self._backend.close()

    def _check_open(self) -> None:
        if self._closed:
            raise log_closed()
        self._check_loop()

    def _check_loop(self) -> None:
        """Raises UsageError."""
        if self._loop is None:
            raise UsageError(
                "the log was not entered: `async with proglog.connect(url) as log`, or"
                " `log = await proglog.connect(url)`"
            )
        if _running_loop() is not self._loop:
            raise UsageError("the log belongs to the event loop on which it was entered")

    def _start_producer(self) -> Producer:
        self._check_open()
        self._producer = Producer(
            self._backend,
            timeout_seconds=self._timeout,
            compress=self._compress,
            idempotent=self._idempotent,
            chance=self._chance,
        )
        return self._producer

    def _consumer(
        self,
        offset: int | Literal["earliest", "latest"],
        timestamp: int | datetime | None,
        follow: bool,
        linearizable: bool,
        after: int | None,
        on_gap: OnGap,
    ) -> Consumer:
        self._check_open()
        start: Start
        if timestamp is not None:
            start = At(to_milliseconds(timestamp))
        else:
            start = offset if offset in ("earliest", "latest") else to_offset(offset)
        return Consumer(
            self._backend,
            start,
            follow=follow,
            linearizable=linearizable,
            after=None if after is None else to_offset(after),
            on_gap=on_gap,
            timeout_seconds=self._timeout,
            chance=self._chance,
        )
