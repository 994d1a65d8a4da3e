"""What servers say to each other, as bytes.

A connection begins with the byte 0x01 and a Hello of whoever dialled; the other answers Welcome or
Refusal. From then on it carries frames one way, from the dialler: length u32, type u8, payload.
Each pair of servers has two such connections each way: *bulk* for appends and snapshots, *control*
for everything small, so that a heartbeat never queues behind a megabyte.

Both uuids are settled when the connection begins, so messages do not repeat them. Batches travel as
they are stored. All numbers are little-endian; every decoder raises FrameError and nothing else.
"""

from __future__ import annotations

import enum
import json
import struct
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from proglog import limits
from proglog.batch import HEADER_BYTES, BadBatch, Buffer, check_stored_body, parse_header
from proglog.errors import UnknownFormat
from proglog.log import snapshot as snapshots
from proglog.log.format import Tip
from proglog.log.snapshot import Snapshot
from proglog.raft.driver import ReceivedBatch
from proglog.raft.messages import (
    AppendRequest,
    AppendResponse,
    Heartbeat,
    HeartbeatResponse,
    InstallSnapshot,
    Message,
    TimeoutNow,
    VoteRequest,
    VoteResponse,
)

PROLOGUE = b"\x01"
VERSION = 1
_LENGTH = struct.Struct("<I")
_HELLO_BYTES_MAX = 4096


class FrameError(Exception):
    """A peer sent what no server of this version sends."""


class Lane(enum.Enum):
    """What a connection is for."""

    BULK = "bulk"
    CONTROL = "control"


class Type(enum.IntEnum):
    """The types of frames."""

    HELLO = 1
    WELCOME = 2
    REFUSAL = 3
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


_APPEND = struct.Struct("<QQQQQ")
_PLAIN: dict[Type, tuple[type[Message], struct.Struct]] = {
    Type.APPEND_RESPONSE: (AppendResponse, struct.Struct("<QQ?QQ")),
    Type.HEARTBEAT: (Heartbeat, struct.Struct("<QQQ")),
    Type.HEARTBEAT_RESPONSE: (HeartbeatResponse, struct.Struct("<QQ")),
    Type.VOTE: (VoteRequest, struct.Struct("<QQQ??")),
    Type.VOTE_RESPONSE: (VoteResponse, struct.Struct("<Q??")),
    Type.TIMEOUT_NOW: (TimeoutNow, struct.Struct("<Q")),
}
_TYPE_OF = {cls: (type_, packer) for type_, (cls, packer) in _PLAIN.items()}
_INSTALL = struct.Struct("<QQQ")
_FETCH = struct.Struct("<QQ")


class Hello(NamedTuple):
    """Who dials whom, for what. `cluster_id` is empty while the sender belongs to none."""

    cluster_id: str
    log_id: str
    sender: str
    sender_name: str
    sender_addr: str
    to: str
    lane: str


class Welcome(NamedTuple):
    """Who answered."""

    cluster_id: str
    uuid: str


def frame(type_: Type, *parts: Buffer) -> list[Buffer]:
    """The parts of one frame."""
    size = 1 + sum(map(len, parts))
    return [_LENGTH.pack(size) + bytes((type_,)), *parts]


# --- the beginning -------------------------------------------------------------------------------


def encode_hello(hello: Hello) -> list[Buffer]:
    return frame(Type.HELLO, json.dumps({"version": VERSION, **hello._asdict()}).encode())


def encode_welcome(welcome: Welcome) -> list[Buffer]:
    return frame(Type.WELCOME, json.dumps(welcome._asdict()).encode())


def encode_refusal(why: str) -> list[Buffer]:
    return frame(Type.REFUSAL, json.dumps({"why": why}).encode())


def decode_hello(payload: Buffer) -> Hello:
    fields = _texts(payload, "version", *Hello._fields)
    if fields.pop("version") != str(VERSION):
        raise FrameError("the peer speaks another version of the protocol")
    return Hello(**fields)


def decode_welcome(payload: Buffer) -> Welcome:
    return Welcome(**_texts(payload, *Welcome._fields))


def decode_refusal(payload: Buffer) -> str:
    return _texts(payload, "why")["why"]


def _texts(payload: Buffer, *names: str) -> dict[str, str]:
    if len(payload) > _HELLO_BYTES_MAX:
        raise FrameError(f"a greeting of {len(payload)} bytes is too long")
    try:
        document = json.loads(bytes(payload))
        return {name: str(document[name])[:512] for name in names}
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise FrameError(f"malformed greeting: {error}") from None


# --- messages ------------------------------------------------------------------------------------


def encode(message: Message) -> list[Buffer]:
    """A message that brings nothing with it."""
    type_, packer = _TYPE_OF[type(message)]
    return frame(type_, packer.pack(*message[2:]))


def encode_append(request: AppendRequest, batches: Sequence[Buffer]) -> list[Buffer]:
    """An append and the stored batches of its range."""
    fields = _APPEND.pack(
        request.term, request.prev_index, request.prev_term, request.last_index, request.commit
    )
    return frame(Type.APPEND, fields, *batches)


def encode_install(request: InstallSnapshot, snapshot: Snapshot) -> list[Buffer]:
    fields = _INSTALL.pack(request.term, request.index, request.snapshot_term)
    return frame(Type.INSTALL, fields, snapshots.pack(snapshot))


def decode(type_: int, payload: Buffer, sender: str, to: str) -> Message:
    """A message that brings nothing with it. Raises FrameError."""
    try:
        cls, packer = _PLAIN[Type(type_)]
        make: Callable[..., Any] = cls
        return make(sender, to, *packer.unpack(payload))  # type: ignore[no-any-return]  # by table
    except (ValueError, KeyError, struct.error) as error:
        raise FrameError(f"malformed frame of type {type_}: {error}") from None


def decode_append(
    payload: memoryview, sender: str, to: str
) -> tuple[AppendRequest, list[ReceivedBatch]]:
    """An append and its batches, each checked whole, and that they are those of its range."""
    try:
        request = AppendRequest(sender, to, *_APPEND.unpack_from(payload))
        received = _batches(payload[_APPEND.size :], request.prev_index + 1)
    except (struct.error, BadBatch) as error:
        raise FrameError(f"malformed append: {error}") from None
    if request.prev_index + len(received) != request.last_index:
        raise FrameError(f"an append up to {request.last_index} has {len(received)} batches")
    if received and received[-1].header.term > request.term:
        raise FrameError(f"an append of term {request.term} has batches of a later one")
    return request, received


def _batches(data: memoryview, first: int | None) -> list[ReceivedBatch]:
    """The batches back to back in `data`, the first of which is batch `first`. Raises BadBatch."""
    received: list[ReceivedBatch] = []
    at, index, chain = 0, first, None
    while at < len(data):
        header = parse_header(data, at)
        end = at + header.size
        check_stored_body(header, data[at + HEADER_BYTES : end])
        if index not in {None, header.index} or chain not in {None, header.chain}:
            raise BadBatch(f"batch {header.index} does not follow the one before")
        received.append(ReceivedBatch(header, data[at:end]))
        at, index, chain = end, header.index + 1, Tip.after(header).chain
    return received


def decode_install(payload: memoryview, sender: str, to: str) -> tuple[InstallSnapshot, Snapshot]:
    """An offer of a snapshot, and the snapshot; the configuration is not filled in yet."""
    if len(payload) < _INSTALL.size:
        raise FrameError("malformed snapshot: cut short")
    request = InstallSnapshot(sender, to, *_INSTALL.unpack_from(payload))
    try:
        snapshot = snapshots.parse(payload[_INSTALL.size :], Path("a snapshot from a peer"))
    except UnknownFormat as error:
        raise FrameError(str(error)) from error
    if snapshot is None or (snapshot.tip.index, snapshot.tip.term) != (
        request.index,
        request.snapshot_term,
    ):
        raise FrameError("the snapshot is damaged or another one than announced")
    return request, snapshot


# --- repair --------------------------------------------------------------------------------------


def encode_fetch(first: int, last: int) -> list[Buffer]:
    """Asks for committed batches again, because ours are damaged."""
    return frame(Type.FETCH, _FETCH.pack(first, last))


def decode_fetch(payload: Buffer) -> tuple[int, int]:
    if len(payload) != _FETCH.size:
        raise FrameError("malformed request for a range")
    first, last = _FETCH.unpack(payload)
    return first, last


def encode_fetched(data: Buffer) -> list[Buffer]:
    return frame(Type.FETCHED, data)


def decode_fetched(payload: memoryview) -> list[ReceivedBatch]:
    """Batches that follow each other, each checked whole."""
    try:
        return _batches(payload, None)
    except BadBatch as error:
        raise FrameError(f"malformed batches: {error}") from None


class FrameReader:
    """Cuts a stream into frames. Bounded by the largest frame allowed."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self.bytes_max = _HELLO_BYTES_MAX
        """Largest frame that is accepted; raised once the peer is known."""

    def feed(self, data: bytes) -> None:
        self._buffer += data

    def next(self) -> tuple[int, memoryview] | None:
        """Type and payload of the next whole frame. Raises FrameError."""
        buffer = self._buffer
        if len(buffer) < _LENGTH.size:
            return None
        (size,) = _LENGTH.unpack_from(buffer)
        if not 0 < size <= self.bytes_max:
            raise FrameError(f"a frame of {size} bytes is not allowed here")
        end = _LENGTH.size + size
        if len(buffer) < end:
            return None
        whole = memoryview(bytes(memoryview(buffer)[_LENGTH.size : end]))
        del buffer[:end]
        return whole[0], whole[1:]


FRAME_BYTES_MAX = limits.snapshot_bytes_max + 4096
assert limits.batch_bytes_max + HEADER_BYTES + _APPEND.size < FRAME_BYTES_MAX
