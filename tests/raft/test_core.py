"""Rules of the paper and of the seam, each by name."""

from __future__ import annotations

import random

import pytest

from proglog.errors import ChangeRefused, NotLeader, Overloaded, Unavailable
from proglog.raft import (
    AddLearner,
    AppendRequest,
    AppendResponse,
    Configuration,
    Entry,
    HardState,
    Heartbeat,
    HeartbeatResponse,
    InstallSnapshot,
    LogView,
    Promote,
    Raft,
    RaftConfig,
    Ready,
    Remove,
    Role,
    Server,
    TimeoutNow,
    VoteRequest,
    VoteResponse,
)
from proglog.raft.timer import ElectionTimer

SERVERS = {x: Server(x, x) for x in "abcde"}


def make(
    me: str = "a",
    voters: str = "abc",
    terms: tuple[int, ...] = (),
    hard: HardState | None = None,
    learners: str = "",
    commit: int = 0,
    **config: int,
) -> Raft:
    runs: list[tuple[int, int]] = []
    for i, t in enumerate(terms, 1):
        if not runs or runs[-1][1] != t:
            runs.append((i, t))
    members = Configuration(tuple(SERVERS[v] for v in voters), tuple(SERVERS[x] for x in learners))
    return Raft(
        id=me,
        config=RaftConfig(**{"heartbeat_ticks": 1, "election_ticks": 10} | config),
        hard_state=hard or HardState(terms[-1] if terms else 0),
        log=LogView(runs=runs, last_index=len(terms), size_of=lambda _: 10),
        configurations=[(0, members)],
        commit=commit,
        rng=random.Random(1),
    )


def drain(raft: Raft, *, disk: bool = True) -> list[Ready]:
    """All Readys; with `disk` every write is durable at once."""
    out = []
    while (ready := raft.ready()) is not None:
        out.append(ready)
        if disk and ready.write:
            raft.persisted(ready.write)
    return out


def sent(readys: list[Ready], kind: type | None = None) -> list:
    messages = [m for r in readys for m in (*r.messages, *r.messages_after_persist)]
    return [m for m in messages if kind is None or isinstance(m, kind)]


def elect(raft: Raft, *, disk: bool = True) -> Raft:
    """Make it leader by the votes of everybody; nothing it sent is answered."""
    raft.step(TimeoutNow("x", raft.status().id, raft.status().term))
    drain(raft, disk=disk)
    status = raft.status()
    for voter in status.configuration.voter_ids:
        raft.step(VoteResponse(voter, status.id, status.term, True, False))
    drain(raft, disk=disk)
    assert raft.status().role is Role.LEADER
    return raft


def ack(raft: Raft, sender: str, index: int) -> None:
    raft.step(AppendResponse(sender, raft.status().id, raft.status().term, index))


def follow(raft: Raft, term: int, prev: tuple[int, int], *terms: int, commit: int = 0) -> None:
    """An append from b."""
    entries = tuple(Entry(prev[0] + i, t, 10) for i, t in enumerate(terms, 1))
    raft.step(
        AppendRequest("b", raft.status().id, term, *prev, prev[0] + len(terms), commit, entries)
    )


# --- elections -----------------------------------------------------------------------------------


def test_follower_starts_an_election_after_a_random_timeout_in_T_to_2T():
    seen = set()
    for seed in range(200):
        raft = make()
        raft._timer = ElectionTimer(10, random.Random(seed))
        ticks = 0
        while raft.status().role is Role.FOLLOWER:
            raft.tick()
            ticks += 1
        seen.add(ticks)
    assert seen == set(range(10, 20))


def test_the_timeout_is_drawn_again_at_every_reset():
    raft = make()
    timeouts = set()
    for _ in range(100):
        raft.step(Heartbeat("b", "a", 1, 0, 1))
        timeouts.add(raft._timer.timeout)
    assert len(timeouts) == 10


def test_sole_voter_elects_itself_at_its_first_tick_and_commits_only_what_is_durable():
    raft = make(voters="a")
    raft.tick()
    (ready,) = drain(raft, disk=False)
    assert raft.status().role is Role.LEADER
    assert ready.hard_state == HardState(1, "a")
    assert ready.commit is None
    raft.persisted(ready.write)
    (ready,) = drain(raft)
    assert ready.commit == 1


def test_sole_voter_sends_nothing_to_its_learner_before_its_term_is_durable():
    raft = make(voters="a", learners="b")
    raft.tick()
    (ready,) = drain(raft, disk=False)
    assert ready.messages == []
    assert [type(m) for m in ready.messages_after_persist] == [AppendRequest]


def test_votes_are_requested_only_after_the_own_vote_is_durable():
    raft = make()
    raft.step(TimeoutNow("x", "a", 0))
    (ready,) = drain(raft)
    assert ready.hard_state == HardState(1, "a")
    assert ready.messages == []
    assert {type(m) for m in ready.messages_after_persist} == {VoteRequest}


def test_pre_vote_changes_neither_term_nor_vote_on_either_side():
    raft = make()
    raft._timer.elapsed = 100
    raft.tick()
    readys = drain(raft)
    assert all(r.hard_state is None for r in readys)
    assert {m.term for m in sent(readys, VoteRequest)} == {1}
    other = make("b")
    other.step(VoteRequest("a", "b", 1, 0, 0, True, False))
    (ready,) = drain(other)
    assert ready.hard_state is None
    assert sent([ready]) == [VoteResponse("b", "a", 1, True, True)]


def test_a_rejected_pre_vote_carries_the_term_of_the_one_who_rejects():
    raft = make("b", terms=(1, 4), hard=HardState(4))
    raft.step(VoteRequest("a", "b", 5, 2, 1, True, False))
    assert sent(drain(raft)) == [VoteResponse("b", "a", 4, False, True)]
    raft.step(VoteRequest("a", "b", 2, 2, 1, True, False))
    assert sent(drain(raft)) == [VoteResponse("b", "a", 4, False, True)]


def test_one_vote_a_term_and_the_same_answer_when_asked_again():
    raft = make()
    for _ in range(2):
        raft.step(VoteRequest("b", "a", 1, 0, 0, False, False))
        assert sent(drain(raft)) == [VoteResponse("a", "b", 1, True, False)]
    raft.step(VoteRequest("c", "a", 1, 0, 0, False, False))
    assert sent(drain(raft)) == [VoteResponse("a", "c", 1, False, False)]
    raft.step(VoteRequest("c", "a", 2, 0, 0, False, False))
    assert sent(drain(raft)) == [VoteResponse("a", "c", 2, True, False)]


def test_vote_survives_a_restart():
    raft = make(hard=HardState(3, "b"))
    raft.step(VoteRequest("c", "a", 3, 9, 3, False, False))
    assert not sent(drain(raft))[0].granted


@pytest.mark.parametrize(("last", "granted"), [((2, 2), True), ((9, 1), False), ((1, 3), True)])
def test_vote_needs_an_up_to_date_log_last_term_first(last, granted):
    raft = make(terms=(1, 2))
    raft.step(VoteRequest("b", "a", 7, last[0], last[1], False, False))
    assert sent(drain(raft))[0].granted is granted


def test_a_follower_that_hears_its_leader_ignores_candidates_unless_it_is_a_transfer():
    raft = make()
    raft.step(Heartbeat("b", "a", 1, 0, 1))
    drain(raft)
    raft.step(VoteRequest("c", "a", 9, 9, 9, False, False))
    assert drain(raft) == []
    assert raft.status().term == 1
    raft.step(VoteRequest("c", "a", 9, 9, 9, False, True))
    assert sent(drain(raft))[0].granted


def ticks_until_it_runs(raft: Raft, most: int = 30) -> int:
    for tick in range(1, most + 1):
        raft.tick()
        if raft.status().role is Role.PRE_CANDIDATE:
            return tick
    raise AssertionError("it does not run")


def test_when_the_leader_is_disconnected_the_voters_run_soon_and_in_turn():
    ticks = []
    for me in "ace":
        raft = make(me, "abcde", (1,), heartbeat_ticks=3)
        follow(raft, 1, (1, 1))
        raft.disconnected("d")
        raft.disconnected("b")
        ticks.append(ticks_until_it_runs(raft))
    assert ticks == [2, 2 + 3, 2 + 3 * 3]  # between them d


def test_a_disconnected_leader_is_protected_no_more_until_it_is_heard_again():
    raft, request = make("c", terms=(1,)), VoteRequest("a", "c", 2, 1, 1, True, False)
    follow(raft, 1, (1, 1))
    raft.disconnected("a")
    raft.step(request)
    assert not sent(drain(raft), VoteResponse)
    raft.disconnected("b")
    raft.step(request)
    (answer,) = sent(drain(raft), VoteResponse)
    assert answer.granted
    follow(raft, 1, (1, 1))
    drain(raft)
    raft.step(request)
    assert not sent(drain(raft), VoteResponse)
    assert ticks_until_it_runs(raft) >= 10


def test_a_connection_that_comes_and_goes_does_not_put_off_an_election():
    raft = make("c", terms=(1,), heartbeat_ticks=5)
    follow(raft, 1, (1, 1))
    for _ in range(7):
        raft.disconnected("b")
        raft.tick()
    assert raft.status().role is Role.PRE_CANDIDATE


def test_a_pre_candidate_asks_again_who_is_reached_again_and_has_not_answered():
    raft = make(voters="abcde", terms=(1,))
    raft._timer.elapsed = raft._timer.timeout
    raft.tick()
    (asked, *_) = sent(drain(raft), VoteRequest)
    left = raft._timer.left
    raft.step(VoteResponse("b", "a", 2, True, True))
    for peer in "bcx":
        raft.reconnected(peer)
    assert sent(drain(raft)) == [asked._replace(to="c")]
    assert raft._timer.left == left
    raft.step(VoteResponse("d", "a", 2, True, True))
    assert raft.status().role is Role.CANDIDATE
    drain(raft)
    raft.reconnected("e")
    assert not drain(raft), "a vote is asked for once"


def test_nobody_asks_again_without_having_asked():
    for raft in (follow_of_b(), elect(make("a"))):
        drain(raft)
        raft.reconnected("b")
        assert not sent(drain(raft), VoteRequest)


def follow_of_b() -> Raft:
    raft = make(terms=(1,))
    raft.step(Heartbeat("b", "a", 1, 0, 1))
    return raft


# --- ticks that are left out ---------------------------------------------------------------------


def run_for(raft: Raft, ticks: int, *, sleeps: bool) -> list[tuple[int, Role, list[object]]]:
    """What a server does, and at which tick, left alone for as long as it may be."""
    done, now = [], 0
    while now < ticks:
        step = raft.quiet_ticks() + 1 if sleeps else 1
        now += step
        raft.tick(step)
        if messages := sent(drain(raft)):
            done.append((now, raft.status().role, messages))
    return done


@pytest.mark.parametrize("heartbeat_ticks", [1, 2, 5])
@pytest.mark.parametrize("what", ["follower", "leader", "learner", "alone"])
def test_ticks_that_are_left_out_would_have_done_nothing(what: str, heartbeat_ticks: int):
    def server() -> Raft:
        if what == "leader":
            return elect(make(heartbeat_ticks=heartbeat_ticks, terms=(1,)))
        if what == "learner":
            return make("d", learners="d", heartbeat_ticks=heartbeat_ticks)
        return make(voters="a" if what == "alone" else "abc", heartbeat_ticks=heartbeat_ticks)

    assert run_for(server(), 60, sleeps=True) == run_for(server(), 60, sleeps=False)


def test_an_idle_server_is_left_alone_for_a_heartbeat():
    leader, follower = elect(make(heartbeat_ticks=5)), make(heartbeat_ticks=5)
    follower.tick()
    assert leader.quiet_ticks() == follower.quiet_ticks() == 4
    leader.step(AppendResponse("b", "a", 1, 1))
    drain(leader)
    assert leader.quiet_ticks() == 0, "that it is committed is told with the next tick"


def test_ticks_before_a_leader_was_heard_do_not_count():
    raft = make(terms=(1,), heartbeat_ticks=5)
    raft.tick(5)
    raft.step(Heartbeat("b", "a", 1, 0, 1))
    raft.tick(5)
    assert raft._timer.elapsed == 1
    raft.tick(5)
    assert raft._timer.elapsed == 6


def test_a_leader_and_a_learner_do_not_run_when_somebody_is_disconnected():
    leader, learner = elect(make("a")), make("d", learners="d", terms=(1,))
    leader.disconnected("b")
    follow(learner, 1, (1, 1))
    learner.disconnected("b")
    for raft, role in ((leader, Role.LEADER), (learner, Role.FOLLOWER)):
        for _ in range(5):
            raft.tick()
        assert raft.status().role is role


def test_a_learner_votes_but_does_not_run():
    raft = make("d", learners="d")
    raft.step(VoteRequest("b", "d", 1, 0, 0, False, False))
    assert sent(drain(raft))[0].granted
    for _ in range(100):
        raft.tick()
    raft.step(TimeoutNow("b", "d", 1))
    assert drain(raft) == []


def test_votes_of_non_members_and_learners_do_not_count():
    raft = make(voters="ab", learners="c")
    raft.step(TimeoutNow("b", "a", 0))
    drain(raft)
    for stranger in "cde":
        raft.step(VoteResponse(stranger, "a", 1, True, False))
    assert raft.status().role is Role.CANDIDATE
    raft.step(VoteResponse("b", "a", 1, True, False))
    assert raft.status().role is Role.LEADER


def test_a_message_for_another_uuid_is_dropped():
    raft = make()
    raft.step(VoteRequest("b", "a-before-its-disk-was-lost", 5, 9, 9, False, False))
    assert drain(raft) == []


def test_a_server_that_may_not_campaign_does_not():
    raft = make()
    raft.may_campaign = False
    for _ in range(100):
        raft.tick()
    raft.step(TimeoutNow("b", "a", 0))
    assert drain(raft) == []


def test_a_leader_steps_down_when_it_hears_no_quorum_for_an_election_timeout():
    raft = elect(make())
    for _ in range(30):
        raft.tick()
        raft.step(HeartbeatResponse("b", "a", 1, 1))
    assert raft.status().role is Role.LEADER
    for _ in range(20):
        raft.tick()
    assert raft.status().role is Role.FOLLOWER
    assert raft.status().term == 1


def test_a_leader_that_resigns_names_nobody_and_may_not_run():
    raft = elect(make())
    raft.request_read("ticket")
    raft.may_campaign = False
    raft.resign()
    (ready,) = drain(raft)
    assert ready.soft_state == (Role.FOLLOWER, None, 1)
    assert ready.reads == [("ticket", None)]
    for _ in range(50):
        raft.tick()
    assert not drain(raft)
    raft.resign()
    assert not drain(raft)


def test_a_leader_of_an_old_term_is_told_the_term():
    raft = make(hard=HardState(5))
    raft.step(Heartbeat("b", "a", 3, 0, 8))
    assert sent(drain(raft)) == [HeartbeatResponse("a", "b", 5, 0)]


def test_a_new_leader_appends_a_no_op():
    raft = make(terms=(1, 1))
    raft.step(TimeoutNow("b", "a", 1))
    drain(raft)
    raft.step(VoteResponse("b", "a", 2, True, False))
    readys = drain(raft)
    assert [e for r in readys for e in r.entries] == [Entry(3, 2, 0)]


# --- followers -----------------------------------------------------------------------------------


def test_ack_waits_for_the_disk():
    raft = make()
    follow(raft, 1, (0, 0), 1, 1)
    (ready,) = drain(raft, disk=False)
    assert sent([ready]) == []
    raft.persisted(ready.write)
    assert sent(drain(raft)) == [AppendResponse("a", "b", 1, 2)]


def test_what_is_durable_is_acked_only_as_far_as_it_is_verified():
    raft = make(terms=(1, 1, 1, 1))
    follow(raft, 2, (1, 1), 1)
    assert sent(drain(raft)) == [AppendResponse("a", "b", 2, 2)]
    follow(raft, 3, (1, 1))  # another leader: verified anew
    assert sent(drain(raft)) == [AppendResponse("a", "b", 3, 1)]


def test_a_late_shorter_append_cuts_nothing():
    raft = make()
    follow(raft, 1, (0, 0), 1, 1, 1)
    drain(raft)
    follow(raft, 1, (0, 0), 1)
    (ready,) = drain(raft)
    assert ready.truncate_from is None
    assert raft.status().last_index == 3


def test_a_conflict_cuts_from_the_first_entry_of_another_term():
    raft = make(terms=(1, 1, 1))
    follow(raft, 2, (0, 0), 1, 2)
    readys = drain(raft)
    assert [r.truncate_from for r in readys if r.write] == [2]
    assert [e for r in readys for e in r.entries] == [Entry(2, 2, 10)]


def test_what_is_committed_is_never_cut():
    raft = make(terms=(1, 1), commit=2)
    follow(raft, 2, (2, 1), 2)
    with pytest.raises(AssertionError):
        raft._state.truncate(2)


def test_follower_commits_no_further_than_the_last_new_entry():
    raft = make(terms=(1, 1, 1))
    follow(raft, 2, (0, 0), 1, commit=3)
    assert [r.commit for r in drain(raft) if r.commit] == [1]


def test_rejection_hints_the_last_place_that_may_match():
    raft = make(terms=(1, 1, 2, 2, 3))
    follow(raft, 5, (5, 2), 5)
    assert sent(drain(raft)) == [
        AppendResponse("a", "b", 5, 5, rejected=True, hint_index=4, hint_term=2)
    ]
    follow(raft, 5, (9, 5), 5)
    assert sent(drain(raft)) == [
        AppendResponse("a", "b", 5, 9, rejected=True, hint_index=5, hint_term=3)
    ]


def test_heartbeat_beyond_the_log_is_a_broken_promise():
    raft = make(terms=(1,))
    with pytest.raises(AssertionError, match="were lost here"):
        raft.step(Heartbeat("b", "a", 1, 5, 1))


def test_two_leaders_in_a_term_are_a_broken_promise():
    raft = elect(make())
    with pytest.raises(AssertionError, match="two leaders"):
        raft.step(Heartbeat("b", "a", 1, 0, 1))


def test_a_candidate_follows_a_leader_of_its_own_term():
    raft = make()
    raft.step(TimeoutNow("b", "a", 0))
    follow(raft, 1, (0, 0), 1)
    assert raft.status().role is Role.FOLLOWER
    assert raft.status().leader == "b"


# --- snapshots -----------------------------------------------------------------------------------

MEMBERS = Configuration(tuple(SERVERS[x] for x in "abd"))


def test_a_snapshot_changes_nothing_until_it_is_installed():
    raft = make(terms=(1, 1))
    raft.step(InstallSnapshot("b", "a", 3, 9, 2, MEMBERS))
    (ready,) = drain(raft)
    assert ready.snapshot is not None
    assert sent([ready]) == []
    follow(raft, 3, (9, 2), 3)  # dropped, asked again later
    assert drain(raft) == []
    raft.snapshot_installed(9, 2)
    (ready,) = drain(raft)
    assert (ready.commit, ready.configuration) == (9, (9, MEMBERS))
    assert sent([ready]) == [AppendResponse("a", "b", 3, 9)]
    assert (raft.status().base_index, raft.status().last_index) == (9, 9)


def test_a_snapshot_that_matches_keeps_the_log_behind_it():
    raft = make(terms=(1, 1, 1, 1))
    raft.step(InstallSnapshot("b", "a", 2, 3, 1, MEMBERS))
    (ready,) = drain(raft)
    assert ready.snapshot is None
    assert ready.commit == 3
    assert raft.status().last_index == 4
    assert sent([ready]) == [AppendResponse("a", "b", 2, 3)]


def test_an_old_snapshot_is_ignored():
    raft = make(terms=(1, 1, 1), commit=3)
    raft.step(InstallSnapshot("b", "a", 2, 2, 1, MEMBERS))
    (ready,) = drain(raft)
    assert (ready.snapshot, ready.commit) == (None, None)


def test_a_server_does_not_run_while_it_installs_a_snapshot():
    raft = make(terms=(1,))
    raft.step(InstallSnapshot("b", "a", 3, 9, 2, MEMBERS))
    drain(raft)
    for _ in range(100):
        raft.tick()
    raft.step(TimeoutNow("b", "a", 3))
    assert drain(raft) == []


def test_a_lost_snapshot_is_sent_again():
    raft = elect(make(terms=(1, 1), commit=2, snapshot_ticks_max=20))
    raft.compacted(2)
    for _ in range(2):
        raft.step(HeartbeatResponse("b", "a", 2, 0))
        raft.step(AppendResponse("b", "a", 2, 2, rejected=True))
        assert len(sent(drain(raft), InstallSnapshot)) == 1
        for _ in range(20):
            raft.tick()
            raft.step(HeartbeatResponse("c", "a", 2, 0))
        assert len(sent(drain(raft), AppendRequest)) >= 1


# --- leaders -------------------------------------------------------------------------------------


def test_leader_commits_by_counting_only_what_is_of_its_term():
    raft = elect(make(terms=(1, 1)))
    ack(raft, "b", 2)
    assert raft.status().commit == 0
    ack(raft, "b", 3)
    assert raft.status().commit == 3


def test_the_leaders_own_disk_counts_when_it_is_done():
    raft = elect(make(voters="ab"), disk=False)
    ack(raft, "b", 1)
    assert raft.status().commit == 0
    raft.persisted(1)
    assert raft.status().commit == 1


def test_followers_may_commit_what_the_leader_has_not_yet_on_disk():
    raft = elect(make(), disk=False)
    ack(raft, "b", 1)
    ack(raft, "c", 1)
    assert raft.status().commit == 1
    assert raft.status().durable == 0


def test_proposals_between_two_readys_travel_in_one_append_a_follower():
    raft = elect(make())
    ack(raft, "b", 1)
    ack(raft, "c", 1)
    drain(raft)
    assert raft.propose([5]) == (2, 1)
    assert raft.propose([5, 5]) == (3, 1)
    readys = drain(raft)
    assert [(m.to, m.prev_index, m.last_index) for m in sent(readys, AppendRequest)] == [
        ("b", 1, 4),
        ("c", 1, 4),
    ]
    assert all(m.entries == () for m in sent(readys, AppendRequest))


def test_appends_are_bounded_in_bytes_and_in_flight():
    raft = elect(make(append_bytes_max=20, inflight_bytes_max=40, inflight_messages_max=9))
    ack(raft, "b", 1)
    drain(raft)
    raft.propose([10] * 20)
    ranges = [(m.prev_index, m.last_index) for m in sent(drain(raft), AppendRequest)]
    assert ranges == [(1, 3), (3, 5)]
    ack(raft, "b", 3)
    ack(raft, "b", 3)  # a repeated ack frees nothing more
    ranges = [(m.prev_index, m.last_index) for m in sent(drain(raft), AppendRequest)]
    assert ranges == [(5, 7)]


def test_heartbeats_carry_no_commit_beyond_what_the_follower_is_known_to_hold():
    raft = elect(make())
    ack(raft, "b", 1)
    drain(raft)
    raft.tick()
    commits = {m.to: m.commit for m in sent(drain(raft), Heartbeat)}
    assert commits == {"b": 1, "c": 0}


def test_a_commit_is_told_with_the_next_tick_when_no_append_carries_it():
    raft = elect(make(heartbeat_ticks=5))
    ack(raft, "b", 1)
    drain(raft)
    raft.tick()
    assert [(m.to, m.commit) for m in sent(drain(raft), Heartbeat)] == [("b", 1)]
    raft.tick()
    assert drain(raft) == []


def test_uncommitted_bytes_are_bounded_but_one_proposal_always_passes():
    raft = elect(make(uncommitted_bytes_max=100, append_bytes_max=100))
    ack(raft, "b", 1)
    raft.propose([5000])
    with pytest.raises(Overloaded):
        raft.propose([1])
    assert raft.status().last_index == 2
    drain(raft)
    ack(raft, "b", 2)
    raft.propose([1])


def test_a_follower_refuses_and_names_the_leader():
    raft = make()
    raft.step(Heartbeat("b", "a", 4, 0, 1))
    for call in (lambda: raft.propose([1]), lambda: raft.request_read(1), raft.transfer):
        with pytest.raises(NotLeader) as caught:
            call()
        assert caught.value.facts == {"leader": "b", "term": "4"}


def test_losing_leadership_fails_reads_and_leaves_proposals_alone():
    raft = elect(make())
    raft.propose([1])
    raft.request_read("x")
    drain(raft)
    raft.step(Heartbeat("b", "a", 2, 0, 1))
    readys = drain(raft)
    assert [r for ready in readys for r in ready.reads] == [("x", None)]
    assert raft.status().last_index == 2


def test_reads_of_a_new_leader_wait_for_its_no_op():
    raft = elect(make())
    raft.request_read("x")
    raft.tick()
    drain(raft)
    raft.step(HeartbeatResponse("b", "a", 1, 1))
    assert [r for ready in drain(raft) for r in ready.reads] == []
    ack(raft, "b", 1)
    (beat, _) = sent(drain(raft), Heartbeat)
    raft.step(HeartbeatResponse("b", "a", 1, beat.round))
    assert [r for ready in drain(raft) for r in ready.reads] == [("x", 1)]


# --- members -------------------------------------------------------------------------------------


def committed_leader(**kwargs) -> Raft:
    raft = elect(make(**kwargs))
    ack(raft, "b", raft.status().last_index)
    drain(raft)
    return raft


def test_no_change_before_a_commit_in_the_term():
    raft = elect(make())
    with pytest.raises(ChangeRefused):
        raft.propose_change(Remove("c"))


def test_one_change_at_a_time():
    raft = committed_leader()
    raft.propose_change(AddLearner(SERVERS["d"]))
    with pytest.raises(ChangeRefused):
        raft.propose_change(Remove("c"))
    drain(raft)
    ack(raft, "b", 2)
    raft.propose_change(Remove("c"))


def test_a_configuration_is_in_force_when_it_is_appended():
    raft = committed_leader(voters="ab")
    raft.propose_change(Remove("b"))
    drain(raft)
    assert raft.status().configuration.voter_ids == ("a",)
    assert raft.status().commit == 2  # by itself alone
    assert raft.status().peers == ()


def test_acks_of_learners_and_of_removed_servers_do_not_count():
    raft = committed_leader(learners="d")
    raft.propose([1])
    drain(raft)
    ack(raft, "d", 2)
    assert raft.status().commit == 1
    raft.step(AppendResponse("e", "a", 99, 2))  # nor does the term of a stranger
    assert raft.status().role is Role.LEADER


def test_a_learner_that_has_not_caught_up_is_not_promoted():
    raft = committed_leader(learners="d", promotion_lag_entries_max=5)
    with pytest.raises(ChangeRefused, match="caught up"):
        raft.propose_change(Promote("d"))
    ack(raft, "d", 1)
    raft.propose([1] * 6)
    with pytest.raises(ChangeRefused, match="caught up"):
        raft.propose_change(Promote("d"))
    drain(raft)
    ack(raft, "d", 7)
    raft.propose_change(Promote("d"))


def answer(raft: Raft, *senders: str) -> None:
    """Heartbeats are answered by some."""
    for beat in sent(drain(raft), Heartbeat):
        if beat.to in senders:
            raft.step(HeartbeatResponse(beat.to, beat.sender, beat.term, beat.round))


def test_a_learner_that_is_dead_is_not_promoted():
    """Its vote might be needed at once, even to take that back."""
    raft = committed_leader(learners="d")
    ack(raft, "d", 1)
    for _ in range(30):
        raft.tick()
        answer(raft, "b", "c")
    with pytest.raises(ChangeRefused, match="caught up"):
        raft.propose_change(Promote("d"))
    raft.tick()
    answer(raft, "d")
    raft.propose_change(Promote("d"))


def test_who_answers_is_active_at_every_moment_and_who_does_not_is_silent():
    raft = committed_leader()
    for _ in range(20):
        raft.tick()
        answer(raft, "b")
    for _ in range(50):
        raft.tick()
        (b, c) = raft.status().peers
        assert (b.active, b.silent, c.active, c.silent) == (True, False, False, True)
        answer(raft, "b")


def test_leadership_goes_to_one_who_answers():
    for ticks in range(20, 40):
        raft = committed_leader()
        ack(raft, "c", 1)
        for _ in range(ticks):
            raft.tick()
            answer(raft, "c")
        raft.tick()
        assert raft.transfer() == "c"


def test_a_configuration_that_takes_the_place_of_another_is_told():
    """It may stand at the same index."""
    theirs, ours = (
        Configuration(tuple(SERVERS[v] for v in "abc"), (SERVERS[x],)) for x in ("d", "e")
    )
    raft = make("c", terms=(1,))
    entries = (Entry(2, 1, 10), Entry(3, 1, 10, theirs))
    raft.step(AppendRequest("a", "c", 1, 1, 1, 3, 1, entries))
    assert (3, theirs) in [each.configuration for each in drain(raft)]
    raft.step(InstallSnapshot("b", "c", 2, 3, 2, ours))
    drain(raft)
    raft.snapshot_installed(3, 2)
    assert (3, ours) in [each.configuration for each in drain(raft)]


def test_a_server_whose_removal_is_known_to_be_committed_does_not_run_after_a_restart():
    members = [Configuration(tuple(SERVERS[v] for v in voters)) for voters in ("abc", "bc")]
    raft = Raft(
        id="a",
        config=RaftConfig(heartbeat_ticks=1, election_ticks=10),
        hard_state=HardState(1),
        log=LogView(runs=[(1, 1)], last_index=5, size_of=lambda _: 10),
        configurations=list(zip((1, 4), members, strict=True)),
        commit=5,
        rng=random.Random(1),
    )
    for _ in range(30):
        raft.tick()
    assert raft.ready() is None


def test_the_last_voter_does_not_depose_the_leader_that_is_removing_itself():
    """It would never learn whether it was removed, nor its client."""
    raft = make("b", "ab", terms=(1,), commit=1)
    raft.step(Heartbeat("a", "b", 1, 1, 1))
    alone = Configuration((SERVERS["b"],))
    raft.step(AppendRequest("a", "b", 1, 1, 1, 2, 1, (Entry(2, 1, 10, alone),)))
    for _ in range(5):  # The write is slow.
        raft.tick()
    assert raft.status().role is Role.FOLLOWER
    assert sent(drain(raft), AppendResponse)[-1] == AppendResponse("b", "a", 1, 2)


def test_a_leader_that_removed_itself_leaves_when_that_is_committed_without_it():
    raft = committed_leader()
    raft.propose_change(Remove("a"))
    drain(raft)
    ack(raft, "b", 2)  # one of two: its own disk does not count
    assert raft.status().role is Role.LEADER
    ack(raft, "c", 2)
    assert raft.status().role is Role.FOLLOWER
    assert [m.to for m in sent(drain(raft), TimeoutNow)] == ["b"]


# --- transfer ------------------------------------------------------------------------------------


def test_transfer_refuses_proposals_drains_and_hands_over():
    raft = committed_leader()
    raft.propose([1])
    drain(raft)
    assert raft.transfer("c") == "c"
    with pytest.raises(Unavailable):
        raft.propose([1])
    with pytest.raises(Unavailable):
        raft.propose_change(Remove("b"))
    ack(raft, "c", 2)
    assert sent(drain(raft), TimeoutNow) == [TimeoutNow("a", "c", 1)]


def test_transfer_waits_for_the_commit_of_what_is_pending():
    raft = committed_leader(voters="abcde")
    ack(raft, "c", 1)
    raft.propose([1])
    drain(raft)
    raft.transfer("c")
    ack(raft, "c", 2)
    assert sent(drain(raft), TimeoutNow) == []
    ack(raft, "b", 2)
    assert len(sent(drain(raft), TimeoutNow)) == 1


def test_transfer_ends_after_an_election_timeout():
    raft = committed_leader()
    raft.transfer("c")
    for _ in range(10):
        raft.tick()
        raft.step(HeartbeatResponse("b", "a", 1, 1))
    raft.propose([1])


@pytest.mark.parametrize("to", ["a", "d", "nobody"])
def test_transfer_only_to_another_voter(to):
    raft = committed_leader(learners="d")
    with pytest.raises(ChangeRefused):
        raft.transfer(to)


def test_the_target_of_a_transfer_skips_the_pre_vote():
    raft = make("c", terms=(1,))
    raft.step(Heartbeat("a", "c", 1, 0, 1))
    raft.step(TimeoutNow("a", "c", 1))
    votes = sent(drain(raft), VoteRequest)
    assert {(v.pre_vote, v.transfer, v.term) for v in votes} == {(False, True, 2)}
