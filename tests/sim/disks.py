"""A reader of the tests' own: what a simulated disk holds, by the format's description alone."""

from __future__ import annotations

import struct
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from crc32c import crc32c

from proglog.simulation.disk import SimDisk

FOLDER = Path("/data/logs/default")
"""Where a node keeps its log."""
_HEADER = struct.Struct("<IIBBHIQQQQQQII")
_HARD_STATE = struct.Struct("<8sQ36s36sQ36s128sI")
_PREAMBLE_BYTES = 4096
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
    """All batches from the oldest on, up to the first that is not whole or does not follow."""
    batches: list[Batch] = []
    following: int | None = None
    for name, number in sorted(disk.listing(folder, durable=durable).items()):
        if name.endswith(".store") and name[:20].isdigit():
            first = int(name[:20])
            if following not in {None, first}:
                break
            data = content_of(disk, number, durable=durable)
            batches += _read_store(data, first, batches[-1].crc if batches else None)
            following = batches[-1].index + 1 if batches else first
    return batches


@lru_cache(maxsize=256)  # of bytes and numbers only, and most stores are sealed: read again as is
def _read_store(data: bytes, index: int, chain: int | None) -> tuple[Batch, ...]:
    found: list[Batch] = []
    at = _PREAMBLE_BYTES
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
    number = disk.listing(path.parent, durable=durable).get(path.name)
    if number is None:
        return None
    data = content_of(disk, number, durable=durable)
    best = (-1, Promise(0, ""))
    for place in (0, _BLOCK_BYTES):
        copy = data[place : place + _HARD_STATE.size]
        if len(copy) == _HARD_STATE.size and crc32c(copy[:-4]) == int.from_bytes(
            copy[-4:], "little"
        ):
            fields = _HARD_STATE.unpack(copy)
            promise = Promise(fields[4], fields[5].rstrip(b"\0").decode())
            best = max(best, (fields[1], promise))
    return best[1] if best[0] >= 0 else None
