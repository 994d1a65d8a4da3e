"""The producer against a log in memory: batching, order, bounds, and what it does about errors."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime

import pytest

from proglog import batch, errors, limits
from proglog.batch import ProposedBatch
from proglog.client.client import Log
from proglog.client.sender import Unresolved
from proglog.errors import (
    DiskFull,
    EarlierRefused,
    InvalidBatch,
    InvalidRequest,
    NotLeader,
    OffsetMismatch,
    OutcomeUnknown,
    Overloaded,
    TooLarge,
    Unavailable,
    UnknownLog,
    UnknownProducer,
)
from proglog.replica.producers import Producers
from tests.client.fake import FakeStream, Lost
from tests.waiting import until

pytestmark = pytest.mark.virtual_time


async def turns(count: int = 20) -> None:
    """Lets everything run that is ready to."""
    for _ in range(count):
        await asyncio.sleep(0)


def start(log, values):
    return [asyncio.ensure_future(log.produce(value)) for value in values]


# --- batching ------------------------------------------------------------------------------------


async def test_a_lone_record_leaves_at_once(log, backend):
    assert await log.produce(b"hello") == 0
    assert await log.produce(b"again") == 1
    assert [len(p.body.data) for p in backend.submitted] == [9, 9]


async def test_calls_at_the_same_time_share_a_batch(log, backend):
    offsets = await asyncio.gather(*(log.produce(b"%d" % i) for i in range(100)))
    assert offsets == list(range(100))
    assert [p.body.count for p in backend.submitted] == [100]
    assert backend.log.values() == [b"%d" % i for i in range(100)]


async def test_a_batch_is_what_gathered_while_the_one_before_was_under_way(log, backend):
    backend.held = True
    first = start(log, [b"a"])
    await turns()
    rest = start(log, [b"b", b"c"])
    await turns()
    rest += start(log, [b"d"])
    await turns()
    assert [p.body.count for p in backend.submitted] == [1]
    backend.answer()
    await turns()
    assert [p.body.count for p in backend.submitted] == [1, 3]
    backend.answer()
    assert await asyncio.gather(*first, *rest) == [0, 1, 2, 3]


async def test_full_batches_do_not_wait_for_answers_but_only_so_many_are_under_way(log, backend):
    backend.held = True
    value = bytes(limits.client_batch_bytes_target // 2 - 100)
    calls = start(log, [value] * 80)
    await turns(200)
    assert len(backend.submitted) == limits.client_inflight_batches_max
    assert {p.body.count for p in backend.submitted} == {2}
    backend.answer()
    await turns()
    assert len(backend.submitted) == limits.client_inflight_batches_max + 1
    for _ in range(60):
        backend.answer()
        await turns()
    assert await asyncio.gather(*calls) == list(range(80))


async def test_no_batch_exceeds_its_bound_unless_one_record_does(log, backend):
    sizes = [1, 200_000, 1, 100_000, 300_000, 1, 262_140, 5, limits.batch_bytes_max - 4]
    await asyncio.gather(*(log.produce(bytes(size)) for size in sizes))
    assert [len(v) for v in backend.log.values()] == sizes
    for proposed in backend.submitted:
        size = len(proposed.body.data)
        assert size <= limits.client_batch_bytes_target or proposed.body.count == 1


async def test_a_record_too_large_for_any_batch_is_refused_at_once(log, backend):
    with pytest.raises(TooLarge) as caught:
        await log.produce(bytes(limits.batch_bytes_max))
    assert caught.value.number("bytes_max") == limits.batch_bytes_max
    with pytest.raises(TooLarge):
        await log.produce_many([b"a", bytes(limits.batch_bytes_max)])
    assert backend.submitted == []
    assert await log.produce(b"b") == 0


async def test_produce_waits_for_room_in_the_buffer_and_keeps_the_order(log, backend, monkeypatch):
    monkeypatch.setattr(limits, "client_buffer_bytes_max", 1000)
    backend.held = True
    sizes = [400, 400, 400, 10, 2000, 10, 500, 600]
    calls = start(log, [bytes(size) for size in sizes])
    await turns()
    taken = log._batcher._budget.taken
    assert taken <= 1000
    for _ in range(20):
        backend.answer()
        await turns()
    assert await asyncio.gather(*calls) == list(range(8))
    assert [len(value) for value in backend.log.values()] == sizes
    assert log._batcher._budget.taken == 0


async def test_columns_travel_with_their_records(log, backend):
    moment = datetime(2020, 1, 2, 3, 4, 5, 678000, tzinfo=UTC)
    await asyncio.gather(
        log.produce(b"plain"),
        log.produce(b"keyed", key=b"k"),
        log.produce(bytearray(b"timed"), timestamp=moment),
        log.produce(b"empty key", b""),
        log.produce(b"headed", headers={"a": b"1", "b": b""}),
        log.produce(b"all", b"k2", [("c", b"2")], 7),
    )
    assert [r[1:] for r in backend.log.records()] == [
        (b"plain", None, (), 1000),
        (b"keyed", b"k", (), 1000),
        (b"timed", None, (), 1577934245678),
        (b"empty key", b"", (), 1000),
        (b"headed", None, (("a", b"1"), ("b", b"")), 1000),
        (b"all", b"k2", (("c", b"2"),), 7),
    ]


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"value": "text"}, TypeError),
        ({"value": None}, TypeError),
        ({"value": b"", "key": "text"}, TypeError),
        ({"value": b"", "timestamp": -1}, InvalidRequest),
        ({"value": b"", "timestamp": 2**64 - 1}, InvalidRequest),
        ({"value": b"", "timestamp": "now"}, InvalidRequest),
        ({"value": b"", "headers": {"é": b""}}, InvalidBatch),
        ({"value": b"", "headers": {"": b""}}, InvalidBatch),
        ({"value": b"", "headers": [("a", b"")] * 65}, InvalidBatch),
    ],
)
async def test_a_wrong_argument_fails_its_own_call_only(log, backend, arguments, error):
    good = asyncio.ensure_future(log.produce(b"good"))
    with pytest.raises(error):
        await log.produce(**arguments)
    assert await good == 0
    assert backend.log.values() == [b"good"]


async def test_values_are_compressed_on_request(backend):
    async with Log(backend, compress=True) as log:
        await log.produce(b"a" * 10_000)
        await log.produce_many([b"b" * 10_000] * 10)
    assert [p.body.codec for p in backend.submitted] == [1, 1]
    assert all(len(p.body.data) < 1000 for p in backend.submitted)
    assert backend.log.values() == [b"a" * 10_000] + [b"b" * 10_000] * 10


# --- many at once --------------------------------------------------------------------------------


async def test_produce_many_cuts_whole_batches_and_answers_a_range(log, backend):
    values = [b"%06d" % i for i in range(100_000)]
    assert await log.produce_many(values) == range(100_000)
    assert backend.log.values() == values
    assert all(len(p.body.data) <= limits.client_batch_bytes_target for p in backend.submitted)
    assert len(backend.submitted) == 4


async def test_records_larger_than_a_usual_batch_travel_alone(log, backend):
    sizes = [5, limits.client_batch_bytes_target, 5, limits.batch_bytes_max - 4, 5]
    assert await log.produce_many([bytes(size) for size in sizes]) == range(5)
    assert [len(value) for value in backend.log.values()] == sizes


async def test_produce_many_of_nothing_appends_nothing(log, backend):
    assert list(await log.produce_many([])) == []
    assert backend.submitted == []


async def test_produce_many_keeps_its_place_between_single_records(log, backend):
    calls = [
        asyncio.ensure_future(log.produce(b"a")),
        asyncio.ensure_future(log.produce_many([b"b", b"c"])),
        asyncio.ensure_future(log.produce(b"d")),
    ]
    await asyncio.gather(*calls)
    assert backend.log.values() == [b"a", b"b", b"c", b"d"]


async def test_offsets_of_interleaved_batches_are_listed(log, backend):
    large = [bytes(200_000)] * 3
    first = asyncio.ensure_future(log.produce_many(large))
    await turns(1)
    backend.log.extend([b"from someone else"])
    second = asyncio.ensure_future(log.produce_many(large))
    offsets = [*await first, *await second]
    assert sorted(offsets) == sorted(set(offsets))
    records = {record.offset: record.value for record in backend.log.records()}
    assert all(records[offset] == bytes(200_000) for offset in offsets)


async def test_produce_many_is_bounded_by_the_buffer(log, backend, monkeypatch):
    monkeypatch.setattr(limits, "client_buffer_bytes_max", 600_000)
    backend.held = True
    call = asyncio.ensure_future(log.produce_many([bytes(100_000)] * 20))
    await turns()
    assert len(backend.submitted) == 2
    while not call.done():
        backend.answer()
        await turns()
    assert await call == range(20)


async def test_produce_many_raises_when_a_part_of_it_is_refused(log, backend):
    backend.faults.extend([None, DiskFull("full")])
    with pytest.raises(DiskFull):
        await log.produce_many([bytes(200_000)] * 4)
    assert log._batcher._budget.taken == 0


async def test_nothing_is_appended_behind_a_part_that_was_refused(log, backend):
    """What comes next may fit where that did not, and would leave a hole."""
    backend.faults.extend([None, None, DiskFull("full")])
    values = [b"%0200000d" % number for number in range(5)]
    backend.held = True
    many = asyncio.ensure_future(log.produce_many(values))
    await turns()
    one = asyncio.ensure_future(log.produce(b"of somebody else"))
    await turns()
    backend.held = False
    backend.answer(5)
    with pytest.raises(DiskFull) as caught:
        await many
    assert caught.value.number("appended") == 2
    assert await one == 2
    assert backend.log.values() == [*values[:2], b"of somebody else"]
    assert await log.produce_many([b"of another call"]) == range(3, 4)
    assert log._batcher._budget.taken == 0


async def test_nothing_is_appended_behind_a_part_that_may_not_be_in_the_log(log, backend):
    backend.faults.extend([OutcomeUnknown("lost"), UnknownProducer("who?")])
    with pytest.raises(OutcomeUnknown):
        await log.produce_many([bytes(200_000)] * 3)
    assert backend.log.values() == []
    assert await log.produce(b"a") == 0


def crowd_out(backend) -> None:
    """As many others produce as the log knows."""
    for _ in range(limits.producers_max):
        index = len(backend.log.batches)
        body = batch.encode([b"of somebody else"])
        backend.log.append(ProposedBatch(body, 1_000 + index, seen_index=index))


@pytest.fixture
def few(monkeypatch):
    """The log begins with settings by which three producers are known at a time."""
    monkeypatch.setattr(limits, "producers_max", 3)


@pytest.mark.usefixtures("few")
async def test_a_producer_that_was_forgotten_begins_anew_unnoticed(log, backend):
    for number in range(5):
        assert await log.produce(b"%d" % number) == 4 * number
        crowd_out(backend)
    assert len({batch.producer_id for batch in backend.submitted}) == 5


@pytest.mark.usefixtures("few")
async def test_a_batch_whose_answer_was_lost_is_not_sent_under_another_id(log, backend):
    """Forgotten between the loss and the retry, of its first batch or of a later one."""
    for value in (b"first", b"later"):
        backend.held = True
        call = asyncio.ensure_future(log.produce(value))
        await until(lambda: backend.streams and backend.streams[-1].waiting)
        backend.faults.append(Lost(OutcomeUnknown("lost on the way back")))
        backend.answer()
        crowd_out(backend)
        backend.held = False
        with pytest.raises(OutcomeUnknown):
            await call
        assert backend.log.values().count(value) == 1
        assert await log.produce(b"goes on after " + value) == backend.log.next - 1


async def test_calls_of_a_series_are_appended_in_order_up_to_the_first_refusal(
    log, backend, monkeypatch
):
    monkeypatch.setattr(limits, "client_buffer_bytes_max", 500_000)
    out = log.producer()
    values = [b"%0200000d" % number for number in range(9)]
    backend.faults.extend([*[None] * 7, DiskFull("full")])
    calls = [asyncio.ensure_future(out.produce_many(values[at : at + 3])) for at in (0, 3, 6)]
    assert await calls[0] == range(3)
    assert await calls[1] == range(3, 6)
    with pytest.raises(DiskFull) as caught:
        await calls[2]
    assert caught.value.number("appended") == 1
    with pytest.raises(DiskFull) as caught:
        await out.produce_many([b"later"])
    assert caught.value.number("appended") == 7
    assert backend.log.values() == values[:7]
    assert log._batcher._budget.taken == 0


# --- errors --------------------------------------------------------------------------------------

REFUSED_FOR_NOW = {"NOT_LEADER", "UNAVAILABLE", "OVERLOADED", "EARLIER_REFUSED", "RANGE_CORRUPT"}
UNKNOWN = {"OUTCOME_UNKNOWN", "DEADLINE_EXCEEDED", "INTERNAL"}
DISOWNED = {"UNKNOWN_PRODUCER", "SEQUENCE_GAP", "PARTIAL_DUPLICATE"}
RESENT = {True: REFUSED_FOR_NOW | UNKNOWN | DISOWNED, False: REFUSED_FOR_NOW}
"""By whether the producer is idempotent."""

each_error = pytest.mark.parametrize("row", errors.ROWS, ids=lambda row: row.reason)
each_kind = pytest.mark.parametrize("idempotent", [True, False])


@each_error
@each_kind
async def test_outcome_table(backend, row, idempotent):
    """Each error: resent unchanged until it is in, or raised as it is, or as OutcomeUnknown."""
    async with Log(backend, idempotent=idempotent) as log:
        backend.faults.append(row("it failed", leader_addr="elsewhere:1"))
        call = log.produce(b"value")
        if row.reason in RESENT[idempotent]:
            assert await call == 0
            first, second = backend.submitted
            assert first.body == second.body
            assert first.sequence == second.sequence == 0
            assert (first == second) == (row.reason not in DISOWNED)
        elif row.reason in UNKNOWN:
            with pytest.raises(OutcomeUnknown, match="it failed") as caught:
                await call
            with pytest.raises(OutcomeUnknown, match="it failed"):
                await log.resolve(caught.value)
        else:
            with pytest.raises(row) as caught:
                await call
            assert caught.value.facts["leader_addr"] == "elsewhere:1"
        assert len(backend.submitted) == 1 + (row.reason in RESENT[idempotent])
        assert await log.produce(b"next") == backend.log.next - 1
        assert {bool(each.producer_id) for each in backend.submitted} == {idempotent}


@each_error
async def test_no_refusal_of_a_retry_tells_what_became_of_the_first_time(log, backend, row):
    """The first answer was lost, and the second one is the error."""
    backend.faults.extend([Lost(OutcomeUnknown("lost")), row("it failed")])
    calls = start(log, [b"a"])
    if row.reason in REFUSED_FOR_NOW | UNKNOWN:
        assert await calls[0] == 0
    else:
        with pytest.raises(OutcomeUnknown, match="it failed"):
            await calls[0]
    first = backend.submitted[0]
    assert set(backend.submitted) == {first}
    assert await log.produce(b"b") == 1
    last = backend.submitted[-1]
    renumbered = row.reason not in REFUSED_FOR_NOW | UNKNOWN
    assert (last.producer_id != first.producer_id) == renumbered
    assert last.sequence == (0 if renumbered else 1)


@each_error
@each_kind
async def test_batches_behind_a_failed_one_follow_in_order(backend, row, idempotent, monkeypatch):
    monkeypatch.setattr(limits, "client_inflight_batches_max", 3)  # So that others wait behind.
    async with Log(backend, idempotent=idempotent) as log:
        backend.held = True
        value = bytes(limits.client_batch_bytes_target - 100)
        calls = start(log, [b"%d" % i + value for i in range(5)])
        await turns()
        backend.faults.extend([None, row("it failed")])
        backend.held = False
        backend.answer(3)
        results = await asyncio.gather(*calls, return_exceptions=True)
    appended = [value[:1] for value in backend.log.values()]
    if row.reason in RESENT[idempotent]:
        assert results == [0, 1, 2, 3, 4]
        assert appended == [b"0", b"1", b"2", b"3", b"4"]
    else:
        assert isinstance(results[1], OutcomeUnknown if row.reason in UNKNOWN else row)
        assert results[:1] + results[2:] == [0, 1, 2, 3]
        assert appended == [b"0", b"2", b"3", b"4"]


async def test_a_lost_answer_is_asked_for_again(log, backend):
    backend.faults.extend([None, Lost(OutcomeUnknown("lost"))])
    large = [bytes([i]) * (limits.client_batch_bytes_target - 100) for i in range(5)]
    assert await log.produce_many(large) == range(5)
    assert backend.log.values() == large
    assert len({each.producer_id for each in backend.submitted}) == 1
    assert sorted({each.sequence for each in backend.submitted}) == [0, 1, 2, 3, 4]


async def test_a_refused_batch_leaves_no_gap(log, backend):
    assert await log.produce_many([b"a", b"b"]) == range(2)
    backend.faults.append(DiskFull("full"))
    with pytest.raises(DiskFull):
        await log.produce_many([b"c", b"d", b"e"])
    assert await log.produce(b"f") == 2
    assert await log.produce(b"g") == 3
    assert [each.sequence for each in backend.submitted] == [0, 2, 2, 3]


async def test_a_forgotten_producer_comes_as_a_new_one(log, backend):
    assert await log.produce(b"a") == 0
    backend.log.producers = Producers()
    assert await log.produce(b"b") == 1
    assert await log.produce(b"c") == 2
    first, refused, *again = backend.submitted
    assert (refused.producer_id, refused.sequence) == (first.producer_id, 1)
    assert [each.sequence for each in again] == [0, 1]
    assert {each.producer_id for each in again} != {first.producer_id}


async def test_each_producer_has_an_id_of_its_own(backend):
    for _ in range(3):
        async with Log(backend) as log:
            await log.produce(b"a")
    assert len({each.producer_id for each in backend.submitted}) == 3
    assert all(0 < each.producer_id < 2**63 for each in backend.submitted)


# --- compare and append --------------------------------------------------------------------------


async def test_what_expects_an_offset_is_a_batch_of_its_own(log, backend):
    calls = [
        asyncio.ensure_future(log.produce(b"a")),
        asyncio.ensure_future(log.produce(b"b", b"key", expected_offset=1)),
        asyncio.ensure_future(log.produce_many([b"c", b"d"], expected_offset=2)),
        asyncio.ensure_future(log.produce(b"e")),
    ]
    assert await asyncio.gather(*calls) == [0, 1, range(2, 4), 4]
    assert [each.expected_offset for each in backend.submitted] == [None, 1, 2, None]
    assert backend.log.records()[1].key == b"key"


async def test_another_offset_than_the_expected_one(log, backend):
    backend.log.extend([b"of another"])
    with pytest.raises(OffsetMismatch) as caught:
        await log.produce(b"a", expected_offset=0)
    assert caught.value.number("next") == 1
    assert await log.produce(b"b", expected_offset=1) == 1
    assert backend.log.values() == [b"of another", b"b"]


async def test_a_lost_answer_to_what_expects_an_offset(log, backend):
    backend.faults.append(Lost(OutcomeUnknown("lost")))
    assert await log.produce(b"a", expected_offset=0) == 0
    assert backend.log.values() == [b"a"]


async def test_what_expects_an_offset_has_to_fit_into_one_batch(log, backend):
    half = bytes(limits.batch_bytes_max // 2 - 4)
    assert await log.produce_many([half, half], expected_offset=0) == range(2)
    with pytest.raises(TooLarge):
        await log.produce_many([half, half, b""], expected_offset=2)
    assert list(await log.produce_many([], expected_offset=7)) == []
    for wrong in (-1, 2**64, "0"):
        with pytest.raises(InvalidRequest):
            await log.produce(b"a", expected_offset=wrong)


# --- deadlines -----------------------------------------------------------------------------------


async def test_what_is_refused_until_the_deadline_fails_with_the_refusal(backend):
    backend.faults.extend([Overloaded("busy")] * 1000)
    async with Log(backend, timeout_seconds=0.1) as log:
        with pytest.raises(Overloaded):
            await log.produce(b"a")
        assert len(backend.submitted) > 1
        backend.faults.clear()
        assert await log.produce(b"b") == 0


async def test_no_answer_by_the_deadline_is_an_unknown_outcome(backend):
    backend.held = True
    async with Log(backend, timeout_seconds=0.05, idempotent=False) as log:
        with pytest.raises(OutcomeUnknown):
            await log.produce(b"a")
        backend.held = False
        assert backend.streams[0].closed
        assert await log.produce(b"b") == 0
        assert len(backend.streams) == 2
        backend.streams[0].answer_one()  # Too late: nobody waits for it.
        assert await log.produce(b"c") == 2


async def test_an_unknown_outcome_is_found_out_before_anything_else_is_sent(backend):
    backend.held = True
    async with Log(backend, timeout_seconds=0.05) as log:
        calls = [*start(log, [b"a", b"b"]), asyncio.ensure_future(log.produce_many([b"c"]))]
        unknown = await asyncio.gather(*calls, return_exceptions=True)
        assert {type(error) for error in unknown} == {Unresolved}
        assert log._batcher._budget.taken == 0
        # As long as nothing answers, nothing else is sent.
        with pytest.raises(Unavailable):
            await log.produce(b"d")
        assert {each.body.count for each in backend.submitted[1:]} <= {1, 2}
        resolving = [asyncio.ensure_future(log.resolve(error)) for error in unknown]
        impatient = asyncio.ensure_future(log.resolve(unknown[0]))
        await turns()
        impatient.cancel()
        backend.held = False
        backend.answer(2)
        assert await log.produce(b"e") == 3
        assert await asyncio.gather(*resolving) == [0, 1, 2]
        assert await log.resolve(unknown[1]) == 1
    assert backend.log.values() == [b"a", b"b", b"c", b"e"]
    assert len({each.producer_id for each in backend.submitted}) == 1


async def test_what_cannot_be_found_out_for_long_is_left_behind(backend, monkeypatch):
    monkeypatch.setattr(limits, "client_resolve_seconds_max", 0.05)
    backend.held = True
    async with Log(backend, timeout_seconds=0.05) as log:
        with pytest.raises(OutcomeUnknown) as caught:
            await log.produce(b"a")
        with pytest.raises(OutcomeUnknown):
            await log.resolve(caught.value)
        backend.held = False
        assert await log.produce(b"b") == 0
    first, *_, last = backend.submitted
    assert last.sequence == 0
    assert last.producer_id != first.producer_id


async def test_closing_does_not_wait_for_what_nobody_waits_for(backend):
    backend.held = True
    async with Log(backend, timeout_seconds=0.05) as log:
        with pytest.raises(OutcomeUnknown) as caught:
            await log.produce(b"a")
        resolving = asyncio.ensure_future(log.resolve(caught.value))
        await turns()
    with pytest.raises(OutcomeUnknown):
        await resolving
    assert all(stream.closed for stream in backend.streams)


async def test_closing_sends_what_waits_behind_an_unknown_outcome(backend):
    backend.held = True
    log = await Log(backend, timeout_seconds=0.05)
    with pytest.raises(OutcomeUnknown):
        await log.produce(b"a")
    log._batcher._timeout = 5
    calls = start(log, [b"b"])
    await turns()
    closing = asyncio.ensure_future(log.close())
    await turns()
    backend.held = False
    backend.answer()
    await closing
    assert await calls[0] == 1
    assert backend.log.values() == [b"a", b"b"]


async def test_a_stream_that_says_nothing_is_left_before_the_deadline(log, backend, monkeypatch):
    monkeypatch.setattr(limits, "client_patience_seconds_first", 0.02)
    backend.held = True
    call = asyncio.ensure_future(log.produce(b"a"))
    while len(backend.streams) < 3:
        await asyncio.sleep(0.001)
    assert backend.streams[0].closed
    backend.streams[0].answer_one()  # Late, but it is in.
    backend.held = False
    backend.answer()
    assert await call == 0
    assert backend.log.values() == [b"a"]


async def test_what_could_not_be_sent_was_certainly_not_appended(backend):
    backend.open_faults.extend([Unavailable("cannot connect to 127.0.0.1:1")] * 1000)
    async with Log(backend, timeout_seconds=0.1) as log:
        calls = start(log, [b"a", b"b"])
        for result in await asyncio.gather(*calls, return_exceptions=True):
            assert isinstance(result, Unavailable)
            assert "127.0.0.1:1" in str(result)
        backend.open_faults.clear()
        assert await log.produce(b"c") == 0


async def test_a_stream_that_cannot_be_opened_now_is_tried_again(log, backend):
    backend.open_faults.extend([Unavailable("starting"), NotLeader("no"), errors.Internal("?")])
    assert await log.produce(b"a") == 0


async def test_a_stream_that_will_never_open_fails_what_waits(log, backend):
    backend.open_faults.append(UnknownLog("there is no log 'x'"))
    calls = [*start(log, [b"a", b"b"]), asyncio.ensure_future(log.produce_many([b"c"]))]
    results = await asyncio.gather(*calls, return_exceptions=True)
    assert [type(result) for result in results] == [UnknownLog] * 3
    assert results[0] is not results[1]


async def test_a_refusal_while_handing_over_counts_like_one_in_the_answer(log, backend):
    stream = await backend.open_produce()
    submit = type(stream).submit
    faults = [Unavailable("draining"), None]

    async def refusing(self, proposed):
        fault = faults.pop(0)
        if fault is not None:
            raise fault
        return await submit(self, proposed)

    type(stream).submit = refusing
    try:
        assert await log.produce(b"a") == 0
    finally:
        type(stream).submit = submit


async def test_what_was_being_handed_over_behind_a_refusal_is_not_in_the_log(
    log, backend, monkeypatch
):
    monkeypatch.setattr(limits, "client_patience_seconds_first", 0.02)
    backend.held = True
    backend.faults.append(DiskFull("full"))
    submit = FakeStream.submit

    async def blocking(stream, proposed):
        if backend.submitted:
            backend.held = False
            backend.answer()
            monkeypatch.setattr(FakeStream, "submit", submit)
            await asyncio.Event().wait()
        return await submit(stream, proposed)

    monkeypatch.setattr(FakeStream, "submit", blocking)
    value = bytes(limits.client_batch_bytes_target - 100)
    calls = start(log, [value] * 3)
    first, second, third = await asyncio.gather(*calls, return_exceptions=True)
    assert isinstance(first, DiskFull)
    assert (second, third) == (0, 1)
    assert [each.sequence for each in backend.submitted] == [0, 0, 1]
    assert len({each.producer_id for each in backend.submitted}) == 1


# --- cancelling and closing ----------------------------------------------------------------------


async def test_cancelling_one_call_leaves_the_others_alone(log, backend):
    backend.held = True
    calls = start(log, [b"a", b"b", b"c"])
    await turns()
    calls[1].cancel()
    await turns()
    backend.answer()
    results = await asyncio.gather(*calls, return_exceptions=True)
    assert results[0] == 0
    assert results[2] == 2
    assert isinstance(results[1], asyncio.CancelledError)
    assert backend.log.values() == [b"a", b"b", b"c"]


async def test_cancelling_a_call_that_waits_for_room_withdraws_it(log, backend, monkeypatch):
    monkeypatch.setattr(limits, "client_buffer_bytes_max", 1000)
    backend.held = True
    calls = start(log, [bytes(900), bytes(800), bytes(50)])
    await turns()
    calls[1].cancel()
    await turns()
    for _ in range(5):
        backend.answer()
        await turns()
    assert await calls[0] == 0
    assert await calls[2] == 1
    assert [len(value) for value in backend.log.values()] == [900, 50]
    assert log._batcher._budget.taken == 0


async def test_cancelling_produce_many_leaves_nothing_behind(log, backend, monkeypatch):
    monkeypatch.setattr(limits, "client_buffer_bytes_max", 600_000)
    backend.held = True
    call = asyncio.ensure_future(log.produce_many([bytes(100_000)] * 20))
    await turns()
    call.cancel()
    await asyncio.wait([call])
    assert call.cancelled()
    backend.held = False
    backend.answer(2)
    assert await log.produce(b"next") == 4
    assert log._batcher._budget.taken == 0


async def test_closing_sends_what_was_accepted(backend):
    log = await Log(backend)
    calls = start(log, [b"a", b"b"])
    await turns(1)
    await log.close()
    assert await asyncio.gather(*calls) == [0, 1]
    assert backend.closed
    with pytest.raises(InvalidRequest):
        await log.produce(b"c")
    with pytest.raises(InvalidRequest):
        await log.produce_many([b"c"])
    with pytest.raises(InvalidRequest):
        log.consume(0)
    with pytest.raises(InvalidRequest):
        await log.read(0)
    await log.close()


async def test_leaving_by_an_exception_does_not_wait_for_answers(backend):
    backend.held = True
    calls = []
    with pytest.raises(KeyError):
        async with Log(backend) as log:
            calls += start(log, [b"a"])
            await turns()
            calls += start(log, [b"b"])
            await turns()
            raise KeyError
    sent, unsent = await asyncio.gather(*calls, return_exceptions=True)
    assert isinstance(sent, OutcomeUnknown)
    assert isinstance(unsent, InvalidRequest)
    assert backend.streams[0].closed


async def test_closing_wakes_those_who_wait_for_room(backend, monkeypatch):
    monkeypatch.setattr(limits, "client_buffer_bytes_max", 1000)
    backend.held = True
    log = await Log(backend)
    calls = start(log, [bytes(900), bytes(800)])
    await turns()
    closing = asyncio.ensure_future(log.close())
    await turns()
    backend.answer()
    await closing
    first, second = await asyncio.gather(*calls, return_exceptions=True)
    assert first == 0
    assert isinstance(second, InvalidRequest)


async def test_a_fault_of_the_program_is_everybodys(backend):
    async def broken():
        raise AssertionError("a bug")

    backend.open_produce = broken
    log = await Log(backend)
    with pytest.raises(AssertionError):
        await log.produce(b"a")
    with pytest.raises(AssertionError):
        await log.produce(b"b")
    with pytest.raises(AssertionError):
        await log.close()


# --- an ordered producer -------------------------------------------------------------------------


async def test_what_is_sent_comes_in_order_and_shares_batches(log, backend):
    async with log.producer() as out:
        futures = [await out.send(b"%d" % number, key=b"k") for number in range(1000)]
        assert await out.flush() == 1000
        assert [future.result() for future in futures] == list(range(1000))
        await out.send(b"last", headers={"h": b"1"}, timestamp=5)
        await out.produce_many([b"a", b"b"])
        await out.send(b"c")
    assert backend.log.values() == [*(b"%d" % n for n in range(1000)), b"last", b"a", b"b", b"c"]
    assert len(backend.submitted) < 10
    assert log._batcher._budget.taken == 0
    with pytest.raises(InvalidRequest, match="the producer is closed"):
        await out.send(b"late")
    assert await log.produce(b"next") == 1004


async def test_sending_waits_only_for_room(log, backend, monkeypatch):
    monkeypatch.setattr(limits, "client_buffer_bytes_max", 1_000_000)
    backend.held = True
    out = log.producer()
    sent = 0

    async def send():
        nonlocal sent
        while True:
            await out.send(bytes(10_000))
            sent += 1

    sending = asyncio.ensure_future(send())
    await asyncio.sleep(1)
    assert 75 < sent < 100
    sending.cancel()
    await asyncio.wait([sending])
    backend.held = False
    backend.answer(len(backend.streams[-1].waiting))
    assert await out.flush() == sent == backend.log.next
    assert log._batcher._budget.taken == 0


async def test_nothing_is_appended_behind_what_was_not(log, backend):
    """And whoever looks at no future hears of it all the same."""
    backend.faults.extend([None, DiskFull("full")])
    out = log.producer()
    with pytest.raises(DiskFull) as caught:
        async with out:
            for number in range(10):
                await out.send(b"%0100000d" % number)
    appended = backend.log.next
    assert 0 < appended < 10
    assert caught.value.number("appended") == appended
    assert backend.log.values() == [b"%0100000d" % number for number in range(appended)]
    assert await log.produce(b"of another") == appended


async def test_a_producer_that_failed_says_so_ever_after(log, backend):
    backend.faults.append(DiskFull("full"))
    out = log.producer()
    future = await out.send(b"a")
    for call in (out.flush, lambda: out.send(b"b"), lambda: out.produce_many([b"c"])):
        with pytest.raises(DiskFull):
            await call()
    with pytest.raises(DiskFull):
        await future
    assert backend.log.values() == []


@pytest.mark.parametrize("wrong", ["text", bytes(limits.batch_bytes_max)], ids=["str", "large"])
async def test_what_is_no_record_ends_a_producer(log, backend, wrong):
    out = log.producer()
    await out.send(b"a")
    with pytest.raises((TypeError, TooLarge)):
        await out.send(wrong)
    with pytest.raises((EarlierRefused, TooLarge)):
        await out.send(b"b")
    with pytest.raises((EarlierRefused, TooLarge)) as caught:
        await out.flush()
    assert caught.value.number("appended") == 1
    assert backend.log.values() == [b"a"]


async def test_an_exception_in_the_block_of_a_producer_passes(log, backend):
    backend.held = True
    with pytest.raises(ZeroDivisionError):
        async with log.producer() as out:
            await out.send(b"a")
            raise ZeroDivisionError
    backend.held = False
    await turns()
    backend.answer()
    await log.produce(b"b")
    assert backend.log.values() == [b"a", b"b"], "what was accepted goes on"


async def test_a_producer_is_told_of_an_unknown_outcome(backend):
    async with Log(backend, timeout_seconds=0.05) as log:
        backend.held = True
        out = log.producer()
        await out.send(b"a")
        with pytest.raises(OutcomeUnknown) as caught:
            await out.flush()
        backend.held = False
        backend.answer()
        assert await log.resolve(caught.value) == 0
        with pytest.raises(OutcomeUnknown):
            await out.send(b"b")
    assert backend.log.values() == [b"a"]


# --- a timeout of one call -----------------------------------------------------------------------


async def test_a_call_may_be_given_less_time_than_the_log(log, backend):
    backend.held = True
    loop = asyncio.get_running_loop()
    began = loop.time()
    calls = [
        log.produce(b"a", timeout_seconds=1),
        log.produce_many([b"b", b"c"], timeout_seconds=1),
        log.produce(b"d", expected_offset=3, timeout_seconds=1),
    ]
    unknown = await asyncio.gather(*calls, return_exceptions=True)
    assert [type(error) for error in unknown] == [Unresolved] * 3
    assert 0.9 < loop.time() - began < 1.5
    backend.held = False
    backend.answer(len(backend.streams[-1].waiting))
    assert [await log.resolve(error) for error in unknown] == [0, 1, 3]
    assert backend.log.values() == [b"a", b"b", b"c", b"d"]


async def test_a_record_that_found_no_room_in_time_is_not_in_the_log(log, backend, monkeypatch):
    monkeypatch.setattr(limits, "client_buffer_bytes_max", 1000)
    backend.held = True
    first = asyncio.ensure_future(log.produce(bytes(900)))
    await turns()
    with pytest.raises(Overloaded, match="no room"):
        await log.produce(bytes(900), timeout_seconds=1)
    backend.held = False
    backend.answer()
    assert await first == 0
    assert await log.produce(b"next") == 1
    assert log._batcher._budget.taken == 0


@pytest.mark.parametrize("seconds", [0, -1, "5", True])
async def test_a_timeout_of_a_call_is_seconds(log, backend, seconds):
    for call in (
        log.produce(b"a", timeout_seconds=seconds),
        log.produce_many([b"a"], timeout_seconds=seconds),
        log.describe(timeout_seconds=seconds),
        log.read(0, timeout_seconds=seconds),
    ):
        with pytest.raises(InvalidRequest, match="timeout_seconds is a number of seconds"):
            await call
    assert backend.submitted == []
