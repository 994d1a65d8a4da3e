"""What a node sees, in the words of an operator."""

from __future__ import annotations

from dataclasses import replace

import pytest

from proglog.observability.view import Mood, ServerView, View, changes, explain


def server(name: str, **facts) -> ServerView:
    told = {
        "address": f"{name}:8400",
        "leads": False,
        "votes": True,
        "here": False,
        "gossip": "alive",
        "behind": 0,
        "answers": True,
    }
    return ServerView(name=name, **(told | facts))


WELL = View(
    at=1_000,
    node="n0",
    version="1",
    started_at=0,
    cluster="c",
    cluster_id="id",
    role="leader",
    term=7,
    leader="n0",
    leader_address="n0:8400",
    servers=(server("n0", here=True, leads=True), server("n1"), server("n2")),
    commit_index=9,
    applied_index=9,
    earliest=0,
    next=100,
    bytes=1000,
    disk_free=50,
    disk_total=100,
    leader_changes=2,
    leaderless_seconds=1.5,
    not_ready="",
    not_live="",
)


def without(view: View, *silent: str, **facts) -> View:
    servers = tuple(
        replace(one, answers=False, gossip="failed") if one.name in silent else one
        for one in view.servers
    )
    return replace(view, servers=servers, **facts)


@pytest.mark.parametrize(
    ("view", "mood", "title", "text"),
    [
        (WELL, Mood.OK, "All is well", "n0 leads term 7. Every acknowledged record is on at least"),
        (
            replace(WELL, servers=WELL.servers[:1]),
            Mood.OK,
            "All is well",
            "n0 leads term 7. Every acknowledged record is on its disk.",
        ),
        (
            without(WELL, "n2"),
            Mood.WARN,
            "n2 does not answer",
            "Writes go on: 2 of 3 voters answer, enough. If one more fails, writes stop.",
        ),
        (
            without(WELL, "n1", "n2", leader=""),
            Mood.BAD,
            "No leader: nothing can be written",
            "1 of 3 voters answers, 2 are needed.",
        ),
        (
            replace(WELL, leader=""),
            Mood.BAD,
            "No leader: nothing can be written",
            "3 of 3 voters answer, enough to elect one.",
        ),
        (
            replace(WELL, servers=(), not_ready="not ready: 2 of 3 nodes are here"),
            Mood.BAD,
            "The cluster is not formed yet",
            "not ready: 2 of 3 nodes are here",
        ),
        (replace(WELL, disk_free=5), Mood.WARN, "n0 has 5 % of its disk left", "Writes go on"),
        (replace(WELL, not_live="a part failed"), Mood.BAD, "n0 is about to end", "a part failed"),
    ],
)
def test_what_an_operator_reads_first(view: View, mood: Mood, title: str, text: str) -> None:
    verdict = explain(view)
    assert (verdict.mood, verdict.title) == (mood, title)
    assert verdict.text.startswith(text)


def test_five_voters_may_lose_two() -> None:
    five = replace(WELL, servers=(*WELL.servers, server("n3"), server("n4")))
    assert "1 more may fail" in explain(without(five, "n4")).text
    assert "If one more fails, writes stop" in explain(without(five, "n3", "n4")).text


def test_a_learner_that_is_silent_or_behind_worries_nobody() -> None:
    learner = server("n3", votes=False, behind=100_000)
    verdict = explain(replace(WELL, servers=(*WELL.servers, learner)))
    assert verdict.mood == Mood.OK
    assert [reason.what for reason in verdict.reasons] == ["n3 is 100000 batches behind"]
    silent = replace(learner, answers=False)
    assert explain(replace(WELL, servers=(*WELL.servers, silent))).mood == Mood.OK


@pytest.mark.parametrize(
    ("before", "after", "told"),
    [
        (WELL, WELL, []),
        (WELL, replace(WELL, leader="n1", term=8), ["n1 leads"]),
        (WELL, replace(WELL, leader=""), ["No leader"]),
        (WELL, without(WELL, "n2"), ["n2 does not answer"]),
        (without(WELL, "n2"), WELL, ["n2 answers again"]),
        (replace(WELL, servers=WELL.servers[:2]), WELL, ["n2 was added"]),
        (WELL, replace(WELL, servers=WELL.servers[:2]), ["n2 was removed"]),
        (WELL, replace(WELL, earliest=50), ["Retention moved the start"]),
        (WELL, replace(WELL, not_ready="stopping"), ["n0 is not ready"]),
        (
            replace(WELL, servers=(*WELL.servers[:2], server("n2", votes=False))),
            WELL,
            ["n2 is a voter now"],
        ),
    ],
)
def test_what_has_changed(before: View, after: View, told: list[str]) -> None:
    assert [event.text for event in changes(before, after)] == told
