"""Servers that have forgotten something, in simulated worlds: disks that are set back, directories
that are copied."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.sim.faults import Fault, draw
from tests.sim.settings import Settings
from tests.sim.world import World, silence

OTHER_FAULTS = (
    "partition",
    "isolate_leader",
    "cut",
    "slow_network",
    "stall",
    "power_cut",
    "power_cut_at_operation",
    "kill",
    "stop",
    "pause",
    "clock",
    "slow_disk",
    "remove",
    "transfer",
)
"""Those that take no other disk away: of two lost at once nothing is promised."""


def world_of(seed: int, faults: tuple[str, ...]) -> World:
    settings = replace(
        Settings.draw(seed),
        faults=faults,
        safety_seconds=12.0,
        values_max=10_000,
        fault_seconds=0.7,
    )
    settings.limits["floors_seconds"] = 0.3
    world = World(settings)
    drawn = [fault for fault in draw(settings) if fault.at > 6.0]
    tries = [Fault(1000 + n, 2.0, "set_back", 0.5 + n / 2, seed + n) for n in range(6)]
    world.faults = [*tries, *drawn]
    return world


@pytest.mark.parametrize("faults", [(), OTHER_FAULTS], ids=["alone", "with other faults"])
@pytest.mark.parametrize("first", [1, 101])
def test_one_that_is_set_back_votes_and_acknowledges_nothing(
    first: int, faults: tuple[str, ...]
) -> None:
    """It is doubted by whoever meets it first, and the operator replaces it."""
    silence()
    found = 0
    for seed in range(first, first + 2):
        world = world_of(seed, faults)
        world.run()
        found += world.oracle.counts["set back, and doubted"]
        assert (
            world.oracle.counts["set back, and doubted"] == world.oracle.counts["fault: set_back"]
        )
    assert found


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_a_copy_beside_the_one_that_runs_takes_part_in_nothing(seed: int) -> None:
    """And the one that runs goes on: see `SimNode.look`."""
    silence()
    settings = replace(Settings.draw(seed, 3), faults=(), spare_nodes=0, safety_seconds=8.0)
    world = World(replace(settings, client_loss_rate=0.0))
    world.faults = [Fault(n, 2.0, "copy", n / 2, seed + n) for n in range(4)]
    world.run()
    assert world.oracle.counts["fault: copy"] == 4
