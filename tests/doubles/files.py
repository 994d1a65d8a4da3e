"""`ports.Files` on a simulated disk: what one process sees of it.

It is kinder than the world in this: no call takes any time, or is overtaken by another thread; the
death by a page that cannot be read comes when a file is mapped, not while it is used; there are no
spare descriptors, so a limit is met at once. How the real ones are given up is in
`tests/test_real_files.py`; `disk` says what else there is.
"""

from __future__ import annotations

import errno
import os
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path

from proglog.batch import Buffer
from tests.doubles.disk import Lock, PowerCut, Sigbus, SimDisk, split
from tests.doubles.inode import Inode, Kind, Mapping, Operation


class SimFile:
    """`ports.File` on a simulated disk."""

    __slots__ = ("_closed", "_files", "_inode", "_path", "_writable")

    def __init__(self, files: SimFiles, inode: Inode, path: Path, *, writable: bool) -> None:
        self._files = files
        self._inode = inode
        self._path = path
        self._writable = writable
        self._closed = False

    def pwritev(self, parts: Sequence[Buffer], position: int) -> None:
        if parts:
            if not self._writable:
                self._refuse(errno.EBADF)
            self._perform(Kind.WRITE, position, b"".join(parts))

    def pread(self, size: int, position: int) -> bytes:
        self._check_open()
        self._files.disk.check_fault(Kind.READ, self._path, position)
        return self._inode.read(size, position)

    def pread_cached(self, size: int, position: int) -> bytes | None:
        self._check_open()
        disk = self._files.disk
        disk.check_fault(Kind.READ, self._path, position)
        if disk.chance_uncached() or not self._inode.is_cached(size, position):
            return None
        data = self._inode.cached.read(size, position)
        return data if len(data) == size else None

    def read_ahead(self, size: int, position: int) -> None:
        """The disk is as quick as any other."""

    def fdatasync(self) -> None:
        self._perform(Kind.SYNC)

    def forget_cache(self) -> bool:
        self._check_open()
        return self._inode.forget()

    def reserve(self, size: int) -> None:
        if size <= 0:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        if not self._writable:
            self._refuse(errno.EBADF)
        self._perform(Kind.GROW, size)

    def truncate(self, size: int) -> None:
        longer = size > self.size()
        if not self._writable:
            self._refuse(errno.EINVAL)
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

    def renamed(self, path: Path) -> None:
        """What is told of errors and operations from now on names the file so."""
        self._path = path

    def _perform(self, kind: Kind, position: int = 0, data: bytes = b"") -> None:
        self._check_open()
        operation = Operation(kind, self._path, self._inode.number, position, data)
        self._files.disk.perform(operation)

    def _refuse(self, number: int) -> None:
        self._check_open()
        raise OSError(number, os.strerror(number))

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
        self.disk.locks = [lock for lock in self.disk.locks if lock.owner is not self]

    def check_alive(self) -> None:
        if self._killed:
            raise PowerCut("the process was killed")

    def forget(self, file: SimFile, inode: Inode) -> None:
        """Lets go of a closed file."""
        if self._open.pop(file, None) is not None:
            inode.open_count -= 1

    def open(self, path: Path, *, writable: bool = True) -> SimFile:
        self.check_alive()
        self._check_descriptors()
        self.disk.check_fault(Kind.OPEN, path)
        return self._opened(path, writable=writable)

    def create(self, path: Path) -> SimFile:
        self.check_alive()
        self._check_descriptors()
        if self.exists(path):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path))
        self._check_folder(path.parent)
        self.disk.perform(Operation(Kind.CREATE, path, self.disk.new_inode()))
        return self._opened(path, writable=True)

    def read_only_map(self, path: Path) -> Buffer:
        self.check_alive()
        self._check_descriptors()
        self.disk.check_fault(Kind.MAP, path)
        inode = self.disk.find(path)
        if inode.cached.size == 0:
            return b""
        if inode.is_unreadable():
            raise Sigbus(str(path))
        mapping = Mapping(inode.read(inode.cached.size, 0))
        inode.mapping = weakref.ref(mapping)
        return memoryview(mapping).toreadonly()

    def size(self, path: Path) -> int:
        self._check_read()
        return self.disk.find(path).cached.size

    def exists(self, path: Path) -> bool:
        self._check_read()
        names = self.disk.names
        folder, name = split(path)
        return name in names.get(folder, ()) or str(path) in names

    def listdir(self, path: Path) -> list[str]:
        self._check_folder(path)
        self._check_descriptors()
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
            for file, inode in self._open.items():
                if inode.number == number:
                    file.renamed(new)

    def unlink(self, path: Path) -> None:
        self._check_read()
        self.disk.perform(Operation(Kind.UNLINK, path, self.disk.find(path).number))

    def sync_directory(self, path: Path) -> None:
        self._check_folder(path)
        self._check_descriptors()
        self.disk.perform(Operation(Kind.SYNC_DIRECTORY, path))

    def lock(self, folder: Path, *, shared: bool = False) -> Callable[[], None]:
        self._check_folder(folder)
        self._check_descriptors()
        lock, locks = Lock(str(folder), self, shared), self.disk.locks
        if any(other.folder == lock.folder and not (shared and other.shared) for other in locks):
            raise BlockingIOError(errno.EWOULDBLOCK, os.strerror(errno.EWOULDBLOCK))
        locks.append(lock)
        return lambda: self._release(lock)

    def _opened(self, path: Path, *, writable: bool) -> SimFile:
        inode = self.disk.find(path)
        file = SimFile(self, inode, path, writable=writable)
        inode.open_count += 1
        self._open[file] = inode
        return file

    def _release(self, lock: Lock) -> None:
        if lock in self.disk.locks:  # It is not, once the process was killed.
            self.disk.locks.remove(lock)

    def _check_descriptors(self) -> None:
        most = self.disk.faults.descriptors_max
        if most is not None:
            used = len(self._open) + sum(lock.owner is self for lock in self.disk.locks)
            used += sum(inode.is_mapped for inode in self.disk.inodes.values())
            if used >= most:
                raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    def _check_read(self) -> None:
        self.check_alive()
        self.disk.check_power(Kind.READ)

    def _check_folder(self, path: Path) -> None:
        self._check_read()
        if str(path) not in self.disk.names:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))
