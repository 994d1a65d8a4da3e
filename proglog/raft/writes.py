"""Which part of the log is durable here, known from write numbers the driver hands back."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from proglog.raft.messages import Entry


class Writes:
    """Log writes not yet handed to the driver, writes under way, and the durable index.

    Every hand-over is numbered, and the driver says "all up to number n is durable". Why not
    "index i of term t is durable"? Because (i, t) may come, go and come again while one write is
    under way (the ABA of etcd's newStorageAppendRespMsg):

        write 1   5:t1          from the leader of t1
        write 2   cut 5, 5:t2   from the leader of t2
        write 3   cut 5, 5:t1   from the leader of t3, who holds the first one

    When write 1 completes, index 5 has term t1 in our log as well as on disk, but the disk is about
    to lose it: an ack now would be a lie if we crash within write 2. So a cut lowers what all
    writes under way will ever prove, at the moment it is decided. Write 1 then proves 4 only.
    """

    __slots__ = ("_entries", "_handed_over", "_number", "_truncate_from", "_under_way", "durable")

    def __init__(self, last_index: int) -> None:
        # Recovery ended with fdatasync: what the log holds at the start is durable.
        self.durable = last_index
        self._handed_over = last_index
        self._truncate_from: int | None = None
        self._entries: list[Entry] = []
        self._number = 0
        self._under_way: deque[tuple[int, int]] = deque()

    def append(self, entries: Sequence[Entry]) -> None:
        self._entries += entries

    def truncate(self, first: int) -> None:
        self.durable = min(self.durable, first - 1)
        self._under_way = deque((n, min(last, first - 1)) for n, last in self._under_way)
        if first <= self._handed_over:
            # An earlier cut that still waits is further behind: handed_over is already below it.
            self._truncate_from = first
            self._handed_over = first - 1
            self._entries.clear()
        else:
            del self._entries[first - self._handed_over - 1 :]

    def take(self) -> tuple[int | None, list[Entry], int]:
        """Hand over what waits: cut, entries, write number (0 if there is nothing to write)."""
        truncate_from, entries = self._truncate_from, self._entries
        if truncate_from is None and not entries:
            return None, [], 0
        self._truncate_from, self._entries = None, []
        if entries:
            self._handed_over = entries[-1].index
        self._number += 1
        self._under_way.append((self._number, self._handed_over))
        return truncate_from, entries, self._number

    def persisted(self, number: int) -> None:
        """All writes up to this number are durable. Late and repeated reports change nothing."""
        assert number <= self._number, "a write that was never handed over"
        while self._under_way and self._under_way[0][0] <= number:
            self.durable = max(self.durable, self._under_way.popleft()[1])

    def reset(self, index: int) -> None:
        """A durable snapshot replaced the log; the writes of the old one mean nothing any more."""
        assert not self._entries, "nothing is appended while a snapshot is installed"
        assert self._truncate_from is None
        self._under_way.clear()
        self.durable = self._handed_over = index
