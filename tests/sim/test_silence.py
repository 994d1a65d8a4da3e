"""A network that loses everything for a while, in simulated worlds: see also `tests/net`."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from tests.sim.faults import Fault
from tests.sim.settings import Settings
from tests.sim.world import World, silence

LOSSES = (0.3, 0.9, 1.1, 2.0, 5.0, 14.0, 25.0, 60.0, 300.0)


@pytest.mark.parametrize("seed", range(1, 9))
def test_somebody_leads_soon_after_silence_of_any_length(seed: int) -> None:
    silence()
    settings = replace(Settings.draw(seed, 3), spare_nodes=0, faults=(), safety_seconds=10.0)
    # Enough is produced at any time, by clients that ask again soon.
    settings = replace(settings, values_max=10_000, call_seconds=0.5, client_loss_rate=0.0)
    # What is measured is this alone, by clocks that run as fast as those of the world.
    settings = replace(settings, learners=0, monotonic_rates=(1.0,), wrong_clocks=0)
    settings = replace(settings, log=replace(settings.log, retention_seconds=None))
    world = World(settings)
    losses = list(LOSSES)
    random.Random(seed).shuffle(losses)
    world.faults = [Fault(n, 2.0, "silence", seconds, n) for n, seconds in enumerate(losses[:4])]
    world.run()
    assert world.oracle.counts["fault: silence"] == 4
