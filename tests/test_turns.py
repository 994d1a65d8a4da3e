"""The budget of a turn: nobody's share depends on how much somebody else asks for."""

from __future__ import annotations

import asyncio
from itertools import pairwise

from proglog.aio.turns import Gate, Turns


class Worker:
    """Work of some units, and in which turns of the loop it was done."""

    def __init__(self, left: int, turn: list[int]) -> None:
        self.left = left
        self.turn = turn
        self.done: dict[int, int] = {}

    def step(self, units: int) -> tuple[int, bool]:
        assert units > 0
        done = min(units, self.left)
        self.left -= done
        self.done[self.turn[0]] = self.done.get(self.turn[0], 0) + done
        return done, self.left > 0


async def until_idle(turn: list[int], turns: int = 200) -> None:
    for _ in range(turns):
        turn[0] += 1
        await asyncio.sleep(0)


async def test_a_turn_does_no_more_than_its_budget():
    turn = [0]
    turns, worker = Turns(100, 20), Worker(1050, turn)
    turns.enter(worker)
    await until_idle(turn)
    assert worker.left == 0
    assert max(worker.done.values()) == 100
    assert len(worker.done) == 11


async def test_many_who_ask_for_much_do_not_delay_one_who_asks_for_little():
    turn = [0]
    turns = Turns(100, 20)
    greedy = [Worker(100_000, turn) for _ in range(10)]
    for worker in greedy:
        turns.enter(worker)
    await until_idle(turn, 5)
    modest = Worker(5, turn)
    turns.enter(modest)
    begun = turn[0]
    await until_idle(turn, 50)
    # Ten before it take a share each, five of them a turn.
    assert max(modest.done) - begun <= 3
    shares = [sum(worker.done.values()) for worker in greedy]
    assert max(shares) - min(shares) <= 100 + 2 * 20


async def test_what_is_done_beyond_a_share_is_missing_in_the_next_turn():
    class Bulky(Worker):
        def step(self, units: int) -> tuple[int, bool]:
            return super().step(350)

    turn = [0]
    turns = Turns(100, 20)
    bulky = Bulky(1050, turn)
    turns.enter(bulky)
    await until_idle(turn)
    assert sorted(bulky.done) == [0, 3, 7]


async def test_tasks_wait_in_the_order_of_asking():
    turn = [0]
    turns = Turns(100, 20)
    order: list[int] = []

    async def ask(number: int) -> None:
        await turns.take(40)
        order.append(number)

    tasks = [asyncio.create_task(ask(number)) for number in range(12)]
    gone = asyncio.create_task(ask(99))
    await asyncio.sleep(0)
    gone.cancel()
    await asyncio.sleep(0)
    assert order == [0, 1, 2]
    await until_idle(turn, 20)
    assert order == list(range(12))
    await asyncio.gather(*tasks, gone, return_exceptions=True)


async def test_a_step_that_fails_stops_nobody_else():
    class Broken(Worker):
        def step(self, units: int) -> tuple[int, bool]:
            raise ValueError("broken")

    turn = [0]
    turns = Turns(100, 20)
    before, after = Worker(300, turn), Worker(10, turn)
    turns.enter(before)
    turns.enter(Broken(1, turn))
    turns.enter(after)
    told: list[dict[str, object]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: told.append(context))
    await until_idle(turn, 20)
    assert (before.left, after.left) == (0, 0)
    assert [str(context["exception"]) for context in told] == ["broken"]


async def test_a_gate_lets_one_through_in_some_turns_and_forgets_who_is_gone():
    turn = [0]
    gate = Gate(2)
    through: list[tuple[int, int]] = []

    async def pass_(number: int) -> None:
        await gate.enter()
        through.append((number, turn[0]))

    tasks = [asyncio.create_task(pass_(number)) for number in range(6)]
    await asyncio.sleep(0)
    tasks[2].cancel()
    await until_idle(turn, 40)
    assert [number for number, _ in through] == [0, 1, 3, 4, 5]
    turns = [at for _, at in through]
    assert all(later - earlier >= 2 for earlier, later in pairwise(turns))
    await gate.enter()  # nobody waits: it is open
    await asyncio.gather(*tasks, return_exceptions=True)
