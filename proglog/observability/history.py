"""The last quarter of an hour, a sample a second: what a console shows without a database."""

from __future__ import annotations

from array import array
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from itertools import islice
from typing import Final

from proglog.observability.metrics import Histogram, Metrics
from proglog.observability.view import Event

SAMPLES_MAX: Final = 900
EVENTS_MAX: Final = 200
NOTHING: Final = float("nan")
"""The value of a quantile of nothing."""

SERIES: Final = (
    "produced_records",
    "produced_bytes",
    "produced_batches",
    "consumed_bytes",
    "commit_p50",
    "commit_p99",
    "sync_p50",
    "sync_p99",
    "loop_lag",
)
"""Rates are a second's; quantiles and lag are seconds of time."""


class History:
    """Samples of `SERIES` and events, the oldest going first. `records` counts those that the log
    has ever got, whoever took them: followers show what the leader does."""

    def __init__(self, metrics: Metrics, records: Callable[[], int]) -> None:
        self._metrics = metrics
        self._records = records
        self._series = {name: array("d") for name in SERIES}
        self._events: deque[tuple[int, Event]] = deque(maxlen=EVENTS_MAX)
        self._events_told = 0
        self._counted = self._counts()
        self._produce = list(metrics.produce_seconds.counts)
        self._sync = list(metrics.sync_seconds.counts)

    def sample(self, elapsed: float, loop_lag: float) -> dict[str, float]:
        """Adds what has happened in the seconds since the last sample, and returns it."""
        counted = self._counts()
        rates = {name: (counted[name] - self._counted[name]) / elapsed for name in counted}
        commit, self._produce = _fresh(self._metrics.produce_seconds, self._produce)
        sync, self._sync = _fresh(self._metrics.sync_seconds, self._sync)
        self._counted = counted
        bounds = self._metrics.produce_seconds.bounds
        sample = {
            **rates,
            "commit_p50": quantile(bounds, commit, 0.5),
            "commit_p99": quantile(bounds, commit, 0.99),
            "sync_p50": quantile(bounds, sync, 0.5),
            "sync_p99": quantile(bounds, sync, 0.99),
            "loop_lag": loop_lag,
        }
        for name, values in self._series.items():
            values.append(sample[name])
            if len(values) > SAMPLES_MAX:
                del values[0]
        return sample

    def add(self, event: Event) -> None:
        self._events_told += 1
        self._events.append((self._events_told, event))

    def samples(self) -> dict[str, list[float]]:
        """All samples by series, oldest first."""
        return {name: values.tolist() for name, values in self._series.items()}

    def events(self, after: int = 0) -> Iterator[tuple[int, Event]]:
        """Events with their numbers, which ascend from 1, from the one after a number on."""
        new = max(0, min(self._events_told - after, len(self._events)))
        return islice(self._events, len(self._events) - new, None)

    def _counts(self) -> Mapping[str, float]:
        return {
            "produced_records": self._records(),
            "produced_bytes": self._metrics.group_bytes.sum,
            "produced_batches": self._metrics.group_batches.sum,
            "consumed_bytes": self._metrics.consumed_bytes,
        }

    @property
    def events_told(self) -> int:
        """The number of the newest event."""
        return self._events_told


def _fresh(histogram: Histogram, before: list[int]) -> tuple[list[int], list[int]]:
    """What was counted since, and all that is counted."""
    counts = list(histogram.counts)
    return [now - then for now, then in zip(counts, before, strict=True)], counts


def quantile(bounds: tuple[float, ...], counts: list[int], share: float) -> float:
    """A quantile of values that were counted by upper bound, linear within a bucket, as
    Prometheus' `histogram_quantile` has it; NaN of none. Values above all bounds are told as the
    last bound."""
    rank = share * sum(counts)
    if not rank:
        return NOTHING
    below = 0
    for i, count in enumerate(counts):
        if below + count >= rank and i < len(bounds):
            low = bounds[i - 1] if i else 0.0
            return low + (bounds[i] - low) * (rank - below) / count
        below += count
    return bounds[-1]
