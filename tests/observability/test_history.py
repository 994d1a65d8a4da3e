"""The last quarter of an hour."""

from __future__ import annotations

import math

from proglog.observability import history
from proglog.observability.history import History, quantile
from proglog.observability.metrics import Metrics
from proglog.observability.view import Event, Mood


def test_rates_are_a_seconds_and_quantiles_those_of_the_second() -> None:
    metrics, records = Metrics(), [1000]
    told = History(metrics, lambda: records[0])
    records[0] += 300
    metrics.group_written(3, 6000, 0.002)
    metrics.consumed(50)
    metrics.appended(300, 6000, 0.004)
    sample = told.sample(2.0, 0.1)
    assert sample["produced_records"] == 150
    assert sample["produced_bytes"] == 3000
    assert sample["consumed_bytes"] == 25
    assert 0.0025 < sample["commit_p50"] <= 0.005
    assert sample["loop_lag"] == 0.1
    # Nothing since: no rate, and no latency rather than one of 0.
    sample = told.sample(1.0, 0.0)
    assert sample["produced_records"] == 0
    assert math.isnan(sample["commit_p99"])
    assert told.samples()["produced_records"] == [150, 0]


def test_the_oldest_goes_first(monkeypatch) -> None:
    monkeypatch.setattr(history, "SAMPLES_MAX", 3)
    told = History(Metrics(), lambda: 0)
    for lag in range(5):
        told.sample(1.0, lag)
    assert told.samples()["loop_lag"] == [2, 3, 4]


def test_events_are_told_from_a_number_on() -> None:
    told = History(Metrics(), lambda: 0)
    for at in range(history.EVENTS_MAX + 5):
        told.add(Event(at, Mood.INFO, "x", ""))
    newest = told.events_told
    assert [number for number, _ in told.events(newest - 2)] == [newest - 1, newest]
    assert len(list(told.events())) == history.EVENTS_MAX
    assert not list(told.events(newest + 7))


def test_quantiles_are_as_prometheus_has_them() -> None:
    bounds = (1.0, 2.0, 4.0)
    assert quantile(bounds, [0, 10, 0, 0], 0.5) == 1.5
    assert quantile(bounds, [10, 0, 10, 0], 0.75) == 3.0
    assert quantile(bounds, [0, 0, 0, 5], 0.5) == 4.0
    assert math.isnan(quantile(bounds, [0, 0, 0, 0], 0.5))
