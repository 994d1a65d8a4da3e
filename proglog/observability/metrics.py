"""Metrics of one node, in Prometheus' terms.

A hot call adds to plain numbers; they become samples only when somebody asks. Each method is called
by one thread at a time; a scrape that runs beside it may see one call half counted. Every node has
a registry of its own, so that several fit into one process.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import accumulate
from pathlib import Path

from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

_SECONDS = tuple(base * 10.0**power for power in range(-5, 1) for base in (1, 2.5, 5))
_BYTES = tuple(float(4**power) for power in range(3, 13))
_BATCHES = tuple(float(4**power) for power in range(8))


class Histogram:
    """Counts of values by upper bound, the last count being for all above."""

    __slots__ = ("bounds", "counts", "sum")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.sum = 0.0

    def observe(self, value: float) -> None:
        self.counts[bisect_left(self.bounds, value)] += 1
        self.sum += value


class Metrics(Collector):
    """The counters that the parts of a node add to, and its `registry` to expose them."""

    def __init__(self) -> None:
        self.appended_records = 0
        self.appended_batches = 0
        self.appended_bytes = 0
        self.consumed_bytes = 0
        self._refused: Counter[str] = Counter()
        self.produce_seconds = Histogram(_SECONDS)
        self.sync_seconds = Histogram(_SECONDS)
        self.group_bytes = Histogram(_BYTES)
        self.group_batches = Histogram(_BATCHES)
        self._gauges: dict[str, tuple[str, Callable[[], float]]] = {}
        self.gauge(
            "memory_anonymous_bytes",
            "Resident memory that is not file pages (RssAnon).",
            anonymous_memory_bytes,
        )
        self.registry = CollectorRegistry()
        self.registry.register(self)
        ProcessCollector(registry=self.registry)

    # --- what the parts of a node call ---

    def appended(self, records: int, size: int, seconds: float) -> None:
        """A batch of `size` bytes was answered `seconds` after it was proposed."""
        self.appended_records += records
        self.appended_batches += 1
        self.appended_bytes += size
        self.produce_seconds.observe(seconds)

    def group_written(self, batches: int, size: int, seconds: float) -> None:
        """A group of batches was made durable by one write and fdatasync."""
        self.group_batches.observe(batches)
        self.group_bytes.observe(size)
        self.sync_seconds.observe(seconds)

    def consumed(self, size: int) -> None:
        """Stored bytes were handed to a reader."""
        self.consumed_bytes += size

    def refused(self, reason: str) -> None:
        """A request was answered by the error of this reason (errors.py: a bounded set)."""
        self._refused[reason] += 1

    def gauge(self, name: str, documentation: str, value: Callable[[], float]) -> None:
        """Registers a value that is asked for at each scrape, by a thread that is not the loop's.

        `name` goes without `proglog_`.
        """
        assert name not in self._gauges, f"gauge {name} is registered twice"
        self._gauges[name] = (documentation, value)

    # --- what a scrape reads ---

    def collect(self) -> Iterator[Metric]:
        for name, documentation, value in (
            ("appended_records", "Records appended.", self.appended_records),
            ("appended_batches", "Batches appended.", self.appended_batches),
            ("appended_bytes", "Bytes of batches appended.", self.appended_bytes),
            ("consumed_bytes", "Stored bytes handed to readers.", self.consumed_bytes),
        ):
            yield CounterMetricFamily(f"proglog_{name}", documentation, value)
        refused = CounterMetricFamily(
            "proglog_refused", "Requests answered by an error.", labels=["reason"]
        )
        for reason, count in list(self._refused.items()):
            refused.add_metric([reason], count)
        yield refused
        for name, documentation, histogram in (
            ("produce_duration_seconds", "From proposal to answer.", self.produce_seconds),
            ("fdatasync_duration_seconds", "One write and fdatasync.", self.sync_seconds),
            ("write_group_bytes", "Bytes made durable together.", self.group_bytes),
            ("write_group_batches", "Batches made durable together.", self.group_batches),
        ):
            yield _family(f"proglog_{name}", documentation, histogram)
        for name, (documentation, read) in self._gauges.items():
            yield GaugeMetricFamily(f"proglog_{name}", documentation, read())


def _family(name: str, documentation: str, histogram: Histogram) -> HistogramMetricFamily:
    bounds = [*(f"{bound:g}" for bound in histogram.bounds), "+Inf"]
    buckets = list(zip(bounds, map(float, accumulate(histogram.counts)), strict=True))
    return HistogramMetricFamily(name, documentation, buckets, histogram.sum)


def anonymous_memory_bytes() -> int:
    """Resident memory of this process without file pages, as the kernel counts it."""
    for line in Path("/proc/self/status").read_text("ascii").splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    return 0
