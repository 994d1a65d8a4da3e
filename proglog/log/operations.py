"""What the loop asks of the writer's thread, and what it is told. Nothing here ever changes."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol, TypeAlias

from proglog.batch import Buffer
from proglog.log.format import SegmentHeader, Tip
from proglog.log.segment import Segment
from proglog.log.snapshot import Snapshot
from proglog.ports import File


class Append(NamedTuple):
    """Bytes of one batch; `tip` and `end` are after it."""

    parts: Sequence[Buffer]
    size: int
    tip: Tip
    end: int
    generation: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Roll:
    """Seals the segment being written and starts the next in the reserved files."""

    generation: int
    segment: Segment
    index_file: File
    packed_index: bytes
    next_header: SegmentHeader
    next_store: File


@dataclass(frozen=True, slots=True, kw_only=True)
class Replace:
    """Starts the segment being written, which is empty, anew in the reserved files."""

    header: SegmentHeader
    store: File


@dataclass(frozen=True, slots=True, kw_only=True)
class Reserve:
    """Allocates the files of the next segment, and the active one's index if that is missing."""

    capacity: int
    index_bytes: int
    active_index: Path | None


@dataclass(frozen=True, slots=True, kw_only=True)
class CutSuffix:
    """Voids everything after batch `tip`, which ends at `position` of `segment`. `later` are the
    first indexes of the segments that go, oldest first."""

    generation: int
    tip: Tip
    position: int
    segment: Segment
    later: Sequence[int]


@dataclass(frozen=True, slots=True, kw_only=True)
class DropPrefix:
    """The log begins after `base` from now on. The future is done once that is durable."""

    base: Tip
    done: asyncio.Future[None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Reset:
    """Replaces the whole log by a snapshot. The future gets the new, empty segment."""

    snapshot: Snapshot
    capacity: int
    index_bytes: int
    done: asyncio.Future[Segment]


@dataclass(frozen=True, slots=True, kw_only=True)
class WriteMark:
    """Marks what was synced last, with nothing else to write."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """Any other work that must keep its place among the writes. Its future gets the result."""

    work: Callable[[], None]
    done: asyncio.Future[None]


Operation: TypeAlias = (
    Append | Roll | Replace | Reserve | CutSuffix | DropPrefix | Reset | WriteMark | Job
)


class Group(NamedTuple):
    """One write and fdatasync, for the loop and for the metrics."""

    last_index: int
    generation: int
    batches: int
    bytes: int
    seconds: float


class Reserved(NamedTuple):
    """Allocated space for the next segment, and the index of the active one, of this path, if that
    was asked for."""

    store: File
    index_file: File
    capacity: int
    active_index: tuple[Path, File] | None


class WriterEvents(Protocol):
    """What the writer tells the loop, on the loop."""

    def group_written(self, group: Group) -> None: ...

    def segment_sealed(self, generation: int, segment: Segment, index: memoryview) -> None: ...

    def suffix_cut(self, generation: int) -> None: ...

    def space_reserved(self, reserved: Reserved) -> None: ...

    def space_refused(self, error: OSError) -> None: ...

    def storage_failed(self, error: BaseException) -> None: ...
