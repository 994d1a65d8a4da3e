"""The limits of the edge as metrics."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from proglog.grpc.budgets import LIMITS, Budgets


class LimitsCollector(Collector):
    """Asks at each scrape, by a thread that is not the loop's."""

    def __init__(self, budgets: Budgets) -> None:
        self._budgets = budgets

    def collect(self) -> Iterator[Metric]:
        most = GaugeMetricFamily("proglog_limit_max", "See docs/limits.md.", labels=["limit"])
        reached = CounterMetricFamily(
            "proglog_limit_reached", "How often a limit was reached.", labels=["limit"]
        )
        for limit in LIMITS:
            most.add_metric([limit.name], limit.value)
            reached.add_metric([limit.name], self._budgets.reached[limit.name])
        yield most
        yield reached
        yield GaugeMetricFamily(
            "proglog_edge_held_bytes", "Held for clients.", self._budgets.pool.used
        )
