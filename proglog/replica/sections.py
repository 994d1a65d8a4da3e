"""How the replicated state lies in a snapshot: sections, each in a frame and with its checksum.

    tag u16, flags u16, length u64, crc32c u32 (of the payload), payload

in ascending order of tags. A section that is not known here is refused, unless whoever wrote it
said that it may be ignored (MAY_BE_IGNORED). It is skipped then, not kept: this version does not
apply what changes it, and a state without it is better than one that is out of date.
"""

from __future__ import annotations

import enum
import struct
from collections.abc import Mapping

from crc32c import crc32c

from proglog.errors import CorruptionError, UnknownFormat

MAY_BE_IGNORED = 1
_FRAME = struct.Struct("<HHQI")


class Tag(enum.IntEnum):
    """What a section is about. Cursors, queues and the catalog are to come."""

    LOG = 1
    CONFIGURATION = 2
    PRODUCERS = 3
    SETTINGS = 4


def frame(tag: int, flags: int, payload: bytes) -> bytes:
    """One section."""
    return _FRAME.pack(tag, flags, len(payload), crc32c(payload)) + payload


def join(sections: Mapping[Tag, bytes]) -> bytes:
    """All sections, in the one order that they have."""
    return b"".join(frame(tag, 0, sections[tag]) for tag in Tag)


def split(data: bytes, source: object) -> dict[Tag, bytes]:
    """The sections that are known here: all of `Tag`.

    Raises UnknownFormat if another one must not be ignored, CorruptionError for what is no state.
    `source` is where it comes from.
    """
    found: dict[Tag, bytes] = {}
    at = before = 0
    while at < len(data):
        if len(data) - at < _FRAME.size:
            raise CorruptionError(f"the state in {source} is cut short", file=source, position=at)
        tag, flags, length, crc = _FRAME.unpack_from(data, at)
        start, at = at, at + _FRAME.size + length
        payload = data[start + _FRAME.size : at]
        if len(payload) != length or crc32c(payload) != crc or tag <= before:
            raise CorruptionError(
                f"section {tag} of the state in {source} is damaged", file=source, position=start
            )
        before = tag
        if tag in Tag and not flags:
            found[Tag(tag)] = payload
        elif flags != MAY_BE_IGNORED:
            raise UnknownFormat(
                f"the state in {source} has a section {tag} with flags {flags}, which this version "
                "of Proglog does not know. Nothing was changed; use the version that wrote it, or "
                "a newer one",
                file=source,
                section=tag,
            )
    for tag in Tag:
        if tag not in found:
            raise CorruptionError(f"the state in {source} has no section {tag}", file=source)
    return found
