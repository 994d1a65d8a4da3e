"""What users hold: a log, wherever it is."""

from __future__ import annotations

import asyncio
import random
import ssl
import warnings
from collections.abc import (
    AsyncGenerator,
    AsyncIterable,
    Awaitable,
    Callable,
    Generator,
    Iterable,
    Sequence,
)
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
from proglog.client.batcher import Batcher
from proglog.client.columns import HeadersLike, NewRecord, RecordLike, rows
from proglog.client.consumer import Consumer, OnGap
from proglog.client.producer import Producer
from proglog.client.retry import T, behind, call_until
from proglog.client.sender import Series, Unresolved, look_at
from proglog.client.tls import Tls, way_of
from proglog.errors import (
    InvalidRequest,
    OffsetOutOfRange,
    OutcomeUnknown,
    Overloaded,
    UsageError,
)
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


def _abandon(batcher: Batcher | None, backend: Backend) -> None:
    """Ends what a log left behind that nobody holds any more."""
    if batcher is not None:
        batcher.abort()
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
        self._batcher: Batcher | None = None
        self._closed = False

    async def produce(
        self,
        value: bytes,
        key: bytes | None = None,
        headers: HeadersLike | None = None,
        timestamp: int | datetime | None = None,
        *,
        expected_offset: int | None = None,
        timeout_seconds: float | None = None,
    ) -> int:
        """Appends one record; returns its offset once it is durable.

        Calls at the same time travel together. To cancel a call does not take its record back, so
        use `timeout_seconds` in place of `asyncio.timeout`: only then the error tells what may have
        become of the record. It may be shorter than that of the log. `timestamp` is milliseconds
        since the epoch, or a datetime with a time zone; without one the record gets the time of its
        append. With `expected_offset` the record gets that offset or is not appended.

        Raises ProglogError; OutcomeUnknown where the record may be in the log or not, see
        `resolve`; OffsetMismatch where the log goes on at another offset than the expected one.
        What is no record fails its own call alone, with TypeError, InvalidRequest or InvalidBatch.
        """
        if expected_offset is None and timeout_seconds is None:
            if _running_loop() is not self._loop:
                self._check_open()
            lane = (self._batcher or self._start_batcher()).lane
            return await lane.add(value, key, headers, timestamp)
        if expected_offset is None:
            return await self._produce_within(timeout_seconds, value, key, headers, timestamp)
        offsets = await self.produce_many(
            [NewRecord(value, key, headers, timestamp)],
            expected_offset=expected_offset,
            timeout_seconds=timeout_seconds,
        )
        return offsets[0]

    async def _produce_within(
        self,
        timeout_seconds: object,
        value: bytes,
        key: bytes | None,
        headers: HeadersLike | None,
        timestamp: int | datetime | None,
    ) -> int:
        self._check_open()
        seconds = to_timeout(timeout_seconds, InvalidRequest)
        lane = (self._batcher or self._start_batcher()).lane
        accepted: asyncio.Future[int] | None = None
        try:
            async with asyncio.timeout(seconds):
                accepted = await lane.accept(value, key, headers, timestamp)
                return await asyncio.shield(accepted)
        except TimeoutError:
            if accepted is None:
                raise Overloaded(f"no room for the record within {seconds:g} s") from None
            accepted.add_done_callback(look_at)
            raise Unresolved(f"no answer within {seconds:g} s", {}, accepted, 0) from None

    async def produce_many(
        self,
        records: Iterable[RecordLike] | AsyncIterable[RecordLike],
        *,
        expected_offset: int | None = None,
        timeout_seconds: float | None = None,
    ) -> Sequence[int]:
        """Appends many records in their order; returns their offsets once all are durable.

        A record is a value, or a NewRecord where that alone does not do. Any iterable or async
        iterable will do, also an endless one: it is gone through once, no faster than there is room
        for what it yields, and nothing is held up while it runs. The records travel in several
        batches, between which records of others may come. If it raises, the first of them may have
        been appended, and nothing behind one that was not: the error's fact `appended` says how
        many. An error of the iterable passes as it is, with a note of that number. With
        `expected_offset` they are one batch, of which the first record gets that offset, or nothing
        is appended.

        Raises ProglogError, as `produce` does, and TypeError for what is no record.
        """
        self._check_loop()
        seconds = None if timeout_seconds is None else to_timeout(timeout_seconds, InvalidRequest)
        expected = None if expected_offset is None else to_offset(expected_offset)
        batcher = self._batcher or self._start_batcher()
        return await batcher.add_many(rows(records), Series(), expected, seconds)

    def producer(self) -> Producer:
        """An ordered stream of records, whose `send` does not wait for the answer.

        Use it as `async with log.producer() as out`. Several of one log are independent.
        """
        self._check_open()
        return Producer(self._batcher or self._start_batcher())

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

    async def read(
        self, offset: int, *, after: int | None = None, timeout_seconds: float | None = None
    ) -> Record:
        """One record. Raises OffsetOutOfRange where there is none (yet, or any more).

        A node that has not got the record at `after` yet is waited for, as in `consume`.
        """
        self._check_open()
        checked = to_offset(offset)
        return await self._call(lambda: self._read(checked, after), timeout_seconds)

    async def _read(self, offset: int, after: int | None) -> Record:
        try:
            return await self._backend.read(offset)
        except OffsetOutOfRange as error:
            next_offset = error.number("next")
            if after is None or next_offset is None or next_offset > after:
                raise
            raise behind(after) from None

    async def describe(self, *, timeout_seconds: float | None = None) -> Description:
        """What the log holds, and who leads it."""
        self._check_open()
        return await self._call(self._backend.describe, timeout_seconds)

    async def _call(self, call: Callable[[], Awaitable[T]], timeout_seconds: float | None) -> T:
        seconds = self._timeout
        if timeout_seconds is not None:
            seconds = to_timeout(timeout_seconds, InvalidRequest)
        return await call_until(call, seconds, self._chance)

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
        loop.call_soon_threadsafe(_abandon, self._batcher, self._backend)

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
            if self._batcher is not None:
                await self._batcher.close(flush=flush)
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

    def _start_batcher(self) -> Batcher:
        self._check_open()
        self._batcher = Batcher(
            self._backend,
            timeout_seconds=self._timeout,
            compress=self._compress,
            idempotent=self._idempotent,
            chance=self._chance,
        )
        return self._batcher

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
