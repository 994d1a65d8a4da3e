"""The newest batches, in memory."""

from __future__ import annotations

import pytest

from proglog.log.format import ORIGIN, Tip
from proglog.log.tail import Tail, TailEntry
from tests.log.support import build


def filled(count: int, bytes_max: int) -> Tail:
    tail, tip = Tail(1, bytes_max), ORIGIN
    for _ in range(count):
        header, parts = build(tip, [bytes(100)])
        tail.append(TailEntry(header, parts))
        tip = Tip.after(header)
    return tail


def test_it_finds_by_index() -> None:
    tail = filled(5, 10**6)
    assert (tail.first_index, tail.next_index) == (1, 6)
    assert [tail.get(index).header.index for index in range(1, 6)] == [1, 2, 3, 4, 5]
    for index in (0, 6):
        with pytest.raises(AssertionError):
            tail.get(index)


def test_a_run_is_bounded_but_never_empty() -> None:
    tail = filled(5, 10**6)
    size = tail.get(1).header.size
    assert [header.index for header in tail.run(2, 5, 0).headers] == [2]
    assert [header.index for header in tail.run(2, 5, 2 * size).headers] == [2, 3]
    assert [header.index for header in tail.run(2, 3, 10**6).headers] == [2, 3]
    parts = [*tail.get(2).parts, *tail.get(3).parts]
    assert tail.run(2, 3, 10**6).data == b"".join(parts)


def test_only_durable_batches_are_evicted() -> None:
    tail = filled(10, 0)
    tail.evict(durable_index=4)
    assert (tail.first_index, tail.next_index) == (5, 11)
    tail.evict(durable_index=10)
    assert (tail.first_index, tail.next_index, tail.bytes) == (11, 11, 0)


def test_eviction_stops_at_the_bound() -> None:
    whole = filled(10, 10**6).bytes
    tail = filled(10, whole // 2)
    tail.evict(durable_index=10)
    assert tail.bytes <= whole // 2
    assert tail.first_index == 6


@pytest.mark.parametrize(("next_index", "first_left"), [(4, 1), (1, 1), (6, 1)])
def test_a_cut_forgets_the_newest(next_index: int, first_left: int) -> None:
    tail = filled(5, 10**6)
    tail.cut(next_index)
    assert (tail.first_index, tail.next_index) == (first_left, next_index)
    assert (tail.bytes == 0) == (next_index == 1)


def test_a_cut_below_what_is_held_leaves_nothing() -> None:
    tail = filled(5, 0)
    tail.evict(durable_index=3)
    tail.cut(2)
    assert (tail.first_index, tail.next_index, tail.bytes) == (2, 2, 0)
