"""One segment: a store file and its index, and how the two come into being."""

from __future__ import annotations

import contextlib
import errno
import threading
from collections import OrderedDict
from pathlib import Path

from proglog import limits
from proglog.batch import HEADER_BYTES, BadBatch, BatchHeader, check_stored_body, parse_header
from proglog.errors import RangeCorrupt
from proglog.log import format as fmt
from proglog.log.format import SegmentHeader, Tip
from proglog.log.index import Index
from proglog.log.names import RESERVED_INDEX, RESERVED_STORE, index_name, store_name
from proglog.log.reading import Damage, read_exactly
from proglog.ports import NO_DESCRIPTORS, File, Files

NO_SPACE = (errno.ENOSPC, errno.EDQUOT)
REFUSALS = (*NO_SPACE, *NO_DESCRIPTORS)
"""What the system says when it has no more to give. Where nothing has been done yet it is a
refusal, and no fault of the disk."""


class Segment:
    """A store and where its batches are.

    `capacity` is how far the store's space is allocated. `index_file` is the allocated space for
    the index of an active segment; None once sealed, or while it could not be allocated. The store
    of a sealed segment is opened when it is first read, and closed again by `OpenStores`.
    """

    __slots__ = (
        "_file",
        "_files",
        "_opening",
        "_pins",
        "capacity",
        "first_index",
        "folder",
        "index",
        "index_file",
        "retired",
    )

    def __init__(
        self,
        files: Files,
        folder: Path,
        index: Index,
        capacity: int,
        file: File | None = None,
        index_file: File | None = None,
    ) -> None:
        self.folder = folder
        self.index = index
        self.first_index = index.before.index + 1
        self.capacity = capacity
        self.index_file = index_file
        self._files = files
        self._file = file
        self._opening = threading.Lock()
        self._pins = 0
        self.retired = False

    @property
    def store_path(self) -> Path:
        return self.folder / store_name(self.first_index)

    @property
    def index_path(self) -> Path:
        return self.folder / index_name(self.first_index)

    @property
    def last_index(self) -> int:
        return self.index.last.index

    def has_room(self, size: int) -> bool:
        """Whether a batch of `size` bytes and the end after it fit into allocated space."""
        end = self.index.end_position + size + HEADER_BYTES
        return self.index_file is not None and end <= self.capacity

    # --- lifetime: the file is closed when it is retired and nobody reads it any more -------------

    def map_index(self) -> memoryview:
        """The file of the sealed index, mapped. Raises OSError."""
        return memoryview(self._files.read_only_map(self.index_path))

    def open(self) -> File:
        """The open store. May wait for the disk; called by the threads of reader and writer, who
        hold a pin. Raises OSError."""
        with self._opening:
            if self._file is None:
                self._file = self._files.open(self.store_path)
            return self._file

    def pin(self) -> None:
        """Keeps the file open, once it is, until `unpin`."""
        assert not self.retired, "it may be closed: ask the log again after every wait"
        self._pins += 1

    def unpin(self) -> None:
        self._pins -= 1
        self._close_if_unused()

    def retire(self) -> None:
        """The segment is deleted or the log closed."""
        self.retired = True
        self._close_if_unused()

    def _close_if_unused(self) -> None:
        if self.retired and self._pins == 0:
            self.close_store()
            if self.index_file is not None:
                self.index_file.close()
                self.index_file = None

    @property
    def is_open(self) -> bool:
        return self._file is not None

    @property
    def is_idle(self) -> bool:
        """Whether nobody reads the store just now."""
        return self._pins == 0

    def close_store(self) -> None:
        """Until somebody opens it again."""
        assert self._pins == 0
        if self._file is not None:
            self._file.close()
            self._file = None

    # --- reading ---------------------------------------------------------------------------------

    def extent(self, first: int, last: int, bytes_max: int) -> tuple[int, int]:
        """Position and size of the batches from index `first` on, up to `last` and about
        `bytes_max` bytes, at least one."""
        slot = first - self.first_index
        position = self.index.position(slot)
        # The batch that begins there or before is not wholly within; after the last none begins.
        end_slot = len(self.index)
        if position + bytes_max < self.index.end_position:
            end_slot = max(self.index.slot_at_position(position + bytes_max), slot + 1)
        end_slot = min(end_slot, last - self.first_index + 1, slot + limits.read_batches_max)
        return position, self.index.position(end_slot) - position

    def read_cached(self, size: int, position: int) -> bytes | None:
        """The bytes if the store is open and they are in the page cache. A sector that cannot be
        read is not: the read that waits for the disk meets it again and says where."""
        try:
            return None if self._file is None else self._file.pread_cached(size, position)
        except OSError:
            return None

    def read(self, size: int, position: int) -> bytes | Damage:
        """The bytes, or why they cannot be had. May wait for the disk, as `open`."""
        try:
            file = self.open()
        except OSError as error:
            if error.errno in NO_DESCRIPTORS:
                raise
            return Damage(self.store_path, 0, f"cannot be opened: {error.strerror}")
        return read_exactly(file, self.store_path, size, position)

    def damaged(self, damage: Damage, index: int) -> RangeCorrupt:
        """What a reader of batch `index` is told."""
        return RangeCorrupt(
            f"{damage}; run proglog verify",
            file=damage.path,
            position=damage.position,
            index=index,
            offset=self.index.base_offset(index - self.first_index),
        )

    def check(self, data: bytes, position: int, first: int) -> list[BatchHeader]:
        """The headers of the batches in `data`, read from `position`, of which the first is batch
        `first`. Raises RangeCorrupt unless each is whole and follows the one before."""
        headers: list[BatchHeader] = []
        view = memoryview(data)
        at = 0
        try:
            while at < len(view):
                header = parse_header(view, at)
                check_stored_body(header, view[at + HEADER_BYTES : at + header.size])
                if header.index != first + len(headers):
                    raise BadBatch(f"holds batch {header.index}, not {first + len(headers)}")
                if headers and header.chain != Tip.after(headers[-1]).chain:
                    raise BadBatch("does not follow the batch before")
                headers.append(header)
                at += header.size
        except BadBatch as bad:
            damage = Damage(self.store_path, position + at, str(bad))
            raise self.damaged(damage, first + len(headers)) from None
        return headers


class OpenStores:
    """The stores of sealed segments that are open: a bounded number. Used on the loop only."""

    def __init__(self) -> None:
        self._open: OrderedDict[Segment, None] = OrderedDict()

    def used(self, segment: Segment) -> None:
        """A sealed segment was read. Those not read for longest are closed, unless somebody waits
        for them: each is looked at again when it was read."""
        if segment.retired or not segment.is_open:
            return
        self._open[segment] = None
        self._open.move_to_end(segment)
        excess = len(self._open) - limits.stores_open_max
        for idle in [each for each in self._open if each.is_idle][: max(excess, 0)]:
            del self._open[idle]
            idle.close_store()

    def forget(self, segment: Segment) -> None:
        """The segment is active again, or deleted."""
        self._open.pop(segment, None)


# --- making -----------------------------------------------------------------------------------


def create_segment(
    files: Files, folder: Path, header: SegmentHeader, *, capacity: int, index_bytes: int
) -> Segment:
    """A new, empty segment, durable. Raises OSError, also if there is no space for it."""
    # Whoever has no space asks again and again: no descriptor may stay open each time.
    with contextlib.ExitStack() as undo:
        index_file = allocate(files, folder / RESERVED_INDEX, index_bytes)
        undo.callback(index_file.close)
        store = allocate(files, folder / RESERVED_STORE, capacity)
        undo.callback(store.close)
        start_segment(files, folder, store, header)
        undo.pop_all()
    index = Index(header.place, header.before)
    return Segment(files, folder, index, capacity, store, index_file)


def start_segment(files: Files, folder: Path, store: File, header: SegmentHeader) -> None:
    """The reserved files become a segment, durably."""
    first_index = header.before.index + 1
    store.pwritev([fmt.pack_preamble(header)], 0)
    store.fdatasync()
    # The index first: a store without an index is no active segment's, an index alone is worthless.
    files.rename(folder / RESERVED_INDEX, folder / index_name(first_index))
    files.rename(folder / RESERVED_STORE, folder / store_name(first_index))
    files.sync_directory(folder)


def allocate(files: Files, path: Path, size: int) -> File:
    """A file with `size` bytes of allocated space. One that is made anew is not left behind if that
    fails; one that was there keeps what it had."""
    existed = files.exists(path)
    file = files.open(path) if existed else files.create(path)
    try:
        file.reserve(size)
    except OSError:
        file.close()
        if not existed:
            files.unlink(path)
        raise
    return file


def write_index(file: File, packed: bytes) -> None:
    """Fills allocated space with a sealed segment's index, and closes it."""
    file.pwritev([packed], 0)
    file.truncate(len(packed))
    file.fdatasync()
    file.close()
