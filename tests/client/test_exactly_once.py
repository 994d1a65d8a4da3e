"""Exactly once, under a network that loses, delays and repeats: what is told is true.

Time is simulated; the log decides about retries by the server's own code. Each seed is a run of
many producers' calls over streams that break in every way that a stream can.
"""

from __future__ import annotations

import asyncio
import copy
import random

import pytest

from proglog import batch, limits
from proglog.batch import ProposedBatch
from proglog.client.client import Log
from proglog.client.sender import Unresolved
from proglog.errors import (
    DiskFull,
    EarlierRefused,
    NotLeader,
    OutcomeUnknown,
    Overloaded,
    ProglogError,
    Unavailable,
)
from tests.client.fake import FakeBackend
from tests.doubles.loop import run

SEEDS = 100
FOR_NOW = [NotLeader("no"), Unavailable("draining"), Overloaded("busy")]
FOR_GOOD = [DiskFull("full")]


class Network(FakeBackend):
    """The way to one log. `chance` decides what goes wrong; `trouble` how often, at most 1."""

    def __init__(
        self,
        chance: random.Random,
        refusals: list[ProglogError],
        *,
        trouble: float,
        crowd: float = 0,
    ) -> None:
        super().__init__()
        self.crowd = crowd
        self.chance = chance
        self.refusals = refusals
        self.trouble = trouble
        self.tasks: set[asyncio.Task[None]] = set()

    def goes_wrong(self, probability: float) -> bool:
        return self.chance.random() < probability * self.trouble

    def come_others(self) -> None:
        """Others produce meanwhile: so many, at most, that the log forgets whom it knew."""
        while self.chance.random() < self.crowd:
            log = self.log
            body = batch.encode([b"other %d" % log.next])
            producer_id = self.chance.getrandbits(62) + 2**62
            log.append(ProposedBatch(body, producer_id, seen_index=len(log.batches)))

    def delay(self) -> float:
        return self.chance.choice([0, 0.001, 0.01, 0.3]) * self.chance.random()

    async def open_produce(self) -> Stream:
        await asyncio.sleep(self.delay())
        if self.goes_wrong(0.2):
            raise self.chance.choice([Unavailable("no connection"), OutcomeUnknown("reset")])
        stream = Stream(self)
        for task in stream.tasks:
            self.tasks.add(task)
        return stream

    async def settle(self) -> None:
        """Until nothing is on its way any more."""
        await asyncio.wait(self.tasks)


class Stream:
    """Requests and answers travel one after the other. A stream that is closed may still deliver
    what was sent on it: a later one may overtake it."""

    def __init__(self, network: Network) -> None:
        self.network = network
        self.requests: asyncio.Queue = asyncio.Queue()
        self.answers: asyncio.Queue = asyncio.Queue()
        self.unanswered: list[asyncio.Future] = []
        self.end: ProglogError | None = None
        self.mute = network.goes_wrong(0.1)
        loop = asyncio.get_running_loop()
        self.tasks = [loop.create_task(self.serve()), loop.create_task(self.deliver())]

    async def submit(self, proposed):
        if self.network.goes_wrong(0.1):
            await asyncio.sleep(self.network.delay())
        if self.end is not None:
            definite = self.end.outcome.value == "definite"
            raise type(self.end)("ended") if definite else Unavailable("ended")
        answer = asyncio.get_running_loop().create_future()
        self.unanswered.append(answer)
        self.requests.put_nowait(proposed)
        return answer

    async def close(self):
        self.end = self.end or OutcomeUnknown("closed")
        self.requests.put_nowait(None)

    async def serve(self):
        """The node: it appends, in order, until it refuses one or is lost."""
        while (proposed := await self.requests.get()) is not None:
            await asyncio.sleep(self.network.delay())
            if self.network.goes_wrong(0.05):
                self.answers.put_nowait(OutcomeUnknown("lost on the way there"))
                return
            if self.network.goes_wrong(0.1):
                self.answers.put_nowait(self.network.chance.choice(self.network.refusals))
                return
            self.network.come_others()
            try:
                appended = self.network.log.append(proposed)
            except ProglogError as error:
                self.answers.put_nowait(error)
                return
            if self.network.goes_wrong(0.1):
                self.answers.put_nowait(OutcomeUnknown("lost on the way back"))
                return
            self.answers.put_nowait(appended)
        self.answers.put_nowait(OutcomeUnknown("the stream ended"))

    async def deliver(self):
        while True:
            result = await self.answers.get()
            await asyncio.sleep(self.network.delay())
            if isinstance(result, ProglogError):
                break
            if not self.mute:
                self._answer(result)
        if not self.mute:
            self.end = self.end or result
            self._answer(result)
            rest = EarlierRefused("earlier") if result.outcome.value == "definite" else result
            while self.unanswered:
                self._answer(rest)

    def _answer(self, result):
        if not self.unanswered:
            return
        answer = self.unanswered.pop(0)
        if answer.done():
            return
        if isinstance(result, ProglogError):
            answer.set_exception(copy.copy(result))
        else:
            answer.set_result(result)


class Calls:
    """What was asked for, in order, and what came of it."""

    def __init__(self, log: Log, chance: random.Random) -> None:
        self.log = log
        self.chance = chance
        self.asked: list[tuple[list[bytes], asyncio.Task]] = []
        self.tasks: list[asyncio.Task] = []

    async def make(self, count: int) -> None:
        for _ in range(count):
            call = self._produce if self.chance.random() < 0.7 else self._produce_many
            self.tasks.append(asyncio.ensure_future(call()))
            pause = self.chance.random() * 0.2 if self.chance.random() < 0.3 else 0
            await asyncio.sleep(pause)
            if self.chance.random() < 0.02:
                self.chance.choice(self.tasks).cancel()

    def _values(self, count: int, size: int) -> list[bytes]:
        values = [b"%d.%d %s" % (len(self.asked), i, bytes(size)) for i in range(count)]
        self.asked.append((values, asyncio.current_task()))
        return values

    async def _produce(self) -> list[int]:
        (value,) = self._values(1, self.chance.choice([1, 10, limits.client_batch_bytes_target]))
        try:
            return [await self.log.produce(value)]
        except OutcomeUnknown as unknown:
            return [await self._resolved(unknown)]

    async def _produce_many(self) -> list[int]:
        values = self._values(self.chance.randrange(1, 5), 10)
        try:
            return list(await self.log.produce_many(values))
        except OutcomeUnknown as unknown:
            first = await self._resolved(unknown)
            return list(range(first, first + len(values)))

    async def _resolved(self, unknown: OutcomeUnknown) -> int:
        if self.chance.random() < 0.5:
            raise unknown
        return await self.log.resolve(unknown)


async def play(
    seed: int, refusals: list[ProglogError], timeout_seconds: float, *, crowd: float = 0
):
    """A run: values and result of each call, and what the log holds in the end."""
    chance = random.Random(seed)
    network = Network(chance, refusals, trouble=chance.random(), crowd=crowd)
    async with Log(network, timeout_seconds=timeout_seconds, chance=chance) as log:
        calls = Calls(log, chance)
        await calls.make(60)
        await asyncio.wait(calls.tasks)
    await network.settle()
    assert log._batcher._budget.taken == 0
    results = [
        asyncio.CancelledError() if task.cancelled() else task.exception() or task.result()
        for _, task in calls.asked
    ]
    return [values for values, _ in calls.asked], results, network.log.values()


def check(asked, results, stored):
    assert len(stored) == len(set(stored)), "a record is in the log twice"
    told = []
    for values, result in zip(asked, results, strict=True):
        if isinstance(result, list):
            assert [stored[offset] for offset in result] == values
            told.extend(result)
        elif not isinstance(result, OutcomeUnknown | asyncio.CancelledError):
            assert isinstance(result, ProglogError), result
            assert not set(values) & set(stored), "it was refused, and is in the log"
    assert told == sorted(told), "out of order"


@pytest.mark.parametrize("first", range(0, SEEDS, 50))
def test_every_record_is_in_the_log_once_and_in_order(first):
    for seed in range(first, first + 50):
        asked, results, stored = run(play(seed, FOR_NOW, 1000), seed=seed, shuffle=True)
        check(asked, results, stored)
        assert {type(result) for result in results} <= {list, asyncio.CancelledError}, seed
        # A call that was cancelled after it was made does not take its records back.
        assert stored == [value for values in asked for value in values], seed


@pytest.mark.parametrize("first", range(0, SEEDS, 50))
def test_what_is_told_is_true_whatever_happens(first):
    kinds = set()
    for seed in range(first, first + 50):
        timeout = random.Random(seed).choice([0.1, 0.5, 2])
        asked, results, stored = run(
            play(seed, FOR_NOW + FOR_GOOD, timeout), seed=seed, shuffle=True
        )
        check(asked, results, stored)
        kinds.update(map(type, results))
    assert kinds >= {list, Unresolved, OutcomeUnknown, DiskFull}


@pytest.mark.parametrize("crowd", [0.3, 0.6, 0.8])
@pytest.mark.parametrize("first", range(0, SEEDS, 50))
def test_what_is_told_is_true_whoever_is_forgotten(first, crowd, monkeypatch):
    """The log knows three producers, and this one is idle as soon as it hears nothing."""
    monkeypatch.setattr(limits, "producers_max", 3)
    kinds = set()
    for seed in range(first, first + 50):
        asked, results, stored = run(play(seed, FOR_NOW, 1000, crowd=crowd), seed=seed)
        check(asked, results, stored)
        kinds.update(map(type, results))
    # Whoever was in no doubt did not notice: it was sent again, under another id.
    assert kinds <= {list, asyncio.CancelledError, OutcomeUnknown, Unresolved, EarlierRefused}
    assert list in kinds
