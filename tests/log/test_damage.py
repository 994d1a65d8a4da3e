"""Damaged ranges: found and mended, also while retention takes their segment away."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from proglog import limits
from proglog.batch import BatchHeader, Buffer
from proglog.errors import RangeCorrupt
from proglog.log.damage import find_damage, mend
from proglog.log.segment import Segment
from tests.log.support import Engine, flip

BATCHES = 20
"""Of which the first segment has 8."""


@pytest.fixture
async def engine(folder: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Engine]:
    """All must be read from the disk, by threads, a little at a time."""
    monkeypatch.setattr(limits, "scan_batches", 2)
    monkeypatch.setattr(Segment, "read_cached", lambda *_: None)
    async with Engine(folder) as engine:
        await engine.fill(BATCHES)
        await engine.all_durable()
        await engine.forget_tail()
        tip = engine.segments[0].index.last
        await engine.log.write_snapshot(tip, lambda: b"")
        yield engine


async def spoil(engine: Engine, index: int) -> None:
    segment = engine.log.segment_of(index)
    position, size = segment.extent(index, index, 1)
    await asyncio.to_thread(flip, segment.store_path, position + size - 1)


async def batches_of(engine: Engine, first: int, last: int) -> list[tuple[BatchHeader, Buffer]]:
    """What a peer would send."""
    runs = [await engine.log.read(index, index, 1) for index in range(first, last + 1)]
    return [(run.headers[0], run.data) for run in runs]


async def test_what_is_damaged_is_found_and_mended(engine: Engine) -> None:
    good = await batches_of(engine, 3, 5)
    assert await find_damage(engine.log, 4) == []
    for index in (3, 4, 5, 8):
        await spoil(engine, index)
    assert await find_damage(engine.log, 1) == [(3, 5), (8, 8)]
    await mend(engine.log, good)
    assert await find_damage(engine.log, 1) == [(8, 8)]


async def test_what_does_not_fit_is_not_taken(engine: Engine) -> None:
    other = await batches_of(engine, 6, 6)
    header, data = (await batches_of(engine, 5, 5))[0]
    await spoil(engine, 5)
    for wrong in (header._replace(chain=1), header._replace(header_crc=1), other[0][0]):
        with pytest.raises(RangeCorrupt, match="fit"):
            await mend(engine.log, [(wrong._replace(index=5), data)])
    assert await find_damage(engine.log, 5) == [(5, 5)]


def drop_first(engine: Engine) -> Segment:
    segment = engine.segments[0]
    assert engine.log.drop_prefix(BATCHES) == 1
    return segment


def cut_last(engine: Engine) -> Segment:
    segment = engine.segments[-1]
    engine.log.cut_suffix(8)
    return segment


@pytest.mark.parametrize(("index", "drop"), [(1, drop_first), (BATCHES, cut_last)])
async def test_a_segment_that_is_dropped_while_it_is_read_has_no_damage(
    engine: Engine, index: int, drop: Callable[[Engine], Segment]
) -> None:
    await spoil(engine, index)
    go_on = threading.Event()
    waiting = asyncio.ensure_future(engine.log.reader.run(lambda: go_on.wait(10)))
    finding = asyncio.ensure_future(find_damage(engine.log, index))
    await asyncio.sleep(0)
    segment = drop(engine)
    await engine.settled()
    go_on.set()
    await waiting
    assert await finding == []
    assert segment._file is None


@pytest.mark.parametrize("turns", range(4))
async def test_a_segment_that_is_deleted_needs_no_mending(engine: Engine, turns: int) -> None:
    good = await batches_of(engine, 4, 4)
    await spoil(engine, 4)
    mending = asyncio.ensure_future(mend(engine.log, good))
    await asyncio.sleep(0)
    for _ in range(turns):
        await engine.log.reader.run(lambda: None)
    assert engine.log.drop_prefix(BATCHES) == 1
    await mending
