"""No power cut loses what was acknowledged or brings back what was not there.

A workload with rolls, cuts of both ends, snapshots, an installed snapshot, hard states, restarts
and a full disk runs on the real engine, writer and recovery, over the simulated disk. Its crash
states are opened, and crashed a second time while they recover and right after.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Awaitable, Callable
from functools import cache

import pytest

from proglog.simulation.disk import Kind
from proglog.simulation.loop import run
from tests.log.crash.budget import SCALE, SUBSETS
from tests.log.crash.explore import Explorer
from tests.log.crash.workload import Workload

SEEDS = [270, 286, 199, *range(SCALE - 1)]
"""Short workloads that together do everything: `test_the_workloads_do_everything`."""
STEPS = 14
TEARS_AT_A_BYTE = 4
"""Of each unsynced write, at each moment."""
SECOND_CRASHES = 2

pytestmark = pytest.mark.timeout(120)


@cache
def workload(seed: int) -> Workload:
    made = Workload(seed)
    run(made.run(STEPS), seed=seed)
    return made


def explore(seed: int, how: Callable[[Explorer, random.Random], Awaitable[None]]) -> None:
    """Runs one exploration of a workload's crash states, and tells what it saw."""
    explorer = Explorer(workload(seed), SECOND_CRASHES)

    async def main() -> None:
        await how(explorer, random.Random(seed))

    run(main())
    operations = len(workload(seed).recording.operations)
    print(f"workload {seed}, {operations} operations: {dict(explorer.counts)}")
    assert not explorer.failures, "\n".join(map(str, explorer.failures))


@pytest.mark.parametrize("seed", SEEDS)
def test_every_prefix_and_every_single_change(seed: int) -> None:
    explore(seed, lambda explorer, _: explorer.systematic())


@pytest.mark.parametrize("seed", SEEDS)
def test_torn_writes(seed: int) -> None:
    explore(seed, lambda explorer, chance: explorer.torn(chance, TEARS_AT_A_BYTE))


@pytest.mark.parametrize("seed", SEEDS)
def test_random_subsets(seed: int) -> None:
    explore(seed, lambda explorer, chance: explorer.subsets(chance, -(-SUBSETS // len(SEEDS))))


def test_the_workloads_do_everything() -> None:
    done: Counter[str] = Counter()
    operations: Counter[Kind] = Counter()
    for seed in SEEDS:
        done += workload(seed).done
        operations.update(each.kind for each in workload(seed).recording.operations)
    wanted = {"cut", "cut of segments", "snapshot", "drop", "disk full", "reset"}
    assert wanted | {"no room for a snapshot"} <= set(done), "choose other seeds"
    failures = {Kind.READ, Kind.SYNC_FAILED}
    assert set(operations) == set(Kind) - failures
