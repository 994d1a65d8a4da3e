"""Metrics: plain numbers in, Prometheus samples out."""

from __future__ import annotations

import pytest
from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from proglog.observability.metrics import Histogram, Metrics


def samples(metrics: Metrics) -> dict[str, float]:
    text = generate_latest(metrics.registry).decode()
    return {
        sample.name + "".join(f"[{value}]" for value in sample.labels.values()): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_what_is_counted_is_exposed() -> None:
    metrics = Metrics()
    metrics.appended(10, 2000, 0.002)
    metrics.appended(1, 100, 0.3)
    metrics.group_written(2, 2100, 0.0002)
    metrics.consumed(500)
    metrics.refused("DISK_FULL")
    metrics.refused("DISK_FULL")
    found = samples(metrics)
    assert found["proglog_appended_records_total"] == 11
    assert found["proglog_appended_batches_total"] == 2
    assert found["proglog_appended_bytes_total"] == 2100
    assert found["proglog_consumed_bytes_total"] == 500
    assert found["proglog_refused_total[DISK_FULL]"] == 2
    assert found["proglog_produce_duration_seconds_count"] == 2
    assert found["proglog_produce_duration_seconds_sum"] == pytest.approx(0.302)
    assert found["proglog_produce_duration_seconds_bucket[0.001]"] == 0
    assert found["proglog_produce_duration_seconds_bucket[0.0025]"] == 1
    assert found["proglog_produce_duration_seconds_bucket[+Inf]"] == 2
    assert found["proglog_fdatasync_duration_seconds_count"] == 1
    assert found["proglog_write_group_bytes_sum"] == 2100
    assert found["proglog_write_group_batches_sum"] == 2
    assert found["process_resident_memory_bytes"] > 0


def test_gauges_are_asked_at_each_scrape() -> None:
    metrics = Metrics()
    value = 1
    metrics.gauge("log_next_offset", "Next offset.", lambda: value)
    assert samples(metrics)["proglog_log_next_offset"] == 1
    value = 2
    assert samples(metrics)["proglog_log_next_offset"] == 2
    with pytest.raises(AssertionError):
        metrics.gauge("log_next_offset", "Again.", lambda: value)


def test_nodes_of_one_process_count_apart() -> None:
    one, other = Metrics(), Metrics()
    one.consumed(1)
    assert samples(one)["proglog_consumed_bytes_total"] == 1
    assert samples(other)["proglog_consumed_bytes_total"] == 0


def test_a_bound_belongs_to_its_bucket() -> None:
    histogram = Histogram((1.0, 2.0))
    for value in (0.5, 1.0, 1.5, 2.0, 2.5):
        histogram.observe(value)
    assert histogram.counts == [2, 2, 1]
