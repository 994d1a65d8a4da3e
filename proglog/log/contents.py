"""What a log holds, and where: all that can be asked without changing or reading anything."""

from __future__ import annotations

from bisect import bisect_left, bisect_right

from proglog.log import format as fmt
from proglog.log.format import Tip
from proglog.log.segment import Segment
from proglog.log.tail import Tail, TailEntry


class Contents:
    """The segments of a log, oldest first, of which the last is active, and its newest batches."""

    _segments: list[Segment]
    _tail: Tail
    tip: Tip
    """After the last batch, durable or not."""

    @property
    def _active(self) -> Segment:
        return self._segments[-1]

    @property
    def before(self) -> Tip:
        """The tip before the oldest batch."""
        return self._segments[0].index.before

    @property
    def first_index(self) -> int:
        """Index of the oldest batch, or of the next one if there is none."""
        return self._segments[0].first_index

    def bytes_upto(self, index: int) -> int:
        """Bytes of the batches up to `index`, which must be in the log or right before it."""
        slot = self._segment_slot(index + 1)
        segment = self._segments[slot]
        end = segment.index.position(index + 1 - segment.first_index)
        ends = end + sum(older.index.end_position for older in self._segments[:slot])
        return ends - (slot + 1) * fmt.PREAMBLE_BYTES

    def sealed_tips(self) -> list[Tip]:
        """The tip after each sealed segment, oldest first."""
        return [segment.index.last for segment in self._segments[:-1]]

    def segment_facts(self) -> list[tuple[Tip, int]]:
        """(tip before it, bytes) of each segment, oldest first. The times of the tips are those
        that count: see `_last_times`."""
        times = [self._segments[0].index.before.timestamp, *self._last_times()]
        return [
            (
                segment.index.before._replace(timestamp=time),
                segment.index.end_position - fmt.PREAMBLE_BYTES,
            )
            for segment, time in zip(self._segments, times, strict=False)
        ]

    def _last_times(self) -> list[int]:
        """The time that counts of the last batch of each segment, oldest first.

        Log time may have been ahead for a while, and was corrected then by a batch with a lesser
        one, which begins a segment. So a batch counts as appended no later than any that follows.
        """
        times: list[int] = []
        following: int | None = None
        """The least time of all batches after the segment."""
        for segment in reversed(self._segments):
            index = segment.index
            last = index.last.timestamp
            times.append(last if following is None else min(last, following))
            if len(index):
                first = index.first_timestamp
                following = first if following is None else min(first, following)
        return times[::-1]

    # --- by index, offset and time ---------------------------------------------------------------

    def _segment_slot(self, index: int) -> int:
        """Which segment holds batch `index`, or would if it is the next."""
        if index >= self._active.first_index:
            return len(self._segments) - 1
        slot = bisect_right(self._segments, index, key=lambda segment: segment.first_index) - 1
        assert slot >= 0
        return slot

    def segment_of(self, index: int) -> Segment:
        """The segment that holds batch `index`, or would if it is the next."""
        return self._segments[self._segment_slot(index)]

    def index_of_offset(self, offset: int) -> int:
        """The last batch whose base offset is <= `offset`, which must be retained."""
        assert self.before.next_offset <= offset
        slot = bisect_right(
            self._segments, offset, key=lambda segment: segment.index.before.next_offset
        )
        segment = self._segments[slot - 1]
        return segment.first_index + segment.index.slot_of_offset(offset)

    def index_of_time(self, timestamp: int) -> int:
        """The first batch appended at or after `timestamp` (ms); the next index if none was. Where
        log time was ahead it may be an earlier one, but never a later one."""
        slot = bisect_left(self._last_times(), timestamp)
        if slot == len(self._segments):
            return self.tip.index + 1
        segment = self._segments[slot]
        return segment.first_index + segment.index.slot_of_time(timestamp)

    def base_offset(self, index: int) -> int:
        """Offset of the first record of batch `index`, or of the next record if it is the next."""
        if index == self.tip.index + 1:
            return self.tip.next_offset
        segment = self.segment_of(index)
        return segment.index.base_offset(index - segment.first_index)

    def size_of(self, index: int) -> int:
        """Bytes of batch `index`, header included."""
        segment = self.segment_of(index)
        slot = index - segment.first_index
        return segment.index.position(slot + 1) - segment.index.position(slot)

    def term_at(self, index: int) -> int | None:
        """The term of a batch, also of the one before the oldest; None if it is not held."""
        if index == self.before.index:
            return self.before.term
        if not self.first_index <= index <= self.tip.index:
            return None
        return self.segment_of(index).index.term(index)

    def in_memory(self, index: int) -> TailEntry | None:
        """A batch of the tail; None if it must be read."""
        if self._tail.first_index <= index < self._tail.next_index:
            return self._tail.get(index)
        return None

    def tip_at(self, index: int) -> Tip | None:
        """The tip after a batch that ends a segment, or is in memory, or precedes what is; None of
        another one."""
        if index == self.before.index:
            return self.before
        tail = self._tail
        if tail.first_index <= index < tail.next_index:
            return Tip.after(tail.get(index).header)
        segment = self.segment_of(index)
        if index == segment.last_index:
            return segment.index.last
        if index + 1 != tail.first_index:
            return None
        slot = index - segment.first_index
        return Tip(
            index,
            segment.index.term(index),
            segment.index.base_offset(slot + 1),
            segment.index.timestamp(slot),
            tail.get(index + 1).header.chain,
        )
