"""An ordered stream of records: nothing is appended behind one that was not."""

from __future__ import annotations

import asyncio
import copy
from collections.abc import AsyncIterable, Iterable, Sequence
from datetime import datetime
from types import TracebackType
from typing import Self

from proglog.client.backend import log_closed
from proglog.client.batcher import Batcher
from proglog.client.columns import HeadersLike, RecordLike, rows
from proglog.client.sender import Series
from proglog.errors import EarlierRefused, ProglogError


class Producer:
    """Appends records in the order of the calls, many at a time. `Log.producer` makes it.

    Use it as an async context manager. Leaving the block waits until all is durable, as `flush`;
    leaving it by an exception waits for nothing, and what was accepted goes on.

    After the first failure every call raises it, for all that was handed over later is refused. An
    error's fact `appended` says how many records of this producer are in the log before it. What
    never was a record, or an error of an iterable, counts as a failure too; where it is no
    ProglogError, later calls raise EarlierRefused.
    """

    def __init__(self, batcher: Batcher) -> None:
        self._batcher = batcher
        self._series = Series()
        self._lane = batcher.open_lane(self._series)
        self._closed = False

    async def send(
        self,
        value: bytes,
        key: bytes | None = None,
        headers: HeadersLike | None = None,
        timestamp: int | datetime | None = None,
    ) -> asyncio.Future[int]:
        """Hands over one record, as soon as there is room for it; gives its offset to come.

        Nobody need await the future: `flush` and leaving the block tell what failed. Cancelled
        while it waits for room, the record was not handed over.

        Raises ProglogError or TypeError.
        """
        self._check()
        try:
            return await self._lane.accept(value, key, headers, timestamp)
        except Exception as error:
            self._series.failed(error)
            raise

    async def produce_many(
        self, records: Iterable[RecordLike] | AsyncIterable[RecordLike]
    ) -> Sequence[int]:
        """As `Log.produce_many`, in its turn among the records of this producer.

        Calls may overlap: none waits for the answers to the one before it.
        """
        self._check()
        return await self._batcher.add_many(rows(records), self._series)

    async def flush(self) -> int:
        """Waits until all that was handed over is durable; how many records that are.

        Raises ProglogError: the first failure.
        """
        while self._lane.deadline is not None or not self._series.is_settled:
            self._series.change.clear()
            await self._series.change.wait()
        self._check_failure()
        return self._series.appended

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._closed:
            return
        self._closed = True
        self._batcher.close_lane(self._lane)
        if exc is None:
            await self.flush()

    def _check(self) -> None:
        if self._closed:
            raise log_closed("the producer is closed")
        self._check_failure()

    def _check_failure(self) -> None:
        failure = self._series.failure
        if failure is None:
            return
        again = (
            copy.copy(failure)
            if isinstance(failure, ProglogError)
            else EarlierRefused(f"a record before these was none: {failure!r}")
        )
        again.facts = again.facts | {"appended": str(self._series.appended)}
        raise again
