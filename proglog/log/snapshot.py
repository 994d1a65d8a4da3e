"""Snapshots: the replicated state exactly after one batch. The engine does not look into it.

A snapshot file is a fixed head (magic, flags, tip, length, crc) and the state. It appears whole or
not at all: written under another name, synced, renamed, its folder synced.
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import NamedTuple

from crc32c import crc32c

from proglog import limits
from proglog.log.format import Tip
from proglog.ports import Files

_HEAD = struct.Struct("<8sIQQQQIII")
_MAGIC = b"PROGSNP1"
_RESETS = 1
PREFIX = "snapshot-"


class Snapshot(NamedTuple):
    """`state` after the batch of `tip`. `resets`: the log is to begin anew behind it."""

    tip: Tip
    state: bytes
    resets: bool = False


def snapshot_path(folder: Path, index: int) -> Path:
    return folder / f"{PREFIX}{index:020d}"


def pack(snapshot: Snapshot) -> bytes:
    flags = _RESETS if snapshot.resets else 0
    size = len(snapshot.state)
    assert size <= limits.snapshot_bytes_max
    head = _HEAD.pack(_MAGIC, flags, *snapshot.tip, size, 0)
    crc = crc32c(snapshot.state, crc32c(head))
    return _HEAD.pack(_MAGIC, flags, *snapshot.tip, size, crc) + snapshot.state


def parse(data: bytes) -> Snapshot | None:
    """The snapshot, or None if these bytes are not a whole one."""
    if len(data) < _HEAD.size:
        return None
    magic, flags, *tip, size, crc = _HEAD.unpack_from(data)
    state = data[_HEAD.size :]
    if magic != _MAGIC or size != len(state):
        return None
    head = _HEAD.pack(magic, flags, *tip, size, 0)
    if crc32c(state, crc32c(head)) != crc:
        return None
    return Snapshot(Tip._make(tip), state, flags == _RESETS)


def write(files: Files, folder: Path, snapshot: Snapshot) -> None:
    """Makes a snapshot durable. Raises OSError; then it is as if nothing had been done."""
    path = snapshot_path(folder, snapshot.tip.index)
    write_whole(files, path, pack(snapshot))


def write_whole(files: Files, path: Path, data: bytes) -> None:
    """Replaces a file so that after a crash it is either the old one or the new one, whole."""
    temporary = path.with_name(path.name + ".tmp")
    if files.exists(temporary):
        files.unlink(temporary)
    file = files.create(temporary)
    try:
        file.pwritev([data], 0)
        file.fdatasync()
    except OSError:
        file.close()
        files.unlink(temporary)
        raise
    file.close()
    files.rename(temporary, path)
    files.sync_directory(path.parent)


def read(files: Files, path: Path) -> Snapshot | None:
    """The snapshot in a file whose name must agree with it."""
    file = files.open(path)
    try:
        size = file.size()
        if size > limits.snapshot_bytes_max + _HEAD.size:
            return None
        snapshot = parse(file.pread(size, 0))
    finally:
        file.close()
    named = (
        snapshot is not None and path.name == snapshot_path(path.parent, snapshot.tip.index).name
    )
    return snapshot if named else None
