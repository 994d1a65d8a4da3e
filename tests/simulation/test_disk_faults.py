"""Faults of the simulated disk while the power is on."""

from __future__ import annotations

import errno
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.doubles.disk import PowerCut, SimDisk
from tests.doubles.files import SimFiles
from tests.doubles.inode import Kind

A = Path("/d/a")


@pytest.fixture
def disk() -> SimDisk:
    disk = SimDisk(3)
    disk.put(A, b"0123456789")
    return disk


def test_capacity_refuses_what_grows_and_nothing_else(disk: SimDisk) -> None:
    file = SimFiles(disk).open(A)
    disk.faults.capacity_bytes = 12
    file.reserve(12)
    with pytest.raises(OSError) as refused:
        file.reserve(13)
    assert refused.value.errno == errno.ENOSPC
    assert file.size() == 12
    file.pwritev([b"in place"], 0)
    with pytest.raises(OSError) as refused:
        file.pwritev([b"beyond"], 10)
    assert refused.value.errno == errno.ENOSPC
    assert file.size() == 12
    file.truncate(0)
    file.pwritev([b"beyond"], 6)


def test_space_is_free_after_the_last_name_and_the_last_user_are_gone(disk: SimDisk) -> None:
    files = SimFiles(disk)
    disk.faults.capacity_bytes = 10
    old = files.open(A)
    files.unlink(A)
    new = files.create(A)
    with pytest.raises(OSError):
        new.reserve(1)
    old.close()
    new.reserve(10)


@pytest.mark.parametrize("kind", [Kind.WRITE, Kind.SYNC, Kind.GROW, Kind.TRUNCATE, Kind.READ])
def test_the_next_operation_of_a_kind_fails_once(disk: SimDisk, kind: Kind) -> None:
    file = SimFiles(disk).open(A)
    act = {
        Kind.WRITE: lambda: file.pwritev([b"x"], 0),
        Kind.SYNC: file.fdatasync,
        Kind.GROW: lambda: file.reserve(20),
        Kind.TRUNCATE: lambda: file.truncate(1),
        Kind.READ: lambda: file.pread(1, 0),
    }[kind]
    disk.faults.next_error[kind] = errno.EIO
    with pytest.raises(OSError) as refused:
        act()
    assert refused.value.errno == errno.EIO
    assert refused.value.filename == str(A)
    act()


def test_names_fail_too(disk: SimDisk) -> None:
    files = SimFiles(disk)
    for kind in (Kind.CREATE, Kind.RENAME, Kind.UNLINK, Kind.SYNC_DIRECTORY, Kind.MKDIR):
        disk.faults.next_error[kind] = errno.EIO
    acts = [
        lambda: files.create(Path("/d/b")),
        lambda: files.rename(A, Path("/d/c")),
        lambda: files.unlink(A),
        lambda: files.sync_directory(Path("/d")),
        lambda: files.mkdir(Path("/e")),
    ]
    for act in acts:
        with pytest.raises(OSError):
            act()
    assert disk.files() == {A: b"0123456789"}


def test_any_operation_fails_when_it_is_told_to(disk: SimDisk) -> None:
    files = SimFiles(disk)
    file = files.open(A)
    acts: dict[Kind, Callable[[], object]] = {
        Kind.OPEN: lambda: files.open(A).close(),
        Kind.MAP: lambda: bytes(files.read_only_map(A)),
        Kind.READ: lambda: file.pread(1, 0),
        Kind.WRITE: lambda: file.pwritev([b"x"], 0),
        Kind.SYNC: file.fdatasync,
        Kind.GROW: lambda: file.reserve(20),
        Kind.TRUNCATE: lambda: file.truncate(9),
        Kind.SYNC_DIRECTORY: lambda: files.sync_directory(A.parent),
    }
    disk.faults.fail_at = {
        **{(kind, 3): errno.EIO for kind in acts},
        **{(kind, 4): errno.ENFILE for kind in acts},
    }
    for act in acts.values():
        outcomes: list[int | None] = []
        for _ in range(5):
            try:
                act()
                outcomes.append(0)
            except OSError as error:
                outcomes.append(error.errno)
        assert outcomes == [0, 0, errno.EIO, errno.ENFILE, 0]
    assert disk.faults.fail_at == {}


def test_a_process_has_so_many_descriptors_and_no_more(disk: SimDisk) -> None:
    files = SimFiles(disk)
    disk.faults.descriptors_max = 3
    file, unlock = files.open(A), files.lock(A.parent)
    mapped = files.read_only_map(A)
    acts: list[Callable[[], object]] = [
        lambda: files.open(A).close(),
        lambda: files.create(Path("/d/b")).close(),
        lambda: bytes(files.read_only_map(A)),
        lambda: files.sync_directory(A.parent),
        lambda: files.listdir(A.parent),
        lambda: files.lock(Path("/"))(),
    ]
    for act in acts:
        with pytest.raises(OSError) as refused:
            act()
        assert refused.value.errno == errno.EMFILE
    assert files.size(A) == file.size() == 10
    SimFiles(disk).open(A).close()
    file.close()
    for act in acts:
        act()
    disk.faults.descriptors_max = 1
    del mapped
    unlock()
    acts[0]()


def test_a_failed_write_may_have_written_its_front() -> None:
    found = set()
    for seed in range(60):
        disk = SimDisk(seed)
        disk.put(A, b"...")
        disk.faults.write_error_rate = 1.0
        with pytest.raises(OSError):
            SimFiles(disk).open(A).pwritev([b"x", b"yz"], 0)
        found.add(disk.files()[A])
    assert found == {b"...", b"x..", b"xy.", b"xyz"}


def test_rates_are_probabilities(disk: SimDisk) -> None:
    file = SimFiles(disk).open(A)
    disk.faults.sync_error_rate = disk.faults.read_error_rate = disk.faults.uncached_rate = 0.5

    def failures(act: object) -> int:
        failed = 0
        for _ in range(200):
            try:
                failed += act() is None  # type: ignore[operator]
            except OSError:
                failed += 1
        return failed

    assert 60 < failures(lambda: file.fdatasync() or 1) < 140
    assert 60 < failures(lambda: file.pread(1, 0)) < 140
    disk.faults.read_error_rate = 0.0
    assert 60 < failures(lambda: file.pread_cached(1, 0)) < 140


def test_after_a_power_cut_nothing_works(disk: SimDisk) -> None:
    files = SimFiles(disk)
    file = files.open(A)
    disk.faults.power_cut_at = disk.operations + 1
    file.pwritev([b"x"], 0)
    assert file.pread(1, 0) == b"x"
    with pytest.raises(PowerCut):
        file.fdatasync()
    assert not disk.powered
    for act in (lambda: file.pread(1, 0), lambda: files.listdir(Path("/d")), lambda: files.open(A)):
        with pytest.raises(PowerCut):
            act()
    file.close()
    assert disk.crash([False]).files() == {A: b"0123456789"}
    assert SimFiles(disk.crash([True])).open(A).pread(2, 0) == b"x1", "a crashed disk has power"


def test_rot(disk: SimDisk) -> None:
    disk.flip_bit(A, 8 * 2 + 1)
    assert disk.files() == {A: b"0103456789"}
    assert disk.crash([]).files() == {A: b"0103456789"}
    disk.lose(A)
    assert disk.files() == {}
    assert disk.crash([]).files() == {}


def test_a_mapped_file_must_not_change(disk: SimDisk) -> None:
    files = SimFiles(disk)
    mapped = memoryview(files.read_only_map(A))
    part = mapped[2:4]
    mapped.release()
    with pytest.raises(AssertionError, match="while mapped"):
        files.open(A).truncate(3)
    files.unlink(A)
    assert bytes(part) == b"23"
    disk.put(A, b"new")
    part.release()
    files.open(A).truncate(0)
