"""Retention by size and by age, and the snapshots that it needs."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest

from proglog.config import LogConfig
from proglog.errors import OffsetOutOfRange
from proglog.log.format import Tip
from proglog.replica.retention import start_to_keep
from tests.replica.support import CONFIG, START_MS, Node, outcomes, proposed
from tests.waiting import DEADLINE_SECONDS, until

BY_SIZE = replace(CONFIG, retention_bytes=CONFIG.segment_bytes, retention_check_seconds=0.01)
BY_AGE = replace(CONFIG, retention_seconds=60, retention_check_seconds=0.01)


def tip(index: int, ms: int = 0) -> Tip:
    return Tip(index, 1, index * 10, ms, 0)


SEGMENTS = [(tip(0), 100), (tip(10, 1000), 100), (tip(20, 2000), 100), (tip(30, 3000), 50)]


@pytest.mark.parametrize(
    ("bytes_max", "seconds", "committed", "now", "start"),
    [
        (None, None, 99, 10**9, 0),
        (400, None, 99, 0, 0),
        (350, None, 99, 0, 0),
        (349, None, 99, 0, 100),
        (250, None, 99, 0, 100),
        (249, None, 99, 0, 200),
        (1, None, 99, 0, 300),
        (1, None, 29, 0, 200),
        (1, None, 9, 0, 0),
        (None, 1.0, 99, 2000, 0),
        (None, 1.0, 99, 2001, 100),
        (None, 1.0, 99, 10**9, 300),
        (250, 1.0, 99, 10**9, 300),
    ],
)
def test_what_may_go(
    bytes_max: int | None, seconds: float | None, committed: int, now: int, start: int
) -> None:
    config = LogConfig(segment_bytes=16385, retention_seconds=seconds)
    object.__setattr__(config, "retention_bytes", bytes_max)
    total = sum(size for _, size in SEGMENTS)
    assert start_to_keep(SEGMENTS, config, committed_index=committed, total=total, now=now) == start


@pytest.mark.parametrize("at_once", [False, True], ids=["one by one", "all at once"])
async def test_a_snapshot_stands_at_the_end_of_each_sealed_segment(
    node: Node, at_once: bool
) -> None:
    """Also where the last batch was applied long before the segment was sealed. The first and the
    newest stay."""
    if at_once:
        await outcomes([await node.replica.propose(proposed(b"x")) for _ in range(100)])
    else:
        await node.fill(100)
    await node.written()
    ends = [sealed.index for sealed in node.replica.log.sealed_tips()]
    assert len(ends) >= 6
    assert node.replica.log.snapshot_indexes == [ends[0], ends[-1]]
    await until(lambda: node.snapshots() == [ends[0], ends[-1]])


async def until_earliest_moves(node: Node, beyond: int = 0) -> int:
    async with asyncio.timeout(DEADLINE_SECONDS):
        while node.replica.earliest <= beyond or node.replica.log.first_index == 1:
            await asyncio.sleep(0.005)
    return node.replica.earliest


async def test_the_oldest_go_by_size(folder: Path) -> None:
    async with Node(folder, config=BY_SIZE) as node:
        values = await node.fill(60, size=1000)
        await asyncio.sleep(0.05)
        earliest = await until_earliest_moves(node, 20)
        assert node.replica.describe().bytes <= 2 * BY_SIZE.segment_bytes
        assert node.replica.describe().earliest == earliest
        for offset in (0, earliest - 1):
            with pytest.raises(OffsetOutOfRange) as caught:
                await node.replica.read(offset, 1)
            assert caught.value.number("earliest") == earliest
        assert await node.consume(earliest) == values[earliest:]
        await node.replica.wait_past(earliest - 1)
        assert await node.replica.seek(0) == earliest
        await node.written()
        stores = [name for name in node.names() if name.endswith(".store") and name[0] == "0"]
        assert stores[0] == f"{node.replica.log.first_index:020d}.store"
        assert len(stores) <= 3
        # None is older than what the log begins with.
        assert node.snapshots()[0] >= node.replica.log.before.index
        earliest = node.replica.earliest
        await node.restart()
        assert node.replica.earliest >= earliest
        assert (await node.consume(node.replica.earliest))[-1] == values[-1]
        assert node.replica.next_offset == 60


async def test_the_oldest_go_by_age(folder: Path) -> None:
    async with Node(folder, config=BY_AGE) as node:
        values = await node.fill(40)
        node.clock.ms = START_MS + 59_000
        values += await node.fill(40)
        await asyncio.sleep(0.05)
        assert node.replica.earliest == 0
        node.clock.ms = START_MS + 61_000
        earliest = await until_earliest_moves(node)
        assert 20 < earliest <= 40
        assert await node.consume(earliest) == values[earliest:]
        assert await node.replica.seek(START_MS) == earliest


async def test_nothing_goes_where_everything_is_kept(folder: Path) -> None:
    async with Node(folder, config=replace(CONFIG, retention_check_seconds=0.01)) as node:
        values = await node.fill(60)
        node.clock.ms += 10**12
        await asyncio.sleep(0.05)
        assert await node.consume() == values


async def test_the_start_moves_before_the_files_go(folder: Path) -> None:
    """And is the same after a restart in between."""
    async with Node(folder, config=BY_SIZE) as node:
        node.replica.log.drop_prefix = lambda first_index: 0  # type: ignore[method-assign]
        await node.fill(60, size=1000)
        async with asyncio.timeout(DEADLINE_SECONDS):
            while node.replica.earliest == 0:
                await asyncio.sleep(0.005)
        assert node.replica.log.first_index == 1
        earliest = node.replica.earliest
    async with Node(folder) as node:
        assert node.replica.earliest >= earliest
        with pytest.raises(OffsetOutOfRange):
            await node.replica.read(earliest - 1, 1)
