"""The batch format: what is encoded comes back, and nothing else is ever decoded."""

from __future__ import annotations

import struct
import tracemalloc
from collections.abc import Callable
from typing import Any

import pytest
import zstandard
from crc32c import crc32c
from hypothesis import given
from hypothesis import strategies as st

from proglog import batch as batches
from proglog import limits
from proglog.batch import (
    HEADERS,
    KEYS,
    TIMESTAMPS,
    BadBatch,
    BatchHeader,
    Body,
    Codec,
    Kind,
    Record,
    RecordBatch,
    UnknownBatch,
    check_body,
    check_frame,
    check_record_headers,
    decode,
    decode_all,
    encode,
    parse_header,
    walk,
)
from proglog.errors import InvalidBatch

TIME = 1_700_000_000_000
RECORDS = st.lists(
    st.tuples(
        st.binary(max_size=40),
        st.none() | st.binary(max_size=10),
        st.none() | st.integers(0, 2**64 - 2),
        st.lists(
            st.tuples(
                st.text(st.characters(max_codepoint=127), min_size=1, max_size=8),
                st.binary(max_size=8),
            ),
            max_size=3,
        ).map(tuple),
    ),
    min_size=1,
    max_size=8,
)


def stored(body: Body, **changes: Any) -> tuple[BatchHeader, bytes]:
    """A batch with this body; the header and all its bytes."""
    fields = {"kind": Kind.DATA, "index": 3, "term": 2, "base_offset": 100, "timestamp": TIME}
    header, packed = batches.build(body, chain_crc=7, **{**fields, **changes})
    return header, packed + bytes(body.data)


def accepted(body: Body) -> RecordBatch | None:
    """The records of a body that a server takes, None if it is refused; anything else raises."""
    try:
        check_body(body)
        if body.codec != Codec.NONE:
            check_frame(body)
    except InvalidBatch:
        return None
    return decode(stored(body)[0], body.data)


def with_crc(body: Body, **changes: Any) -> Body:
    """A body whose checksum is right whatever it holds: what a hostile client sends."""
    changed = body._replace(**changes)
    return changed._replace(crc=crc32c(changed.data))


def rich(compress: bool = False) -> Body:
    return encode(
        [b"one" * 20, b"", b"three"],
        keys=[b"k", None, b""],
        timestamps=[5, None, 7],
        headers=[(("a", b"1"), ("bb", b"")), (), (("c", b"3"),)],
        compress=compress,
    )


# --- round trips ---------------------------------------------------------------------------------


@given(RECORDS, st.sampled_from(range(8)), st.booleans())
def test_records_come_back(records: list[Any], columns: int, compress: bool) -> None:
    values, keys, timestamps, headers = map(list, zip(*records, strict=True))
    body = encode(
        values,
        keys if columns & KEYS else None,
        timestamps if columns & TIMESTAMPS else None,
        headers if columns & HEADERS else None,
        compress=compress,
    )
    assert body.columns == columns
    expected = [
        Record(
            100 + position,
            value,
            key if columns & KEYS else None,
            pairs if columns & HEADERS else (),
            stamp if columns & TIMESTAMPS and stamp is not None else TIME,
        )
        for position, (value, key, stamp, pairs) in enumerate(records)
    ]
    batch = accepted(body)
    assert batch is not None
    assert list(batch) == expected
    assert [batch[position] for position in range(len(batch))] == expected
    assert batch[-1] == expected[-1]
    assert (len(batch), batch.next_offset) == (len(records), 100 + len(records))


@given(st.integers(90, 115), st.none() | st.integers(90, 115))
def test_a_part_of_a_batch_is_its_records(start: int, stop: int | None) -> None:
    header, data = stored(encode([b"%d" % n for n in range(10)], keys=[b"k"] * 10))
    (batch,) = decode_all(data)
    expected = [r for r in batch if r.offset >= start and (stop is None or r.offset < stop)]
    part = batch.between(start, stop)
    assert list(part) == expected
    assert header.count == len(batch) == 10


def test_compression_is_used_where_it_helps() -> None:
    assert encode([bytes(1000)], compress=True).codec == Codec.ZSTD
    assert len(encode([bytes(1000)], compress=True).data) < 100
    assert encode([b"x"], compress=True).codec == Codec.NONE


def test_a_stored_batch_is_walked_whole() -> None:
    one, first = stored(rich())
    two, second = stored(batches.plain_body(b"config"), kind=Kind.CONFIGURATION, index=4)
    assert [header for header, _ in walk(first + second)] == [one, two]
    assert [bytes(body) for _, body in walk(first + second)][1] == b"config"
    assert [len(batch) for batch in decode_all(first + second)] == [3]
    for size in range(1, len(first)):
        with pytest.raises(BadBatch):
            list(walk(first[:size]))


# --- damage --------------------------------------------------------------------------------------


@pytest.mark.parametrize("compress", [False, True])
def test_each_flipped_bit_of_a_body_is_seen(compress: bool) -> None:
    body = rich(compress)
    header, _ = stored(body)
    for bit in range(len(body.data) * 8):
        data = bytearray(body.data)
        data[bit // 8] ^= 1 << bit % 8
        with pytest.raises(InvalidBatch):
            check_body(body._replace(data=bytes(data)))
        with pytest.raises(BadBatch):
            batches.check_stored_body(header, data)


@pytest.mark.parametrize("compress", [False, True])
def test_a_flipped_bit_under_a_right_checksum_is_refused_or_decodes(compress: bool) -> None:
    body = rich(compress)
    taken = 0
    for bit in range(len(body.data) * 8):
        data = bytearray(body.data)
        data[bit // 8] ^= 1 << bit % 8
        batch = accepted(with_crc(body, data=bytes(data)))
        taken += batch is not None
        assert batch is None or len(list(batch)) == 3
    assert taken > 0, "values and timestamps may be anything"


@pytest.mark.parametrize("compress", [False, True])
def test_each_truncation_is_refused(compress: bool) -> None:
    body = rich(compress)
    for size in range(len(body.data)):
        assert accepted(with_crc(body, data=body.data[:size])) is None
    assert accepted(with_crc(body, data=bytes(body.data) + b"x")) is None


@given(
    st.binary(max_size=200),
    st.integers(0, 3),
    st.integers(0, 9),
    st.integers(0, 50) | st.integers(0, 2**32),
)
def test_noise_is_refused_or_decodes(data: bytes, codec: int, columns: int, count: int) -> None:
    body = Body(codec, columns, count, crc32c(data), data)
    batch = accepted(body)
    assert batch is None or len(batch) == count


@given(st.binary(max_size=200))
def test_noise_is_no_stored_batch(noise: bytes) -> None:
    with pytest.raises(BadBatch):
        parse_header(noise)


@pytest.mark.parametrize(
    "changes",
    [
        {"kind": 4},
        {"kind": Kind.NOOP},
        {"codec": 2},
        {"columns": 8},
        {"count": 0},
        {"count": limits.batch_records_max + 1},
        {"length": limits.batch_bytes_max + 1},
    ],
    ids=str,
)
def test_a_header_of_another_version_is_refused(changes: dict[str, int]) -> None:
    header, _ = stored(rich())
    packed = bytearray(batches._HEADER.pack(*header._replace(**changes)))
    packed[:4] = struct.pack("<I", crc32c(packed[4:]))
    with pytest.raises(BadBatch) as caught:
        parse_header(packed)
    # What only a newer version writes is no damage.
    is_newer = changes in ({"kind": 4}, {"codec": 2}, {"columns": 8})
    assert isinstance(caught.value, UnknownBatch) == is_newer


# --- hostile bodies ------------------------------------------------------------------------------


def compressed(lengths: list[int], frame: bytes) -> Body:
    data = struct.pack(f"<{len(lengths)}I", *lengths) + frame
    return Body(Codec.ZSTD, 0, len(lengths), crc32c(data), data)


def frame_claiming(size: int, content: bytes) -> bytes:
    """A zstd frame whose header states `size`, whatever it holds."""
    block = zstandard.ZstdCompressor(write_content_size=False).compress(content)
    # Magic, descriptor (single segment, 8 bytes of content size), size, blocks without checksum.
    header = struct.pack("<IBQ", 0xFD2FB528, 0b1110_0000, size)
    return header + block[6:]


def test_a_frame_that_states_its_true_size_is_taken() -> None:
    frame = frame_claiming(1000, bytes(1000))
    assert zstandard.get_frame_parameters(frame).content_size == 1000
    assert accepted(compressed([400, 600], frame)) is not None


def bomb() -> bytes:
    return zstandard.ZstdCompressor().compress(bytes(64 * limits.MiB))


BOMBS: dict[str, Callable[[], Body]] = {
    "states its size": lambda: compressed([64 * limits.MiB], bomb()),
    "states a small size": lambda: compressed([1000], frame_claiming(1000, bytes(1 << 20))),
    "states a large size": lambda: compressed([1000], frame_claiming(999, bytes(1000))),
    "states no size": lambda: compressed(
        [1000], zstandard.ZstdCompressor(write_content_size=False).compress(bytes(1000))
    ),
    "second frame": lambda: compressed(
        [10], zstandard.ZstdCompressor().compress(bytes(10)) + bomb()
    ),
    "empty frame before more": lambda: compressed(
        [0], zstandard.ZstdCompressor().compress(b"") + bomb()
    ),
    "needs a dictionary": lambda: compressed(
        [1000],
        zstandard.ZstdCompressor(
            dict_data=zstandard.ZstdCompressionDict(b"dictionary" * 100)
        ).compress(b"dictionary" * 100),
    ),
    "skippable frame": lambda: compressed([0], struct.pack("<II", 0x184D2A50, 4) + b"skip"),
    "no frame": lambda: compressed([10], b"not a frame"),
    "nothing": lambda: compressed([0], b""),
}


@pytest.mark.parametrize("name", BOMBS)
def test_a_poisoned_frame_is_refused_within_bounded_memory(name: str) -> None:
    body = BOMBS[name]()
    tracemalloc.start()
    try:
        assert accepted(body) is None
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 4 * limits.MiB


@pytest.mark.parametrize("columns", range(8))
def test_huge_counts_allocate_nothing(columns: int) -> None:
    data = b"\xff" * 64
    tracemalloc.start()
    try:
        for count in (16, limits.batch_records_max):
            assert accepted(Body(0, columns, count, crc32c(data), data)) is None
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < limits.MiB


def test_encoding_is_bounded() -> None:
    with pytest.raises(InvalidBatch, match="1 to"):
        encode([])
    with pytest.raises(InvalidBatch, match="more than the"):
        encode([bytes(limits.batch_bytes_max)])
    with pytest.raises(InvalidBatch, match="more than one batch may hold"):
        encode([bytes(limits.batch_uncompressed_bytes_max + 1)], compress=True)
    with pytest.raises(InvalidBatch, match="headers"):
        check_record_headers([("a", b"")] * (limits.record_headers_max + 1))
    for name in ("", "ä", "x" * (limits.header_name_bytes_max + 1)):
        with pytest.raises(InvalidBatch, match="header name"):
            check_record_headers([(name, b"")])
