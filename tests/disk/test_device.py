"""The disk does what these tests ask of it, and the kernel what they are about."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.disk.device import BLOCK, Disk, MiB, QuotaDisk
from tests.disk.node import ROOT

BLOCKS = 64
RUN = """
import sys, time
from pathlib import Path
from tests.disk.device import Disk
with Disk(Path(sys.argv[1])) as disk, (disk.folder / "file").open("wb") as file:
    file.write(bytes(10_000_000))
    print("mounted", flush=True)
    time.sleep(600)
"""


@pytest.fixture
def file(disk: Disk) -> Path:
    path = disk.folder / "file"
    path.write_bytes(b"old ".ljust(BLOCK, b".") * BLOCKS)
    os.sync()
    return path


def error_of(action: Callable[[], object]) -> str:
    with pytest.raises(OSError) as raised:
        action()
    return errno.errorcode[raised.value.errno]


def read(path: Path, block: int) -> bytes:
    with path.open("rb", buffering=0) as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_RANDOM)
        return os.pread(file.fileno(), BLOCK, block * BLOCK)


def overwrite(path: Path, block: int) -> None:
    with path.open("r+b", buffering=0) as file:
        os.pwrite(file.fileno(), b"new ".ljust(BLOCK, b"."), block * BLOCK)
        os.fdatasync(file.fileno())


def test_chosen_blocks_cannot_be_read_once_the_cache_is_gone(disk: Disk, file: Path) -> None:
    disk.fail_reads(file, 9 * BLOCK, 10 * BLOCK)
    assert read(file, 9).startswith(b"old"), "from the cache"
    disk.remount()
    assert error_of(lambda: read(file, 9)) == "EIO"
    assert read(file, 8).startswith(b"old")
    assert read(file, 10).startswith(b"old")
    assert disk.failures()["reads"] > 0
    overwrite(file, 9)
    disk.remount()
    assert read(file, 9).startswith(b"new"), "what is written anew is read again"


def test_a_block_takes_others_with_it_where_the_kernel_reads_ahead(disk: Disk, file: Path) -> None:
    """It reads and forgets in pieces of many pages, of which it then has none. Who wants what is
    beside a bad block forgets the file, and reads without reading ahead."""
    disk.fail_reads(file, 31 * BLOCK, 32 * BLOCK)
    disk.remount()
    with file.open("rb", buffering=0) as opened:
        for block in range(BLOCKS):
            with contextlib.suppress(OSError):
                os.pread(opened.fileno(), BLOCK, block * BLOCK)
    assert error_of(lambda: read(file, 31)) == "EIO"
    disk.forget(file)
    for block in (30, 32):
        assert read(file, block).startswith(b"old")


def test_what_could_not_be_written_is_read_until_the_cache_is_gone(disk: Disk, file: Path) -> None:
    disk.fail_writes(file, 9 * BLOCK, 10 * BLOCK)
    assert error_of(lambda: overwrite(file, 9)) == "EIO"
    overwrite(file, 8)
    disk.heal()
    with file.open("r+b") as opened:
        os.fdatasync(opened.fileno())
    assert read(file, 9).startswith(b"new"), "the kernel takes it for clean"
    disk.remount()
    assert read(file, 9).startswith(b"old"), "and it never was on the disk"
    assert read(file, 8).startswith(b"new")


def test_advice_to_forget_keeps_a_page_of_which_it_covers_a_part(disk: Disk, file: Path) -> None:
    """Why recovery forgets whole files: what it kept of a page is not what the disk has."""
    disk.fail_writes(file, 9 * BLOCK, 10 * BLOCK)
    assert error_of(lambda: overwrite(file, 9)) == "EIO"
    with file.open("rb") as opened:
        os.posix_fadvise(opened.fileno(), 9 * BLOCK + 10, 0, os.POSIX_FADV_DONTNEED)
        assert read(file, 9).startswith(b"new")
        os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        assert read(file, 9).startswith(b"old")


def test_a_full_disk(disk: Disk) -> None:
    disk.fill(leave=MiB)
    path = disk.folder / "file"
    path.write_bytes(bytes(MiB // 2))
    assert error_of(lambda: path.write_bytes(bytes(2 * MiB))) == "ENOSPC"


def test_a_quota(tmp_path: Path) -> None:
    with QuotaDisk(tmp_path) as disk, (disk.folder / "file").open("wb") as file:
        disk.set_quota(MiB)
        assert error_of(lambda: os.posix_fallocate(file.fileno(), 0, 2 * MiB)) == "EDQUOT"
        os.posix_fallocate(file.fileno(), 0, MiB // 2)


def test_read_only_while_a_file_is_open_for_writing(disk: Disk, file: Path) -> None:
    with file.open("r+b", buffering=0) as opened:
        opened.write(b"before")
        disk.turn_read_only()
        assert error_of(lambda: opened.write(b"after")) == "EROFS"
    disk.remount()
    file.write_bytes(b"again")


@pytest.mark.parametrize("whom", ["the test process", "all its processes"])
def test_a_run_that_is_killed_leaves_nothing(tmp_path: Path, whom: str) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", RUN, tmp_path],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        start_new_session=True,
    ) as run:
        assert run.stdout.readline() == b"mounted\n"
        assert str(tmp_path) in loop_devices()
        group = whom == "all its processes"
        (os.killpg if group else os.kill)(run.pid, signal.SIGKILL)
    for _ in range(1000):
        if str(tmp_path) not in loop_devices():
            break
        subprocess.run(["sleep", "0.01"], check=True)
    assert str(tmp_path) not in loop_devices()


def loop_devices() -> str:
    return subprocess.run(["losetup", "--all"], check=True, capture_output=True, text=True).stdout
