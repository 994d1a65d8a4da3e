"""Where each batch of a segment is, by index, offset and time."""

from __future__ import annotations

import sys
from array import array
from bisect import bisect_left, bisect_right

from proglog.batch import BatchHeader
from proglog.log import format as fmt
from proglog.log.format import Tip, Trailer

assert sys.byteorder == "little", "an index is read and written as the machine's own numbers"
assert array("I").itemsize == 4

_POSITION, _OFFSET, _TIME, _KIND = range(4)
_DELTA_MAX = 2**32 - 1


class Index:
    """The batches of one segment: four u32 numbers each, in an array or a read-only map.

    `last` is the tip after the last batch, `end_position` the position after it. Batches are
    numbered here by their *slot*: 0 is the segment's first.
    """

    __slots__ = ("_numbers", "before", "end_position", "first_timestamp", "last", "runs")

    def __init__(self, before: Tip) -> None:
        self.before = before
        self.last = before
        self.first_timestamp = 0
        self.end_position = fmt.PREAMBLE_BYTES
        self.runs: list[tuple[int, int]] = []
        """(first index, term) of each run of equal terms, ascending."""
        self._numbers: array[int] | memoryview = array("I")

    def __len__(self) -> int:
        return len(self._numbers) // 4

    # --- growing (active segments only) ----------------------------------------------------------

    def fits(self, timestamp: int, term: int) -> bool:
        """Whether a batch with this time and term can still be described."""
        if not self._numbers:
            return True
        new_run = self.last.term != term
        return timestamp - self.first_timestamp <= _DELTA_MAX and (
            not new_run or len(self.runs) < fmt.RUNS_MAX
        )

    def append(self, header: BatchHeader) -> None:
        """Adds the batch that was put at `end_position`."""
        assert header.index == self.last.index + 1
        assert isinstance(self._numbers, array)
        if not self._numbers:
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
        self.end_position += header.size
        self.last = Tip.after(header)

    def cut(self, last: Tip) -> None:
        """Forgets what follows `last`, whose batch is in this segment or right before it.

        A map is replaced by an array: the segment is active again.
        """
        kept = last.index - self.before.index
        assert 0 <= kept <= len(self)
        end = self.position(kept)
        self._numbers = array("I", self._numbers.tobytes()[: kept * fmt.ENTRY_BYTES])
        self.runs = [run for run in self.runs if run[0] <= last.index]
        self.end_position = end
        self.last = last

    # --- sealing ---------------------------------------------------------------------------------

    def pack(self) -> bytes:
        """The index as a file."""
        trailer = Trailer(self.before, self.last, self.first_timestamp, self.end_position)
        return fmt.pack_index(self._numbers.tobytes(), self.runs, trailer)

    @classmethod
    def parse(cls, data: bytes | bytearray | memoryview) -> Index | None:
        """The index that a file holds, reading from it in place; None if it is damaged."""
        parsed = fmt.parse_index(data)
        if parsed is None:
            return None
        entries, runs, trailer = parsed
        index = cls(trailer.before)
        index._numbers = entries.cast("B").cast("I") if len(entries) else array("I")
        index.runs = runs
        index.last = trailer.last
        index.first_timestamp = trailer.first_timestamp
        index.end_position = trailer.end_position
        return index

    # --- looking up ------------------------------------------------------------------------------

    def position(self, slot: int) -> int:
        """Where a batch begins; for the slot after the last, where the next one will."""
        return self._numbers[slot * 4 + _POSITION] if slot < len(self) else self.end_position

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
        return self.before.next_offset + self._numbers[slot * 4 + _OFFSET]


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
