"""The small parts: broadcasts, suspicion, awareness, logical clocks, timers."""

from __future__ import annotations

from proglog.membership import limits
from proglog.membership.serf.lamport import LamportClock, RecentPast
from proglog.membership.swim.awareness import Awareness
from proglog.membership.swim.broadcast import BroadcastQueue, retransmit_limit
from proglog.membership.swim.suspicion import Suspicion
from proglog.membership.swim.timers import PauseClock, Timers


def test_retransmits_grow_with_the_logarithm_of_the_cluster() -> None:
    assert [retransmit_limit(4, n) for n in (1, 9, 10, 99, 100)] == [4, 4, 8, 8, 12]


def test_broadcasts_least_sent_first_and_each_so_often() -> None:
    queue = BroadcastQueue(10)
    queue.add(b"one")
    queue.add(b"two")
    assert queue.take(5, 2, 3) == [b"two"]
    assert queue.take(5, 2, 3) == [b"one"]
    queue.add(b"new")
    for _ in range(2):
        first, *others = queue.take(100, 2, 3)
        assert first == b"new"
        assert sorted(others) == [b"one", b"two"]
    assert queue.take(100, 2, 3) == [b"new"]
    assert len(queue) == 0


def test_newer_news_of_a_subject_replace_older_and_both_are_done() -> None:
    queue, done = BroadcastQueue(10), []
    queue.add(b"old", subject="a", on_done=lambda: done.append("old"))
    queue.add(b"new", subject="a", on_done=lambda: done.append("new"))
    assert done == ["old"]
    assert queue.take(100, 0, 1) == [b"new"]
    assert done == ["old", "new"]


def test_a_full_queue_drops_what_was_sent_most() -> None:
    queue = BroadcastQueue(2)
    queue.add(b"sent")
    queue.take(100, 0, 9)
    queue.add(b"fresh")
    queue.add(b"newest")
    assert queue.take(100, 0, 9) == [b"newest", b"fresh"]
    assert queue.dropped == 1


def test_suspicion_shrinks_with_confirmations() -> None:
    suspicion = Suspicion("a", wanted=2, min_s=4.0, max_s=24.0, started=100.0)
    assert suspicion.deadline == 124.0
    assert not suspicion.confirm("a")
    assert suspicion.confirm("b")
    assert 104.0 < suspicion.deadline < 124.0
    assert not suspicion.confirm("b")
    assert suspicion.confirm("c")
    assert suspicion.deadline == 104.0
    assert not suspicion.confirm("d")
    alone = Suspicion("a", wanted=0, min_s=4.0, max_s=24.0, started=0.0)
    assert alone.deadline == 4.0


def test_awareness_stays_in_its_bounds() -> None:
    awareness = Awareness(7)
    awareness.adjust(-3)
    assert awareness.stretch(1.0) == 1.0
    awareness.adjust(100)
    assert awareness.stretch(1.0) == 8.0


def test_lamport_clocks_never_go_back() -> None:
    clock = LamportClock()
    clock.witness(10)
    clock.witness(3)
    assert clock.time == 11
    clock.advance()
    assert clock.time == 12
    clock.witness(limits.lamport_time_max)
    clock.advance()
    assert clock.time == limits.lamport_time_max


def test_what_had_to_be_forgotten_is_never_news_again() -> None:
    past: RecentPast[str] = RecentPast(3)
    assert [past.add(time, "x") for time in (1, 2, 3, 3, 4, 1)] == [
        True,
        True,
        True,
        False,
        True,
        False,
    ]
    assert len(past) == 3
    past.ignore_before(4)
    assert not past.add(3, "y")
    assert past.add(4, "y")


def test_a_late_wake_fires_a_periodic_timer_once() -> None:
    timers, fired = Timers(0.0), []

    def again() -> None:
        fired.append(timers.now)
        timers.after(1.0, again)

    timers.after(1.0, again)
    timers.after(5.0, lambda: fired.append(-1.0)).cancel()
    timers.fire(60.0)
    assert fired == [60.0]
    assert timers.next_deadline == 61.0


def test_a_pause_is_not_the_others_silence() -> None:
    real = [0.0]
    clock = PauseClock(lambda: real[0], 1.0)
    times = []
    for real[0] in (0.5, 1.4, 61.4, 61.9):
        times.append(round(clock.now(), 6))
    assert times == [0.5, 1.4, 2.4, 2.9]


def test_how_far_ahead_is_believed_is_exact() -> None:
    clock = LamportClock()
    assert clock.time == 1
    clock.witness(1000)
    assert clock.believes(1001 + limits.lamport_ahead_max)
    assert not clock.believes(1002 + limits.lamport_ahead_max)


def test_a_past_begins_empty_and_at_time_zero() -> None:
    past: RecentPast[str] = RecentPast(3)
    assert len(past) == 0
    assert past.add(0, "first")
    assert not past.add(0, "first")
    assert len(past) == 1
