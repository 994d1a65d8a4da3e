"""A cluster that rolls from one version of the state to the next, whatever fails meanwhile."""

from __future__ import annotations

import asyncio
import random
from dataclasses import replace

import pytest

from proglog.errors import ProglogError
from proglog.replica import commands
from proglog.replica.commands import Known, SetStart
from proglog.replica.settings import Settings as StateSettings
from tests.sim.faults import LATER, Fault
from tests.sim.node import SimNode
from tests.sim.settings import Settings
from tests.sim.world import World, silence

NEW_COMMAND = 15
NUMBERS = StateSettings(producers_max=3, producer_window_batches=5, level=LATER)
"""Which producers are forgotten is other than before."""


@pytest.fixture(autouse=True)
def later(monkeypatch: pytest.MonkeyPatch) -> None:
    """There is a version with another command, and with numbers of its own."""
    silence()
    known = Known(1, LATER, lambda _payload, _level_max: SetStart(0))
    monkeypatch.setitem(commands.KNOWN, NEW_COMMAND, known)
    monkeypatch.setattr(StateSettings, "of", lambda _level: NUMBERS)


async def use_what_is_new(world: World) -> None:
    """A leader appends the new command as soon as it may."""
    while world.oracle.counts["new commands"] < 20 and not world.is_over:
        await asyncio.sleep(0.1)
        for node in world.nodes:
            if node.leads and level_of(node) == LATER and node.replica.members.has_room():
                try:
                    node.replica._driver.propose_command(commands.frame(NEW_COMMAND, 1, 0, b""))
                except ProglogError:
                    continue
                world.oracle.counts["new commands"] += 1


def level_of(node: SimNode) -> int:
    return node.replica._applier.state.settings.level


@pytest.mark.parametrize("seed", range(1, 6))
def test_a_cluster_rolls_from_one_version_to_the_next(seed: int) -> None:
    settings = Settings.draw(seed, 3)
    kinds = tuple(kind for kind in settings.faults if kind not in {"wipe", "rot", "remove"})
    settings = replace(settings, spare_nodes=0, learners=0, faults=kinds, safety_seconds=10.0)
    settings.limits["producers_max"] = 4
    world = World(settings)
    # Each node once, in an order and at times of the seed's; what else goes wrong does so too.
    chance = world.loop.chance("upgrade")
    seeds = {}
    while len(seeds) < 3:
        number = chance.getrandbits(32)
        seeds.setdefault(_chosen(world, number), number)
    moments = sorted(chance.uniform(2.0, 8.0) for _ in seeds)
    rolls = [
        Fault(1000 + n, at, "upgrade", 0.2, number)
        for n, (at, number) in enumerate(zip(moments, seeds.values(), strict=True))
    ]
    world.faults = sorted([*world.faults, *rolls], key=lambda fault: fault.at)
    world.spawn(use_what_is_new(world))
    world.run()
    assert world.oracle.counts["fault: upgrade"] == 3
    assert {level_of(node) for node in world.nodes} == {LATER}
    assert {node.replica._applier.state.settings.producers_max for node in world.nodes} == {3}
    assert world.oracle.counts["new commands"] > 0


def _chosen(world: World, number: int) -> str:
    """The node that a fault with this seed is about."""
    return random.Random(number).choice(world.nodes).name


def test_nothing_new_is_appended_while_one_server_is_of_the_old_version() -> None:
    settings = replace(
        Settings.draw(5, 3), spare_nodes=0, learners=0, faults=(), safety_seconds=6.0
    )
    world = World(settings)
    for node in world.nodes[1:]:
        node.level_max = LATER
    world.spawn(use_what_is_new(world))
    world.run()
    assert {level_of(node) for node in world.nodes} == {1}
    assert world.oracle.counts["new commands"] == 0
    notes = [note for node in world.nodes for note in node.replica.cluster_status().notes]
    (leader,) = [node for node in world.nodes if node.leads]
    if leader.level_max == LATER:
        assert any("what is new waits for n0" in note for note in notes)
