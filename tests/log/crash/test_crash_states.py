"""No power cut, and no fault of the disk, loses what was acknowledged or brings back what was not
there.

A workload with rolls, cuts of both ends, snapshots, an installed snapshot, hard states, restarts
and a full disk runs on the real engine, writer and recovery, over the simulated disk. Its crash
states are opened, and crashed a second time while they recover and right after. Then it runs again
and again, and each time something else of the disk fails, or is lost.
"""

from __future__ import annotations

from collections import Counter

import pytest

from tests.doubles.inode import Kind
from tests.log.crash.adversity import Tally
from tests.log.crash.budget import SCALE
from tests.log.crash.runs import HOW, SEEDS, explored, workload

ALL_SEEDS = [*SEEDS, *range(SCALE - 1)]

pytestmark = pytest.mark.timeout(120 * SCALE)


@pytest.mark.parametrize("seed", ALL_SEEDS)
@pytest.mark.parametrize("how", HOW)
def test_what_was_acknowledged_is_there(how: str, seed: int) -> None:
    result = explored(how, seed)
    operations = len(workload(seed).recording.operations)
    print(f"workload {seed}, {operations} operations, {how}: {dict(result.counts)}")
    assert not result.failures, "\n".join(map(str, result.failures))


def test_everything_was_met() -> None:
    tally, counts = Tally(), Counter[str]()
    for how in HOW:
        for seed in ALL_SEEDS:
            tally.update(explored(how, seed).tally)
            counts.update(explored(how, seed).counts)
    print(f"{dict(counts)}\n{tally}")
    assert not tally.missing(), tally.missing()


def test_the_workloads_do_everything() -> None:
    done: Counter[str] = Counter()
    operations: Counter[Kind] = Counter()
    for seed in SEEDS:
        done += workload(seed).done
        operations.update(each.kind for each in workload(seed).recording.operations)
    wanted = {
        "commit beyond durable",
        "cut",
        "cut into sealed",
        "cut of segments",
        "disk full",
        "drop",
        "drop of many",
        "garbage half deleted",
        "no room for a snapshot",
        "reset",
        "reset while space is asked for",
        "snapshot",
    }
    assert wanted <= set(done), f"choose other seeds: {wanted - set(done)}"
    failures = {Kind.READ, Kind.OPEN, Kind.MAP, Kind.SYNC_FAILED, Kind.WRITE_FAILED}
    assert set(operations) == set(Kind) - failures
