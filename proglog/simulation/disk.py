"""A disk in memory that forgets what was not synced, as the worst file system may.

What a process sees is the *cache*: every operation takes effect there at once. What is *durable* is
kept apart, as the bytes of each file and the names of each folder after their last sync, with the
changes since then in order. A power cut (`SimDisk.crash`) keeps of these changes whatever it likes:

* changes of one file survive in any subset until its fdatasync returns: a write, and apart from it
  the growth of the file that it needed, so a file may have its size without its content;
* a surviving write may be torn into pieces, the lost ones holding old bytes, zeros or garbage, but
  it harms no byte outside its own range (SQLite's "powersafe overwrite");
* creations, renames and unlinks survive in any subset until `sync_directory`, each of them whole;
  fdatasync of a file says nothing about its name;
* after a failed fdatasync the cache shows the data as clean, but any of it may be lost for good
  (Rebello et al., "Can Applications Recover from fsync Failures?", ATC 2020).

The killing of a process (`SimFiles.kill`) loses nothing, but leaves it as unsynced as it was.
"""

from __future__ import annotations

import enum
import errno
import os
import random
import weakref
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path
from typing import NamedTuple, TypeAlias

from proglog.batch import Buffer


class PowerCut(Exception):
    """No power, or the process is killed. Not an OSError: no code may live on after it."""


class Kind(enum.Enum):
    """What an operation does."""

    CREATE = "create"
    WRITE = "write"
    GROW = "grow"
    TRUNCATE = "truncate"
    SYNC = "fdatasync"
    SYNC_FAILED = "failed fdatasync"
    RENAME = "rename"
    UNLINK = "unlink"
    MKDIR = "mkdir"
    SYNC_DIRECTORY = "sync_directory"
    READ = "read"
    """Not traced: the kind is for faults."""


class Operation(NamedTuple):
    """One operation on the disk, as it took effect.

    `inode` is the file, whatever its name is now. `position` is the size for GROW and TRUNCATE.
    `data` of SYNC_FAILED has one byte for each unsynced change: 1 if it became durable anyway.
    """

    kind: Kind
    path: Path
    inode: int = 0
    position: int = 0
    data: bytes = b""
    target: Path | None = None


class Torn(NamedTuple):
    """The fate of a write of which only some bytes survive: those in `kept`, [start, stop) ranges
    of positions in the file. `filler` stands in the other ones; None leaves what was there."""

    kept: tuple[tuple[int, int], ...]
    filler: bytes | None = None


Fate: TypeAlias = bool | Torn
"""Of one unsynced change in a power cut: whether it survives, or how it is torn."""


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


class Content:
    """The bytes of a file. Those from the end of `data` to `size` are zeros, held nowhere.

    Copies share their bytes until one of them is changed.
    """

    __slots__ = ("_shared", "data", "size")

    def __init__(self, data: bytes | bytearray = b"", size: int = 0) -> None:
        self.data = bytearray(data)
        self.size = size
        self._shared = False

    def copy(self) -> Content:
        twin = Content(size=self.size)
        twin.data = self.data
        twin._shared = self._shared = True
        return twin

    def _own(self) -> None:
        if self._shared:
            self.data = bytearray(self.data)
            self._shared = False

    def read(self, size: int, position: int) -> bytes:
        stop = min(position + size, self.size)
        found = bytes(memoryview(self.data)[position:stop])
        missing = stop - position - len(found)
        return found + bytes(missing) if missing > 0 else found

    def write(self, data: Buffer, position: int) -> None:
        """Writes as much as lies within the size."""
        self._own()
        data = memoryview(data)[: max(self.size - position, 0)]
        if data and position > len(self.data):
            self.data.extend(bytes(position - len(self.data)))
        self.data[position : position + len(data)] = data

    def apply(self, change: Operation, fate: Fate = True) -> None:
        if fate is False:
            return
        if change.kind is Kind.GROW:
            self.size = max(self.size, change.position)
        elif change.kind is Kind.TRUNCATE:
            self._own()
            self.size = change.position
            del self.data[self.size :]
        elif isinstance(fate, Torn):
            self._tear(change, fate)
        else:
            self.write(change.data, change.position)

    def _tear(self, write: Operation, fate: Torn) -> None:
        start, length = write.position, len(write.data)
        if fate.filler is not None:
            repeats = -(-length // len(fate.filler))
            self.write((fate.filler * repeats)[:length], start)
        for kept_start, kept_stop in fate.kept:
            low, high = max(kept_start, start), min(kept_stop, start + length)
            if low < high:
                self.write(write.data[low - start : high - start], low)


class Mapping(bytearray):
    """The bytes of a mapped file: a weak reference tells whether any slice of them is in use."""


class Inode:
    """A file apart from its name."""

    __slots__ = ("cached", "durable", "mapping", "number", "open_count", "unsynced")

    def __init__(self, number: int) -> None:
        self.number = number
        self.cached = Content()
        self.durable = Content()
        self.unsynced: list[Operation] = []
        self.open_count = 0
        self.mapping: weakref.ref[Mapping] | None = None

    def change(self, change: Operation) -> None:
        mapped = self.mapping is not None and self.mapping() is not None
        assert not mapped, f"{change.path} is changed while mapped"
        self.cached.apply(change)
        self.unsynced.append(change)

    def sync(self) -> None:
        for change in self.unsynced:
            self.durable.apply(change)
        self.unsynced.clear()

    def forget_clean(self, position: int) -> None:
        """What is cached behind `position` and clean is let go: the disk's bytes are read."""
        if not self.unsynced:
            kept = self.cached.read(position, 0)
            self.cached = self.durable.copy()
            self.cached.write(kept, 0)

    def sync_partly(self, outcomes: bytes) -> None:
        """Some changes become durable; the others are forgotten, though the cache shows them."""
        for change, outcome in zip(self.unsynced, outcomes, strict=True):
            self.durable.apply(change, outcome == 1)
        self.unsynced.clear()


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


class SimDisk:
    """The disk and the kernel of one machine; processes use it through `files.SimFiles`.

    Attributes:
        faults: what goes wrong; may be changed at any time.
        operations: how many were asked for, reads not counted.
        powered: false once the power cut of `faults` has come.
        locks: who holds which lock file.
    """

    def __init__(self, seed: int = 0) -> None:
        self.faults = Faults()
        self.operations = 0
        self.powered = True
        self.random = random.Random(seed)
        self.locks: dict[Path, object] = {}
        self.inodes: dict[int, Inode] = {}
        self.names: Names = {"/": {}, ".": {}}
        self._durable_names: Names = {"/": {}, ".": {}}
        self._unsynced_names: list[Operation] = []
        self._inode_last = 0
        self._orphans_due = 16
        self._trace: list[Operation] | None = None

    # --- operations ------------------------------------------------------------------------------

    def perform(self, operation: Operation) -> None:
        """Does one operation, or what the faults make of it. Raises OSError or PowerCut."""
        self.check_power(operation.kind)
        self.operations += 1
        self._fail_if_due(operation)
        self._do(operation)

    def check_power(self, kind: Kind) -> None:
        cut_at = self.faults.power_cut_at
        if cut_at is not None and self.operations >= cut_at and kind is not Kind.READ:
            self.powered = False
        if not self.powered:
            raise PowerCut(f"no power at operation {self.operations}")

    def check_read(self, path: Path) -> None:
        self.check_power(Kind.READ)
        faults = self.faults
        number = faults.next_error.pop(Kind.READ, 0) if faults.next_error else 0
        if number or self._chance(faults.read_error_rate):
            raise _os_error(number or errno.EIO, path)

    def chance_uncached(self) -> bool:
        return self._chance(self.faults.uncached_rate)

    def new_inode(self) -> int:
        self._inode_last += 1
        return self._inode_last

    def _chance(self, rate: float) -> bool:
        return rate > 0 and self.random.random() < rate

    def _fail_if_due(self, operation: Operation) -> None:
        kind, faults = operation.kind, self.faults
        number = faults.next_error.pop(kind, 0) if faults.next_error else 0
        if kind is Kind.WRITE and self._chance(faults.write_error_rate):
            number = number or errno.EIO
        if kind is Kind.SYNC and self._chance(faults.sync_error_rate):
            number = number or errno.EIO
        if not number and faults.capacity_bytes is not None:
            wanted = self._space_wanted(operation)
            full = wanted and wanted > faults.capacity_bytes - self._space_used()
            number = errno.ENOSPC if full else 0
        if number:
            self._do_partly(operation)
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

    def _do_partly(self, operation: Operation) -> None:
        """What a failed operation may leave: some of a write's bytes, some of a sync's changes."""
        if operation.kind is Kind.WRITE:
            room = len(operation.data) - self._space_wanted(operation)
            written = operation.data[: self.random.randint(0, max(room, 0))]
            self._do(operation._replace(data=written))
        elif operation.kind is Kind.SYNC:
            changes = self.inodes[operation.inode].unsynced
            outcomes = bytes(self.random.getrandbits(1) for _ in changes)
            self._do(operation._replace(kind=Kind.SYNC_FAILED, data=outcomes))

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
            self.inodes[operation.inode] = Inode(operation.inode)
            self._inode_last = max(self._inode_last, operation.inode)
        _rename(self.names, operation)
        self._unsynced_names.append(operation)

    def _change_file(self, inode: Inode, operation: Operation) -> None:
        if operation.kind is Kind.SYNC:
            inode.sync()
        elif operation.kind is Kind.SYNC_FAILED:
            inode.sync_partly(operation.data)
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
        after = self._copy_durable()
        for change, fate in zip(self.unsynced(), fates, strict=True):
            if change.kind in {Kind.WRITE, Kind.GROW, Kind.TRUNCATE}:
                after.inodes[change.inode].durable.apply(change, fate)
            elif fate:
                _rename(after._durable_names, change)
        after.names = {folder: dict(names) for folder, names in after._durable_names.items()}
        after.forget_orphans()
        for inode in after.inodes.values():
            inode.cached = inode.durable.copy()
        return after

    def copy(self) -> SimDisk:
        """The same disk, as unsynced as this one, after all its processes were killed."""
        twin = self._copy_durable()
        twin.names = {folder: dict(names) for folder, names in self.names.items()}
        twin._unsynced_names = list(self._unsynced_names)
        for number, inode in twin.inodes.items():
            inode.cached = self.inodes[number].cached.copy()
            inode.unsynced = list(self.inodes[number].unsynced)
        return twin

    def _copy_durable(self) -> SimDisk:
        twin = SimDisk(self.operations)
        twin._inode_last = self._inode_last
        named = self._named()
        for number, inode in self.inodes.items():
            if number in named:
                twin.inodes[number] = Inode(number)
                twin.inodes[number].durable = inode.durable.copy()
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
        self._sync_directory(str(path.parent))

    def flip_bit(self, path: Path, bit: int) -> None:
        """Rots one bit, counted from the start of the file, in the cache and on the disk."""
        inode = self.find(path)
        for content in (inode.cached, inode.durable):
            byte = content.read(1, bit // 8)
            if byte:
                content.write(bytes([byte[0] ^ 1 << bit % 8]), bit // 8)

    def lose(self, path: Path) -> None:
        """Takes a file away, durably."""
        self._do(Operation(Kind.UNLINK, path, self.find(path).number))
        self._sync_directory(str(path.parent))

    def digest(self) -> bytes:
        """Equal only for disks on which processes see the same files."""
        digest = blake2b(digest_size=16)
        for folder, names in sorted(self.names.items()):
            for name, number in sorted(names.items()):
                content = self.inodes[number].cached
                data = content.data.rstrip(b"\0")
                digest.update(f"{folder}/{name} {content.size} {len(data)} ".encode() + data)
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
