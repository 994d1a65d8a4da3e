"""Every call of log.v1.Log, over real sockets, against a log in memory."""

from __future__ import annotations

import asyncio
import gc
import logging

import pytest
from grpclib.client import Channel
from grpclib.const import Cardinality, Status
from grpclib.exceptions import GRPCError, StreamTerminatedError

from proglog import batch, errors, limits, wire
from proglog._generated.log import v1
from proglog.batch import ProposedBatch
from proglog.rpc.calls import Call, Calls
from tests.rpc.fakes import PRODUCE_BOUND, MemoryLog, Node, new_channel
from tests.rpc.raw import RawPeer
from tests.waiting import DEADLINE_SECONDS, until


def produce_batches(channel: Channel, **options: object):
    return channel.request(
        "/log.v1.Log/ProduceBatches",
        Cardinality.STREAM_STREAM,
        v1.ProduceBatchesRequest,
        v1.ProduceBatchesResponse,
        **options,
    )


def consume_batches(channel: Channel, **options: object):
    return channel.request(
        "/log.v1.Log/ConsumeBatches",
        Cardinality.UNARY_STREAM,
        v1.ConsumeBatchesRequest,
        v1.ConsumeBatchesResponse,
        **options,
    )


def produce_stream(channel: Channel):
    return channel.request(
        "/log.v1.Log/ProduceStream",
        Cardinality.STREAM_STREAM,
        v1.ProduceRequest,
        v1.ProduceResponse,
    )


def consume_stream(channel: Channel):
    return channel.request(
        "/log.v1.Log/ConsumeStream",
        Cardinality.UNARY_STREAM,
        v1.ConsumeRequest,
        v1.ConsumeResponse,
    )


def one(*values: bytes) -> wire.ProduceBatch:
    return wire.ProduceBatch(ProposedBatch(batch.encode(values)))


def records_of(data) -> list[bytes]:
    return [record.value for records in batch.decode_all(data) for record in records]


async def failure(awaitable) -> errors.ProglogError:
    with pytest.raises(GRPCError) as caught:
        await awaitable
    assert caught.value.details is not None
    assert caught.value.status.value == caught.value.details.status
    return caught.value.details


# --- the original's calls ------------------------------------------------------------------------


async def test_produce_and_consume(channel):
    stub = v1.LogStub(channel)
    for offset in range(3):
        answer = await stub.produce(v1.ProduceRequest(record=v1.Record(value=b"v%d" % offset)))
        assert answer.offset == offset
    record = (await stub.consume(v1.ConsumeRequest(offset=1))).record
    assert (record.value, record.offset, record.term, record.type) == (b"v1", 1, 3, 0)
    assert record.timestamp == 1001
    assert record.key is None


async def test_key_headers_and_timestamp_come_back_and_offset_term_type_are_the_servers(channel):
    stub = v1.LogStub(channel)
    sent = v1.Record(
        value=b"v",
        key=b"",
        timestamp=77,
        headers=[v1.Header(name="n", value=b"1"), v1.Header(name="n", value=b"2")],
        offset=99,
        term=99,
        type=99,
    )
    await stub.produce(v1.ProduceRequest(record=sent))
    found = (await stub.consume(v1.ConsumeRequest(offset=0))).record
    assert (found.key, found.timestamp, found.offset, found.term, found.type) == (b"", 77, 0, 3, 0)
    assert [(h.name, h.value) for h in found.headers] == [("n", b"1"), ("n", b"2")]


async def test_an_offset_outside_the_log_is_out_of_range_with_its_bounds(channel, node):
    node.log.earliest = node.log.next = 5
    await node.log.append(b"x")
    for offset in (4, 6, 7):
        error = await failure(v1.LogStub(channel).consume(v1.ConsumeRequest(offset=offset)))
        assert type(error) is errors.OffsetOutOfRange
        assert (error.number("offset"), error.number("earliest"), error.number("next")) == (
            offset,
            5,
            6,
        )


async def test_w8_produce_without_a_record_is_refused(channel, node):
    error = await failure(v1.LogStub(channel).produce(v1.ProduceRequest()))
    assert type(error) is errors.InvalidRequest
    assert node.log.next == 0


async def test_an_unknown_log_is_not_found(channel):
    stub = v1.LogStub(channel)
    for call in (
        stub.produce(v1.ProduceRequest(record=v1.Record(), log="x")),
        stub.consume(v1.ConsumeRequest(log="x")),
        stub.describe(v1.DescribeRequest(log="x")),
    ):
        error = await failure(call)
        assert type(error) is errors.UnknownLog
        assert error.facts == {"log": "x"}


async def test_produce_answers_when_durable_not_before(channel, node):
    node.log.durable_at_once = False
    call = asyncio.ensure_future(
        v1.LogStub(channel).produce(v1.ProduceRequest(record=v1.Record(value=b"x")))
    )
    await until(lambda: node.log.waiting)
    assert not call.done()
    node.log.sync()
    assert (await call).offset == 0


async def test_produce_stream_appends_what_has_arrived_without_waiting_for_the_disk(channel, node):
    """W18: the original appended one record, synced, answered, and only then read the next."""
    node.log.durable_at_once = False
    async with produce_stream(channel) as stream:
        for i in range(1000):
            await stream.send_message(v1.ProduceRequest(record=v1.Record(value=b"%d" % i)))
        await until(lambda: node.log.next == 1000)
        assert len(node.log.batches) < 500
        node.log.durable_at_once = True
        node.log.sync()
        await stream.end()
        assert [message.offset async for message in stream] == list(range(1000))
    assert records_of((await node.log.read(0, 1 << 20)).data) == [b"%d" % i for i in range(1000)]


async def test_produce_stream_half_close_ends_ok(channel, node):
    async with produce_stream(channel) as stream:
        await stream.send_request()
        await stream.end()
        assert await stream.recv_message() is None
    async with produce_stream(channel) as stream:
        await stream.send_message(v1.ProduceRequest(record=v1.Record(value=b"x")), end=True)
        assert (await stream.recv_message()).offset == 0
        assert await stream.recv_message() is None


async def test_produce_stream_answers_what_came_before_a_bad_record(channel, node):
    offsets = []
    with pytest.raises(GRPCError) as caught:
        async with produce_stream(channel) as stream:
            for _ in range(3):
                await stream.send_message(v1.ProduceRequest(record=v1.Record(value=b"x")))
            await stream.send_message(v1.ProduceRequest())
            await stream.send_message(v1.ProduceRequest(record=v1.Record(value=b"late")))
            async for message in stream:
                offsets.append(message.offset)
    assert offsets == [0, 1, 2]
    assert type(caught.value.details) is errors.InvalidRequest
    assert node.log.next == 3


async def test_produce_stream_keeps_large_records_apart(channel, node):
    sizes = [200_000, 200_000, 10, limits.client_batch_bytes_target + 1, 10]
    async with produce_stream(channel) as stream:
        for size in sizes:
            await stream.send_message(v1.ProduceRequest(record=v1.Record(value=b"x" * size)))
        await stream.end()
        assert [message.offset async for message in stream] == [0, 1, 2, 3, 4]
    assert all(
        header.count == 1 or header.length < limits.client_batch_bytes_target + 1000
        for header, _ in node.log.batches
    )


async def test_consume_stream_follows_the_tail(channel, node):
    await node.log.append(b"0", b"1", b"2")
    async with consume_stream(channel) as stream:
        await stream.send_message(v1.ConsumeRequest(offset=1), end=True)
        found = [(await stream.recv_message()).record for _ in range(2)]
        assert [(r.value, r.offset, r.term, r.type) for r in found] == [
            (b"1", 1, 3, 0),
            (b"2", 2, 3, 0),
        ]
        await until(lambda: node.log.readers == 1)
        await node.log.append(b"3", keys=[b"k"], headers=[(("h", b"v"),)])
        record = (await stream.recv_message()).record
        assert (record.value, record.key, record.headers[0].name) == (b"3", b"k", "h")
        await stream.cancel()
    await until(lambda: node.log.readers == 0 and node.calls == 0)


async def test_consume_stream_waits_for_an_offset_beyond_the_end(channel, node):
    async with consume_stream(channel) as stream:
        await stream.send_message(v1.ConsumeRequest(offset=3), end=True)
        for value in (b"0", b"1", b"2", b"3", b"4"):
            await until(lambda: node.log.readers == 1)
            await node.log.append(value)
        found = [(await stream.recv_message()).record for _ in range(2)]
        assert [(r.value, r.offset) for r in found] == [(b"3", 3), (b"4", 4)]
        await stream.cancel()


async def test_consume_stream_refuses_what_retention_deleted(channel, node):
    node.log.earliest = node.log.next = 5

    async def follow():
        async with consume_stream(channel) as stream:
            await stream.send_message(v1.ConsumeRequest(offset=4), end=True)
            await stream.recv_message()

    assert (await failure(follow())).facts == {"offset": "4", "earliest": "5", "next": "5"}


async def test_consume_stream_reads_many_and_compressed_batches(channel, node):
    values = [b"%d" % i * 20 for i in range(1000)]
    body = batch.encode(values, compress=True)
    await (await node.log.propose(ProposedBatch(body)))
    await node.log.append(*values)
    async with consume_stream(channel) as stream:
        await stream.send_message(v1.ConsumeRequest(offset=500), end=True)
        found = [(await stream.recv_message()).record.value for _ in range(1500)]
        assert found == values[500:] + values
        await stream.cancel()


async def test_a_consume_stream_leaves_the_loop_to_others(channel, node, monkeypatch):
    await node.log.append(*[b"x"] * 2000)
    turns, sent_in = 0, []
    send_encoded = Call.send_encoded

    async def noted(call, *messages):
        sent_in.append(turns)
        await send_encoded(call, *messages)

    async def count_turns():
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    monkeypatch.setattr(Call, "send_encoded", noted)
    counting = asyncio.ensure_future(count_turns())
    async with consume_stream(channel) as stream:
        await stream.send_message(v1.ConsumeRequest(offset=0), end=True)
        for _ in range(2000):
            await stream.recv_message()
        await stream.cancel()
    counting.cancel()
    assert len(sent_in) == 8, "256 together"
    # A turn's budget is that of some of them, and not of all.
    assert max(map(sent_in.count, sent_in)) <= 4


async def test_w16_an_idle_tail_costs_no_turns_of_the_loop(channel, node):
    reads = []
    original = node.log.read

    async def read(offset, bytes_max):
        reads.append(offset)
        return await original(offset, bytes_max)

    node.log.read = read
    async with consume_stream(channel) as stream:
        await stream.send_message(v1.ConsumeRequest(offset=0), end=True)
        await until(lambda: node.log.readers == 1)
        for _ in range(50):
            await asyncio.sleep(0.002)
        assert reads == []
        await stream.cancel()


async def test_get_servers_and_describe(channel, node):
    await node.log.append(b"x")
    stub = v1.LogStub(channel)
    (server,) = (await stub.get_servers(v1.GetServersRequest())).servers
    assert (server.id, server.rpc_addr, server.is_leader, server.suffrage) == (
        "n0",
        "127.0.0.1:8400",
        True,
        "voter",
    )
    found = await stub.describe(v1.DescribeRequest())
    assert (found.log, found.earliest, found.next, found.term, found.leader) == (
        "default",
        0,
        1,
        3,
        "n0",
    )


async def test_the_cluster_service(channel, node):
    stub = v1.ClusterStub(channel)
    found = await stub.status(v1.StatusRequest())
    assert (found.node, found.role, found.term, found.servers[0].id) == ("n0", "leader", 3, "n0")
    assert found.servers[0].match_index is None
    await stub.add_server(v1.AddServerRequest(rpc_addr="h:1"))
    await stub.transfer_leadership(v1.TransferLeadershipRequest(id="n1"))
    assert node.cluster.asked == [("add", "h:1"), ("transfer", "n1")]
    error = await failure(stub.remove_server(v1.RemoveServerRequest(id="n0")))
    assert type(error) is errors.ChangeRefused


# --- batches -------------------------------------------------------------------------------------


async def test_produce_batches_is_pipelined_and_answers_in_order(channel, node):
    node.log.durable_at_once = False
    async with produce_batches(channel) as stream:
        for i in range(20):
            await stream.send_message(one(b"a%d" % i, b"b"))
        await until(lambda: len(node.log.batches) == 20)
        node.log.sync()
        await stream.end()
        answers = [message async for message in stream]
    assert answers == [wire.Produced(2 * i, 1000 + 2 * i) for i in range(20)]


async def test_a_batch_is_answered_while_no_other_follows(channel, node):
    async with produce_batches(channel) as stream:
        for i in range(3):
            await stream.send_message(one(b"x"))
            async with asyncio.timeout(DEADLINE_SECONDS):
                assert (await stream.recv_message()).offset == i
        await stream.end()


async def test_unanswered_batches_of_a_stream_are_bounded(channel, node):
    node.log.durable_at_once = False
    async with produce_batches(channel) as stream:
        for _ in range(3 * PRODUCE_BOUND):
            await stream.send_message(one(b"x"))
        await until(lambda: len(node.log.waiting) >= PRODUCE_BOUND)
        for _ in range(20):
            await asyncio.sleep(0.002)
        # One in the hands of the reader and one in those of the sender.
        assert len(node.log.waiting) <= PRODUCE_BOUND + 2
        node.log.durable_at_once = True
        node.log.sync()
        await stream.end()
        assert len([message async for message in stream]) == 3 * PRODUCE_BOUND


async def test_the_first_refused_batch_ends_the_stream_after_the_earlier_answers(channel, node):
    node.log.refusals = [None, None, errors.DiskFull("no space")]
    node.log.durable_at_once = False
    answers = []
    with pytest.raises(GRPCError) as caught:
        async with produce_batches(channel) as stream:
            for i in range(5):
                await stream.send_message(one(b"%d" % i))
            await until(lambda: not node.log.refusals)
            node.log.sync()
            async for message in stream:
                answers.append(message.offset)
    assert answers == [0, 1]
    assert type(caught.value.details) is errors.DiskFull
    assert len(node.log.batches) == 2, "nothing behind the refused batch may be appended"


async def test_an_unknown_outcome_ends_the_stream_too(channel, node):
    node.log.durable_at_once = False
    with pytest.raises(GRPCError) as caught:
        async with produce_batches(channel) as stream:
            for i in range(3):
                await stream.send_message(one(b"%d" % i))
            await until(lambda: len(node.log.waiting) == 3)
            node.log.waiting[0].set_exception(errors.OutcomeUnknown("leadership was lost"))
            await stream.recv_message()
            await stream.recv_message()
    assert type(caught.value.details) is errors.OutcomeUnknown
    await until(lambda: all(future.cancelled() for future in node.log.waiting[1:]))


async def test_a_damaged_batch_is_refused(channel, node):
    good = one(b"x")
    body = good.batch.body._replace(crc=1)
    with pytest.raises(GRPCError) as caught:
        async with produce_batches(channel) as stream:
            await stream.send_message(wire.ProduceBatch(ProposedBatch(body)), end=True)
            await stream.recv_message()
            await stream.recv_message()
    assert type(caught.value.details) is errors.InvalidBatch


async def test_batches_as_large_as_allowed(channel, node):
    value = b"x" * (limits.batch_bytes_max - 4)
    async with produce_batches(channel) as stream:
        await stream.send_message(one(value), end=True)
        assert (await stream.recv_message()).offset == 0
    async with consume_batches(channel) as stream:
        await stream.send_message(v1.ConsumeBatchesRequest(offset=0), end=True)
        message = await stream.recv_message()
        assert records_of(message.batches) == [value]


@pytest.mark.parametrize(
    ("start", "begins"),
    [
        ({"offset": 5}, 5),
        ({"timestamp": 1003}, 4),
        ({"timestamp": 5000}, 10),
        ({"earliest": True}, 0),
        ({"latest": True}, 10),
    ],
)
async def test_consume_batches_begins_where_it_is_told(channel, node, start, begins):
    for i in range(5):
        await node.log.append(b"%d" % (2 * i), b"%d" % (2 * i + 1))
    async with consume_batches(channel) as stream:
        await stream.send_message(v1.ConsumeBatchesRequest(**start), end=True)
        messages = [message async for message in stream]
    assert messages[-1].next_offset == 10
    found = [r for m in messages for b in batch.decode_all(m.batches) for r in b.between(begins)]
    assert [record.offset for record in found] == list(range(begins, 10))


async def test_consume_batches_needs_a_start(channel):
    async def call():
        async with consume_batches(channel) as stream:
            await stream.send_message(v1.ConsumeBatchesRequest(), end=True)
            await stream.recv_message()

    assert type(await failure(call())) is errors.InvalidRequest


async def test_a_follower_is_told_where_it_begins_and_woken_by_appends(channel, node):
    await node.log.append(b"old")
    async with consume_batches(channel) as stream:
        await stream.send_message(
            v1.ConsumeBatchesRequest(latest=True, follow=True, linearizable=True), end=True
        )
        assert await stream.recv_message() == (b"", 1)
        assert node.log.barriers == 1
        await until(lambda: node.log.readers == 1)
        await node.log.append(b"new")
        message = await stream.recv_message()
        assert (records_of(message.batches), message.next_offset) == ([b"new"], 2)
        await stream.cancel()


async def test_consume_batches_keeps_to_max_bytes_but_sends_a_large_batch_alone(channel, node):
    for _ in range(10):
        await node.log.append(b"x" * 1000)
    async with consume_batches(channel) as stream:
        await stream.send_message(v1.ConsumeBatchesRequest(offset=0, max_bytes=3000), end=True)
        sizes = [len(message.batches) async for message in stream]
    assert max(sizes) <= 3000
    async with consume_batches(channel) as stream:
        await stream.send_message(v1.ConsumeBatchesRequest(offset=0, max_bytes=1), end=True)
        assert len([message async for message in stream]) == 10


async def test_a_consumer_that_retention_overtakes_is_told(channel, node):
    async def follow():
        async with consume_batches(channel) as stream:
            await stream.send_message(v1.ConsumeBatchesRequest(offset=0, follow=True), end=True)
            await stream.recv_message()
            await until(lambda: node.log.readers == 1)
            node.log.earliest = node.log.next = 10
            node.log.sync()
            assert await stream.recv_message() is None

    error = await failure(follow())
    assert (type(error), error.number("earliest")) == (errors.OffsetOutOfRange, 10)


async def with_gaps(node) -> None:
    """Offsets 0-1 and 4-5 are there; a repair gave up 2-3 and 6-7."""
    for values in ((b"0", b"1"), (b"4", b"5")):
        await node.log.append(*values)
        node.log.next += 2


@pytest.mark.parametrize(("offset", "following"), [(2, 4), (3, 4), (6, 8), (7, 8)])
async def test_a_record_that_a_repair_gave_up_is_lost(channel, node, offset, following):
    await with_gaps(node)
    error = await failure(v1.LogStub(channel).consume(v1.ConsumeRequest(offset=offset)))
    assert type(error) is errors.RecordLost
    assert (error.number("offset"), error.number("next")) == (offset, following)
    found = await v1.LogStub(channel).consume(v1.ConsumeRequest(offset=5))
    assert found.record.value == b"5"


async def test_streams_go_on_after_a_gap(channel, node):
    await with_gaps(node)
    async with consume_stream(channel) as stream:
        await stream.send_message(v1.ConsumeRequest(offset=0), end=True)
        found = [(await stream.recv_message()).record.offset for _ in range(4)]
        assert found == [0, 1, 4, 5]
        await node.log.append(b"8")
        assert (await stream.recv_message()).record.offset == 8
        await stream.cancel()


async def test_batches_say_how_far_they_go_also_after_a_gap(channel, node):
    await with_gaps(node)
    async with consume_batches(channel) as stream:
        await stream.send_message(v1.ConsumeBatchesRequest(offset=6), end=True)
        message = await stream.recv_message()
        assert (message.batches, message.next_offset) == (b"", 8)
        assert await stream.recv_message() is None


# --- calls that end early ------------------------------------------------------------------------


async def test_deadlines_end_a_call(channel, node):
    node.log.durable_at_once = False
    with pytest.raises((GRPCError, TimeoutError)):
        await v1.LogStub(channel).produce(v1.ProduceRequest(record=v1.Record()), timeout=0.05)
    await until(lambda: node.calls == 0)


@pytest.mark.parametrize("how", ["cancel", "close"])
async def test_a_client_that_vanishes_leaves_nothing_behind(node, how):
    channel = new_channel(node)
    node.log.durable_at_once = False
    async with contextlib_suppress(), consume_batches(channel) as reading:
        await reading.send_message(v1.ConsumeBatchesRequest(offset=0, follow=True), end=True)
        await reading.recv_message()
        async with contextlib_suppress(), produce_batches(channel) as writing:
            await writing.send_message(one(b"x"))
            await until(lambda: node.log.waiting and node.log.readers)
            if how == "cancel":
                await writing.cancel()
                await reading.cancel()
            else:
                channel.close()
    await until(lambda: node.calls == 0)
    assert node.log.readers == 0
    assert node.log.waiting[0].cancelled()
    channel.close()
    await until(lambda: node.mux.connections == 0)


@pytest.mark.parametrize("last", [None, errors.DiskFull])
async def test_a_batch_that_waits_behind_many_is_let_go_of_as_well(channel, node, last):
    """With its error seen, where it has one: a test fails of one that nobody asked for."""
    node.log.durable_at_once = False
    node.log.refusals = [*[None] * (PRODUCE_BOUND + 1), last and last("no space")]
    async with contextlib_suppress(), produce_batches(channel) as stream:
        for _ in range(PRODUCE_BOUND + 2):
            await stream.send_message(one(b"x"))
        await until(lambda: not node.log.refusals)
        await stream.cancel()
    await until(lambda: node.calls == 0)
    assert len(node.log.waiting) == PRODUCE_BOUND + (2 if last is None else 1)
    assert all(future.cancelled() for future in node.log.waiting)
    gc.collect()


async def test_a_batch_behind_an_answer_that_is_not_taken_is_let_go_of_as_well(channel, node):
    node.log.durable_at_once = False
    async with contextlib_suppress(), produce_batches(channel) as stream:
        for _ in range(3):
            await stream.send_message(one(b"x"))
        await until(lambda: len(node.log.waiting) == 3)
        (connection,) = node.server._connections
        connection.connection.write_ready.clear()
        first, *others = node.log.waiting
        first.set_result(first.answer)
        await asyncio.sleep(0)
        await stream.cancel()
    await until(lambda: node.calls == 0)
    assert all(future.cancelled() for future in others)
    connection.connection.write_ready.set()


class contextlib_suppress:
    async def __aenter__(self):
        return self

    async def __aexit__(self, kind, *_):
        return kind is not None and issubclass(kind, StreamTerminatedError | GRPCError)


async def test_a_reader_blocked_in_send_is_released_when_its_client_vanishes(node):
    """Generated generator handlers stay open here until the garbage collector finds them."""
    for _ in range(20):
        await node.log.append(b"x" * 1_000_000)
    channel = new_channel(node)
    async with contextlib_suppress(), consume_batches(channel) as stream:
        await stream.send_message(v1.ConsumeBatchesRequest(offset=0), end=True)
        await stream.recv_message()
        await asyncio.sleep(0.05)
        assert node.calls == 1
        channel.close()
    await until(lambda: node.calls == 0)


async def test_a_fault_of_the_server_is_logged_once_and_internal(channel, node, caplog):
    async def broken(*_):
        raise KeyError("bug")

    node.log.read = broken
    with caplog.at_level(logging.INFO):
        error = await failure(v1.LogStub(channel).consume(v1.ConsumeRequest()))
    assert type(error) is errors.Internal
    assert "bug" not in str(error)
    (line,) = caplog.records
    assert line.exc_info
    assert line.name.startswith("proglog.")


async def test_unknown_methods_are_unimplemented(channel):
    with pytest.raises(GRPCError) as caught:
        async with channel.request(
            "/log.v1.Log/Nope", Cardinality.UNARY_UNARY, v1.ConsumeRequest, v1.ConsumeResponse
        ) as stream:
            await stream.send_message(v1.ConsumeRequest(), end=True)
            await stream.recv_message()
    assert caught.value.status is Status.UNIMPLEMENTED


# --- flow control --------------------------------------------------------------------------------


async def test_a_stalled_reader_does_not_starve_others_of_its_connection(channel, node):
    for _ in range(20):
        await node.log.append(b"x" * 1_000_000)
    async with contextlib_suppress(), consume_batches(channel) as stalled:
        await stalled.send_message(v1.ConsumeBatchesRequest(offset=0), end=True)
        await stalled.recv_message()
        async with consume_batches(channel) as stream:
            await stream.send_message(v1.ConsumeBatchesRequest(offset=19), end=True)
            assert (await stream.recv_message()).next_offset == 20
        await v1.LogStub(channel).describe(v1.DescribeRequest())
        await stalled.cancel()


async def test_a_stalled_writer_does_not_starve_others_of_its_connection(channel, node):
    """grpclib's own windows let one handler that does not read block its whole connection."""
    node.log.durable_at_once = False
    async with contextlib_suppress(), produce_batches(channel) as stalled:

        async def fill():
            while True:
                await stalled.send_message(one(b"x" * 100_000))

        filling = asyncio.ensure_future(fill())
        await until(lambda: len(node.log.waiting) > PRODUCE_BOUND)
        await asyncio.sleep(0.05)
        async with asyncio.timeout(DEADLINE_SECONDS):
            await v1.LogStub(channel).describe(v1.DescribeRequest())
        filling.cancel()
        await asyncio.gather(filling, return_exceptions=True)
        await stalled.cancel()


# --- the end -------------------------------------------------------------------------------------


async def test_drain_ends_streams_answers_what_is_under_way_and_refuses_the_rest():
    """W20: the original's stop waits for open streams for ever."""
    log = MemoryLog()
    log.durable_at_once = False
    async with Node(log) as node:
        channel = new_channel(node)
        stub = v1.LogStub(channel)
        seen = []

        async def follow():
            async with consume_batches(channel) as stream:
                await stream.send_message(v1.ConsumeBatchesRequest(offset=0, follow=True), end=True)
                async for _ in stream:
                    pass

        async def write():
            async with produce_batches(channel) as stream:
                await stream.send_message(one(b"a"))
                await stream.send_message(one(b"b"))
                async for message in stream:
                    seen.append(message.offset)

        calls = [
            asyncio.ensure_future(failure(follow())),
            asyncio.ensure_future(failure(write())),
        ]
        unary = asyncio.ensure_future(stub.produce(v1.ProduceRequest(record=v1.Record())))
        await until(lambda: len(log.waiting) == 3 and log.readers == 1)
        draining = asyncio.ensure_future(node.server.drain(10))
        await until(lambda: log.readers == 0)
        assert type(await failure(stub.describe(v1.DescribeRequest()))) is errors.Unavailable
        assert not draining.done()
        log.sync()
        await draining
        assert [type(error) for error in await asyncio.gather(*calls)] == [errors.Unavailable] * 2
        assert sorted([*seen, (await unary).offset]) == [0, 1, 2]
        channel.close()


async def test_drain_answers_a_reader_that_has_come_this_moment(node, channel, monkeypatch):
    accept = Calls.accept

    def accept_and_end(self, *arguments) -> None:
        accept(self, *arguments)
        self.end(errors.Unavailable("the node is shutting down"))

    monkeypatch.setattr(Calls, "accept", accept_and_end)

    async def follow():
        async with asyncio.timeout(DEADLINE_SECONDS), consume_batches(channel) as stream:
            await stream.send_message(v1.ConsumeBatchesRequest(offset=0, follow=True), end=True)
            await stream.recv_message()

    assert type(await failure(follow())) is errors.Unavailable
    assert node.log.readers == 0


async def test_drain_lets_a_reader_end_that_has_read_all(node, channel):
    await node.log.append(b"x")
    read = node.log.read
    blocked: list[asyncio.Event] = []

    async def read_and_block(offset, bytes_max):
        """At the end of the log the connection takes no more, not even the status of the call."""
        chunk = await read(offset, bytes_max)
        if not chunk.data:
            (connection,) = node.server._connections
            blocked.append(connection.connection.write_ready)
            blocked[0].clear()
        return chunk

    async def read_all():
        async with consume_batches(channel) as stream:
            await stream.send_message(v1.ConsumeBatchesRequest(offset=0), end=True)
            return [message.next_offset async for message in stream]

    node.log.read = read_and_block
    reading = asyncio.ensure_future(read_all())
    await until(lambda: blocked)
    draining = asyncio.ensure_future(node.server.drain(DEADLINE_SECONDS))
    await asyncio.sleep(0)
    blocked[0].set()
    await draining
    assert await reading == [1]


async def test_drain_cuts_a_reader_that_is_stuck_within_a_message():
    async with Node() as node:
        for _ in range(20):
            await node.log.append(b"x" * 1_000_000)
        channel = new_channel(node)

        with pytest.raises(StreamTerminatedError):
            async with consume_batches(channel) as stream:
                await stream.send_message(v1.ConsumeBatchesRequest(offset=0), end=True)
                await until(lambda: node.calls == 1)
                await asyncio.sleep(0.05)
                async with asyncio.timeout(10):
                    await node.server.drain(60)
                await stream.recv_message()
        channel.close()


async def test_drain_says_goodbye_and_accepts_no_more():
    async with Node() as node, RawPeer(node) as peer:
        await until(lambda: node.mux.connections == 1)
        await until(lambda: len(node.server._connections) == 1)
        await node.server.drain(10)
        assert (await peer.goodbye()).error_code == 0
        channel = new_channel(node)
        error = await failure(v1.LogStub(channel).describe(v1.DescribeRequest()))
        assert type(error) is errors.Unavailable
        channel.close()


async def test_drain_is_over_when_its_time_is():
    async with Node() as node:
        node.log.durable_at_once = False
        channel = new_channel(node)
        call = asyncio.ensure_future(
            v1.LogStub(channel).produce(v1.ProduceRequest(record=v1.Record()))
        )
        await until(lambda: node.log.waiting)
        await node.server.drain(0.05)
        await node.server.close()
        with pytest.raises(StreamTerminatedError):
            await call
        channel.close()
