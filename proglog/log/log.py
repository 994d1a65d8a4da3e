"""The log of one replica, as the rest of the node sees it: append, cut, look up, read.

Everything here runs on the event loop and decides synchronously; disk work goes to the writer's
thread and, for reads that miss the page cache, to the reader's. What `append` accepted is readable
at once and durable once `durable_index` says so.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Protocol

from proglog import limits
from proglog.batch import BatchHeader, Buffer
from proglog.config import LogConfig
from proglog.errors import Overloaded, RangeCorrupt, StorageFailed, Unavailable, reason_of
from proglog.log import format as fmt
from proglog.log import snapshot as snapshots
from proglog.log.contents import Contents
from proglog.log.format import ORIGIN, SegmentHeader, Tip
from proglog.log.garbage import Garbage
from proglog.log.index import Index
from proglog.log.names import snapshot_path
from proglog.log.operations import (
    Append,
    CutSuffix,
    DropPrefix,
    Group,
    Job,
    Replace,
    Reserved,
    Reset,
    Roll,
    WriteMark,
)
from proglog.log.reading import Damage, Reading
from proglog.log.recovery import Recovered
from proglog.log.segment import OpenStores, Segment
from proglog.log.snapshot import Snapshot
from proglog.log.space import Space
from proglog.log.tail import Run, Tail, TailEntry
from proglog.log.walking import check_follows
from proglog.log.writer import Writer
from proglog.ports import Offload, Ports

_NO_CUT = 2**64


class LogEvents(Protocol):
    """What a log tells its owner, on the loop."""

    def durable(self, index: int) -> None:
        """Batches up to `index` are durable."""

    def group_written(self, group: Group) -> None:
        """One write and fdatasync were done."""

    def sealed(self, last: Tip) -> None:
        """A segment ends with this batch: once it is applied, a snapshot is due."""

    def failed(self, error: BaseException) -> None:
        """The log can write no more; the node must stop."""


class Log(Contents):
    """See the module. Made from what `recover` found; owns its files until `close`."""

    def __init__(
        self,
        folder: Path,
        recovered: Recovered,
        config: LogConfig,
        ports: Ports,
        events: LogEvents,
        reader: Offload,
    ) -> None:
        self._folder = folder
        self._config = config
        self._files = ports.files
        self._clock = ports.clock
        self._events = events
        self._loop = asyncio.get_running_loop()
        self._segments = recovered.segments
        self._place = self._active.index.place
        self._snapshots = set(recovered.snapshot_indexes)
        self._tail = Tail.of(recovered.tail, recovered.tip.index + 1, limits.tail_bytes_max)
        self.tip = recovered.tip
        """After the last batch, durable or not."""
        self.durable_index = recovered.tip.index
        self._tip_read = ORIGIN
        """After a batch that is to be the last one, where that had to be read."""
        self.is_void = False
        """A reset is under way, or waits for space: of what is here files may be gone already, and
        what the writer is asked for comes after it."""
        self._failure: BaseException | None = None
        # A write that was queued before a cut may be reported after it, when other batches have
        # taken its indexes (ABA). Each cut begins a generation; until the writer has done the
        # newest cut, older reports count only up to the lowest cut.
        self._generation = 0
        self._old_reports_hold_to = _NO_CUT
        self._marking: asyncio.TimerHandle | None = None
        self._writer = Writer(
            files=ports.files,
            folder=folder,
            worker=ports.worker("proglog-writer"),
            clock=ports.clock,
            events=self,
            manifest=recovered.manifest,
            active=self._active,
            mark_sequence=recovered.mark_sequence,
        )
        self._space = Space(folder, config, self._writer.submit)
        self._writer.commit_hint = recovered.commit_hint
        self.reader = reader
        self._stores = OpenStores()
        self._garbage = Garbage(ports.files, reader)
        self._garbage.add(recovered.garbage)

    # --- appending -------------------------------------------------------------------------------

    @property
    def room_batches_max(self) -> int:
        """For more batches than this at once there is never room."""
        return self._config.segment_batches

    def has_room(self, size: int, batches: int = 1) -> bool:
        """Whether so many batches of `size` bytes in all fit into space that is allocated already,
        whatever their term, if they are appended within the hour."""
        soon = max(self._clock.now_ms(), self.tip.timestamp) + 3_600_000
        fits_next = self._may_be_left(stays=True) and self._space.fits(size, batches)
        return fits_next or self._fits_into_active(size, batches, (soon,), self.tip.term + 1)

    def has_room_for(self, headers: Sequence[BatchHeader]) -> bool:
        """Likewise for these batches, which may replace some at the end of the log."""
        size, last = sum(header.size for header in headers), headers[-1]
        # Whatever active segment a cut leaves was sealed, and has given its space back.
        stays = self._last_kept(headers) >= self._active.index.before.index
        fits_next = self._may_be_left(stays=stays) and self._space.fits(size, len(headers))
        # They ascend, but the first may be less than that of the batch that it follows.
        times = (headers[0].timestamp, last.timestamp)
        return fits_next or (stays and self._fits_into_active(size, len(headers), times, last.term))

    def has_room_to_roll(self, size: int) -> bool:
        """Whether a batch of `size` bytes can begin a segment."""
        return self._may_be_left(stays=True) and self._space.fits(size, 1)

    def _may_be_left(self, *, stays: bool) -> bool:
        """Whether the active segment can be sealed, or whichever has its index after a cut, which
        is so unless there was no space for that index; an empty one need not be."""
        return self._active.index_file is not None or (stays and len(self._active.index) == 0)

    def _last_kept(self, headers: Sequence[BatchHeader]) -> int:
        """The last batch of ours that stays if these are taken."""
        for header in headers:
            if self.term_at(header.index) != header.term:
                return header.index - 1
        return self.tip.index

    def _fits_into_active(self, size: int, batches: int, times: tuple[int, ...], term: int) -> bool:
        index = self._active.index
        return (
            self._active.has_room(size)
            and len(index) + batches <= self._config.segment_batches
            and all(index.fits(time, term) for time in times)
        )

    async def make_room(self, size: int, batches: int = 1) -> None:
        """Waits until `has_room`; another task may take the room before the caller runs.

        Raises DiskFull if the space cannot be had, or what the log failed with.
        """
        await self._make_room(size, lambda: self.has_room(size, batches))

    async def make_room_for(self, headers: Sequence[BatchHeader]) -> None:
        """Waits until `has_room_for`, as `make_room`."""
        size = sum(header.size for header in headers)
        await self._make_room(size, lambda: self.has_room_for(headers))

    async def _make_room(self, size: int, is_there: Callable[[], bool]) -> None:
        while not is_there():
            await self._space.wait(size, self._active)

    @property
    def is_refused_room(self) -> bool:
        """Whether the disk had no space when it was asked last."""
        return self._space.is_refused

    def ask_for_room(self, size: int) -> None:
        """Has space allocated for `size` bytes, unless that is under way or was just refused."""
        self._space.ask(size, self._active)

    def append(self, header: BatchHeader, parts: tuple[Buffer, ...]) -> None:
        """Adds a batch, which must continue the log and for which there must be room.

        Nothing is copied: the parts must not change any more.
        """
        size = header.size
        active = self._active
        fits = active.has_room(size) and len(active.index) < self._config.segment_batches
        fits = fits and active.index.fits(header.timestamp, header.term)
        check_follows(header, self.tip, begins=not (fits and len(active.index)))
        if not fits:
            active = self._roll(size)
        active.index.append(header)
        self.tip = active.index.last
        self._tail.append(TailEntry(header, parts))
        self._writer.submit(
            Append(parts, size, self.tip, active.index.end_position, self._generation)
        )
        self._tail.evict(self.durable_index)
        if self._space.reserved is None and _is_half_full(active, self._config):
            self._space.ask(0, active)

    def _roll(self, size: int) -> Segment:
        old, reserved = self._active, self._space.take(size)
        new = Segment(
            self._files,
            self._folder,
            Index(self._place, self.tip),
            reserved.capacity,
            reserved.store,
            reserved.index_file,
        )
        header = SegmentHeader(self._place, self.tip)
        if len(old.index) == 0:
            # Nothing to seal: it was too small for its first batch and gives way to a larger one.
            self._segments[-1] = new
            self._writer.submit(Replace(header=header, store=reserved.store))
            self._retire_when_written([old])
            return new
        assert old.index_file is not None
        self._writer.submit(
            Roll(
                generation=self._generation,
                segment=old,
                index_file=old.index_file,
                packed_index=old.index.pack(),
                next_header=header,
                next_store=reserved.store,
            )
        )
        old.index_file = None
        # The writer gives the unused space back.
        old.capacity = old.index.end_position
        # Until then others may be read, but this store must not be closed for them.
        old.pin()
        self._when_written(lambda: self.unpin(old))
        self._segments.append(new)
        self._events.sealed(self.tip)
        return new

    def set_commit(self, index: int) -> None:
        """Tells the marks how far the log is committed."""
        self._writer.commit_hint = index

    # --- what the writer tells -------------------------------------------------------------------

    def group_written(self, group: Group) -> None:
        index = group.last_index
        if group.generation != self._generation:
            index = min(index, self._old_reports_hold_to)
        if index > self.durable_index:
            self.durable_index = index
            self._tail.evict(index)
            self._events.durable(index)
        self._events.group_written(group)
        if self._marking is None:
            self._mark_when_idle(self.durable_index)

    def _mark_when_idle(self, index: int) -> None:
        self._marking = self._loop.call_later(limits.mark_idle_seconds, self._mark, index)

    def _mark(self, index: int) -> None:
        if self.durable_index != index:
            self._mark_when_idle(self.durable_index)
        else:
            self._marking = None
            self._writer.submit(WriteMark())

    def segment_sealed(self, generation: int, segment: Segment, index: memoryview) -> None:
        # Unless a cut has made it active again meanwhile, the map replaces the array.
        if generation == self._generation:
            segment.index.map(index)

    def suffix_cut(self, generation: int) -> None:
        if generation == self._generation:
            self._old_reports_hold_to = _NO_CUT

    def space_reserved(self, reserved: Reserved) -> None:
        self._space.granted(reserved, self._active)

    def space_refused(self, error: OSError) -> None:
        self._space.refused(error)

    def storage_failed(self, error: BaseException) -> None:
        self._failure = error
        self._space.failed(error)
        self._events.failed(error)

    # --- cutting ---------------------------------------------------------------------------------

    def may_cut(self, last_index: int) -> bool:
        """Whether what `cut_suffix` needs to know of this batch is in memory."""
        return self.tip_at(last_index) is not None or self._tip_read.index == last_index

    async def prepare_cut(self, last_index: int) -> None:
        """Reads what `cut_suffix` needs to know of a batch. Raises StorageFailed if it cannot."""
        if self.may_cut(last_index):
            return
        try:
            run = await self.read(last_index, last_index, 1)
        except RangeCorrupt as error:
            raise StorageFailed(
                f"the log is to be cut after batch {last_index}, which cannot be read: {error}",
                folder=self._folder,
            ) from error
        self._tip_read = Tip.after(run.headers[0])

    def cut_suffix(self, last_index: int) -> None:
        """Voids every batch after `last_index`, which must be in the log or right before it, and
        known to `may_cut`."""
        assert self.first_index - 1 <= last_index < self.tip.index
        assert self.may_cut(last_index)
        tip = self.tip_at(last_index) or self._tip_read
        kept = self._segment_slot(last_index + 1)
        segment, later = self._segments[kept], self._segments[kept + 1 :]
        self._generation += 1
        self._old_reports_hold_to = min(self._old_reports_hold_to, last_index)
        self._tail.cut(last_index + 1)
        segment.index.cut(tip)
        self._stores.forget(segment)
        self.tip = tip
        self._tip_read = ORIGIN
        self.durable_index = min(self.durable_index, last_index)
        if later:
            # The newest segment's allocated index becomes the kept one's, as the writer does it.
            segment.index_file, later[-1].index_file = later[-1].index_file, None
        del self._segments[kept + 1 :]
        self._writer.submit(
            CutSuffix(
                generation=self._generation,
                tip=tip,
                position=segment.index.end_position,
                segment=segment,
                later=[old.first_index for old in later],
            )
        )
        self._retire_when_written(later)

    def _retire_when_written(self, segments: Sequence[Segment]) -> None:
        """Lets go of segments once the writer is past them: it may still have batches to write to
        one, and a closed descriptor's number belongs to the next file that is opened."""

        def retire() -> None:
            for segment in segments:
                segment.retire()

        self._when_written(retire)

    def _when_written(self, act: Callable[[], None]) -> None:
        """Acts once the writer is past all that it was asked for."""
        done: asyncio.Future[None] = self._loop.create_future()

        def act_now(done: asyncio.Future[None]) -> None:
            # Also if the disk failed, which the owner hears of elsewhere.
            done.exception()
            act()

        done.add_done_callback(act_now)
        self._writer.submit(Job(work=lambda: None, done=done))

    def drop_prefix(self, first_index: int) -> int:
        """Gives up the oldest segments whose batches are all below `first_index`, as far as there
        is a durable snapshot of what they built. Returns how many segments."""
        if self.is_void:
            return 0
        count = 0
        for segment in self._segments[:-1]:
            if segment.last_index >= first_index:
                break
            count += 1
        newest = max(self._snapshots, default=0)
        while count and self._segments[count - 1].last_index > newest:
            count -= 1
        dropped = self._segments[:count]
        if not dropped:
            return 0
        del self._segments[:count]
        paths = [path for old in dropped for path in (old.store_path, old.index_path)]
        paths += self._forget_snapshots({at for at in self._snapshots if at < self.before.index})
        for old in dropped:
            self._stores.forget(old)
        done: asyncio.Future[None] = self._loop.create_future()
        # Once the new base is durable the files are nobody's: what is left of them after a crash is
        # deleted by the next start.
        done.add_done_callback(lambda done: self._let_go(done, dropped, paths))
        self._writer.submit(DropPrefix(base=self.before, done=done))
        return count

    def _let_go(
        self, done: asyncio.Future[None], dropped: Sequence[Segment], paths: Sequence[Path]
    ) -> None:
        for segment in dropped:
            segment.retire()
        # If the disk failed, the owner has heard of it through `failed`, and the files stay.
        if done.exception() is None:
            self._garbage.add(paths)

    # --- snapshots -------------------------------------------------------------------------------

    @property
    def snapshot_indexes(self) -> list[int]:
        """Batches at which there is a durable snapshot, ascending."""
        return sorted(self._snapshots)

    async def write_snapshot(self, tip: Tip, encode: Callable[[], bytes]) -> None:
        """Makes a snapshot durable; `encode` gives its state, on the writer's thread.

        Raises DiskFull: then there is none, and the segments below it stay.
        """
        await self._writer.run(
            lambda: snapshots.write(self._files, self._folder, Snapshot(tip, encode()))
        )
        if not self.before.index <= tip.index <= self.tip.index:
            return  # The log was replaced or dropped meanwhile; the next start deletes the file.
        self._snapshots.add(tip.index)
        self._garbage.add(self._forget_snapshots(snapshots.obsolete(self._snapshots)))

    async def read_snapshot(self) -> Snapshot:
        """The newest snapshot that can be read, never older than the base. Raises RangeCorrupt, and
        Overloaded if there are no descriptors."""
        damage: Damage | None = None
        for index in reversed(self.snapshot_indexes):
            path = snapshot_path(self._folder, index)
            read = partial(snapshots.read, Reading(self._files, writable=False), path)
            try:
                snapshot = await self.reader.run(read)
            except OSError as error:
                raise Overloaded(f"{path}: {reason_of(error)}") from error
            if isinstance(snapshot, Snapshot):
                return snapshot
            damage = damage or snapshot
        # Or there was none, or one was replaced by the next just now, which who asks again gets.
        raise RangeCorrupt(f"no snapshot can be read: {damage}; run proglog verify")

    def _forget_snapshots(self, indexes: set[int]) -> list[Path]:
        self._snapshots -= indexes
        return [snapshot_path(self._folder, index) for index in sorted(indexes)]

    async def reset(self, snapshot: Snapshot) -> None:
        """Replaces everything by a snapshot. Until this returns nothing may be appended or cut.

        Raises DiskFull: then nothing else may be done but to try again.
        """
        old = self._segments
        self.is_void = True
        done: asyncio.Future[Segment] = self._loop.create_future()
        self._generation += 1
        self._old_reports_hold_to = 0
        self._writer.submit(
            Reset(
                snapshot=snapshot,
                capacity=self._config.segment_bytes,
                index_bytes=fmt.index_bytes_max(self._config.segment_batches),
                done=done,
            )
        )
        segment = await done
        # For those who began to read in the meantime, too, what they get is of a log that is gone.
        self._generation += 1
        # Every report of what was written before has come.
        self._old_reports_hold_to = _NO_CUT
        # The new segment was made of the reserved file.
        self._space.forget()
        self.is_void = False
        self._tip_read = ORIGIN
        self._segments = [segment]
        self._place = segment.index.place
        self._snapshots = {snapshot.tip.index}
        self._tail = Tail(snapshot.tip.index + 1, limits.tail_bytes_max)
        self.tip = snapshot.tip
        self.durable_index = snapshot.tip.index
        for segment in old:
            self._stores.forget(segment)
            segment.retire()

    async def run_job(self, work: Callable[[], None], *, urgent: bool = False) -> None:
        """Runs `work` on the writer's thread: in its turn, or next if urgent. Raises what it
        raises, or StorageFailed if the log can write no more."""
        await self._writer.run(work, urgent=urgent)

    # --- reading ---------------------------------------------------------------------------------

    async def read(self, first: int, last: int, bytes_max: int) -> Run:
        """Batches from `first` on, up to `last` and about `bytes_max` bytes, at least one.

        All of first..last must be in the log. Raises RangeCorrupt; Unavailable if they were cut or
        dropped or the log was closed meanwhile; and Overloaded if they cannot be read for now.
        """
        assert self.first_index <= first <= last <= self.tip.index
        if (newest := self.read_newest(first, last, bytes_max)) is not None:
            return newest
        segment = self.segment_of(first)
        # What is in memory may not be on the disk yet.
        on_disk = min(last, self._tail.first_index - 1)
        position, size = segment.extent(first, on_disk, bytes_max)
        cached = segment.read_cached(size, position)
        if cached is not None:
            self._used(segment)
        else:
            generation = self._generation
            read = await self._read_from_disk(segment, size, position)
            # What was read may be of a suffix that is void now, what was not of a segment that is
            # deleted. And the log may be closed.
            gone = isinstance(read, Damage) and segment.retired
            if generation != self._generation or gone:
                return await self._read_again(first, last, bytes_max)
            if isinstance(read, Damage):
                if bytes_max > 0:
                    # Just the first batch: one bad sector is one bad batch.
                    return await self._read_again(first, first, 0)
                raise segment.damaged(read, first)
            cached = read
        try:
            return Run(cached, segment.check(cached, position, first))
        except RangeCorrupt as error:
            damaged = error.number("index")
            if damaged is None or not first < damaged <= last:
                raise
            # What precedes it may be whole.
            return await self._read_again(first, damaged - 1, bytes_max)

    async def _read_again(self, first: int, last: int, bytes_max: int) -> Run:
        """As `read`, of what may not be in the log any more."""
        if self._active.retired or not self.first_index <= first <= last <= self.tip.index:
            raise Unavailable(f"the log was cut while batch {first} was read; read again")
        return await self.read(first, last, bytes_max)

    def read_newest(self, first: int, last: int, bytes_max: int) -> Run | None:
        """As `read`, at once: None if not all of first..last, which may be none, is in memory."""
        if self._tail.first_index <= first <= last + 1 <= self._tail.next_index:
            return self._tail.run(first, last, bytes_max)
        return None

    async def _read_from_disk(self, segment: Segment, size: int, position: int) -> bytes | Damage:
        # Unpinned when the thread is done, not when the waiting task is, which may be cancelled
        # before: a closed descriptor's number belongs to the next file that is opened.
        segment.pin()
        try:
            read = await self.reader.run(
                lambda: segment.read(size, position), after=lambda: self.unpin(segment)
            )
        except OSError as error:
            raise Overloaded(f"{segment.store_path}: {reason_of(error)}") from error
        if isinstance(read, Damage) and self.is_void:
            raise Overloaded("a snapshot takes the place of the log just now; read again later")
        return read

    def unpin(self, segment: Segment) -> None:
        """A thread is done with a segment that was pinned for it."""
        segment.unpin()
        self._used(segment)

    def _used(self, segment: Segment) -> None:
        if segment is not self._active:
            self._stores.used(segment)

    # --- end -------------------------------------------------------------------------------------

    async def close(self) -> None:
        """Makes everything appended durable and marked, then lets go of the files."""
        if self._marking is not None:
            self._marking.cancel()
        self._writer.submit(WriteMark())
        try:
            await self._writer.run(lambda: None)
        except BaseException as error:
            # If the disk failed, the owner has heard of it through `failed`.
            if error is not self._failure:
                raise
        finally:
            self._writer.stop()
            self._garbage.stop()
            for segment in self._segments:
                segment.retire()
                segment.index.unmap()
            self._space.forget()


def _is_half_full(segment: Segment, config: LogConfig) -> bool:
    """Whether the next segment should be allocated now, so that it is there in time."""
    return (
        segment.index.end_position - fmt.PREAMBLE_BYTES
        > (segment.capacity - fmt.PREAMBLE_BYTES) // 2
        or len(segment.index) * 2 > config.segment_batches
    )
