"""One segment: a store file and its index, and how the two come into being."""

from __future__ import annotations

import errno
from pathlib import Path

from proglog import limits
from proglog.batch import HEADER_BYTES, BadBatch, BatchHeader, check_stored_body, parse_header
from proglog.errors import RangeCorrupt
from proglog.log import format as fmt
from proglog.log.format import Tip
from proglog.log.index import Index
from proglog.ports import File, Files

RESERVED_STORE = "reserved.store"
RESERVED_INDEX = "reserved.index"
NO_SPACE = (errno.ENOSPC, errno.EDQUOT)


def store_name(first_index: int) -> str:
    return f"{first_index:020d}.store"


def index_name(first_index: int) -> str:
    return f"{first_index:020d}.index"


class Segment:
    """A store and where its batches are.

    `capacity` is how far the store's space is allocated. `index_file` is the allocated space for
    the index of an active segment; None once sealed, or while it could not be allocated.
    """

    __slots__ = (
        "_pins",
        "capacity",
        "file",
        "first_index",
        "folder",
        "index",
        "index_file",
        "retired",
    )

    def __init__(
        self, folder: Path, index: Index, file: File, capacity: int, index_file: File | None = None
    ) -> None:
        self.folder = folder
        self.index = index
        self.first_index = index.before.index + 1
        self.file = file
        self.capacity = capacity
        self.index_file = index_file
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
        """Whether a batch of `size` bytes and the end behind it fit into allocated space."""
        end = self.index.end_position + size + HEADER_BYTES
        return self.index_file is not None and end <= self.capacity

    # --- lifetime: the file is closed when it is retired and nobody reads it any more -------------

    def pin(self) -> None:
        """Keeps the file open until `unpin`."""
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
            self.file.close()
            if self.index_file is not None:
                self.index_file.close()
                self.index_file = None

    # --- reading ---------------------------------------------------------------------------------

    def extent(self, first: int, last: int, bytes_max: int) -> tuple[int, int]:
        """Position and size of the batches from index `first` on, up to `last` and about
        `bytes_max` bytes, at least one."""
        slot = first - self.first_index
        position = self.index.position(slot)
        # The batch that begins there or before is not wholly within; behind the last none begins.
        end_slot = len(self.index)
        if position + bytes_max < self.index.end_position:
            end_slot = max(self.index.slot_at_position(position + bytes_max), slot + 1)
        end_slot = min(end_slot, last - self.first_index + 1, slot + limits.read_batches_max)
        return position, self.index.position(end_slot) - position

    def read_cached(self, size: int, position: int) -> bytes | None:
        """The bytes if they are in the page cache. A sector that cannot be read is not: the read
        that waits for the disk meets it again and says where."""
        try:
            return self.file.pread_cached(size, position)
        except OSError:
            return None

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
                if headers and header.chain != headers[-1].header_crc:
                    raise BadBatch("does not follow the batch before")
                headers.append(header)
                at += header.size
        except BadBatch as bad:
            slot = first + len(headers) - self.first_index
            raise RangeCorrupt(
                f"{self.store_path} at {position + at}: {bad}; run proglog verify",
                file=self.store_path,
                position=position + at,
                index=first + len(headers),
                offset=self.index.base_offset(slot),
            ) from None
        return headers


# --- making -----------------------------------------------------------------------------------


def create_segment(
    files: Files, folder: Path, before: Tip, *, capacity: int, index_bytes: int
) -> Segment:
    """A new, empty segment, durable. Raises OSError, also if there is no space for it."""
    index = Index(before)
    first_index = before.index + 1
    index_file = allocate(files, folder / index_name(first_index), index_bytes)
    store = allocate(files, folder / RESERVED_STORE, capacity)
    store.pwritev([fmt.pack_preamble(before)], 0)
    store.fdatasync()
    files.rename(folder / RESERVED_STORE, folder / store_name(first_index))
    files.sync_directory(folder)
    return Segment(folder, index, store, capacity, index_file)


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


def finish_cut(store: File, position: int) -> None:
    """Ends a store at `position`, durably."""
    store.pwritev([fmt.END_OF_LOG], position)
    store.fdatasync()
