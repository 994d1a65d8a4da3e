"""The consumer against a log in memory: where it begins, and what it does when interrupted."""

from __future__ import annotations

import asyncio
import gc
from contextlib import aclosing
from datetime import UTC, datetime

import pytest

from proglog import batch, limits
from proglog.batch import Codec, ProposedBatch
from proglog.client.client import Log
from proglog.errors import (
    ROWS,
    ConsumerGap,
    InvalidRequest,
    OffsetOutOfRange,
    Outcome,
    RangeCorrupt,
    Unavailable,
)
from proglog.types import Chunk

pytestmark = pytest.mark.virtual_time


@pytest.fixture
def filled(backend):
    """Ten records in five batches, one batch a second."""
    for i in range(5):
        backend.log.extend([b"%d" % (2 * i), b"%d" % (2 * i + 1)], timestamp=1000 * i)
    return backend.log


async def offsets(records):
    return [record.offset async for record in records]


async def take(records, count):
    async with aclosing(records):
        return [(await anext(records)).offset for _ in range(count)]


# --- where it begins -----------------------------------------------------------------------------


async def test_records_come_in_order_with_all_they_have(log, filled):
    records = [record async for record in log.consume(follow=False)]
    assert [record.offset for record in records] == list(range(10))
    assert [record.value for record in records] == [b"%d" % i for i in range(10)]
    assert records[3] == (3, b"3", None, (), 1000)


async def test_an_offset_amid_a_batch(log, filled):
    assert await offsets(log.consume(3, follow=False)) == [3, 4, 5, 6, 7, 8, 9]
    assert await offsets(log.consume(10, follow=False)) == []


async def test_a_time(log, filled):
    moment = datetime(1970, 1, 1, 0, 0, 3, tzinfo=UTC)
    assert await offsets(log.consume(datetime.fromtimestamp(2.5, UTC), follow=False)) == [
        6,
        7,
        8,
        9,
    ]
    assert await offsets(log.consume(moment, follow=False)) == [6, 7, 8, 9]
    assert await offsets(log.consume(datetime.fromtimestamp(9, UTC), follow=False)) == []


async def test_earliest_and_latest(log, filled):
    filled.earliest = 4
    assert await offsets(log.consume("earliest", follow=False)) == [4, 5, 6, 7, 8, 9]
    assert await offsets(log.consume("latest", follow=False)) == []
    latest = log.consume("latest")
    waiting = asyncio.ensure_future(anext(latest))
    while filled.next == 10 and not log._backend.open_consumers:
        await asyncio.sleep(0)
    await asyncio.sleep(0)
    await log.produce(b"new")
    assert (await waiting).value == b"new"
    await latest.aclose()


@pytest.mark.parametrize("start", [-1, 2**64, "first", 1.5, None])
async def test_a_start_that_is_none(log, start):
    with pytest.raises(InvalidRequest):
        log.consume(start)


async def test_out_of_range_at_the_start(log, filled):
    filled.earliest = 4
    with pytest.raises(OffsetOutOfRange):
        await offsets(log.consume(3))
    with pytest.raises(OffsetOutOfRange):
        await offsets(log.consume(11))
    assert await offsets(log.consume(3, follow=False, on_gap="skip")) == [4, 5, 6, 7, 8, 9]


async def test_batches_are_sized_and_iterable(log, filled):
    batches = [records async for records in log.consume_batches(3, follow=False)]
    assert [len(records) for records in batches] == [1, 2, 2, 2]
    assert [record.offset for records in batches for record in records] == list(range(3, 10))
    assert batches[0].values == [b"3"]


async def test_read_and_describe(log, filled):
    assert (await log.read(7)).value == b"7"
    with pytest.raises(OffsetOutOfRange):
        await log.read(10)
    with pytest.raises(InvalidRequest):
        await log.read(-1)
    assert (await log.describe()).next == 10


# --- following and stopping ----------------------------------------------------------------------


async def test_it_follows_the_tail(log, filled):
    records = log.consume(8)
    assert await take(records, 2) == [8, 9]
    records = log.consume(10)
    waiting = asyncio.ensure_future(anext(records))
    await asyncio.sleep(0.01)
    assert not waiting.done()
    filled.extend([b"10"])
    assert (await waiting).value == b"10"
    await records.aclose()


async def test_stopping_lets_go_of_the_log(log, backend, filled):
    records = log.consume(0)
    await anext(records)
    assert backend.open_consumers == 1
    await records.aclose()
    assert backend.open_consumers == 0

    waiting = asyncio.ensure_future(offsets(log.consume(10)))
    await asyncio.sleep(0.01)
    assert backend.open_consumers == 1
    waiting.cancel()
    await asyncio.wait([waiting])
    assert waiting.cancelled()
    del waiting  # and with it the trace of how it ended
    gc.collect()
    await asyncio.sleep(0.01)
    assert backend.open_consumers == 0, "nobody holds the consumer any more"


# --- interruptions -------------------------------------------------------------------------------


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.reason)
async def test_each_error_is_outlived_or_raised(log, backend, filled, row):
    """Reading changes nothing, so it goes on after an unknown outcome too."""
    backend.consume_faults.append((4, row("it failed")))
    outlived = row.reason in {
        "NOT_LEADER",
        "UNAVAILABLE",
        "OVERLOADED",
        "EARLIER_REFUSED",
        "RANGE_CORRUPT",
    }
    records = log.consume(0, follow=False)
    if outlived or row.outcome is Outcome.UNKNOWN:
        assert await offsets(records) == list(range(10))
        assert backend.consumed == [0, 4]
    else:
        with pytest.raises(row):
            await offsets(records)


async def test_it_goes_on_at_the_next_offset_whatever_the_start(log, backend, filled):
    for start, first in (("earliest", 0), (1, 1), (datetime.fromtimestamp(1, UTC), 2)):
        backend.consume_faults.extend([(2, Unavailable("x")), (6, Unavailable("x"))])
        assert await offsets(log.consume(start, follow=False)) == list(range(first, 10))
        backend.consume_faults.clear()


async def test_a_stream_that_ends_is_taken_up_again_when_following(log, backend, filled):
    consume = backend.consume
    calls = 0

    def ending(start, *, follow, linearizable, leader):
        nonlocal calls
        calls += 1
        return consume(start, follow=follow and calls > 1)

    backend.consume = ending
    records = log.consume(0)
    for offset in range(10):
        assert (await anext(records)).offset == offset
    waiting = asyncio.ensure_future(anext(records))
    while calls < 2:
        await asyncio.sleep(0.001)
    filled.extend([b"10"])
    assert (await waiting).offset == 10
    await records.aclose()


async def test_it_gives_up_when_nothing_helps(backend, filled):
    backend.consume_faults.extend([(4, Unavailable("no node"))] * 1000)
    async with Log(backend, timeout_seconds=0.1) as log:
        seen = []
        with pytest.raises(Unavailable, match="no node"):
            async for record in log.consume(0):
                seen.append(record.offset)
        assert seen == [0, 1, 2, 3]


async def test_what_gets_on_does_not_give_up(backend, filled):
    """The time allowed is for one interruption, not for all of them together."""
    backend.consume_faults.extend([(offset, Unavailable("x")) for offset in (2, 4, 6, 8)])
    consume = backend.consume

    async def slowly(start, *, follow, linearizable, leader):
        await asyncio.sleep(0.04)
        async with aclosing(consume(start, follow=follow)) as chunks:
            async for chunk in chunks:
                yield chunk

    backend.consume = slowly
    async with Log(backend, timeout_seconds=0.1) as log:
        assert await offsets(log.consume(0, follow=False)) == list(range(10))


async def test_it_raises_what_retention_took(log, backend, filled, monkeypatch):
    monkeypatch.setattr(limits, "client_prefetch_bytes_max", 1)
    records = log.consume(0)
    assert (await anext(records)).offset == 0
    filled.earliest = 7
    assert (await anext(records)).offset == 1  # Of the batch it has got already.
    with pytest.raises(ConsumerGap) as caught:
        await anext(records)
    assert caught.value.number("lost_from") == 2
    assert caught.value.number("lost_until") == 7
    assert records.position == 7
    assert (await anext(records)).offset == 7, "to call again is to go on"


async def test_it_skips_what_retention_took_if_told_to(log, backend, filled, monkeypatch):
    monkeypatch.setattr(limits, "client_prefetch_bytes_max", 1)
    records = log.consume(0, on_gap="skip")
    assert (await anext(records)).offset == 0
    filled.earliest = 7
    assert await take(records, 4) == [1, 7, 8, 9]


async def test_it_waits_for_a_node_that_lags_behind(log, backend, filled):
    out_of_range = OffsetOutOfRange.of(6, 0, 4)
    backend.consume_faults.extend([(6, Unavailable("lost")), (6, out_of_range)])
    assert await offsets(log.consume(0, follow=False)) == list(range(10))


async def test_damaged_records_are_never_shown(backend, filled):
    header, stored = filled.batches[2]
    filled.batches[2] = header, stored[:-1] + b"X"
    async with Log(backend, timeout_seconds=0.05) as log:
        seen = []
        with pytest.raises(RangeCorrupt) as caught:
            async for record in log.consume(0):
                seen.append(record.offset)
        assert seen == [0, 1, 2, 3]
        assert caught.value.number("offset") == 4
        assert {type(error) for error in backend.thrown} == {RangeCorrupt}  # The backend knows.


async def test_a_frame_that_lies_about_its_size_is_damage(backend):
    good = batch.encode([b"a" * 1000], compress=True)
    backend.log.append(ProposedBatch(good._replace(codec=Codec.ZSTD, count=1, columns=1)))
    async with Log(backend, timeout_seconds=0.05) as log:
        with pytest.raises(RangeCorrupt):
            await offsets(log.consume(0))


async def test_records_that_a_repair_gave_up_are_told_or_skipped(backend, filled):
    async def with_gaps(start, *, follow, linearizable, leader):
        first, third = filled.batches[0][1], filled.batches[2][1]
        if start in {0, "earliest"}:
            yield Chunk(first + third, 8)
        else:
            yield Chunk(third if start <= 4 else b"", 8)

    backend.consume = with_gaps
    async with Log(backend) as log:
        for start, lost in ((0, (2, 4)), (3, (3, 4)), (4, (6, 8))):
            with pytest.raises(ConsumerGap, match="gave them up") as caught:
                await offsets(log.consume(start, follow=False))
            facts = caught.value.number("lost_from"), caught.value.number("lost_until")
            assert facts == lost
        for start, found in ((0, [0, 1, 4, 5]), (3, [4, 5]), ("earliest", [0, 1, 4, 5])):
            records = log.consume(start, follow=False, on_gap="skip")
            assert await offsets(records) == found


async def test_records_that_come_twice_stop_it(backend, filled):
    async def repeating(start, *, follow, linearizable, leader):
        yield Chunk(filled.batches[1][1] + filled.batches[0][1], 4)

    backend.consume = repeating
    async with Log(backend) as log:
        with pytest.raises(AssertionError):
            await offsets(log.consume(2))


# --- reading what was written --------------------------------------------------------------------


async def test_a_node_that_is_behind_is_waited_for(backend, filled):
    async with Log(backend, timeout_seconds=5) as log:
        asyncio.get_running_loop().call_later(0.05, filled.extend, [b"10", b"11"])
        assert (await log.read(11, after=11)).value == b"11"
        asyncio.get_running_loop().call_later(0.05, filled.extend, [b"12"])
        assert await offsets(log.consume(9, after=12, follow=False)) == [9, 10, 11, 12]
        asyncio.get_running_loop().call_later(0.05, filled.extend, [b"13", b"14"])
        assert await take(log.consume(14, after=14), 1) == [14]
        asyncio.get_running_loop().call_later(0.05, filled.extend, [b"15"])
        assert await offsets(log.consume("latest", after=15, follow=False)) == []
    assert filled.next == 16, "what is said of the end was waited for"


async def test_a_node_that_stays_behind_and_offsets_that_nobody_promised(backend, filled):
    async with Log(backend, timeout_seconds=0.05) as log:
        with pytest.raises(Unavailable, match="offset 10"):
            await log.read(10, after=10)
        with pytest.raises(Unavailable, match="offset 10"):
            await offsets(log.consume(0, after=10, follow=False))
        with pytest.raises(OffsetOutOfRange):
            await log.read(10, after=9)
        with pytest.raises(OffsetOutOfRange):
            await offsets(log.consume(12, after=9))
        assert await offsets(log.consume(7, after=9, follow=False)) == [7, 8, 9]
        with pytest.raises(InvalidRequest):
            log.consume(after=-1)


async def test_linearizable_is_asked_for_each_time(log, backend, filled):
    backend.consume_faults.append((4, Unavailable("lost")))
    assert await offsets(log.consume(0, consistency="linearizable", follow=False)) == list(
        range(10)
    )
    assert await offsets(log.consume(9, follow=False)) == [9]
    assert backend.linearizable == [True, True, False]
