"""The log as the node sees it: append, look up, read, roll."""

from __future__ import annotations

import asyncio
import errno
import threading
from pathlib import Path

import pytest

from proglog import limits
from proglog.config import LogConfig
from proglog.errors import RangeCorrupt, StorageFailed
from proglog.log.format import ORIGIN
from proglog.log.segment import store_name
from proglog.ports import RealFiles
from tests.log.disk import Disk
from tests.log.support import CONFIG, Engine, build, marks_of, stored
from tests.waiting import DEADLINE_SECONDS


async def test_an_empty_log(engine: Engine) -> None:
    log = engine.log
    assert (log.before, log.tip, log.first_index, log.durable_index) == (ORIGIN, ORIGIN, 1, 0)
    assert (log.bytes_upto(0), log.sealed_tips()) == (0, [])
    assert (log.index_of_time(0), log.base_offset(1), log.term_at(0)) == (1, 0, 0)
    assert log.term_at(1) is None


async def test_what_is_appended_is_readable_at_once_and_then_durable(folder: Path) -> None:
    async with Engine(folder) as engine:
        engine.hold()
        await engine.append(b"a", b"b")
        await engine.append(b"c")
        assert await engine.read_all() == [b"a", b"b", b"c"]
        assert engine.log.durable_index == 0
        engine.release()
        await engine.all_durable()
        assert engine.durable_indexes[-1] == 2
    assert await stored(folder) == [b"a", b"b", b"c"]


async def test_what_waits_is_written_as_one_group(folder: Path) -> None:
    async with Engine(folder) as engine:
        engine.hold()
        for _ in range(5):
            await engine.append(b"x")
        engine.release()
        await engine.all_durable()
        assert [group.batches for group in engine.groups] == [5]
        assert engine.groups[0].bytes == engine.log.bytes_upto(5)


async def test_a_group_is_bounded(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with Engine(folder) as engine:
        engine.hold()
        header = await engine.append(b"x")
        monkeypatch.setattr(limits, "write_group_bytes_max", 2 * header.size)
        for _ in range(4):
            await engine.append(b"x")
        engine.release()
        await engine.all_durable()
        assert [group.batches for group in engine.groups] == [2, 2, 1]


async def test_a_batch_that_does_not_follow_is_not_appended(engine: Engine) -> None:
    await engine.append(b"a", term=2)
    for wrong in ({"index": 3}, {"term": 1}, {"base_offset": 0}, {"chain": 1}):
        header, parts = build(engine.log.tip, [b"b"])
        with pytest.raises(Exception, match="does not follow"):
            engine.log.append(header._replace(**wrong), parts)
    assert await engine.read_all() == [b"a"]


async def test_lookups_agree_with_a_scan_across_segments(engine: Engine) -> None:
    headers = [
        await engine.append(*[b"v"] * (number % 3), term=1 + number // 10, timestamp=number // 2)
        for number in range(40)
    ]
    log = engine.log
    assert len(engine.segments) > 4
    for offset in range(log.tip.next_offset):
        expected = [h.index for h in headers if h.base_offset <= offset][-1]
        assert log.index_of_offset(offset) == expected
    for time in range(22):
        indexes = [h.index for h in headers if h.timestamp >= time]
        assert log.index_of_time(time) == (indexes[0] if indexes else 41)
    for header in headers:
        assert log.base_offset(header.index) == header.base_offset
        assert log.size_of(header.index) == header.size
        assert log.term_at(header.index) == header.term
        tip = log.tip_at(header.index)
        assert tip is not None
        assert (tip.index, tip.chain) == (header.index, header.header_crc)
    assert log.bytes_upto(40) == sum(h.size for h in headers)
    assert log.bytes_upto(17) == sum(h.size for h in headers[:17])


async def test_segments_roll_by_size_and_by_count(engine: Engine) -> None:
    await engine.fill(20)
    assert [s.first_index for s in engine.segments] == [1, 9, 17]
    await engine.fill(4, size=6000)
    assert [s.first_index for s in engine.segments] == [1, 9, 17, 22, 24]
    assert [tip.index for tip in engine.sealed_tips] == [8, 16, 21, 23]
    assert engine.log.sealed_tips() == engine.sealed_tips


async def test_a_segment_that_could_not_tell_the_time_is_rolled(engine: Engine) -> None:
    await engine.append(b"a", timestamp=1)
    engine.clock.ms = 2**32 + 1
    await engine.append(b"b", timestamp=2**32 + 1)
    assert [s.first_index for s in engine.segments] == [1, 2]
    assert engine.log.index_of_time(2) == 2


async def test_where_time_goes_back_a_segment_begins(engine: Engine) -> None:
    """A batch counts as appended no later than any that follows it."""
    times = [10, 20, 900, 901, 30, 40, 800, 35, 50]
    for time in times:
        tip = engine.log.tip._replace(timestamp=time)
        header, parts = build(tip, [b"v"], timestamp=time)
        async with asyncio.timeout(DEADLINE_SECONDS):
            while not engine.log.has_room_to_roll(header.size):
                engine.log.ask_for_room(header.size)
                await asyncio.sleep(0.005)
        engine.log.append(header, parts)
    assert [s.first_index for s in engine.segments] == [1, 5, 8]

    counts = [10, 20, 30, 30, 30, 35, 35, 35, 50]
    for time in range(0, 1000, 5):
        found = [index for index, each in enumerate(counts, 1) if each >= time]
        assert engine.log.index_of_time(time) == (found[0] if found else 10)
    assert [tip.timestamp for tip, _ in engine.log.segment_facts()] == [0, 30, 35]


async def test_a_sealed_segment_has_a_mapped_index_and_no_spare_space(engine: Engine) -> None:
    await engine.fill(20)
    await engine.settled()
    for segment in engine.segments[:-1]:
        assert isinstance(segment.index._numbers, memoryview)
        assert segment.store_path.stat().st_size == segment.index.end_position
        assert segment.index_path.read_bytes() == segment.index.pack()
    active = engine.segments[-1]
    assert not isinstance(active.index._numbers, memoryview)
    assert active.store_path.stat().st_size == CONFIG.segment_bytes
    assert set(active.index_path.read_bytes()) == {0}


async def test_a_batch_larger_than_a_segment_gets_one_that_holds_it(engine: Engine) -> None:
    await engine.append(b"small")
    await engine.append(bytes(100_000))
    await engine.append(b"small")
    await engine.all_durable()
    assert [len(value) for value in await engine.read_all()] == [5, 100_000, 5]
    await engine.forget_tail()
    assert [len(value) for value in await engine.read_all()] == [5, 100_000, 5]


async def test_an_empty_log_takes_a_batch_larger_than_its_segment(engine: Engine) -> None:
    """Such as a follower that installed a snapshot, or cut to where a segment begins."""
    await engine.append(bytes(100_000))
    await engine.append(b"small")
    await engine.all_durable()
    assert [segment.first_index for segment in engine.segments] == [1, 2]
    assert [len(value) for value in await engine.read_all()] == [100_000, 5]
    await engine.forget_tail()
    assert [len(value) for value in await engine.read_all()] == [100_000, 5]


async def test_reads_cross_segments_from_memory_and_from_disk(engine: Engine) -> None:
    values = await engine.fill(30)
    assert await engine.read_all() == values
    await engine.forget_tail()
    assert await engine.read_all() == values
    for first in range(1, 31):
        for last in range(first, 31):
            assert await engine.read(first, last) == values[first - 1 : last]


async def test_a_read_from_disk_ends_where_the_writer_may_not_have_been(engine: Engine) -> None:
    """After a start the tail is empty; what is appended then is in memory, perhaps only there."""
    values = await engine.fill(3)
    await engine.forget_tail()
    engine.hold()
    values += await engine.fill(3)
    assert len((await engine.log.read(1, 6, 2**20)).headers) == 3
    assert await engine.read_all() == values


async def test_reads_are_bounded_but_never_empty(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    await engine.fill(8)
    size = engine.log.size_of(1)
    for _ in range(2):
        for bytes_max, count in ((0, 1), (size, 1), (2 * size, 2), (3 * size - 1, 2)):
            run = await engine.log.read(1, 8, bytes_max)
            assert (len(run.headers), len(run.data)) == (count, count * size)
        assert len((await engine.log.read(1, 8, 8 * size)).headers) == 8
        await engine.forget_tail()
    monkeypatch.setattr(limits, "read_batches_max", 3)
    assert len((await engine.log.read(1, 8, 2**20)).headers) == 3


async def test_what_left_memory_is_read_from_disk(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "tail_bytes_max", 3000)
    async with Engine(folder) as engine:
        values = await engine.fill(60)
        await engine.all_durable()
        await engine.append(b"last")
        assert engine.log.in_memory(1) is None
        assert engine.log.in_memory(61) is not None
        assert engine.log._tail.bytes <= 3000 + 1000
        assert await engine.read_all() == [*values, b"last"]


async def test_what_is_not_in_the_page_cache_is_read_by_the_reader(folder: Path) -> None:
    async with Engine(folder, files=Disk(caches=False)) as engine:
        values = await engine.fill(30)
        await engine.forget_tail()
        assert await engine.read_all() == values


@pytest.mark.parametrize("cached", [True, False])
async def test_an_unreadable_sector_is_named(folder: Path, cached: bool) -> None:
    disk = Disk(caches=cached)
    async with Engine(folder, files=disk) as engine:
        await engine.fill(30)
        await engine.forget_tail()
        disk.failing = {"pread": errno.EIO}
        with pytest.raises(RangeCorrupt) as caught:
            await engine.log.read(1, 30, 100)
        assert caught.value.facts["file"].endswith(store_name(1))
        disk.failing = {}


async def test_rotten_bytes_are_never_served(engine: Engine) -> None:
    await engine.fill(20)
    await engine.forget_tail()
    segment = engine.segments[0]
    position = segment.index.position(3) + 80
    data = bytearray(segment.store_path.read_bytes())
    data[position] ^= 4
    segment.store_path.write_bytes(data)
    assert len(await engine.read(1, 3)) == 3
    with pytest.raises(RangeCorrupt) as caught:
        await engine.read(1, 20)
    assert caught.value.facts["file"] == str(segment.store_path)
    assert caught.value.facts["position"] == str(segment.index.position(3))
    assert (caught.value.facts["index"], caught.value.facts["offset"]) == ("4", "3")
    assert len(await engine.read(5, 20)) == 16


async def test_what_is_in_memory_is_read_at_once(engine: Engine) -> None:
    await engine.fill(20)
    log = engine.log
    newest = log.read_newest(3, 20, 1 << 20)
    assert newest == await log.read(3, 20, 1 << 20)
    nothing = log.read_newest(21, 20, 1 << 20)
    assert nothing is not None
    assert (nothing.data, nothing.headers) == (b"", [])
    assert log.read_newest(3, 21, 1 << 20) is None, "that is not there yet"
    await engine.all_durable()
    await engine.forget_tail()
    assert engine.log.read_newest(3, 20, 1 << 20) is None


async def test_a_read_of_a_deleted_segment_ends_well(folder: Path) -> None:
    """Its file stays open until then: the descriptor's number would belong to another file."""
    async with Engine(folder, files=Disk(caches=False)) as engine:
        values = await engine.fill(20)
        await engine.settled()
        await engine.log.write_snapshot(engine.log.sealed_tips()[0], lambda: b"state")
        await engine.forget_tail()
        may_read = threading.Event()
        waiting = asyncio.ensure_future(engine.log.reader.run(may_read.wait))
        reading = asyncio.ensure_future(engine.read(1, 8))
        await asyncio.sleep(0)
        old = engine.segments[0]
        assert engine.log.drop_prefix(9) == 1
        await engine.settled()
        # Whoever opens files now would get the number if it were free.
        others = [await asyncio.to_thread(RealFiles().create, folder / f"x{n}") for n in range(5)]
        may_read.set()
        assert await reading == values[:8]
        assert await waiting
        await engine.tidied()
        assert not old.store_path.exists()
        for other in others:
            other.close()
        assert old._file is None


async def test_a_read_whose_task_is_cancelled_still_keeps_its_file(folder: Path) -> None:
    async with Engine(folder, files=Disk(caches=False)) as engine:
        await engine.fill(20)
        await engine.forget_tail()
        reading = asyncio.ensure_future(engine.read(1, 8))
        await asyncio.sleep(0)
        reading.cancel()
        segment = engine.segments[0]
        assert segment._pins == 1
        await engine.log.reader.run(lambda: None)
        assert segment._pins == 0


def test_a_closed_file_reads_no_other(tmp_path: Path) -> None:
    files = RealFiles()
    closed = files.create(tmp_path / "closed")
    closed.close()
    other = files.create(tmp_path / "other")
    other.pwritev([b"secret"], 0)
    for use in (lambda: closed.pread(6, 0), lambda: closed.pwritev([b"x"], 0), closed.close):
        with pytest.raises(OSError, match="Bad file descriptor"):
            use()
    assert other.pread(6, 0) == b"secret"
    other.close()


async def test_the_mark_follows_when_there_is_no_more_to_write(engine: Engine) -> None:
    await engine.fill(3)
    await engine.all_durable()
    while engine.log._marking is not None:
        await asyncio.sleep(limits.mark_idle_seconds / 4)
    await engine.settled()
    active = engine.segments[-1]
    newest = marks_of(active.store_path)[0]
    assert (newest.tip.index, newest.position) == (3, active.index.end_position)


async def test_closing_makes_everything_durable(folder: Path) -> None:
    async with Engine(folder) as engine:
        values = await engine.fill(30)
        before = engine.log.tip
    assert await stored(folder) == values
    async with Engine(folder) as engine:
        assert (engine.log.tip, engine.recovered.notes) == (before, [])


async def test_the_same_bytes_after_reopening_with_another_configuration(folder: Path) -> None:
    async with Engine(folder) as engine:
        values = await engine.fill(30)
    for config in (
        LogConfig(segment_bytes=17_000, segment_batches=3),
        LogConfig(segment_bytes=64 * 1024, segment_batches=100),
    ):
        async with Engine(folder, config=config) as engine:
            assert await engine.read_all() == values
            values += await engine.fill(10)
            assert await engine.read_all() == values
    assert await stored(folder) == values


@pytest.mark.parametrize("call", ["pwritev", "fdatasync"])
async def test_a_failed_write_is_never_retried(folder: Path, call: str) -> None:
    files = Disk()
    async with Engine(folder, files=files) as engine:
        await engine.append(b"a")
        await engine.all_durable()
        files.failing = {call: errno.EIO}
        await engine.append(b"lost")
        with pytest.raises(StorageFailed, match=r"Input/output error.*stops"):
            await engine.all_durable()
        files.failing = {}
        await engine.append(b"later")
        with pytest.raises(StorageFailed):
            await engine.log.run_job(lambda: None)
        assert engine.log.durable_index == 1
        with pytest.raises(StorageFailed):
            await asyncio.wait_for(engine.log.make_room(100_000), DEADLINE_SECONDS)
    assert (await stored(folder))[:1] == [b"a"]


async def test_who_waits_for_room_hears_of_a_failed_disk(folder: Path) -> None:
    files = Disk()
    async with Engine(folder, files=files) as engine:
        engine.hold()
        await engine.append(b"a")
        waiting = asyncio.ensure_future(engine.log.make_room(100_000))
        await asyncio.sleep(0)
        files.failing = {"fdatasync": errno.EIO}
        engine.release()
        with pytest.raises(StorageFailed):
            await asyncio.wait_for(waiting, DEADLINE_SECONDS)
