"""`ports.Files` on a simulated disk: what one process sees of it."""

from __future__ import annotations

import errno
import os
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path

from proglog.batch import Buffer
from proglog.simulation.disk import Inode, Kind, Mapping, Operation, PowerCut, SimDisk, split


class SimFile:
    """`ports.File` on a simulated disk."""

    __slots__ = ("_closed", "_files", "_inode", "_path")

    def __init__(self, files: SimFiles, inode: Inode, path: Path) -> None:
        self._files = files
        self._inode = inode
        self._path = path
        self._closed = False

    def pwritev(self, parts: Sequence[Buffer], position: int) -> None:
        if parts:
            self._perform(Kind.WRITE, position, b"".join(parts))

    def pread(self, size: int, position: int) -> bytes:
        self._check_open()
        self._files.disk.check_read(self._path)
        return self._inode.cached.read(size, position)

    def pread_cached(self, size: int, position: int) -> bytes | None:
        data = self.pread(size, position)
        if len(data) < size or self._files.disk.chance_uncached():
            return None
        return data

    def fdatasync(self) -> None:
        self._perform(Kind.SYNC)

    def forget_cache(self, position: int) -> None:
        self._check_open()
        self._inode.forget_clean(position)

    def reserve(self, size: int) -> None:
        if size <= 0:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        self._perform(Kind.GROW, size)

    def truncate(self, size: int) -> None:
        longer = size > self.size()
        self._perform(Kind.GROW if longer else Kind.TRUNCATE, size)

    def size(self) -> int:
        self._check_open()
        return self._inode.cached.size

    def close(self) -> None:
        # Never raises PowerCut: it stands in `finally` clauses, and does nothing on a disk.
        if self._closed:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        self._closed = True
        self._files.forget(self, self._inode)

    def _perform(self, kind: Kind, position: int = 0, data: bytes = b"") -> None:
        self._check_open()
        operation = Operation(kind, self._path, self._inode.number, position, data)
        self._files.disk.perform(operation)

    def _check_open(self) -> None:
        self._files.check_alive()
        if self._closed:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))


class SimFiles:
    """`ports.Files` of one process on a simulated disk."""

    def __init__(self, disk: SimDisk) -> None:
        self.disk = disk
        self._killed = False
        self._open: dict[SimFile, Inode] = {}

    def kill(self) -> None:
        """Ends the process: whatever it still tries raises PowerCut. Its locks are free."""
        self._killed = True
        for file, inode in list(self._open.items()):
            self.forget(file, inode)
        for path in [path for path, owner in self.disk.locks.items() if owner is self]:
            del self.disk.locks[path]

    def check_alive(self) -> None:
        if self._killed:
            raise PowerCut("the process was killed")

    def forget(self, file: SimFile, inode: Inode) -> None:
        """Lets go of a closed file."""
        if self._open.pop(file, None) is not None:
            inode.open_count -= 1

    def open(self, path: Path) -> SimFile:
        self._check_read()
        return self._opened(path)

    def create(self, path: Path) -> SimFile:
        if self.exists(path):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path))
        self._check_folder(path.parent)
        self.disk.perform(Operation(Kind.CREATE, path, self.disk.new_inode()))
        return self._opened(path)

    def read_only_map(self, path: Path) -> Buffer:
        self._check_read()
        inode = self.disk.find(path)
        if inode.cached.size == 0:
            return b""
        mapping = Mapping(inode.cached.read(inode.cached.size, 0))
        inode.mapping = weakref.ref(mapping)
        return memoryview(mapping).toreadonly()

    def exists(self, path: Path) -> bool:
        self._check_read()
        names = self.disk.names
        folder, name = split(path)
        return name in names.get(folder, ()) or str(path) in names

    def listdir(self, path: Path) -> list[str]:
        self._check_folder(path)
        above = str(path)
        splits = (split(folder) for folder in self.disk.names if folder != above)
        folders = [name for folder, name in splits if folder == above]
        return sorted([*self.disk.listing(path), *folders])

    def mkdir(self, path: Path) -> None:
        if not self.exists(path):
            if not self.exists(path.parent):
                self.mkdir(path.parent)
            self.disk.perform(Operation(Kind.MKDIR, path))

    def rename(self, old: Path, new: Path) -> None:
        assert old.parent == new.parent, "renaming between folders is not simulated"
        self._check_read()
        number = self.disk.find(old).number
        if old != new:
            self.disk.perform(Operation(Kind.RENAME, old, number, target=new))

    def unlink(self, path: Path) -> None:
        self._check_read()
        self.disk.perform(Operation(Kind.UNLINK, path, self.disk.find(path).number))

    def sync_directory(self, path: Path) -> None:
        self._check_folder(path)
        self.disk.perform(Operation(Kind.SYNC_DIRECTORY, path))

    def lock(self, path: Path) -> Callable[[], None]:
        if not self.exists(path):
            self.create(path).close()
        if path in self.disk.locks:
            raise BlockingIOError(errno.EWOULDBLOCK, os.strerror(errno.EWOULDBLOCK), str(path))
        self.disk.locks[path] = self
        return lambda: self._release(path)

    def _opened(self, path: Path) -> SimFile:
        inode = self.disk.find(path)
        file = SimFile(self, inode, path)
        inode.open_count += 1
        self._open[file] = inode
        return file

    def _release(self, path: Path) -> None:
        if self.disk.locks.get(path) is self:
            del self.disk.locks[path]

    def _check_read(self) -> None:
        self.check_alive()
        self.disk.check_power(Kind.READ)

    def _check_folder(self, path: Path) -> None:
        self._check_read()
        if str(path) not in self.disk.names:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))
