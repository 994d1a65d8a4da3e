"""A block that cannot be read any more, in each kind of file: that is damage, and told as such."""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import NamedTuple

import pytest

from proglog.errors import ProglogError
from tests.disk.device import BLOCK, Disk
from tests.disk.node import LOAD_SIZE, Node, running

RECORDS = 600
"""Some segments of them."""
NEAR_BYTES = LOAD_SIZE + BLOCK
"""A position is told this exactly: that of the block, or of the batch that it is in. See
`test_device.py` about what the kernel makes of it where it reads ahead."""


class Place(NamedTuple):
    path: Path
    start: int
    end: int | None


def stores(node: Node) -> list[Path]:
    """Without the space that is reserved for the next one."""
    return node.files("[0-9]*.store")


def indexes(node: Node) -> list[Path]:
    return node.files("[0-9]*.index")


REDUNDANT: dict[str, Callable[[Node], Place]] = {
    "sealed index": lambda node: Place(indexes(node)[1], 0, None),
    "active index": lambda node: Place(indexes(node)[-1], 0, None),
    "newest snapshot": lambda node: Place(node.files("snapshot-*")[-1], 0, None),
    "header of the active store": lambda node: Place(stores(node)[-1], 0, 1),
    "its copy": lambda node: Place(stores(node)[-1], BLOCK, BLOCK + 1),
    "a mark of the active store": lambda node: Place(stores(node)[-1], 2 * BLOCK, 2 * BLOCK + 1),
    "the other mark": lambda node: Place(stores(node)[-1], 3 * BLOCK, 3 * BLOCK + 1),
    "both marks": lambda node: Place(stores(node)[-1], 2 * BLOCK, 4 * BLOCK),
    "one manifest": lambda node: Place(node.files("manifest")[0], 0, 1),
    "both manifests": lambda node: Place(node.files("manifest")[0], 0, None),
    "one hard state": lambda node: Place(node.files("hard-state")[0], 0, 1),
    "other hard state": lambda node: Place(node.files("hard-state")[0], BLOCK, BLOCK + 1),
    "peers": lambda node: Place(node.files("peers")[0], 0, None),
}
"""What can be had from elsewhere, on the same disk or from gossip, and a start writes again."""

UNNEEDED: dict[str, Callable[[Node], Place]] = {
    "header of a sealed store": lambda node: Place(stores(node)[1], 0, 1),
    "older snapshot": lambda node: Place(node.files("snapshot-*")[0], 0, None),
}
"""What a start does not even look at; repair writes it again, or deletes it."""

IRREPLACEABLE: dict[str, Callable[[Node], Place]] = {
    "data of a sealed store": lambda node: middle(stores(node)[1]),
    "data of the active store": lambda node: Place(stores(node)[-1], 4 * BLOCK, 4 * BLOCK + 1),
    "both hard states": lambda node: Place(node.files("hard-state")[0], 0, None),
}


def middle(path: Path) -> Place:
    position = path.stat().st_size // 2 // BLOCK * BLOCK
    return Place(path, position, position + 1)


@contextlib.asynccontextmanager
async def lost(disk: Disk, where: Callable[[Node], Place]) -> AsyncIterator[tuple[Node, Place]]:
    """A stopped node with some segments, of whose data a block cannot be read any more."""
    async with running(disk) as node:
        await node.produce(RECORDS, LOAD_SIZE)
        await node.stop()
        place = where(node)
        await asyncio.to_thread(disk.fail_reads, *place)
        disk.remount()
        yield node, place


def check_told(status: int, said: str, place: Place) -> None:
    """Where it is, and no crash."""
    assert status == 1, f"{status}\n{said}"
    assert "Traceback" not in said
    found = [int(number) for number in re.findall(rf"{place.path.name}\D{{1,40}}?(\d+)", said)]
    end = place.path.stat().st_size if place.end is None else place.start + BLOCK
    assert found, f"{place.path.name} and a position in it are not told\n{said}"
    assert any(place.start - NEAR_BYTES < position <= end for position in found), said


@pytest.mark.parametrize("kind", [*REDUNDANT, *UNNEEDED])
async def test_a_start_needs_nothing_that_is_redundant(disk: Disk, kind: str) -> None:
    async with lost(disk, {**REDUNDANT, **UNNEEDED}[kind]) as (node, place):
        await node.start()
        await node.has_all()
        await node.produce(20)
        await node.stop()
        if kind in REDUNDANT:
            await can_be_read(node, disk, place)


@pytest.mark.parametrize("kind", [*REDUNDANT, *UNNEEDED])
async def test_repair_makes_anew_what_is_redundant(disk: Disk, kind: str) -> None:
    async with lost(disk, {**REDUNDANT, **UNNEEDED}[kind]) as (node, place):
        status, said = await node.command("verify")
        if status:
            check_told(status, said, place)
        status, said = await node.command("repair")
        assert status == 0, said
        assert "Traceback" not in said
        await node.start()
        await node.has_all()
        await node.stop()
        await can_be_read(node, disk, place)


async def can_be_read(node: Node, disk: Disk, place: Place) -> None:
    disk.remount()
    status, said = await node.command("verify")
    assert status == 0, said
    if place.path.exists():
        await asyncio.to_thread(place.path.read_bytes)


@pytest.mark.parametrize("kind", IRREPLACEABLE)
async def test_what_is_not_redundant_is_told_and_left(disk: Disk, kind: str) -> None:
    async with lost(disk, IRREPLACEABLE[kind]) as (node, place):
        for command in ("verify", "repair"):
            check_told(*await node.command(command), place)
        if await node.attempt():
            await check_refused(node, place)
            await node.stop()
        else:
            check_told(node.process.returncode, node.log, place)
        # Perhaps it was a cable: nothing was thrown away.
        disk.heal()
        disk.remount()
        await node.start()
        await node.has_all()


async def check_refused(node: Node, place: Place) -> None:
    """A node that serves the rest."""
    with pytest.raises(ProglogError) as raised:
        await node.read()
    check_told(1, f"{raised.value}\n{node.log}", place)
    assert node.process.returncode is None


async def test_a_block_goes_bad_while_the_node_runs(disk: Disk) -> None:
    async with running(disk) as node:
        await node.produce(RECORDS, LOAD_SIZE)
        await node.stop()
        await node.start()  # It remembers nothing.
        place = middle(stores(node)[0])
        await asyncio.to_thread(disk.fail_reads, *place)
        await asyncio.to_thread(disk.forget, place.path)
        await check_refused(node, place)
        await node.produce(20)
        disk.heal()
        await node.has_all()
        await node.stop()
