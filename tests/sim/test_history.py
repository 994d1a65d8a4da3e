"""The checker of histories finds each thing that a log must not do, and nothing else."""

from __future__ import annotations

import pytest

from tests.sim.history import Append, History
from tests.sim.oracle import Violation


@pytest.fixture
def history() -> History:
    return History()


def appended(
    history: History, value: bytes, invoked: float, completed: float, offset: int
) -> Append:
    append = history.invoke(value, 1, len(history.appends), invoked)
    history.acknowledge(append, offset, completed)
    return append


def fails(history: History, check: str) -> None:
    with pytest.raises(Violation) as caught:
        history.check()
    assert caught.value.check == check


def test_a_log_passes(history: History) -> None:
    appended(history, b"a", 1, 2, 0)
    appended(history, b"b", 3, 5, 1)
    history.read(0, [b"a", b"b"], 6)
    history.found_end(2, 4)
    history.check()


def test_concurrent_appends_may_take_any_order(history: History) -> None:
    late = history.invoke(b"late", 1, 0, 1)
    appended(history, b"early", 2, 3, 0)
    history.acknowledge(late, 1, 4)
    history.appends[b"early"].producer = 2
    history.check()


def test_an_append_after_another_was_acknowledged_stands_behind_it(history: History) -> None:
    appended(history, b"first", 1, 2, 1)
    second = history.invoke(b"second", 2, 0, 3)
    history.acknowledge(second, 0, 4)
    fails(history, "real-time order")


def test_a_linearizable_read_sees_what_was_acknowledged(history: History) -> None:
    appended(history, b"a", 1, 2, 0)
    history.found_end(0, 3)
    fails(history, "real-time order")


def test_a_linearizable_read_may_miss_what_is_under_way(history: History) -> None:
    appended(history, b"a", 1, 4, 0)
    history.found_end(0, 3)
    history.check()


def test_an_offset_has_one_value(history: History) -> None:
    appended(history, b"a", 1, 2, 0)
    with pytest.raises(Violation, match="one value an offset"):
        history.read(0, [b"b"], 3)


def test_a_value_has_one_offset(history: History) -> None:
    appended(history, b"a", 1, 2, 0)
    history.read(1, [b"a"], 3)
    fails(history, "no duplicates")


def test_an_append_is_acknowledged_at_one_offset(history: History) -> None:
    append = appended(history, b"a", 1, 2, 0)
    with pytest.raises(Violation, match="no duplicates"):
        history.acknowledge(append, 1, 3)


def test_nothing_is_read_that_was_not_submitted(history: History) -> None:
    history.read(0, [b"what"], 3)
    fails(history, "no phantom")


def test_nothing_is_read_that_was_refused(history: History) -> None:
    history.refuse(history.invoke(b"a", 1, 0, 1))
    history.read(0, [b"a"], 3)
    fails(history, "no phantom")


def test_a_hole_may_be_an_append_of_unknown_outcome(history: History) -> None:
    history.invoke(b"unknown", 2, 0, 0)
    appended(history, b"a", 1, 2, 1)
    history.check()


def test_a_hole_that_nothing_can_fill_is_a_gap(history: History) -> None:
    history.refuse(history.invoke(b"refused", 2, 0, 0))
    appended(history, b"a", 1, 2, 1)
    fails(history, "no gaps")


def test_a_producers_records_keep_their_order(history: History) -> None:
    first = history.invoke(b"0", 1, 0, 1)
    second = history.invoke(b"1", 1, 1, 1)
    history.acknowledge(second, 0, 3)
    history.acknowledge(first, 1, 3)
    fails(history, "producer order")
