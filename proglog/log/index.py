"""Where each batch of a segment is, by index, offset and time."""

from __future__ import annotations

import sys
from array import array
from bisect import bisect_left, bisect_right
from pathlib import Path

from proglog.batch import BatchHeader, Buffer
from proglog.log import format as fmt
from proglog.log.format import Place, Summary, Tip

assert sys.byteorder == "little", "an index is read and written as the machine's own numbers"
assert array("I").itemsize == 4

_POSITION, _OFFSET, _TIME, _KIND = range(4)
_DELTA_MAX = 2**32 - 1


class Index:
    """The batches of one segment: four u32 numbers each, in an array while the segment is active,
    in a read-only map of its file once it is sealed.

    `last` is the tip after the last batch, `end_position` the position after it. Batches are
    numbered here by their *slot*: 0 is the segment's first.
    """

    __slots__ = (
        "_count",
        "_numbers",
        "before",
        "end_position",
        "first_timestamp",
        "last",
        "place",
        "runs",
    )

    def __init__(self, place: Place, before: Tip) -> None:
        self.place = place
        self.before = before
        self.last = before
        self.first_timestamp = 0
        self.end_position = fmt.PREAMBLE_BYTES
        self.runs: list[tuple[int, int]] = []
        """(first index, term) of each run of equal terms, ascending."""
        self._count = 0
        self._numbers: array[int] | memoryview = array("I")

    def __len__(self) -> int:
        return self._count

    # --- growing (active segments only) ----------------------------------------------------------

    def fits(self, timestamp: int, term: int) -> bool:
        """Whether a batch with this time and term can still be described. Within a segment times
        ascend."""
        if not self._count:
            return True
        new_run = self.last.term != term
        is_near = self.last.timestamp <= timestamp <= self.first_timestamp + _DELTA_MAX
        return is_near and (not new_run or len(self.runs) < fmt.RUNS_MAX)

    def append(self, header: BatchHeader) -> None:
        """Adds the batch that was put at `end_position`."""
        assert header.index == self.last.index + 1
        assert isinstance(self._numbers, array)
        if not self._count:
            self.first_timestamp = header.timestamp
        if not self.runs or self.runs[-1][1] != header.term:
            self.runs.append((header.index, header.term))
        self._numbers.extend(
            (
                self.end_position,
                header.base_offset - self.before.next_offset,
                header.timestamp - self.first_timestamp,
                header.kind,
            )
        )
        self._count += 1
        self.end_position += header.size
        self.last = Tip.after(header)

    def cut(self, last: Tip) -> None:
        """Forgets what follows `last`, whose batch is in this segment or right before it.

        A map is replaced by an array: the segment is active again.
        """
        kept = last.index - self.before.index
        assert 0 <= kept <= self._count
        end = self.position(kept)
        self._numbers = array("I", self._numbers.tobytes()[: kept * fmt.ENTRY_BYTES])
        self._count = kept
        self.runs = [run for run in self.runs if run[0] <= last.index]
        self.end_position = end
        self.last = last

    # --- sealing ---------------------------------------------------------------------------------

    @property
    def summary(self) -> Summary:
        return Summary(self.place, self.before, self.last, self.first_timestamp, self.end_position)

    def pack(self) -> bytes:
        """The index as a file."""
        return fmt.pack_index(self._numbers.tobytes(), self.runs, self.summary)

    @classmethod
    def parse(cls, data: Buffer, path: Path, *, keep_entries: bool = False) -> Index | None:
        """The index that a file holds; None if it is damaged. Raises UnknownFormat.

        Unless its entries are kept they are to be mapped from the file, by `map`.
        """
        parsed = fmt.parse_index(data, path)
        if parsed is None:
            return None
        entries_at, runs, summary = parsed
        index = cls(summary.place, summary.before)
        index.last = summary.last
        index.first_timestamp = summary.first_timestamp
        index.end_position = summary.end_position
        index.runs = runs
        index._count = (len(data) - entries_at) // fmt.ENTRY_BYTES
        entries = memoryview(data)[entries_at:]
        if keep_entries:
            index._numbers = array("I", bytes(entries))
        return index

    def map(self, view: memoryview) -> None:
        """From now on the entries are read where they stand in this map of the index's file.

        Whoever maps it has read the file before, and checked it. Should the disk lose a page of it
        later, the process dies of it (SIGBUS); the next start writes the file anew.
        """
        size = self._count * fmt.ENTRY_BYTES
        self._numbers = view[len(view) - size :].cast("I")

    def unmap(self) -> None:
        """The log is closed. Whoever opens it next wants the page cache to let go of the file."""
        self._numbers = array("I")

    # --- looking up ------------------------------------------------------------------------------

    def position(self, slot: int) -> int:
        """Where a batch begins; for the slot after the last, where the next one will."""
        return self._numbers[slot * 4 + _POSITION] if slot < self._count else self.end_position

    def slot_of_offset(self, offset: int) -> int:
        """The last batch whose base offset is <= `offset`: the one before it may be empty."""
        delta = offset - self.before.next_offset
        assert delta >= 0
        return bisect_right(_Column(self._numbers, _OFFSET), delta) - 1

    def slot_of_time(self, timestamp: int) -> int:
        """The first batch appended at or after `timestamp`; len(self) if none was."""
        return bisect_left(_Column(self._numbers, _TIME), timestamp - self.first_timestamp)

    def slot_at_position(self, position: int) -> int:
        """The last batch that begins at or before `position`."""
        return bisect_right(_Column(self._numbers, _POSITION), position) - 1

    def kind(self, slot: int) -> int:
        return self._numbers[slot * 4 + _KIND]

    def timestamp(self, slot: int) -> int:
        return self.first_timestamp + self._numbers[slot * 4 + _TIME]

    def base_offset(self, slot: int) -> int:
        """Offset of the first record of a batch; for the slot after the last, of the next one."""
        if slot == self._count:
            return self.last.next_offset
        return self.before.next_offset + self._numbers[slot * 4 + _OFFSET]

    def term(self, index: int) -> int:
        """The term of a batch of this segment."""
        return self.runs[bisect_right(self.runs, index, key=lambda run: run[0]) - 1][1]


class _Column:
    """One of the four numbers of each batch, for bisect."""

    __slots__ = ("_numbers", "_which")

    def __init__(self, numbers: array[int] | memoryview, which: int) -> None:
        self._numbers = numbers
        self._which = which

    def __len__(self) -> int:
        return len(self._numbers) // 4

    def __getitem__(self, slot: int) -> int:
        return self._numbers[slot * 4 + self._which]
