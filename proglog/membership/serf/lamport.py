"""Logical time, and the recent past by it."""

from __future__ import annotations

from typing import Generic, TypeVar

from proglog.membership import limits

T = TypeVar("T")


class LamportClock:
    """Lamport's logical clock: never goes back, and is past every time it has seen
    ("Time, Clocks, and the Ordering of Events in a Distributed System", 1978).

    `time` has not been used yet: the next message carries it, and then `advance` is called.
    """

    def __init__(self) -> None:
        self._time = 1

    @property
    def time(self) -> int:
        return self._time

    def advance(self) -> None:
        self.witness(self._time)

    def believes(self, seen: int, ahead_max: int = limits.lamport_ahead_max) -> bool:
        """Whether a message may carry this time; one that may not is dropped whole. Within the
        bound whoever is spoken of can still say something later, and everybody believes that."""
        return seen - self._time <= ahead_max

    def witness(self, seen: int) -> None:
        """A message carries this time. The decoders refuse times beyond the limit, so that only
        our own steps could reach it, and they would take centuries."""
        assert 0 <= seen <= limits.lamport_time_max
        self._time = min(max(self._time, seen + 1), limits.lamport_time_max)


class RecentPast(Generic[T]):
    """Items by their Lamport time, to tell news from repetitions.

    At most `items_max` are kept. What is older than the oldest that had to be forgotten is never
    news: whether it was seen is not known any more, and telling it twice would be worse than not at
    all.
    """

    def __init__(self, items_max: int) -> None:
        self._items_max = items_max
        self._items: dict[int, list[T]] = {}
        self._count = 0
        self._time_min = 0

    def __len__(self) -> int:
        return self._count

    def add(self, ltime: int, item: T) -> bool:
        """True if the item is news."""
        if ltime < self._time_min:
            return False
        at_time = self._items.setdefault(ltime, [])
        if item in at_time:
            return False
        at_time.append(item)
        self._count += 1
        while self._count > self._items_max:
            self.ignore_before(min(self._items) + 1)
        return ltime >= self._time_min

    def ignore_before(self, ltime: int) -> None:
        """Everything before this time is no news from now on."""
        self._time_min = max(self._time_min, ltime)
        for old in [time for time in self._items if time < self._time_min]:
            self._count -= len(self._items.pop(old))

    def newest_first(self) -> list[tuple[int, list[T]]]:
        return sorted(self._items.items(), reverse=True)
