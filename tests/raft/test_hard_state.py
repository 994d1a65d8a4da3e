"""Term and vote outlive a failed disk, a power cut and one rotten copy, in any order."""

from __future__ import annotations

import errno
import itertools
from pathlib import Path

import pytest

from proglog.errors import CorruptionError
from proglog.raft.hard_state import FILE_NAME, HardStateFile, Identity
from proglog.raft.messages import HardState
from proglog.simulation.disk import Kind, SimDisk
from proglog.simulation.files import SimFiles

FOLDER = Path("/d")
OLD, NEW = HardState(3, "a"), HardState(4, "b")


@pytest.fixture(params=range(6))
def files(request: pytest.FixtureRequest) -> SimFiles:
    files = SimFiles(SimDisk(request.param))  # which decides what a failed call leaves
    files.mkdir(FOLDER)
    file = HardStateFile.create(files, FOLDER, Identity("c", "u", "n"), OLD)
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
    write, failing = file._write, iter([False] * saved_before + [True])

    def failing_write(place: int) -> None:
        if next(failing, False):
            files.disk.faults.next_error[kind] = errno.EIO
        write(place)

    file._write = failing_write  # type: ignore[method-assign]
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
    write = file._write

    def watched(place: int) -> None:
        perform = files.disk.perform

        def perform_and_look(operation: object) -> None:
            perform(operation)  # type: ignore[arg-type]
            states.extend(after_power_cuts(files.disk))

        files.disk.perform = perform_and_look  # type: ignore[assignment, method-assign]
        write(place)
        files.disk.perform = perform  # type: ignore[method-assign]

    file._write = watched  # type: ignore[method-assign]
    file.save(NEW)
    assert {opened(SimFiles(state)) for state in states} == {OLD, NEW}
    assert all(opened(SimFiles(rotten)) == NEW for rotten in with_rot(files.disk))


def test_two_rotten_copies_refuse(files: SimFiles) -> None:
    rotten, _ = with_rot(files.disk)
    rotten.flip_bit(FOLDER / FILE_NAME, 8 * 4096 + 100)
    with pytest.raises(CorruptionError, match="both copies"):
        opened(SimFiles(rotten))
