"""A real file system on a disk that fails where and when a test wants: ext4 on a loop device, whose
backing is a file of `faulty.py`. Needs root. As everything is mounted in a mount namespace of the
test process, nothing is left of it once that has ended, be it by kill -9: not a mount, not a loop
device, not a process.
"""

from __future__ import annotations

import ctypes
import fcntl
import json
import os
import stat
import struct
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import Self

MiB = 1024 * 1024
BLOCK = 4096
COMMAND_SECONDS_MAX = 30.0
"""A command that takes longer hangs in the kernel."""
_LIBC = ctypes.CDLL(None, use_errno=True)
_CLONE_NEWNS = 0x20000
_FIEMAP = 0xC020660B
_FIEMAP_SYNC = 1
_EXTENTS_MAX = 256
_EXTENT = struct.Struct("=QQQ16xI12x")
_SET_FLAGS, _NO_COPY_ON_WRITE = 0x40086602, 0x800000
_BTRFS_QUOTA_CONTROL, _BTRFS_QUOTA_LIMIT = 0xC0109428, 0x8030942B
_BTRFS_ROOT = 5
_UNMOUNT_LAZILY = 2
_outside: list[int] = []
"""The namespace that this process comes from."""


class NoDevice(Exception):
    """Such a disk cannot be had here."""


def isolate() -> None:
    """From now on what this process mounts is seen by it and its children only."""
    if not _outside:
        outside = os.open("/proc/self/ns/mnt", os.O_RDONLY)
        _check(_LIBC.unshare(_CLONE_NEWNS), "a mount namespace")
        _run("mount", "--make-rprivate", "/")
        _outside.append(outside)


def _check(failed: int, what: str) -> None:
    if failed:
        raise NoDevice(f"{what}: {os.strerror(ctypes.get_errno())}")


def _run(*command: object) -> str:
    try:
        done = subprocess.run(
            [str(word) for word in command],
            check=False,
            capture_output=True,
            text=True,
            timeout=COMMAND_SECONDS_MAX,
        )
    except OSError as error:
        raise NoDevice(str(error)) from error
    if done.returncode:
        raise NoDevice(f"{' '.join(map(str, command))}: {done.stderr.strip()}")
    return done.stdout


class Disk:
    """A context manager. `folder` is the root of its file system, empty at first.

    It has no journal: what fails is what a test chose, never the whole file system with it. Only
    data of files is made to fail, for ext4 does not survive all else.
    """

    file_system = "ext4"
    make = ("mkfs.ext4", "-q", "-F", "-b", str(BLOCK), "-O", "^has_journal")
    # A failed block is a failed block, not a file system that gives up.
    options = "loop,errors=continue"

    def __init__(self, folder: Path, *, size: int = 64 * MiB) -> None:
        self.folder = folder / "disk"
        self._file = folder / "device"
        self._size = size
        self._reads: list[tuple[int, int]] = []
        self._writes: list[tuple[int, int]] = []

    def __enter__(self) -> Self:
        self.folder.mkdir()
        self._file.touch()
        self._daemon = self._mount_file()
        try:
            _run(*self.make, self._file)
            self.mount()
        except BaseException:
            self.close()
            raise
        return self

    def _mount_file(self) -> subprocess.Popen[str]:
        """Mounts a file that is a file system of its own, with the process that is this system."""
        isolate()
        try:
            device = os.open("/dev/fuse", os.O_RDWR)
        except OSError as error:
            raise NoDevice(str(error)) from error
        try:
            options = f"fd={device},rootmode={stat.S_IFREG:o},user_id=0,group_id=0".encode()
            failed = _LIBC.mount(b"proglog", os.fsencode(self._file), b"fuse", 0, options)
            _check(failed, "mounting a FUSE file")
            return subprocess.Popen(
                [
                    *("nsenter", f"--mount=/proc/self/fd/{_outside[0]}", sys.executable),
                    *(Path(__file__).with_name("faulty.py"), str(device), str(self._size)),
                ],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                pass_fds=[device, *_outside],
            )
        finally:
            os.close(device)  # Only the daemon has it: where it ends, the file does.

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Also with processes on it: they get EIO."""
        for mounted in (self.folder, self._file):
            _LIBC.umount2(os.fsencode(mounted), _UNMOUNT_LAZILY)
        self._daemon.communicate()

    # --- mounting --------------------------------------------------------------------------------

    def mount(self) -> None:
        _run("mount", "-t", self.file_system, "-o", self.options, self._file, self.folder)

    def unmount(self) -> None:
        """Nobody may have a file open. What is dirty is written, as far as that is possible."""
        _run("umount", self.folder)

    def remount(self) -> None:
        """As after a reboot: from now on what is read is what the disk has."""
        self.unmount()
        self.mount()

    def turn_read_only(self) -> None:
        """As the kernel does by itself where it finds the file system damaged, under load."""
        _run("mount", "-o", "remount,abort", self.folder)

    # --- faults ----------------------------------------------------------------------------------

    def fail_reads(self, path: Path, start: int = 0, end: int | None = None) -> None:
        """EIO for these bytes of a file, rounded to blocks, until they are written anew. The
        kernel's cache still has what it had, until `remount`."""
        self._reads += self._places(path, start, end)
        self._tell()

    def forget(self, path: Path) -> None:
        """Drops what the kernel's cache has of a file, as far as it is clean and nobody maps it."""
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)

    def fail_writes(self, path: Path, start: int = 0, end: int | None = None) -> None:
        """EIO for what is written there. The kernel then shows as clean what it could not write."""
        self._writes += self._places(path, start, end)
        self._tell()

    def heal(self) -> None:
        """From now on all succeeds. What was not written is still not."""
        self._reads.clear()
        self._writes.clear()
        self._tell()

    def failures(self) -> dict[str, int]:
        """How many requests of the kernel failed so far, `reads` and `writes`."""
        return self._tell()

    def _tell(self) -> dict[str, int]:
        print(
            json.dumps({"reads": self._reads, "writes": self._writes}),
            file=self._daemon.stdin,
            flush=True,
        )
        return json.loads(self._daemon.stdout.readline())

    def _places(self, path: Path, start: int, end: int | None) -> list[tuple[int, int]]:
        """Where bytes of a file are on the disk."""
        end = path.stat().st_size if end is None else end
        start, end = start // BLOCK * BLOCK, -(-end // BLOCK) * BLOCK
        places = [
            (physical + max(start - logical, 0), physical + min(end - logical, length))
            for logical, physical, length in extents(path)
            if logical < end and start < logical + length
        ]
        assert sum(last - first for first, last in places) == end - start, f"{path} has holes"
        return places

    # --- space -----------------------------------------------------------------------------------

    def fill(self, *, leave: int = 0) -> Path:
        """Takes all space but so many bytes; the file that has it."""
        filler = self.folder / "filler"
        with filler.open("wb") as file:
            for size in (MiB, BLOCK):
                try:
                    while True:
                        os.posix_fallocate(file.fileno(), file.seek(0, os.SEEK_END), size)
                except OSError:
                    continue
            file.truncate(max(file.seek(0, os.SEEK_END) - leave, 0))
        return filler


class QuotaDisk(Disk):
    """Has a quota, which also root meets: btrfs, since few kernels have quotas of ext4 built in.
    Files are written in place, as everywhere else."""

    file_system = "btrfs"
    make = ("mkfs.btrfs", "-q", "-f", "-m", "single")
    options = "loop"

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, size=256 * MiB)

    def __enter__(self) -> Self:
        super().__enter__()
        self._control(_SET_FLAGS, struct.pack("=q", _NO_COPY_ON_WRITE))
        self._control(_BTRFS_QUOTA_CONTROL, struct.pack("=QQ", 1, 0))
        return self

    def set_quota(self, size: int) -> None:
        """So many bytes for all files together."""
        self._control(_BTRFS_QUOTA_LIMIT, struct.pack("=6Q", _BTRFS_ROOT, 1, size, 0, 0, 0))

    def _control(self, operation: int, argument: bytes) -> None:
        folder = os.open(self.folder, os.O_RDONLY)
        try:
            fcntl.ioctl(folder, operation, argument)
        finally:
            os.close(folder)


def extents(path: Path) -> Iterable[tuple[int, int, int]]:
    """(position in the file, position on the device, bytes) of each piece of a file."""
    request = bytearray(struct.pack("=QQIIII", 0, 2**64 - 1, _FIEMAP_SYNC, 0, _EXTENTS_MAX, 0))
    request += bytes(_EXTENT.size * _EXTENTS_MAX)
    with path.open("rb") as file:
        fcntl.ioctl(file, _FIEMAP, request)
    (count,) = struct.unpack_from("=I", request, 20)
    assert count < _EXTENTS_MAX
    for number in range(count):
        logical, physical, length, _flags = _EXTENT.unpack_from(request, 32 + number * _EXTENT.size)
        yield logical, physical, length
