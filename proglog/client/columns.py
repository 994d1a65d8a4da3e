"""Many records as columns: checked as they come in, and cut into batches."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from itertools import accumulate
from operator import add
from typing import NamedTuple, TypeAlias

from proglog import limits
from proglog.batch import Body, RecordHeaders, check_record_headers, encode
from proglog.client.backend import to_milliseconds
from proglog.errors import InvalidRequest, TooLarge

HeadersLike: TypeAlias = Mapping[str, bytes] | Iterable[tuple[str, bytes]]

LENGTH_BYTES = 4
"""What a record takes in a batch beside its value."""
KEY_BYTES, TIMESTAMP_BYTES, HEADERS_BYTES, HEADER_BYTES = 4, 8, 2, 6
"""What each optional column takes beside the bytes of its keys, names and values."""


def to_bytes(what: str, value: object) -> bytes:
    """A value or key as bytes. Raises TypeError."""
    if not isinstance(value, bytes | bytearray | memoryview):
        raise TypeError(f"a {what} is bytes, not {type(value).__name__}")
    return bytes(value)


def to_headers(headers: HeadersLike | None) -> RecordHeaders:
    """The headers of one record in the form that batches hold. Raises InvalidBatch."""
    if not headers:
        return ()
    return check_record_headers(headers.items() if isinstance(headers, Mapping) else headers)


def headers_size(headers: RecordHeaders) -> int:
    """Bytes that the headers of one record take."""
    return HEADERS_BYTES + sum(HEADER_BYTES + len(name) + len(value) for name, value in headers)


def check_size(size: int) -> None:
    """Whether a record of `size` bytes fits into a batch. Raises TooLarge."""
    if size > limits.batch_bytes_max:
        raise TooLarge(
            f"a record of {size} bytes is larger than a batch may be",
            bytes=size,
            bytes_max=limits.batch_bytes_max,
        )


class Columns(NamedTuple):
    """Values and, each of the same length, the optional columns."""

    values: Sequence[bytes]
    keys: Sequence[bytes | None] | None
    headers: Sequence[RecordHeaders] | None
    timestamps: Sequence[int | None] | None

    @classmethod
    def checked(
        cls,
        values: Sequence[bytes],
        keys: Sequence[bytes | None] | None,
        headers: Sequence[HeadersLike] | None,
        timestamps: Sequence[int | datetime | None] | None,
    ) -> Columns:
        """What a user gave. Raises TypeError, InvalidRequest or InvalidBatch."""
        for column in (keys, headers, timestamps):
            if column is not None and len(column) != len(values):
                raise InvalidRequest("each column holds as many entries as there are values")
        if not set(map(type, values)) <= {bytes}:
            values = [to_bytes("value", value) for value in values]
        return cls(
            values,
            None if keys is None else [None if k is None else to_bytes("key", k) for k in keys],
            None if headers is None else [to_headers(pairs) for pairs in headers],
            None
            if timestamps is None
            else [None if time is None else to_milliseconds(time) for time in timestamps],
        )

    def parts(self) -> Iterator[tuple[slice, int]]:
        """Cuts the records into batches: which of them, and their bytes. Raises TooLarge."""
        sizes = self._sizes()
        check_size(max(sizes, default=0))
        ends = list(accumulate(sizes))
        start, before = 0, 0
        while start < len(ends):
            fitting = bisect_right(ends, before + limits.client_batch_bytes_target, start)
            stop = max(fitting, start + 1)
            yield slice(start, stop), ends[stop - 1] - before
            start, before = stop, ends[stop - 1]

    def whole(self) -> Iterator[tuple[slice, int]]:
        """All records as one batch, in the form of `parts`. Raises TooLarge."""
        size = sum(self._sizes())
        if size > limits.batch_bytes_max:
            raise TooLarge(
                f"records of {size} bytes are too many for one batch",
                bytes=size,
                bytes_max=limits.batch_bytes_max,
            )
        if self.values:
            yield slice(None), size

    def _sizes(self) -> list[int]:
        sizes: Iterable[int] = map(LENGTH_BYTES.__add__, map(len, self.values))
        if self.keys:
            sizes = map(add, sizes, (KEY_BYTES + len(key or b"") for key in self.keys))
        if self.headers:
            sizes = map(add, sizes, map(headers_size, self.headers))
        if self.timestamps:
            sizes = map(TIMESTAMP_BYTES.__add__, sizes)
        return list(sizes)

    def encode(self, part: slice, *, compress: bool) -> Body:
        """The records of one part as the body of a batch."""
        return encode(
            self.values[part],
            self.keys[part] if self.keys else None,
            self.timestamps[part] if self.timestamps else None,
            self.headers[part] if self.headers else None,
            compress=compress,
        )
