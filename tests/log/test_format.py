"""Header, marks, trailer: what is written is read back, and nothing else is taken for it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proglog.batch import BadBatch, parse_header
from proglog.log import format as fmt
from proglog.log import snapshot as snapshots
from proglog.log.format import Mark, Tip, Trailer
from proglog.log.index import Index
from proglog.log.snapshot import Snapshot
from tests.log.support import build, tip_after

U64 = st.integers(0, 2**64 - 1)
U32 = st.integers(0, 2**32 - 1)
TIPS = st.builds(Tip, U64, U64, U64, U64, U32)
MARKS = st.builds(Mark, U64, U64, U64, U64, U32, st.booleans())
TIP = Tip(7, 2, 1000, 1_700_000_000_000, 0xDEADBEEF)


def flips(data: bytes) -> list[bytes]:
    """`data` with each of its bits flipped in turn."""
    flipped = []
    for bit in range(len(data) * 8):
        copy = bytearray(data)
        copy[bit // 8] ^= 1 << bit % 8
        flipped.append(bytes(copy))
    return flipped


@given(TIPS)
def test_a_segment_header_round_trips(tip: Tip) -> None:
    assert fmt.parse_segment_header(fmt.pack_segment_header(tip)) == tip


@given(MARKS, MARKS)
def test_marks_round_trip_newest_first(one: Mark, two: Mark) -> None:
    preamble = bytearray(fmt.PREAMBLE_BYTES)
    for mark, position in zip((one, two), fmt.MARK_POSITIONS, strict=True):
        packed = fmt.pack_mark(mark)
        preamble[position : position + len(packed)] = packed
    assert fmt.parse_marks(preamble) == sorted([one, two], reverse=True)


@given(TIPS, TIPS, U64, U64, st.lists(st.tuples(U64, U64), max_size=5), st.integers(0, 5))
def test_an_index_round_trips(
    before: Tip, last: Tip, time: int, end: int, runs: list[tuple[int, int]], count: int
) -> None:
    entries = bytes(range(16)) * count
    trailer = Trailer(before, last, time, end)
    parsed = fmt.parse_index(fmt.pack_index(entries, runs, trailer))
    assert parsed is not None
    assert (bytes(parsed[0]), parsed[1], parsed[2]) == (entries, runs, trailer)


@given(TIPS, st.binary(max_size=100), st.booleans())
def test_a_snapshot_round_trips(tip: Tip, state: bytes, resets: bool) -> None:
    snapshot = Snapshot(tip, state, resets)
    assert snapshots.parse(snapshots.pack(snapshot)) == snapshot


@given(st.binary(max_size=5000))
def test_no_parser_raises(noise: bytes) -> None:
    assert fmt.parse_segment_header(noise) is None
    assert fmt.parse_marks(noise) == []
    assert fmt.parse_index(noise) is None
    assert snapshots.parse(noise) is None


def _marks_of(data: bytes) -> object:
    preamble = bytes(fmt.MARK_POSITIONS[0]) + data + bytes(fmt.PREAMBLE_BYTES)
    return fmt.parse_marks(preamble) or None


def _an_index() -> bytes:
    index = Index(tip_after([b"a"]))
    for values in ([b"b"], [], [b"c", b"d"]):
        index.append(build(index.last, values)[0])
    return index.pack()


FORMATS: dict[str, tuple[bytes, Callable[[bytes], object]]] = {
    "segment header": (fmt.pack_segment_header(TIP), fmt.parse_segment_header),
    "mark": (fmt.pack_mark(Mark(3, 7, 5000, 6, 1)), _marks_of),
    "index": (_an_index(), fmt.parse_index),
    "snapshot": (snapshots.pack(Snapshot(TIP, b"state")), snapshots.parse),
}


@pytest.mark.parametrize("name", FORMATS)
def test_each_flipped_bit_is_seen(name: str) -> None:
    packed, parse = FORMATS[name]
    assert parse(packed) is not None
    for flipped in flips(packed):
        assert parse(flipped) is None


@pytest.mark.parametrize("name", ["segment header", "index", "snapshot"])
def test_each_missing_byte_is_seen(name: str) -> None:
    packed, parse = FORMATS[name]
    for size in range(len(packed)):
        assert parse(packed[:size]) is None


def test_each_flipped_bit_of_a_batch_header_is_seen() -> None:
    _header, (packed, _body) = build(TIP, [b"value"])
    for flipped in [*flips(packed), *(packed[:size] for size in range(len(packed)))]:
        with pytest.raises(BadBatch):
            parse_header(flipped)


def test_a_new_segment_is_marked_up_to_the_batch_before_it() -> None:
    preamble = fmt.pack_preamble(TIP)
    assert len(preamble) == fmt.PREAMBLE_BYTES
    assert fmt.parse_segment_header(preamble) == TIP
    assert fmt.parse_marks(preamble) == [
        Mark(1, TIP.index, fmt.PREAMBLE_BYTES, 0, TIP.chain),
        Mark(0, TIP.index, fmt.PREAMBLE_BYTES, 0, TIP.chain),
    ]


def test_marks_are_in_sectors_of_their_own_and_alternate() -> None:
    assert fmt.mark_position(4) != fmt.mark_position(5)
    for start in fmt.MARK_POSITIONS:
        assert start % fmt.SECTOR_BYTES == 0
        assert len(fmt.pack_mark(Mark(0, 0, 0, 0, 0))) <= fmt.SECTOR_BYTES
    assert len(fmt.pack_segment_header(TIP)) <= fmt.MARK_POSITIONS[0]
