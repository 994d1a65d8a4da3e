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

from proglog.errors import ProglogError
from proglog.simulation import crash
from proglog.simulation.crash import Plan
from proglog.simulation.disk import Kind, Operation, SimDisk
from tests.log.crash import node
from tests.log.crash.history import Expectation, Outcome, exactly
from tests.log.crash.workload import Workload

SYNCS = {Kind.SYNC, Kind.SYNC_DIRECTORY, Kind.MKDIR}
FAILURES_MAX = 5
"""Of one workload; then its exploration stops."""


class Failure(NamedTuple):
    """A state that must not be, and how to get there."""

    operations: int
    plan: str
    violation: str


class _Use(NamedTuple):
    """A process that opened a disk, showed what it found, appended a batch, and ended."""

    found: Outcome
    shown_at: int
    appended: dict[int, int]
    acknowledged_at: int


def failed(error: str) -> Outcome:
    """The outcome of a start that went wrong."""
    return Outcome(0, (), frozenset(), node.NO_HARD_STATE, 0, error)


def open_once(disk: SimDisk) -> tuple[Outcome, node.Process | None]:
    """What a process finds that is started on this disk, and the process if it goes on."""
    try:
        process = node.open_log(disk)
        return node.outcome(process.opened), process
    except ProglogError as error:
        return failed(f"refused: {error}"), None
    except Exception:  # whatever it is, it is a finding
        return failed(traceback.format_exc(limit=-4)), None


class Explorer:
    """Judges the crash states of one workload. Runs in a simulated loop.

    `second_max` bounds the moments at which the recovery from one state is crashed in turn.
    """

    def __init__(self, workload: Workload, second_max: int) -> None:
        self.counts: Counter[str] = Counter()
        self.failures: list[Failure] = []
        self._workload = workload
        self._second_max = second_max
        self._opened: dict[bytes, Outcome] = {}
        self._explored: dict[bytes, set[Outcome]] = {}

    # --- the states of a workload ----------------------------------------------------------------

    async def systematic(self) -> None:
        """Every prefix of the operations; of each, every unsynced change lost alone or kept alone,
        and the process killed with the last operation done but not synced."""
        operations = self._workload.recording.operations
        for position, disk in self._moments():
            changes = disk.unsynced()
            for plan in [*crash.extremes(changes), *crash.singles(changes)]:
                await self._judge(position, plan.label, disk.crash(plan.fates))
            if position and operations[position - 1].kind not in SYNCS:
                await self._judge(position, "kill -9", disk.copy())

    async def torn(self, chance: random.Random, tears_max: int) -> None:
        """Every write torn at every sector boundary, and at up to `tears_max` bytes."""
        for position, disk in self._moments():
            changes = disk.unsynced()
            by_sector = crash.tears(changes, crash.SECTOR_BYTES)
            by_byte = crash.tears(changes, 1, chance, tears_max)
            for plan in [*by_sector, *by_byte]:
                await self._judge(position, plan.label, disk.crash(plan.fates))

    async def subsets(self, chance: random.Random, count: int) -> None:
        """`count` random subsets of the unsynced changes in all, spread over all moments."""
        moments = len(self._workload.recording.operations) + 1
        share = Counter(chance.randrange(moments) for _ in range(count))
        for position, disk in self._moments():
            changes = disk.unsynced()
            for _ in range(share[position]):
                plan = crash.subset(changes, chance)
                await self._judge(position, f"{plan.label} {plan.fates}", disk.crash(plan.fates))

    def _moments(self) -> Iterator[tuple[int, SimDisk]]:
        for position, disk in enumerate(self._workload.recording.points()):
            if len(self.failures) >= FAILURES_MAX:
                return
            yield position, disk

    # --- judging ---------------------------------------------------------------------------------

    async def _judge(self, position: int, label: str, disk: SimDisk) -> None:
        self.counts["states"] += 1
        outcomes = await self._explore(disk)
        for expectation in self._workload.history.at(position):
            for outcome in outcomes:
                if violation := expectation.violation(outcome):
                    self.failures.append(Failure(position, label, violation))
                    return

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
        chosen = moments if killed else chance.sample(moments, min(self._second_max, len(moments)))
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
            if position < use.shown_at:
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
    while events.durable_index < header.index:
        assert events.failure is None, events.failure
        await asyncio.sleep(0)
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
