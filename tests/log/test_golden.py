"""The formats on disk are final: one file of each kind, byte for byte.

PROGLOG_GOLDEN=write makes the files anew. What is in them was written by somebody's node: a change
here is a new version of the format, with a way from the old one.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from proglog.batch import Kind, build, encode, parse_header, plain_body
from proglog.log import format as fmt
from proglog.log import snapshot as snapshots
from proglog.log.envelope import MANIFEST
from proglog.log.format import Mark, Place, SegmentHeader, Tip
from proglog.log.index import Index
from proglog.log.manifest import Change, Manifest
from proglog.log.reading import CheckedFile, Reading
from proglog.log.snapshot import Snapshot
from proglog.log.twin import TwinFile, read_twin
from proglog.log.walking import walk_store
from proglog.ports import RealFiles

GOLDEN = Path(__file__).parent / "golden"
IS_WRITING = os.environ.get("PROGLOG_GOLDEN") == "write"

PLACE = Place(2, 3)
BEFORE = Tip(40, 5, 1000, 1_700_000_000_000, 0x12345678)


def store() -> bytes:
    """A segment with a batch of each kind, closed."""
    data = bytearray(fmt.pack_preamble(SegmentHeader(PLACE, BEFORE)))
    tip = BEFORE
    for header, packed, body in _batches():
        data += packed + body
        tip = Tip.after(header)
    end = len(data)
    data += fmt.END_OF_LOG
    for sequence in (2, 3):
        at = fmt.mark_position(sequence)
        data[at : at + fmt.BLOCK_BYTES] = fmt.pack_mark(Mark(sequence, tip, end, tip.index - 1))
    return bytes(data)


def _batches() -> list[tuple[object, bytes, bytes]]:
    bodies = [
        (Kind.CONFIGURATION, plain_body(b"who the servers are"), 0, 0),
        (Kind.NOOP, plain_body(b""), 0, 0),
        (Kind.DATA, encode([b"one", b"", b"three"]), 77, 12),
        (
            Kind.DATA,
            encode([b"v" * 100], [b"key"], [1_600_000_000_000], [(("name", b"value"),)]),
            0,
            0,
        ),
        (Kind.COMMAND, plain_body(b"command"), 0, 0),
        (Kind.GAP, plain_body(bytes(10))._replace(count=5), 0, 0xCAFE),
        (Kind.DATA, encode([b"after the gap"]), 0, 0),
    ]
    made, tip = [], BEFORE
    for number, (kind, body, producer_id, sequence) in enumerate(bodies):
        header, packed = build(
            body,
            kind=kind,
            index=tip.index + 1,
            term=6 + number // 4,
            base_offset=tip.next_offset,
            timestamp=tip.timestamp + number,
            chain_crc=tip.chain,
            producer_id=producer_id,
            sequence=sequence,
        )
        made.append((header, packed, bytes(body.data)))
        tip = Tip.after(header)
    return made


def _index() -> Index:
    index = Index(PLACE, BEFORE)
    for header, _packed, _body in _batches():
        index.append(header)  # type: ignore[arg-type]
    return index


def manifest(tmp_path: Path) -> bytes:
    path = tmp_path / "manifest"
    tip = Tip(50, 6, 1010, 1_700_000_000_001, 0x9ABCDEF0)
    first = Manifest(2, 3, BEFORE)
    file = TwinFile.create(RealFiles(), path, MANIFEST, first.pack())
    file.save(first._replace(change=Change.CUT, tip=tip, position=20_000).pack())
    file.close()
    return path.read_bytes()


SNAPSHOT = Snapshot(BEFORE, b"the replicated state after batch 40")
FILES: dict[str, Callable[[Path], bytes]] = {
    "store": lambda _: store(),
    "index": lambda _: _index().pack(),
    "snapshot": lambda _: snapshots.pack(SNAPSHOT),
    "manifest": manifest,
}


@pytest.mark.parametrize("name", FILES)
def test_the_same_bytes_are_written(name: str, tmp_path: Path) -> None:
    written = FILES[name](tmp_path)
    if IS_WRITING:
        (GOLDEN / name).write_bytes(written)
    assert (GOLDEN / name).read_bytes() == written


def test_the_store_is_parsed() -> None:
    path = GOLDEN / "store"
    data = path.read_bytes()
    for at in fmt.HEADER_POSITIONS:
        assert fmt.parse_segment_header(data[at:], path) == SegmentHeader(PLACE, BEFORE)
    file = CheckedFile(RealFiles().open(path, writable=False), path)
    index = Index(PLACE, BEFORE)
    assert walk_store(file, index) is None
    file.close()
    assert index.pack() == (GOLDEN / "index").read_bytes()
    for sequence in (2, 3):
        mark = fmt.parse_mark(data[fmt.mark_position(sequence) :], path)
        assert mark == Mark(sequence, index.last, index.end_position, index.last.index - 1)
    assert index.last == Tip(
        47, 7, 1010, 1_700_000_000_021, parse_header(data, index.position(6))[0]
    )


def test_the_index_is_parsed() -> None:
    path = GOLDEN / "index"
    index = Index.parse(path.read_bytes(), path, keep_entries=True)
    assert index is not None
    assert (index.place, index.before, len(index)) == (PLACE, BEFORE, 7)
    assert index.runs == [(41, 6), (45, 7)]
    assert [index.kind(slot) for slot in range(7)] == [2, 1, 0, 0, 3, 7, 0]
    assert [index.base_offset(slot) for slot in range(8)] == [
        1000, 1000, 1000, 1003, 1004, 1004, 1009, 1010,
    ]  # fmt: skip


def test_the_snapshot_is_parsed() -> None:
    path = GOLDEN / "snapshot"
    assert snapshots.parse(path.read_bytes(), path) == SNAPSHOT


def test_the_manifest_is_parsed() -> None:
    state = read_twin(Reading(RealFiles(), writable=False), GOLDEN / "manifest", MANIFEST)
    assert (state.sequence, state.damages, state.stale) == (1, [], [])
    assert state.payload is not None
    parsed = Manifest.parse(state.payload)
    assert (parsed.group, parsed.generation, parsed.base) == (2, 3, BEFORE)
    assert (parsed.change, parsed.tip.index, parsed.position) == (Change.CUT, 50, 20_000)
