"""What users hold: a log, wherever it is."""

from __future__ import annotations

import asyncio
import random
import ssl
import warnings
from collections.abc import (
    AsyncIterable,
    Awaitable,
    Callable,
    Generator,
    Iterable,
    Sequence,
)
from datetime import datetime
from itertools import count
from types import TracebackType
from typing import Any, Self

from proglog import limits
from proglog.batch import Record
from proglog.client.address import parse_url
from proglog.client.backend import (
    Backend,
    log_closed,
    to_offset,
    to_timeout,
)
from proglog.client.batcher import Batcher
from proglog.client.columns import HeadersLike, NewRecord, RecordLike, rows
from proglog.client.consumer import (
    Batches,
    Consumer,
    OnGap,
    UserStart,
    checked_start,
)
from proglog.client.producer import Producer
from proglog.client.readers import Readers
from proglog.client.reading import Consistency, Contract, contract_of
from proglog.client.retry import T, behind, call_until
from proglog.client.sender import Series, Unresolved, look_at
from proglog.client.session import Session
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


def _abandon(batcher: Batcher | None, readers: Readers | None, backend: Backend) -> None:
    """Ends what a log left behind that nobody holds any more."""
    if readers is not None:
        readers.abort()
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
        self._session = Session()
        self._batcher: Batcher | None = None
        self._readers: Readers | None = None
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
        start: UserStart = "earliest",
        *,
        follow: bool = True,
        consistency: Consistency = "session",
        after: int | None = None,
        on_gap: OnGap = "raise",
    ) -> Consumer:
        """The records from a place on, one by one or as the consumer's methods have it.

        It goes on at the next offset when the connection or the node is lost, and waits at the end
        for more; with `follow=False` it ends there. Where retention deletes records before they
        were read it raises ConsumerGap, which says which, or skips them.

        Args:
            start: an offset, the oldest record, the next one to come, the last so many (`Last(n)`),
                or those appended at a time or later.
            follow: whether to wait for more at the end.
            consistency: what is there to be read at least: see docs/guarantees.md.
            after: an offset that `produce` returned, maybe to somebody else: this record too. A
                node that has not got it yet is waited for.
            on_gap: "raise" or "skip".

        Raises InvalidRequest, and, when records are asked for, ProglogError: OffsetOutOfRange if
        the log does not hold the offset.
        """
        self._check_open()
        if on_gap not in ("raise", "skip"):
            raise InvalidRequest(f'on_gap is "raise" or "skip", not {on_gap!r}')
        checked = checked_start(start)
        if after is not None:
            after = to_offset(after)
        contract = Contract(
            follow=bool(follow),
            after=after,
            **contract_of(consistency),
        )
        floor = 0
        if consistency == "session":
            floor = self._session.end
            if not follow and floor > 0:
                contract = contract._replace(after=max(floor - 1, after or 0))
        return Consumer(self, self._readers_or_new(), checked, contract, on_gap=on_gap, floor=floor)

    def consume_batches(
        self,
        start: UserStart = "earliest",
        *,
        follow: bool = True,
        consistency: Consistency = "session",
        after: int | None = None,
        on_gap: OnGap = "raise",
    ) -> Batches:
        """Short for `consume(...).batches()`: several times quicker than record by record."""
        return self.consume(
            start, follow=follow, consistency=consistency, after=after, on_gap=on_gap
        ).batches()

    async def read(
        self,
        offset: int,
        *,
        consistency: Consistency = "session",
        after: int | None = None,
        timeout_seconds: float | None = None,
    ) -> Record:
        """One record. Raises OffsetOutOfRange where there is none (yet, or any more).

        `consistency` and `after` are as for `consume`.
        """
        self._check_open()
        checked = to_offset(offset)
        if after is not None:
            after = to_offset(after)
        contract = Contract(follow=False, after=after, **contract_of(consistency))
        if consistency == "session" and self._session.end > 0:
            contract = contract._replace(after=max(self._session.end - 1, after or 0))
        tries = count()
        # A follower that is behind leaves it to the leader.
        return await self._call(
            lambda: self._read(checked, contract, ask_leader=next(tries) > 0), timeout_seconds
        )

    async def _read(self, offset: int, contract: Contract, *, ask_leader: bool) -> Record:
        if contract.linearizable:
            await self._readers_or_new().end(contract)
        try:
            record = await self._backend.read(offset, leader=contract.leader or ask_leader)
        except OffsetOutOfRange as error:
            next_offset, after = error.number("next"), contract.after
            if after is None or next_offset is None or next_offset > after:
                raise
            raise behind(after) from None
        self._session.reaches(offset + 1)
        return record

    async def describe(
        self, *, consistency: Consistency = "session", timeout_seconds: float | None = None
    ) -> Description:
        """What the log holds, and who leads it. `consistency` is as for `consume`."""
        self._check_open()
        contract = Contract(follow=False, **contract_of(consistency))
        end = self._session.end if consistency == "session" else 0
        tries = count()
        return await self._call(
            lambda: self._describe(end, contract, ask_leader=next(tries) > 0), timeout_seconds
        )

    async def _describe(self, end: int, contract: Contract, *, ask_leader: bool) -> Description:
        if contract.linearizable:
            end = await self._readers_or_new().end(contract)
        described = await self._backend.describe(leader=contract.leader or ask_leader)
        if described.next < end:
            raise behind(end - 1)
        self._session.reaches(described.next)
        return described

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
        loop.call_soon_threadsafe(_abandon, self._batcher, self._readers, self._backend)

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
            try:
                if self._readers is not None:
                    await self._readers.close()
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
            session=self._session,
        )
        return self._batcher

    def _readers_or_new(self) -> Readers:
        if self._readers is None:
            self._readers = Readers(
                self._backend,
                timeout_seconds=self._timeout,
                chance=self._chance,
                session=self._session,
            )
        return self._readers
