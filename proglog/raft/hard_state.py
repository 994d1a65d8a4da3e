"""Identity, term and vote: what a server must never forget, in a file of its own.

Two copies in separate 4 KiB blocks. A save writes and syncs one, then the other, so at every
moment at least one copy on disk is whole. Of two whole copies the higher sequence is the newer. One
damaged copy is rewritten from the other before anything else happens; both damaged means that this
server may have promised what it does not know any more: it must not start.
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import NamedTuple

from crc32c import crc32c

from proglog.batch import Buffer
from proglog.errors import CorruptionError
from proglog.ports import Files
from proglog.raft.messages import HardState

FILE_NAME = "hard-state"
_BLOCK_BYTES = 4096
_COPY = struct.Struct("<8sQ36s36sQ36s128sI")
_MAGIC = b"PROGHST1"
_CRC = struct.Struct("<I")


class Identity(NamedTuple):
    """Who this server is. Ids are UUIDs as text; the name is for people."""

    cluster_id: str
    uuid: str
    name: str


class _Saved(NamedTuple):
    sequence: int
    identity: Identity
    hard_state: HardState


class HardStateFile:
    """Reads once when made; afterwards only writes. All methods may wait for the disk."""

    def __init__(self, files: Files, folder: Path) -> None:
        """Opens an existing file, rewriting a damaged copy. Raises CorruptionError."""
        self._path = folder / FILE_NAME
        self._file = files.open(self._path)
        # What the disk has: in the page cache may be a copy that a failed fdatasync never brought
        # there. Before that, what kill -9 left in the cache only; never are both in flight.
        self._file.fdatasync()
        self._file.forget_cache(0)
        copies = [_parse(self._file.pread(_COPY.size, place * _BLOCK_BYTES)) for place in (0, 1)]
        whole = [copy for copy in copies if copy is not None]
        if not whole:
            self._file.close()
            raise CorruptionError(
                f"{self._path}: both copies are damaged, so this server does not know what it "
                "promised. Remove it from its cluster and start it anew with an empty directory",
                file=self._path,
                position=0,
            )
        newest = max(whole, key=lambda copy: copy.sequence)
        self._sequence = newest.sequence
        self.identity = newest.identity
        self.hard_state = newest.hard_state
        for place, copy in enumerate(copies):
            if copy != newest:
                self._write(place)

    @staticmethod
    def exists(files: Files, folder: Path) -> bool:
        return files.exists(folder / FILE_NAME)

    @staticmethod
    def create(
        files: Files, folder: Path, identity: Identity, hard_state: HardState
    ) -> HardStateFile:
        """Makes the file of a new server, durably; it appears whole or not at all."""
        temporary = folder / (FILE_NAME + ".tmp")
        if files.exists(temporary):
            files.unlink(temporary)
        file = files.create(temporary)
        packed = _pack(_Saved(0, identity, hard_state))
        file.pwritev([packed.ljust(_BLOCK_BYTES, b"\0"), packed.ljust(_BLOCK_BYTES, b"\0")], 0)
        file.fdatasync()
        file.close()
        files.rename(temporary, folder / FILE_NAME)
        files.sync_directory(folder)
        return HardStateFile(files, folder)

    def save(self, hard_state: HardState, cluster_id: str | None = None) -> None:
        """Makes a new term and vote durable. Raises OSError."""
        if cluster_id is not None:
            self.identity = self.identity._replace(cluster_id=cluster_id)
        self.hard_state = hard_state
        self._sequence += 1
        for place in (0, 1):
            self._write(place)

    def _write(self, place: int) -> None:
        packed = _pack(_Saved(self._sequence, self.identity, self.hard_state))
        self._file.pwritev([packed], place * _BLOCK_BYTES)
        self._file.fdatasync()

    def close(self) -> None:
        self._file.close()


def _pack(saved: _Saved) -> bytes:
    identity, hard_state = saved.identity, saved.hard_state
    packed = _COPY.pack(
        _MAGIC,
        saved.sequence,
        identity.cluster_id.encode("ascii"),
        identity.uuid.encode("ascii"),
        hard_state.term,
        (hard_state.voted_for or "").encode("ascii"),
        identity.name.encode("utf-8"),
        0,
    )
    return packed[:-4] + _CRC.pack(crc32c(packed[:-4]))


def _parse(data: Buffer) -> _Saved | None:
    """The copy, or None if it is damaged."""
    if len(data) < _COPY.size:
        return None
    magic, sequence, cluster_id, uuid, term, vote, name, crc = _COPY.unpack(data)
    if magic != _MAGIC or crc32c(memoryview(data)[:-4]) != crc:
        return None
    identity = Identity(_text(cluster_id), _text(uuid), _text(name))
    return _Saved(sequence, identity, HardState(term, _text(vote) or None))


def _text(padded: bytes) -> str:
    return padded.rstrip(b"\0").decode("utf-8")
