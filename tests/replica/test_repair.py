"""Which damage is mended, and when a leader has to go because of it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any, cast

import pytest

from proglog import limits
from proglog.errors import RangeCorrupt
from proglog.raft.configuration import Configuration, Server
from proglog.replica import repair
from proglog.replica.repair import Repair
from tests.waiting import until

pytestmark = pytest.mark.virtual_time

TRIO = Configuration(tuple(Server(name, name, f"{name}:1") for name in "abc"))


@dataclass
class World:
    """What a repair sees of its replica, of which one batch is damaged."""

    commit_index: int = 10
    first_index: int = 1
    last_index: int = 20
    configuration: Configuration = TRIO
    is_damaged: bool = False
    damaged: set[int] = field(default_factory=set)
    done: list[str] = field(default_factory=list)

    @property
    def tip(self) -> World:
        return self

    @property
    def index(self) -> int:
        return self.last_index

    async def find_damage(self, _log: object, _index: int) -> list[tuple[int, int]]:
        return [(index, index) for index in sorted(self.damaged)]

    async def hand_over(self) -> None:
        self.done.append("handed over")

    def resign(self) -> None:
        self.done.append("resigned")


@pytest.fixture
async def world(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[World]:
    world = World()
    monkeypatch.setattr(limits, "repair_retry_seconds", 0.01)
    monkeypatch.setattr(repair, "find_damage", world.find_damage)
    yield world


@pytest.fixture
async def mending(world: World, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Repair]:
    shape = cast("Any", world)
    made = Repair(
        applier=shape,
        fitness=shape,
        log=shape,
        exchange=cast("Any", None),
        leadership=shape,
        own_uuid="a",
        hand_over=world.hand_over,
        resign=world.resign,
        spawn=asyncio.ensure_future,
    )

    async def mend(first: int, last: int) -> None:
        world.done.append(f"mended {first}")
        world.damaged -= set(range(first, last + 1))

    monkeypatch.setattr(made, "_mend", mend)
    task = asyncio.ensure_future(made.run())
    yield made
    task.cancel()


async def report(mending: Repair, world: World, index: int) -> None:
    world.damaged = {index}
    mending.report(RangeCorrupt("damaged", index=index))
    await asyncio.sleep(0.05)


async def test_what_is_committed_is_mended(world: World, mending: Repair) -> None:
    await report(mending, world, 10)
    assert world.done == ["handed over", "mended 10"]
    assert not world.is_damaged


async def test_who_cannot_send_what_is_not_committed_resigns_and_waits(
    world: World, mending: Repair
) -> None:
    await report(mending, world, 11)
    assert world.done[:2] == ["handed over", "resigned"]
    assert "mended 11" not in world.done
    assert world.is_damaged
    world.commit_index = 11
    await until(lambda: not world.is_damaged)
    assert world.done[-1] == "mended 11"


async def test_damage_that_is_cut_is_forgotten(world: World, mending: Repair) -> None:
    await report(mending, world, 11)
    assert world.is_damaged
    world.last_index = 10
    await until(lambda: not world.is_damaged)
    assert "mended 11" not in world.done


async def test_a_sole_voter_does_not_resign(world: World, mending: Repair) -> None:
    world.configuration = Configuration(TRIO.servers[:1], ())
    await report(mending, world, 11)
    assert "resigned" not in world.done
