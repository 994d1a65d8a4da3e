"""The batch: the one format that disk, wire and client share.

A batch is at once the Raft entry, the unit of CRC, compression, disk write and network transfer. It
is a 72-byte header, built by the leader, and a *body*, built and checksummed by the client and
never changed again. The body is columns, because Python handles columns at C speed and records one
by one at its own. `proglog/log/DESIGN.md` has the byte tables.

Servers only `check_body` what comes in and copy bytes; clients `encode` and `decode`.
"""

from __future__ import annotations

import enum
import struct
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, chain, islice, pairwise, repeat
from typing import Any, NamedTuple, TypeAlias

import zstandard
from crc32c import crc32c

from proglog import limits
from proglog.errors import InvalidBatch

Buffer: TypeAlias = bytes | bytearray | memoryview
RecordHeaders: TypeAlias = tuple[tuple[str, bytes], ...]

HEADER_BYTES = 72
_HEADER = struct.Struct("<IIBBHIQQQQQQII")
_CRC = struct.Struct("<I")
assert _HEADER.size == HEADER_BYTES

NO_TIMESTAMP = 2**64 - 1
"""In the timestamps column: this record has none of its own."""


class Kind(enum.IntEnum):
    """What a batch is for. Only data batches hold records."""

    DATA = 0
    NOOP = 1
    CONFIGURATION = 2
    COMMAND = 3
    # 4 is reserved for the marker of a transaction over several logs, 5 to 6 for what comes.
    GAP = 7
    """In the place of a batch that was lost: `count` offsets are given to nobody any more, and
    `sequence` is the checksum that the batch after it is chained to. See `proglog repair`."""


class Codec(enum.IntEnum):
    """How the values column is compressed."""

    NONE = 0
    ZSTD = 1


KEYS, TIMESTAMPS, HEADERS = 1, 2, 4
COLUMNS_KNOWN = KEYS | TIMESTAMPS | HEADERS


class BadBatch(Exception):
    """Stored or received bytes are not the batch that they should be. Says what is wrong."""


class UnknownBatch(BadBatch):
    """They are a whole header, of a kind that only a newer version knows."""


class BatchHeader(NamedTuple):
    """The stored header, field by field in its order on disk."""

    header_crc: int
    length: int
    kind: int
    codec: int
    columns: int
    count: int  # type: ignore[assignment]  # the field, not tuple.count
    index: int  # type: ignore[assignment]  # the field, not tuple.index
    term: int
    base_offset: int
    timestamp: int
    producer_id: int
    sequence: int
    body_crc: int
    chain: int

    @property
    def next_offset(self) -> int:
        """Offset that the record after this batch gets."""
        return self.base_offset + self.count

    @property
    def size(self) -> int:
        """Bytes of the whole batch, header included."""
        return HEADER_BYTES + self.length


# For what is done for each batch of a log: an attribute of an enum costs as much as a checksum.
_make_header = BatchHeader._make
_KINDS, _LAST_CODEC = frozenset(map(int, Kind)), int(Codec.ZSTD)
_GAP = int(Kind.GAP)
assert int(Kind.DATA) == 0


class Body(NamedTuple):
    """The columns of some records, encoded, and what a header must say of them."""

    codec: int
    columns: int
    count: int  # type: ignore[assignment]  # the field, not tuple.count
    crc: int
    data: Buffer


class ProposedBatch(NamedTuple):
    """A batch as a client sends it: no index, term, offset or time yet.

    `producer_id` 0 means not idempotent. `expected_offset`, if given, is compared with the offset
    that the first record would get. `seen_index` is a commit index of this log that the client was
    told before it made up the producer id.
    """

    body: Body
    producer_id: int = 0
    sequence: int = 0
    expected_offset: int | None = None
    seen_index: int = 0


class Record(NamedTuple):
    """One record as a consumer sees it. `timestamp` is milliseconds since the epoch."""

    offset: int
    value: bytes
    key: bytes | None
    headers: RecordHeaders
    timestamp: int


# --- header --------------------------------------------------------------------------------------


def build(
    body: Body,
    *,
    kind: Kind,
    index: int,
    term: int,
    base_offset: int,
    timestamp: int,
    chain_crc: int,
    producer_id: int = 0,
    sequence: int = 0,
) -> tuple[BatchHeader, bytes]:
    """The header of a batch at its place in the log, parsed and as bytes."""
    packed = bytearray(
        _HEADER.pack(
            0,
            len(body.data),
            kind,
            body.codec,
            body.columns,
            body.count,
            index,
            term,
            base_offset,
            timestamp,
            producer_id,
            sequence,
            body.crc,
            chain_crc,
        )
    )
    _CRC.pack_into(packed, 0, crc32c(memoryview(packed)[4:]))
    return BatchHeader._make(_HEADER.unpack(packed)), bytes(packed)


def parse_header(buffer: Buffer, position: int = 0) -> BatchHeader:
    """The header at `position`, checked by its CRC and bounds before anything in it is believed.

    Raises BadBatch.
    """
    if len(buffer) - position < HEADER_BYTES:
        raise BadBatch("cut short in the header")
    header = _make_header(_HEADER.unpack_from(buffer, position))
    crc, length, kind, codec, columns, count = header[:6]
    if crc32c(buffer[position + 4 : position + HEADER_BYTES]) != crc:
        raise BadBatch("header checksum does not match")
    if kind not in _KINDS or codec > _LAST_CODEC or columns & ~COLUMNS_KNOWN:
        raise UnknownBatch(f"kind {kind}, codec {codec} or columns {columns} are not known here")
    if (
        length > limits.batch_bytes_max
        or (count > limits.batch_records_max and kind != _GAP)
        or ((kind == 0) != (count > 0) and kind != _GAP)
    ):
        raise BadBatch(f"header holds values that no batch has: {header}")
    return header


def check_stored_body(header: BatchHeader, body: Buffer) -> None:
    """Raises BadBatch unless `body` is what the header promises."""
    if len(body) != header.length:
        raise BadBatch("cut short in the body")
    if crc32c(body) != header.body_crc:
        raise BadBatch("body checksum does not match")


def walk(buffer: Buffer) -> Iterator[tuple[BatchHeader, memoryview]]:
    """The batches that stand back to back in `buffer`, each checked whole. Raises BadBatch."""
    view = memoryview(buffer)
    position = 0
    while position < len(view):
        header = parse_header(view, position)
        body = view[position + HEADER_BYTES : position + header.size]
        check_stored_body(header, body)
        yield header, body
        position += header.size


def data_only(data: bytes, headers: Sequence[BatchHeader]) -> bytes:
    """The batches of `data` that hold records; `headers` are those of all."""
    if all(header.kind == Kind.DATA for header in headers):
        return data
    parts = []
    at = 0
    for header in headers:
        if header.kind == Kind.DATA:
            parts.append(data[at : at + header.size])
        at += header.size
    return b"".join(parts)


# --- body: encoding ------------------------------------------------------------------------------


def plain_body(data: bytes) -> Body:
    """The body of a batch without records: a configuration or a command."""
    return Body(Codec.NONE, 0, 0, crc32c(data), data)


def encode(
    values: Sequence[bytes],
    keys: Sequence[bytes | None] | None = None,
    timestamps: Sequence[int | None] | None = None,
    headers: Sequence[RecordHeaders] | None = None,
    *,
    compress: bool = False,
) -> Body:
    """The columns of some records. Optional columns are left out where None.

    Raises InvalidBatch if a bound is exceeded. `compress` stores the values column as zstd where
    that makes it smaller.
    """
    count = len(values)
    if not 0 < count <= limits.batch_records_max:
        raise InvalidBatch(f"a batch holds 1 to {limits.batch_records_max} records, not {count}")
    columns = 0
    parts: list[bytes] = [struct.pack(f"<{count}I", *map(len, values))]
    if keys is not None:
        columns |= KEYS
        lengths = [0 if key is None else len(key) + 1 for key in keys]
        parts.append(struct.pack(f"<{count}I", *lengths))
    if timestamps is not None:
        columns |= TIMESTAMPS
        stamps = [NO_TIMESTAMP if stamp is None else stamp for stamp in timestamps]
        parts.append(struct.pack(f"<{count}Q", *stamps))
    if headers is not None:
        columns |= HEADERS
        parts.extend(_encode_headers(headers))
    if keys is not None:
        parts.extend(key for key in keys if key is not None)
    codec = Codec.NONE
    if compress:
        plain = b"".join(values)
        if len(plain) > limits.batch_uncompressed_bytes_max:
            raise InvalidBatch(f"{len(plain)} bytes of values are more than one batch may hold")
        frame = zstandard.ZstdCompressor(level=1).compress(plain)
        if len(frame) < len(plain):
            codec, plain = Codec.ZSTD, frame
        parts.append(plain)
    else:
        parts.extend(values)
    data = b"".join(parts)
    if len(data) > limits.batch_bytes_max:
        raise InvalidBatch(
            f"the batch takes {len(data)} bytes, more than the {limits.batch_bytes_max} allowed"
        )
    return Body(codec, columns, count, crc32c(data), data)


def _encode_headers(headers: Sequence[RecordHeaders]) -> list[bytes]:
    flat = list(chain.from_iterable(headers))
    names = [name.encode("ascii") for name, _ in flat]
    return [
        struct.pack(f"<{len(headers)}H", *map(len, headers)),
        struct.pack(f"<{len(flat)}H", *map(len, names)),
        struct.pack(f"<{len(flat)}I", *(len(value) for _, value in flat)),
        *names,
        *(value for _, value in flat),
    ]


def check_record_headers(headers: Iterable[tuple[str, bytes]]) -> RecordHeaders:
    """The headers of one record in the form that batches hold. Raises TypeError or InvalidBatch."""
    if isinstance(headers, str | bytes) or not isinstance(headers, Iterable):
        what = type(headers).__name__
        raise TypeError(f"headers are a mapping, or pairs of a name and a value, not {what}")
    checked = tuple(map(_check_record_header, islice(headers, limits.record_headers_max + 1)))
    if len(checked) > limits.record_headers_max:
        raise InvalidBatch(f"a record has at most {limits.record_headers_max} headers")
    return checked


def _check_record_header(pair: object) -> tuple[str, bytes]:
    match pair:
        case (str() as name, bytes() | bytearray() | memoryview() as value):
            pass
        case _:
            raise TypeError(f"a header is a name, a str, and its value, bytes, not {pair!r:.50}")
    # By the classes themselves: a subclass may have its own idea of what it holds.
    name = str.__str__(name)
    if not name.isascii() or not 0 < len(name) <= limits.header_name_bytes_max:
        raise InvalidBatch(f"a header name is 1 to 1024 ASCII characters, not {name[:50]!r}")
    return name, value if type(value) is bytes else memoryview(value).tobytes()


# --- body: structure -----------------------------------------------------------------------------


@dataclass(slots=True)
class _Layout:
    """Where the columns of a body stand. Positions are bytes from its start."""

    value_lengths: tuple[int, ...]
    key_lengths: tuple[int, ...] | None = None
    timestamps: tuple[int, ...] | None = None
    header_counts: tuple[int, ...] | None = None
    header_name_lengths: tuple[int, ...] = ()
    header_value_lengths: tuple[int, ...] = ()
    headers_at: int = 0
    keys_at: int = 0
    values_at: int = 0


class _Reader:
    """Takes arrays of numbers off the front of a body. Raises InvalidBatch at its end."""

    __slots__ = ("data", "position")

    def __init__(self, data: Buffer) -> None:
        self.data = data
        self.position = 0

    def take(self, count: int, letter: str, width: int) -> tuple[int, ...]:
        position = self.position
        self.skip(count * width)
        return struct.unpack_from(f"<{count}{letter}", self.data, position)

    def skip(self, size: int) -> int:
        position = self.position
        self.position += size
        if self.position > len(self.data):
            raise InvalidBatch("the columns of the batch are longer than its body")
        return position


def _layout(columns: int, count: int, data: Buffer) -> _Layout:
    """Finds the columns, whose lengths must add up. Nothing is allocated beyond the body's size."""
    reader = _Reader(data)
    layout = _Layout(reader.take(count, "I", 4))
    if columns & KEYS:
        layout.key_lengths = reader.take(count, "I", 4)
    if columns & TIMESTAMPS:
        layout.timestamps = reader.take(count, "Q", 8)
    if columns & HEADERS:
        layout.header_counts = reader.take(count, "H", 2)
        total = sum(layout.header_counts)
        layout.header_name_lengths = reader.take(total, "H", 2)
        layout.header_value_lengths = reader.take(total, "I", 4)
        layout.headers_at = reader.position
        names_end = layout.headers_at + sum(layout.header_name_lengths)
        reader.skip(sum(layout.header_name_lengths) + sum(layout.header_value_lengths))
        if not bytes(memoryview(data)[layout.headers_at : names_end]).isascii():
            raise InvalidBatch("a header name is not ASCII")
    layout.keys_at = reader.position
    if layout.key_lengths is not None:
        keys = layout.key_lengths
        reader.skip(sum(keys) - (count - keys.count(0)))
    layout.values_at = reader.position
    return layout


def check_body(body: Body) -> None:
    """Whether a client's body is well formed, without decompressing it. Raises InvalidBatch.

    What passes here and `check_frame` can be decoded by every consumer: a batch that cannot be must
    never enter the log, since it would stop each of them for ever.
    """
    codec, columns, count, crc, data = body
    if columns & ~COLUMNS_KNOWN or codec > Codec.ZSTD:
        raise InvalidBatch(f"unknown codec {codec} or columns {columns}")
    if not 0 < count <= limits.batch_records_max:
        raise InvalidBatch(f"a batch holds 1 to {limits.batch_records_max} records, not {count}")
    if len(data) > limits.batch_bytes_max:
        raise InvalidBatch(f"a body of {len(data)} bytes exceeds {limits.batch_bytes_max}")
    if crc32c(data) != crc:
        raise InvalidBatch("the checksum of the body does not match: it was damaged on its way")
    layout = _layout(columns, count, data)
    plain_size = sum(layout.value_lengths)
    if codec == Codec.ZSTD:
        _check_frame_header(memoryview(data)[layout.values_at :], plain_size)
    elif layout.values_at + plain_size != len(data):
        raise InvalidBatch("the lengths of the values do not add up to the size of the body")


def _check_frame_header(frame: memoryview, plain_size: int) -> None:
    try:
        parameters = zstandard.get_frame_parameters(frame)
    except zstandard.ZstdError as error:
        raise InvalidBatch(f"the values are not a zstd frame: {error}") from None
    if parameters.content_size != plain_size:
        raise InvalidBatch("the zstd frame does not state the size that the values add up to")
    if plain_size > limits.batch_uncompressed_bytes_max:
        raise InvalidBatch(f"{plain_size} bytes of values are more than one batch may hold")
    if plain_size == 0:
        # zstandard returns nothing for such a frame without looking at what else there is.
        raise InvalidBatch("an empty values column is not compressed")


def check_frame(body: Body) -> None:
    """Decompresses a checked body once and throws the values away. Takes milliseconds: call it off
    the loop. Raises InvalidBatch."""
    layout = _layout(body.columns, body.count, body.data)
    _decompress(memoryview(body.data)[layout.values_at :], sum(layout.value_lengths))


def _decompress(frame: memoryview, plain_size: int) -> bytes:
    # `max_output_size` alone does not bound the output: zstandard ignores it where the frame states
    # its own size. So the stated size is checked first, and that it is the true one afterwards.
    _check_frame_header(frame, plain_size)
    decompressor = zstandard.ZstdDecompressor(max_window_size=limits.batch_uncompressed_bytes_max)
    try:
        plain = decompressor.decompress(frame, max_output_size=plain_size, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise InvalidBatch(f"the zstd frame cannot be decompressed: {error}") from None
    if len(plain) != plain_size:
        raise InvalidBatch("the zstd frame holds another size than it states")
    return plain


# --- body: decoding ------------------------------------------------------------------------------


def _split(data: bytes, start: int, lengths: Sequence[int]) -> list[bytes]:
    return [data[a:b] for a, b in pairwise(accumulate(lengths, initial=start))]


class RecordBatch:
    """Decoded records with consecutive offsets: sized, iterable, indexable; columns as lists.

    `values` is there at once; `keys`, `timestamps` and `headers` are None where no record of the
    batch has one. `timestamp` is the time of the append, milliseconds since the epoch.
    """

    __slots__ = ("base_offset", "headers", "keys", "term", "timestamp", "timestamps", "values")

    def __init__(
        self,
        base_offset: int,
        timestamp: int,
        term: int,
        values: list[bytes],
        keys: list[bytes | None] | None = None,
        timestamps: list[int] | None = None,
        headers: list[RecordHeaders] | None = None,
    ) -> None:
        self.base_offset = base_offset
        self.timestamp = timestamp
        self.term = term
        self.values = values
        self.keys = keys
        self.timestamps = timestamps
        self.headers = headers

    @property
    def next_offset(self) -> int:
        """Offset after the last record."""
        return self.base_offset + len(self.values)

    def __len__(self) -> int:
        return len(self.values)

    def __iter__(self) -> Iterator[Record]:
        return map(
            Record,
            range(self.base_offset, self.next_offset),
            self.values,
            self.keys if self.keys is not None else repeat(None),
            self.headers if self.headers is not None else repeat(()),
            self.timestamps if self.timestamps is not None else repeat(self.timestamp),
        )

    def __getitem__(self, position: int) -> Record:
        position = range(len(self.values))[position]
        return Record(
            self.base_offset + position,
            self.values[position],
            self.keys[position] if self.keys is not None else None,
            self.headers[position] if self.headers is not None else (),
            self.timestamps[position] if self.timestamps is not None else self.timestamp,
        )

    def between(self, start: int, stop: int | None = None) -> RecordBatch:
        """The records with start <= offset < stop; this batch itself where that is all of it."""
        first = max(start - self.base_offset, 0)
        last = len(self) if stop is None else max(min(stop - self.base_offset, len(self)), first)
        if first == 0 and last == len(self):
            return self
        kept = slice(first, last)
        return RecordBatch(
            self.base_offset + first,
            self.timestamp,
            self.term,
            self.values[kept],
            self.keys[kept] if self.keys is not None else None,
            self.timestamps[kept] if self.timestamps is not None else None,
            self.headers[kept] if self.headers is not None else None,
        )


def decode(header: BatchHeader, body: Buffer) -> RecordBatch:
    """The records of a stored data batch whose checksums were checked. Raises InvalidBatch."""
    data = bytes(body)
    layout = _layout(header.columns, header.count, data)
    batch = RecordBatch(header.base_offset, header.timestamp, header.term, [])
    if header.codec == Codec.ZSTD:
        frame = memoryview(data)[layout.values_at :]
        plain = _decompress(frame, sum(layout.value_lengths))
        batch.values = _split(plain, 0, layout.value_lengths)
    else:
        batch.values = _split(data, layout.values_at, layout.value_lengths)
    if layout.key_lengths is not None:
        batch.keys = _decode_keys(data, layout.keys_at, layout.key_lengths)
    if layout.timestamps is not None:
        append_time = header.timestamp
        batch.timestamps = [append_time if t == NO_TIMESTAMP else t for t in layout.timestamps]
    if layout.header_counts is not None:
        batch.headers = _decode_headers(data, layout, layout.header_counts)
    return batch


def _decode_keys(data: bytes, start: int, lengths: Sequence[int]) -> list[bytes | None]:
    keys: list[Any] = _split(data, start, [length - (length > 0) for length in lengths])
    return [key if length else None for key, length in zip(keys, lengths, strict=True)]


def _decode_headers(data: bytes, layout: _Layout, counts: Sequence[int]) -> list[RecordHeaders]:
    names = _split(data, layout.headers_at, layout.header_name_lengths)
    values_at = layout.headers_at + sum(layout.header_name_lengths)
    values = _split(data, values_at, layout.header_value_lengths)
    pairs = [(name.decode("ascii"), value) for name, value in zip(names, values, strict=True)]
    return [tuple(pairs[a:b]) for a, b in pairwise(accumulate(counts, initial=0))]


def decode_all(buffer: Buffer) -> Iterator[RecordBatch]:
    """The data batches that stand back to back in `buffer`, checked and decoded.

    Raises BadBatch or InvalidBatch.
    """
    for header, body in walk(buffer):
        if header.kind == Kind.DATA:
            yield decode(header, body)
