"""What command batches hold: a list of commands, each in a frame that every version can skip.

    type u16, version u8, flags u8, length u32, payload

Types 1-15 are the log's, 16-31 cursors', 32-63 queues', 64-95 the catalog's. A command that is not
known here, by its type or its version, changes a state that this version cannot compute. So it is
skipped only if whoever made it said so (MAY_BE_IGNORED); else this replica ends before it. What a
leader appends is made of the classes below, so it never appends what it cannot read.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from proglog.batch import Buffer
from proglog.errors import CorruptionError, UnknownFormat

MAY_BE_IGNORED = 1
_FRAME = struct.Struct("<HBBI")
_SET_START = struct.Struct("<Q")


class SetStart(NamedTuple):
    """Moves the logical start: records below the offset are gone."""

    offset: int


SET_START, _SET_START_VERSION = 1, 1


def encode(commands: Iterable[SetStart]) -> bytes:
    """The body of a command batch."""
    return b"".join(
        frame(SET_START, _SET_START_VERSION, 0, _SET_START.pack(command.offset))
        for command in commands
    )


def frame(type_: int, version: int, flags: int, payload: bytes) -> bytes:
    """One command."""
    return _FRAME.pack(type_, version, flags, len(payload)) + payload


def decode(body: Buffer, index: int) -> list[SetStart]:
    """The commands of batch `index` that are known here.

    Raises UnknownFormat if another one must not be skipped, CorruptionError if it is no such list:
    the checksum held, so whoever wrote it was wrong.
    """
    commands: list[SetStart] = []
    for type_, version, flags, payload in _frames(memoryview(body), index):
        if (type_, version, flags) == (SET_START, _SET_START_VERSION, 0):
            if len(payload) != _SET_START.size:
                raise CorruptionError(f"batch {index} holds a malformed command", index=index)
            commands.append(SetStart(*_SET_START.unpack(payload)))
        elif flags != MAY_BE_IGNORED:
            raise UnknownFormat(
                f"batch {index} holds command {type_} in version {version}, which this version of "
                f"Proglog does not know. This server stays at batch {index - 1}: start it with "
                f"the version of the leader that made batch {index}, or a newer one",
                index=index,
                command=type_,
                version=version,
            )
    return commands


def _frames(view: memoryview, index: int) -> Iterator[tuple[int, int, int, memoryview]]:
    at = 0
    while at < len(view):
        if len(view) - at < _FRAME.size:
            raise CorruptionError(f"batch {index} holds a command that is cut short", index=index)
        type_, version, flags, length = _FRAME.unpack_from(view, at)
        at += _FRAME.size
        payload = view[at : at + length]
        if len(payload) != length:
            raise CorruptionError(f"batch {index} holds a command that is cut short", index=index)
        yield type_, version, flags, payload
        at += length
