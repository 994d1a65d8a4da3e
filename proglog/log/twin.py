"""A small file that keeps two copies of itself, for what must survive any one lost block.

Two copies in 4 KiB blocks of their own. A save writes and syncs one, then the other, so at every
moment at least one copy on disk is whole. Of two whole copies the higher sequence is the newer. A
copy that is damaged or older is rewritten before anything else happens: a save that was interrupted
has been answered to nobody, and may be finished; but it must not be undone later by one lost block.
"""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any, NamedTuple

from proglog.batch import Buffer
from proglog.errors import UnknownFormat
from proglog.log.envelope import HEAD_BYTES, seal, unseal
from proglog.log.reading import Damage, Reading
from proglog.ports import File, Files, write_whole

BLOCK_BYTES = 4096
PLACES = (0, BLOCK_BYTES)
_SEQUENCE = struct.Struct("<Q")
PAYLOAD_BYTES_MAX = BLOCK_BYTES - HEAD_BYTES - _SEQUENCE.size


class TwinState(NamedTuple):
    """What a file holds: the newest whole copy, if any, and what is wrong with the copies."""

    sequence: int
    payload: bytes | None
    damages: list[Damage]
    stale: list[int]
    """Places of the copies that are to be written anew."""


def read_twin(reading: Reading, path: Path, magic: bytes) -> TwinState:
    """Looks at both copies. Raises UnknownFormat."""
    opened = reading.open(path)
    if isinstance(opened, Damage):
        return TwinState(0, None, [opened], list(PLACES))
    try:
        read = {place: opened.read_upto(BLOCK_BYTES, place) for place in PLACES}
    finally:
        opened.close()
    damages: list[Damage] = []
    copies: dict[int, tuple[int, bytes]] = {}
    for place, data in read.items():
        copy = data if isinstance(data, Damage) else _parse(data, magic, path)
        if copy is None:
            copy = Damage(path, place, "the checksum of this copy does not match")
        if isinstance(copy, Damage):
            damages.append(copy)
        else:
            copies[place] = copy
    if not copies:
        return TwinState(0, None, damages, list(PLACES))
    newest = max(copies.values())
    stale = [place for place in PLACES if copies.get(place) != newest]
    return TwinState(*newest, damages, stale)


def _parse(data: Buffer, magic: bytes, path: Path) -> tuple[int, bytes] | None:
    payload = unseal(data, magic, path)
    if payload is None or len(payload) < _SEQUENCE.size:
        return None
    return _SEQUENCE.unpack_from(payload)[0], payload[_SEQUENCE.size :]


def _pack(magic: bytes, sequence: int, payload: bytes) -> bytes:
    assert len(payload) <= PAYLOAD_BYTES_MAX
    return seal(magic, _SEQUENCE.pack(sequence) + payload).ljust(BLOCK_BYTES, b"\0")


class TwinFile:
    """Such a file, open for saving. All methods may wait for the disk and raise OSError."""

    def __init__(self, files: Files, path: Path, magic: bytes, state: TwinState) -> None:
        """Writes again what `state`, just read from `path`, says is stale."""
        assert state.payload is not None, "a file without a whole copy is nobody's to open"
        self._magic = magic
        self._sequence = state.sequence
        self._file: File = files.open(path)
        try:
            for place in state.stale:
                self._write(place, state.payload)
        except BaseException:
            self._file.close()
            raise

    @classmethod
    def create(cls, files: Files, path: Path, magic: bytes, payload: bytes) -> TwinFile:
        """Makes the file, durably; it appears whole or not at all, and replaces another one."""
        write_whole(files, path, _pack(magic, 0, payload) * len(PLACES))
        return cls(files, path, magic, TwinState(0, payload, [], []))

    def save(self, payload: bytes) -> int:
        """Makes a new content durable, in both copies; its sequence. After an error nothing is
        known of it."""
        self._sequence += 1
        for place in PLACES:
            self._write(place, payload)
        return self._sequence

    def _write(self, place: int, payload: bytes) -> None:
        self._file.pwritev([_pack(self._magic, self._sequence, payload)], place)
        self._file.fdatasync()

    def close(self) -> None:
        self._file.close()


# --- a payload of named members ------------------------------------------------------------------


def pack_members(members: dict[str, Any]) -> bytes:
    """As JSON in ASCII, keys sorted."""
    return json.dumps(members, separators=(",", ":"), sort_keys=True).encode("ascii")


def parse_members(payload: bytes, path: Path) -> dict[str, Any]:
    """All members, also those that a newer version added: they are kept. Raises UnknownFormat."""
    members: dict[str, Any] = json.loads(payload)
    if members["journal"]:
        raise UnknownFormat.of(path, f"2 with journal {members['journal']}")
    return members
