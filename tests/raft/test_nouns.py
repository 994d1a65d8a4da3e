"""The small nouns of the core, one rule each."""

from __future__ import annotations

import random

import pytest

from proglog.errors import ChangeRefused, ConfigurationError, UnknownFormat
from proglog.raft import (
    AddLearner,
    Configuration,
    Entry,
    LogView,
    MalformedConfiguration,
    Promote,
    RaftConfig,
    ReadResult,
    Remove,
    Server,
)
from proglog.raft.commitment import Commitment
from proglog.raft.configuration import ConfigurationHistory, changed
from proglog.raft.inflight import Inflight
from proglog.raft.log_view import RECENT_ENTRIES
from proglog.raft.progress import Flow, Progress
from proglog.raft.promotion import CatchUp
from proglog.raft.quorum import majority, reached_by_majority
from proglog.raft.read_index import ReadIndexQueue
from proglog.raft.writes import Writes

A, B, C = (Server(x, f"node-{x}", f"{x}:8400") for x in "abc")


def entries(first: int, *terms: int, size: int = 10) -> list[Entry]:
    return [Entry(i, t, size) for i, t in enumerate(terms, first)]


# --- quorum and commitment -----------------------------------------------------------------------


def test_any_two_majorities_share_a_server():
    for voters in range(1, 10):
        assert 2 * majority(voters) > voters
        assert 2 * (majority(voters) - 1) <= voters


def test_reached_by_majority_is_the_greatest_such_value():
    rng = random.Random(1)
    for _ in range(500):
        values = [rng.randrange(6) for _ in range(rng.randint(1, 7))]
        best = max(v for v in values if sum(w >= v for w in values) >= majority(len(values)))
        assert reached_by_majority(values) == best


def test_commitment_counts_only_entries_of_its_own_term():
    commitment = Commitment(start=5)
    assert commitment.advance(2, [4, 4, 1]) == 2  # a majority, but of older terms
    assert commitment.advance(2, [5, 5, 1]) == 5
    assert (
        commitment.advance(7, [5, 5, 1]) == 7
    )  # a smaller majority (new voters) takes nothing back


# --- in-flight window ----------------------------------------------------------------------------


def test_inflight_is_freed_by_index_not_by_the_number_of_acks():
    window = Inflight(messages_max=3, bytes_max=1000)
    for last in (10, 20, 30):
        window.add(last, 100)
    assert window.full
    window.free_to(5)
    window.free_to(5)
    window.free_to(5)
    assert len(window) == 3
    window.free_to(20)
    assert len(window) == 1
    assert not window.full


def test_inflight_is_bounded_in_bytes_but_lets_one_large_message_pass():
    window = Inflight(messages_max=100, bytes_max=10)
    assert not window.full
    window.add(1, 5000)
    assert window.full
    window.free_to(1)
    assert not window.full


# --- log view ------------------------------------------------------------------------------------


class PlainLog:
    """The same as a list of terms and sizes."""

    def __init__(self) -> None:
        self.base, self.base_term, self.items = 0, 0, []

    def term_at(self, index):
        if index == self.base:
            return self.base_term
        if self.base < index <= self.base + len(self.items):
            return self.items[index - self.base - 1][0]
        return None

    def last_possible_match(self, index, term):
        index = min(index, self.base + len(self.items))
        while index > self.base and self.term_at(index) > term:
            index -= 1
        return index


def test_log_view_equals_a_plain_list():
    for seed in range(60):
        rng = random.Random(seed)
        plain = PlainLog()
        sizes: dict[int, int] = {}
        view = LogView(size_of=lambda i, sizes=sizes: sizes[i])
        term = 1
        for _ in range(60):
            last = plain.base + len(plain.items)
            match rng.randrange(6):
                case 0 | 1 | 2:
                    term += rng.random() < 0.3
                    new = [Entry(last + 1 + i, term, rng.randint(1, 20)) for i in range(3)]
                    view.append(new)
                    plain.items += [(e.term, e.size_bytes) for e in new]
                    sizes.update((e.index, e.size_bytes) for e in new)
                case 3 if plain.items:
                    first = rng.randint(plain.base + 1, last)
                    view.truncate(first)
                    del plain.items[first - plain.base - 1 :]
                    term = max(term, 1)
                case 4 if plain.items:
                    at = rng.randint(plain.base, last)
                    base_term = plain.term_at(at)
                    view.compact(at)
                    del plain.items[: at - plain.base]
                    plain.base, plain.base_term = at, base_term
                case _ if rng.random() < 0.1:
                    term += 1
                    view.reset(last + 5, term)
                    plain.base, plain.base_term, plain.items = last + 5, term, []
            last = plain.base + len(plain.items)
            assert (view.base_index, view.last_index) == (plain.base, last)
            assert view.last_term == plain.term_at(last)
            for index in range(plain.base - 1, last + 2):
                assert view.term_at(index) == plain.term_at(index)
                if index >= plain.base:
                    for t in range(term + 1):
                        expected = plain.last_possible_match(index, max(t, plain.base_term))
                        found = view.last_possible_match(index, max(t, plain.base_term))
                        assert found == expected
            if plain.items:
                first = rng.randint(plain.base + 1, last)
                count, total = rng.randint(1, 4), rng.randint(1, 60)
                fit_last, fit_bytes = view.fit(first, count, total)
                chosen = [s for _, s in plain.items[first - plain.base - 1 :]][:count]
                while len(chosen) > 1 and sum(chosen) > total:
                    chosen.pop()
                assert (fit_last, fit_bytes) == (first + len(chosen) - 1, sum(chosen))


def test_log_view_asks_for_sizes_only_of_what_it_does_not_remember():
    asked = []

    def size_of(index):
        asked.append(index)
        return index

    view = LogView(runs=[(1, 1)], last_index=5, size_of=size_of)
    view.append(entries(6, 1, 1, 1))
    assert view.fit(6, 10, 1000) == (8, 30)
    assert asked == []
    assert view.fit(4, 3, 1000) == (6, 4 + 5 + 10)
    assert asked == [4, 5]


def test_log_view_forgets_old_sizes_in_large_steps():
    view = LogView(size_of=lambda _: 10)
    view.append(entries(1, *[1] * (3 * RECENT_ENTRIES)))
    view.forget_sizes_before(3 * RECENT_ENTRIES)
    assert len(view._ends) <= RECENT_ENTRIES + 1
    assert view.bytes_after(3 * RECENT_ENTRIES - 4) == 40
    assert view.fit(3 * RECENT_ENTRIES, 1, 1) == (3 * RECENT_ENTRIES, 10)


def test_last_term_is_compared_first_then_length():
    view = LogView(runs=[(1, 1), (3, 2)], last_index=3, size_of=lambda _: 1)
    assert view.up_to_date(2, 3)
    assert view.up_to_date(3, 2)
    assert not view.up_to_date(2, 2)
    assert not view.up_to_date(100, 1)


# --- writes --------------------------------------------------------------------------------------


def test_writes_are_durable_when_reported_and_reports_may_be_merged_or_late():
    writes = Writes(0)
    writes.append(entries(1, 1, 1))
    assert writes.take() == (None, entries(1, 1, 1), 1)
    writes.append(entries(3, 1))
    writes.take()
    assert writes.durable == 0
    writes.persisted(2)
    assert writes.durable == 3
    writes.persisted(1)
    assert writes.durable == 3


def test_a_write_under_way_does_not_prove_what_was_cut_since():
    """ABA: (5, t1) is written, cut, and written again while the first write is under way."""
    writes = Writes(4)
    writes.append(entries(5, 1))
    writes.take()
    writes.truncate(5)
    writes.append(entries(5, 2))
    assert writes.take() == (5, entries(5, 2), 2)
    writes.truncate(5)
    writes.append(entries(5, 1))
    assert writes.take() == (5, entries(5, 1), 3)
    writes.persisted(1)
    assert writes.durable == 4
    writes.persisted(2)
    assert writes.durable == 4
    writes.persisted(3)
    assert writes.durable == 5


def test_what_was_never_handed_over_is_cut_without_a_word():
    writes = Writes(2)
    writes.append(entries(3, 1, 1, 1))
    writes.truncate(4)
    assert writes.take() == (None, entries(3, 1), 1)
    writes.truncate(3)
    writes.append(entries(3, 2))
    writes.truncate(2)
    assert writes.take() == (2, [], 2)
    assert writes.take() == (None, [], 0)


# --- progress ------------------------------------------------------------------------------------


def progress(next_: int = 10, **config) -> Progress:
    return Progress("x", next_=next_, config=RaftConfig(**config), now=0)


def test_progress_replicates_once_the_probe_is_accepted():
    peer = progress(10)
    assert peer.accepted(9, 0)
    assert (peer.flow, peer.match, peer.next) == (Flow.REPLICATE, 9, 10)


def test_progress_ignores_an_ack_that_does_not_answer_the_probe():
    peer = progress(10)
    assert peer.accepted(4, 0)
    assert (peer.flow, peer.match, peer.next) == (Flow.PROBE, 4, 10)


def test_progress_ignores_stale_rejections():
    peer = progress(10)
    peer.rejected(7, 3)  # answers another probe
    assert peer.next == 10
    peer.accepted(9, 0)
    peer.rejected(9, 3)  # match has passed it
    assert (peer.flow, peer.next) == (Flow.REPLICATE, 10)


def test_progress_steps_back_to_the_hint_but_never_behind_match():
    peer = progress(10)
    peer.rejected(9, 5)
    assert peer.next == 6
    peer.rejected(5, 100)  # one step at least
    assert peer.next == 5
    peer.accepted(4, 0)
    peer.next = 9
    peer.rejected(8, 1)
    assert (peer.flow, peer.next) == (Flow.PROBE, 5)


def test_progress_leaves_snapshot_when_its_log_reaches_the_base():
    peer = progress(10)
    peer.become_snapshot(6)
    peer.accepted(0, 6)
    assert peer.flow is Flow.SNAPSHOT
    peer.accepted(6, 6)
    assert (peer.flow, peer.next) == (Flow.REPLICATE, 7)


def test_progress_asks_whether_another_snapshot_was_installed():
    peer = progress(10)
    peer.become_snapshot(6)
    peer.accepted(3, 6)
    assert (peer.flow, peer.next) == (Flow.PROBE, 7)
    peer.accepted(5, 6)  # Late ones are no answer to that.
    assert (peer.flow, peer.next) == (Flow.PROBE, 7)
    peer.accepted(6, 6)
    assert (peer.flow, peer.next) == (Flow.REPLICATE, 7)


def test_progress_is_silent_after_a_whole_window_without_an_answer():
    peer = progress(10)
    assert not peer.active and not peer.silent  # Nothing is known of it yet.
    peer.answered_heartbeat(1, last_index=9)
    assert peer.active
    peer.checked()
    assert peer.active and not peer.heard
    peer.checked()
    assert not peer.active and not peer.silent
    peer.checked()
    assert peer.silent
    peer.answered_heartbeat(2, last_index=9)
    assert peer.active and not peer.silent
    newcomer = progress(10)
    newcomer.checked()
    assert newcomer.silent


def test_progress_is_nudged_by_a_heartbeat_while_something_is_unacknowledged():
    peer = progress(10)
    peer.accepted(9, 0)
    peer.answered_heartbeat(1, last_index=9)
    assert not peer.nudge
    peer.answered_heartbeat(2, last_index=10)
    assert peer.nudge


# --- promotion -----------------------------------------------------------------------------------


def test_catch_up_needs_one_fast_round_and_a_small_lag():
    learner = CatchUp(target=100, now=0, ticks_max=10)
    assert not learner.caught_up(0, last_index=100, now=1, lag_max=5)
    learner.acknowledged(100, last_index=200, now=50)  # the first round was slow
    assert not learner.caught_up(198, last_index=200, now=51, lag_max=5)
    learner.acknowledged(200, last_index=203, now=55)
    assert learner.caught_up(200, last_index=203, now=56, lag_max=5)
    assert not learner.caught_up(200, last_index=300, now=56, lag_max=5)  # lag
    assert not learner.caught_up(200, last_index=203, now=70, lag_max=5)  # this round is late


def test_catch_up_does_not_take_idleness_for_slowness():
    learner = CatchUp(target=5, now=0, ticks_max=10)
    learner.acknowledged(5, last_index=5, now=3)
    assert learner.caught_up(5, last_index=5, now=1000, lag_max=5)
    learner.acknowledged(6, last_index=6, now=1000)
    assert learner.caught_up(6, last_index=6, now=1000, lag_max=5)


# --- reads ---------------------------------------------------------------------------------------


def test_a_read_is_confirmed_only_by_a_round_that_started_after_it():
    reads = ReadIndexQueue()
    assert reads.start_round(5) == 1
    reads.add("x")
    assert reads.confirm(1) == []
    assert reads.start_round(7) == 2
    assert reads.confirm(1) == []
    assert reads.confirm(2) == [ReadResult("x", 7)]
    assert reads.confirm(2) == []


def test_reads_wait_while_nothing_of_the_term_is_committed():
    reads = ReadIndexQueue()
    reads.add("x")
    reads.start_round(None)
    assert reads.confirm(1) == []
    reads.start_round(9)
    assert reads.confirm(2) == [ReadResult("x", 9)]


def test_reads_that_come_during_a_round_share_the_next():
    reads = ReadIndexQueue()
    reads.add("x")
    assert reads.wants_round
    reads.start_round(1)
    reads.add("y")
    reads.add("z")
    assert not reads.wants_round
    assert len(reads) == 3
    reads.confirm(1)
    assert reads.wants_round
    assert reads.fail() == [ReadResult("y", None), ReadResult("z", None)]


# --- configuration -------------------------------------------------------------------------------


def test_configuration_is_canonical():
    assert Configuration((C, A), (B,)) == Configuration((A, C), (B,))
    assert Configuration((C, A), (B,)).encode() == Configuration((A, C), (B,)).encode()
    assert Configuration.decode(Configuration((C, A), (B,)).encode()) == Configuration((A, C), (B,))


GOOD = Configuration((A, B), (C,)).encode()


def test_every_truncation_of_a_configuration_is_refused():
    for end in range(len(GOOD)):
        with pytest.raises(MalformedConfiguration):
            Configuration.decode(GOOD[:end])


def test_every_flipped_bit_is_refused_or_is_another_canonical_configuration():
    for position in range(len(GOOD) * 8):
        damaged = bytearray(GOOD)
        damaged[position // 8] ^= 1 << position % 8
        try:
            assert Configuration.decode(bytes(damaged)).encode() == damaged
        except (MalformedConfiguration, UnknownFormat):
            pass


def test_a_configuration_of_a_newer_version_is_told_from_a_broken_one():
    newer = GOOD.replace(b'"version":1', b'"version":2')
    with pytest.raises(UnknownFormat, match="version 2"):
        Configuration.decode(newer)
    # Whatever it has that is not known here: it is never dropped.
    with pytest.raises(UnknownFormat, match="version 2"):
        Configuration.decode(newer.replace(b'"learners"', b'"former":[],"learners"'))
    with pytest.raises(MalformedConfiguration):
        Configuration.decode(GOOD.replace(b'"learners"', b'"former":[],"learners"'))


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"[]",
        b"null",
        b"7",
        b'{"voters":[],"learners":[]}',
        b'{"learners":[], "voters":[]}',
        b'{"learners":[],"voters":[["a","a"]]}',
        b'{"learners":[],"voters":[["a","a",1]]}',
        b'{"learners":[],"voters":[["","a",""]]}',
        b'{"learners":[["a","x",""]],"voters":[["a","a",""]]}',
        b'{"learners":[],"voters":["abc"]}',
        b'{"learners":[],"voters":[],"x":1}',
        b"[" * 100_000,
        b"\xff\xfe",
        b'{"learners":[],"voters":[' + b'["a","b",""],' * 100_000 + b"]}",
    ],
)
def test_malformed_configurations_have_one_error(data):
    with pytest.raises(MalformedConfiguration):
        Configuration.decode(data)


def test_changes_move_one_server():
    one = Configuration((A,))
    two = changed(one, AddLearner(B))
    assert two == Configuration((A,), (B,))
    three = changed(two, Promote("b"))
    assert three == Configuration((A, B))
    assert changed(three, Remove("a")) == Configuration((B,))


@pytest.mark.parametrize(
    "change",
    [
        AddLearner(A),
        AddLearner(B),
        AddLearner(Server("new", A.name)),
        Promote("a"),
        Promote("unknown"),
        Remove("a"),
        Remove("unknown"),
    ],
)
def test_changes_that_make_no_sense_are_refused(change):
    with pytest.raises(ChangeRefused):
        changed(Configuration((A,), (B,)), change)


def test_history_restores_what_stood_before():
    one, two, three = Configuration((A,)), Configuration((A, B)), Configuration((A, B, C))
    history = ConfigurationHistory([(1, one)])
    history.append(5, two)
    history.append(9, three)
    assert (history.latest_index, history.latest) == (9, three)
    history.truncate(7)
    assert (history.latest_index, history.latest) == (5, two)
    assert history.may_be_voter("b")
    history.truncate(5)
    assert history.latest == one
    assert history.voter_ids == ("a",)
    history.append(5, two)
    history.commit(5)
    assert history.entries() == ((5, two),)


# --- config --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "wrong",
    [
        {"heartbeat_ticks": 0},
        {"heartbeat_ticks": 20, "election_ticks": 30},
        {"inflight_bytes_max": 10, "append_bytes_max": 11},
        {"uncommitted_bytes_max": 10, "append_bytes_max": 11},
        {"snapshot_ticks_max": 5},
    ],
)
def test_config_checks_its_fields_against_each_other(wrong):
    with pytest.raises(ConfigurationError):
        RaftConfig(**wrong)
