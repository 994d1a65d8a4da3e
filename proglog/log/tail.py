"""The newest batches, in memory: for readers at the end of the log, for followers, and for the
writer until they are durable."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from proglog.batch import BatchHeader, Buffer

_ENTRY_COST_BYTES = 700
"""What Python's objects for one batch take beside its bytes."""


class Run(NamedTuple):
    """Consecutive batches, whole and back to back, with their headers."""

    data: bytes
    headers: Sequence[BatchHeader]


class TailEntry(NamedTuple):
    """One batch: its parsed header and its bytes in one or more parts."""

    header: BatchHeader
    parts: tuple[Buffer, ...]


class Tail:
    """Batches with consecutive indexes. Bounded by `evict`, except for what is not durable yet."""

    __slots__ = ("_bytes_max", "_entries", "bytes", "first_index")

    def __init__(self, first_index: int, bytes_max: int) -> None:
        self.first_index = first_index
        """Index of the oldest batch held, or of the next one if none is."""
        self.bytes = 0
        self._bytes_max = bytes_max
        self._entries: deque[TailEntry] = deque()

    @classmethod
    def of(cls, entries: Iterable[TailEntry], next_index: int, bytes_max: int) -> Tail:
        """The newest of these batches, the last before batch `next_index`."""
        kept = list(entries)
        tail = cls(next_index - len(kept), bytes_max)
        for entry in kept:
            tail.append(entry)
        tail.evict(next_index - 1)
        return tail

    @property
    def next_index(self) -> int:
        return self.first_index + len(self._entries)

    def append(self, entry: TailEntry) -> None:
        assert entry.header.index == self.next_index
        self._entries.append(entry)
        self.bytes += entry.header.size + _ENTRY_COST_BYTES

    def get(self, index: int) -> TailEntry:
        assert self.first_index <= index < self.next_index
        return self._entries[index - self.first_index]

    def run(self, first: int, last: int, bytes_max: int) -> Run:
        """Batches from `first` to `last`, as many as `bytes_max` holds, at least the first."""
        entries: list[TailEntry] = []
        size = 0
        for index in range(first, last + 1):
            entry = self.get(index)
            size += entry.header.size
            if entries and size > bytes_max:
                break
            entries.append(entry)
        data = b"".join([part for entry in entries for part in entry.parts])
        return Run(data, [entry.header for entry in entries])

    def evict(self, durable_index: int) -> None:
        """Lets go of the oldest durable batches beyond the bound."""
        while self.bytes > self._bytes_max and self.first_index <= durable_index:
            self._forget(self._entries.popleft())
            self.first_index += 1

    def cut(self, next_index: int) -> None:
        """Forgets the batches from `next_index` on."""
        while self._entries and self._entries[-1].header.index >= next_index:
            self._forget(self._entries.pop())
        if not self._entries:
            self.first_index = next_index

    def _forget(self, entry: TailEntry) -> None:
        self.bytes -= entry.header.size + _ENTRY_COST_BYTES
