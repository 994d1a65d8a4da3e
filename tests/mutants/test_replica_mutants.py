"""The mutants of the replica fit the source they are made for, and the simulator sees faults.

`python tests/mutants/replica.py` (`make mutants`) runs all of them.
"""

from __future__ import annotations

import pytest

from tests.mutants import replica


def test_every_mutant_fits_the_source() -> None:
    replica.check_edits(replica.MUTANTS)


@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    ("name", "check"),
    [
        ("ack before fsync", "committed is durable"),
        ("vote not persisted", "term before durable"),
        ("hard-state copies written alternately", "promise is lost"),
    ],
)
def test_a_mutant_is_killed(name: str, check: str) -> None:
    mutant = next(each for each in replica.MUTANTS if each.name == name)
    assert replica.run(mutant, 30.0).killed_by == check
