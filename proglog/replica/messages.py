"""What the replicas of one log say to each other, as frames of its group.

The lane says who sent them: both uuids are settled when a connection begins, so messages do not
repeat them. Batches travel as they are stored. Every decoder raises FrameError and nothing else.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from proglog.batch import HEADER_BYTES, BadBatch, Buffer, check_stored_body, parse_header
from proglog.errors import UnknownFormat
from proglog.log import snapshot as snapshots
from proglog.log.format import Tip
from proglog.log.snapshot import Snapshot
from proglog.peers.frames import FrameError, Type, frame
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

_APPEND = struct.Struct("<QQQQQ")
_PLAIN: dict[Type, tuple[type[Message], struct.Struct]] = {
    Type.APPEND_RESPONSE: (AppendResponse, struct.Struct("<QQ?QQ")),
    Type.HEARTBEAT: (Heartbeat, struct.Struct("<QQQ")),
    Type.HEARTBEAT_RESPONSE: (HeartbeatResponse, struct.Struct("<QQ")),
    Type.VOTE: (VoteRequest, struct.Struct("<QQQ??")),
    Type.VOTE_RESPONSE: (VoteResponse, struct.Struct("<Q??")),
    Type.TIMEOUT_NOW: (TimeoutNow, struct.Struct("<Q")),
}
PLAIN_TYPES = frozenset(_PLAIN)
"""Those of messages that bring nothing with them."""
_TYPE_OF = {cls: (type_, packer) for type_, (cls, packer) in _PLAIN.items()}
_INSTALL = struct.Struct("<QQQ")
_FETCH = struct.Struct("<QQ")


def encode(group: int, message: Message) -> list[Buffer]:
    """A message that brings nothing with it."""
    type_, packer = _TYPE_OF[type(message)]
    return frame(type_, group, packer.pack(*message[2:]))


def encode_append(group: int, request: AppendRequest, batches: Sequence[Buffer]) -> list[Buffer]:
    """An append and the stored batches of its range."""
    fields = _APPEND.pack(
        request.term, request.prev_index, request.prev_term, request.last_index, request.commit
    )
    return frame(Type.APPEND, group, fields, *batches)


def encode_install(group: int, request: InstallSnapshot, snapshot: Snapshot) -> list[Buffer]:
    fields = _INSTALL.pack(request.term, request.index, request.snapshot_term)
    return frame(Type.INSTALL, group, fields, snapshots.pack(snapshot))


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


def encode_fetch(group: int, first: int, last: int) -> list[Buffer]:
    """Asks for committed batches again, because ours are damaged."""
    return frame(Type.FETCH, group, _FETCH.pack(first, last))


def decode_fetch(payload: Buffer) -> tuple[int, int]:
    if len(payload) != _FETCH.size:
        raise FrameError("malformed request for a range")
    first, last = _FETCH.unpack(payload)
    return first, last


def encode_fetched(group: int, data: Buffer) -> list[Buffer]:
    return frame(Type.FETCHED, group, data)


def decode_fetched(payload: memoryview) -> list[ReceivedBatch]:
    """Batches that follow each other, each checked whole."""
    try:
        return _batches(payload, None)
    except BadBatch as error:
        raise FrameError(f"malformed batches: {error}") from None
