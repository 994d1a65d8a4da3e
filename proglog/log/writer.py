"""The writer: everything that changes segment files, on one thread, in the order it was asked for.

The loop queues operations; `Writer._step` runs on the worker's thread, takes what waits, and
reports back with `call_soon_threadsafe`. The thread gets ready lists of buffers and file handles
and touches nothing else of the loop's. See DESIGN.md, "Writing", for each protocol's argument.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol, TypeAlias, TypeVar

from proglog import limits
from proglog.batch import Buffer
from proglog.errors import DiskFull, StorageFailed
from proglog.log import format as fmt
from proglog.log import snapshot as snapshots
from proglog.log.format import Mark, Tip
from proglog.log.index import Index
from proglog.log.segment import (
    NO_SPACE,
    RESERVED_INDEX,
    RESERVED_STORE,
    Segment,
    allocate,
    create_segment,
    finish_cut,
    index_name,
    store_name,
    write_index,
)
from proglog.log.snapshot import Snapshot
from proglog.ports import Clock, File, Files, Worker

T = TypeVar("T")


class Group(NamedTuple):
    """One write and fdatasync, for the loop and for the metrics."""

    last_index: int
    generation: int
    batches: int
    bytes: int
    seconds: float


class Reserved(NamedTuple):
    """Allocated space for the next segment. `active_index` is set if the active one lacked its."""

    store: File
    index_file: File
    capacity: int
    active_index: File | None


class WriterEvents(Protocol):
    """What the writer tells the loop, on the loop."""

    def group_written(self, group: Group) -> None: ...

    def segment_sealed(self, first_index: int, index: Index) -> None: ...

    def suffix_cut(self, generation: int) -> None: ...

    def space_reserved(self, reserved: Reserved) -> None: ...

    def space_refused(self, error: OSError) -> None: ...

    def storage_failed(self, error: BaseException) -> None: ...


# --- operations ----------------------------------------------------------------------------------


class Begin(NamedTuple):
    """Finds the newest mark, to count on from: the first operation, since it may wait."""


class Append(NamedTuple):
    """Bytes of one batch; `tip` and `end` are after it."""

    parts: Sequence[Buffer]
    size: int
    tip: Tip
    end: int
    generation: int


@dataclass(slots=True, kw_only=True)
class Roll:
    """Seals the segment being written and starts the next in the reserved files."""

    first_index: int
    index_path: Path
    index_file: File
    packed_index: bytes
    next_before: Tip
    next_store: File


class Replace(NamedTuple):
    """Starts the segment being written, which is empty, anew in the reserved files."""

    before: Tip
    store: File


@dataclass(slots=True, kw_only=True)
class Reserve:
    """Allocates the files of the next segment, and the active one's index if that is missing."""

    capacity: int
    index_bytes: int
    active_index: Path | None


@dataclass(slots=True, kw_only=True)
class CutSuffix:
    """Voids everything behind a batch. `later` are the segments that go, oldest first."""

    generation: int
    tip: Tip
    position: int
    store: File
    index_path: Path
    later: Sequence[tuple[Path, Path]]


@dataclass(slots=True, kw_only=True)
class Delete:
    """Deletes files where they exist, durably, one after the other."""

    paths: Sequence[Path]


@dataclass(slots=True, kw_only=True)
class Reset:
    """Replaces the whole log by a snapshot. The future gets the new, empty segment."""

    snapshot: Snapshot
    paths: Sequence[Path]
    capacity: int
    index_bytes: int
    done: asyncio.Future[Segment]


@dataclass(slots=True, kw_only=True)
class WriteMark:
    """Marks what was synced last, with nothing else to write."""


@dataclass(slots=True, kw_only=True)
class Job:
    """Any other work that must keep its place among the writes. Its future gets the result."""

    work: Callable[[], None]
    done: asyncio.Future[None]


Operation: TypeAlias = (
    Begin | Append | Roll | Replace | Reserve | CutSuffix | Delete | Reset | WriteMark | Job
)


# --- the writer ----------------------------------------------------------------------------------


class Writer:
    """Runs operations in order. After the first failure it does nothing any more, ever."""

    def __init__(
        self,
        *,
        files: Files,
        folder: Path,
        worker: Worker,
        clock: Clock,
        events: WriterEvents,
        store: File,
        synced: Tip,
        synced_end: int,
    ) -> None:
        self._files = files
        self._folder = folder
        self._worker = worker
        self._clock = clock
        self._events = events
        self._loop = asyncio.get_running_loop()
        self._queue: deque[Operation] = deque()
        self._urgent: deque[Operation] = deque()
        self._failure: BaseException | None = None
        self._is_wake_due = False
        self.commit_hint = 0
        """The commit index, for the marks: written by the loop, read by the thread."""
        # Only the thread touches these from here on.
        self._store = store
        self._synced = synced
        self._synced_end = synced_end
        self._sequence = 0
        self._marked = False
        worker.start(self._step)
        self.submit(Begin())

    # --- on the loop -----------------------------------------------------------------------------

    def submit(self, operation: Operation) -> None:
        self._queue.append(operation)
        # Not at once: a thread that is woken while the loop is busy finds the interpreter taken and
        # sleeps again, which costs both of them time.
        if not self._is_wake_due:
            self._is_wake_due = True
            self._loop.call_soon(self._wake)

    def _wake(self) -> None:
        self._is_wake_due = False
        self._worker.wake()

    async def run(self, work: Callable[[], None], *, urgent: bool = False) -> None:
        """Runs `work` on the thread, in its turn or, if urgent, next. Raises what it raises."""
        done: asyncio.Future[None] = self._loop.create_future()
        (self._urgent if urgent else self._queue).append(Job(work=work, done=done))
        self._worker.wake()
        await done

    def stop(self) -> None:
        """Finishes what is queued, then ends the thread. Waits for it."""
        self._worker.stop()

    # --- on the thread ---------------------------------------------------------------------------

    def _step(self) -> None:
        while queue := self._urgent or self._queue:
            operation = queue.popleft()
            if self._failure is not None:
                self._drop(operation, self._failure)
                continue
            try:
                self._run(operation)
            except BaseException as error:  # noqa: BLE001  # whatever it is, nothing follows it
                # A failed write or sync is never retried: the kernel may have dropped the pages.
                self._failure = self._explain(error)
                self._post(self._events.storage_failed, self._failure)
                self._drop(operation, self._failure)

    def _drop(self, operation: Operation, failure: BaseException) -> None:
        if isinstance(operation, Job | Reset):
            self._post(_fail, operation.done, failure)

    def _run(self, operation: Operation) -> None:
        match operation:
            case Begin():
                newest = self._newest_mark()
                self._sequence = newest.sequence
                self._marked = newest.index == self._synced.index
            case Append():
                self._write_group(self._take_group(operation))
            case Roll():
                self._roll(operation)
            case Replace():
                self._start_segment(operation.store, operation.before)
            case Reserve():
                self._reserve(operation)
            case CutSuffix():
                self._cut_suffix(operation)
            case Delete():
                self._delete(operation.paths)
            case Reset():
                self._reset(operation)
            case WriteMark():
                self._mark_if_due()
            case Job():
                self._do_job(operation)

    def _post(self, callback: Callable[..., None], *arguments: object) -> None:
        self._loop.call_soon_threadsafe(self._deliver, callback, arguments)

    def _deliver(self, callback: Callable[..., None], arguments: Sequence[object]) -> None:
        try:
            callback(*arguments)
        except BaseException as error:
            # A broken promise on the loop is as fatal as a broken disk.
            self._events.storage_failed(error)
            raise

    def _explain(self, error: BaseException) -> BaseException:
        if not isinstance(error, OSError):
            return error
        failure = StorageFailed(
            f"writing {self._folder} failed: {error.strerror}. The node stops, because what the "
            "disk kept is not known; check the disk, then start again",
            folder=self._folder,
            errno=error.errno,
        )
        failure.__cause__ = error
        return failure

    # --- appending -------------------------------------------------------------------------------

    def _take_group(self, first: Append) -> list[Append]:
        """Everything that can share one write: group commit."""
        group = [first]
        size = first.size
        while self._queue and isinstance(following := self._queue[0], Append):
            size += following.size
            if size > limits.write_group_bytes_max:
                break
            group.append(following)
            self._queue.popleft()
        return group

    def _write_group(self, group: list[Append]) -> None:
        began = self._clock.stopwatch()
        last = group[-1]
        parts: list[Buffer] = [part for append in group for part in append.parts]
        parts.append(fmt.END_OF_LOG)
        if not self._marked:
            self._write_mark(self._synced, self._synced_end)
        self._store.pwritev(parts, self._synced_end)
        self._store.fdatasync()
        size = last.end - self._synced_end
        self._synced, self._synced_end = last.tip, last.end
        self._marked = False
        seconds = self._clock.stopwatch() - began
        done = Group(last.tip.index, last.generation, len(group), size, seconds)
        self._post(self._events.group_written, done)

    def _write_mark(self, tip: Tip, end: int, *, cut: bool = False) -> None:
        self._sequence += 1
        commit = min(self.commit_hint, tip.index)
        mark = Mark(self._sequence, tip.index, end, commit, tip.chain, cut)
        self._store.pwritev([fmt.pack_mark(mark)], fmt.mark_position(self._sequence))

    def _mark_if_due(self) -> None:
        if not self._marked:
            self._write_mark(self._synced, self._synced_end)
            self._store.fdatasync()
            self._marked = True

    # --- rolling ---------------------------------------------------------------------------------

    def _roll(self, roll: Roll) -> None:
        # The old segment is whole, marked and indexed before anything of the next one exists under
        # its name: a segment that has a successor is sealed.
        self._mark_if_due()
        write_index(roll.index_file, roll.packed_index)
        self._store.truncate(self._synced_end)
        self._start_segment(roll.next_store, roll.next_before)
        sealed = Index.parse(self._files.read_only_map(roll.index_path))
        assert sealed is not None, "the index that was just written does not read back"
        self._post(self._events.segment_sealed, roll.first_index, sealed)

    def _start_segment(self, store: File, before: Tip) -> None:
        store.pwritev([fmt.pack_preamble(before)], 0)
        store.fdatasync()
        first_index = before.index + 1
        self._files.rename(self._folder / RESERVED_INDEX, self._folder / index_name(first_index))
        self._files.rename(self._folder / RESERVED_STORE, self._folder / store_name(first_index))
        self._files.sync_directory(self._folder)
        self._store = store
        self._synced_end = fmt.PREAMBLE_BYTES
        self._sequence = 1

    def _reserve(self, reserve: Reserve) -> None:
        wanted = [
            (self._folder / RESERVED_STORE, reserve.capacity),
            (self._folder / RESERVED_INDEX, reserve.index_bytes),
        ]
        if reserve.active_index is not None:
            wanted.append((reserve.active_index, reserve.index_bytes))
        allocated: list[File] = []
        try:
            for path, size in wanted:
                allocated.append(allocate(self._files, path, size))
        except OSError as error:
            # A full disk is asked again and again: each descriptor that stayed open would be lost.
            for file in allocated:
                file.close()
            if error.errno not in NO_SPACE:
                raise
            self._post(self._events.space_refused, error)
            return
        store, index, *rest = allocated
        active_index = rest[0] if rest else None
        reserved = Reserved(store, index, reserve.capacity, active_index)
        self._post(self._events.space_reserved, reserved)

    # --- truncating ------------------------------------------------------------------------------

    def _cut_suffix(self, cut: CutSuffix) -> None:
        self._continue_in(cut.store, cut.tip, cut.position)
        self._write_mark(cut.tip, cut.position, cut=True)
        self._store.fdatasync()
        if cut.later:
            self._delete_later_segments(cut)
        finish_cut(self._store, cut.position)
        for _ in fmt.MARK_POSITIONS:
            self._write_mark(cut.tip, cut.position)
            self._store.fdatasync()
        self._post(self._events.suffix_cut, cut.generation)

    def _delete_later_segments(self, cut: CutSuffix) -> None:
        # The newest segment's index is allocated and empty: just what the kept one needs, now that
        # it is active again. Its own is sealed, perhaps mapped, and must not be written.
        *sealed, (newest_store, newest_index) = cut.later
        self._files.unlink(newest_store)
        if self._files.exists(newest_index):
            self._files.rename(newest_index, cut.index_path)
        for store_path, index_path in reversed(sealed):
            self._files.unlink(store_path)
            self._unlink_if_there(index_path)
        self._files.sync_directory(self._folder)

    def _continue_in(self, store: File, tip: Tip, end: int) -> None:
        self._store = store
        self._synced, self._synced_end, self._marked = tip, end, True
        self._sequence = self._newest_mark().sequence

    def _newest_mark(self) -> Mark:
        return fmt.parse_marks(self._store.pread(fmt.PREAMBLE_BYTES, 0))[0]

    def _delete(self, paths: Sequence[Path]) -> None:
        # In order, each durably, so that after a crash what is left still begins where a segment
        # does.
        for path in paths:
            self._unlink_if_there(path)
            self._files.sync_directory(self._folder)

    def _unlink_if_there(self, path: Path) -> None:
        if self._files.exists(path):
            self._files.unlink(path)

    def _reset(self, reset: Reset) -> None:
        try:
            segment = self._replace_all(reset)
        except OSError as error:
            if error.errno not in NO_SPACE:
                raise
            # Every step may be done again, by another try or, after a crash, by recovery.
            self._post(_fail, reset.done, self._full(error))
        else:
            self._continue_in(segment.file, reset.snapshot.tip, fmt.PREAMBLE_BYTES)
            self._post(_finish, reset.done, segment)

    def _replace_all(self, reset: Reset) -> Segment:
        # The flag makes recovery finish this, however far it came.
        snapshots.write(self._files, self._folder, reset.snapshot._replace(resets=True))
        self._delete(reset.paths)
        segment = create_segment(
            self._files,
            self._folder,
            reset.snapshot.tip,
            capacity=reset.capacity,
            index_bytes=reset.index_bytes,
        )
        snapshots.write(self._files, self._folder, reset.snapshot._replace(resets=False))
        return segment

    def _full(self, error: OSError) -> DiskFull:
        return DiskFull(f"no space left for {self._folder}: {error.strerror}")

    # --- other work ------------------------------------------------------------------------------

    def _do_job(self, job: Job) -> None:
        try:
            job.work()
        except OSError as error:
            if error.errno not in NO_SPACE:
                raise
            self._post(_fail, job.done, self._full(error))
        else:
            self._post(_finish, job.done, None)


def _finish(done: asyncio.Future[T], result: T) -> None:
    if not done.done():
        done.set_result(result)


def _fail(done: asyncio.Future[T], error: BaseException) -> None:
    if not done.done():
        done.set_exception(error)
