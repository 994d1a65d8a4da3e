"""The explorations, by name: what each workload is put through, once a process.

    python -m tests.log.crash [--seeds 20] [--first 0]

explores other workloads than the tests do, and prints what it has met.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from functools import cache

from tests.doubles.loop import run
from tests.log.crash.adversity import Tally
from tests.log.crash.budget import SCALE, SUBSETS
from tests.log.crash.explore import Explorer, Failure
from tests.log.crash.faults import Faulty, Starts, cases
from tests.log.crash.workload import Workload

SEEDS = [5, 33, 35]
"""Short workloads that together do everything: `test_the_workloads_do_everything`."""
STEPS = 14
MOMENTS_SHARE = 0.2 if SCALE == 1 else 1.0
"""Of all operations, after which every single change is lost."""
TEARS_SHARE = 0.1 if SCALE == 1 else 1.0
TEARS_AT_A_BYTE = 4
"""Of each unsynced write, at each moment."""
SECOND_CRASHES = 2
BLOCKS_MOMENTS = 200 * SCALE
ROT_MOMENTS = 150 * SCALE
START_MOMENTS = 10 * SCALE
FAULTS_EACH = 3 if SCALE == 1 else 20
"""Of each kind of operation on each part of the log, and each errno."""


@dataclass(slots=True)
class Result:
    """What came of one exploration of one workload."""

    counts: Counter[str] = field(default_factory=Counter)
    tally: Tally = field(default_factory=Tally)
    failures: list[Failure] = field(default_factory=list)

    def add(self, explorer: Explorer, tally: Tally) -> None:
        self.counts.update(explorer.counts)
        self.tally.update(explorer.tally)
        self.tally.update(tally)
        self.failures += explorer.failures


@cache
def workload(seed: int) -> Workload:
    made = Workload(seed)
    run(made.run(STEPS), seed=seed)
    return made


def _explored(seed: int, how: Callable[[Explorer, random.Random], Awaitable[None]]) -> Result:
    explorer = Explorer(workload(seed), SECOND_CRASHES)

    async def main() -> None:
        await how(explorer, random.Random(seed))

    run(main())
    result = Result()
    result.add(explorer, Tally())
    return result


def _changes(seed: int) -> Result:
    return _explored(seed, lambda explorer, chance: explorer.systematic(chance, MOMENTS_SHARE))


def _tears(seed: int) -> Result:
    return _explored(
        seed, lambda explorer, chance: explorer.torn(chance, TEARS_AT_A_BYTE, TEARS_SHARE)
    )


def _subsets(seed: int) -> Result:
    count = -(-SUBSETS // len(SEEDS))
    return _explored(seed, lambda explorer, chance: explorer.subsets(chance, count))


def _blocks(seed: int) -> Result:
    return _explored(seed, lambda explorer, chance: explorer.blocks(chance, BLOCKS_MOMENTS))


def _starts(seed: int, how: Callable[[Starts, random.Random], Awaitable[None]]) -> Result:
    starts = Starts(workload(seed))

    async def main() -> None:
        await how(starts, random.Random(seed))

    run(main())
    result = Result()
    result.add(starts.explorer, starts.tally)
    return result


def _rot(seed: int) -> Result:
    return _starts(seed, lambda starts, chance: starts.rot(chance, ROT_MOMENTS))


def _failing_starts(seed: int) -> Result:
    return _starts(seed, lambda starts, chance: starts.fail(chance, START_MOMENTS))


def _failing_workloads(seed: int) -> Result:
    result = Result()
    for case in cases(workload(seed).accesses, random.Random(seed), FAULTS_EACH):
        faulty = Faulty(seed, case)
        run(faulty.run(STEPS), seed=seed)
        result.add(faulty.explorer, faulty.tally)
    return result


HOW: dict[str, Callable[[int], Result]] = {
    "every single change": _changes,
    "torn writes": _tears,
    "random subsets": _subsets,
    "lost blocks": _blocks,
    "rot": _rot,
    "failing starts": _failing_starts,
    "failing workloads": _failing_workloads,
}


@cache
def explored(how: str, seed: int) -> Result:
    """One exploration of one workload."""
    return HOW[how](seed)
