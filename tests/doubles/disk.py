"""A disk in memory that forgets what was not synced, as the worst file system may.

What a process sees is the *cache*: every operation takes effect there at once. What is *durable* is
kept apart, as the bytes of each file and the names of each folder after their last sync, with the
changes since then in order. A power cut (`SimDisk.crash`) keeps of these changes whatever it likes:

* changes of one file survive in any subset until its fdatasync returns: a write, and apart from it
  the growth of the file that it needed, so a file may have its size without its content;
* a surviving write may be torn into pieces, also at blocks, the lost ones holding old bytes, zeros
  or garbage, but it harms no byte outside its own range (SQLite's "powersafe overwrite") unless a
  plan says that a block cannot be read any more;
* creations, renames and unlinks survive in any subset until `sync_directory`, each of them whole;
  fdatasync of a file says nothing about its name;
* after a failed write or fdatasync the cache shows pages as clean that may be lost for good
  (Rebello et al., "Can Applications Recover from fsync Failures?", ATC 2020); what the cache shows
  and how it lets go is in `inode`;
* a block may turn to zeros, garbage or an error of the disk at any time, unseen while it is cached.

The killing of a process (`SimFiles.kill`) loses nothing, but leaves it as unsynced as it was.

It is kinder than the world in this: a name that could not be made, changed, deleted or synced is as
it was, and can be tried again; folders themselves and the sizes of files are never damaged; nothing
is written or let go unless a process asks for it, so a clean page does not vanish while it is used.
`tests/simulation/test_files_model.py` compares it, call by call, with the kernel while nothing
fails, and `tests/test_real_files.py` meets the real page cache, locks and lack of descriptors. No
test meets a real disk that fails.
"""

from __future__ import annotations

import enum
import errno
import os
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path
from typing import TypeAlias

from tests.doubles.inode import PAGE_BYTES, Content, Fate, Inode, Kind, Operation


class PowerCut(Exception):
    """No power, or the process is killed. Not an OSError: no code may live on after it."""


class Sigbus(BaseException):
    """The process touched a mapped page that the disk cannot read, and is dead."""


class Lost(enum.Enum):
    """What has become of a block."""

    ZEROED = "zeroed"
    GARBAGE = "garbage"
    UNREADABLE = "unreadable"


@dataclass(slots=True, kw_only=True)
class Faults:
    """What goes wrong while the power is on. Rates are probabilities for one operation."""

    write_error_rate: float = 0.0
    sync_error_rate: float = 0.0
    read_error_rate: float = 0.0
    uncached_rate: float = 0.0
    """`pread_cached` answers None, though the bytes are there."""
    capacity_bytes: int | None = None
    """Sum of the sizes of all files; what would exceed it raises ENOSPC."""
    power_cut_at: int | None = None
    """The operation of this number, as `SimDisk.operations` counts, and all later ones raise
    PowerCut."""
    next_error: dict[Kind, int] = field(default_factory=dict)
    """The next operation of this kind raises OSError with this errno, once."""
    fail_at: dict[tuple[Kind, int], int] = field(default_factory=dict)
    """Likewise the n-th from now on; the next one is number 1."""
    descriptors_max: int | None = None
    """A process that has so many files open or mapped gets EMFILE."""
    stays_bad: bool = False
    """A block that cannot be read is not healed by writing it again."""


Names: TypeAlias = dict[str, dict[str, int]]
"""Folder -> name -> number of the file. A folder that is no key does not exist. Strings, since
comparing and hashing paths was a tenth of all that a simulation did."""


def split(path: Path | str) -> tuple[str, str]:
    """The folder, as a key of `Names`, and the name in it."""
    text = str(path)
    folder, slash, name = text.rpartition("/")
    return folder or slash or ".", name


def _rename(names: Names, change: Operation) -> None:
    """Takes a name away from the file, gives it another, or both."""
    folder_name, name = split(change.path)
    folder = names[folder_name]
    if change.kind is Kind.CREATE:
        folder[name] = change.inode
        return
    # By the file, not by the name: an earlier change may be lost and the name be another file's.
    if folder.get(name) == change.inode:
        del folder[name]
    if change.target is not None:
        folder[change.target.name] = change.inode


@dataclass(frozen=True, slots=True, eq=False)
class Lock:
    """A folder that a process has locked."""

    folder: str
    owner: object
    shared: bool


class SimDisk:
    """The disk and the kernel of one machine; processes use it through `files.SimFiles`.

    Attributes:
        faults: what goes wrong; may be changed at any time.
        operations: how many were asked for, reads not counted.
        powered: false once the power cut of `faults` has come.
        on_access: is told of everything that may fail, before it does: what, the file, and where.
        locks: all that are held.
    """

    def __init__(self, seed: int = 0) -> None:
        self.faults = Faults()
        self.operations = 0
        self.powered = True
        self.random = random.Random(seed)
        self.on_access: Callable[[Kind, Path, int], None] | None = None
        self.locks: list[Lock] = []
        self.inodes: dict[int, Inode] = {}
        self.names: Names = {"/": {}, ".": {}}
        self._durable_names: Names = {"/": {}, ".": {}}
        self._unsynced_names: list[Operation] = []
        self._inode_last = 0
        self._seed = seed
        self._orphans_due = 16
        self._trace: list[Operation] | None = None

    # --- operations ------------------------------------------------------------------------------

    def perform(self, operation: Operation) -> None:
        """Does one operation, or what the faults make of it. Raises OSError or PowerCut."""
        self.check_power(operation.kind)
        if self.on_access is not None:
            self.on_access(operation.kind, operation.path, operation.position)
        self.operations += 1
        self._fail_if_due(operation)
        self._do(operation)

    def check_power(self, kind: Kind) -> None:
        cut_at = self.faults.power_cut_at
        if cut_at is not None and self.operations >= cut_at and kind is not Kind.READ:
            self.powered = False
        if not self.powered:
            raise PowerCut(f"no power at operation {self.operations}")

    def check_fault(self, kind: Kind, path: Path, position: int = 0) -> None:
        """Of what is no operation: a read, an open, a map. Raises what the faults say."""
        self.check_power(Kind.READ)
        if self.on_access is not None:
            self.on_access(kind, path, position)
        faults = self.faults
        number = self._number_due(kind) if faults.next_error or faults.fail_at else 0
        if kind is Kind.READ and self._chance(faults.read_error_rate):
            number = number or errno.EIO
        if number:
            raise _os_error(number, path)

    def chance_uncached(self) -> bool:
        return self._chance(self.faults.uncached_rate)

    def new_inode(self) -> int:
        self._inode_last += 1
        return self._inode_last

    def _chance(self, rate: float) -> bool:
        return rate > 0 and self.random.random() < rate

    def _number_due(self, kind: Kind) -> int:
        """The errno of an error that was ordered, or 0."""
        faults = self.faults
        number = faults.next_error.pop(kind, 0)
        if faults.fail_at:
            counted = {
                (of, count - (of is kind)): error for (of, count), error in faults.fail_at.items()
            }
            number = counted.pop((kind, 0), number)
            faults.fail_at = counted
        return number

    def _fail_if_due(self, operation: Operation) -> None:
        kind, faults = operation.kind, self.faults
        number = self._number_due(kind) if faults.next_error or faults.fail_at else 0
        if kind is Kind.WRITE:
            inode = self.inodes[operation.inode]
            if inode.unreadable and not inode.can_write(len(operation.data), operation.position):
                raise _os_error(errno.EIO, operation.path)
        if kind is Kind.WRITE and self._chance(faults.write_error_rate):
            number = number or errno.EIO
        if kind is Kind.SYNC and self._chance(faults.sync_error_rate):
            number = number or errno.EIO
        if not number and faults.capacity_bytes is not None:
            wanted = self._space_wanted(operation)
            full = wanted and wanted > faults.capacity_bytes - self._space_used()
            number = errno.ENOSPC if full else 0
        if number:
            self._do_partly(operation, number)
            raise _os_error(number, operation.path)

    def _space_wanted(self, operation: Operation) -> int:
        if operation.kind is not Kind.WRITE and operation.kind is not Kind.GROW:
            return 0
        end = operation.position + len(operation.data)
        return max(end - self.inodes[operation.inode].cached.size, 0)

    def _space_used(self) -> int:
        named = {number for folder in self.names.values() for number in folder.values()}
        return sum(
            inode.cached.size
            for number, inode in self.inodes.items()
            if number in named or inode.open_count
        )

    def _do_partly(self, operation: Operation, number: int) -> None:
        """What a failed operation may leave: some of a write's bytes, to be written some time or
        never; some of a sync's pages and changes."""
        if operation.kind is Kind.WRITE:
            room = len(operation.data) - self._space_wanted(operation)
            written = operation.data[: self.random.randint(0, max(room, 0))]
            never = number == errno.EIO and self.random.getrandbits(1)
            kind = Kind.WRITE_FAILED if never else Kind.WRITE
            self._do(operation._replace(kind=kind, data=written))
        elif operation.kind is Kind.SYNC:
            outcomes = self._some_synced(self.inodes[operation.inode])
            self._do(operation._replace(kind=Kind.SYNC_FAILED, data=outcomes))

    def _some_synced(self, inode: Inode) -> bytes:
        pages = [
            self.random.choice((0, writes, self.random.randint(0, writes)))
            for _, writes in sorted(inode.dirty().items())
        ]
        others = [
            self.random.getrandbits(1) for change in inode.unsynced if change.kind is not Kind.WRITE
        ]
        return bytes(min(outcome, 255) for outcome in pages + others)

    def _do(self, operation: Operation) -> None:
        if self._trace is not None:
            self._trace.append(operation)
        kind, path = operation.kind, operation.path
        if kind is Kind.MKDIR:
            self.names.setdefault(str(path), {})
            self._durable_names.setdefault(str(path), {})
        elif kind is Kind.SYNC_DIRECTORY:
            self._sync_directory(str(path))
        elif kind is Kind.CREATE or kind is Kind.RENAME or kind is Kind.UNLINK:
            self._change_names(operation)
        elif (inode := self.inodes.get(operation.inode)) is not None:
            self._change_file(inode, operation)

    def _change_names(self, operation: Operation) -> None:
        if operation.kind is Kind.CREATE:
            self.inodes[operation.inode] = self._made(operation.inode)
            self._inode_last = max(self._inode_last, operation.inode)
        _rename(self.names, operation)
        self._unsynced_names.append(operation)

    def _made(self, number: int) -> Inode:
        return Inode(number, self._seed * 1_000_003 + number * 7919)

    def _change_file(self, inode: Inode, operation: Operation) -> None:
        if operation.kind is Kind.SYNC:
            inode.sync(heals=not self.faults.stays_bad)
        elif operation.kind is Kind.SYNC_FAILED:
            inode.sync_partly(operation.data)
        elif operation.kind is Kind.WRITE_FAILED:
            inode.fail_write(operation)
        elif operation.kind is Kind.WRITE:
            end = operation.position + len(operation.data)
            if end > inode.cached.size and operation.data:
                inode.change(operation._replace(kind=Kind.GROW, position=end, data=b""))
            inode.change(operation)
        else:
            inode.change(operation)

    def _sync_directory(self, folder: str) -> None:
        rest: list[Operation] = []
        for change in self._unsynced_names:
            if split(change.path)[0] == folder:
                _rename(self._durable_names, change)
            else:
                rest.append(change)
        self._unsynced_names = rest
        if len(self.inodes) >= self._orphans_due:
            self.forget_orphans()

    def forget_orphans(self) -> None:
        """Frees the files that neither a name, nor a power cut, nor an open file can bring back."""
        alive = self._named()
        self.inodes = {
            n: inode for n, inode in self.inodes.items() if n in alive or inode.open_count
        }
        # Not at each sync, for it looks at every file; orphans are in nobody's way.
        self._orphans_due = 2 * len(self.inodes) + 16

    def _named(self) -> set[int]:
        return {
            *(number for folder in self.names.values() for number in folder.values()),
            *(number for folder in self._durable_names.values() for number in folder.values()),
            *(change.inode for change in self._unsynced_names),
        }

    # --- crashes ---------------------------------------------------------------------------------

    def unsynced(self) -> list[Operation]:
        """What a power cut now may lose: of each file in order, then of the names in order."""
        named = self._named()
        changes: list[Operation] = []
        for number, inode in self.inodes.items():
            if number in named:
                changes += inode.unsynced
        return changes + self._unsynced_names

    def crash(self, fates: Sequence[Fate]) -> SimDisk:
        """The disk after a power cut in which each of the `unsynced` changes met its fate."""
        after = self._twin(Inode.copy_durable)
        for change, fate in zip(self.unsynced(), fates, strict=True):
            if change.kind in {Kind.WRITE, Kind.GROW, Kind.TRUNCATE}:
                changed = after.inodes[change.inode]
                changed.survive(change, fate)
                changed.cached = changed.durable.copy()
            elif fate:
                _rename(after._durable_names, change)
        after.names = {folder: dict(names) for folder, names in after._durable_names.items()}
        after.forget_orphans()
        return after

    def copy(self) -> SimDisk:
        """The same disk, as unsynced as this one, after all its processes were killed."""
        twin = self._twin(Inode.copy)
        twin.names = {folder: dict(names) for folder, names in self.names.items()}
        twin._unsynced_names = list(self._unsynced_names)
        return twin

    def _twin(self, copy: Callable[[Inode], Inode]) -> SimDisk:
        twin = type(self)(self.operations)
        twin._inode_last = self._inode_last
        named = self._named()
        twin.inodes = {n: copy(inode) for n, inode in self.inodes.items() if n in named}
        names = self._durable_names
        twin._durable_names = {folder: dict(found) for folder, found in names.items()}
        return twin

    def record(self) -> Recording:
        """Notes all operations from now on."""
        self._trace = []
        return Recording(self.copy(), self._trace)

    # --- for tests -------------------------------------------------------------------------------

    def listing(self, folder: Path, *, durable: bool = False) -> dict[str, int]:
        """Names in a folder and the numbers of their files, as processes see them, or as they are
        if nothing unsynced survives. Empty without such a folder."""
        return (self._durable_names if durable else self.names).get(str(folder), {})

    def find(self, path: Path) -> Inode:
        """The file of this name as processes see it. Raises FileNotFoundError."""
        folder, name = split(path)
        number = self.names.get(folder, {}).get(name)
        if number is None:
            raise _os_error(errno.ENOENT, path)
        return self.inodes[number]

    def files(self) -> dict[Path, bytes]:
        """Every file as processes see it."""
        return {
            Path(folder, name): self.inodes[number].cached.read(self.inodes[number].cached.size, 0)
            for folder, names in sorted(self.names.items())
            for name, number in sorted(names.items())
        }

    def put(self, path: Path, data: bytes) -> None:
        """Makes a durable file of these bytes, or gives them to the one that is there."""
        self._do(Operation(Kind.MKDIR, path.parent))
        if path.name not in self.listing(path.parent):
            self._do(Operation(Kind.CREATE, path, self.new_inode()))
        inode = self.find(path)
        inode.cached, inode.durable = Content(data, len(data)), Content(data, len(data))
        inode.unsynced.clear()
        inode.resident.clear()
        inode.unreadable.clear()
        self._sync_directory(str(path.parent))

    def flip_bit(self, path: Path, bit: int) -> None:
        """Rots one bit, counted from the start of the file, in the cache and on the disk."""
        inode = self.find(path)
        for content in (inode.cached, inode.durable):
            byte = content.read(1, bit // 8)
            if byte:
                content.write(bytes([byte[0] ^ 1 << bit % 8]), bit // 8)

    def lose_block(self, path: Path, block: int, how: Lost | bytes) -> None:
        """Takes 4096 bytes of a file from the disk, or puts other ones there. A process whose page
        cache has them sees it once that is let go."""
        found: bytes | None = bytes(PAGE_BYTES)
        if how is Lost.UNREADABLE:
            found = None
        elif how is Lost.GARBAGE:
            found = self.random.randbytes(PAGE_BYTES)
        elif isinstance(how, bytes):
            found = how
        self.find(path).lose(block, found)

    def lose(self, path: Path) -> None:
        """Takes a file away, durably."""
        self._do(Operation(Kind.UNLINK, path, self.find(path).number))
        self._sync_directory(str(path.parent))

    def digest(self) -> bytes:
        """Equal only for disks on which processes see the same files."""
        digest = blake2b(digest_size=16)
        for folder, names in sorted(self.names.items()):
            for name, number in sorted(names.items()):
                inode = self.inodes[number]
                content = inode.cached
                data = content.data.rstrip(b"\0")
                digest.update(f"{folder}/{name} {content.size} {len(data)} ".encode() + data)
                if inode.unreadable:
                    digest.update(f" without {sorted(inode.unreadable)}".encode())
        return digest.digest()


class Recording:
    """What a disk was and the operations since then: every moment of it can be had again.

    Attributes:
        operations: the operations in order; grows while the disk is in use.
    """

    def __init__(self, start: SimDisk, operations: list[Operation]) -> None:
        self.operations = operations
        self._start = start

    def points(self) -> Iterator[SimDisk]:
        """The disk before the first operation and after each; each is valid until the next one."""
        disk = self._start.copy()
        yield disk
        for operation in list(self.operations):
            disk._do(operation)
            yield disk


def _os_error(number: int, path: Path) -> OSError:
    return OSError(number, os.strerror(number), str(path))
