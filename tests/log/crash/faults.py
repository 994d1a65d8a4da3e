"""One thing that goes wrong beside a power cut or instead of one: where, and what may come of it.

* `Faulty` runs a workload in which one operation fails. A refusal is survived; after anything else
  the process is dead, and a new one starts on the same kernel, or after a power cut.
* `Starts` starts on crash states while one operation of the start fails, or with one block lost.

What is redundant must cost nothing: no record, and no start. What is needed may refuse, in words.
"""

from __future__ import annotations

import errno
import random
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from proglog.log import format as fmt
from proglog.log import names as naming
from tests.doubles import crash
from tests.doubles.disk import Lost, SimDisk
from tests.doubles.inode import PAGE_BYTES, Kind
from tests.log.crash import node
from tests.log.crash.adversity import Access, Tally, access, numbered, part_of
from tests.log.crash.explore import Explorer, Failure, Tolerance, open_once
from tests.log.crash.history import Expectation, exactly
from tests.log.crash.workload import Fault, Workload

DESCRIPTORS = {Kind.OPEN, Kind.CREATE, Kind.MAP, Kind.SYNC_DIRECTORY}
SPACE = {Kind.CREATE, Kind.WRITE, Kind.GROW}
NEVER = {Kind.MKDIR}
"""Only the first start makes a folder."""
TORN_MAX = 3
"""Moments at which a write of data is torn before a start that fails."""


def errnos(kind: Kind, part: str) -> Iterator[int]:
    """With what an operation may fail. There is always space for what a log overwrites."""
    yield errno.EIO
    if kind in DESCRIPTORS:
        yield errno.EMFILE
    if kind is Kind.GROW or kind is Kind.CREATE or (kind is Kind.WRITE and part == "snapshot"):
        yield errno.ENOSPC


def label(fault: Fault) -> str:
    return f"{errno.errorcode[fault.errno]} at a {fault.kind.value}"


class Case(NamedTuple):
    """A fault, and which part of the log it meets."""

    fault: Fault
    part: str


def cases(accesses: list[Access], chance: random.Random, each_max: int) -> list[Case]:
    """Up to `each_max` faults for each kind of access to each part, and each errno."""
    found = []
    for (kind, part), numbers in numbered(accesses).items():
        if kind in NEVER:
            continue
        for number in errnos(kind, part):
            for at in chance.sample(numbers, min(each_max, len(numbers))):
                found.append(Case(Fault(kind, at, number), part))
    return found


# --- a workload in which something fails ---------------------------------------------------------


class Faulty:
    """Judges what stands after a workload in which `case` happened."""

    def __init__(self, seed: int, case: Case) -> None:
        self.workload = Workload(seed, case.fault)
        self.explorer = Explorer(self.workload, second_max=2, killed_max=4)
        self.tally = Tally()
        self._case = case
        self._label = f"seed {seed}, {label(case.fault)} {case.fault.number}, {case.part}"

    @property
    def failures(self) -> list[Failure]:
        return self.explorer.failures

    async def run(self, steps: int) -> None:
        """The workload; then starts on what it left."""
        await self.workload.run(steps)
        disk = self.workload.disk
        disk.on_access = None
        if disk.faults.fail_at or self.workload.is_off:
            return  # What the fault was for did not come about: the node took another way before.
        self.tally.add(label(self._case.fault), self._case.part)
        position = len(self.workload.recording.operations)
        await self.explorer.judge(position, f"{self._label}; no reboot", disk.copy())
        changes = disk.unsynced()
        chance = random.Random(self._label)
        for plan in [*crash.extremes(changes), crash.subset(changes, chance)]:
            then = f"{self._label}; {plan.label}"
            await self.explorer.judge(position, then, disk.crash(plan.fates))


# --- starts at which something fails -------------------------------------------------------------

ROT: dict[str, Lost] = {
    "block zeroed": Lost.ZEROED,
    "block garbage": Lost.GARBAGE,
    "block gone": Lost.UNREADABLE,
}
REDUNDANT = {"header", "header copy", "mark", "index", "manifest", "hard state", "reserved"}
"""One block of it, or one read, costs nothing."""


def tolerated(part: str, kind: Kind | None = None) -> Tolerance:
    """What may come of one lost block of a part, or of one failed operation of a start."""
    if part == "data":
        # Of what no mark speaks of nobody can tell whether it was acknowledged.
        return Tolerance(refusal=True, loss=True)
    if part == "snapshot":
        # An older one stands in, or the log itself; not where a prefix was dropped.
        return Tolerance(refusal=True, older_snapshot=True)
    if kind is Kind.OPEN and part == "manifest":
        # None of it can be read: what it said of the base is told from the segments.
        return Tolerance(refusal=True, older_base=True)
    if kind is Kind.OPEN and part in {"hard state", "data", "reserved"}:
        return Tolerance(refusal=True)
    return Tolerance(refusal=part not in REDUNDANT)


class Starts:
    """Judges starts on crash states of a workload to each of which one more thing happens."""

    def __init__(self, workload: Workload) -> None:
        self.workload = workload
        self.explorer = Explorer(workload, second_max=0)
        self.tally = Tally()

    @property
    def failures(self) -> list[Failure]:
        return self.explorer.failures

    async def rot(self, chance: random.Random, moments: int) -> None:
        """One block of each part is lost after the power is; or after a start that followed."""
        for position, disk in self._states(chance, moments):
            for path, block, part in _blocks(disk, chance):
                how = chance.choice(list(ROT))
                then = disk.copy()
                then.lose_block(path, block, ROT[how])
                self.tally.add(how, part)
                what = f"{how}: {block} of {path.name}"
                tolerance = tolerated(part)._replace(kept=_marked(disk))
                await self.explorer.judge(position, what, then, tolerance)
            await self._rot_after_start(position, disk.copy(), chance)

    async def _rot_after_start(self, position: int, disk: SimDisk, chance: random.Random) -> None:
        found, process = open_once(disk)
        if process is None:
            return
        process.files.kill()
        disk = disk.crash([False] * len(disk.unsynced()))
        for path, block, part in _blocks(disk, chance):
            if part not in REDUNDANT:
                continue
            how = chance.choice(list(ROT))
            then = disk.copy()
            then.lose_block(path, block, ROT[how])
            self.tally.add(how, part)
            outcome, _ = open_once(then)
            expected = Expectation((exactly(found),), frozenset({found.hard_state}))
            if violation := expected.violation(outcome):
                what = f"a start, then {how}: {block} of {path.name}"
                self.explorer.failures.append(Failure(position, what, violation))

    async def fail(self, chance: random.Random, moments: int) -> None:
        """One operation of each kind on each part fails while a process starts."""
        for position, disk in self._states(chance, moments):
            for case in cases(_accesses(disk), chance, 1):
                await self._fail(position, disk.copy(), case)
        # And while it cuts off what was torn, which it keeps aside.
        written = [
            position
            for position, done in enumerate(self.workload.recording.operations, 1)
            if access(done.kind, done.path, done.position) == Access(Kind.WRITE, "data")
        ]
        for position in chance.sample(written, min(TORN_MAX, len(written))):
            await self._fail_aside(position, chance)

    async def _fail_aside(self, position: int, chance: random.Random) -> None:
        for at, disk in enumerate(self.workload.recording.points()):
            for plan in crash.tears(disk.unsynced(), 1, chance, 1) if at == position else ():
                torn = disk.crash(plan.fates)
                for case in cases(_accesses(torn), chance, 1):
                    if case.part == "aside":
                        await self._fail(position, torn.copy(), case)

    async def _fail(self, position: int, disk: SimDisk, case: Case) -> None:
        what = f"{label(case.fault)} {case.fault.number} of a start, {case.part}"
        self.tally.add(label(case.fault), case.part)
        disk.faults.fail_at[case.fault.kind, case.fault.number] = case.fault.errno
        kind = case.fault.kind
        is_read = kind in {Kind.READ, Kind.OPEN} and case.fault.errno == errno.EIO
        # Whatever is refused now, nothing is lost by it.
        tolerance = tolerated(case.part, kind) if is_read else Tolerance(refusal=True)
        found, process = open_once(disk)
        await self.explorer.check(position, what, found, tolerance)
        if process is not None:
            process.files.kill()
        loss = tolerance.loss or tolerance.older_base
        after = tolerance if loss and process is not None else Tolerance()
        await self.explorer.judge(position, f"{what}; the next one", disk.copy(), after)

    def _states(self, chance: random.Random, count: int) -> Iterator[tuple[int, SimDisk]]:
        """Random moments of the workload, after a power cut."""
        operations = len(self.workload.recording.operations)
        chosen = set(chance.sample(range(operations + 1), min(count, operations + 1)))
        for position, disk in enumerate(self.workload.recording.points()):
            if position in chosen and not self.explorer.has_failed:
                plan = chance.choice(list(crash.extremes(disk.unsynced())))
                yield position, disk.crash(plan.fates)


def _marked(disk: SimDisk) -> int:
    """The batch up to which the newest mark says that all was synced: to lose one of these in
    silence is tolerated by nobody."""
    stores = naming.stores(disk.listing(node.FOLDER))
    if not stores:
        return 0
    path = node.FOLDER / naming.store_name(stores[-1])
    data = disk.files()[path]
    marks = (fmt.parse_mark(data[at : at + PAGE_BYTES], path) for at in fmt.MARK_POSITIONS)
    return max((mark.tip.index for mark in marks if mark is not None), default=0)


def _accesses(disk: SimDisk) -> list[Access]:
    """What a start asks of this disk."""
    clean, told = disk.copy(), list[Access]()
    clean.on_access = lambda *of: told.append(access(*of))
    open_once(clean)
    return told


def _blocks(disk: SimDisk, chance: random.Random) -> Iterator[tuple[Path, int, str]]:
    """A block of each part that there is."""
    by_part: dict[str, list[tuple[Path, int]]] = defaultdict(list)
    for path, data in disk.files().items():
        for block in range(-(-len(data) // PAGE_BYTES)):
            by_part[part_of(path, block * PAGE_BYTES)].append((path, block))
    for part, found in by_part.items():
        yield (*chance.choice(found), part)
