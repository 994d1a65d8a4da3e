"""One timer for all that a node looks at."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from proglog.aio.ticker import Ticker

pytestmark = pytest.mark.virtual_time

TICK = 0.01


class Told:
    """When it was told, in ticks since the beginning, and how many had passed."""

    def __init__(self, left: Callable[[], int]) -> None:
        self._left = left
        self._loop = asyncio.get_running_loop()
        self._began = self._loop.time()
        self.at: list[int] = []
        self.ticks: list[int] = []

    def __call__(self, ticks: int) -> int:
        self.at.append(round((self._loop.time() - self._began) / TICK))
        self.ticks.append(ticks)
        return self._left()


async def test_it_rings_when_the_first_wants_it_and_tells_all() -> None:
    ticker = Ticker(TICK)
    often, seldom = Told(lambda: 2), Told(lambda: 50)
    ticker.add(often)
    ticker.add(seldom)
    await asyncio.sleep(7.5 * TICK)
    assert often.at == seldom.at == [1, 3, 5, 7]
    assert often.ticks == [1, 2, 2, 2]
    ticker.remove(often)
    await asyncio.sleep(100 * TICK)
    assert seldom.at[4:] == [9, 59]


async def test_what_happens_is_told_with_the_next_tick() -> None:
    ticker = Ticker(TICK)
    told = Told(lambda: 10)
    ticker.add(told)
    await asyncio.sleep(4.5 * TICK)
    ticker.soon()
    ticker.soon()
    await asyncio.sleep(11.5 * TICK)
    assert told.at == [1, 5, 15]
    assert told.ticks == [1, 4, 10]


async def test_who_is_told_may_ask_for_the_next_tick_or_leave() -> None:
    ticker = Ticker(TICK)
    told = Told(lambda: (ticker.soon(), 10)[1])
    ticker.add(told)

    def leaves(_ticks: int) -> int:
        ticker.remove(told)
        return 1

    await asyncio.sleep(3.5 * TICK)
    assert told.at == [1, 2, 3]
    ticker.add(leaves)
    await asyncio.sleep(2 * TICK)
    assert told.at == [1, 2, 3, 4]
    ticker.remove(leaves)


async def test_a_late_ring_is_no_more_ticks_than_it_was_set_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ticker, loop = Ticker(TICK), asyncio.get_running_loop()
    told = Told(lambda: 3)
    ticker.add(told)
    await asyncio.sleep(1.5 * TICK)
    time = loop.time
    monkeypatch.setattr(ticker._loop, "time", lambda: time() + 3600)
    await asyncio.sleep(6 * TICK)
    assert told.ticks[:2] == [1, 3]
    assert set(told.ticks) == {1, 3}


async def test_a_fault_of_one_does_not_keep_the_others_from_being_told() -> None:
    errors: list[dict[str, object]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: errors.append(context))
    ticker, failed = Ticker(TICK), []
    told = Told(lambda: 2)
    ticker.add(told)

    def fails(_ticks: int) -> int:
        failed.append(1)
        raise RuntimeError

    ticker.add(fails)
    await asyncio.sleep(5.5 * TICK)
    assert told.at == [1, 3, 5]
    assert len(failed) == len(errors) == 3
    ticker.remove(fails)
    ticker.remove(told)
    await asyncio.sleep(10 * TICK)
    assert len(told.at) == 3
