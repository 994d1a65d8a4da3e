"""Opens the crash states of a workload, crashes each again while it recovers, and judges them all.

Many states are the same bytes, and what recovery makes of a state depends on nothing else. So each
distinct one is opened and crashed again once, and its outcomes are judged for every moment that
leads to it.
"""

from __future__ import annotations

import asyncio
import random
import traceback
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from typing import NamedTuple

from proglog.errors import ProglogError, RangeCorrupt
from tests.doubles import crash
from tests.doubles.crash import Plan
from tests.doubles.disk import SimDisk
from tests.doubles.inode import Kind, Operation
from tests.log.crash import node
from tests.log.crash.adversity import PREAMBLE, Tally, met_by
from tests.log.crash.history import Claim, Expectation, Outcome, exactly
from tests.log.crash.workload import Workload

SYNCS = {Kind.SYNC, Kind.SYNC_DIRECTORY, Kind.MKDIR}
FAILURES_MAX = 5
"""Of one workload; then its exploration stops."""


class Failure(NamedTuple):
    """A state that must not be, and how to get there."""

    operations: int
    plan: str
    violation: str


class Tolerance(NamedTuple):
    """What may be in a state of which more is lost than a power cut may take. What was never
    appended, or was cut, is never tolerated."""

    refusal: bool = False
    """A start may refuse, or fail, with an error that says so."""
    loss: bool = False
    """Records of what was lost may be lost, or not readable,"""
    kept: int = 0
    """but not in silence up to this batch."""
    older_snapshot: bool = False
    older_base: bool = False

    def relaxed(self, claim: Claim) -> Claim:
        if self.loss:
            must = {index: crc for index, crc in claim.must.items() if index <= self.kept}
            claim = replace(claim, must=must)
        if self.older_snapshot:
            claim = replace(claim, snapshot_must=0)
        if self.older_base:
            claim = replace(claim, base_min=0, may=_Anything(claim.may))
        return claim


NONE = Tolerance()


class _Anything(dict[int, frozenset[int]]):
    """Before a base that is forgotten stands what was written there."""

    def get(self, index: int, default: object = None) -> object:  # type: ignore[override]
        found = super().get(index)
        return found if found is not None else node.written

    def __contains__(self, index: object) -> bool:
        return True


class _Use(NamedTuple):
    """A process that opened a disk, showed what it found, appended a batch, and ended."""

    found: Outcome
    shown_at: int
    appended: dict[int, int]
    acknowledged_at: int


REFUSED = "refused: "
UNREADABLE = "not readable: "


def failed(error: str) -> Outcome:
    """The outcome of a start that went wrong."""
    return Outcome(0, (), frozenset(), node.NO_HARD_STATE, 0, error)


def open_once(disk: SimDisk) -> tuple[Outcome, node.Process | None]:
    """What a process finds that is started on this disk, and the process if it goes on."""
    try:
        process = node.open_log(disk)
    except ProglogError as error:
        return failed(f"{REFUSED}{error}"), None
    except OSError as error:
        if error.filename is None:
            return failed(f"nobody knows where: {error!r}"), None
        return failed(f"{REFUSED}{error}"), None
    except BaseException:  # whatever it is, it is a finding
        return failed(traceback.format_exc(limit=-4)), None
    try:
        return node.outcome(process), process
    except RangeCorrupt as error:
        return failed(f"{UNREADABLE}{error}"), None
    except BaseException:  # whatever it is, it is a finding
        return failed(traceback.format_exc(limit=-4)), None


class Explorer:
    """Judges the crash states of one workload. Runs in a simulated loop.

    `second_max` bounds the moments at which the recovery from one state is crashed in turn,
    `killed_max` those of a process that was killed: what it left unsynced lies in wait.
    """

    def __init__(self, workload: Workload, second_max: int, killed_max: int | None = None) -> None:
        self.tally = Tally()
        self.counts: Counter[str] = Counter()
        self.failures: list[Failure] = []
        self._workload = workload
        self._second_max = second_max
        self._killed_max = killed_max
        self._opened: dict[bytes, Outcome] = {}
        self._explored: dict[bytes, set[Outcome]] = {}

    # --- the states of a workload ----------------------------------------------------------------

    async def systematic(self, chance: random.Random, share: float) -> None:
        """Every prefix of the operations; of each, every unsynced change lost alone or kept alone,
        and the process killed with the last operation done but not synced. Or of a share of them.
        """
        operations = self._workload.recording.operations
        for position, disk in self._moments(chance, share):
            changes = disk.unsynced()
            for plan in [*crash.extremes(changes), *crash.singles(changes)]:
                await self._judge_plan(position, plan, disk)
            if position and operations[position - 1].kind not in SYNCS:
                await self.judge(position, "kill -9", disk.copy())

    async def torn(self, chance: random.Random, tears_max: int, share: float) -> None:
        """Every write torn at every sector boundary, and at up to `tears_max` bytes."""
        for position, disk in self._moments(chance, share):
            changes = disk.unsynced()
            by_sector = crash.tears(changes, crash.SECTOR_BYTES)
            by_byte = crash.tears(changes, 1, chance, tears_max)
            for plan in [*by_sector, *by_byte]:
                await self._judge_plan(position, plan, disk)

    async def blocks(self, chance: random.Random, moments: int) -> None:
        """Each block of what is being written lost, or not readable any more."""
        operations = len(self._workload.recording.operations)
        chosen = set(chance.sample(range(operations + 1), min(moments, operations + 1)))
        for position, disk in self._moments():
            for plan in crash.blocks(disk.unsynced()) if position in chosen else ():
                await self._judge_plan(position, plan, disk)

    async def subsets(self, chance: random.Random, count: int) -> None:
        """`count` random subsets of the unsynced changes in all, spread over all moments."""
        moments = len(self._workload.recording.operations) + 1
        share = Counter(chance.randrange(moments) for _ in range(count))
        for position, disk in self._moments():
            changes = disk.unsynced()
            for _ in range(share[position]):
                plan = crash.subset(changes, chance)
                plan = plan._replace(label=f"{plan.label} {plan.fates}")
                await self._judge_plan(position, plan, disk)

    def _moments(
        self, chance: random.Random | None = None, share: float = 1.0
    ) -> Iterator[tuple[int, SimDisk]]:
        for position, disk in enumerate(self._workload.recording.points()):
            if self.has_failed:
                return
            if chance is None or chance.random() < share:
                yield position, disk

    # --- judging ---------------------------------------------------------------------------------

    @property
    def has_failed(self) -> bool:
        return len(self.failures) >= FAILURES_MAX

    async def _judge_plan(self, position: int, plan: Plan, disk: SimDisk) -> None:
        met = met_by(disk.unsynced(), plan.fates)
        for adversity, part in met:
            self.tally.add(adversity, part)
        # Such a block may also have held what was synced: only what is redundant survives that.
        parts = {part for adversity, part in met if adversity == "block unreadable"}
        needed = bool(parts - PREAMBLE - {"manifest", "hard state"})
        tolerance = Tolerance(refusal="data" in parts, loss="data" in parts) if needed else NONE
        await self.judge(position, plan.label, disk.crash(plan.fates), tolerance)

    async def judge(
        self, position: int, label: str, disk: SimDisk, tolerance: Tolerance = NONE
    ) -> None:
        """Opens a state that stands after so many operations, crashes it again, and judges it."""
        self.counts["states"] += 1
        for outcome in await self._explore(disk):
            if await self.check(position, label, outcome, tolerance):
                return

    async def check(
        self, position: int, label: str, outcome: Outcome, tolerance: Tolerance = NONE
    ) -> bool:
        """Judges one outcome; whether it must not be."""
        if tolerance.refusal and outcome.error.startswith(REFUSED):
            self.counts["refused"] += 1
            return False
        if tolerance.loss and outcome.error.startswith(UNREADABLE):
            self.counts["not readable"] += 1
            return False
        for claims, hard_states in self._workload.history.at(position):
            expectation = Expectation(tuple(map(tolerance.relaxed, claims)), hard_states)
            if violation := expectation.violation(outcome):
                self.failures.append(Failure(position, label, violation))
                return True
        return False

    async def _explore(self, disk: SimDisk) -> set[Outcome]:
        """All that may be found on this disk: now, or after a second crash."""
        if disk.unsynced():
            return await self._open_and_crash(disk)
        digest = disk.digest()
        if digest not in self._explored:
            self._explored[digest] = await self._open_and_crash(disk)
        return self._explored[digest]

    async def _open_and_crash(self, disk: SimDisk) -> set[Outcome]:
        self.counts["distinct"] += 1
        chance = random.Random(disk.digest())
        recording = disk.record()
        killed = bool(disk.unsynced())
        use = await _use(disk)
        outcomes = {use.found}
        # What a killed process left unsynced lies in wait for the whole recovery.
        moments = range(use.shown_at + 1 if killed else len(recording.operations) + 1)
        most = self._killed_max if killed else self._second_max
        chosen = moments if most is None else chance.sample(moments, min(most, len(moments)))
        for position, then in enumerate(recording.points()):
            if position > max(chosen, default=-1):
                break
            if position in chosen:
                self._crash_again(use, position, then, chance, outcomes)
        return outcomes

    def _crash_again(
        self,
        use: _Use,
        position: int,
        disk: SimDisk,
        chance: random.Random,
        outcomes: set[Outcome],
    ) -> None:
        for plan in _some_plans(disk.unsynced(), chance):
            self.counts["second crashes"] += 1
            outcome = self._open(disk.crash(plan.fates))
            if position < use.shown_at or use.found.error:
                # Nobody has seen anything yet: what held for the first crash must hold still.
                outcomes.add(outcome)
            elif violation := _promised(use, position).violation(outcome):
                outcomes.add(
                    failed(f"a second crash at {position}, {plan.label}: {violation}; was {use}")
                )

    def _open(self, disk: SimDisk) -> Outcome:
        digest = disk.digest()
        if digest not in self._opened:
            self._opened[digest] = open_once(disk)[0]
        return self._opened[digest]


async def _use(disk: SimDisk) -> _Use:
    found, process = open_once(disk)
    shown_at = disk.operations
    if process is None:
        return _Use(found, shown_at, {}, shown_at)
    events = node.Events()
    log = process.start_log(events)
    await log.make_room(300)
    header, parts = node.build_batch(log.tip, [b"after the crash"])
    log.append(header, parts)
    while events.durable_index < header.index and events.failure is None:
        await asyncio.sleep(0)
    if events.failure is not None:
        # It had to write to a block that the disk cannot read.
        assert any(inode.unreadable for inode in disk.inodes.values()), events.failure
        process.files.kill()
        return _Use(found, shown_at, {}, disk.operations)
    acknowledged_at = disk.operations
    await log.close()
    return _Use(found, shown_at, {header.index: header.header_crc}, acknowledged_at)


def _promised(use: _Use, position: int) -> Expectation:
    """What must be there once something was shown: that, and the batch that followed."""
    claim = exactly(use.found)
    may = {**claim.may, **{index: frozenset({crc}) for index, crc in use.appended.items()}}
    must = {**claim.must, **(use.appended if position >= use.acknowledged_at else {})}
    return Expectation((replace(claim, must=must, may=may),), frozenset({use.found.hard_state}))


def _some_plans(changes: list[Operation], chance: random.Random) -> Iterator[Plan]:
    yield from crash.extremes(changes)
    if len(changes) > 1:
        yield from chance.sample(list(crash.singles(changes)), 2)
        yield crash.subset(changes, chance)
