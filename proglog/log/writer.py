"""The writer: everything that changes segment files, on one thread, in the order it was asked for.

The loop queues operations; `Writer._step` runs on the worker's thread, takes what waits, and
reports back with `call_soon_threadsafe`. The thread gets ready lists of buffers and file handles
and touches nothing else of the loop's. See DESIGN.md, "Writing", for each protocol's argument.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar, assert_never

from proglog import limits
from proglog.batch import Buffer
from proglog.errors import DiskFull, StorageFailed, reason_of
from proglog.log import changes
from proglog.log import format as fmt
from proglog.log import snapshot as snapshots
from proglog.log.changes import ManifestFile
from proglog.log.format import Mark, SegmentHeader, Tip
from proglog.log.index import Index
from proglog.log.manifest import Change
from proglog.log.names import RESERVED_INDEX, RESERVED_STORE
from proglog.log.operations import (
    Append,
    CutSuffix,
    DropPrefix,
    Group,
    Job,
    Operation,
    Replace,
    Reserve,
    Reserved,
    Reset,
    Roll,
    WriteMark,
    WriterEvents,
)
from proglog.log.segment import REFUSALS, Segment, allocate, start_segment, write_index
from proglog.ports import Clock, File, Files, Worker

T = TypeVar("T")


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
        manifest: ManifestFile,
        active: Segment,
        mark_sequence: int,
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
        self._manifest = manifest
        self._store = active.open()
        self._synced = active.index.last
        self._synced_end = active.index.end_position
        self._sequence = mark_sequence
        self._marked = True
        worker.start(self._step)

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
        self._manifest.close()

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
        if isinstance(operation, Job | Reset | DropPrefix):
            self._post(_fail, operation.done, failure)

    def _run(self, operation: Operation) -> None:
        match operation:
            case Append():
                self._write_group(self._take_group(operation))
            case Roll():
                self._roll(operation)
            case Replace():
                self._start_segment(operation.store, operation.header)
            case Reserve():
                self._reserve(operation)
            case CutSuffix():
                self._cut_suffix(operation)
            case DropPrefix():
                assert operation.base.index > self._manifest.manifest.base.index
                self._manifest.save(self._manifest.manifest._replace(base=operation.base))
                self._post(_finish, operation.done, None)
            case Reset():
                self._reset(operation)
            case WriteMark():
                self._mark_if_due()
            case Job():
                self._do_job(operation)
            case _:
                assert_never(operation)

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
            f"writing {self._folder} failed: {reason_of(error)}. The node stops, because what the "
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
            self._write_mark()
        self._store.pwritev(parts, self._synced_end)
        self._store.fdatasync()
        size = last.end - self._synced_end
        self._synced, self._synced_end = last.tip, last.end
        self._marked = False
        seconds = self._clock.stopwatch() - began
        done = Group(last.tip.index, last.generation, len(group), size, seconds)
        self._post(self._events.group_written, done)

    def _write_mark(self) -> None:
        tip = self._synced
        self._sequence += 1
        commit = min(self.commit_hint, tip.index)
        mark = Mark(self._sequence, tip, self._synced_end, commit)
        self._store.pwritev([fmt.pack_mark(mark)], fmt.mark_position(self._sequence))

    def _mark_if_due(self) -> None:
        if not self._marked:
            self._write_mark()
            self._store.fdatasync()
            self._marked = True

    # --- rolling ---------------------------------------------------------------------------------

    def _roll(self, roll: Roll) -> None:
        # The old segment is whole, marked and indexed before anything of the next one exists under
        # its name: a segment that has a successor is sealed.
        self._mark_if_due()
        write_index(roll.index_file, roll.packed_index)
        self._store.truncate(self._synced_end)
        self._start_segment(roll.next_store, roll.next_header)
        index = roll.segment.map_index()
        assert Index.parse(index, roll.segment.index_path) is not None, "it does not read back"
        self._post(self._events.segment_sealed, roll.generation, roll.segment, index)

    def _start_segment(self, store: File, header: SegmentHeader) -> None:
        start_segment(self._files, self._folder, store, header)
        self._continue_in(store, header.before, fmt.PREAMBLE_BYTES, sequence=1)

    def _continue_in(self, store: File, tip: Tip, end: int, *, sequence: int) -> None:
        self._store, self._sequence = store, sequence
        self._synced, self._synced_end, self._marked = tip, end, True

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
            if error.errno not in REFUSALS:
                raise
            self._post(self._events.space_refused, error)
            return
        store, index, *rest = allocated
        active = (reserve.active_index, rest[0]) if reserve.active_index is not None else None
        reserved = Reserved(store, index, reserve.capacity, active)
        self._post(self._events.space_reserved, reserved)

    # --- truncating ------------------------------------------------------------------------------

    def _cut_suffix(self, cut: CutSuffix) -> None:
        store = cut.segment.open()
        self._manifest.begin(Change.CUT, cut.tip, cut.position)
        if cut.later:
            changes.remove_later(self._files, self._folder, cut.segment.first_index, cut.later)
        sequence = changes.end_store(
            store, cut.tip, cut.position, sequence=self._sequence, commit=self.commit_hint
        )
        self._manifest.end()
        self._continue_in(store, cut.tip, cut.position, sequence=sequence)
        self._post(self._events.suffix_cut, cut.generation)

    def _reset(self, reset: Reset) -> None:
        tip = reset.snapshot.tip
        try:
            if self._manifest.manifest.change is Change.NONE:
                self._manifest.begin(Change.INSTALL, tip)
            snapshots.write(self._files, self._folder, reset.snapshot)
            self._manifest.begin(Change.RESET, tip)
            segment = changes.replace_all(
                self._files,
                self._folder,
                self._manifest,
                capacity=reset.capacity,
                index_bytes=reset.index_bytes,
            )
        except OSError as error:
            if error.errno not in REFUSALS:
                raise
            # Every step may be done again, by another try or, after a crash, by recovery.
            self._post(_fail, reset.done, self._full(error))
        else:
            self._continue_in(segment.open(), tip, fmt.PREAMBLE_BYTES, sequence=1)
            self._post(_finish, reset.done, segment)

    def _full(self, error: OSError) -> DiskFull:
        return DiskFull(f"no room left for {self._folder}: {reason_of(error)}")

    # --- other work ------------------------------------------------------------------------------

    def _do_job(self, job: Job) -> None:
        try:
            job.work()
        except OSError as error:
            if error.errno not in REFUSALS:
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
