"""Real files that can be told to fail, or to have nothing in the page cache."""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence
from pathlib import Path

from proglog.batch import Buffer
from proglog.ports import File, RealFiles


class Disk(RealFiles):
    """Each call in `failing` raises its errno; `reserve` only where it would need space."""

    def __init__(self, *, caches: bool = True) -> None:
        super().__init__()
        self.failing: dict[str, int] = {}
        self.caches = caches

    def fail(self, call: str) -> None:
        if number := self.failing.get(call):
            raise OSError(number, os.strerror(number))

    def open(self, path: Path, *, writable: bool = True) -> File:
        return DiskFile(super().open(path, writable=writable), self)

    def create(self, path: Path) -> File:
        self.fail("create")
        return DiskFile(super().create(path), self)


class DiskFile:
    """A file of a `Disk`."""

    def __init__(self, file: File, disk: Disk) -> None:
        self._file, self._disk = file, disk

    def pwritev(self, parts: Sequence[Buffer], position: int) -> None:
        self._disk.fail("pwritev")
        self._file.pwritev(parts, position)

    def fdatasync(self) -> None:
        self._disk.fail("fdatasync")
        self._file.fdatasync()

    def read_ahead(self, size: int, position: int) -> None:
        self._file.read_ahead(size, position)

    def reserve(self, size: int) -> None:
        if size > self._file.size():
            self._disk.fail("reserve")
        self._file.reserve(size)

    def pread(self, size: int, position: int) -> bytes:
        self._disk.fail("pread")
        return self._file.pread(size, position)

    def pread_cached(self, size: int, position: int) -> bytes | None:
        if not self._disk.caches:
            return None
        self._disk.fail("pread")
        return self._file.pread_cached(size, position)

    def forget_cache(self) -> bool:
        return self._file.forget_cache()

    def truncate(self, size: int) -> None:
        self._file.truncate(size)

    def size(self) -> int:
        return self._file.size()

    def close(self) -> None:
        self._file.close()


NO_SPACE = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
