"""Applies committed batches, in order: to the replicated state, to those who wait, to snapshots."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine

from proglog import limits
from proglog.aio.news import News
from proglog.batch import HEADER_BYTES, BatchHeader, Buffer, Kind
from proglog.errors import Overloaded, RangeCorrupt, Unavailable, UnknownFormat
from proglog.log.format import Tip
from proglog.log.log import Log
from proglog.log.snapshot import Snapshot
from proglog.log.tail import Run
from proglog.replica.snapshots import Snapshots
from proglog.replica.state import ReplicatedState
from proglog.replica.waiters import CommitWaiters


class Applier:
    """Belongs to a replica.

    Attributes:
        state: after batch `applied_index`.
        next_offset: after the last committed record.
        news: told when a record was committed, or is gone.
        applied: told when any batch was.
    """

    def __init__(
        self,
        log: Log,
        state: ReplicatedState,
        applied_index: int,
        waiters: CommitWaiters,
        *,
        spawn: Callable[[Coroutine[None, None, None]], None],
        on_start_moved: Callable[[], None],
        on_damage: Callable[[RangeCorrupt], None],
        on_unknown: Callable[[UnknownFormat], None],
    ) -> None:
        self._log = log
        self._waiters = waiters
        self._spawn = spawn
        self._on_start_moved = on_start_moved
        self._on_damage = on_damage
        self._on_unknown = on_unknown
        self._snapshots = Snapshots(log, applied_index)
        self._replaying = False
        """Also for good, once there is a batch that this version cannot apply."""
        self.state = state
        self.applied_index = applied_index
        self.commit_index = applied_index
        self.next_offset = log.base_offset(applied_index + 1)
        self.news = News()
        self.applied = News()

    @property
    def earliest(self) -> int:
        """Oldest offset served."""
        return max(self.state.start_offset, self._log.before.next_offset)

    def sealed(self, last: Tip) -> None:
        """A segment ends with this batch."""
        if last.index == self.applied_index:
            # Where one batch comes at a time, it was applied before the next sealed its segment.
            self._spawn(self._snapshots.write(last, self.state.copy()))
        else:
            self._snapshots.sealed(last)

    def committed(self, index: int) -> None:
        """Batches up to `index` are committed, and in the log."""
        self.commit_index = index
        if not self._replaying:
            self._apply()

    def _apply(self) -> None:
        """Applies what is committed, as far as it is in memory; a task reads the rest."""
        next_offset = self.next_offset
        try:
            self._apply_from_memory()
        except UnknownFormat as error:
            self._stay(error)
        self.applied.tell()
        if self.next_offset != next_offset:
            # Batches without records wake nobody who waits for records.
            self.news.tell()

    def _stay(self, error: UnknownFormat) -> None:
        """Nothing more is applied: a state that guesses would differ from that of the others."""
        self._replaying = True
        self._on_unknown(error)

    def _apply_from_memory(self) -> None:
        while self.applied_index < self.commit_index:
            entry = self._log.in_memory(self.applied_index + 1)
            if entry is None:
                self._replaying = True
                self._spawn(self._replay())
                break
            header = entry.header
            body = b"".join(entry.parts)[HEADER_BYTES:] if header.kind != Kind.DATA else b""
            self._apply_one(header, body)

    async def _replay(self) -> None:
        """Applies committed batches that must be read: after a start, or far behind."""
        while self.applied_index < self.commit_index:
            try:
                run = await self._log.read(
                    self.applied_index + 1, self.commit_index, limits.replay_bytes
                )
            except RangeCorrupt as error:
                # Other servers have what is committed: until it is mended, nothing behind it is
                # served here.
                self._on_damage(error)
                await asyncio.sleep(limits.replay_retry_seconds)
                continue
            except Overloaded:
                await asyncio.sleep(limits.replay_retry_seconds)
                continue
            except Unavailable:
                # A snapshot replaced the log, and what was to be applied with it.
                continue
            try:
                self._apply_run(run)
            except UnknownFormat as error:
                self._stay(error)
                return
            finally:
                self.applied.tell()
                self.news.tell()
        self._replaying = False

    def _apply_run(self, run: Run) -> None:
        """Applies batches that were just read, and so were checked."""
        at = 0
        for header in run.headers:
            body = b""
            if header.kind:
                body = run.data[at + HEADER_BYTES : at + header.size]
            self._apply_one(header, body)
            at += header.size

    def _apply_one(self, header: BatchHeader, body: Buffer) -> None:
        assert header.index == self.applied_index + 1
        self.state.apply(header, body)
        self.applied_index = header.index
        self.next_offset = header.next_offset
        self._waiters.committed(header)
        if self._snapshots.is_due(header.index):
            self._spawn(self._snapshots.write(Tip.after(header), self.state.copy()))
        if header.kind == Kind.COMMAND:
            self._on_start_moved()

    def decode(self, state: bytes) -> ReplicatedState:
        """The state that a snapshot holds. Raises as `ReplicatedState.decode`."""
        return ReplicatedState.decode(state, level_max=self.state.level_max)

    def installed(self, snapshot: Snapshot) -> None:
        """A snapshot has replaced the log and the state."""
        self.state = self.decode(snapshot.state)
        self.applied_index = self.commit_index = snapshot.tip.index
        self.next_offset = snapshot.tip.next_offset
        self._snapshots.forget()
        self._waiters.skipped(snapshot.tip.index)
        self.applied.tell()
        self.news.tell()
