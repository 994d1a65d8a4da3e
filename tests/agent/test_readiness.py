"""The truth table of readiness."""

from __future__ import annotations

import pytest

from proglog.agent.readiness import Facts, why_not_ready


@pytest.mark.parametrize(
    ("facts", "why"),
    [
        (Facts(), ""),
        (Facts(stopping=True, draining=True), "it is stopping"),
        (Facts(draining=True), "it is drained, to be stopped"),
        (Facts(doubt="older than what n2 knows"), "older than what n2 knows"),
        (Facts(has_servers=False, is_server=False, has_leader=False), "it belongs to no cluster"),
        (Facts(has_servers=False, is_server=False, forming="2 of 3 are here"), "2 of 3 are here"),
        (Facts(is_server=False, has_its_place=False), "it is no server of its cluster"),
        (Facts(has_leader=False, leaderless_seconds=12.2), "it has known no leader for 12 s"),
        (Facts(has_its_place=False), "it is a learner that catches up"),
        (Facts(behind=True), "it catches up with the leader"),
        (Facts(leads_unapplied=True), "it is about to lead"),
    ],
)
def test_a_node_says_why_requests_should_go_elsewhere(facts: Facts, why: str) -> None:
    said = why_not_ready(facts)
    assert said.startswith(why)
    assert bool(said) == bool(why)
