"""The pure parts: time awake, silence, and several ways to one end."""

from __future__ import annotations

import asyncio
from functools import partial

import pytest

from proglog.peers.pulse import AwakeClock, Pulse
from proglog.peers.racing import first_of


class Time:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def test_a_stall_counts_as_one_beat_and_judges_nobody() -> None:
    time = Time()
    clock = AwakeClock(time, 0.05)
    for _ in range(10):
        time.now += 0.05
        assert clock.beat()
    assert clock.now == pytest.approx(0.5)
    time.now += 3600
    assert not clock.beat()
    assert clock.now == pytest.approx(0.55)
    time.now += 0.05
    assert clock.beat()


def test_silence_is_judged_and_questions_are_asked_in_time_awake() -> None:
    time = Time()
    clock = AwakeClock(time, 0.05)
    pulse = Pulse(clock, 0.25, 1.0)
    asked = 0
    while not pulse.is_lost:
        asked += pulse.is_ping_due()
        time.now += 0.05
        clock.beat()
    assert clock.now == pytest.approx(1.05)
    assert asked in {4, 5}
    pulse.heard()
    assert not pulse.is_lost


def test_answers_are_not_given_all_the_time() -> None:
    time = Time()
    clock = AwakeClock(time, 0.05)
    pulse = Pulse(clock, 0, 1.0)
    assert not pulse.is_ping_due()
    assert not pulse.is_answer_due(0.25)
    for _ in range(6):
        time.now += 0.05
        clock.beat()
    assert pulse.is_answer_due(0.25)
    pulse.told()
    assert not pulse.is_answer_due(0.25)


class Ways:
    """Each takes its time, and gives its name or fails."""

    def __init__(self, *ways: tuple[str, float, bool]) -> None:
        self._ways = ways
        self.begun: list[tuple[str, float]] = []
        self.ended: list[str] = []
        self.undone: list[str] = []

    async def _go(self, name: str, seconds: float, fails: bool) -> str:
        self.begun.append((name, asyncio.get_running_loop().time()))
        try:
            await asyncio.sleep(seconds)
        finally:
            self.ended.append(name)
        if fails:
            raise OSError(name)
        return name

    async def first(self) -> str:
        ways = [partial(self._go, *way) for way in self._ways]
        try:
            return await first_of(ways, 0.05, self.undone.append)
        finally:
            await asyncio.sleep(0)


@pytest.mark.virtual_time
async def test_the_first_that_gets_there_has_it_and_the_others_end() -> None:
    ways = Ways(("a", 1.0, False), ("b", 0.1, False), ("c", 1.0, False))
    began = asyncio.get_running_loop().time()
    assert await ways.first() == "b"
    assert ways.begun == [("a", began), ("b", began + 0.05), ("c", began + 0.1)]
    assert sorted(ways.ended) == ["a", "b", "c"]


@pytest.mark.virtual_time
async def test_the_next_begins_at_once_where_one_fails() -> None:
    ways = Ways(("a", 0.01, True), ("b", 0.01, False))
    began = asyncio.get_running_loop().time()
    assert await ways.first() == "b"
    assert asyncio.get_running_loop().time() == pytest.approx(began + 0.02)


@pytest.mark.virtual_time
async def test_if_none_gets_there_the_best_says_why() -> None:
    ways = Ways(("a", 0.2, True), ("b", 0.01, True))
    with pytest.raises(OSError, match="a"):
        await ways.first()


@pytest.mark.virtual_time
async def test_of_two_that_get_there_together_one_is_undone() -> None:
    together, undone = asyncio.Event(), list[str]()

    async def go(name: str) -> str:
        await together.wait()
        return name

    asyncio.get_running_loop().call_later(1.0, together.set)
    assert await first_of([partial(go, "a"), partial(go, "b")], 0.05, undone.append) == "a"
    assert undone == ["b"]
