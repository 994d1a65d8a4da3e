"""The view as Prometheus reads it."""

from __future__ import annotations

from dataclasses import replace

from prometheus_client import CollectorRegistry
from prometheus_client.openmetrics.exposition import generate_latest
from prometheus_client.openmetrics.parser import text_string_to_metric_families

from proglog.observability.exposition import ViewCollector
from proglog.observability.view import View
from tests.observability.test_view import WELL, server, without


def scraped(view: View | None) -> dict[tuple[str, ...], float]:
    registry = CollectorRegistry()
    registry.register(ViewCollector(lambda: view))
    text = generate_latest(registry).decode()
    return {
        (sample.name, *(value for name, value in sorted(sample.labels.items()) if name != "log")): (
            sample.value
        )
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_what_alerts_are_made_of() -> None:
    learner = server("n3", votes=False, behind=7, gossip="left", answers=False)
    found = scraped(without(replace(WELL, servers=(*WELL.servers, learner)), "n2"))
    assert found["proglog_raft_is_leader",] == 1
    assert found["proglog_raft_role", "leader"] == 1
    assert found["proglog_raft_role", "follower"] == 0
    assert found["proglog_raft_voters_answering",] - found["proglog_raft_voters_needed",] == 0
    assert found["proglog_raft_learners",] == 1
    assert found["proglog_raft_peer_behind_batches", "n3"] == 7
    assert ("proglog_raft_peer_behind_batches", "n0") not in found
    assert found["proglog_raft_peer_answers", "n2"] == 0
    assert found["proglog_membership_servers", "alive"] == 2
    assert found["proglog_raft_leader_changes_total",] == 2
    assert found["proglog_raft_leaderless_seconds_total",] == 1.5
    assert found["proglog_ready",] == 1
    assert found["proglog_node_info", "c", "n0"] == 1


def test_a_node_that_starts_tells_nothing_yet() -> None:
    assert scraped(None) == {}
