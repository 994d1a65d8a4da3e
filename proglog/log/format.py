"""The bytes of a segment beyond its batches: header, marks, index trailer. See DESIGN.md.

Each parser returns None for bytes that fail their checksum: what that means is for recovery to say.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

from crc32c import crc32c

from proglog.batch import HEADER_BYTES, BatchHeader, Buffer

PREAMBLE_BYTES = 4096
"""Segment header and marks; the first batch stands behind it."""
SECTOR_BYTES = 512
MARK_POSITIONS = (SECTOR_BYTES, 2 * SECTOR_BYTES)
END_OF_LOG = bytes(HEADER_BYTES)

_SEGMENT = struct.Struct("<8sQQQQII")
_SEGMENT_MAGIC = b"PROGLOG1"
_MARK = struct.Struct("<4sIQQQQII")
_MARK_MAGIC = b"MARK"
_MARK_CUT = 1
_TRAILER = struct.Struct("<8sIIQQQQIQQQQIQQI")
_TRAILER_MAGIC = b"PROGIDX1"
_RUN = struct.Struct("<QQ")
_CRC = struct.Struct("<I")
ENTRY_BYTES = 16
RUNS_MAX = 1024
"""Runs of terms in one segment: it is sealed when they are more."""


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
        return cls(
            header.index, header.term, header.next_offset, header.timestamp, header.header_crc
        )


ORIGIN = Tip(0, 0, 0, 0, 0)
"""Before the first batch of a log."""


class Mark(NamedTuple):
    """All up to `position`, which is after batch `index`, was synced when this was written.

    With `cut`, whatever is behind it is void: the intent of a suffix truncation.
    """

    sequence: int
    index: int  # type: ignore[assignment]  # the field, not tuple.index
    position: int
    commit: int
    chain: int
    cut: bool = False


class Trailer(NamedTuple):
    """What an index says of its segment as a whole."""

    before: Tip
    last: Tip
    first_timestamp: int
    end_position: int


def _sealed(packed: bytes) -> bytes:
    """`packed` with its last four bytes set to the checksum of what is before them."""
    return packed[:-4] + _CRC.pack(crc32c(packed[:-4]))


def _is_sealed(data: Buffer) -> bool:
    view = memoryview(data)
    (crc,) = _CRC.unpack(view[-4:])
    return bool(crc32c(view[:-4]) == crc)


def pack_segment_header(before: Tip) -> bytes:
    return _sealed(_SEGMENT.pack(_SEGMENT_MAGIC, *before, 0))


def parse_segment_header(preamble: Buffer) -> Tip | None:
    """The tip before the segment."""
    data = memoryview(preamble)[: _SEGMENT.size]
    if len(data) < _SEGMENT.size or not _is_sealed(data):
        return None
    magic, *before, _crc = _SEGMENT.unpack(data)
    return Tip._make(before) if magic == _SEGMENT_MAGIC else None


def pack_mark(mark: Mark) -> bytes:
    flags = _MARK_CUT if mark.cut else 0
    return _sealed(
        _MARK.pack(
            _MARK_MAGIC,
            flags,
            mark.sequence,
            mark.index,
            mark.position,
            mark.commit,
            mark.chain,
            0,
        )
    )


def parse_marks(preamble: Buffer) -> list[Mark]:
    """The valid marks of a preamble, newest first."""
    marks = []
    for start in MARK_POSITIONS:
        data = memoryview(preamble)[start : start + _MARK.size]
        if len(data) < _MARK.size or not _is_sealed(data):
            continue
        magic, flags, sequence, index, position, commit, chain, _crc = _MARK.unpack(data)
        if magic == _MARK_MAGIC and flags <= _MARK_CUT:
            marks.append(Mark(sequence, index, position, commit, chain, flags == _MARK_CUT))
    return sorted(marks, reverse=True)


def mark_position(sequence: int) -> int:
    """The marks alternate, so that the newest is never the one being overwritten."""
    return MARK_POSITIONS[sequence % 2]


def pack_preamble(before: Tip) -> bytes:
    """The first bytes of a new, empty segment."""
    preamble = bytearray(PREAMBLE_BYTES)
    header = pack_segment_header(before)
    preamble[: len(header)] = header
    for sequence in (0, 1):
        mark = pack_mark(Mark(sequence, before.index, PREAMBLE_BYTES, 0, before.chain))
        start = mark_position(sequence)
        preamble[start : start + len(mark)] = mark
    return bytes(preamble)


def index_bytes_max(batches_max: int) -> int:
    """Size of the largest index of a segment."""
    return batches_max * ENTRY_BYTES + RUNS_MAX * _RUN.size + _TRAILER.size


def pack_index(entries: bytes, runs: list[tuple[int, int]], trailer: Trailer) -> bytes:
    content = entries + b"".join(_RUN.pack(*run) for run in runs)
    packed = _TRAILER.pack(
        _TRAILER_MAGIC,
        len(entries) // ENTRY_BYTES,
        len(runs),
        *trailer.before,
        *trailer.last,
        trailer.first_timestamp,
        trailer.end_position,
        0,
    )
    return _sealed(content + packed)


def parse_index(data: Buffer) -> tuple[memoryview, list[tuple[int, int]], Trailer] | None:
    """The entries, runs and trailer of an index file."""
    view = memoryview(data)
    if len(view) < _TRAILER.size or not _is_sealed(view):
        return None
    magic, count, run_count, *numbers, _crc = _TRAILER.unpack(view[-_TRAILER.size :])
    runs_at = count * ENTRY_BYTES
    trailer_at = runs_at + run_count * _RUN.size
    if magic != _TRAILER_MAGIC or trailer_at + _TRAILER.size != len(view):
        return None
    runs = [(index, term) for index, term in _RUN.iter_unpack(view[runs_at:trailer_at])]
    trailer = Trailer(Tip._make(numbers[:5]), Tip._make(numbers[5:10]), numbers[10], numbers[11])
    return view[:runs_at], runs, trailer
