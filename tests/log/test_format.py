"""Every structure on disk: what is written is read back, and nothing else is taken for it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from crc32c import crc32c
from hypothesis import given
from hypothesis import strategies as st

from proglog.batch import BadBatch, Buffer, parse_header
from proglog.errors import UnknownFormat
from proglog.log import envelope
from proglog.log import format as fmt
from proglog.log import snapshot as snapshots
from proglog.log.envelope import HEAD_BYTES, seal, unseal
from proglog.log.format import Mark, Place, SegmentHeader, Summary, Tip
from proglog.log.index import Index
from proglog.log.manifest import Change, Manifest
from proglog.log.snapshot import Snapshot
from tests.log.support import build, length_of, tip_after

U64 = st.integers(0, 2**64 - 1)
U32 = st.integers(0, 2**32 - 1)
TIPS = st.builds(Tip, U64, U64, U64, U64, U32)
PLACES = st.builds(Place, U64, U64)
MARKS = st.builds(Mark, U64, TIPS, U64, U64)
TIP = Tip(7, 2, 1000, 1_700_000_000_000, 0xDEADBEEF)
PLACE = Place(2, 1)
PATH = Path("/data/groups/0000000000000002/a-file")


def flips(data: bytes) -> list[bytes]:
    """`data` with each of its bits flipped in turn."""
    flipped = []
    for bit in range(len(data) * 8):
        copy = bytearray(data)
        copy[bit // 8] ^= 1 << bit % 8
        flipped.append(bytes(copy))
    return flipped


# --- the envelope --------------------------------------------------------------------------------


@given(st.binary(max_size=100), st.binary(max_size=20))
def test_an_envelope_round_trips_whatever_follows_it(payload: bytes, following: bytes) -> None:
    packed = seal(b"PROGTEST", payload)
    assert len(packed) == HEAD_BYTES + len(payload) == length_of(packed)
    assert unseal(packed + following, b"PROGTEST", PATH) == payload
    assert unseal(memoryview(packed), b"PROGTEST", PATH) == payload
    assert unseal(packed, b"PROGMORE", PATH) is None


@pytest.mark.parametrize(
    ("at", "size"), [(8, 2), (10, 2), (16, 4)], ids=["version", "flags", "zero"]
)
def test_a_whole_envelope_of_another_version_is_no_damage(at: int, size: int) -> None:
    packed = bytearray(seal(b"PROGTEST", b"payload of another version"))
    packed[at : at + size] = (9).to_bytes(size, "little")
    assert unseal(packed, b"PROGTEST", PATH) is None  # damaged: nothing vouches for the version
    packed[20:24] = bytes(4)
    packed[20:24] = crc32c(bytes(packed)).to_bytes(4, "little")
    with pytest.raises(UnknownFormat) as caught:
        unseal(packed, b"PROGTEST", PATH)
    assert caught.value.facts["file"] == str(PATH)
    assert str(PATH) in str(caught.value)
    assert "Nothing was changed" in str(caught.value)


@pytest.mark.parametrize("magic", [b"PROGLOG1", b"PROGIDX1", b"PROGSNP1", b"PROGHST1"])
def test_version_1_is_known_by_its_magic(magic: bytes) -> None:
    with pytest.raises(UnknownFormat, match="version 1"):
        unseal(magic + bytes(100), envelope.SEGMENT, PATH)


def test_a_length_that_cannot_be_is_damage() -> None:
    packed = bytearray(seal(b"PROGTEST", b"payload"))
    for length in (0, 23, len(packed) + 1, 2**32 - 1):
        packed[12:16] = length.to_bytes(4, "little")
        assert unseal(packed, b"PROGTEST", PATH) is None


# --- structures ----------------------------------------------------------------------------------


@given(PLACES, TIPS)
def test_a_segment_header_round_trips(place: Place, tip: Tip) -> None:
    header = SegmentHeader(place, tip)
    assert fmt.parse_segment_header(fmt.pack_segment_header(header), PATH) == header


@given(MARKS)
def test_a_mark_round_trips(mark: Mark) -> None:
    assert fmt.parse_mark(fmt.pack_mark(mark), PATH) == mark


@given(
    PLACES,
    TIPS,
    TIPS,
    U64,
    U64,
    st.lists(st.tuples(U64, U64), max_size=5),
    st.integers(0, 5),
)
def test_an_index_round_trips(
    place: Place,
    before: Tip,
    last: Tip,
    time: int,
    end: int,
    runs: list[tuple[int, int]],
    count: int,
) -> None:
    entries = bytes(range(16)) * count
    summary = Summary(place, before, last, time, end)
    packed = fmt.pack_index(entries, runs, summary)
    parsed = fmt.parse_index(packed, PATH)
    assert parsed is not None
    assert (packed[parsed[0] :], parsed[1], parsed[2]) == (entries, runs, summary)


@given(TIPS, st.binary(max_size=100))
def test_a_snapshot_round_trips(tip: Tip, state: bytes) -> None:
    snapshot = Snapshot(tip, state)
    assert snapshots.parse(snapshots.pack(snapshot), PATH) == snapshot


@given(U64, U64, TIPS, st.sampled_from(Change), TIPS, U64)
def test_a_manifest_round_trips(
    group: int, generation: int, base: Tip, change: Change, tip: Tip, position: int
) -> None:
    manifest = Manifest(group, generation, base, change, tip, position)
    assert Manifest.parse(manifest.pack()) == manifest
    assert manifest.end() == Manifest(group, generation, base)


@given(st.binary(max_size=5000))
def test_no_parser_raises(noise: bytes) -> None:
    assert fmt.parse_segment_header(noise, PATH) is None
    assert fmt.parse_mark(noise, PATH) is None
    assert fmt.parse_index(noise, PATH) is None
    assert snapshots.parse(noise, PATH) is None


@given(
    st.binary(max_size=300),
    st.sampled_from([envelope.SEGMENT, envelope.MARK, envelope.INDEX, envelope.SNAPSHOT]),
)
def test_no_parser_raises_at_noise_in_an_envelope(noise: bytes, magic: bytes) -> None:
    """As only a fault of ours would leave it."""
    data = seal(magic, noise)
    for parse in (fmt.parse_segment_header, fmt.parse_mark, fmt.parse_index, snapshots.parse):
        try:
            parse(data, PATH)
        except UnknownFormat:
            assert magic is envelope.MARK


def _an_index() -> bytes:
    index = Index(PLACE, tip_after([b"a"]))
    for values in ([b"b"], [], [b"c", b"d"]):
        index.append(build(index.last, values)[0])
    return index.pack()


MARK = fmt.pack_mark(Mark(3, TIP, 5000, 6))
FORMATS: dict[str, tuple[bytes, Callable[[Buffer, Path], object]]] = {
    "segment header": (
        fmt.pack_segment_header(SegmentHeader(PLACE, TIP)),
        fmt.parse_segment_header,
    ),
    "mark": (MARK[: length_of(MARK)], fmt.parse_mark),
    "index": (_an_index(), fmt.parse_index),
    "snapshot": (snapshots.pack(Snapshot(TIP, b"state")), snapshots.parse),
    "manifest": (
        seal(envelope.MANIFEST, Manifest(2).pack()),
        lambda data, path: unseal(data, envelope.MANIFEST, path),
    ),
}


@pytest.mark.parametrize("name", FORMATS)
def test_each_flipped_bit_is_seen(name: str) -> None:
    packed, parse = FORMATS[name]
    assert parse(packed, PATH) is not None
    for flipped in flips(packed):
        assert parse(flipped, PATH) is None


@pytest.mark.parametrize("name", FORMATS)
def test_each_missing_byte_is_seen(name: str) -> None:
    packed, parse = FORMATS[name]
    for size in range(len(packed)):
        assert parse(packed[:size], PATH) is None


def test_each_flipped_bit_of_a_batch_header_is_seen() -> None:
    _header, (packed, _body) = build(TIP, [b"value"])
    for flipped in [*flips(packed), *(packed[:size] for size in range(len(packed)))]:
        with pytest.raises(BadBatch):
            parse_header(flipped)


def test_a_mark_of_a_journal_is_of_a_newer_version() -> None:
    for at in (24 + 60, 24 + 64):  # flags, journal
        payload = bytearray(MARK[24:96])
        payload[at - 24] = 1
        with pytest.raises(UnknownFormat):
            fmt.parse_mark(seal(envelope.MARK, payload), PATH)


# --- where they stand ----------------------------------------------------------------------------


def test_a_new_segment_is_marked_up_to_the_batch_before_it() -> None:
    header = SegmentHeader(PLACE, TIP)
    preamble = fmt.pack_preamble(header)
    assert len(preamble) == fmt.PREAMBLE_BYTES
    for at in fmt.HEADER_POSITIONS:
        assert fmt.parse_segment_header(preamble[at:], PATH) == header
    marks = [fmt.parse_mark(preamble[at:], PATH) for at in fmt.MARK_POSITIONS]
    assert marks == [Mark(at, TIP, fmt.PREAMBLE_BYTES, 0) for at in (0, 1)]


def test_no_lost_block_takes_two_of_them() -> None:
    places = [*fmt.HEADER_POSITIONS, *fmt.MARK_POSITIONS]
    assert len({at // fmt.BLOCK_BYTES for at in places}) == len(places)
    assert all(at % fmt.BLOCK_BYTES == 0 for at in [*places, fmt.PREAMBLE_BYTES])
    assert fmt.mark_position(4) != fmt.mark_position(5)
    # A block that cannot be read is written as a whole, or not at all.
    assert len(MARK) == fmt.BLOCK_BYTES
    assert len(fmt.pack_segment_header(SegmentHeader(PLACE, TIP))) <= fmt.BLOCK_BYTES


def test_the_largest_index_fits_into_its_space() -> None:
    index = Index(PLACE, Tip(0, 0, 0, 0, 0))
    for term in range(1, fmt.RUNS_MAX + 1):
        index.append(build(index.last, [], term=term)[0])
    assert len(index.pack()) == fmt.index_bytes_max(len(index))
