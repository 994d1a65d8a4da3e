"""The log against a plain list, with crashes and restarts among the operations."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)

from proglog.batch import BatchHeader
from proglog.config import LogConfig
from proglog.log.format import ORIGIN, Tip
from proglog.log.snapshot import Snapshot
from proglog.log.verify import verify
from tests.log.support import Engine, build

CONFIG = LogConfig(segment_bytes=18 * 1024, segment_batches=5)
Batch = tuple[BatchHeader, list[bytes]]


class LogMachine(RuleBasedStateMachine):
    """`batches` is the model: what the log holds behind `before`."""

    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.root = Path(tempfile.mkdtemp(prefix="proglog-"))
        self.generation = 0
        self.before = ORIGIN
        self.batches: list[Batch] = []
        self.snapshots: dict[int, bytes] = {}
        self.term = 1
        self.time = 0
        self.engine: Engine

    @initialize()
    def start(self) -> None:
        self._open(self.root / "0")

    def teardown(self) -> None:
        if hasattr(self, "engine"):
            self._run(self.engine.__aexit__())
            assert verify(self.engine.folder).entries == ()
        self.runner.close()
        shutil.rmtree(self.root)

    def _run(self, coroutine: Any) -> Any:
        return self.runner.run(coroutine)

    def _open(self, folder: Path) -> None:
        self.engine = Engine(folder, config=CONFIG)
        self._run(self.engine.__aenter__())

    @property
    def tip(self) -> Tip:
        return Tip.after(self.batches[-1][0]) if self.batches else self.before

    def _at(self, index: int) -> Batch:
        return self.batches[index - self.before.index - 1]

    # --- operations ------------------------------------------------------------------------------

    @rule(sizes=st.lists(st.integers(0, 60), max_size=4), large=st.integers(0, 40))
    def append(self, sizes: list[int], large: int) -> None:
        values = [bytes([65 + n]) * size for n, size in enumerate(sizes)]
        if large == 0:
            values.append(bytes(7000))
        self._append(values)

    @rule(count=st.integers(1, 12))
    def append_many(self, count: int) -> None:
        for number in range(count):
            self._append([b"%d" % number])

    def _append(self, values: list[bytes]) -> None:
        header, parts = build(self.tip, values, term=self.term, timestamp=self.time)

        async def append() -> None:
            await self.engine.log.make_room(header.size)
            self.engine.log.append(header, parts)

        self._run(append())
        self.batches.append((header, values))

    @rule(seconds=st.integers(1, 3))
    def time_passes(self, seconds: int) -> None:
        self.time += seconds
        self.engine.clock.ms = self.time

    @rule(back=st.integers(1, 20))
    def cut(self, back: int) -> None:
        """As a follower does; what a snapshot stands for is committed and never cut."""
        lowest = max([self.before.index, *self.snapshots])
        last = max(self.tip.index - back, lowest)
        if last < self.tip.index:
            self._run(self._cut(last))
            del self.batches[last - self.before.index :]
            self.term += 1

    async def _cut(self, last: int) -> None:
        await self.engine.log.prepare_cut(last)
        self.engine.log.cut_suffix(last)
        await self.engine.settled()

    @rule()
    def write_snapshots(self) -> None:
        """At the end of each sealed segment after the newest one; two are kept."""
        for tip in self.engine.log.sealed_tips():
            if tip.index > max(self.snapshots, default=0):
                state = b"state %d" % tip.index
                self._run(self._snapshot(tip, state))
                self.snapshots[tip.index] = state
                for index in sorted(self.snapshots)[1:-1]:
                    del self.snapshots[index]

    async def _snapshot(self, tip: Tip, state: bytes) -> None:
        await self.engine.all_durable()
        await self.engine.log.write_snapshot(tip, lambda: state)

    @rule(kept=st.integers(0, 15))
    def drop(self, kept: int) -> None:
        first_index = self.tip.index - kept
        ends = [tip for tip in self.engine.log.sealed_tips() if tip.index < first_index]
        ends = [tip for tip in ends if tip.index <= max(self.snapshots, default=0)]
        count = self._run(self._drop(first_index))
        assert bool(count) == bool(ends)
        if ends:
            base = ends[-1]
            del self.batches[: base.index - self.before.index]
            self.before = base
            self.snapshots = {i: s for i, s in self.snapshots.items() if i >= base.index}

    async def _drop(self, first_index: int) -> int:
        count = self.engine.log.drop_prefix(first_index)
        await self.engine.settled()
        return count

    @rule(ahead=st.integers(1, 50))
    def reset(self, ahead: int) -> None:
        """A snapshot from a leader replaces everything."""
        tip = self.tip
        far = Tip(tip.index + ahead, self.term, tip.next_offset + ahead, self.time, 99)
        self._run(self.engine.log.reset(Snapshot(far, b"far")))
        self.before, self.batches, self.snapshots = far, [], {far.index: b"far"}

    # --- restarts --------------------------------------------------------------------------------

    @rule()
    def restart(self) -> None:
        self._run(self.engine.__aexit__())
        self._open(self.engine.folder)

    @rule(waiting=st.integers(0, 6))
    def crash(self, waiting: int) -> None:
        """kill -9: a copy of the directory as it is, without closing. Appends that wait for the
        writer are lost, nothing that is durable."""
        self.generation += 1
        copy = self.root / str(self.generation)
        self._run(self._crash(waiting, copy))
        self._open(copy)

    async def _crash(self, waiting: int, copy: Path) -> None:
        engine = self.engine
        await engine.all_durable()
        await engine.settled()
        engine.hold()
        for _ in range(waiting):
            header, parts = build(engine.log.tip, [b"lost"], term=self.term, timestamp=self.time)
            if engine.log.has_room(header.size):
                engine.log.append(header, parts)
        shutil.copytree(engine.folder, copy)
        await engine.__aexit__()

    # --- what must hold --------------------------------------------------------------------------

    @invariant()
    def bounds_agree(self) -> None:
        if not hasattr(self, "engine"):
            return
        log = self.engine.log
        assert self.engine.failure is None
        assert (log.before, log.tip) == (self.before, self.tip)
        assert log.snapshot_indexes == sorted(self.snapshots)
        assert log.bytes_upto(self.tip.index) == sum(h.size for h, _ in self.batches)

    @precondition(lambda self: self.batches)
    @rule(data=st.data())
    def lookups_agree(self, data: st.DataObject) -> None:
        log = self.engine.log
        index = data.draw(st.integers(self.before.index + 1, self.tip.index))
        header, _ = self._at(index)
        assert (log.term_at(index), log.base_offset(index)) == (header.term, header.base_offset)
        assert log.size_of(index) == header.size
        assert self._run(self._tip_at(index)) in {Tip.after(header), None}
        time = data.draw(st.integers(0, self.time + 1))
        later = [h.index for h, _ in self.batches if h.timestamp >= time]
        assert log.index_of_time(time) == (later[0] if later else self.tip.index + 1)
        if self.tip.next_offset > self.before.next_offset:
            offset = data.draw(st.integers(self.before.next_offset, self.tip.next_offset - 1))
            expected = [h.index for h, _ in self.batches if h.base_offset <= offset][-1]
            assert log.index_of_offset(offset) == expected

    async def _tip_at(self, index: int) -> Tip | None:
        return self.engine.log.tip_at(index)

    @precondition(lambda self: self.batches)
    @rule(data=st.data(), bytes_max=st.integers(0, 3000))
    def reads_agree(self, data: st.DataObject, bytes_max: int) -> None:
        first = data.draw(st.integers(self.before.index + 1, self.tip.index))
        last = data.draw(st.integers(first, self.tip.index))
        values = self._run(self.engine.read(first, last, bytes_max))
        assert values == [v for index in range(first, last + 1) for v in self._at(index)[1]]

    @rule()
    def snapshots_agree(self) -> None:
        if self.snapshots:
            newest = self._run(self.engine.log.read_snapshot())
            assert (newest.tip.index, newest.state) == max(self.snapshots.items())


TestLogMachine = LogMachine.TestCase
TestLogMachine.settings = settings(
    max_examples=40,
    stateful_step_count=30,
    deadline=None,
    derandomize=True,
    suppress_health_check=list(HealthCheck),
)
