"""A consumer as its user holds it: what it hands out, and what cancelling it costs: nothing."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from datetime import UTC, datetime
from itertools import pairwise

import pytest

import proglog
from proglog import Last, limits
from proglog.client.client import Log
from proglog.errors import (
    ConsumerGap,
    InvalidRequest,
    LogClosed,
    OffsetOutOfRange,
    Overloaded,
    Unavailable,
    UsageError,
)
from tests.client.fake import FakeBackend

pytestmark = pytest.mark.virtual_time


@pytest.fixture
def filled(backend):
    """Ten records in five batches, one batch a second."""
    for i in range(5):
        backend.log.extend([b"%d" % (2 * i), b"%d" % (2 * i + 1)], timestamp=1000 * i)
    return backend.log


def offsets(records):
    return [record.offset for record in records]


# --- one, many, batches --------------------------------------------------------------------------


async def test_one_at_a_time(log, filled):
    consumer = log.consume(8)
    assert (await consumer.getone()).offset == 8
    assert (await consumer.getone(timeout_seconds=1)).offset == 9
    assert await consumer.getone(timeout_seconds=1) is None
    assert consumer.position == 10
    waiting = asyncio.ensure_future(consumer.getone())
    await asyncio.sleep(100)
    await log.produce(b"new")
    assert (await waiting).value == b"new"
    ending = log.consume(10, follow=False)
    assert (await ending.getone()).offset == 10
    assert await ending.getone() is None


async def test_many_at_a_time(log, filled):
    consumer = log.consume(1)
    assert offsets(await consumer.getmany(2)) == [1, 2]
    assert consumer.position == 3
    assert offsets(await consumer.getmany(100, 1)) == list(range(3, 10))
    assert await consumer.getmany(100, 1) == []
    waiting = asyncio.ensure_future(consumer.getmany(100))
    await asyncio.sleep(1)
    await log.produce(b"new")
    assert offsets(await waiting) == [10]
    assert offsets(await log.consume(8, follow=False).getmany(100)) == [8, 9, 10]
    ended = log.consume(11, follow=False)
    assert await ended.getmany(100) == []
    for wrong in (0, -1, "5", None):
        with pytest.raises(InvalidRequest):
            await consumer.getmany(wrong)
    for wrong in (0, -1, "5"):
        with pytest.raises(InvalidRequest):
            await consumer.getone(wrong)


async def test_ways_to_take_may_be_mixed(log, backend):
    for first in range(0, 20_000, 5000):
        backend.log.extend([b"%d" % (first + i) for i in range(5000)])
    taken = []
    consumer = log.consume(3, follow=False)
    taken.append((await anext(consumer)).offset)
    taken += offsets(await consumer.getmany(1500))
    taken.append((await consumer.getone()).offset)
    async for batch in consumer.batches():
        taken += offsets(batch)
        assert consumer.position == taken[-1] + 1
        if taken[-1] > 9000:
            break
    async for record in consumer:
        taken.append(record.offset)
        assert consumer.position == taken[-1] + 1
    assert taken == list(range(3, 20_000))


async def test_a_hot_loop_lets_others_run(log, backend):
    backend.log.extend([b"%d" % i for i in range(20_000)])
    turns = 0

    async def count():
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    counting = asyncio.ensure_future(count())
    async for _ in log.consume(0, follow=False):
        pass
    counting.cancel()
    assert turns >= 20


# --- where it is ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("start", "first"),
    [
        (4, 4),
        ("earliest", 0),
        ("latest", 10),
        (Last(3), 7),
        (Last(0), 10),
        (Last(100), 0),
        (datetime.fromtimestamp(2.5, UTC), 6),
        (datetime.fromtimestamp(1000, UTC), 10),
    ],
    ids=str,
)
async def test_entering_fixes_the_start(log, filled, start, first):
    consumer = log.consume(start)
    assert consumer.position == (start if isinstance(start, int) else None)
    async with consumer:
        assert consumer.position == first
        await log.produce(b"new")
        assert (await consumer.getone()).offset == first
    with pytest.raises(LogClosed):
        await consumer.getone()


async def test_the_last_ones_where_retention_has_deleted_some(log, filled):
    filled.earliest = 6
    assert offsets(await log.consume(Last(100)).getmany(100)) == [6, 7, 8, 9]


@pytest.mark.parametrize("start", [-1, Last(-1), Last("5"), "first", None, 1.5, 2**64, True])
async def test_what_is_no_start(log, start):
    with pytest.raises(InvalidRequest):
        log.consume(start)
    consumer = log.consume(0)
    with pytest.raises(InvalidRequest):
        consumer.seek(start)
    with pytest.raises(InvalidRequest, match="zone"):
        log.consume(datetime(2026, 1, 1))
    with pytest.raises(InvalidRequest, match="consistency is one of session, any"):
        log.consume(0, consistency="strong")
    with pytest.raises(InvalidRequest, match="on_gap"):
        log.consume(0, on_gap="ignore")


async def test_seeking(log, filled):
    consumer = log.consume(5)
    assert (await consumer.getone()).offset == 5
    for start, first in ((2, 2), ("earliest", 0), (Last(1), 9), (6, 6), (6, 6)):
        consumer.seek(start)
        assert (await consumer.getone()).offset == first
    consumer.seek("latest")
    waiting = asyncio.ensure_future(consumer.getone())
    await asyncio.sleep(1)
    with pytest.raises(UsageError):
        consumer.seek(0)
    await log.produce(b"new")
    assert (await waiting).offset == 10


async def test_lag(log, filled):
    consumer = log.consume("earliest")
    assert await consumer.lag() == 10
    await consumer.getmany(4)
    assert await consumer.lag() == 6
    await log.produce_many([b"a", b"b"])
    assert await consumer.lag() == 8
    assert await log.consume("latest").lag() == 0


async def test_two_tasks_in_one_consumer_are_told(log, filled):
    consumer = log.consume(10)
    waiting = asyncio.ensure_future(anext(consumer))
    await asyncio.sleep(1)
    with pytest.raises(UsageError, match="one task at a time"):
        await anext(consumer)
    await log.produce(b"new")
    assert (await waiting).offset == 10


# --- cancelled, and failed -----------------------------------------------------------------------


async def test_what_is_cancelled_is_taken_up_again(log, backend):
    consumer = log.consume(0)
    taken = []
    for number in range(200):
        with suppress(TimeoutError):
            async with asyncio.timeout(0.001 * (number % 7)):
                taken.append((await anext(consumer)).offset)
        with suppress(TimeoutError):
            taken.append((await asyncio.wait_for(anext(consumer), 0.001)).offset)
        if number % 3 == 0:
            backend.log.extend([b"x"] * 3)
    taken += offsets(await consumer.getmany(10_000))
    assert taken == list(range(backend.log.next))


async def test_a_timeout_and_a_record_in_the_same_turn(log, backend):
    loop = asyncio.get_running_loop()
    taken = []
    consumer = log.consume(0)
    for number in range(50):
        loop.call_at(loop.time() + 1, backend.log.extend, [b"x"])
        with suppress(TimeoutError):
            async with asyncio.timeout(1 + 0.0001 * (number % 3 - 1)):
                taken.append((await anext(consumer)).offset)
        await asyncio.sleep(1)
    taken += offsets(await consumer.getmany(1000, 1))
    assert taken == list(range(50))


async def test_an_error_does_not_end_it(backend, filled):
    async with Log(backend, timeout_seconds=0.1) as log:
        consumer = log.consume(0)
        assert len(await consumer.getmany(100)) == 10
        backend.consume_faults.extend([(0, Unavailable("no node"))] * 1000)
        (reader,) = log._readers._open
        reader.evict()
        for _ in range(2):
            with pytest.raises(Unavailable):
                await consumer.getone()
        backend.consume_faults.clear()
        await log.produce(b"new")
        assert (await consumer.getone()).offset == 10


async def test_one_that_starts_in_what_retention_deleted(log, filled):
    filled.earliest = 6
    consumer = log.consume(3)
    with pytest.raises(OffsetOutOfRange):
        await consumer.getone()
    consumer.seek("earliest")
    assert (await consumer.getone()).offset == 6
    assert (await log.consume(3, on_gap="skip").getone()).offset == 6


async def test_a_server_that_accepts_and_says_nothing_is_no_server(backend):
    async def silent(start, **_options):
        await asyncio.Event().wait()
        yield

    backend.consume = silent
    async with Log(backend, timeout_seconds=7) as log:
        loop = asyncio.get_running_loop()
        began = loop.time()
        with pytest.raises(Unavailable, match="says nothing"):
            await log.consume(0).getone()
        assert loop.time() - began < 20
        with pytest.raises(Unavailable, match="says nothing"):
            await log.consume("latest").getone()


async def test_closing_the_log_is_told_to_who_waits(backend):
    async with Log(backend) as log:
        calls = [
            asyncio.ensure_future(call)
            for call in (
                log.consume(0).getone(),
                log.consume("latest").getmany(5),
                anext(log.consume(0).batches()),
                log.consume(0, follow=True, after=5).getone(),
            )
        ]
        await asyncio.sleep(1)
    for result in await asyncio.gather(*calls, return_exceptions=True):
        assert isinstance(result, LogClosed)
    assert backend.open_consumers == 0
    assert len(asyncio.all_tasks()) == 1


# --- many consumers ------------------------------------------------------------------------------


async def test_no_turn_of_the_loop_wakes_them_all(log, backend, monkeypatch):
    monkeypatch.setattr(limits, "client_wake_consumers_max", 10)
    consumers = [log.consume(0) for _ in range(100)]
    calls = [asyncio.ensure_future(anext(each)) for each in consumers]
    await asyncio.sleep(1)
    backend.log.extend([b"x"])
    done = []
    while not all(call.done() for call in calls):
        await asyncio.sleep(0)
        done.append(sum(call.done() for call in calls))
    assert max(b - a for a, b in pairwise(done)) <= 10


async def test_a_slow_consumer_delays_nobody_and_loses_nothing(log, backend, monkeypatch):
    monkeypatch.setattr(limits, "client_window_bytes_max", 20_000)
    monkeypatch.setattr(limits, "client_prefetch_bytes_max", 20_000)
    slow, quick = log.consume(0), log.consume(0)
    await log.produce(b"first")
    assert (await slow.getone()).offset == (await quick.getone()).offset == 0
    for number in range(1, 100):
        await log.produce(bytes(1000))
        assert (await quick.getone()).offset == number
    assert offsets(await slow.getmany(1)) == [1]
    taken = []
    while len(taken) < 98:
        taken += offsets(await slow.getmany(100))
    assert taken == list(range(2, 100))
    waiting = [asyncio.ensure_future(each.getone()) for each in (slow, quick)]
    await asyncio.sleep(1)
    assert backend.open_consumers == 1, "they meet again at the end"
    await log.produce(b"last")
    assert offsets(await asyncio.gather(*waiting)) == [100, 100]


async def test_streams_that_nobody_takes_from_give_way(backend, monkeypatch):
    monkeypatch.setattr(limits, "client_readers_max", 3)
    monkeypatch.setattr(limits, "client_prefetch_bytes_max", 1)
    for number in range(100):
        backend.log.extend([b"%d" % number])
    async with Log(backend, timeout_seconds=5) as log:
        consumers = [log.consume(10 * number) for number in range(10)]
        seen = {number: [] for number in range(10)}
        for _ in range(5):
            found = await asyncio.gather(*(each.getone() for each in consumers))
            for number, record in enumerate(found):
                seen[number].append(record.offset)
        assert seen == {number: list(range(10 * number, 10 * number + 5)) for number in range(10)}
        assert backend.open_consumers <= 3


async def test_where_all_streams_are_in_use_one_more_says_so(backend, monkeypatch):
    monkeypatch.setattr(limits, "client_readers_max", 2)
    async with Log(backend, timeout_seconds=1) as log:
        consumers = [log.consume(0, after=0) for _ in range(2)]
        waiting = [asyncio.ensure_future(each.getone()) for each in consumers]
        await asyncio.sleep(0.1)
        third = log.consume(0, after=0)
        with pytest.raises(Overloaded, match="2 consumers of this log"):
            await third.getone()
        one_more = asyncio.ensure_future(third.getone())
        await asyncio.sleep(0.1)
        await log.produce(b"x")
        await asyncio.gather(*waiting)
        await consumers[0].aclose()
        assert (await one_more).offset == 0


# --- what a session was told ---------------------------------------------------------------------


async def test_a_session_never_goes_back(backend):
    """A node that is behind what this log object was told is waited for, or another one asked."""
    async with Log(backend, timeout_seconds=1) as log:
        for number in range(5):
            assert await log.produce(b"%d" % number) == number
        kept, backend.log = backend.log, FakeBackend().log
        backend.log.batches, backend.log.next = kept.batches[:3], 3
        with pytest.raises(Unavailable, match="offset 4"):
            await log.read(4)
        with pytest.raises(Unavailable, match="offset 4"):
            await log.describe()
        with pytest.raises(Unavailable, match="offset 4"):
            _ = [record async for record in log.consume(0, follow=False)]
        assert (await log.describe(consistency="any")).next == 3
        with pytest.raises(OffsetOutOfRange):
            await log.read(4, consistency="any")
        stale = [r.offset async for r in log.consume(0, follow=False, consistency="any")]
        assert stale == [0, 1, 2]
        async with log.consume("latest") as consumer:
            assert consumer.position == 5
        asyncio.get_running_loop().call_later(0.5, setattr, backend, "log", kept)
        assert (await log.read(4)).value == b"4"


async def test_a_gap_is_told_once(log, backend, filled, monkeypatch):
    monkeypatch.setattr(limits, "client_prefetch_bytes_max", 1)
    consumer = log.consume(0)
    await consumer.getone()
    filled.earliest = 7
    await consumer.getone()
    with pytest.raises(ConsumerGap):
        await consumer.getone(1)
    assert offsets(await consumer.getmany(3, 1)) == [7]
    assert offsets(await consumer.getmany(3, 1)) == [8, 9]


def test_names():
    assert proglog.Consumer is not None
    assert Last(3) == (3,)
