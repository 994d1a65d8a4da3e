"""Lookups in one segment: an array while it grows, a map once it is sealed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proglog.batch import BatchHeader, Kind
from proglog.log.format import ORIGIN, RUNS_MAX, Place, Tip
from proglog.log.index import Index
from proglog.ports import RealFiles
from tests.log.support import build, tip_after

BEFORE = tip_after([b"a", b"b", b"c"])
PLACE = Place(2)
PATH = Path("an-index")
Batch = tuple[int, int, int]
"""Records, ms after the batch before, terms after the batch before."""
BATCHES = st.lists(
    st.tuples(st.integers(0, 3), st.integers(0, 5), st.integers(0, 1)), min_size=0, max_size=12
)


def grow(batches: list[Batch]) -> tuple[Index, list[BatchHeader]]:
    index, headers = Index(PLACE, BEFORE), []
    for count, pause, terms in batches:
        tip = index.last
        header, _ = build(
            tip, [b"v"] * count, term=tip.term + terms, timestamp=tip.timestamp + pause
        )
        index.append(header)
        headers.append(header)
    return index, headers


def sealed(index: Index) -> Index:
    parsed = Index.parse(index.pack(), PATH, keep_entries=True)
    assert parsed is not None
    return parsed


def unchanged(index: Index) -> Index:
    return index


@pytest.mark.parametrize("seal", [unchanged, sealed])
@given(batches=BATCHES)
def test_lookups_agree_with_a_scan(seal: Callable[[Index], Index], batches: list[Batch]) -> None:
    index, headers = grow(batches)
    index = seal(index)
    assert len(index) == len(headers)
    for offset in range(BEFORE.next_offset, index.last.next_offset + 2):
        # Of batches with the same base offset all but the last are empty.
        expected = [slot for slot, h in enumerate(headers) if h.base_offset <= offset][-1:]
        assert index.slot_of_offset(offset) == (expected[0] if expected else -1)
    for time in range(BEFORE.timestamp, index.last.timestamp + 2):
        slots = [slot for slot, h in enumerate(headers) if h.timestamp >= time]
        assert index.slot_of_time(time) == (slots[0] if slots else len(headers))
    position = index.position(0)
    for slot, header in enumerate(headers):
        assert index.position(slot) == position
        assert index.slot_at_position(position) == slot
        assert index.slot_at_position(position + header.size - 1) == slot
        assert index.kind(slot) == header.kind
        assert index.base_offset(slot) == header.base_offset
        position += header.size
    assert index.end_position == index.position(len(headers)) == position


@given(BATCHES, st.integers(0, 12))
def test_a_cut_leaves_what_growing_would_have(batches: list[Batch], kept: int) -> None:
    kept = min(kept, len(batches))
    for seal in (unchanged, sealed):
        index, headers = grow(batches)
        index = seal(index)
        index.cut(Tip.after(headers[kept - 1]) if kept else BEFORE)
        expected, _ = grow(batches[:kept])
        assert (index.last, index.end_position, index.runs, len(index)) == (
            expected.last,
            expected.end_position,
            expected.runs,
            kept,
        )
        if kept:
            assert index.pack() == expected.pack()
        # It can grow again.
        index.append(build(index.last, [b"new"])[0])
        assert index.slot_of_offset(index.last.next_offset - 1) == kept


def test_a_sealed_index_reads_from_its_map(tmp_path: Path) -> None:
    index, headers = grow([(1, 1, 0)] * 5)
    path = tmp_path / "index"
    path.write_bytes(index.pack())
    mapped = Index.parse(path.read_bytes(), path)
    assert mapped is not None
    mapped.map(memoryview(RealFiles().read_only_map(path)))
    assert isinstance(mapped._numbers, memoryview)
    assert mapped._numbers.readonly
    assert [mapped.position(slot) for slot in range(6)] == [index.position(n) for n in range(6)]
    with pytest.raises(AssertionError):
        mapped.append(headers[0])
    mapped.cut(Tip.after(headers[2]))
    assert mapped.pack() == grow([(1, 1, 0)] * 3)[0].pack()


def test_kinds_are_kept() -> None:
    index, _ = grow([(1, 0, 0), (0, 0, 0)])
    assert [index.kind(0), index.kind(1)] == [Kind.DATA, Kind.NOOP]


def test_a_batch_that_cannot_be_described_does_not_fit() -> None:
    index = Index(PLACE, ORIGIN)
    assert index.fits(2**60, 5)
    index.append(build(ORIGIN, [b"v"], timestamp=1000)[0])
    assert index.fits(1000 + 2**32 - 1, 1)
    assert not index.fits(1000 + 2**32, 1)
    assert not index.fits(999, 1), "within a segment time does not go back"
    for term in range(2, RUNS_MAX + 1):
        assert index.fits(1000, term)
        index.append(build(index.last, [], term=term)[0])
    assert index.fits(1000, RUNS_MAX)
    assert not index.fits(1000, RUNS_MAX + 1)
