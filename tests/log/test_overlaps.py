"""What happens to a log while something else is under way with it."""

from __future__ import annotations

import asyncio
import errno
import os
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from proglog import limits
from proglog.errors import DiskFull, Overloaded, Unavailable
from proglog.log.damage import find_damage
from proglog.log.format import Tip
from proglog.log.names import snapshot_path
from proglog.log.segment import Segment
from proglog.log.snapshot import Snapshot
from tests.log.disk import Disk
from tests.log.support import Engine, flip

FAR = Tip(1000, 5, 5000, 77, 0xABCD)


async def snapshot_after(engine: Engine, segment: int) -> Tip:
    """Writes one at the end of a sealed segment."""
    await engine.settled()
    tip = engine.log.sealed_tips()[segment]
    await engine.log.write_snapshot(tip, lambda: b"state")
    return tip


# --- a reset -------------------------------------------------------------------------------------


async def test_a_prefix_dropped_while_a_reset_is_under_way(folder: Path) -> None:
    """The base of what was there must not become that of what replaces it."""
    async with Engine(folder) as engine:
        await engine.fill(30)
        await engine.all_durable()
        await snapshot_after(engine, 1)
        engine.hold()
        resetting = asyncio.ensure_future(engine.log.reset(Snapshot(FAR, b"far")))
        await asyncio.sleep(0)
        engine.log.drop_prefix(30)
        engine.release()
        await resetting
        values = await engine.fill(3, term=5)
        await engine.all_durable()
    async with Engine(folder) as engine:
        assert engine.log.before == FAR
        assert await engine.read_all() == values


async def test_what_a_reset_without_space_has_deleted_is_not_damaged(folder: Path) -> None:
    disk = Disk(caches=False)
    async with Engine(folder, files=disk) as engine:
        await engine.fill(30)
        await engine.all_durable()
        await engine.forget_tail()
        engine.log._space.forget()
        # The snapshot finds space, the segment does not.
        disk.failing = {"reserve": errno.ENOSPC}
        for name in ("reserved.store", "reserved.index"):
            (folder / name).unlink(missing_ok=True)
        with pytest.raises(DiskFull):
            await engine.log.reset(Snapshot(FAR, b"far"))
        assert not engine.segments[0].store_path.exists()
        with pytest.raises(Overloaded):
            await engine.log.read(1, 8, 1000)
        assert await find_damage(engine.log, 3) == []
        disk.failing = {}
        await engine.log.reset(Snapshot(FAR, b"far"))
        assert engine.failure is None


async def test_a_reset_without_space_keeps_no_descriptors(folder: Path) -> None:
    disk = Disk()
    async with Engine(folder, files=disk) as engine:
        await engine.fill(3)
        await engine.all_durable()
        opened = None
        for _ in range(5):
            # The index, which is smaller, finds space, the store does not.
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(Disk, "fail", _no_space_for_stores())
                for name in ("reserved.store", "reserved.index"):
                    (folder / name).unlink(missing_ok=True)
                with pytest.raises(DiskFull):
                    await engine.log.reset(Snapshot(FAR, b"far"))
            opened = opened or len(os.listdir("/proc/self/fd"))
        assert len(os.listdir("/proc/self/fd")) == opened
        await engine.log.reset(Snapshot(FAR, b"far"))


def _no_space_for_stores() -> Callable[[Disk, str], None]:
    calls = iter(range(1000))

    def fail(_disk: Disk, call: str) -> None:
        if call == "reserve" and next(calls) % 2:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    return fail


# --- garbage -------------------------------------------------------------------------------------


async def test_a_snapshot_that_replaces_a_damaged_one_stays(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a start deletes at leisure, perhaps much later, has no name that is used again."""
    async with Engine(folder) as engine:
        await engine.fill(30)
        await engine.all_durable()
        await snapshot_after(engine, 1)
        dropped = {path: path.read_bytes() for path in folder.iterdir() if "01" in path.name}
        assert engine.log.drop_prefix(16) == 1
        await engine.tidied()
        tip = await snapshot_after(engine, 1)
    for path, data in dropped.items():
        path.write_bytes(data)
    flip(snapshot_path(folder, tip.index), 60)
    monkeypatch.setattr(limits, "unlink_pause_seconds", 0.02)
    async with Engine(folder) as engine:
        assert engine.log.snapshot_indexes == [16]
        assert await snapshot_after(engine, 1) == tip
        await engine.tidied()
        assert engine.log.drop_prefix(100) == 2
        await engine.tidied()
    async with Engine(folder) as engine:
        assert engine.log.before == tip


# --- stores that are opened on demand ------------------------------------------------------------


async def test_the_store_that_is_being_written_is_not_closed(folder: Path) -> None:
    """It may be sealed in memory, and others be read, long before the disk has all of it."""
    async with Engine(folder, files=Disk(caches=False)) as engine:
        await engine.fill((limits.stores_open_max + 3) * 8)
        await engine.all_durable()
        await engine.forget_tail()
        last = engine.segments[-1]
        engine.log.ask_for_room(0)
        await engine.settled()
        engine.hold()
        await engine.fill(8 - len(last.index) + 1)
        assert engine.segments[-1] is not last
        for segment in engine.segments[: limits.stores_open_max + 1]:
            await engine.read(segment.first_index, segment.first_index)
        engine.release()
        await engine.all_durable()


async def test_however_many_read_at_once_few_stores_are_open(folder: Path) -> None:
    async with Engine(folder, files=Disk(caches=False)) as engine:
        await engine.fill(8 * 100)
        await engine.all_durable()
        await engine.forget_tail()
        firsts = [segment.first_index for segment in engine.segments[:-1]]
        await asyncio.gather(*(engine.read(first, first) for first in firsts))
        await asyncio.gather(*(find_damage(engine.log, first) for first in firsts))
        opened = [segment for segment in engine.segments if segment._file is not None]
        assert len(opened) <= limits.stores_open_max + 1


# --- reads ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", ["batch", "sector"])
async def test_a_read_that_meets_damage_in_what_is_dropped_meanwhile(
    folder: Path, bad: str
) -> None:
    disk = Disk(caches=False)
    async with Engine(folder, files=disk) as engine:
        await engine.fill(20)
        await engine.all_durable()
        await snapshot_after(engine, 0)
        first = engine.segments[0]
        at = first.index.position(3) + 60
        await engine.forget_tail()
        if bad == "batch":
            flip(first.store_path, at)
        may_read = threading.Event()
        waiting = asyncio.ensure_future(engine.log.reader.run(may_read.wait))
        reading = asyncio.ensure_future(engine.log.read(1, 8, 1000))
        await asyncio.sleep(0)
        engine.hold()
        assert engine.log.drop_prefix(9) == 1
        if bad == "sector":
            disk.failing = {"pread": errno.EIO}
        may_read.set()
        await waiting
        with pytest.raises(Unavailable):
            await reading
        disk.failing = {}
        engine.release()


async def test_what_was_read_for_a_cut_is_not_taken_for_what_replaced_it(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "tail_bytes_max", 2000)
    async with Engine(folder) as engine:
        await engine.fill(24)
        await engine.all_durable()
        await engine.forget_tail()
        await engine.log.prepare_cut(11)
        engine.log.cut_suffix(11)
        await engine.log.prepare_cut(8)
        engine.log.cut_suffix(8)
        await engine.fill(20, term=2)
        await engine.all_durable()
        await engine.log.prepare_cut(11)
        engine.log.cut_suffix(11)
        assert engine.log.tip.term == 2
        values = await engine.fill(1, term=3)
        await engine.all_durable()
    async with Engine(folder) as engine:
        assert (await engine.read_all())[-1:] == values


# --- no descriptors ------------------------------------------------------------------------------


async def test_a_snapshot_for_which_there_is_no_descriptor_is_refused(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    await engine.fill(20)
    await snapshot_after(engine, 0)

    def none_left(*_: object, **__: object) -> None:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    monkeypatch.setattr(type(engine.files), "open", none_left)
    with pytest.raises(Overloaded):
        await engine.log.read_snapshot()
    with pytest.raises(Overloaded):
        monkeypatch.setattr(Segment, "open", none_left)
        await find_damage(engine.log, 3)
