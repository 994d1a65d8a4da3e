"""When a server may lead: what a full disk is, and what is only the end of a segment."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest

from proglog import limits
from proglog.replica.fitness import Fitness


class Shape:
    """A log, a driver and a leadership, as far as they are looked at."""

    def __init__(self) -> None:
        self.durable_index = 1
        self.tip = SimpleNamespace(index=1)
        self.room_bytes = 10_000
        self.is_refused_room = False
        self.asked: list[int] = []
        self.pending_bytes = 0
        self.raft = SimpleNamespace(may_campaign=True)
        self.doubt = ""
        self.configuration = SimpleNamespace(voters=[1, 2, 3])

    def has_room(self, size: int) -> bool:
        return size <= self.room_bytes

    def ask_for_room(self, size: int) -> None:
        self.asked.append(size)


@pytest.fixture
def shape() -> Shape:
    return Shape()


def fitness_of(shape: Shape) -> Fitness:
    each = cast("Any", shape)
    return Fitness(each, each, each, each)


def test_the_end_of_a_segment_is_no_full_disk(shape: Shape) -> None:
    fitness = fitness_of(shape)
    assert fitness.look(100.0)
    shape.room_bytes = 0
    assert fitness.look(100.01), "space is on its way"
    assert shape.asked == [limits.control_bytes_reserved]
    assert not shape.raft.may_campaign, "until it is there, this server does not run"
    shape.room_bytes = 10_000
    assert fitness.look(100.02)
    assert shape.raft.may_campaign


def test_a_refusal_is_and_so_is_an_answer_that_does_not_come(shape: Shape) -> None:
    fitness = fitness_of(shape)
    assert fitness.look(100.0)
    shape.room_bytes = 0
    shape.is_refused_room = True
    assert not fitness.look(100.01)
    shape.is_refused_room = False
    assert fitness.look(100.02)
    assert not fitness.look(100.1 + limits.disk_stall_seconds_max)
    shape.room_bytes = 10_000
    assert fitness.look(200.0)
