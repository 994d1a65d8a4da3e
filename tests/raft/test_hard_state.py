"""Term and vote outlive a failed disk, a power cut and one rotten copy, in any order."""

from __future__ import annotations

import errno
import itertools
import json
from pathlib import Path

import pytest
from crc32c import crc32c

from proglog.errors import CorruptionError, UnknownFormat
from proglog.log.envelope import HARD_STATE
from proglog.log.reading import Reading
from proglog.log.twin import TwinFile, read_twin
from proglog.raft.hard_state import FILE_NAME, HardStateFile, Identity
from proglog.raft.messages import HardState
from tests.doubles.disk import SimDisk
from tests.doubles.files import SimFiles
from tests.doubles.inode import Kind
from tests.log.damaged import Blocks, FilesWithBadBlocks

FOLDER = Path("/d")
OLD, NEW = HardState(3, "a"), HardState(4, "b")


@pytest.fixture(params=range(6))
def files(request: pytest.FixtureRequest) -> SimFiles:
    files = SimFiles(SimDisk(request.param))  # which decides what a failed call leaves
    files.mkdir(FOLDER)
    file = HardStateFile.create(files, FOLDER, 2, Identity("c", "u", "n"), OLD)
    file.close()
    return files


def opened(files: SimFiles) -> HardState:
    file = HardStateFile(files, FOLDER)
    file.close()
    return file.hard_state


def after_power_cuts(disk: SimDisk) -> list[SimDisk]:
    """What may be left, if no write is torn."""
    choices = itertools.product((False, True), repeat=len(disk.unsynced()))
    return [disk.crash(fates) for fates in choices]


def with_rot(disk: SimDisk) -> list[SimDisk]:
    """One of the copies rotten."""
    rotten = []
    for place in (0, 4096):
        copy = disk.copy()
        copy.flip_bit(FOLDER / FILE_NAME, 8 * place + 100)
        rotten.append(copy)
    return rotten


@pytest.mark.parametrize("kind", [Kind.WRITE, Kind.SYNC])
@pytest.mark.parametrize("saved_before", [0, 1])
def test_what_a_start_after_a_failed_save_finds_stays(
    files: SimFiles, kind: Kind, saved_before: int
) -> None:
    """The page cache shows what a failed fdatasync never brought to the disk: a server that took
    it for stored would speak in a term that one rotten copy makes it forget."""
    file = HardStateFile(files, FOLDER)
    twin = file._file
    write, failing = twin._write, iter([False] * saved_before + [True])

    def failing_write(place: int, payload: bytes) -> None:
        if next(failing, False):
            files.disk.faults.next_error[kind] = errno.EIO
        write(place, payload)

    twin._write = failing_write  # type: ignore[method-assign]
    with pytest.raises(OSError):
        file.save(NEW)
    found = opened(files)
    assert found in (OLD, NEW)
    for disk in after_power_cuts(files.disk):
        assert opened(SimFiles(disk.copy())) == found
        for rotten in with_rot(disk):
            assert opened(SimFiles(rotten)) == found


def test_a_power_cut_during_a_save_leaves_the_old_or_the_new(files: SimFiles) -> None:
    file = HardStateFile(files, FOLDER)
    states = [files.disk.copy()]
    twin = file._file
    write = twin._write

    def watched(place: int, payload: bytes) -> None:
        perform = files.disk.perform

        def perform_and_look(operation: object) -> None:
            perform(operation)  # type: ignore[arg-type]
            states.extend(after_power_cuts(files.disk))

        files.disk.perform = perform_and_look  # type: ignore[assignment, method-assign]
        write(place, payload)
        files.disk.perform = perform  # type: ignore[method-assign]

    twin._write = watched  # type: ignore[method-assign]
    file.save(NEW)
    assert {opened(SimFiles(state)) for state in states} == {OLD, NEW}
    assert all(opened(SimFiles(rotten)) == NEW for rotten in with_rot(files.disk))


def test_two_rotten_copies_refuse(files: SimFiles) -> None:
    rotten, _ = with_rot(files.disk)
    rotten.flip_bit(FOLDER / FILE_NAME, 8 * 4096 + 100)
    with pytest.raises(CorruptionError, match="no copy is whole"):
        opened(SimFiles(rotten))


@pytest.mark.parametrize("place", [0, 4096])
def test_a_block_that_cannot_be_read_is_written_anew(files: SimFiles, place: int) -> None:
    path = FOLDER / FILE_NAME
    lost = FilesWithBadBlocks(files.disk, Blocks.of(path, [place // 4096]))
    assert opened(lost) == OLD
    assert lost.bad[files.disk.find(path).number] == set()
    for rotten in with_rot(files.disk):
        assert opened(SimFiles(rotten)) == OLD


def test_two_blocks_that_cannot_be_read_refuse(files: SimFiles) -> None:
    lost = FilesWithBadBlocks(files.disk, Blocks.of(FOLDER / FILE_NAME, [0, 1]))
    with pytest.raises(CorruptionError, match="cannot be read") as caught:
        opened(lost)
    assert caught.value.facts["file"] == str(FOLDER / FILE_NAME)


@pytest.mark.parametrize("size", [0, 10, 4095, 4096, 8000])
def test_a_short_file_is_as_good_as_its_copies(files: SimFiles, size: int) -> None:
    path = FOLDER / FILE_NAME
    data = files.disk.files()[path][:size]
    files.disk.put(path, data)
    if size >= 4095:  # The first copy is much shorter than its block.
        assert opened(files) == OLD
        assert all(opened(SimFiles(rotten)) == OLD for rotten in with_rot(files.disk))
    else:
        with pytest.raises(CorruptionError):
            opened(files)


def test_what_it_does_not_know_stays(files: SimFiles) -> None:
    """A newer version may have added members, and this one saves."""
    state = read_twin(Reading(files, writable=False), FOLDER / FILE_NAME, HARD_STATE)
    assert state.payload is not None
    members = {**json.loads(state.payload), "later": [1, 2]}
    payload = json.dumps(members).encode()
    TwinFile.create(files, FOLDER / FILE_NAME, HARD_STATE, payload).close()
    file = HardStateFile(files, FOLDER)
    file.save(NEW)
    file.close()
    state = read_twin(Reading(files, writable=False), FOLDER / FILE_NAME, HARD_STATE)
    assert state.payload is not None
    assert json.loads(state.payload)["later"] == [1, 2]
    assert opened(files) == NEW


def test_a_newer_version_is_no_damage(files: SimFiles) -> None:
    path = FOLDER / FILE_NAME
    data = bytearray(files.disk.files()[path])
    length = int.from_bytes(data[12:16], "little")
    data[8:10], data[20:24] = (3).to_bytes(2, "little"), bytes(4)
    data[20:24] = crc32c(bytes(data[:length])).to_bytes(4, "little")
    files.disk.put(path, bytes(data))
    with pytest.raises(UnknownFormat, match="version 3"):
        opened(files)
    assert files.disk.files()[path] == bytes(data)
