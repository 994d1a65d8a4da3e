"""Walking a store: batch after batch, each checked whole, each continuing the one before."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias

from proglog import limits
from proglog.batch import (
    HEADER_BYTES,
    BadBatch,
    BatchHeader,
    UnknownBatch,
    check_stored_body,
    parse_header,
)
from proglog.errors import UnknownFormat
from proglog.log.format import Tip
from proglog.log.index import Index
from proglog.log.reading import CheckedFile, Damage

_END_FIELDS = bytes(8)
OnBatch: TypeAlias = Callable[[BatchHeader, memoryview], None]
"""Gets each batch that is found: its header, parsed, and all its bytes, valid during the call."""


def _ignore(header: BatchHeader, data: memoryview) -> None:
    del header, data


def walk_store(
    store: CheckedFile,
    index: Index,
    *,
    last_index: int | None = None,
    on_batch: OnBatch = _ignore,
) -> Damage | None:
    """Adds the batches from `index.end_position` on to `index`, up to the end of the log or to
    `last_index`. Returns why it stopped, or None where that is how it should be."""
    window = Window(store)
    while last_index is None or index.last.index < last_index:
        position = index.end_position
        ahead = window.at_least(HEADER_BYTES, position)
        if isinstance(ahead, Damage):
            return _of_batch(ahead, index)
        if ahead[:8] == _END_FIELDS or not ahead:
            ends = Damage(store.path, position, f"the segment ends at batch {index.last.index}")
            return None if last_index is None else ends
        try:
            header = parse_header(ahead)
            whole = window.at_least(header.size, position)
            if isinstance(whole, Damage):
                return _of_batch(whole, index)
            check_stored_body(header, whole[HEADER_BYTES : header.size])
            check_follows(header, index.last, begins=len(index) == 0)
        except UnknownBatch as unknown:
            raise _unknown(store.path, position, unknown) from None
        except BadBatch as bad:
            return Damage(store.path, position, f"batch {index.last.index + 1} {bad}")
        on_batch(header, whole[: header.size])
        index.append(header)
    return None


def _unknown(path: Path, position: int, why: UnknownBatch) -> UnknownFormat:
    return UnknownFormat(
        f"{path} at {position}: {why}: a newer version of Proglog wrote this batch. Nothing was "
        "changed; use that version",
        file=path,
        version="newer than 2",
    )


def _of_batch(damage: Damage, index: Index) -> Damage:
    return damage._replace(
        position=index.end_position,
        why=f"batch {index.last.index + 1} {damage.why} (at {damage.position})",
    )


def check_follows(header: BatchHeader, tip: Tip, *, begins: bool) -> None:
    """Raises BadBatch unless a batch continues the log that ends with `tip`. Where it `begins` a
    segment its time may be less: so log time is corrected."""
    if (
        header.index != tip.index + 1
        or header.chain != tip.chain
        or header.base_offset != tip.next_offset
        or header.term < tip.term
        or (header.timestamp < tip.timestamp and not begins)
    ):
        raise BadBatch(f"does not follow the batch before: {header} after {tip}")


class Window:
    """A piece of a store in memory. Large, since each read of the disk has its price; where a large
    read fails, just what is asked for is read, so that one bad sector is one bad batch."""

    def __init__(self, store: CheckedFile) -> None:
        self._store = store
        self._data = b""
        self._from = 0

    def at_least(self, size: int, position: int) -> memoryview | Damage:
        """The bytes from `position` on: `size` or more, fewer only at the end of the file."""
        at = position - self._from
        if not 0 <= at <= len(self._data) - size:
            data = self._store.read_upto(max(size, limits.walk_window_bytes), position)
            if isinstance(data, Damage):
                data = self._store.read_upto(size, position)
            if isinstance(data, Damage):
                return data
            self._data, self._from, at = data, position, 0
            # While these bytes are checked the disk reads the next ones.
            self._store.file.read_ahead(limits.walk_window_bytes, position + len(data))
        return memoryview(self._data)[at:]
