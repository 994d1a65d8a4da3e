"""The client for programs without an event loop: the same names, without `await`.

    with proglog.sync.connect("proglog://host:8400") as log:
        offset = log.produce(b"hello")
        for record in log.consume(offset):
            ...

Each log has a thread with an event loop of its own. A log may be used from any number of threads,
whose records then share batches: in a web server, one log for the process.
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable, Coroutine, Iterable, Iterator, Sequence
from concurrent.futures import CancelledError
from datetime import datetime
from types import TracebackType
from typing import Any, Self, TypeVar

import proglog
from proglog import limits
from proglog.batch import Record, RecordBatch
from proglog.client.columns import HeadersLike, RecordLike
from proglog.client.consumer import Consumer as AsyncConsumer
from proglog.client.consumer import OnGap, UserStart
from proglog.client.reading import Consistency
from proglog.client.tls import Tls
from proglog.errors import LogClosed, UsageError
from proglog.types import Description

T = TypeVar("T")


def connect(
    url: str,
    *,
    timeout_seconds: float = limits.produce_timeout_seconds_default,
    compress: bool = False,
    idempotent: bool = True,
    tls: Tls | None = None,
) -> Log:
    """As `proglog.connect`. Use it as a context manager, or call `close` at the end."""
    return Log(
        proglog.connect(
            url,
            timeout_seconds=timeout_seconds,
            compress=compress,
            idempotent=idempotent,
            tls=tls,
        )
    )


def open(  # noqa: A001  # as in proglog.open
    data_dir: str | os.PathLike[str],
    *,
    timeout_seconds: float = limits.produce_timeout_seconds_default,
    compress: bool = False,
    idempotent: bool = True,
    segment_bytes: int = limits.embedded_segment_bytes_default,
    retention_bytes: int | None = None,
    retention_seconds: float | None = None,
) -> Log:
    """As `proglog.open`. Use it as a context manager, or call `close` at the end."""
    return Log(
        proglog.open(
            data_dir,
            timeout_seconds=timeout_seconds,
            compress=compress,
            idempotent=idempotent,
            segment_bytes=segment_bytes,
            retention_bytes=retention_bytes,
            retention_seconds=retention_seconds,
        )
    )


class _Thread:
    """A thread with a loop, on which calls of other threads run."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._pid = os.getpid()
        self._thread = threading.Thread(target=self._run, name="proglog-sync", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_forever()
        self._loop.run_until_complete(self._loop.shutdown_asyncgens())
        self._loop.run_until_complete(self._loop.shutdown_default_executor())
        self._loop.close()

    def call(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Runs it and waits. Ctrl-C cancels it. Raises UsageError where it could only hang."""
        try:
            self._check()
        except UsageError:
            coroutine.close()
            raise
        future = asyncio.run_coroutine_threadsafe(coroutine, self._loop)
        try:
            return future.result()
        except CancelledError:
            raise LogClosed("the log was closed") from None
        except BaseException:
            future.cancel()
            raise

    def run(self, function: Callable[[], T]) -> T:
        """The same for a plain function that needs the loop."""

        async def main() -> T:
            return function()

        return self.call(main())

    def soon(self, function: Callable[[], object]) -> None:
        """Runs it some time, and waits for nothing."""
        if not self._loop.is_closed() and self._pid == os.getpid():
            self._loop.call_soon_threadsafe(function)

    @property
    def has_stopped(self) -> bool:
        return self._loop.is_closed()

    def stop(self) -> None:
        """Ends the thread."""
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()

    def _check(self) -> None:
        if os.getpid() != self._pid:
            raise UsageError("the log was opened before this process was forked: open it here")
        if asyncio._get_running_loop() is not None:
            raise UsageError("an event loop runs in this thread: use proglog without `.sync`")
        if self._loop.is_closed():
            raise LogClosed("the log is closed")


class Log:
    """A log, used from threads. Its calls are those of `proglog.Log`, and raise the same errors."""

    def __init__(self, log: proglog.Log) -> None:
        self._log = log
        self._thread: _Thread | None = None
        self._starting = threading.Lock()
        self._closed = False

    def produce(
        self,
        value: bytes,
        key: bytes | None = None,
        headers: HeadersLike | None = None,
        timestamp: int | datetime | None = None,
        *,
        expected_offset: int | None = None,
        timeout_seconds: float | None = None,
    ) -> int:
        """Appends one record; returns its offset once it is durable."""
        return self._call(
            self._log.produce(
                value,
                key,
                headers,
                timestamp,
                expected_offset=expected_offset,
                timeout_seconds=timeout_seconds,
            )
        )

    def produce_many(
        self,
        records: Iterable[RecordLike],
        *,
        expected_offset: int | None = None,
        timeout_seconds: float | None = None,
    ) -> Sequence[int]:
        """Appends many records in their order; returns their offsets once all are durable.

        The iterable is gone through in the log's own thread.
        """
        return self._call(
            self._log.produce_many(
                records, expected_offset=expected_offset, timeout_seconds=timeout_seconds
            )
        )

    def consume(
        self,
        start: UserStart = "earliest",
        *,
        follow: bool = True,
        consistency: Consistency = "session",
        after: int | None = None,
        on_gap: OnGap = "raise",
    ) -> Consumer:
        """The records from a place on. One thread at a time uses a consumer."""
        thread = self._started()
        consumer = thread.run(
            lambda: self._log.consume(
                start, follow=follow, consistency=consistency, after=after, on_gap=on_gap
            )
        )
        return Consumer(thread, consumer)

    def read(
        self,
        offset: int,
        *,
        consistency: Consistency = "session",
        after: int | None = None,
        timeout_seconds: float | None = None,
    ) -> Record:
        """One record. Raises OffsetOutOfRange where there is none."""
        return self._call(
            self._log.read(
                offset, consistency=consistency, after=after, timeout_seconds=timeout_seconds
            )
        )

    def describe(
        self, *, consistency: Consistency = "session", timeout_seconds: float | None = None
    ) -> Description:
        """What the log holds, and who leads it."""
        return self._call(
            self._log.describe(consistency=consistency, timeout_seconds=timeout_seconds)
        )

    def close(self) -> None:
        """Waits for the answers to all records accepted, then lets go of everything."""
        with self._starting:
            thread, self._thread = self._thread, None
            self._closed = True
        if thread is not None:
            try:
                thread.call(self._log.close())
            finally:
                thread.stop()

    def __enter__(self) -> Self:
        self._started()
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _call(self, coroutine: Coroutine[Any, Any, T]) -> T:
        try:
            thread = self._started()
        except BaseException:
            coroutine.close()
            raise
        return thread.call(coroutine)

    def _started(self) -> _Thread:
        with self._starting:
            if self._closed:
                raise LogClosed("the log is closed")
            if self._thread is None:
                thread = _Thread()
                try:
                    thread.call(self._log.__aenter__())
                except BaseException:
                    thread.stop()
                    self._closed = True
                    raise
                self._thread = thread
            return self._thread


class Consumer:
    """A place in a log that moves as records are taken. See `proglog.Consumer`."""

    def __init__(self, thread: _Thread, consumer: AsyncConsumer) -> None:
        self._thread = thread
        self._consumer = consumer
        self._ready: Iterator[Record] = iter(())
        """Taken together, for to change threads takes longer than to take a record."""
        self._position: int | None = None

    @property
    def position(self) -> int | None:
        """Offset of the next record; None until it is known where this consumer starts."""
        return self._consumer.position if self._position is None else self._position

    def seek(self, start: UserStart) -> None:
        """Goes on somewhere else."""
        self._thread.run(lambda: self._consumer.seek(start))
        self._ready, self._position = iter(()), None

    def lag(self) -> int:
        """How many records there are from here to the end of the log, as of now."""
        ahead = (self._consumer.position or 0) - (self.position or 0)
        return self._thread.call(self._consumer.lag()) + ahead

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Record:
        record = self.getone()
        if record is None:
            raise StopIteration
        return record

    def getone(self, timeout_seconds: float | None = None) -> Record | None:
        """The next record. None if there is none in time, or, without `follow`, at the end."""
        record = next(self._ready, None)
        if record is None:
            many = self._consumer.getmany(limits.client_slice_records_max, timeout_seconds)
            self._ready = iter(self._thread.call(many))
            record = next(self._ready, None)
        if record is not None:
            self._position = record.offset + 1
        return record

    def getmany(self, count_max: int, timeout_seconds: float | None = None) -> list[Record]:
        """The next records that are there, at most so many; see `proglog.Consumer.getmany`."""
        first = self.getone(timeout_seconds)
        if first is None:
            return []
        records = [first]
        while len(records) < count_max and (record := next(self._ready, None)) is not None:
            records.append(record)
        self._position = records[-1].offset + 1
        return records

    def batches(self) -> Iterator[RecordBatch]:
        """What is left, as whole batches: several times quicker."""
        if self._position is not None and self._position != self._consumer.position:
            self.seek(self._position)
        while (batch := self._thread.call(self._consumer.next_batch())) is not None:
            self._position = batch.next_offset
            yield batch

    def close(self) -> None:
        """Lets go of its stream."""
        if not self._thread.has_stopped:
            self._thread.call(self._consumer.aclose())

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()
