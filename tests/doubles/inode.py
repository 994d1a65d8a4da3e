"""One file of a simulated disk: what the disk has of it, and what the page cache makes of that.

The kernel keeps *pages* of 4096 bytes in *folios* of one to sixteen of them. A page that is dirty
is written as a whole, and a folio that holds one is not let go. A page that is clean shows what it
showed when it came into the cache, whatever the disk has: so it does after a failed write or sync,
or where the disk has lost the block since. Only a page that was let go is read from the disk again.

Kinder than the world: Linux 6.18 makes folios of 1 MiB on ext4.
"""

from __future__ import annotations

import enum
import errno
import os
import weakref
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple, TypeAlias

from proglog.batch import Buffer

PAGE_BYTES = 4096
"""Of the page cache, and a block of the disk."""
FOLIO_PAGES = (1, 2, 4, 8, 16)
"""What a folio may have, from a page number on that is a multiple of it."""
_WINDOW_PAGES = FOLIO_PAGES[-1]
"""Within so many pages all folios are of one size."""


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
    WRITE_FAILED = "failed write"
    READ = "read"
    OPEN = "open"
    MAP = "map"
    """The last three are not traced: they are for faults."""


class Operation(NamedTuple):
    """One operation on the disk, as it took effect.

    `inode` is the file, whatever its name is now. `position` is the size for GROW and TRUNCATE.
    `data` of WRITE_FAILED is what the cache shows of it and the disk will never have; of
    SYNC_FAILED, what `Inode.sync_partly` says.
    """

    kind: Kind
    path: Path
    inode: int = 0
    position: int = 0
    data: bytes = b""
    target: Path | None = None


class Torn(NamedTuple):
    """The fate of a write of which only some bytes survive: those in `kept`, [start, stop) ranges
    of positions in the file. `filler` stands in the other ones; None leaves what was there. The
    blocks in `unreadable` the disk cannot read afterwards."""

    kept: tuple[tuple[int, int], ...]
    filler: bytes | None = None
    unreadable: tuple[int, ...] = ()


Fate: TypeAlias = bool | Torn
"""Of one unsynced change in a power cut: whether it survives, or how it is torn."""


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

    def resize(self, size: int) -> None:
        self.size = size
        if len(self.data) > size:
            self._own()
            del self.data[size:]

    def apply(self, change: Operation, fate: Fate = True) -> None:
        if fate is False:
            return
        if change.kind is Kind.GROW:
            self.size = max(self.size, change.position)
        elif change.kind is Kind.TRUNCATE:
            self.resize(change.position)
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
    """A file apart from its name.

    Attributes:
        cached: its bytes as processes read them. What is not `resident` is as on the disk, but for
            the size and the holes, which the kernel knows whatever it lets go.
        durable: its bytes on the disk.
        unsynced: the changes that only the cache has, in order.
        resident: the pages in the cache.
        unreadable: the blocks that the disk cannot read.
    """

    __slots__ = (
        "_chance",
        "_differs",
        "cached",
        "durable",
        "mapping",
        "number",
        "open_count",
        "resident",
        "unreadable",
        "unsynced",
    )

    def __init__(self, number: int, chance: int) -> None:
        self.number = number
        self.cached = Content()
        self.durable = Content()
        self.unsynced: list[Operation] = []
        self.resident: set[int] = set()
        self.unreadable: set[int] = set()
        self.open_count = 0
        self.mapping: weakref.ref[Mapping] | None = None
        self._chance = chance
        self._differs = False  # A page that is clean may show what the disk does not have.

    def copy_durable(self) -> Inode:
        """The file as the disk has it, with nothing in the cache."""
        twin = Inode(self.number, self._chance)
        twin.durable, twin.cached = self.durable.copy(), self.durable.copy()
        twin.unreadable = set(self.unreadable)
        return twin

    def copy(self) -> Inode:
        """The file as it is, open nowhere."""
        twin = self.copy_durable()
        twin.cached = self.cached.copy()
        twin.unsynced, twin.resident = list(self.unsynced), set(self.resident)
        twin._differs = self._differs
        return twin

    # --- reading ---------------------------------------------------------------------------------

    def read(self, size: int, position: int) -> bytes:
        """Reads; what shares a folio with it is in the cache then. Raises OSError where the disk
        cannot read a block of it."""
        stop = min(position + size, self.cached.size)
        if position < stop:
            wanted = _pages(position, stop)
            if not self.resident.issuperset(wanted):
                self._fetch(wanted)
        return self.cached.read(size, position)

    def _fetch(self, wanted: range) -> None:
        folios = range(self._folio(wanted[0]).start, self._folio(wanted[-1]).stop)
        if self.unreadable:
            if self.is_unreadable(wanted):
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            self.resident.update(page for page in folios if page not in self.unreadable)
        else:
            self.resident.update(folios)

    def is_cached(self, size: int, position: int) -> bool:
        """Whether a read would not wait for the disk."""
        return self.resident.issuperset(_pages(position, position + size))

    def is_unreadable(self, pages: Iterable[int] | None = None) -> bool:
        """Whether the disk is needed for one of these pages, or of all, and cannot read it."""
        pages = _pages(0, self.cached.size) if pages is None else pages
        return any(page in self.unreadable and page not in self.resident for page in pages)

    def _folio(self, page: int) -> range:
        # As good as drawn at random, and nothing of it is to be kept.
        drawn = ((page // _WINDOW_PAGES * 0x9E3779B1) ^ self._chance) * 0x85EBCA6B
        size = 1 << (drawn >> 15) % len(FOLIO_PAGES)
        start = page & -size
        return range(start, start + size)

    # --- changing --------------------------------------------------------------------------------

    @property
    def is_mapped(self) -> bool:
        return self.mapping is not None and self.mapping() is not None

    def change(self, change: Operation) -> None:
        assert not self.is_mapped, f"{change.path} is changed while mapped"
        self.cached.apply(change)
        self.unsynced.append(change)
        if change.kind is Kind.WRITE:
            self.resident.update(written_pages(change))
        elif change.kind is Kind.TRUNCATE:
            self._cut_pages(change.position)

    def _cut_pages(self, size: int) -> None:
        stop = _pages(0, size).stop
        self.resident = {page for page in self.resident if page < stop}
        # Whatever is there next, it does not come from these blocks.
        self.resident.update(page for page in self.unreadable if page >= stop)
        if size % PAGE_BYTES:
            self.resident.add(stop - 1)  # Its end is filled with zeros.

    def can_write(self, size: int, position: int) -> bool:
        """Whether no page is written in part that is to be read from the disk first and cannot."""
        stop = position + size
        edges = [at // PAGE_BYTES for at in (position, stop) if at % PAGE_BYTES]
        return not self.is_unreadable(edges)

    def fail_write(self, write: Operation) -> None:
        """The cache shows what nobody will ever write to the disk."""
        self.cached.write(write.data, write.position)
        self.resident.update(written_pages(write))
        self._differs = True

    def dirty(self) -> dict[int, int]:
        """The pages that are to be written, and how many writes each of them waits for."""
        found: dict[int, int] = {}
        for change in self.unsynced:
            if change.kind is Kind.WRITE:
                for page in written_pages(change):
                    found[page] = found.get(page, 0) + 1
            elif change.kind is Kind.TRUNCATE and change.position % PAGE_BYTES:
                found.setdefault(change.position // PAGE_BYTES, 0)
        stop = _pages(0, self.cached.size).stop
        return {page: writes for page, writes in found.items() if page < stop}

    def sync(self, *, heals: bool = True) -> None:
        """Writes what is dirty. With `heals` the disk finds another place for a block that it could
        not read."""
        for change in self.unsynced:
            self.durable.apply(change)
        if self._differs or self.unreadable:
            self._write_pages(heals)
        self.unsynced.clear()

    def _write_pages(self, heals: bool) -> None:
        """A page is written as a whole, also what an earlier failure has left in it."""
        self.durable.resize(self.cached.size)
        for change in self.unsynced:
            self._free_blocks(change)
        for page in self.dirty():
            at = page * PAGE_BYTES
            self.durable.write(self.cached.read(PAGE_BYTES, at), at)
            if heals:
                self.unreadable.discard(page)

    def sync_partly(self, outcomes: bytes) -> None:
        """Some of it becomes durable; the rest is forgotten, though the cache shows it.

        The outcomes are first of each dirty page, in order, how many of its writes had been written
        when one was lost, then of each other change 1 if it became durable.
        """
        pages = sorted(self.dirty())
        left = dict(zip(pages, outcomes, strict=False))
        others = iter(outcomes[len(pages) :])
        for change in self.unsynced:
            if change.kind is not Kind.WRITE:
                self.survive(change, next(others) == 1)
                continue
            kept: list[tuple[int, int]] = []
            for page in written_pages(change):
                if left.get(page):
                    left[page] -= 1
                    kept.append((page * PAGE_BYTES, (page + 1) * PAGE_BYTES))
            self.survive(change, Torn(tuple(kept)))
        self.unsynced.clear()
        self._differs = True

    def survive(self, change: Operation, fate: Fate = True) -> None:
        """Makes an unsynced change durable, or what its fate leaves of it."""
        self.durable.apply(change, fate)
        if isinstance(fate, Torn):
            self.unreadable.update(fate.unreadable)
        elif fate and self.unreadable:
            self._free_blocks(change)

    def _free_blocks(self, change: Operation) -> None:
        if change.kind is Kind.TRUNCATE:
            stop = _pages(0, change.position).stop
            self.unreadable = {page for page in self.unreadable if page < stop}

    # --- forgetting ------------------------------------------------------------------------------

    def forget(self, start: int = 0) -> bool:
        """Lets go of all folios from `start` on that are wholly clean; whether nothing is left.

        A folio that `start` is in the middle of stays. It is for a test alone: ports.File.forget
        knows whole files only.
        """
        if self.is_mapped:
            return self.cached.size == 0
        kept = {page for dirty in self.dirty() for page in self._folio(dirty)}
        if start:
            kept.update(
                page for page in self.resident if self._folio(page).start < start / PAGE_BYTES
            )
        kept &= self.resident
        fresh = self.durable.copy()
        for change in self.unsynced:
            if change.kind is not Kind.WRITE:
                fresh.apply(change)
        fresh.resize(self.cached.size)
        for page in kept:
            fresh.write(self.cached.read(PAGE_BYTES, page * PAGE_BYTES), page * PAGE_BYTES)
        self.cached, self.resident = fresh, kept
        self._differs = self._differs and (bool(kept) or self.durable.size != fresh.size)
        return not kept

    def lose(self, block: int, found: bytes | None) -> None:
        """The disk has something else in this block, or None: nothing that it could read. Where the
        block is in the cache, nobody sees it until that is let go."""
        self._differs = True
        if found is None:
            self.unreadable.add(block)
            return
        self.durable.write(found[:PAGE_BYTES], block * PAGE_BYTES)
        if block not in self.resident:
            self.cached.write(found[:PAGE_BYTES], block * PAGE_BYTES)


def _pages(start: int, stop: int) -> range:
    """The pages that hold the bytes from `start` to `stop`."""
    return range(start // PAGE_BYTES, -(-stop // PAGE_BYTES))


def written_pages(write: Operation) -> range:
    """The pages, which are blocks on the disk, that a write touches."""
    start = write.position
    return range(start // PAGE_BYTES, -(-(start + len(write.data)) // PAGE_BYTES))
