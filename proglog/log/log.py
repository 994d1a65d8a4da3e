"""The log of one replica, as the rest of the node sees it: append, cut, look up, read.

Everything here runs on the event loop and decides synchronously; disk work goes to the writer's
thread and, for reads that miss the page cache, to the reader's. What `append` accepted is readable
at once and durable once `durable_index` says so.
"""

from __future__ import annotations

import asyncio
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Protocol

from proglog import limits
from proglog.batch import BatchHeader, Buffer
from proglog.config import LogConfig
from proglog.errors import RangeCorrupt, Unavailable
from proglog.log import format as fmt
from proglog.log import snapshot as snapshots
from proglog.log.format import Tip
from proglog.log.index import Index
from proglog.log.recovery import Recovered, check_follows
from proglog.log.segment import Segment
from proglog.log.snapshot import Snapshot
from proglog.log.space import Space
from proglog.log.tail import Run, Tail, TailEntry
from proglog.log.writer import (
    Append,
    CutSuffix,
    Delete,
    Group,
    Job,
    Replace,
    Reserved,
    Reset,
    Roll,
    WriteMark,
    Writer,
)
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


class Log:
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
        self._snapshots = set(recovered.snapshots)
        self._tail = Tail(recovered.tip.index + 1, limits.tail_bytes_max)
        self.tip = recovered.tip
        """After the last batch, durable or not."""
        self.durable_index = recovered.tip.index
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
            store=self._active.file,
            synced=self.tip,
            synced_end=self._active.index.end_position,
        )
        self._space = Space(folder, config, self._writer.submit)
        self._writer.commit_hint = recovered.commit_hint
        self.reader = reader

    # --- what it holds ---------------------------------------------------------------------------

    @property
    def _active(self) -> Segment:
        return self._segments[-1]

    @property
    def before(self) -> Tip:
        """The tip before the oldest batch."""
        return self._segments[0].index.before

    @property
    def first_index(self) -> int:
        """Index of the oldest batch, or of the next one if there is none."""
        return self._segments[0].first_index

    def bytes_upto(self, index: int) -> int:
        """Bytes of the batches up to `index`, which must be in the log or right before it."""
        slot = self._segment_slot(index + 1)
        segment = self._segments[slot]
        end = segment.index.position(index + 1 - segment.first_index)
        ends = end + sum(older.index.end_position for older in self._segments[:slot])
        return ends - (slot + 1) * fmt.PREAMBLE_BYTES

    def sealed_tips(self) -> list[Tip]:
        """The tip after each sealed segment, oldest first."""
        return [segment.index.last for segment in self._segments[:-1]]

    def segment_facts(self) -> list[tuple[Tip, int]]:
        """(tip before it, bytes) of each segment, oldest first."""
        return [
            (segment.index.before, segment.index.end_position - fmt.PREAMBLE_BYTES)
            for segment in self._segments
        ]

    # --- appending -------------------------------------------------------------------------------

    @property
    def room_batches_max(self) -> int:
        """For more batches than this at once there is never room."""
        return self._config.segment_batches

    def has_room(self, size: int, batches: int = 1) -> bool:
        """Whether so many batches of `size` bytes in all fit into space that is allocated already,
        whatever their term, if they are appended within the hour."""
        soon = max(self._clock.now_ms(), self.tip.timestamp) + 3_600_000
        return self._space.fits(size, batches) or self._fits_into_active(
            size, batches, soon, self.tip.term + 1
        )

    def has_room_for(self, headers: Sequence[BatchHeader]) -> bool:
        """Likewise for these batches, which may replace some at the end of the log."""
        size, last = sum(header.size for header in headers), headers[-1]
        # Whatever active segment a cut leaves was sealed, and has given its space back.
        stays = self._last_kept(headers) >= self._active.index.before.index
        return self._space.fits(size, len(headers)) or (
            stays and self._fits_into_active(size, len(headers), last.timestamp, last.term)
        )

    def _last_kept(self, headers: Sequence[BatchHeader]) -> int:
        """The last batch of ours that stays if these are taken."""
        for header in headers:
            if self.term_at(header.index) != header.term:
                return header.index - 1
        return self.tip.index

    def _fits_into_active(self, size: int, batches: int, timestamp: int, term: int) -> bool:
        index = self._active.index
        return (
            self._active.has_room(size)
            and len(index) + batches <= self._config.segment_batches
            and index.fits(timestamp, term)
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

    def ask_for_room(self, size: int) -> None:
        """Has space allocated for `size` bytes, unless that is under way or was just refused."""
        self._space.ask(size, self._active)

    def append(self, header: BatchHeader, parts: tuple[Buffer, ...]) -> None:
        """Adds a batch, which must continue the log and for which there must be room.

        Nothing is copied: the parts must not change any more.
        """
        check_follows(header, self.tip)
        size = header.size
        active = self._active
        fits = active.has_room(size) and len(active.index) < self._config.segment_batches
        if not (fits and active.index.fits(header.timestamp, header.term)):
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
            self._folder, Index(self.tip), reserved.store, reserved.capacity, reserved.index_file
        )
        if len(old.index) == 0:
            # Nothing to seal: it was too small for its first batch and gives way to a larger one.
            self._segments[-1] = new
            self._writer.submit(Replace(before=self.tip, store=new.file))
            self._retire_when_written([old])
            return new
        assert old.index_file is not None
        self._writer.submit(
            Roll(
                first_index=old.first_index,
                index_path=old.index_path,
                index_file=old.index_file,
                packed_index=old.index.pack(),
                next_before=self.tip,
                next_store=new.file,
            )
        )
        old.index_file = None
        # The writer gives the unused space back.
        old.capacity = old.index.end_position
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

    def segment_sealed(self, first_index: int, index: Index) -> None:
        for segment in self._segments[:-1]:
            # Unless a cut made it active again meanwhile, the map replaces the array.
            if segment.first_index == first_index and segment.index.last == index.last:
                segment.index = index

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

    def cut_suffix(self, last_index: int) -> None:
        """Voids every batch behind `last_index`, which must be in the log or right before it."""
        assert self.first_index - 1 <= last_index < self.tip.index
        kept = self._segment_slot(last_index + 1)
        segment, later = self._segments[kept], self._segments[kept + 1 :]
        tip = self.tip_at(last_index)
        assert tip is not None, "the tip at a cut is in memory or in an index"
        self._generation += 1
        self._old_reports_hold_to = min(self._old_reports_hold_to, last_index)
        self._tail.cut(last_index + 1)
        segment.index.cut(tip)
        self.tip = tip
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
                store=segment.file,
                index_path=segment.index_path,
                later=[(old.store_path, old.index_path) for old in later],
            )
        )
        self._retire_when_written(later)

    def _retire_when_written(self, segments: Sequence[Segment]) -> None:
        """Lets go of segments once the writer is past them: it may still have batches to write to
        one, and a closed descriptor's number belongs to the next file that is opened."""
        done: asyncio.Future[None] = self._loop.create_future()

        def retire(done: asyncio.Future[None]) -> None:
            # Also if the disk failed, which the owner hears of elsewhere.
            done.exception()
            for segment in segments:
                segment.retire()

        done.add_done_callback(retire)
        self._writer.submit(Job(work=lambda: None, done=done))

    def drop_prefix(self, first_index: int) -> int:
        """Deletes the oldest segments whose batches are all below `first_index`, as far as a
        durable snapshot stands at their end, and snapshots below the new base. Returns how many
        segments."""
        count = 0
        for segment in self._segments[:-1]:
            if segment.last_index >= first_index:
                break
            count += 1
        while count and self._segments[count - 1].last_index not in self._snapshots:
            count -= 1
        dropped = self._segments[:count]
        if not dropped:
            return 0
        del self._segments[:count]
        paths = [path for old in dropped for path in (old.store_path, old.index_path)]
        paths += self._forget_snapshots(lambda index: index < self.before.index)
        self._writer.submit(Delete(paths=paths))
        self._retire_when_written(dropped)
        return count

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
        self._snapshots.add(tip.index)

    async def read_snapshot(self, index: int) -> Snapshot:
        """The snapshot at a batch. Raises RangeCorrupt."""
        path = snapshots.snapshot_path(self._folder, index)
        snapshot = await self.reader.run(lambda: snapshots.read(self._files, path))
        if snapshot is None:
            raise RangeCorrupt(f"{path} is damaged; run proglog verify", file=path, position=0)
        return snapshot

    def _forget_snapshots(self, unwanted: Callable[[int], bool]) -> list[Path]:
        gone = [index for index in self.snapshot_indexes if unwanted(index)]
        self._snapshots.difference_update(gone)
        return [snapshots.snapshot_path(self._folder, index) for index in gone]

    async def reset(self, snapshot: Snapshot) -> None:
        """Replaces everything by a snapshot. Until this returns nothing may be appended or cut.

        Raises DiskFull: then nothing else may be done but to try again.
        """
        old = self._segments
        paths = [
            path for segment in reversed(old) for path in (segment.store_path, segment.index_path)
        ]
        paths += [
            snapshots.snapshot_path(self._folder, index)
            for index in self.snapshot_indexes
            if index != snapshot.tip.index
        ]
        done: asyncio.Future[Segment] = self._loop.create_future()
        self._generation += 1
        self._old_reports_hold_to = 0
        self._writer.submit(
            Reset(
                snapshot=snapshot,
                paths=paths,
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
        self._segments = [segment]
        self._snapshots = {snapshot.tip.index}
        self._tail = Tail(snapshot.tip.index + 1, limits.tail_bytes_max)
        self.tip = snapshot.tip
        self.durable_index = snapshot.tip.index
        for segment in old:
            segment.retire()

    async def run_job(self, work: Callable[[], None], *, urgent: bool = False) -> None:
        """Runs `work` on the writer's thread: in its turn, or next if urgent. Raises what it
        raises, or StorageFailed if the log can write no more."""
        await self._writer.run(work, urgent=urgent)

    # --- looking up ------------------------------------------------------------------------------

    def _segment_slot(self, index: int) -> int:
        """Which segment holds batch `index`, or would if it is the next."""
        if index >= self._active.first_index:
            return len(self._segments) - 1
        slot = bisect_right(self._segments, index, key=lambda segment: segment.first_index) - 1
        assert slot >= 0
        return slot

    def segment_of(self, index: int) -> Segment:
        """The segment that holds batch `index`, or would if it is the next."""
        return self._segments[self._segment_slot(index)]

    def index_of_offset(self, offset: int) -> int:
        """The last batch whose base offset is <= `offset`, which must be retained."""
        assert self.before.next_offset <= offset
        slot = bisect_right(
            self._segments, offset, key=lambda segment: segment.index.before.next_offset
        )
        segment = self._segments[slot - 1]
        return segment.first_index + segment.index.slot_of_offset(offset)

    def index_of_time(self, timestamp: int) -> int:
        """The first batch appended at or after `timestamp` (ms); the next index if none was."""
        slot = bisect_left(
            self._segments, timestamp, key=lambda segment: segment.index.last.timestamp
        )
        if slot == len(self._segments):
            return self.tip.index + 1
        segment = self._segments[slot]
        return segment.first_index + segment.index.slot_of_time(timestamp)

    def base_offset(self, index: int) -> int:
        """Offset of the first record of batch `index`, or of the next record if it is the next."""
        if index == self.tip.index + 1:
            return self.tip.next_offset
        segment = self.segment_of(index)
        return segment.index.base_offset(index - segment.first_index)

    def size_of(self, index: int) -> int:
        """Bytes of batch `index`, header included."""
        segment = self.segment_of(index)
        slot = index - segment.first_index
        return segment.index.position(slot + 1) - segment.index.position(slot)

    def term_at(self, index: int) -> int | None:
        """The term of a batch, also of the one before the oldest; None if it is not held."""
        if index == self.before.index:
            return self.before.term
        if not self.first_index <= index <= self.tip.index:
            return None
        runs = self.segment_of(index).index.runs
        return runs[bisect_right(runs, index, key=lambda run: run[0]) - 1][1]

    def in_memory(self, index: int) -> TailEntry | None:
        """A batch of the tail; None if it must be read."""
        if self._tail.first_index <= index < self._tail.next_index:
            return self._tail.get(index)
        return None

    def kinds(self, first: int) -> Iterator[tuple[int, int]]:
        """(index, kind) of the batches from `first` on that hold no records."""
        for segment in self._segments[self._segment_slot(first) :]:
            for slot in range(max(first - segment.first_index, 0), len(segment.index)):
                if kind := segment.index.kind(slot):
                    yield segment.first_index + slot, kind

    def tip_at(self, index: int) -> Tip | None:
        """The tip after a batch that is in memory, ends a segment, or is in the page cache."""
        if index == self.before.index:
            return self.before
        if self._tail.first_index <= index < self._tail.next_index:
            return Tip.after(self._tail.get(index).header)
        segment = self.segment_of(index)
        if index == segment.last_index:
            return segment.index.last
        position = segment.index.position(index - segment.first_index)
        size = segment.index.position(index - segment.first_index + 1) - position
        data = segment.read_cached(size, position) or segment.file.pread(size, position)
        return Tip.after(segment.check(data, position, index)[0])

    # --- reading ---------------------------------------------------------------------------------

    async def read(self, first: int, last: int, bytes_max: int) -> Run:
        """Batches from `first` on, up to `last` and about `bytes_max` bytes, at least one.

        All of first..last must be in the log. Raises RangeCorrupt; and Unavailable if they were cut
        or the log was closed meanwhile.
        """
        assert self.first_index <= first <= last <= self.tip.index
        if (newest := self.read_newest(first, last, bytes_max)) is not None:
            return newest
        segment = self.segment_of(first)
        # What is in memory may not be on the disk yet.
        on_disk = min(last, self._tail.first_index - 1)
        position, size = segment.extent(first, on_disk, bytes_max)
        cached = segment.read_cached(size, position)
        if cached is None:
            generation = self._generation
            cached = await self._read_from_disk(segment, size, position)
            if generation != self._generation:
                # What was read may be of a suffix that is void now. And the log may be closed.
                if self._active.retired or not self.first_index <= first <= last <= self.tip.index:
                    raise Unavailable(f"the log was cut while batch {first} was read; read again")
                return await self.read(first, last, bytes_max)
        return Run(cached, segment.check(cached, position, first))

    def read_newest(self, first: int, last: int, bytes_max: int) -> Run | None:
        """As `read`, at once: None if not all of first..last, which may be none, is in memory."""
        if self._tail.first_index <= first <= last + 1 <= self._tail.next_index:
            return self._tail.run(first, last, bytes_max)
        return None

    async def _read_from_disk(self, segment: Segment, size: int, position: int) -> bytes:
        # Unpinned when the thread is done, not when the waiting task is, which may be cancelled
        # before: a closed descriptor's number belongs to the next file that is opened.
        segment.pin()
        try:
            return await self.reader.run(
                lambda: segment.file.pread(size, position), after=segment.unpin
            )
        except OSError as error:
            raise RangeCorrupt(
                f"{segment.store_path} cannot be read at {position}: {error.strerror}",
                file=segment.store_path,
                position=position,
            ) from error

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
            for segment in self._segments:
                segment.retire()
            self._space.forget()


def _is_half_full(segment: Segment, config: LogConfig) -> bool:
    """Whether the next segment should be allocated now, so that it is there in time."""
    return (
        segment.index.end_position * 2 > segment.capacity
        or len(segment.index) * 2 > config.segment_batches
    )
