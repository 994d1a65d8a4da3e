"""What the core knows of the log without holding it: its bounds and its terms."""

from __future__ import annotations

from array import array
from bisect import bisect_right
from collections.abc import Callable, Sequence
from typing import Final

from proglog.raft.messages import Entry

RECENT_ENTRIES: Final = 4096
"""Entries behind the commit index whose sizes are kept for followers that lag a little."""


class LogView:
    """The log is (base_index, last_index]; the entry at the base is known by its term only.

    Terms are kept as runs, since they never decrease along a log: [(1, t1), (40, t3)] says that
    1-39 are of t1 and 40 to the end of t3. A log has as many runs as it saw leaders, however many
    entries. Sizes are kept as running totals of the recent part only; `size_of` asks the driver
    for older ones, when a follower far behind is caught up.
    """

    __slots__ = (
        "_ends",
        "_ends_from",
        "_run_starts",
        "_run_terms",
        "_size_of",
        "base_index",
        "base_term",
        "last_index",
        "last_term",
    )

    def __init__(
        self,
        *,
        base_index: int = 0,
        base_term: int = 0,
        runs: Sequence[tuple[int, int]] = (),
        last_index: int | None = None,
        size_of: Callable[[int], int],
    ) -> None:
        self.base_index = base_index
        self.base_term = base_term
        self.last_index = base_index if last_index is None else last_index
        self._run_starts = [start for start, _ in runs]
        self._run_terms = [term for _, term in runs]
        self._size_of = size_of
        self._forget_sizes()
        self._cache_last_term()
        assert bool(runs) == (self.last_index > base_index)
        assert not runs or runs[0][0] == base_index + 1
        assert self._run_starts == sorted(set(self._run_starts))
        assert self._run_terms == sorted(set(self._run_terms))
        assert not runs or base_term <= runs[0][1]

    def _cache_last_term(self) -> None:
        self.last_term = self._run_terms[-1] if self._run_terms else self.base_term

    def _forget_sizes(self) -> None:
        # _ends[i] = bytes of the entries in (_ends_from, _ends_from + i]
        self._ends = array("Q", [0])
        self._ends_from = self.last_index

    # --- terms -----------------------------------------------------------------------------------

    def term_at(self, index: int) -> int | None:
        """None outside [base_index, last_index]."""
        if index == self.last_index:
            return self.last_term
        if not self.base_index <= index <= self.last_index:
            return None
        if index == self.base_index:
            return self.base_term
        return self._run_terms[bisect_right(self._run_starts, index) - 1]

    def runs(self) -> list[tuple[int, int]]:
        return list(zip(self._run_starts, self._run_terms, strict=True))

    def up_to_date(self, last_index: int, last_term: int) -> bool:
        """Whether a log that ends in (last_index, last_term) holds all that this one may have
        committed: the later last term wins, then the longer log; equal is enough (section 3.6.1).

        Term first: a short log of a newer leader outweighs any number of old uncommitted entries.
        """
        return (last_term, last_index) >= (self.last_term, self.last_index)

    def last_possible_match(self, index: int, term: int) -> int:
        """The last index <= `index` whose term here is <= `term`: if the other log has an entry of
        `term` at `index`, nothing of ours behind this one can match it.

        Terms never decrease along a log, so at and before `index` the other log has only terms
        <= `term`; ours that are higher are skipped a whole run at a time, not an index a round
        trip:

            idx     1 2 3 4 5 6 7 8 9
            leader  1 3 3 3 5 5 5 5 5      probes with prev (9, 5)
            this    1 1 1 1 2 2            answers hint (6, 2): its last
            leader  looks for the last of its entries up to 6 with a term <= 2: index 1. Matched.
        """
        index = min(index, self.last_index)
        for run in range(bisect_right(self._run_starts, index) - 1, -1, -1):
            if self._run_terms[run] <= term:
                return index
            index = self._run_starts[run] - 1
        return index

    # --- change ----------------------------------------------------------------------------------

    def append(self, entries: Sequence[Entry]) -> None:
        ends, total, last = self._ends, self._ends[-1], self.last_index
        for index, term, size_bytes, _ in entries:
            last += 1
            assert index == last, "entries are appended without gaps"
            if term != self.last_term or not self._run_terms:
                assert term >= self.last_term, "terms never decrease along a log"
                self._run_starts.append(index)
                self._run_terms.append(term)
                self.last_term = term
            total += size_bytes
            ends.append(total)
        self.last_index = last

    def truncate(self, first: int) -> None:
        """Drop `first` and everything behind it."""
        assert self.base_index < first <= self.last_index
        self.last_index = first - 1
        while self._run_starts and self._run_starts[-1] >= first:
            self._run_starts.pop()
            self._run_terms.pop()
        self._cache_last_term()
        if first <= self._ends_from:
            self._forget_sizes()
        else:
            del self._ends[first - self._ends_from :]

    def compact(self, index: int) -> None:
        """The base moves up to `index`: what stood there and before is gone."""
        term = self.term_at(index)
        assert term is not None, "the new base must be in the log"
        if index == self.last_index:
            self._run_starts, self._run_terms = [], []
        elif index > self.base_index:
            first_kept = bisect_right(self._run_starts, index + 1) - 1
            del self._run_starts[:first_kept], self._run_terms[:first_kept]
            self._run_starts[0] = index + 1
        self.base_index, self.base_term = index, term

    def reset(self, index: int, term: int) -> None:
        """Everything is replaced by a snapshot of this index and term."""
        self.base_index = self.last_index = index
        self.base_term = self.last_term = term
        self._run_starts, self._run_terms = [], []
        self._forget_sizes()

    # --- sizes -----------------------------------------------------------------------------------

    def bytes_after(self, index: int) -> int:
        """Bytes of the entries behind `index`; those from before a restart count nothing."""
        return self._ends[-1] - self._ends[max(index - self._ends_from, 0)]

    def fit(self, first: int, entries_max: int, bytes_max: int) -> tuple[int, int]:
        """The longest range first..last within both bounds (one entry at least): last and bytes."""
        assert self.base_index < first <= self.last_index
        highest = min(self.last_index, first - 1 + entries_max)
        before = first - 1 - self._ends_from
        if before < 0:
            return self._fit_old(first, highest, bytes_max)
        ends = self._ends
        limit = ends[before] + bytes_max
        last = highest - self._ends_from
        if ends[last] > limit:
            last = max(before + 1, bisect_right(ends, limit, before + 1, last + 1) - 1)
        return last + self._ends_from, ends[last] - ends[before]

    def _fit_old(self, first: int, highest: int, bytes_max: int) -> tuple[int, int]:
        total = self._size_at(first)
        for index in range(first + 1, highest + 1):
            size_bytes = self._size_at(index)
            if total + size_bytes > bytes_max:
                return index - 1, total
            total += size_bytes
        return highest, total

    def _size_at(self, index: int) -> int:
        at = index - self._ends_from
        # The driver may not have the newest yet.
        return self._ends[at] - self._ends[at - 1] if at > 0 else self._size_of(index)

    def forget_sizes_before(self, commit: int) -> None:
        """Keeps the totals short. Done in large steps, so it costs nothing per entry."""
        surplus = commit - RECENT_ENTRIES - self._ends_from
        if surplus > RECENT_ENTRIES:
            del self._ends[:surplus]
            self._ends_from += surplus
