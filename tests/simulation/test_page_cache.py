"""The simulated page cache hides what the disk has, as long and as widely as the kernel's may."""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.doubles.disk import Lost, Sigbus, SimDisk
from tests.doubles.files import SimFile, SimFiles
from tests.doubles.inode import FOLIO_PAGES, PAGE_BYTES, Kind

A, B = Path("/d/a"), Path("/d/b")
OLD = b"." * (32 * PAGE_BYTES)


def made(seed: int = 0, data: bytes = OLD) -> tuple[SimDisk, SimFile]:
    disk = SimDisk(seed)
    disk.put(A, data)
    return disk, SimFiles(disk).open(A)


def fails(act: Callable[[], object], number: int = errno.EIO) -> None:
    with pytest.raises(OSError) as refused:
        act()
    assert refused.value.errno == number


def with_lost_write(data: bytes, position: int) -> Iterator[tuple[SimDisk, SimFile]]:
    """Disks which have lost a write in a failed fdatasync, with folios of all sizes."""
    for seed in range(60):
        disk, file = made(seed)
        file.pread(len(OLD), 0)
        file.pwritev([data], position)
        disk.faults.next_error[Kind.SYNC] = errno.EIO
        fails(file.fdatasync)
        if disk.find(A).durable.read(len(OLD), 0) == OLD:
            yield disk, file


# --- what is forgotten ---------------------------------------------------------------------------


def test_forgetting_from_a_position_on_leaves_what_was_lost_in_sight() -> None:
    """That is how acknowledged records were lost: page 1 is covered in part only; page 4 is covered
    wholly, but its folio is not."""
    for position, expected in ((PAGE_BYTES + 100, {True}), (4 * PAGE_BYTES, {True, False})):
        visible = set()
        for disk, file in with_lost_write(b"a batch", position):
            disk.find(A).forget(position)
            visible.add(file.pread(7, position) == b"a batch")
            assert file.forget_cache()
            assert file.pread(len(OLD), 0) == OLD
        assert visible == expected


def test_what_is_dirty_stays() -> None:
    disk, file = made()
    file.pwritev([b"new"], 5000)
    assert not file.forget_cache()
    assert file.pread(3, 5000) == b"new"
    assert disk.crash([False]).files() == {A: OLD}
    file.fdatasync()
    assert file.forget_cache()
    assert file.pread(3, 5000) == b"new"


def test_a_dirty_page_keeps_its_folio() -> None:
    visible = set()
    for _, file in with_lost_write(b"lost", 0):
        file.pwritev([b"x"], PAGE_BYTES)
        assert not file.forget_cache()
        visible.add(file.pread(4, 0) == b"lost")
    assert visible == {True, False}, "it depends on the folio"


def test_a_mapped_file_is_not_let_go() -> None:
    disk, file = made()
    files = SimFiles(disk)
    mapped = memoryview(files.read_only_map(A))
    assert not file.forget_cache()
    mapped.release()
    assert file.forget_cache()


def test_the_kernel_keeps_the_size_that_a_failed_sync_has_lost() -> None:
    sizes = set()
    for seed in range(20):
        disk, file = made(seed, b"")
        file.reserve(9000)
        disk.faults.next_error[Kind.SYNC] = errno.EIO
        fails(file.fdatasync)
        sizes.add(len(disk.crash([]).files()[A]))
        assert file.forget_cache()
        assert (file.size(), file.pread(9000, 0)) == (9000, bytes(9000))
        file.fdatasync()
        assert disk.crash([]).files() == {A: bytes(9000)}
    assert sizes == {0, 9000}


def test_a_cut_that_is_not_synced_shows_zeros_however_much_is_forgotten() -> None:
    disk, file = made()
    file.truncate(5000)
    file.reserve(20_000)
    for _ in range(2):
        assert file.pread(20_000, 0) == OLD[:5000] + bytes(15_000)
        file.forget_cache()
    assert disk.crash([False, False]).files() == {A: OLD}


# --- pages and folios ----------------------------------------------------------------------------


def test_a_page_is_written_whole_also_what_was_lost_of_it_before() -> None:
    for disk, file in with_lost_write(b"lost", 0):
        file.fdatasync()
        assert disk.crash([]).files() == {A: OLD}, "the kernel thinks it is clean"
        file.pwritev([b"x"], 100)
        file.fdatasync()
        assert disk.crash([]).files()[A][:101] == b"lost" + OLD[4:100] + b"x"


def test_a_failed_sync_loses_pages_and_of_each_the_last_writes() -> None:
    found = set()
    for seed in range(200):
        disk, file = made(seed)
        for position, data in ((0, b"1"), (PAGE_BYTES - 1, b"23"), (0, b"4")):
            file.pwritev([data], position)
        disk.faults.next_error[Kind.SYNC] = errno.EIO
        fails(file.fdatasync)
        data = disk.crash([]).files()[A]
        found.add(bytes([data[0], data[PAGE_BYTES - 1], data[PAGE_BYTES]]))
    first, second = (b"..", b"1.", b"12", b"42"), (b".", b"3")
    assert found == {a + b for a in first for b in second}


def test_a_failed_write_may_show_what_is_never_written() -> None:
    found = set()
    for seed in range(100):
        disk, file = made(seed, b"..")
        disk.faults.next_error[Kind.WRITE] = errno.EIO
        fails(lambda file=file: file.pwritev([b"xy"], 0))  # type: ignore[misc]
        seen = file.pread(2, 0)
        file.fdatasync()
        assert file.pread(2, 0) == seen
        assert file.forget_cache()
        found.add((seen, file.pread(2, 0)))
    partly = {(seen, has) for seen in (b"x.", b"xy") for has in (b"..", seen)}
    assert found == {(b"..", b".."), *partly}


def test_a_write_that_finds_no_space_leaves_nothing_that_is_never_written() -> None:
    for seed in range(20):
        disk, file = made(seed, b"..")
        disk.faults.capacity_bytes = 2
        fails(lambda file=file: file.pwritev([b"xyz"], 0), errno.ENOSPC)  # type: ignore[misc]
        seen = file.pread(2, 0)
        file.fdatasync()
        assert disk.crash([]).files() == {A: seen}


def test_folios_are_of_all_sizes_and_aligned() -> None:
    sizes = []
    for seed in range(4):
        disk, file = made(seed)
        for page in range(32):
            file.forget_cache()
            assert file.pread_cached(1, page * PAGE_BYTES) is None
            file.pread(1, page * PAGE_BYTES)
            found = disk.find(A).resident
            assert found == set(range(min(found), min(found) + len(found)))
            assert page in found
            assert min(found) % len(found) == 0
            sizes.append(len(found))
    assert set(sizes) == set(FOLIO_PAGES)


# --- lost blocks ---------------------------------------------------------------------------------


@pytest.mark.parametrize("how", [*Lost, b"of another file"])
def test_a_lost_block_is_seen_once_the_cache_is_let_go(how: Lost | bytes) -> None:
    disk, file = made()
    assert file.pread(len(OLD), 0) == OLD
    disk.lose_block(A, 3, how)
    assert file.pread(len(OLD), 0) == OLD
    file.forget_cache()
    start, stop = 3 * PAGE_BYTES, 4 * PAGE_BYTES
    for found in (disk, disk.copy(), disk.crash([])):
        file = SimFiles(found).open(A)
        assert file.pread(start, 0) == OLD[:start]
        assert file.pread(PAGE_BYTES, stop) == OLD[:PAGE_BYTES]
        if how is Lost.UNREADABLE:
            for size, position in ((1, start), (PAGE_BYTES, start - 1), (len(OLD), 0)):
                fails(lambda f=file, s=size, p=position: f.pread(s, p))  # type: ignore[misc]
            assert file.pread_cached(1, start) is None
            with pytest.raises(Sigbus):
                SimFiles(found).read_only_map(A)
        else:
            block = file.pread(PAGE_BYTES, start)
            assert len(block) == PAGE_BYTES
            assert block != OLD[start:stop]
            assert (block == bytes(PAGE_BYTES)) is (how is Lost.ZEROED)
            assert isinstance(how, Lost) or block.startswith(how)
            assert bytes(SimFiles(found).read_only_map(A))[start:stop] == block


@pytest.mark.parametrize("stays_bad", [False, True])
def test_writing_a_block_heals_it_once_it_is_synced(stays_bad: bool) -> None:
    disk, file = made()
    disk.faults.stays_bad = stays_bad
    disk.lose_block(A, 1, Lost.UNREADABLE)
    fails(lambda: file.pwritev([b"x"], PAGE_BYTES + 1))
    fails(lambda: file.pwritev([bytes(PAGE_BYTES)], PAGE_BYTES + 1))
    assert not disk.unsynced(), "it would have to be read first"
    new = b"x" * PAGE_BYTES
    file.pwritev([new], PAGE_BYTES)
    assert file.pread(PAGE_BYTES, PAGE_BYTES) == new
    with pytest.raises(OSError):
        SimFiles(disk.crash([False])).open(A).pread(1, PAGE_BYTES)
    file.fdatasync()
    file.forget_cache()
    if stays_bad:
        fails(lambda: file.pread(1, PAGE_BYTES))
    else:
        assert file.pread(PAGE_BYTES, PAGE_BYTES) == new


def test_a_block_that_is_lost_under_its_page_is_written_again_with_it() -> None:
    for how in Lost:
        disk, file = made()
        file.pread(len(OLD), 0)
        disk.lose_block(A, 1, how)
        file.pwritev([b"x"], PAGE_BYTES)
        file.fdatasync()
        assert SimFiles(disk.crash([])).open(A).pread(PAGE_BYTES, PAGE_BYTES) == b"x" + OLD[:4095]


def test_a_block_that_was_cut_off_is_not_read_again() -> None:
    disk, file = made()
    disk.lose_block(A, 3, Lost.UNREADABLE)
    file.truncate(PAGE_BYTES)
    file.reserve(8 * PAGE_BYTES)
    assert file.pread(PAGE_BYTES, 3 * PAGE_BYTES) == bytes(PAGE_BYTES)
    with pytest.raises(OSError):
        SimFiles(disk.crash([False, False])).open(A).pread(1, 3 * PAGE_BYTES)
    file.fdatasync()
    assert disk.crash([]).files() == {A: OLD[:PAGE_BYTES] + bytes(7 * PAGE_BYTES)}
    assert file.forget_cache()
    assert file.pread(PAGE_BYTES, 3 * PAGE_BYTES) == bytes(PAGE_BYTES)


def views(disk: SimDisk) -> list[dict[Path, bytes]]:
    """The files as processes see them, and as they are at least after a power cut."""
    return [disk.files(), disk.crash([False] * len(disk.unsynced())).files()]


def test_a_recording_repeats_what_failed() -> None:
    for seed in range(30):
        disk, file = made(seed)
        recording = disk.record()
        seen = [views(disk)]
        for position in (3000, 9000, 5000):
            for kind, act in (
                (Kind.WRITE, lambda f=file, p=position: f.pwritev([b"x" * 10_000], p)),  # type: ignore[misc]
                (Kind.SYNC, file.fdatasync),
            ):
                disk.faults.next_error = {kind: errno.EIO} if position != 9000 else {}
                with contextlib.suppress(OSError):
                    act()
                seen.append(views(disk))
        assert [views(again) for again in recording.points()] == seen
