"""A node's view as metrics: what Prometheus is told at a scrape, and costs nothing between two.

Labels are closed sets: the log, the servers of the configuration, the states of gossip.
"""

from __future__ import annotations

import platform
from collections import Counter
from collections.abc import Callable, Iterator

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from proglog.observability.view import View

_LOG = "default"
_ROLES = ("leader", "follower", "candidate", "pre-candidate", "learner")


class ViewCollector(Collector):
    """Asks for the newest view; there is none while the node starts."""

    def __init__(self, look: Callable[[], View | None]) -> None:
        self._look = look

    def collect(self) -> Iterator[Metric]:
        view = self._look()
        if view is None:
            return
        yield from _node(view)
        yield from _raft(view)
        yield from _peers(view)


def _gauge(name: str, meaning: str, value: float) -> Metric:
    family = GaugeMetricFamily(f"proglog_{name}", meaning, labels=["log"])
    family.add_metric([_LOG], value)
    return family


def _node(view: View) -> Iterator[Metric]:
    build = GaugeMetricFamily("proglog_build_info", "1.", labels=["version", "python"])
    build.add_metric([view.version, platform.python_version()], 1)
    yield build
    node = GaugeMetricFamily("proglog_node_info", "1.", labels=["cluster", "node"])
    node.add_metric([view.cluster, view.node], 1)
    yield node
    yield GaugeMetricFamily("proglog_ready", "Requests are welcome.", not view.not_ready)
    yield GaugeMetricFamily("proglog_disk_free_bytes", "Free for this process.", view.disk_free)
    yield GaugeMetricFamily("proglog_disk_size_bytes", "Size of the disk.", view.disk_total)
    gossip = GaugeMetricFamily(
        "proglog_membership_servers", "Servers by what gossip says of them.", labels=["status"]
    )
    for status, count in sorted(Counter(server.gossip for server in view.servers).items()):
        gossip.add_metric([status], count)
    yield gossip


def _raft(view: View) -> Iterator[Metric]:
    role = GaugeMetricFamily("proglog_raft_role", "1 for the role it has.", labels=["log", "role"])
    for name in _ROLES:
        role.add_metric([_LOG, name], view.role == name)
    yield role
    yield _gauge("raft_term", "Current term.", view.term)
    yield _gauge("raft_is_leader", "It leads.", view.role == "leader")
    yield _gauge("raft_has_leader", "It knows a leader.", bool(view.leader))
    yield _gauge("raft_commit_index", "Batches committed.", view.commit_index)
    yield _gauge("raft_applied_index", "Batches applied.", view.applied_index)
    yield _gauge("raft_voters", "Voters of the configuration.", len(view.voters))
    learners = len(view.servers) - len(view.voters)
    yield _gauge("raft_learners", "Learners of the configuration.", learners)
    yield _gauge("raft_voters_answering", "Voters that answer this node.", view.answering)
    yield _gauge("raft_voters_needed", "Voters that make a quorum.", view.needed)
    changes = CounterMetricFamily(
        "proglog_raft_leader_changes", "Leaders seen, but for the first.", labels=["log"]
    )
    changes.add_metric([_LOG], view.leader_changes)
    yield changes
    leaderless = CounterMetricFamily(
        "proglog_raft_leaderless_seconds", "Time without a known leader.", labels=["log"]
    )
    leaderless.add_metric([_LOG], view.leaderless_seconds)
    yield leaderless


def _peers(view: View) -> Iterator[Metric]:
    answers = GaugeMetricFamily(
        "proglog_raft_peer_answers", "1 where the server answers.", labels=["log", "peer"]
    )
    behind = GaugeMetricFamily(
        "proglog_raft_peer_behind_batches",
        "Batches that the leader has and the server lacks; told by the leader.",
        labels=["log", "peer"],
    )
    for server in view.servers:
        if server.here:
            continue
        answers.add_metric([_LOG, server.name], server.answers)
        if server.behind is not None:
            behind.add_metric([_LOG, server.name], server.behind)
    yield answers
    yield behind
