"""A write that fails with EIO: the kernel goes on showing, as clean, what it never wrote."""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path

import pytest

from proglog.errors import ProglogError
from tests.disk.device import BLOCK, Disk, MiB
from tests.disk.node import IDLE_SECONDS, LARGE, SMALL, Node, running, under_load

remounted = pytest.mark.parametrize("remounted", [False, True], ids=["same boot", "remounted"])
UNANSWERED_SECONDS = 0.5
BLOCKS_AHEAD = 512
"""Where the load will be in a moment."""


async def has_stopped(node: Node) -> None:
    assert await node.ended() == 1
    assert node.log.count("Input/output error") == 1, node.log
    assert "check the disk" in node.log


async def go_on(node: Node, disk: Disk, remounted: bool) -> None:
    """Another life on a disk that is sound again; what is read then stays, and what is appended."""
    disk.heal()
    if remounted:
        disk.remount()
    await node.start()
    seen = await node.read()
    assert seen.items() >= node.acknowledged.items()
    await node.produce(20)
    await node.stop()
    disk.remount()
    await node.start()
    await node.has_all()
    found = await node.read()
    assert seen.items() <= found.items(), "what was read once is still there"
    await node.stop()
    assert (await node.command("verify"))[0] == 0


async def fail(node: Node, disk: Disk, path: Path, position: int, size: int) -> None:
    """A record that cannot be written, for one block."""
    disk.fail_writes(path, position, position + 1)
    with pytest.raises(ProglogError):
        await node.produce(1, size, seconds=UNANSWERED_SECONDS)
    await has_stopped(node)


@remounted
async def test_a_batch_that_ends_with_its_block(disk: Disk, remounted: bool) -> None:
    """A page of which a part is in order: the kernel keeps it whole where it is told to forget the
    other part. And what comes after it stands in another page, so this one is not written again."""
    async with running(disk) as node:
        await node.produce(20)
        path, end = await asyncio.to_thread(node.end)
        overhead = BLOCK
        while BLOCK - end % BLOCK < overhead + SMALL:
            before = end
            await node.produce(1)
            path, end = await asyncio.to_thread(node.end)
            overhead = end - before - SMALL
        await asyncio.sleep(IDLE_SECONDS)
        await fail(node, disk, path, end, BLOCK - end % BLOCK - overhead)
        await go_on(node, disk, remounted)


@remounted
@pytest.mark.parametrize("blocks_ahead", [0, 1])
async def test_a_batch_of_many_blocks(disk: Disk, remounted: bool, blocks_ahead: int) -> None:
    async with running(disk) as node:
        await node.produce(20)
        path, end = await asyncio.to_thread(node.end)
        await asyncio.sleep(IDLE_SECONDS)
        await fail(node, disk, path, end + blocks_ahead * BLOCK, LARGE)
        await go_on(node, disk, remounted)


@remounted
async def test_under_load(disk: Disk, remounted: bool) -> None:
    async with running(disk, segment_bytes=16 * MiB) as node:
        async with under_load(node):
            path, end = await asyncio.to_thread(node.end)
            disk.fail_writes(path, end + BLOCKS_AHEAD * BLOCK, end + (BLOCKS_AHEAD + 1) * BLOCK)
            await has_stopped(node)
        await go_on(node, disk, remounted)


@remounted
async def test_nothing_at_all_can_be_written(disk: Disk, remounted: bool) -> None:
    """Also not the block in which the log says how far it has come."""
    async with running(disk) as node:
        await node.produce(20)
        async with under_load(node):
            for path in node.files("*.store") + node.files("*.index"):
                with contextlib.suppress(FileNotFoundError):  # renamed by now
                    disk.fail_writes(path)
            await has_stopped(node)
        await go_on(node, disk, remounted)
