"""A random program against one log, which does everything that may happen to it."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Awaitable, Callable
from contextvars import Context
from typing import Any

from proglog.errors import DiskFull
from proglog.log.format import Tip
from proglog.log.log import Log
from proglog.log.snapshot import Snapshot
from proglog.raft.hard_state import HardStateFile
from proglog.raft.messages import HardState
from proglog.simulation.disk import Recording, SimDisk
from proglog.simulation.files import SimFiles
from tests.log.crash import node
from tests.log.crash.history import History


class Workload:
    """Runs in a simulated loop of its own; afterwards `recording` and `history` tell it all."""

    def __init__(self, seed: int) -> None:
        self.disk = SimDisk(seed)
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
        self._open()
        await self._append(3)
        weights: dict[Callable[[], Awaitable[None]], int] = {
            self._append_some: 40,
            self._idle: 10,
            self._commit: 10,
            self._cut: 10,
            self._snapshot: 8,
            self._drop_prefix: 6,
            self._save_hard_state: 6,
            self._fill_disk: 4,
            self._reset: 2,
            self._close_and_open: 3,
            self._kill_and_open: 3,
        }
        actions = list(weights)
        program = self._chance.choices(actions, list(weights.values()), k=steps) + actions
        self._chance.shuffle(program)
        for action in program:
            await action()
        await self._close()

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
        process = node.open_log(self.disk)
        outcome = node.outcome(process.opened)
        self._note().opened(outcome)
        self._files, self._hard_state = process.files, process.opened.hard_state
        self._unlock = process.opened.unlock
        self._events = _Acknowledge(self)
        self._log = process.start_log(self._events)
        self._crcs = dict(enumerate(outcome.crcs, outcome.base + 1))
        self._committed = max(self._committed, outcome.commit_hint)

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
        self._files.kill()
        self._events.killed = True
        self._open()

    # --- what a log does -------------------------------------------------------------------------

    def _append_now(self, count: int) -> None:
        for _ in range(count):
            values = [
                self._chance.randbytes(self._chance.choice((0, 5, 60, 400, 1200)))
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
        await self._log.make_room(2800)
        self._append_now(count)

    async def _append_some(self) -> None:
        await self._append(self._chance.randint(1, 4))
        if self._chance.random() < 0.6:
            await asyncio.sleep(0.001)

    async def _idle(self) -> None:
        await asyncio.sleep(0.05)

    async def _commit(self) -> None:
        await asyncio.sleep(0.001)
        index = self._chance.randint(self._committed, max(self._committed, self._log.durable_index))
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
        self._note().cut(last)
        segments = len(self._log.segment_facts())
        self._log.cut_suffix(last)
        self.done["cut of segments"] += segments > len(self._log.segment_facts())
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
        before = self.history.claim.snapshots_may
        try:
            await self._snapshot()
        except DiskFull:
            (index,) = self.history.claim.snapshots_may - before
            self._note().snapshot_refused(index)
            self.done["no room for a snapshot"] += 1

    async def _reset(self) -> None:
        """A snapshot from another node, far ahead of this log."""
        await self._log.run_job(lambda: None)
        index = self._log.tip.index + self._chance.randint(1, 50)
        tip = Tip(index, self._term, self._log.tip.next_offset + 70, self._log.tip.timestamp, index)
        self._note().reset_begun(tip)
        await self._log.reset(Snapshot(tip, node.snapshot_state(index)))
        self._committed = index
        self._crcs = {}
        self._note().reset_done()
        self._log.set_commit(index)
        self.done["reset"] += 1


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
            raise AssertionError("the writer failed") from error
