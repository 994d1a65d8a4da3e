"""What travels between nodes, as bytes: a connection begins with the byte 0x01 and is frames then.

A frame is length u32 (of its payload), type u8, flags u8, reserved u16, group u64, payload; all
numbers are little-endian. Group 0 is the node itself, any other number one of its logs, which alone
knows what is in its frames. Flags and what is reserved are sent as 0 and not looked at.
"""

from __future__ import annotations

import enum
import struct

from proglog import limits
from proglog.batch import HEADER_BYTES, Buffer

PROLOGUE = b"\x01"
_HEADER = struct.Struct("<IBBHQ")
NODE = 0
"""The group of the frames that are about the connection."""
SKIPPABLE = 128
"""Types from here on are skipped by who does not know them; others end the connection."""
GREETING_BYTES_MAX = 4096
FRAME_BYTES_MAX = limits.snapshot_bytes_max + 4096
assert limits.batch_bytes_max + HEADER_BYTES < FRAME_BYTES_MAX


class FrameError(Exception):
    """A peer sent what no node of this version sends."""


class UnknownType(FrameError):
    """A frame of a later version."""


class Lane(enum.Enum):
    """What a connection is for."""

    BULK = "bulk"
    CONTROL = "control"


class Type(enum.IntEnum):
    """The types of all frames. 18 and 19 (BEATS), 24 (ALIVE), 25 (SLEEP), 26 (WAKE) are kept for
    many logs in one node."""

    # About the connection.
    HELLO = 1
    WELCOME = 2
    REFUSAL = 3
    PING = 4
    PONG = 5
    # Of a log.
    STAND = 9
    """The first of its group on every connection: what the sender states of itself."""
    APPEND = 10
    APPEND_RESPONSE = 11
    HEARTBEAT = 12
    HEARTBEAT_RESPONSE = 13
    VOTE = 14
    VOTE_RESPONSE = 15
    INSTALL = 16
    TIMEOUT_NOW = 17
    FETCH = 20
    FETCHED = 21
    BUSY = 22
    """Appends had no room and were not taken."""
    NO_GROUP = 23
    """The answer to a frame for a log that is not there; its group is that of the frame."""


def frame(type_: Type, group: int, *parts: Buffer) -> list[Buffer]:
    """The parts of one frame."""
    return [_HEADER.pack(sum(map(len, parts)), type_, 0, 0, group), *parts]


class FrameReader:
    """Cuts a stream into frames. Bounded by the largest frame allowed."""

    def __init__(self) -> None:
        self._whole: memoryview = memoryview(b"")
        """What arrived last, and begins with a frame: its frames are views of it."""
        self._partial = bytearray()
        """What arrived in more than one piece; if there is any, there is nothing in `_whole`."""
        self.bytes_max = GREETING_BYTES_MAX
        """Largest payload that is accepted; raised once the peer is known."""

    def feed(self, data: bytes) -> None:
        if self._partial:
            self._partial += data
        else:
            self._whole = memoryview(data)

    def next(self) -> tuple[int, int, memoryview] | None:
        """Type, group and payload of the next whole frame. Raises FrameError."""
        buffer: bytearray | memoryview = self._partial or self._whole
        if len(buffer) < _HEADER.size:
            self._keep_rest()
            return None
        size, type_, _flags, _reserved, group = _HEADER.unpack_from(buffer)
        if size > self.bytes_max:
            raise FrameError(f"a frame of {size} bytes is not allowed here")
        end = _HEADER.size + size
        if len(buffer) < end:
            self._keep_rest()
            return None
        if isinstance(buffer, memoryview):
            payload, self._whole = buffer[_HEADER.size : end], buffer[end:]
        else:
            payload = memoryview(bytes(memoryview(buffer)[_HEADER.size : end]))
            del buffer[:end]
        return type_, group, payload

    def _keep_rest(self) -> None:
        if self._whole:
            self._partial += self._whole
            self._whole = memoryview(b"")
