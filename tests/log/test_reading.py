"""What is relied on was read from the disk; whatever keeps it from being read is one `Damage`."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from proglog.log.reading import CheckedFile, Damage, Reading
from proglog.ports import RealFiles
from tests.doubles.disk import Kind, SimDisk
from tests.doubles.files import SimFiles
from tests.log.damaged import Blocks, FilesWithBadBlocks

FOLDER = Path("/d")
PATH = FOLDER / "file"
DATA = bytes(range(256)) * 64


@pytest.fixture
def disk() -> SimDisk:
    disk = SimDisk()
    SimFiles(disk).mkdir(FOLDER)
    disk.put(PATH, DATA)
    return disk


def reading(disk: SimDisk, blocks: Blocks = Blocks()) -> Reading:
    return Reading(FilesWithBadBlocks(disk, blocks), writable=False)


def opened(found: CheckedFile | Damage) -> CheckedFile:
    assert isinstance(found, CheckedFile)
    return found


def test_a_file_is_read(disk: SimDisk) -> None:
    file = opened(reading(disk).open(PATH))
    assert file.read(100, 5000) == DATA[5000:5100]
    assert file.read_upto(100, len(DATA) - 10) == DATA[-10:]
    assert file.read_upto(100, len(DATA) + 10) == b""
    file.close()
    assert reading(disk).read_whole(PATH, len(DATA)) == DATA


def test_a_short_read_says_where_the_file_ends(disk: SimDisk) -> None:
    file = opened(reading(disk).open(PATH))
    assert file.read(100, len(DATA) - 10) == Damage(PATH, len(DATA), "the file ends here")
    assert file.read(1, len(DATA) + 10) == Damage(PATH, len(DATA) + 10, "the file ends here")


def test_a_block_that_cannot_be_read(disk: SimDisk) -> None:
    file = opened(reading(disk, Blocks.of(PATH, [1])).open(PATH))
    assert file.read(4096, 0) == DATA[:4096]
    damage = file.read(2, 4095)
    assert isinstance(damage, Damage)
    assert (damage.path, damage.position) == (PATH, 4095)
    assert "Input/output error" in damage.why
    assert str(damage).startswith(f"{PATH} at 4095: ")
    whole = reading(disk, Blocks.of(PATH, [1])).read_whole(PATH, len(DATA))
    assert isinstance(whole, Damage)


def test_what_cannot_be_opened(disk: SimDisk) -> None:
    missing = reading(disk).open(FOLDER / "missing")
    assert missing == Damage(FOLDER / "missing", 0, "the file is missing")
    disk.faults.next_error[Kind.OPEN] = errno.EIO
    damage = reading(disk).open(PATH)
    assert isinstance(damage, Damage)
    assert "cannot be opened: Input/output error" in damage.why


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENFILE])
def test_no_descriptors_are_no_damage(disk: SimDisk, number: int) -> None:
    disk.faults.next_error[Kind.OPEN] = number
    with pytest.raises(OSError) as caught:
        reading(disk).open(PATH)
    assert caught.value.errno == number


def test_a_file_that_is_larger_than_any_is_not_read(disk: SimDisk) -> None:
    damage = reading(disk).read_whole(PATH, len(DATA) - 1)
    assert isinstance(damage, Damage)
    assert f"{len(DATA)} bytes" in damage.why


def test_what_never_reached_the_disk_is_not_shown(disk: SimDisk) -> None:
    """A write fails, its process ends, and the cache shows it still."""
    file = SimFiles(disk).open(PATH)
    file.pwritev([b"new"], 4000)
    disk.faults.next_error[Kind.SYNC] = errno.EIO
    with pytest.raises(OSError):
        file.fdatasync()
    file.close()
    shown = opened(reading(disk).open(PATH)).read(3, 4000)
    after = disk.crash([False] * len(disk.unsynced()))
    assert opened(reading(after).open(PATH)).read(3, 4000) == shown


def test_what_is_shown_is_durable(disk: SimDisk) -> None:
    file = SimFiles(disk).open(PATH)
    file.pwritev([b"new"], 4000)
    file.close()
    assert opened(reading(disk).open(PATH)).read(3, 4000) == b"new"
    after = disk.crash([False] * len(disk.unsynced()))
    assert opened(reading(after).open(PATH)).read(3, 4000) == b"new"


def test_one_failed_sync_speaks_of_what_was_before(disk: SimDisk) -> None:
    disk.faults.next_error[Kind.SYNC] = errno.EIO
    assert isinstance(reading(disk).open(PATH), CheckedFile)


def test_syncs_that_fail_are_damage(disk: SimDisk) -> None:
    disk.faults.sync_error_rate = 1.0
    damage = reading(disk).open(PATH)
    assert isinstance(damage, Damage)
    assert "cannot be synced" in damage.why


def test_where_the_cache_keeps_files_that_is_known(tmp_path: Path) -> None:
    """A page that is mapped is not let go."""
    files, path = RealFiles(), tmp_path / "file"
    path.write_bytes(DATA)
    view = files.read_only_map(path)
    assert bytes(view[:3]) == DATA[:3]
    each = Reading(files, writable=False)
    opened(each.open(path)).close()
    assert each.unforgotten == path
    del view


def test_a_folder_in_the_place_of_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").mkdir()
    for writable in (False, True):
        found = Reading(RealFiles(), writable=writable).read_whole(tmp_path / "file", 100)
        assert isinstance(found, Damage), os.listdir(tmp_path)
