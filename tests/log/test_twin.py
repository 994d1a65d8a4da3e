"""Files that keep two copies of themselves: no lost block, failed save or power cut loses both."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from proglog.log.reading import Damage, Reading
from proglog.log.twin import BLOCK_BYTES, PLACES, TwinFile, TwinState, read_twin
from proglog.ports import write_whole
from tests.doubles.disk import Kind, PowerCut, SimDisk
from tests.doubles.files import SimFiles
from tests.log.damaged import Blocks, FilesWithBadBlocks

FOLDER = Path("/d")
PATH = FOLDER / "twins"
MAGIC = b"PROGTEST"


@pytest.fixture
def disk() -> SimDisk:
    disk = SimDisk()
    SimFiles(disk).mkdir(FOLDER)
    TwinFile.create(SimFiles(disk), PATH, MAGIC, b"old").close()
    return disk


def read(disk: SimDisk, blocks: Blocks = Blocks()) -> TwinState:
    return read_twin(Reading(FilesWithBadBlocks(disk, blocks), writable=False), PATH, MAGIC)


def saved(disk: SimDisk, payload: bytes) -> None:
    files = SimFiles(disk)
    file = TwinFile(files, PATH, MAGIC, read(disk))
    try:
        file.save(payload)
    finally:
        file.close()


def test_what_is_saved_is_read(disk: SimDisk) -> None:
    assert read(disk) == TwinState(0, b"old", [], [])
    saved(disk, b"new")
    assert read(disk) == TwinState(1, b"new", [], [])
    assert read(disk.crash([False] * len(disk.unsynced()))) == TwinState(1, b"new", [], [])


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("how", ["rotten", "unreadable"])
def test_one_lost_copy_is_written_again(disk: SimDisk, place: int, how: str) -> None:
    blocks = Blocks()
    if how == "rotten":
        disk.flip_bit(PATH, place * 8 + 200)
    else:
        blocks = Blocks.of(PATH, [place // BLOCK_BYTES])
    state = read(disk, blocks)
    assert (state.payload, state.stale) == (b"old", [place])
    (damage,) = state.damages
    assert (damage.path, damage.position) == (PATH, place)
    files = FilesWithBadBlocks(disk, blocks)
    TwinFile(files, PATH, MAGIC, state).close()
    assert read(disk) == TwinState(0, b"old", [], [])
    assert disk.unsynced() == []


def test_two_lost_copies_are_two_damages(disk: SimDisk) -> None:
    for place in PLACES:
        disk.flip_bit(PATH, place * 8 + 200)
    state = read(disk)
    assert state.payload is None
    assert [damage.position for damage in state.damages] == list(PLACES)


def test_a_missing_file_is_a_damage(disk: SimDisk) -> None:
    disk.lose(PATH)
    assert read(disk) == TwinState(0, None, [Damage(PATH, 0, "the file is missing")], list(PLACES))


def test_an_older_copy_is_written_again(disk: SimDisk) -> None:
    old = disk.files()[PATH]
    saved(disk, b"new")
    new = disk.files()[PATH]
    for data, stale in ((old[:4096] + new[4096:], 0), (new[:4096] + old[4096:], 4096)):
        disk.put(PATH, data)
        state = read(disk)
        assert (state.sequence, state.payload, state.stale) == (1, b"new", [stale])
        TwinFile(SimFiles(disk), PATH, MAGIC, state).close()
        assert disk.files()[PATH] == new


def test_a_save_that_is_cut_off_leaves_the_old_or_the_new(disk: SimDisk) -> None:
    found = []
    for number in range(10):
        other = disk.copy()
        other.faults.power_cut_at = other.operations + number
        try:
            saved(other, b"new")
        except PowerCut:
            other.faults.power_cut_at, other.powered = None, True
            changes = len(other.unsynced())
            for survives in (False, True):
                found.append(read(other.crash([survives] * changes)).payload)
        else:
            break
    assert set(found) == {b"old", b"new"}
    assert found == sorted(found, reverse=True)


def test_a_failed_save_is_decided_by_the_next_start(disk: SimDisk) -> None:
    file = TwinFile(SimFiles(disk), PATH, MAGIC, read(disk))
    disk.faults.next_error[Kind.SYNC] = errno.EIO
    with pytest.raises(OSError):
        file.save(b"new")
    file.close()
    state = read(disk)
    assert state.payload in {b"old", b"new"}
    TwinFile(SimFiles(disk), PATH, MAGIC, state).close()
    after = disk.crash([False] * len(disk.unsynced()))
    assert read(after).payload == state.payload
    for place in PLACES:
        rotten = after.copy()
        rotten.flip_bit(PATH, place * 8 + 200)
        assert read(rotten).payload == state.payload


# --- replacing a file whole ----------------------------------------------------------------------


def test_a_file_is_replaced_whole_or_not_at_all(disk: SimDisk) -> None:
    path = FOLDER / "whole"
    disk.put(path, b"old")
    for number in range(10):
        other = disk.copy()
        other.faults.power_cut_at = other.operations + number
        try:
            write_whole(SimFiles(other), path, b"new and longer")
        except PowerCut:
            changes = len(other.unsynced())
            for kept in range(2**changes):
                after = other.crash([bool(kept >> at & 1) for at in range(changes)])
                assert after.files()[path] in {b"old", b"new and longer"}
        else:
            assert other.files()[path] == b"new and longer"
            assert other.unsynced() == []
            return
    raise AssertionError("it takes few operations")


@pytest.mark.parametrize("kind", [Kind.CREATE, Kind.WRITE, Kind.SYNC])
def test_a_file_that_cannot_be_replaced_stays(disk: SimDisk, kind: Kind) -> None:
    path = FOLDER / "whole"
    disk.put(path, b"old")
    disk.faults.next_error[kind] = errno.ENOSPC
    with pytest.raises(OSError):
        write_whole(SimFiles(disk), path, b"new")
    assert disk.files()[path] == b"old"
    assert sorted(disk.listing(FOLDER)) == ["twins", "whole"]


def test_what_an_earlier_try_left_is_in_nobodys_way(disk: SimDisk) -> None:
    disk.put(FOLDER / "whole.tmp", b"left")
    write_whole(SimFiles(disk), FOLDER / "whole", b"new")
    assert disk.files()[FOLDER / "whole"] == b"new"
    assert "whole.tmp" not in disk.listing(FOLDER)
