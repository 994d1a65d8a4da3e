"""A random program against one log, which does everything that may happen to it.

Given a `Fault`, the disk fails once on the way. Then the program goes on where the node would,
after a refusal say, and ends where the node would end: the process is dead, the kernel is not.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Awaitable, Callable
from contextvars import Context
from typing import Any, NamedTuple

from proglog.errors import DiskFull, Overloaded, ProglogError, RangeCorrupt
from proglog.log.format import Tip
from proglog.log.log import Log
from proglog.log.snapshot import Snapshot
from proglog.raft.hard_state import HardStateFile
from proglog.raft.messages import HardState
from tests.doubles.disk import Recording, SimDisk
from tests.doubles.files import SimFiles
from tests.doubles.inode import Kind
from tests.log.crash import node
from tests.log.crash.adversity import Access, access, numbered
from tests.log.crash.history import History, Outcome


class Fault(NamedTuple):
    """The operation of this kind and number, from 1, fails with this errno."""

    kind: Kind
    number: int
    errno: int


class Workload:
    """Runs in a simulated loop of its own; afterwards `recording` and `history` tell it all.

    Attributes:
        accesses: what was asked of the disk, and may fail.
        ended_by: what ended the process, if a fault did.
        is_off: a start found less than it should, by a fault that may do that.
    """

    def __init__(self, seed: int, fault: Fault | None = None) -> None:
        self.disk = SimDisk(seed)
        self.accesses: list[Access] = []
        self.ended_by: BaseException | None = None
        self.is_off = False
        self.disk.on_access = lambda *of: self.accesses.append(access(*of))
        self._fault = fault
        if fault is not None:
            self.disk.faults.fail_at[fault.kind, fault.number] = fault.errno
        self.history = History()
        self.recording: Recording = self.disk.record()
        self.done: Counter[str] = Counter()
        """What had an effect, and how often."""
        self._chance = random.Random(f"workload {seed}")
        self._committed = 1
        self._crcs: dict[int, int] = {}
        self._tips: dict[int, Tip] = {}
        self._term = 1
        self._files: SimFiles
        self._events: _Acknowledge
        self._log: Log
        self._hard_state: HardStateFile
        self._unlock: Callable[[], None]

    async def run(self, steps: int) -> None:
        """Does everything once, in any order, and then more of what logs do most."""
        self._tell_positions()
        try:
            await self._run(steps)
        except _Ended as ended:
            self.ended_by = ended.__cause__
            self._kill()

    async def _run(self, steps: int) -> None:
        self._open()
        await self._do(lambda: self._append(3))
        weights: dict[Callable[[], Awaitable[None]], int] = {
            self._append_some: 40,
            self._idle: 10,
            self._read: 6,
            self._commit: 10,
            self._cut: 10,
            self._snapshot: 8,
            self._drop_prefix: 6,
            self._save_hard_state: 6,
            self._fill_disk: 4,
            self._drop_many: 3,
            self._reset: 2,
            self._close_and_open: 3,
            self._kill_and_open: 3,
        }
        actions = list(weights)
        program = self._chance.choices(actions, list(weights.values()), k=steps) + actions
        self._chance.shuffle(program)
        for action in program:
            await self._do(action)
        await self._close()

    async def _do(self, action: Callable[[], Awaitable[None]]) -> None:
        try:
            await action()
        except DiskFull:
            if self._fault is None:
                raise
            self.done["refused"] += 1
            await asyncio.sleep(0.6)
        except ProglogError as error:
            if self._fault is None:
                raise
            raise _Ended from error
        if self._events.failure is not None:
            raise _Ended from self._events.failure

    # --- when things are said --------------------------------------------------------------------

    def _tell_positions(self) -> None:
        """What the writer reports, it reports in the middle of its step: that is when it counts."""
        loop = asyncio.get_running_loop()
        call_soon = loop.call_soon
        operations = self.recording.operations

        def call_at(position: int, callback: Any, arguments: Any) -> None:
            self.history.position = position
            callback(*arguments)
            self.history.position = len(operations)

        def call_soon_threadsafe(
            callback: Any, *arguments: Any, context: Context | None = None
        ) -> asyncio.Handle:
            return call_soon(call_at, len(operations), callback, arguments, context=context)

        loop.call_soon_threadsafe = call_soon_threadsafe  # type: ignore[method-assign,assignment]

    def _note(self) -> History:
        self.history.position = len(self.recording.operations)
        return self.history

    # --- opening and closing ---------------------------------------------------------------------

    def _open(self) -> None:
        files = SimFiles(self.disk)
        self._files = files  # Should the start fail, whoever kills the process needs them.
        try:
            process = node.open_log(self.disk, files)
        except (ProglogError, OSError) as error:
            if self._fault is None:
                raise
            raise _Ended from error
        outcome = node.outcome(process)
        if self._fault is not None and not self.disk.faults.fail_at:
            self._check_start(outcome)
        self._note().opened(outcome)
        self._hard_state = process.opened.hard_state
        self._unlock = process.opened.node.close
        self._events = _Acknowledge(self)
        self._log = process.start_log(self._events)
        self._crcs = dict(enumerate(outcome.crcs, outcome.base + 1))
        # What others have committed may be lost here, if it was not durable here.
        self._committed = min(max(self._committed, outcome.commit_hint), outcome.last)

    def _check_start(self, outcome: Outcome) -> None:
        """What a start may make of data or a snapshot that it cannot read is looked at elsewhere:
        here it would only be in the way of what follows."""
        assert self._fault is not None
        numbers = numbered(self.accesses)
        met = {each for each in numbers if self._fault.number in numbers[each]}
        is_read = self._fault.kind in {Kind.READ, Kind.OPEN, Kind.SYNC}
        hidden = any(part in {"data", "snapshot", "manifest"} for _, part in met) and is_read
        if hidden and self.history.now.violation(outcome):
            self.is_off = True
            raise _Ended

    async def _close(self) -> None:
        await self._log.close()
        self._hard_state.close()
        self._unlock()

    async def _close_and_open(self) -> None:
        await self._close()
        self._open()

    async def _kill_and_open(self) -> None:
        if self._chance.random() < 0.5:
            self._append_now(2)
            await asyncio.sleep(0)
        self._kill()
        self._open()

    def _kill(self) -> None:
        self._files.kill()
        if hasattr(self, "_log"):
            self._log._garbage.stop()
            self._events.killed = True

    # --- what a log does -------------------------------------------------------------------------

    def _append_now(self, count: int) -> None:
        for _ in range(count):
            values = [
                self._chance.randbytes(self._chance.choice((0, 5, 60, 400, 1200, 3000)))
                for _ in range(self._chance.choice((0, 1, 1, 2)))
            ]
            size = sum(map(len, values)) + 200
            if not self._log.has_room(size):
                return
            if self._chance.random() < 0.1:
                self._term += 1
            header, parts = node.build_batch(self._log.tip, values, term=self._term)
            self._crcs[header.index] = header.header_crc
            self._note().appended(header.index, header.header_crc)
            self._log.append(header, parts)
            self._tips[header.index] = self._log.tip

    async def _append(self, count: int) -> None:
        await self._log.make_room(6400)
        self._append_now(count)

    async def _append_some(self) -> None:
        await self._append(self._chance.randint(1, 4))
        if self._chance.random() < 0.6:
            await asyncio.sleep(0.001)

    async def _idle(self) -> None:
        await asyncio.sleep(0.05)

    async def _read(self) -> None:
        if self._log.first_index > self._log.tip.index:
            return
        first = self._chance.randint(self._log.first_index, self._log.tip.index)
        try:
            run = await self._log.read(first, self._log.tip.index, 4096)
        except (RangeCorrupt, Overloaded):
            if self._fault is None:
                raise
            self.done["not read"] += 1
            return
        crcs = [header.header_crc for header in run.headers]
        assert crcs == [self._crcs[index] for index in range(first, first + len(crcs))]

    async def _commit(self) -> None:
        if self._chance.random() < 0.7:
            await asyncio.sleep(0.001)
            known = self._log.durable_index
        else:
            # What a majority of others holds is committed, whether or not it is durable here.
            self._append_now(2)
            known = self._log.tip.index
            self.done["commit beyond durable"] += known > self._log.durable_index
        index = self._chance.randint(self._committed, max(self._committed, known))
        self._committed = index
        self._note().committed(index)
        self._log.set_commit(index)
        await self._drop_prefix()

    async def _cut(self) -> None:
        low = max(self._committed, self._log.first_index - 1)
        if low >= self._log.tip.index:
            return
        last = self._chance.randint(low, self._log.tip.index - 1)
        if self._chance.random() < 0.5:
            last = low
        await self._log.prepare_cut(last)
        self._note().cut(last)
        segments = len(self._log.segment_facts())
        self._log.cut_suffix(last)
        cut = segments - len(self._log.segment_facts())
        self.done["cut of segments"] += cut > 0
        self.done["cut into sealed"] += cut > 0 and len(self._log._active.index) > 0
        self._crcs = {index: crc for index, crc in self._crcs.items() if index <= last}
        self._term += 1
        if self._chance.random() < 0.5:
            # What replaces it follows at once, as a leader sends it.
            self._append_now(2)
        held = dict(self._crcs)
        await self._log.run_job(lambda: None)
        self._note().cut_done(held)
        self.done["cut"] += 1

    async def _snapshot(self) -> None:
        due = [
            tip
            for tip in self._log.sealed_tips()
            if tip.index <= self._committed and tip.index not in self._log.snapshot_indexes
        ]
        if due:
            tip = due[0]
            self._note().snapshot_begun(tip.index)
            await self._log.write_snapshot(tip, lambda: node.snapshot_state(tip.index))
            self._note().snapshot_done(tip.index)
            self.done["snapshot"] += 1

    async def _drop_prefix(self) -> None:
        # As far as retention may ask; that a snapshot stands at the new base is the log's to see.
        if self._log.drop_prefix(self._chance.randint(1, self._committed + 1)):
            base = self._log.before.index
            self._note().dropped(base)
            await self._log.run_job(lambda: None)
            self._note().drop_done(base)
            self.done["drop"] += 1

    async def _drop_many(self) -> None:
        """Several segments at once: while their files are deleted, the rest goes on."""
        for _ in range(3):
            for _ in range(6):
                await self._append(1)
            await asyncio.sleep(0.001)
        await self._log.run_job(lambda: None)
        self._committed = self._log.durable_index
        self._note().committed(self._committed)
        self._log.set_commit(self._committed)
        tip = self._log.sealed_tips()[-1]
        if tip.index not in self._log.snapshot_indexes:
            self._note().snapshot_begun(tip.index)
            await self._log.write_snapshot(tip, lambda: node.snapshot_state(tip.index))
            self._note().snapshot_done(tip.index)
        segments = self._log.drop_prefix(tip.index + 1)
        base = self._log.before.index
        self._note().dropped(base)
        await self._log.run_job(lambda: None)
        self._note().drop_done(base)
        await asyncio.sleep(self._chance.uniform(0, 0.01))
        self.done["drop of many"] += segments > 2
        self.done["garbage half deleted"] += 0 < len(self._log._garbage) < 2 * segments

    async def _save_hard_state(self) -> None:
        self._term += 1
        vote = self._chance.choice((None, "00000000-0000-4000-8000-000000000001"))
        hard_state = HardState(self._term, vote)
        self._note().hard_state_begun(hard_state)
        await self._log.run_job(lambda: self._hard_state.save(hard_state), urgent=True)
        self._note().hard_state_done(hard_state)

    async def _fill_disk(self) -> None:
        used = sum(len(data) for data in self.disk.files().values())
        self.disk.faults.capacity_bytes = used + self._chance.choice((0, 100, 8000))
        refused = False
        for _ in range(10):
            try:
                await self._append(2)
            except DiskFull:
                refused = True
                break
            await self._try_snapshot()
        self.done["disk full"] += refused
        self.disk.faults.capacity_bytes = None
        await asyncio.sleep(0.6)
        await self._append(1)

    async def _try_snapshot(self) -> None:
        try:
            await self._snapshot()
        except DiskFull:
            self.done["no room for a snapshot"] += 1

    async def _reset(self) -> None:
        """A snapshot from another node, far ahead of this log."""
        await self._log.run_job(lambda: None)
        index = self._log.tip.index + self._chance.randint(1, 50)
        tip = Tip(index, self._term, self._log.tip.next_offset + 70, self._log.tip.timestamp, index)
        self._note().reset_begun(tip)
        if self._chance.random() < 0.5:
            self._log.ask_for_room(self._chance.choice((0, 3000)))
            self.done["reset while space is asked for"] += 1
        snapshot = Snapshot(tip, node.snapshot_state(index))
        resetting = asyncio.ensure_future(self._log.reset(snapshot))
        if self._chance.random() < 0.5:
            await asyncio.sleep(0)
            self._log.ask_for_room(3000)
            # Retention looks now and then, whatever else is under way.
            self._log.drop_prefix(self._log.tip.index)
        try:
            await resetting
        except DiskFull:
            # Nothing else may be done but to try again.
            await asyncio.sleep(0.6)
            await self._log.reset(snapshot)
        self._committed = index
        self._crcs = {}
        self._note().reset_done()
        self._log.set_commit(index)
        self.done["reset"] += 1


class _Ended(Exception):
    """The process is dead, of its cause."""


class _Acknowledge(node.Events):
    """Notes every acknowledgement at the moment when the writer gave it."""

    def __init__(self, workload: Workload) -> None:
        super().__init__()
        self._workload = workload
        self.killed = False

    def durable(self, index: int) -> None:
        if self.killed:
            return
        crcs = {at: crc for at, crc in self._workload._crcs.items() if at <= index}
        self._workload.history.acknowledged(crcs)

    def failed(self, error: BaseException) -> None:
        if not self.killed:
            assert self._workload._fault is not None, f"the writer failed: {error}"
            assert isinstance(error, ProglogError), f"the writer failed with {error!r}"
            self.failure = error
