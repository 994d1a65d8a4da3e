"""The mutants of the storage engine fit the source they are made for, and the explorer sees faults.

`python tests/mutants/engine.py` (`make mutants`) runs all of them.
"""

from __future__ import annotations

import pytest

from tests.mutants import engine, replica


def test_every_mutant_fits_the_source() -> None:
    replica.check_edits(engine.MUTANTS)


@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    "name",
    ["a mark's commit is not bounded by its index", "a change is begun in memory only"],
)
def test_a_mutant_is_killed(name: str) -> None:
    mutant = next(each for each in engine.MUTANTS if each.name == name)
    assert engine.run(mutant, 60.0).killed_by == "found"
