"""Whose answers count, and of which term: faults that once no test saw."""

from __future__ import annotations

from proglog.raft import (
    AppendResponse,
    HardState,
    HeartbeatResponse,
    Raft,
    Role,
    VoteRequest,
)
from tests.raft.test_core import ack, drain, elect, make


def leader_with_learners() -> Raft:
    """Of the voters a, b, c, with the learners d and e; its no-op, of term 2, is committed."""
    raft = elect(make(learners="de", terms=(1,)))
    ack(raft, "b", 2)
    drain(raft)
    assert raft.status().commit == 2
    return raft


def answer(raft: Raft, sender: str, *, round_: int) -> None:
    raft.step(HeartbeatResponse(sender, "a", raft.status().term, round_))


def test_learners_confirm_no_read() -> None:
    raft = leader_with_learners()
    raft.request_read("ticket")
    drain(raft)
    round_ = raft._leader._reads.round
    for learner in "de":
        answer(raft, learner, round_=round_)
    assert [read for ready in drain(raft) for read in ready.reads] == []
    answer(raft, "b", round_=round_)
    ((read,),) = [ready.reads for ready in drain(raft) if ready.reads]
    assert (read.ticket, read.index) == ("ticket", 2)


def test_learners_are_no_quorum_that_a_leader_hears() -> None:
    raft = leader_with_learners()
    for tick in range(40):
        raft.tick()
        drain(raft)
        if raft.status().role is not Role.LEADER:
            break
        for learner in "de":
            answer(raft, learner, round_=raft._leader._reads.round)
    assert raft.status().role is Role.FOLLOWER
    assert tick < 25


def test_an_acknowledgement_of_an_earlier_term_proves_nothing() -> None:
    """What it acknowledged may have been cut since."""
    raft = elect(make(terms=(1,)))
    term, commit = raft.status().term, raft.status().commit
    raft.step(AppendResponse("b", "a", term - 1, 2))
    assert {peer.match for peer in raft.status().peers} == {0}
    assert raft.status().commit == commit
    ack(raft, "b", 2)
    assert raft.status().commit == 2


def test_who_gives_its_vote_waits_for_its_candidate() -> None:
    """Otherwise it would run a moment later, against the one that it has just elected. It was in
    that term already: a new one would have begun a new wait by itself."""
    for last_index, granted in ((1, True), (0, False)):
        raft = make(terms=(1,), hard=HardState(2))
        raft.tick()
        left = raft._timer.left
        raft.step(VoteRequest("b", "a", 2, last_index, last_index, False, False))
        drain(raft)
        assert (raft.status().voted_for == "b") is granted
        if granted:
            assert raft._timer.elapsed == 0
        else:
            assert raft._timer.left == left
