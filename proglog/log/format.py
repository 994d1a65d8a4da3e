"""The bytes of a segment beyond its batches: header, marks, index. See DESIGN.md.

Each parser returns None for bytes that fail their checksum: what that means is for `analysis` to
say. Each raises UnknownFormat for what a newer version wrote.
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import NamedTuple

from crc32c import crc32c

from proglog.batch import HEADER_BYTES, BatchHeader, Buffer, Kind
from proglog.errors import UnknownFormat
from proglog.log.envelope import HEAD_BYTES, INDEX, MARK, SEGMENT, seal, unseal

BLOCK_BYTES = 4096
"""What a disk loses at a time: header, its copy and each mark have one of their own."""
HEADER_POSITIONS = (0, BLOCK_BYTES)
MARK_POSITIONS = (2 * BLOCK_BYTES, 3 * BLOCK_BYTES)
PREAMBLE_BYTES = 4 * BLOCK_BYTES
"""Headers and marks; the first batch follows them."""
END_OF_LOG = bytes(HEADER_BYTES)

_SEGMENT = struct.Struct("<QQQQQQII")
_MARK = struct.Struct("<QQQQQQQIIQ")
_INDEX = struct.Struct("<QQIIQQQQIQQQQIQQII")
_RUN = struct.Struct("<QQ")
ENTRY_BYTES = 16
RUNS_MAX = 1024
"""Runs of terms in one segment: it is sealed when they are more."""
NO_JOURNAL = 0
"""The epoch of the journal that a mark belongs to: there are no journals yet."""


class Tip(NamedTuple):
    """The log right after a batch: what the next batch must continue."""

    index: int  # type: ignore[assignment]  # the field, not tuple.index
    term: int
    next_offset: int
    timestamp: int
    chain: int

    @classmethod
    def after(cls, header: BatchHeader) -> Tip:
        """The tip once the batch of this header is the last."""
        # What stands in the place of a lost batch says what the batch after it was chained to.
        chain = header.sequence if header.kind == Kind.GAP else header.header_crc
        return cls(header.index, header.term, header.next_offset, header.timestamp, chain)


ORIGIN = Tip(0, 0, 0, 0, 0)
"""Before the first batch of a log."""


class Place(NamedTuple):
    """Which log a segment belongs to.

    `generation` counts how often a replica's log was replaced by a snapshot.
    """

    group: int
    generation: int = 0


class SegmentHeader(NamedTuple):
    """What a segment says of itself: whose it is, and the tip before it."""

    place: Place
    before: Tip


class Mark(NamedTuple):
    """All up to `position`, where the batch of `tip` ends, was synced when this was written."""

    sequence: int
    tip: Tip
    position: int
    commit: int
    """Batches up to here were known to be committed; none after `tip`."""


class Summary(NamedTuple):
    """What an index says of its segment as a whole."""

    place: Place
    before: Tip
    last: Tip
    first_timestamp: int
    end_position: int


# --- segment -------------------------------------------------------------------------------------


def pack_segment_header(header: SegmentHeader) -> bytes:
    return seal(SEGMENT, _SEGMENT.pack(*header.place, *header.before, 0))


def parse_segment_header(data: Buffer, path: Path) -> SegmentHeader | None:
    payload = unseal(data, SEGMENT, path)
    if payload is None or len(payload) != _SEGMENT.size:
        return None
    group, generation, *before, _zero = _SEGMENT.unpack(payload)
    return SegmentHeader(Place(group, generation), Tip._make(before))


def pack_mark(mark: Mark) -> bytes:
    """A whole block: of one that the disk has lost, it takes no part."""
    sequence, (index, term, next_offset, timestamp, chain), position, commit = mark
    numbers = (sequence, position, commit, index, term, next_offset, timestamp)
    return seal(MARK, _MARK.pack(*numbers, chain, 0, NO_JOURNAL)).ljust(BLOCK_BYTES, b"\0")


def parse_mark(data: Buffer, path: Path) -> Mark | None:
    payload = unseal(data, MARK, path)
    if payload is None or len(payload) != _MARK.size:
        return None
    sequence, position, commit, *tip, flags, journal = _MARK.unpack(payload)
    if journal != NO_JOURNAL or flags:
        raise UnknownFormat.of(path, "2 with marks of a newer one")
    return Mark(sequence, Tip._make(tip), position, commit)


def mark_position(sequence: int) -> int:
    """The marks alternate, so that the newest is never the one being overwritten."""
    return MARK_POSITIONS[sequence % 2]


def pack_preamble(header: SegmentHeader) -> bytes:
    """The first bytes of a new, empty segment."""
    preamble = bytearray(PREAMBLE_BYTES)
    packed = pack_segment_header(header)
    for start in HEADER_POSITIONS:
        preamble[start : start + len(packed)] = packed
    for sequence in (0, 1):
        mark = pack_mark(Mark(sequence, header.before, PREAMBLE_BYTES, 0))
        start = mark_position(sequence)
        preamble[start : start + len(mark)] = mark
    return bytes(preamble)


# --- index ---------------------------------------------------------------------------------------

INDEX_HEAD_BYTES_MAX = HEAD_BYTES + _INDEX.size + RUNS_MAX * _RUN.size
assert (HEAD_BYTES + _INDEX.size) % 4 == 0, "entries are mapped as numbers of four bytes"


def index_bytes_max(batches_max: int) -> int:
    """Size of the largest index of a segment."""
    return INDEX_HEAD_BYTES_MAX + batches_max * ENTRY_BYTES


def pack_index(entries: bytes, runs: list[tuple[int, int]], summary: Summary) -> bytes:
    """A whole index file: the head with the runs of terms, then the entries."""
    payload = _INDEX.pack(
        *summary.place,
        len(entries) // ENTRY_BYTES,
        len(runs),
        *summary.before,
        *summary.last,
        summary.first_timestamp,
        summary.end_position,
        crc32c(entries),
        0,
    )
    return seal(INDEX, payload + b"".join(_RUN.pack(*run) for run in runs)) + entries


def parse_index(data: Buffer, path: Path) -> tuple[int, list[tuple[int, int]], Summary] | None:
    """Where the entries begin in a whole index file, the runs, and the summary."""
    payload = unseal(data, INDEX, path)
    if payload is None or len(payload) < _INDEX.size:
        return None
    group, generation, count, run_count, *numbers, crc, _zero = _INDEX.unpack_from(payload)
    if len(payload) != _INDEX.size + run_count * _RUN.size:
        return None
    entries_at = HEAD_BYTES + len(payload)
    entries = memoryview(data)[entries_at:]
    if len(entries) != count * ENTRY_BYTES or crc32c(entries) != crc:
        return None
    runs = list(_RUN.iter_unpack(payload[_INDEX.size :]))
    summary = Summary(
        Place(group, generation),
        Tip._make(numbers[:5]),
        Tip._make(numbers[5:10]),
        numbers[10],
        numbers[11],
    )
    return entries_at, runs, summary
