"""A disk that fails stops the replica; one that is full refuses, and goes on by itself."""

from __future__ import annotations

import asyncio
import errno
from pathlib import Path

import pytest

from proglog.errors import DiskFull, OutcomeUnknown, StorageFailed, Unavailable
from proglog.log.format import index_bytes_max
from proglog.replica.fitness import Fitness
from tests.log.disk import NO_SPACE, Disk, DiskFile
from tests.replica.support import Node, descriptors, outcomes, proposed
from tests.waiting import DEADLINE_SECONDS


@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC])
@pytest.mark.parametrize("call", ["pwritev", "fdatasync"])
async def test_a_failed_write_stops_the_replica(folder: Path, call: str, number: int) -> None:
    """Inside allocated space even ENOSPC is a fault: nothing is known of what is on the disk."""
    disk = Disk()
    async with Node(folder, files=disk) as node:
        values = await node.fill(10)
        disk.failing = {call: number}
        futures = [await node.replica.propose(proposed(b"lost?")) for _ in range(3)]
        waiting = asyncio.ensure_future(node.replica.wait_past(1000))
        await asyncio.wait_for(node.failed_event.wait(), DEADLINE_SECONDS)
        assert isinstance(node.failure, StorageFailed)
        disk.failing = {}
        for outcome in await outcomes(futures):
            assert isinstance(outcome, OutcomeUnknown)
        with pytest.raises(Unavailable):
            await asyncio.wait_for(waiting, DEADLINE_SECONDS)
        with pytest.raises(Unavailable):
            await node.replica.propose(proposed(b"later"))
        assert not node.replica.is_ready
    async with Node(folder, files=disk) as node:
        assert (await node.consume())[:10] == values
        await node.produce(b"goes on")


@pytest.mark.parametrize("call", ["pwritev", "fdatasync"])
async def test_a_disk_that_fails_while_the_replica_closes_is_told(folder: Path, call: str) -> None:
    disk = Disk()
    async with Node(folder, files=disk) as node:
        await node.fill(10)
        disk.failing = {call: errno.EIO}
        await node.replica.close()
        disk.failing = {}
        assert isinstance(node.failure, StorageFailed)


async def test_who_waits_for_space_hears_of_a_failure(folder: Path) -> None:
    disk = Disk()
    async with Node(folder, files=disk) as node:
        disk.failing = {"fdatasync": errno.EIO}
        lost = await node.replica.propose(proposed(b"x"))
        # The space is asked for behind the write that fails.
        waiting = asyncio.ensure_future(node.replica.propose(proposed(bytes(100_000))))
        await asyncio.wait_for(node.failed_event.wait(), DEADLINE_SECONDS)
        with pytest.raises((Unavailable, StorageFailed)):
            await asyncio.wait_for(waiting, DEADLINE_SECONDS)
        assert isinstance((await outcomes([lost]))[0], OutcomeUnknown)


async def until_refused(node: Node, size: int = 1000) -> list[bytes]:
    """Produces until the disk is full; what was acknowledged."""
    acknowledged: list[bytes] = []
    for number in range(10_000):
        value = b"%0*d" % (size, number)
        try:
            await node.produce(value)
        except DiskFull:
            return acknowledged
        acknowledged.append(value)
    raise AssertionError("the disk is never full")


async def until_taken(node: Node, value: bytes) -> None:
    """Produces a value, again and again while there is no space for it."""
    async with asyncio.timeout(10):
        while True:
            try:
                await node.produce(value)
            except DiskFull:
                await asyncio.sleep(0.05)
            else:
                return


@pytest.mark.parametrize("call", ["reserve", "create"])
async def test_a_full_disk_refuses_and_goes_on(folder: Path, call: str) -> None:
    disk = Disk()
    async with Node(folder, files=disk) as node:
        values = await node.fill(5, size=1000)
        disk.failing = {call: errno.ENOSPC}
        acknowledged = await until_refused(node)
        assert await node.consume() == values + acknowledged
        # Refused means: not appended.
        for _ in range(3):
            with pytest.raises(DiskFull, match="by itself"):
                await node.produce(bytes(1000))
        assert node.replica.next_offset == len(values + acknowledged)
        await node.replica.barrier()
        disk.failing = {}
        await until_taken(node, bytes(1000))
        assert await node.consume() == [*values, *acknowledged, bytes(1000)]
        await node.fill(40, size=1000)
        assert node.failure is None
        await node.restart()
        assert (await node.consume())[: len(values + acknowledged)] == values + acknowledged


async def test_asking_a_full_disk_again_and_again_leaks_nothing(folder: Path) -> None:
    disk = Disk()
    async with Node(folder, files=disk) as node:
        # The store of the next segment can be had, its index cannot.
        reserve = DiskFile.reserve

        def no_index(file: DiskFile, size: int) -> None:
            if size == index_bytes_max(node.config.segment_batches):
                raise NO_SPACE
            reserve(file, size)

        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(DiskFile, "reserve", no_index)
            await until_refused(node)
            before = descriptors(folder)
            for _ in range(20):
                node.replica.log._space._refused_at = -1.0
                with pytest.raises(DiskFull):
                    await node.produce(bytes(5000))
            assert descriptors(folder) <= before


async def test_many_starts_with_a_full_disk(folder: Path) -> None:
    """What is stored can be read, each time, although each leadership wants its no-op."""
    disk = Disk()
    async with Node(folder, files=disk) as node:
        disk.failing = {"reserve": errno.ENOSPC}
        values = await until_refused(node)
    for starts in range(20):
        node = Node(folder, files=disk)
        await node.open()
        ready = asyncio.ensure_future(node.replica.wait_ready())
        await asyncio.wait([ready], timeout=0.3)
        assert await node.consume() == values
        if not ready.done():
            break
        await node.close()
    assert starts >= 2
    # What was kept for no-ops is used up: it cannot lead, but waits, and does not fall over.
    assert node.failure is None
    disk.failing = {}
    await asyncio.wait_for(ready, DEADLINE_SECONDS)
    await until_taken(node, bytes(2000))
    assert await node.consume() == [*values, bytes(2000)]
    await node.close()


@pytest.mark.parametrize("looks", [True, False])
async def test_a_segment_that_is_full_by_count_at_a_start(
    folder: Path, monkeypatch: pytest.MonkeyPatch, looks: bool
) -> None:
    """The no-op of the first leadership then needs the next segment, also where the segment has
    become full since the server last looked whether it is fit to lead."""
    if not looks:
        monkeypatch.setattr(Fitness, "look", lambda *_: True)
    async with Node(folder) as node:
        while len(node.replica.log._active.index) < node.config.segment_batches:
            await node.produce(b"x")
        next_offset = node.replica.next_offset
    async with Node(folder) as node:
        assert node.replica.next_offset == next_offset
        await node.produce(b"y")


async def test_a_segment_that_is_two_months_old_at_a_start(folder: Path) -> None:
    """An index tells times in 32 bits: 49 days. The first no-op then needs the next segment."""
    async with Node(folder) as node:
        await node.produce(b"x")
        later = node.clock.ms + 60 * 24 * 3600 * 1000
    node = Node(folder)
    node.clock.ms = later
    async with node:
        await node.produce(b"y")
        assert await node.consume() == [b"x", b"y"]
        assert await node.replica.seek(later) == 1


async def test_a_full_disk_costs_only_the_snapshot(folder: Path) -> None:
    disk = Disk()
    async with Node(folder, files=disk) as node:
        await node.fill(10)
        disk.failing = {"create": errno.ENOSPC}
        values = await until_refused(node, size=10)
        assert node.snapshots() == []
        disk.failing = {}
        await until_taken(node, b"space")
        await node.fill(40)
        await node.written()
        assert node.failure is None
        assert node.snapshots() != []
        assert (await node.consume())[10 : 10 + len(values)] == values
