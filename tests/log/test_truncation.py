"""Giving up the end of a log, its beginning, or all of it."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from proglog import limits
from proglog.errors import RangeCorrupt, Unavailable
from proglog.log.format import ORIGIN, Tip
from proglog.log.snapshot import Snapshot, snapshot_path
from proglog.log.tail import Run
from tests.log.support import Engine, build, marks_of, stored, tip_after

SEALED_AT = 8
"""Last batch of the first segment, when all are small."""


# --- the end -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "last",
    [19, 17, 16, 15, 9, 8, 7, 1, 0],
    ids=lambda last: f"to {last}",
)
@pytest.mark.parametrize("from_disk", [False, True], ids=["fresh", "reopened"])
async def test_a_cut_then_more_batches_then_a_new_start(
    folder: Path, last: int, from_disk: bool
) -> None:
    """Segments are 1-8, 9-16, 17-20: within the active one, to its edge, into sealed ones, all."""
    async with Engine(folder) as engine:
        values = (await engine.fill(20))[:last]
        if from_disk:
            await engine.forget_tail()
        await engine.log.prepare_cut(last)
        engine.log.cut_suffix(last)
        assert engine.log.tip.next_offset == engine.log.tip.index == last
        assert engine.log.durable_index <= last
        assert [name for name in engine.names() if name.startswith("aside")] == []
        values += await engine.fill(10, size=12, term=2)
        await engine.all_durable()
        assert await engine.read_all() == values
        assert engine.log.term_at(last + 1) == 2
        await engine.settled()
    assert await stored(folder) == values
    async with Engine(folder) as engine:
        assert engine.recovered.notes == []
        assert await engine.read_all() == values
        for offset in range(len(values)):
            assert engine.log.index_of_offset(offset) == offset + 1


async def test_a_cut_alone_survives_a_restart(folder: Path) -> None:
    async with Engine(folder) as engine:
        values = await engine.fill(20)
        await engine.log.prepare_cut(11)
        engine.log.cut_suffix(11)
        await engine.settled()
        assert engine.names() == [
            "00000000000000000001.index",
            "00000000000000000001.store",
            "00000000000000000009.index",
            "00000000000000000009.store",
            "manifest",
        ]
        marks = marks_of(engine.segments[-1].store_path)
        assert [mark.tip.index for mark in marks] == [11, 11]
    assert await stored(folder) == values[:11]


async def test_cuts_in_a_row_before_the_writer_has_begun(engine: Engine) -> None:
    values = await engine.fill(20)
    await engine.all_durable()
    engine.hold()
    for last in (18, 12, 5):
        await engine.log.prepare_cut(last)
        engine.log.cut_suffix(last)
        await engine.append(b"of %d" % last, term=engine.log.tip.term + 1)
    engine.release()
    await engine.all_durable()
    assert await engine.read_all() == [*values[:5], b"of 5"]
    await engine.forget_tail()
    assert await engine.read_all() == [*values[:5], b"of 5"]


async def test_a_segment_is_cut_off_while_batches_for_it_wait(engine: Engine) -> None:
    """Its file stays open until the writer is past them: else they would go to whatever file got
    the descriptor's number next."""
    values = await engine.fill(7)
    await engine.all_durable()
    engine.hold()
    await engine.fill(9)
    assert len(engine.segments) == 2
    await engine.log.prepare_cut(5)
    engine.log.cut_suffix(5)
    await asyncio.sleep(0)
    engine.release()
    new = await engine.fill(3, term=2)
    await engine.all_durable()
    assert engine.failure is None
    assert await engine.read_all() == values[:5] + new
    await engine.forget_tail()
    assert await engine.read_all() == values[:5] + new


async def test_a_completion_from_before_a_cut_says_nothing_of_what_came_after(
    engine: Engine,
) -> None:
    """ABA: batch 5 is queued, cut, and another batch 5 appended. When the first is reported
    written, the second is not durable."""
    await engine.fill(3)
    await engine.all_durable()
    before_old = engine.hold()
    await engine.fill(3)
    before_new = engine.hold()
    await engine.log.prepare_cut(4)
    engine.log.cut_suffix(4)
    new = await engine.fill(4, term=2)
    before_old.set()
    while engine.groups[-1].last_index < 6:
        await asyncio.sleep(0.001)
    assert engine.groups[-1].generation == 0
    assert engine.log.durable_index == 4
    before_new.set()
    await engine.all_durable()
    assert (await engine.read_all())[4:] == new


async def test_what_a_cut_keeps_is_reported_durable(engine: Engine) -> None:
    engine.hold()
    await engine.fill(3)
    await engine.log.prepare_cut(2)
    engine.log.cut_suffix(2)
    engine.release()
    await engine.settled()
    assert engine.log.durable_index == 2


async def test_a_sealed_segment_that_was_cut_is_sealed_again(engine: Engine) -> None:
    values = (await engine.fill(20))[:6]
    await engine.settled()
    await engine.log.prepare_cut(6)
    engine.log.cut_suffix(6)
    values += await engine.fill(12, term=2)
    await engine.settled()
    segment = engine.segments[0]
    assert segment.index.end_position <= segment.capacity
    assert isinstance(segment.index._numbers, memoryview)
    assert await engine.read_all() == values
    await engine.forget_tail()
    assert await engine.read_all() == values


async def test_a_seal_reported_after_a_cut_is_not_taken(engine: Engine) -> None:
    """The writer sealed a segment; meanwhile it was cut and grows again."""
    values = await engine.fill(7)
    await engine.settled()
    engine.hold()
    values += await engine.fill(3)
    await engine.log.prepare_cut(6)
    engine.log.cut_suffix(6)
    engine.release()
    await engine.settled()
    assert not isinstance(engine.segments[0].index._numbers, memoryview)
    values = values[:6] + await engine.fill(1, term=2)
    await engine.all_durable()
    assert await engine.read_all() == values


async def test_a_reader_of_what_stays_is_not_disturbed_by_a_cut(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = await engine.fill(20)
    await engine.forget_tail()
    with monkeypatch.context() as patched:
        patched.setattr(type(engine.segments[0]), "read_cached", lambda *_: None)
        reading = asyncio.ensure_future(engine.read(1, 8))
        await asyncio.sleep(0)
    await engine.log.prepare_cut(15)
    engine.log.cut_suffix(15)
    assert await reading == values[:8]


# --- the beginning -------------------------------------------------------------------------------


async def snapshot_at(engine: Engine, index: int) -> Tip:
    tip = engine.log.tip_at(index)
    assert tip is not None
    await engine.log.write_snapshot(tip, lambda: b"state %d" % index)
    return tip


async def test_a_prefix_goes_as_far_as_there_are_snapshots(engine: Engine) -> None:
    values = await engine.fill(30)
    await engine.all_durable()
    assert engine.log.drop_prefix(30) == 0
    await snapshot_at(engine, 3)
    assert engine.log.drop_prefix(30) == 0, "batch 3 ends no segment"
    tip = await snapshot_at(engine, 16)
    assert engine.log.drop_prefix(8) == 0, "batch 8 is still wanted"
    assert engine.log.drop_prefix(16) == 1, "batch 16 is still wanted"
    assert engine.log.drop_prefix(30) == 1
    assert (engine.log.before, engine.log.first_index) == (tip, 17)
    assert engine.log.snapshot_indexes == [16]
    assert engine.log.drop_prefix(30) == 0
    await engine.tidied()
    assert engine.names()[:2] == ["00000000000000000017.index", "00000000000000000017.store"]
    assert not snapshot_path(engine.folder, 3).exists()
    assert await engine.read_all() == values[16:]
    await engine.forget_tail()
    assert (engine.log.before, engine.log.snapshot_indexes) == (tip, [16])
    assert engine.recovered.snapshot == Snapshot(tip, b"state 16")
    assert await engine.read_all() == values[16:]
    assert engine.log.term_at(16) == 1
    assert engine.log.index_of_time(0) == 17


async def test_the_active_segment_never_goes(engine: Engine) -> None:
    await engine.fill(8)
    await engine.all_durable()
    await snapshot_at(engine, 8)
    assert engine.log.drop_prefix(100) == 0


@pytest.mark.parametrize("deleted", [[], [1], [9], [1, 9]])
async def test_a_start_in_the_middle_of_a_drop(folder: Path, deleted: list[int]) -> None:
    """Once the new base is durable it does not matter which files are left."""
    async with Engine(folder) as engine:
        values = await engine.fill(30)
        await engine.all_durable()
        await snapshot_at(engine, 16)
        kept = {path: path.read_bytes() for path in folder.iterdir() if path.name < "0" * 18 + "17"}
        assert engine.log.drop_prefix(30) == 2
        await engine.settled()
        await engine.tidied()
    for path, data in kept.items():
        if int(path.name[:20]) not in deleted:
            path.write_bytes(data)
    async with Engine(folder) as engine:
        assert engine.log.first_index == 17
        assert await engine.read_all() == values[16:]
        await engine.tidied()
        assert engine.names()[0] == "00000000000000000017.index"
        assert engine.log.drop_prefix(30) == 0
    assert await stored(folder) == values[16:]


# --- everything ----------------------------------------------------------------------------------

FAR = Tip(1000, 5, 5000, 77, 0xABCD)


@pytest.mark.parametrize("count", [0, 5, 20])
async def test_a_reset_begins_anew_behind_a_snapshot(folder: Path, count: int) -> None:
    async with Engine(folder) as engine:
        await engine.fill(count)
        await engine.log.reset(Snapshot(FAR, b"far"))
        log = engine.log
        assert (log.before, log.tip, log.durable_index, log.first_index) == (FAR, FAR, 1000, 1001)
        assert log.snapshot_indexes == [1000]
        await engine.settled()
        assert [name for name in engine.names() if not name.startswith("reserved")] == [
            "00000000000000001001.index",
            "00000000000000001001.store",
            "manifest",
            "snapshot-00000000000000001000",
        ]
        values = await engine.fill(20, term=5)
        await engine.all_durable()
        assert await engine.read_all() == values
        assert log.index_of_offset(5000) == 1001
        assert (await log.read_snapshot()) == Snapshot(FAR, b"far")
    async with Engine(folder) as engine:
        assert engine.log.before == FAR
        assert engine.recovered.notes == []
        assert await engine.read_all() == values


async def test_what_is_durable_is_known_after_a_reset_and_a_cut(engine: Engine) -> None:
    await engine.log.reset(Snapshot(FAR, b"far"))
    engine.hold()
    await engine.fill(5)
    await engine.log.prepare_cut(1003)
    engine.log.cut_suffix(1003)
    engine.release()
    await engine.settled()
    assert engine.log.durable_index == 1003


@asynccontextmanager
async def waiting_for_the_disk(engine: Engine) -> AsyncIterator[asyncio.Future[Run]]:
    """A read of the first batches, which are not cached: the disk answers when the context ends."""
    read_slowly = threading.Event()
    slow = asyncio.ensure_future(engine.log.reader.run(lambda: read_slowly.wait(10)))
    await asyncio.sleep(0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(engine.segments[0]), "read_cached", lambda *_: None)
        reading = asyncio.ensure_future(engine.log.read(1, 8, 1000))
        await asyncio.sleep(0)
    yield reading
    read_slowly.set()
    await slow


async def test_what_is_read_while_a_reset_is_under_way_is_void(engine: Engine) -> None:
    await engine.fill(20)
    await engine.all_durable()
    await engine.forget_tail()
    engine.hold()
    resetting = asyncio.ensure_future(engine.log.reset(Snapshot(FAR, b"far")))
    async with waiting_for_the_disk(engine) as reading:
        engine.release()
        await resetting
    with pytest.raises(Unavailable):
        await reading


async def test_what_is_read_while_a_suffix_is_cut_and_the_log_closed_is_void(
    engine: Engine,
) -> None:
    await engine.fill(20)
    await engine.all_durable()
    await engine.forget_tail()
    await engine.log.prepare_cut(15)
    async with waiting_for_the_disk(engine) as reading:
        engine.log.cut_suffix(15)
        await engine.log.close()
    with pytest.raises(Unavailable):
        await reading


async def test_a_reset_to_what_a_large_batch_follows(engine: Engine) -> None:
    await engine.log.reset(Snapshot(FAR, b"far"))
    await engine.append(bytes(50_000))
    await engine.append(b"small")
    await engine.all_durable()
    assert [len(value) for value in await engine.read_all()] == [50_000, 5]


async def test_a_damaged_snapshot_is_not_served(engine: Engine) -> None:
    await engine.fill(10)
    await engine.all_durable()
    await snapshot_at(engine, 8)
    path = snapshot_path(engine.folder, 8)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(RangeCorrupt, match="verify"):
        await engine.log.read_snapshot()


# --- what is not ours ----------------------------------------------------------------------------


async def test_stray_files_are_left_alone(folder: Path) -> None:
    stray = [
        "notes.txt",
        "1.store",
        "00000000000000000001.store.bak",
        "000000000000000000001.store",
        "snapshot-7",
        "snapshot-old",
        "aside-mine",
        "lock",
    ]
    folder.mkdir()
    for name in stray:
        (folder / name).write_bytes(b"mine")
    async with Engine(folder) as engine:
        await engine.fill(20)
        await engine.all_durable()
        await snapshot_at(engine, 8)
        engine.log.drop_prefix(20)
        await engine.log.prepare_cut(15)
        engine.log.cut_suffix(15)
        await engine.forget_tail()
        await engine.log.reset(Snapshot(FAR, b"far"))
        await engine.forget_tail()
    assert {name: (folder / name).read_bytes() for name in stray} == dict.fromkeys(stray, b"mine")


def test_the_support_agrees_with_the_engine() -> None:
    header, _ = build(ORIGIN, [b"a"])
    assert tip_after([b"a"]) == Tip.after(header)
    assert limits.read_batches_max > 8
