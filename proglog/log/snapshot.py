"""Snapshots: the replicated state exactly after one batch. The engine does not look into it.

A snapshot file is a head in an envelope, and the state. It appears whole or not at all: written
under another name, synced, renamed, its folder synced.
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import NamedTuple

from crc32c import crc32c

from proglog import limits
from proglog.batch import Buffer
from proglog.log.envelope import HEAD_BYTES, SNAPSHOT, seal, unseal
from proglog.log.format import Tip
from proglog.log.names import snapshot_name, snapshot_path
from proglog.log.reading import Damage, Reading
from proglog.ports import Files, write_whole

_HEAD = struct.Struct("<QQQQIIQ")
HEAD_SIZE = HEAD_BYTES + _HEAD.size


class Snapshot(NamedTuple):
    """`state` after the batch of `tip`."""

    tip: Tip
    state: bytes


def pack(snapshot: Snapshot) -> bytes:
    size = len(snapshot.state)
    assert size <= limits.snapshot_bytes_max
    return seal(SNAPSHOT, _HEAD.pack(*snapshot.tip, crc32c(snapshot.state), size)) + snapshot.state


def parse(data: Buffer, path: Path) -> Snapshot | None:
    """The snapshot, or None if these bytes are not a whole one. Raises UnknownFormat."""
    payload = unseal(data, SNAPSHOT, path)
    if payload is None or len(payload) != _HEAD.size:
        return None
    *tip, crc, size = _HEAD.unpack(payload)
    state = bytes(memoryview(data)[HEAD_SIZE:])
    if len(state) != size or crc32c(state) != crc:
        return None
    return Snapshot(Tip._make(tip), state)


def write(files: Files, folder: Path, snapshot: Snapshot) -> None:
    """Makes a snapshot durable. Raises OSError; then it is as if nothing had been done."""
    write_whole(files, snapshot_path(folder, snapshot.tip.index), pack(snapshot))


def obsolete(indexes: set[int]) -> set[int]:
    """Of the snapshots of a log those that nobody needs: all but the newest, which the next start
    decodes, and the oldest, which can stand in for it."""
    return set(sorted(indexes)[1:-1])


def read(reading: Reading, path: Path) -> Snapshot | Damage:
    """The snapshot in a file whose name must agree with it. Raises UnknownFormat."""
    data = reading.read_whole(path, limits.snapshot_bytes_max + HEAD_SIZE)
    if isinstance(data, Damage):
        return data
    snapshot = parse(data, path)
    if snapshot is None or path.name != snapshot_name(snapshot.tip.index):
        return Damage(path, 0, "the checksum of the snapshot does not match")
    return snapshot
