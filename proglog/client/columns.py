"""Records as columns: checked one by one as they come in, before anything of them is shared."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterable, Iterable, Iterator, Mapping
from contextlib import suppress
from datetime import datetime
from typing import Any, NamedTuple, TypeAlias

from proglog import limits
from proglog.batch import Body, Record, RecordHeaders, check_record_headers, encode
from proglog.client.backend import to_milliseconds
from proglog.errors import TooLarge

HeadersLike: TypeAlias = Mapping[str, bytes] | Iterable[tuple[str, bytes]]

LENGTH_BYTES = 4
"""What a record takes in a batch beside its value."""
KEY_BYTES, TIMESTAMP_BYTES, HEADERS_BYTES, HEADER_BYTES = 4, 8, 2, 6
"""What each optional column takes beside the bytes of its keys, names and values."""

Checked: TypeAlias = tuple[int, bytes, bytes | None, RecordHeaders, int | None]
"""A record that any batch may hold: its bytes in one, value, key, headers, timestamp."""


def check_record(
    value: object,
    key: object = None,
    headers: HeadersLike | None = None,
    timestamp: int | datetime | None = None,
) -> Checked:
    """What a user gave as a record. Raises TypeError, or InvalidRequest, InvalidBatch, TooLarge."""
    checked = _to_bytes("value", value)
    size = LENGTH_BYTES + len(checked)
    if key is not None:
        key = _to_bytes("key", key)
        size += KEY_BYTES + len(key)
    pairs: RecordHeaders = ()
    if headers is not None:
        pairs = check_record_headers(headers.items() if isinstance(headers, Mapping) else headers)
    if pairs:
        size += HEADERS_BYTES + sum(HEADER_BYTES + len(name) + len(data) for name, data in pairs)
    if timestamp is not None:
        timestamp = to_milliseconds(timestamp)
        size += TIMESTAMP_BYTES
    check_size(size)
    return size, checked, key, pairs, timestamp


def _to_bytes(what: str, value: object) -> bytes:
    if type(value) is bytes:
        return value
    if not isinstance(value, bytes | bytearray | memoryview):
        raise TypeError(f"a {what} is bytes, not {type(value).__name__}")
    # Not bytes(): a subclass may have its own idea of them.
    return memoryview(value).tobytes()


def check_size(size: int) -> None:
    """Whether a record of `size` bytes fits into a batch. Raises TooLarge."""
    if size > limits.batch_bytes_max:
        raise TooLarge(
            f"a record of {size} bytes is larger than a batch may be",
            bytes=size,
            bytes_max=limits.batch_bytes_max,
        )


class Columns:
    """Records that will be a batch: their values and, by position, what only some of them have."""

    __slots__ = ("headers", "keys", "timestamps", "values")

    def __init__(self) -> None:
        self.values: list[bytes] = []
        self.keys: dict[int, bytes] = {}
        self.headers: dict[int, RecordHeaders] = {}
        self.timestamps: dict[int, int] = {}

    def add(self, record: Checked) -> None:
        """Adds a checked record."""
        _, value, key, headers, timestamp = record
        position = len(self.values)
        self.values.append(value)
        if key is not None:
            self.keys[position] = key
        if headers:
            self.headers[position] = headers
        if timestamp is not None:
            self.timestamps[position] = timestamp

    def encode(self, *, compress: bool) -> Body:
        """The records as the body of a batch."""
        positions = range(len(self.values))
        return encode(
            self.values,
            [self.keys.get(i) for i in positions] if self.keys else None,
            [self.timestamps.get(i) for i in positions] if self.timestamps else None,
            [self.headers.get(i, ()) for i in positions] if self.headers else None,
            compress=compress,
        )


# --- many at once --------------------------------------------------------------------------------


class NewRecord(NamedTuple):
    """A record to be appended, where its value alone does not do.

    `timestamp` is milliseconds since the epoch, or a datetime with a time zone.
    """

    value: bytes
    key: bytes | None = None
    headers: HeadersLike | None = None
    timestamp: int | datetime | None = None


RecordLike: TypeAlias = bytes | NewRecord | Record
"""A value; or what has a key, headers and a time too. The offset of a `Record` is not looked at."""


def rows(records: object) -> Rows | ArrivingRows:
    """Records of whatever iterable, or async iterable, their user gave. Raises TypeError."""
    if not isinstance(records, str | bytes | bytearray | memoryview | Mapping):
        if isinstance(records, AsyncIterable):
            return ArrivingRows(records)
        with suppress(TypeError):
            return Rows(iter(records))  # type: ignore[call-overload]  # that is the question
    raise TypeError(
        "records are an iterable with an entry for each, like a list, a generator, an open file or"
        f" an async generator, not {type(records).__name__}; one record goes to `produce`"
    )


class Rows:
    """The records of one call, taken in one pass from an iterator.

    They are checked as they are taken, so that no more of them need be held than one batch.
    """

    def __init__(self, records: Iterator[Any]) -> None:
        self._records = records
        self._left: Checked | None = None

    async def take(self, bytes_max: int) -> tuple[Columns, int]:
        """The next records, as many as fit but at least one, and their bytes; none at the end.

        Raises what `check_record` raises, and what the iterable raises.
        """
        taken, size = Columns(), 0
        if self._left is not None:
            taken.add(self._left)
            size = self._left[0]
            self._left = None
        values = taken.values
        for item in self._records:
            if type(item) is bytes:
                # As `check_item` has it, but most records are like this one.
                bytes_after = size + LENGTH_BYTES + len(item)
                if bytes_after <= bytes_max:
                    values.append(item)
                    size = bytes_after
                    continue
            record = check_item(item)
            if size + record[0] > bytes_max and values:
                self._left = record
                break
            taken.add(record)
            size += record[0]
        return taken, size

    async def take_all(self) -> tuple[Columns, int]:
        """All records, for one batch. Raises TooLarge too."""
        taken, size = await self.take(limits.batch_bytes_max)
        if self._left is not None:
            raise _too_many(size + self._left[0])
        return taken, size

    async def close(self) -> None:
        """An iterator needs no good-bye."""


class ArrivingRows:
    """The same of an async iterable: what has arrived by the time of asking is a batch.

    One task goes through it from its beginning to its end, as its author may rely on, and it is
    closed however that ends.
    """

    def __init__(self, records: AsyncIterable[Any]) -> None:
        self._records = records
        self._bytes_max = limits.client_batch_bytes_target
        self._arrived = Columns()
        self._size = 0
        self._waiting = 0
        """Bytes of the record for which there is no room."""
        self._change = asyncio.Event()
        self._room = asyncio.Event()
        self._pulling: asyncio.Task[None] | None = None

    async def take(self, bytes_max: int) -> tuple[Columns, int]:
        """See `Rows.take`."""
        self._bytes_max = bytes_max
        while not self._arrived.values and not self._is_over():
            await self._wait()
        if not self._arrived.values:
            self._raise()
        return self._hand_out()

    async def take_all(self) -> tuple[Columns, int]:
        """See `Rows.take_all`."""
        self._bytes_max = limits.batch_bytes_max
        while not self._is_over():
            if self._waiting:
                raise _too_many(self._size + self._waiting)
            await self._wait()
        self._raise()
        return self._hand_out()

    def _hand_out(self) -> tuple[Columns, int]:
        arrived = self._arrived, self._size
        self._arrived, self._size = Columns(), 0
        self._room.set()
        return arrived

    async def close(self) -> None:
        """Ends going through it, if that has not ended."""
        if self._pulling is not None:
            self._pulling.cancel()
            await asyncio.wait([self._pulling])
            if not self._pulling.cancelled():
                self._pulling.exception()  # It was raised, or something before it was.

    def _is_over(self) -> bool:
        return self._pulling is not None and self._pulling.done()

    async def _wait(self) -> None:
        if self._pulling is None:
            self._pulling = asyncio.get_running_loop().create_task(self._pull())
            self._pulling.add_done_callback(lambda _: self._change.set())
        self._change.clear()
        await self._change.wait()

    def _raise(self) -> None:
        """Raises what the iterable raised."""
        if self._pulling is not None and self._pulling.done():
            self._pulling.result()

    async def _pull(self) -> None:
        records = aiter(self._records)
        try:
            async for item in records:
                record = check_item(item)
                if self._arrived.values and self._size + record[0] > self._bytes_max:
                    self._waiting = record[0]
                    self._change.set()
                    self._room.clear()
                    await self._room.wait()
                    self._waiting = 0
                self._arrived.add(record)
                self._size += record[0]
                self._change.set()
        finally:
            if isinstance(records, AsyncGenerator):
                await records.aclose()


def check_item(item: object) -> Checked:
    """An item of an iterable as a record. Raises what `check_record` raises."""
    match item:
        case NewRecord(value, key, headers, timestamp):
            return check_record(value, key, headers, timestamp)
        case Record(_, value, key, pairs, timestamp):
            return check_record(value, key, pairs, timestamp)
    return check_record(item)


def _too_many(size: int) -> TooLarge:
    return TooLarge(
        "the records are too many for one batch, which they have to share",
        bytes=size,
        bytes_max=limits.batch_bytes_max,
    )
