"""The byte budget: bounded, first come first served, nothing lost to cancellation."""

from __future__ import annotations

import asyncio

from proglog.client.budget import Budget


async def turn():
    for _ in range(3):
        await asyncio.sleep(0)


async def test_what_is_there_is_taken_at_once():
    budget = Budget(100)
    assert budget.take_now(10, 60) == 60
    assert budget.take_now(10, 60) == 40
    assert budget.take_now(1, 1) == 0
    budget.give(5)
    assert budget.take_now(6, 6) == 0
    assert budget.take_now(5, 9) == 5


async def test_waiters_are_served_in_order_and_not_overtaken():
    budget = Budget(100)
    await budget.take(90)
    order = []

    async def taker(name, size):
        await budget.take(size)
        order.append(name)

    tasks = [asyncio.ensure_future(taker(*pair)) for pair in (("a", 50), ("b", 5), ("c", 40))]
    await turn()
    assert order == []
    assert budget.take_now(1, 1) == 0
    budget.give(40)
    await turn()
    assert order == ["a"]
    budget.give(50)
    await turn()
    assert order == ["a", "b", "c"]
    await asyncio.gather(*tasks)
    assert budget.taken == 95


async def test_more_than_everything_is_granted_alone():
    budget = Budget(100)
    await budget.take(10)
    task = asyncio.ensure_future(budget.take(500))
    await turn()
    assert not task.done()
    budget.give(10)
    await task
    assert budget.take_now(1, 1) == 0
    budget.give(500)
    assert budget.take_now(1, 1) == 1


async def test_a_cancelled_waiter_frees_the_way():
    budget = Budget(100)
    await budget.take(95)
    large = asyncio.ensure_future(budget.take(50))
    small = asyncio.ensure_future(budget.take(5))
    await turn()
    large.cancel()
    await small
    assert budget.taken == 100


async def test_a_waiter_cancelled_as_it_is_served_gives_back():
    budget = Budget(100)
    await budget.take(100)
    task = asyncio.ensure_future(budget.take(60))
    await turn()
    budget.give(100)
    task.cancel()
    await asyncio.wait([task])
    assert task.cancelled()
    assert budget.taken == 0
