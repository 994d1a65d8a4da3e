"""What command batches hold: a list of commands, each in a frame that every version can skip.

    type u16, version u8, flags u8, length u32, payload

Types 1-15 are the log's, 16-31 cursors', 32-63 queues', 64-95 the catalog's. A command that is not
known here, by its type or its version, changes a state that this version cannot compute. So it is
skipped only if whoever made it said so (MAY_BE_IGNORED); else this server ends before it takes, or
applies, the batch. What a leader appends is made of the classes below and belongs to the level that
the state has reached (see `settings`), so that no server is asked for what it cannot do.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple, TypeAlias

from proglog.batch import Buffer
from proglog.errors import CorruptionError, UnknownFormat
from proglog.replica.settings import LEVEL, Settings

MAY_BE_IGNORED = 1
_FRAME = struct.Struct("<HBBI")
_SET_START = struct.Struct("<Q")


class SetStart(NamedTuple):
    """Moves the logical start: records below the offset are gone."""

    offset: int


class SetLevel(NamedTuple):
    """All servers can do more: from here on these settings hold, unless their level is reached."""

    settings: Settings
    """They hold since the batch of the command, whatever `since` says."""


Command: TypeAlias = SetStart | SetLevel


class Known(NamedTuple):
    """One type of command."""

    version: int
    level: int
    """It is appended from this level on."""
    read: Callable[[bytes, int], Command]
    """From a payload, and the latest level that is known. Raises struct.error, UnknownFormat."""


def _read_set_start(payload: bytes, _level_max: int) -> Command:
    return SetStart(*_SET_START.unpack(payload))


def _read_set_level(payload: bytes, level_max: int) -> Command:
    return SetLevel(Settings.decode(payload, "a command", level_max))


SET_START, SET_LEVEL = 1, 2
KNOWN = {
    SET_START: Known(1, 1, _read_set_start),
    SET_LEVEL: Known(1, 1, _read_set_level),
}


def encode(commands: Iterable[Command]) -> bytes:
    """The body of a command batch of level 1."""
    return b"".join(map(_encode, commands))


def _encode(command: Command) -> bytes:
    match command:
        case SetStart(offset):
            type_, payload = SET_START, _SET_START.pack(offset)
        case SetLevel(settings):
            type_, payload = SET_LEVEL, settings.encode()
    known = KNOWN[type_]
    assert known.level == 1, "a later one needs the state to have reached its level"
    return frame(type_, known.version, 0, payload)


def frame(type_: int, version: int, flags: int, payload: bytes) -> bytes:
    """One command."""
    return _FRAME.pack(type_, version, flags, len(payload)) + payload


def decode(body: Buffer, index: int, level_max: int = LEVEL) -> list[Command]:
    """The commands of batch `index` that are known here, to a version whose latest level this is.

    Raises UnknownFormat if another one must not be skipped, CorruptionError if it is no such list:
    the checksum held, so whoever wrote it was wrong.
    """
    commands: list[Command] = []
    for type_, version, flags, payload in _frames(memoryview(body), index):
        known = KNOWN.get(type_)
        if known and (version, flags) == (known.version, 0) and known.level <= level_max:
            commands.append(_read(known, bytes(payload), index, level_max))
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


def _read(known: Known, payload: bytes, index: int, level_max: int) -> Command:
    try:
        return known.read(payload, level_max)
    except (struct.error, CorruptionError):
        raise CorruptionError(f"batch {index} holds a malformed command", index=index) from None
    except UnknownFormat as error:
        raise UnknownFormat(f"batch {index}: {error}", index=index) from None


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
