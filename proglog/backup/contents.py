"""What a backup says of itself, and the proof of it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import AsyncIterator, Iterator
from dataclasses import asdict, dataclass, replace
from enum import IntEnum
from typing import Any

from proglog.backup.place import Place
from proglog.batch import BadBatch, BatchHeader, Kind, walk

MANIFEST = "backup.json"
FORMAT = 1
_DIGEST = "sha256"


class Status(IntEnum):
    """Exit statuses of the commands."""

    HOLE = 5
    DAMAGED = 6


class Refused(Exception):
    """What cannot be done with this backup, and why."""

    def __init__(self, why: str, status: int = 1) -> None:
        super().__init__(why)
        self.status = status


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """Batches back to back, of the offsets `first` to `next` - 1."""

    name: str
    first: int
    next: int
    size: int
    sha256: str

    @classmethod
    def of(cls, first: int, following: int, data: bytes) -> Part:
        return cls(
            name=f"parts/{first:020d}.batches",
            first=first,
            next=following,
            size=len(data),
            sha256=hashlib.sha256(data).hexdigest(),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Contents:
    """Of a whole backup. `time` is when it was taken last, in milliseconds since the epoch."""

    log: str
    cluster_id: str
    first: int
    next: int
    node: str
    time: int
    parts: tuple[Part, ...] = ()

    def with_part(self, part: Part, *, node: str, time: int) -> Contents:
        return replace(self, parts=(*self.parts, part), next=part.next, node=node, time=time)

    def pack(self) -> bytes:
        members = {"format": FORMAT, **asdict(self)}
        return json.dumps({**members, _DIGEST: _digest(members)}, indent=1).encode() + b"\n"


def _digest(members: dict[str, Any]) -> str:
    canonical = json.dumps(members, separators=(",", ":"), sort_keys=True)
    return hashlib.sha256(canonical.encode()).hexdigest()


async def load(place: Place) -> Contents | None:
    """What is there; None where there is no backup. Raises Refused, OSError."""
    try:
        data = await place.read(MANIFEST)
    except FileNotFoundError:
        return None
    where = f"{place}/{MANIFEST}"
    try:
        members = json.loads(data)
        said = members.pop(_DIGEST)
    except (ValueError, AttributeError, KeyError, TypeError) as error:
        raise Refused(f"{where} is damaged: {error}", Status.DAMAGED) from None
    # Any byte of it: what JSON does not mind, such as blanks, is no matter.
    if _digest(members) != said or json.dumps({**members, _DIGEST: said}, indent=1).encode() != (
        data.rstrip(b"\n")
    ):
        raise Refused(f"{where} is damaged: its checksum does not match", Status.DAMAGED)
    if members.pop("format") != FORMAT:
        raise Refused(f"{where} is of a newer version: use that one", 3)
    return Contents(**{**members, "parts": tuple(Part(**part) for part in members["parts"])})


async def read_part(place: Place, part: Part) -> bytes:
    """Its bytes. Raises Refused, with the place where they are wrong, and OSError."""
    try:
        data = await place.read(part.name)
    except FileNotFoundError:
        raise Refused(f"{place}/{part.name} is missing", Status.DAMAGED) from None
    if hashlib.sha256(data).hexdigest() != part.sha256:
        raise Refused(f"{place}/{part.name}: {_where_damaged(part, data)}", Status.DAMAGED)
    return data


def _where_damaged(part: Part, data: bytes) -> str:
    position, offset = 0, part.first
    try:
        for header, batch in whole_batches(data):
            if header.base_offset != offset:
                break
            position, offset = position + len(batch), header.next_offset
    except BadBatch as error:
        return f"at byte {position}, offset {offset}: {error}"
    return f"at byte {position}: {part.size} bytes are expected, and other ones"


async def batches(place: Place, contents: Contents) -> AsyncIterator[tuple[BatchHeader, bytes]]:
    """All batches, each checked, in order. Raises Refused, OSError."""
    offset = contents.first
    for part in contents.parts:
        data = await read_part(place, part)
        try:
            for header, batch in whole_batches(data):
                if header.base_offset != offset or header.kind != Kind.DATA:
                    raise BadBatch(f"offset {header.base_offset} after {offset}")
                offset = header.next_offset
                yield header, bytes(batch)
        except BadBatch as error:
            raise Refused(f"{place}/{part.name}: {error}", Status.DAMAGED) from None
        if offset != part.next:
            raise Refused(f"{place}/{part.name} ends at offset {offset}", Status.DAMAGED)


def whole_batches(data: bytes) -> Iterator[tuple[BatchHeader, memoryview]]:
    """Those that stand back to back, each checked, with its header. Raises BadBatch."""
    view, position = memoryview(data), 0
    for header, _ in walk(data):
        yield header, view[position : position + header.size]
        position += header.size
