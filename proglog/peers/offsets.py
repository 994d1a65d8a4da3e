"""How far another node's wall clock is from our monotonic one, by its answers to our PINGs."""

from __future__ import annotations

from collections import deque
from typing import NamedTuple

from proglog import limits


class _Sample(NamedTuple):
    at: float
    round_trip: float
    offset_ms: float


class Offsets:
    """Of one other node. Times are those of the loop, in seconds: our wall clock has no part in it,
    so that a step of it looks like no step of theirs.

    An answer was made at some moment of its round trip, and is taken for one made in the middle: it
    is wrong by half of the round trip at most. So of the samples of the last seconds the one with
    the shortest counts.
    """

    __slots__ = ("_samples",)

    def __init__(self) -> None:
        self._samples: deque[_Sample] = deque(maxlen=limits.clock_samples_max)
        """Their round trips ascend: one that took longer than a later one is never the best."""

    def add(self, sent: float, received: float, wall_ms: int) -> None:
        """An answer told the time."""
        if received - sent > limits.clock_round_trip_seconds_max:
            return
        sample = _Sample(received, received - sent, wall_ms - 500 * (sent + received))
        while self._samples and self._samples[-1].round_trip >= sample.round_trip:
            self._samples.pop()
        self._samples.append(sample)

    def best(self, now: float) -> float | None:
        """Their wall clock less our monotonic one, in ms; None if they have not told it lately."""
        while self._samples and now - self._samples[0].at > limits.clock_sample_seconds_max:
            self._samples.popleft()
        return self._samples[0].offset_ms if self._samples else None
