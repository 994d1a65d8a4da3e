"""A reader of stores that shares no code with the log engine: from the tables of its DESIGN.md."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path

from crc32c import crc32c

_BATCH = struct.Struct("<IIBBHIQQQQQQII")
_ENVELOPE = struct.Struct("<8sHHIII")
_SEGMENT = struct.Struct("<QQQQQQII")
_MARK = struct.Struct("<QQQQQQQIIQ")
_STORE_HEAD_BYTES = 16384
_HEADERS = (0, 4096)
_MARKS = (8192, 12288)
DATA = 0


@dataclass(frozen=True, slots=True)
class StoredBatch:
    index: int
    term: int
    base_offset: int
    count: int
    kind: int
    raw: bytes

    @property
    def values(self) -> list[bytes]:
        """Of an uncompressed batch without further columns, as the tests' load makes them."""
        if self.kind != DATA:
            return []
        assert self.raw[9] == 0, "the tests' batches are not compressed"
        assert self.raw[10:12] == b"\0\0", "the tests' records have no further columns"
        sizes = struct.unpack_from(f"<{self.count}I", self.raw, _BATCH.size)
        position = _BATCH.size + 4 * self.count
        values = []
        for size in sizes:
            values.append(self.raw[position : position + size])
            position += size
        assert position == len(self.raw)
        return values


@dataclass(frozen=True, slots=True)
class Store:
    """A directory of a log that nobody writes to."""

    batches: list[StoredBatch]
    commit: int
    """The commit index that the newest mark speaks of."""

    @property
    def base(self) -> int:
        """Index of the first batch."""
        return self.batches[0].index if self.batches else 1


def read_store(data_dir: Path) -> Store:
    """All batches of a node's log, every byte checked. Raises AssertionError."""
    batches: list[StoredBatch] = []
    commit = 0
    chain = None
    for path in sorted((data_dir / "groups" / f"{2:016x}").glob("0*.store")):
        data = path.read_bytes()
        header, copy = (_payload(data, at, b"PROGSEGM") for at in _HEADERS)
        assert header is not None, f"{path}: segment header"
        assert copy == header, f"{path}: copy of the segment header"
        group, _generation, index, _term, offset, _time, before, zero = _SEGMENT.unpack(header)
        assert (group, zero) == (2, 0)
        assert int(path.stem) == index + 1
        if chain is not None:
            assert (index, chain) == (batches[-1].index, before), f"{path} does not follow"
        commit = max(commit, _commit_of(data))
        chain = _read_batches(path, data, index + 1, offset, before, batches)
    return Store(batches, commit)


def _payload(data: bytes, position: int, magic: bytes) -> bytes | None:
    """What is in the envelope at a position; None if it is not whole."""
    found, version, flags, length, zero, crc = _ENVELOPE.unpack_from(data, position)
    head = _ENVELOPE.pack(found, version, flags, length, zero, 0)
    payload = data[position + _ENVELOPE.size : position + length]
    if (found, version, flags, zero) != (magic, 2, 0, 0) or crc32c(payload, crc32c(head)) != crc:
        return None
    return payload


def _commit_of(data: bytes) -> int:
    newest = (-1, 0)
    for position in _MARKS:
        mark = _payload(data, position, b"PROGMARK")
        if mark is not None:
            sequence, _end, commit, *_tip, flags, journal = _MARK.unpack(mark)
            assert (flags, journal) == (0, 0)
            newest = max(newest, (sequence, commit))
    return newest[1]


def _read_batches(
    path: Path, data: bytes, index: int, offset: int, chain: int, batches: list[StoredBatch]
) -> int:
    """Appends the batches of one file; the chain behind the last of them."""
    position = _STORE_HEAD_BYTES
    while position + _BATCH.size <= len(data):
        fields = _BATCH.unpack_from(data, position)
        header_crc, length, kind, _codec, _columns, count = fields[:6]
        if header_crc == 0 and length == 0:
            break
        where = f"{path} at {position}"
        raw = data[position : position + _BATCH.size + length]
        assert header_crc == crc32c(raw[4 : _BATCH.size]), f"{where}: header"
        assert fields[12] == crc32c(raw[_BATCH.size :]), f"{where}: body"
        assert fields[13] == chain, f"{where}: chain"
        assert fields[6] == index, f"{where}: index {fields[6]}, expected {index}"
        assert fields[8] == offset, f"{where}: offset {fields[8]}, expected {offset}"
        batches.append(StoredBatch(index, fields[7], offset, count, kind, raw))
        chain, index, offset = header_crc, index + 1, offset + count
        position += len(raw)
    return chain


def check_equal(stores: list[Store], commit: int) -> list[StoredBatch]:
    """All stores hold the same bytes from the highest base up to `commit`; those batches."""
    base = max(store.base for store in stores)
    parts = [
        [batch for batch in store.batches if base <= batch.index <= commit] for store in stores
    ]
    assert len(parts[0]) == commit - base + 1, "a store ends before what is committed"
    for part in parts[1:]:
        assert [batch.raw for batch in part] == [batch.raw for batch in parts[0]]
    return parts[0]
