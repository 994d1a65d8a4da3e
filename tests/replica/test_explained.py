"""Why nobody leads, and what a change of role is called."""

from __future__ import annotations

import pytest

from proglog.raft.configuration import Configuration, Server
from proglog.raft.messages import Role, SoftState
from proglog.replica.explained import transition, why_no_leader

THREE = Configuration(tuple(Server(uuid, f"node-{uuid}", "") for uuid in "abc"))
F, P, C, L = Role.FOLLOWER, Role.PRE_CANDIDATE, Role.CANDIDATE, Role.LEADER


def said(reached: str, state: SoftState = SoftState(P, None, 3)) -> str:
    return why_no_leader(state, THREE, "a", lambda uuid: uuid in reached)


def test_why_nobody_leads_names_who_is_missing() -> None:
    assert said("") == (
        "no leader: 1 of 3 voters answers, 2 are needed (node-b, node-c: no connection)"
    )
    assert said("b") == "no leader: 2 of 3 voters answer, which is enough"


def test_nothing_is_said_where_somebody_leads_or_there_is_no_cluster() -> None:
    assert said("", SoftState(F, "b", 3)) == ""
    assert said("", SoftState(L, "a", 3)) == ""
    assert why_no_leader(SoftState(F, None, 0), Configuration(), "a", lambda _: False) == ""


@pytest.mark.parametrize(
    ("before", "after", "told"),
    [
        ((F, None, 1), (P, None, 1), "asks whether it would get votes"),
        ((P, None, 1), (C, None, 2), "asks for votes"),
        ((C, None, 2), (L, "a", 2), "leading"),
        ((C, None, 2), (F, None, 2), "not elected"),
        ((C, None, 2), (F, "b", 2), "following"),
        ((F, "b", 2), (P, None, 2), "without a leader"),
        ((L, "a", 2), (F, None, 2), "leads no more"),
        ((L, "a", 2), (F, "b", 3), "following"),
        ((P, None, 2), (F, None, 2), None),
    ],
)
def test_each_change_of_role_has_a_name(
    before: tuple[Role, str | None, int], after: tuple[Role, str | None, int], told: str | None
) -> None:
    found = transition(SoftState(*before), SoftState(*after), str.upper, is_member=True)
    assert (found[0] if found else None) == told


def test_a_leader_says_why_it_leads_no_more() -> None:
    leads = SoftState(L, "a", 2)

    def why(term: int, *, is_member: bool = True) -> object:
        found = transition(leads, SoftState(F, None, term), str, is_member=is_member)
        assert found is not None
        return found[1]["why"]

    assert why(3) == "a later term began"
    assert why(2) == "no majority answered for an election timeout, or it resigned"
    assert why(2, is_member=False) == "it is no server of the cluster any more"
