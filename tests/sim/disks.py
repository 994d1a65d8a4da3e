"""A reader of the tests' own: what a simulated disk holds, by the format's description alone."""

from __future__ import annotations

import json
import struct
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from crc32c import crc32c

from tests.doubles.disk import SimDisk

DATA_DIR = Path("/data")
FOLDER = DATA_DIR / "groups" / f"{2:016x}"
"""Where a node keeps its log."""
_HEADER = struct.Struct("<IIBBHIQQQQQQII")
_ENVELOPE = struct.Struct("<8sHHIII")
PREAMBLE_BYTES = 16384
_BLOCK_BYTES = 4096


class Batch(NamedTuple):
    """One batch as it lies in a store."""

    index: int  # type: ignore[assignment]  # the field, not tuple.index
    term: int
    crc: int
    next_offset: int
    data: bytes


class Promise(NamedTuple):
    """What a server may not forget."""

    term: int
    vote: str


def content_of(disk: SimDisk, number: int, *, durable: bool) -> bytes:
    """Bytes of a file: as processes see it, or as no power cut can change it if nothing of what is
    unsynced survives."""
    inode = disk.inodes[number]
    content = inode.durable if durable else inode.cached
    return bytes(content.data).ljust(min(content.size, 8 * _BLOCK_BYTES), b"\0")


def read_batches(disk: SimDisk, folder: Path, *, durable: bool = False) -> list[Batch]:
    """All batches from the oldest on, up to the first that is not whole or does not follow.

    Segments before the base that the manifest tells are void; they are deleted at leisure.
    """
    batches: list[Batch] = []
    following: int | None = None
    base = _read_base(disk, folder / "manifest", durable=durable)
    for name, number in sorted(disk.listing(folder, durable=durable).items()):
        if name.endswith(".store") and name[:20].isdigit():
            first = int(name[:20])
            if first <= base:
                continue
            if following not in {None, first}:
                break
            data = content_of(disk, number, durable=durable)
            batches += _read_store(data, first, batches[-1].crc if batches else None)
            following = batches[-1].index + 1 if batches else first
    return batches


@lru_cache(maxsize=256)  # of bytes and numbers only, and most stores are sealed: read again as is
def _read_store(data: bytes, index: int, chain: int | None) -> tuple[Batch, ...]:
    found: list[Batch] = []
    at = PREAMBLE_BYTES
    while at + _HEADER.size <= len(data):
        fields = _HEADER.unpack_from(data, at)
        crc, length, count = fields[0], fields[1], fields[5]
        end = at + _HEADER.size + length
        if (
            crc32c(data[at + 4 : at + _HEADER.size]) != crc
            or fields[6] != index
            or end > len(data)
            or crc32c(data[at + _HEADER.size : end]) != fields[12]
            or chain not in {None, fields[13]}
        ):
            break
        found.append(Batch(index, fields[7], crc, fields[8] + count, data[at:end]))
        index, chain, at = index + 1, crc, end
    return tuple(found)


def read_promise(disk: SimDisk, path: Path, *, durable: bool = True) -> Promise | None:
    """Term and vote that the hard state on a disk says; None if it says nothing."""
    copy = _read_twin(disk, path, b"PROGHARD", durable=durable)
    return None if copy is None else _promise(copy[1])


def read_saved(disk: SimDisk, path: Path) -> tuple[int, Promise]:
    """How often a hard state was saved, and what it says."""
    copy = _read_twin(disk, path, b"PROGHARD", durable=True)
    assert copy is not None
    return copy[0], _promise(copy[1])


def _promise(payload: bytes) -> Promise:
    said = json.loads(payload)
    return Promise(said["term"], said["voted_for"])


def read_floors(disk: SimDisk, path: Path) -> dict[str, list[int]]:
    """What a server has written down of others: sequence, term, index by uuid."""
    number = disk.listing(path.parent, durable=True).get(path.name)
    if number is None:
        return {}
    payload = _payload(content_of(disk, number, durable=True), b"PROGFLOO")
    floors: dict[str, list[int]] = {} if payload is None else json.loads(payload)["floors"]
    return floors


def _read_base(disk: SimDisk, path: Path, *, durable: bool) -> int:
    """The last batch before the log."""
    copy = _read_twin(disk, path, b"PROGMANI", durable=durable)
    return 0 if copy is None else int(struct.unpack_from("<QQQ", copy[1])[2])


def _read_twin(
    disk: SimDisk, path: Path, magic: bytes, *, durable: bool
) -> tuple[int, bytes] | None:
    """The newest of two copies, with its number; None if none is whole."""
    number = disk.listing(path.parent, durable=durable).get(path.name)
    if number is None:
        return None
    data = content_of(disk, number, durable=durable)
    copies = [_payload(data[at : at + _BLOCK_BYTES], magic) for at in (0, _BLOCK_BYTES)]
    found = [(int.from_bytes(copy[:8], "little"), copy[8:]) for copy in copies if copy is not None]
    return max(found, default=None)


def _payload(data: bytes, magic: bytes) -> bytes | None:
    """What is in an envelope of version 2; None if it is not whole."""
    if len(data) < _ENVELOPE.size:
        return None
    found, version, flags, length, zero, crc = _ENVELOPE.unpack_from(data)
    head = _ENVELOPE.pack(found, version, flags, length, zero, 0)
    if found != magic or not _ENVELOPE.size <= length <= len(data):
        return None
    payload = data[_ENVELOPE.size : length]
    return payload if crc32c(payload, crc32c(head)) == crc and version == 2 else None


def position_of_newest_mark(disk: SimDisk, path: Path) -> int:
    """Up to where all of a store was synced, as processes see it; 0 if no mark is whole."""
    data = content_of(disk, disk.find(path).number, durable=False)
    marks = [_payload(data[at : at + _BLOCK_BYTES], b"PROGMARK") for at in (8192, 12288)]
    newest = max((struct.unpack_from("<QQ", mark) for mark in marks if mark), default=(0, 0))
    return int(newest[1])
