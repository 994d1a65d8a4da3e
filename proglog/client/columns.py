"""Records as columns: checked one by one as they come in, before anything of them is shared."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sized
from contextlib import suppress
from datetime import datetime
from itertools import repeat
from typing import Any, TypeAlias

from proglog import limits
from proglog.batch import Body, RecordHeaders, check_record_headers, encode
from proglog.client.backend import to_milliseconds
from proglog.errors import InvalidRequest, TooLarge

HeadersLike: TypeAlias = Mapping[str, bytes] | Iterable[tuple[str, bytes]]

LENGTH_BYTES = 4
"""What a record takes in a batch beside its value."""
KEY_BYTES, TIMESTAMP_BYTES, HEADERS_BYTES, HEADER_BYTES = 4, 8, 2, 6
"""What each optional column takes beside the bytes of its keys, names and values."""

Checked: TypeAlias = tuple[int, bytes, bytes | None, RecordHeaders, int | None]
"""A record that any batch may hold: its bytes in one, value, key, headers, timestamp."""

_MISSING: Any = object()


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


class Rows:
    """The records of one call, taken in one pass from whatever iterables its user gave.

    They are checked as they are taken, so that no more of them need be held than one batch.
    """

    def __init__(
        self,
        values: Iterable[bytes],
        keys: Iterable[bytes | None] | None,
        headers: Iterable[HeadersLike | None] | None,
        timestamps: Iterable[int | datetime | None] | None,
    ) -> None:
        """Raises TypeError, or InvalidRequest where columns that have a length differ in it."""
        others = {"keys": keys, "headers": headers, "timestamps": timestamps}
        columns = {"values": values} | {n: c for n, c in others.items() if c is not None}
        if len({len(column) for column in columns.values() if isinstance(column, Sized)}) > 1:
            raise _uneven()
        iterators = {name: _iterator(name, column) for name, column in columns.items()}
        values_only = zip(iterators["values"], repeat(None), repeat(None), repeat(None))
        self._rows = values_only if len(columns) == 1 else _in_step(iterators, list(others))
        self._left: Checked | None = None

    def take(self, bytes_max: int) -> tuple[Columns, int]:
        """The next records, as many as fit but at least one, and their bytes; none at the end.

        Raises what `check_record` raises, and what the iterables raise.
        """
        taken, size = Columns(), 0
        if self._left is not None:
            taken.add(self._left)
            size = self._left[0]
            self._left = None
        values = taken.values
        for value, key, headers, timestamp in self._rows:
            if type(value) is bytes and key is headers is timestamp is None:
                # As `check_record` has it, but most records are like this one.
                bytes_after = size + LENGTH_BYTES + len(value)
                if bytes_after <= bytes_max:
                    values.append(value)
                    size = bytes_after
                    continue
            record = check_record(value, key, headers, timestamp)
            if size + record[0] > bytes_max and values:
                self._left = record
                break
            taken.add(record)
            size += record[0]
        return taken, size

    def take_all(self) -> tuple[Columns, int]:
        """All records, for one batch. Raises TooLarge too."""
        taken, size = self.take(limits.batch_bytes_max)
        if self._left is not None:
            raise TooLarge(
                "the records are too many for one batch, which they have to share",
                bytes=size + self._left[0],
                bytes_max=limits.batch_bytes_max,
            )
        return taken, size


def _iterator(name: str, column: Iterable[Any]) -> Iterator[Any]:
    """Raises TypeError for what is no iterable of records, or of something else by accident."""
    if not isinstance(column, str | bytes | bytearray | memoryview | Mapping):
        with suppress(TypeError):
            return iter(column)
    raise TypeError(
        f"{name} are an iterable with an entry for each record, like a list, a generator or an open"
        f" file, not {type(column).__name__}"
    )


def _in_step(columns: dict[str, Iterator[Any]], others: list[str]) -> Iterator[Any]:
    """Values with their keys, headers and timestamps. Raises InvalidRequest where they run out."""
    following = [columns.get(name, repeat(None)) for name in others]
    for value in columns["values"]:
        row = value, *(next(column, _MISSING) for column in following)
        if any(entry is _MISSING for entry in row):
            raise _uneven()
        yield row
    given = [columns[name] for name in others if name in columns]
    if any(next(column, _MISSING) is not _MISSING for column in given):
        raise _uneven()


def _uneven() -> InvalidRequest:
    return InvalidRequest("each column holds as many entries as there are values")
