"""The frame that every structure on disk stands in, and the file that keeps two copies of itself.

An envelope is the same in every version of every kind of file, for ever: so a structure that a
newer version wrote is told from one that the disk has damaged. See DESIGN.md, "Envelope".
"""

from __future__ import annotations

import struct
from pathlib import Path

from crc32c import crc32c

from proglog.batch import Buffer
from proglog.errors import UnknownFormat

HEAD_BYTES = 24
_HEAD = struct.Struct("<8sHHIII")
assert _HEAD.size == HEAD_BYTES
VERSION = 2
"""Of all structures. 1 was never released; there is no way from it."""

SEGMENT = b"PROGSEGM"
MARK = b"PROGMARK"
INDEX = b"PROGINDX"
SNAPSHOT = b"PROGSNAP"
MANIFEST = b"PROGMANI"
HARD_STATE = b"PROGHARD"
NODE = b"PROGNODE"
FLOORS = b"PROGFLOO"
_VERSION_1 = (b"PROGLOG1", b"PROGIDX1", b"PROGSNP1", b"PROGHST1")


def seal(magic: bytes, payload: bytes) -> bytes:
    """`payload` in an envelope."""
    length = HEAD_BYTES + len(payload)
    head = _HEAD.pack(magic, VERSION, 0, length, 0, 0)
    crc = crc32c(payload, crc32c(head))
    return _HEAD.pack(magic, VERSION, 0, length, 0, crc) + payload


def unseal(data: Buffer, magic: bytes, path: Path) -> bytes | None:
    """The payload of the envelope at the start of `data`; None if it is damaged.

    Raises UnknownFormat, naming `path`, where it is whole but of another version.
    """
    if len(data) < HEAD_BYTES:
        return None
    found, version, flags, length, zero, crc = _HEAD.unpack_from(data)
    if found in _VERSION_1:
        raise UnknownFormat.of(path, "1, which was never released")
    if found != magic or not HEAD_BYTES <= length <= len(data):
        return None
    payload = bytes(memoryview(data)[HEAD_BYTES:length])
    if crc32c(payload, crc32c(_HEAD.pack(found, version, flags, length, zero, 0))) != crc:
        return None
    if (version, flags, zero) != (VERSION, 0, 0):
        raise UnknownFormat.of(path, str(version))
    return payload
