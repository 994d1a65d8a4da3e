"""The network backend against real sockets: a small grpclib server, and servers that misbehave."""

from __future__ import annotations

import asyncio
import ssl
from contextlib import aclosing, asynccontextmanager, suppress
from datetime import UTC, datetime

import grpclib
import pytest
from grpclib.config import Configuration
from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.events import DataReceived, RequestReceived

import proglog
from proglog import limits
from proglog.batch import ProposedBatch, encode
from proglog.client import channel
from proglog.errors import (
    InvalidBatch,
    InvalidRequest,
    LogClosed,
    NotLeader,
    OffsetOutOfRange,
    OutcomeUnknown,
    Overloaded,
    PermissionDenied,
    Unauthenticated,
    Unavailable,
)
from tests.client.server import serving
from tests.ports import free_port
from tests.waiting import until


def url(*servers) -> str:
    return "proglog://" + ",".join(f"127.0.0.1:{server.port}" for server in servers)


@pytest.fixture
async def log(server):
    async with proglog.connect(url(server), timeout_seconds=5) as log:
        yield log


# --- everything works ----------------------------------------------------------------------------


async def test_every_call(server, log):
    assert await log.produce(b"a") == 0
    assert await log.produce(b"b", b"key", {"h": b"1"}, 5) == 1
    assert await log.produce_many([b"%d" % i for i in range(50_000)]) == range(2, 50_002)
    assert await log.read(1) == (1, b"b", b"key", (("h", b"1"),), 5)
    assert await log.read(0) == (0, b"a", None, (), 1000)
    with pytest.raises(OffsetOutOfRange) as caught:
        await log.read(99_999)
    assert caught.value.number("next") == 50_002
    description = await log.describe()
    assert (description.next, description.leader_addr) == (50_002, "127.0.0.1:1")
    records = [record async for record in log.consume(1, follow=False)]
    assert [record.offset for record in records] == list(range(1, 50_002))
    assert records[0] == (1, b"b", b"key", (("h", b"1"),), 5)
    async with aclosing(log.consume("latest")) as latest:
        waiting = asyncio.ensure_future(anext(latest))
        await until(lambda: server.service.fake.consumed[-1:] == [50_002])
        await log.produce(b"new")
        assert (await waiting).value == b"new"
    async with aclosing(log.consume(datetime.fromtimestamp(0.5, UTC))) as timed:
        assert (await anext(timed)).offset == 0


async def test_messages_larger_than_every_window_pass(server, log):
    value = bytes(range(256)) * (limits.batch_bytes_max // 256 - 1)
    assert await log.produce(value) == 0
    assert (await anext(aiter(log.consume(0)))).value == value


async def test_what_reads_shares_one_connection_and_what_writes_has_another(server, log):
    await log.produce(b"a")
    await log.describe()
    assert [record.value async for record in log.consume(follow=False)] == [b"a"]
    await log.produce(b"b")
    assert len(server._protocols) == 2


async def test_stopping_a_consumer_ends_the_call_on_the_server(server, log):
    await log.produce(b"a")
    async with aclosing(log.consume(0)) as records:
        await anext(records)
        assert server.service.fake.open_consumers == 1
    await until(lambda: server.service.fake.open_consumers == 0)


async def test_a_consumer_that_does_not_read_holds_one_window(server, log):
    await log.produce_many([bytes(10_000)] * 2000)
    async with aclosing(log._backend.consume(0, follow=True)) as chunks:
        await anext(chunks)
        (call,) = _only_connection(log._backend._reading).processor.streams.values()
        await until(lambda: call.buffer.size)
        await asyncio.sleep(0.1)
        assert call.buffer.size <= limits.http2_stream_window_bytes
        assert await log.produce(b"another call goes on") == 2000


# --- refusals ------------------------------------------------------------------------------------


async def test_answers_before_a_refusal_are_not_lost(server, log):
    """They arrive in one piece with it, and with the reset that ends the call."""
    value = bytes(limits.client_batch_bytes_target - 100)
    server.service.release.clear()
    server.service.fake.faults.extend([None, None, Overloaded("busy")])
    calls = [asyncio.ensure_future(log.produce(b"%d" % i + value)) for i in range(6)]
    await until(lambda: server.service.received)
    server.service.release.set()
    assert await asyncio.gather(*calls) == list(range(6))
    assert [v[:1] for v in server.service.fake.log.values()] == [b"%d" % i for i in range(6)]


async def test_a_refusal_reaches_a_sender_that_flow_control_stopped(server, log):
    server.service.release.clear()
    server.service.fake.faults.append(Overloaded("busy"))
    sent = [bytes(1_000_000 + i) for i in range(12)]
    calls = [asyncio.ensure_future(log.produce(value)) for value in sent]
    await until(lambda: server.service.received)
    await asyncio.sleep(0.1)
    assert len(log._batcher._sender._inflight) < 12, "flow control stopped it"
    server.service.release.set()
    assert await asyncio.gather(*calls) == list(range(12))
    assert server.service.fake.log.values() == sent


async def test_a_final_refusal_reaches_no_batch_that_flow_control_kept_back(server, log):
    """The sender is woken by the end of the call before it is told of the refusal."""
    server.service.release.clear()
    server.service.fake.faults.append(InvalidBatch("poison"))
    calls = [asyncio.ensure_future(log.produce(bytes(1_000_000 + i))) for i in range(12)]
    await until(lambda: server.service.received and _window_of_the_only_call(log) == 0)
    assert log._batcher._sender._queue, "flow control stopped it"
    server.service.release.set()
    results = await asyncio.gather(*calls, return_exceptions=True)
    assert isinstance(results[0], InvalidBatch)
    assert results[1:] == list(range(11))


def _only_connection(channels) -> channel.Connection:
    (found,) = channels.values()
    (connection,) = found._open
    return connection


def _window_of_the_only_call(log) -> int:
    (call,) = _only_connection(log._backend._writing).processor.streams.values()
    return call._h2_connection.local_flow_control_window(call.id)


async def test_a_call_that_ends_without_a_reset_wakes_its_sender():
    """Some servers answer early and leave the stream open to what the client still sends."""
    handle = answering(OK, b"\x00\x00\x00\x00\x02\x08\x00", [("grpc-status", "16")])
    async with raw_server(handle) as early_url:
        async with proglog.connect(early_url, timeout_seconds=5) as log:
            calls = [asyncio.ensure_future(log.produce(bytes(60_000 * i))) for i in (1, 2, 3)]
            results = await asyncio.gather(*calls, return_exceptions=True)
            assert results[0] == 0
            assert Unauthenticated in map(type, results)


async def test_a_final_refusal_reaches_only_its_batch(server, log):
    value = bytes(limits.client_batch_bytes_target - 100)
    server.service.fake.faults.extend([None, InvalidBatch("poison", bytes=7)])
    calls = [log.produce(b"%d" % i + value) for i in range(4)]
    results = await asyncio.gather(*calls, return_exceptions=True)
    assert isinstance(results[1], InvalidBatch)
    assert results[1].number("bytes") == 7
    assert [results[0], *results[2:]] == [0, 1, 2]


async def test_it_follows_the_leader(server):
    async with serving() as leader:
        address = f"127.0.0.1:{leader.port}"
        server.service.fake.faults.append(NotLeader("no", leader="n2", leader_addr=address))
        async with proglog.connect(url(server), timeout_seconds=5) as log:
            assert await log.produce(b"a") == 0
            assert await log.produce(b"b") == 1
        assert leader.service.fake.log.values() == [b"a", b"b"]


async def test_without_a_known_leader_the_next_address_is_asked(server):
    async with serving() as other:
        server.service.fake.faults.append(NotLeader("no", leader="", leader_addr=""))
        async with proglog.connect(url(server, other), timeout_seconds=5) as log:
            assert await log.produce(b"a") == 0
        assert other.service.fake.log.values() == [b"a"]


@pytest.mark.parametrize(
    ("status", "error"),
    [
        (grpclib.Status.UNAVAILABLE, OutcomeUnknown),
        (grpclib.Status.INTERNAL, OutcomeUnknown),
        (grpclib.Status.DEADLINE_EXCEEDED, OutcomeUnknown),
        (grpclib.Status.RESOURCE_EXHAUSTED, OutcomeUnknown),
        (grpclib.Status.UNAUTHENTICATED, Unauthenticated),
        (grpclib.Status.PERMISSION_DENIED, PermissionDenied),
        (grpclib.Status.UNIMPLEMENTED, InvalidRequest),
        (grpclib.Status.INVALID_ARGUMENT, InvalidRequest),
    ],
)
async def test_a_status_without_our_detail(server, status, error):
    async def refuse(stream):
        await stream.recv_message()
        raise grpclib.GRPCError(status, "from a proxy")

    server.service.produce = refuse
    server.remap()
    async with proglog.connect(url(server), timeout_seconds=2) as log:
        with pytest.raises(error, match="from a proxy"):
            await log.produce(b"a")


# --- lost connections ----------------------------------------------------------------------------


async def test_nobody_listens():
    port = free_port()
    async with proglog.connect(f"proglog://127.0.0.1:{port}", timeout_seconds=0.2) as log:
        with pytest.raises(
            Unavailable, match=f"cannot connect to 127.0.0.1:{port}: Connection refused"
        ):
            await log.produce(b"a")
        with pytest.raises(Unavailable):
            await log.read(0)
        with pytest.raises(Unavailable):
            await anext(log.consume(0))


async def test_the_next_address_is_tried(server):
    async with proglog.connect(
        f"proglog://127.0.0.1:{free_port()},127.0.0.1:{server.port}", timeout_seconds=5
    ) as log:
        assert await log.produce(b"a") == 0
        assert (await anext(log.consume(0))).value == b"a"
        assert (await log.describe()).next == 1


async def test_a_connection_lost_with_batches_under_way(server, log):
    server.service.release.clear()
    call = asyncio.ensure_future(log.produce(b"a"))
    await until(lambda: server.service.received)
    server.cut()
    server.service.release.set()
    assert await call == 0
    assert await log.produce(b"b") == 1
    assert server.service.fake.log.values() == [b"a", b"b"]


async def test_a_connection_lost_with_the_answers(server, log):
    """The log has the batches, the client does not know: it asks again, by sending them again."""
    append = server.service.fake.append
    lost = 0

    def losing(proposed):
        nonlocal lost
        appended = append(proposed)
        if lost < 3:
            lost += 1
            server.cut()
        return appended

    server.service.fake.append = losing
    value = bytes(limits.client_batch_bytes_target - 100)
    calls = [log.produce(b"%d" % i + value) for i in range(6)]
    assert await asyncio.gather(*calls) == list(range(6))
    assert lost == 3
    assert [v[:1] for v in server.service.fake.log.values()] == [b"%d" % i for i in range(6)]


async def test_what_is_not_idempotent_is_not_sent_again_when_the_connection_is_lost(server):
    async with proglog.connect(url(server), timeout_seconds=5, idempotent=False) as log:
        server.service.release.clear()
        call = asyncio.ensure_future(log.produce(b"a"))
        await until(lambda: server.service.received)
        server.cut()
        with pytest.raises(OutcomeUnknown, match="lost"):
            await call
        server.service.release.set()
        assert await log.produce(b"b") == server.service.fake.log.next - 1
        assert server.service.received == 2


async def test_a_connection_lost_while_idle_costs_nothing(server, log):
    assert await log.produce(b"a") == 0
    server.cut()
    await asyncio.sleep(0.01)
    assert await log.produce(b"b") == 1


async def test_a_consumer_outlives_its_node(server):
    server.service.fake.log.extend([b"a"])
    port = server.port
    async with proglog.connect(url(server), timeout_seconds=5) as log:
        records = log.consume(0)
        assert (await anext(records)).value == b"a"
        waiting = asyncio.ensure_future(anext(records))
        await asyncio.sleep(0.01)
        await server.stop()
        await asyncio.sleep(0.05)
        async with serving(port) as again:
            again.service.fake.log.extend([b"a", b"b"])
            assert (await waiting).value == b"b"
            assert again.service.fake.consumed == [1]
            await records.aclose()


async def test_an_interruption_leaves_no_mark_on_the_users_task(server, log):
    """grpclib's own client cancels the task, whose TaskGroups and timeouts then misbehave."""
    server.service.fake.log.extend([b"a"])
    records = log.consume(0)
    await anext(records)
    asyncio.get_running_loop().call_later(0.02, server.cut)
    asyncio.get_running_loop().call_later(0.05, server.service.fake.log.extend, [b"b"])
    assert (await anext(records)).value == b"b"
    assert asyncio.current_task().cancelling() == 0
    await records.aclose()


async def test_calls_in_flight_survive_a_goaway(server, log):
    server.service.fake.log.extend([b"a"])
    records = log.consume(0)
    assert (await anext(records)).value == b"a"
    server.service.release.clear()
    call = asyncio.ensure_future(log.produce(b"b"))
    await until(lambda: server.service.received)
    server.go_away()
    await asyncio.sleep(0.02)
    server.service.release.set()
    assert await call == 1
    assert (await anext(records)).value == b"b"
    assert server.service.calls == ["consume", "produce"]
    assert (await log.describe()).next == 2  # On a new connection.
    assert len(server._protocols) == 3
    await records.aclose()


async def test_a_mute_node_is_given_up_at_the_deadline(server):
    async with proglog.connect(url(server), timeout_seconds=0.1) as log:
        server.service.release.clear()
        with pytest.raises(OutcomeUnknown):
            await log.produce(b"a")
        server.service.release.set()
        log._batcher._timeout = 5
        assert await log.produce(b"b") == 1
        assert len(server._protocols) > 1
        assert server.service.fake.log.values() == [b"a", b"b"]


async def test_a_mute_node_is_left_for_another_one(server, monkeypatch):
    monkeypatch.setattr(limits, "client_patience_seconds_first", 0.05)
    async with serving() as other:
        server.service.release.clear()
        async with proglog.connect(url(server, other), timeout_seconds=5) as log:
            assert await log.produce(b"a") == 0
        assert other.service.fake.log.values() == [b"a"]


async def test_a_connection_on_which_answers_are_missing_ends_with_its_last_call(server, log):
    server.service.release.clear()
    kept = await log._backend.open_produce()
    answer = await kept.submit(ProposedBatch(encode([b"kept"])))
    for _ in range(3):
        await _lose_an_answer(log._backend)
    await until(lambda: server.connections == 1)
    assert len(server._protocols) == 3
    server.service.release.set()
    await answer
    assert b"kept" in server.service.fake.log.values()
    await kept.close()
    await until(lambda: server.connections == 0)


async def _lose_an_answer(backend) -> None:
    stream = await backend.open_produce()
    await stream.submit(ProposedBatch(encode([b"x"])))
    await stream.close()


async def test_a_node_that_sends_damage_is_left_for_another_one(server):
    async with serving() as other:
        for each in (server, other):
            each.service.fake.log.extend([b"a"])
        header, stored = server.service.fake.log.batches[0]
        server.service.fake.log.batches[0] = header, stored[:-1] + b"X"
        async with proglog.connect(url(server, other), timeout_seconds=5) as log:
            assert [record.value async for record in log.consume(0, follow=False)] == [b"a"]
        assert server.service.calls == other.service.calls == ["consume"]


async def test_a_call_that_waits_for_room_hears_that_the_connection_was_lost(server, log):
    first = await log._backend.open_produce()
    connection = _only_connection(log._backend._writing)
    server.allow_calls(1)
    await until(lambda: not connection.has_room)
    waiting = asyncio.ensure_future(log.produce(b"a"))
    await asyncio.sleep(0.01)
    assert not waiting.done()
    server.cut()
    assert await waiting == 0
    await first.close()


async def test_a_call_that_waits_to_begin_hears_that_a_full_connection_was_lost(server, log):
    await log.describe()
    connection = _only_connection(log._backend._reading)
    connection.pause_writing()
    waiting = asyncio.ensure_future(log.describe())
    await until(lambda: connection.calls)
    server.cut()
    assert (await waiting).next == 0


# --- many readers --------------------------------------------------------------------------------


async def followers(log, count):
    """So many streams, each of which has shown that it follows."""
    begun = await asyncio.gather(*(begin(log) for _ in range(count)))
    assert len({chunk.next_offset for _, chunk in begun}) == 1
    return [stream for stream, _ in begun]


async def begin(log):
    """A stream and its first chunk, however long there is no room for it."""
    while True:
        stream = log._backend.consume(0, follow=True)
        try:
            return stream, await anext(stream)
        except (Overloaded, Unavailable):
            await stream.aclose()


async def end(records):
    await asyncio.gather(*(each.aclose() for each in records))


async def test_readers_get_further_connections_which_end_with_them(server, log):
    await log.produce(b"a")
    records = await followers(log, 250)
    assert server.connections == 4
    again = [asyncio.ensure_future(anext(each)) for each in records]
    assert await log.produce(b"b") == 1
    assert {chunk.next_offset for chunk in await asyncio.gather(*again)} == {2}
    assert (await log.describe()).next == 2
    await end(records[100:])
    await until(lambda: server.connections == 3), "one is kept for the next call: the first is full"
    await end(records[:100])
    await until(lambda: server.connections == 2)
    assert (await log.describe()).next == 2
    assert len(server._protocols) == 4


async def test_readers_that_read_nothing_keep_nobody_waiting(server, log):
    """Each holds a window of what it was sent; together more than a connection's used to be."""
    await log.produce_many([bytes(50_000)] * 40)
    stalled = await followers(log, 60)
    connection = _only_connection(log._backend._reading)
    calls = list(connection.processor.streams.values())
    # One that took its first batch early has not given that part of its window back yet.
    await until(lambda: all(call.buffer.size > 700_000 for call in calls))
    assert sum(call.buffer.size for call in calls) > limits.http2_connection_window_bytes
    assert await log.produce(b"last") == 40
    assert (await log.describe()).next == 41
    found = [record.offset async for record in log.consume(0, follow=False)]
    assert found == list(range(41))
    await end(stalled)


async def test_where_no_connection_has_room_a_read_waits_and_then_says_why(server, monkeypatch):
    monkeypatch.setattr(limits, "client_read_connections_max", 2)
    monkeypatch.setattr(limits, "client_calls_per_connection_max", 3)
    monkeypatch.setattr(limits, "client_room_seconds_max", 0.05)
    async with proglog.connect(url(server), timeout_seconds=1.5) as log:
        await log.produce(b"a")
        records = await followers(log, 6)
        one_more = log.consume(0)
        reads = [asyncio.ensure_future(anext(one_more)), asyncio.ensure_future(log.read(0))]
        for refused in await asyncio.gather(*reads, return_exceptions=True):
            assert isinstance(refused, Overloaded)
            assert "all 2 connections to 127.0.0.1" in str(refused)
        assert await log.produce(b"b") == 1
        assert server.connections == 3
        waiting = asyncio.ensure_future(log.read(1))
        await asyncio.sleep(0.01)
        await records.pop().aclose()
        assert (await waiting).value == b"b"
        await end(records)


@pytest.fixture
async def quick_keepalive(monkeypatch):
    quick = Configuration(
        _keepalive_time=0.03,
        _keepalive_timeout=0.03,
        _http2_max_pings_without_data=0,
        _http2_min_sent_ping_interval_without_data=0.01,
    ).__for_client__()
    monkeypatch.setattr(channel, "_CONFIGURATION", quick)


@asynccontextmanager
async def raw_server(handle):
    """Hands each connection to `handle(reader, writer)`; a url."""
    writers = []

    async def serve(reader, writer):
        writers.append(writer)
        with suppress(ConnectionError):
            await handle(reader, writer)
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield f"proglog://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()
        for writer in writers:
            writer.close()
            with suppress(ConnectionError):
                await writer.wait_closed()


async def test_a_dead_connection_is_noticed_without_traffic(quick_keepalive):
    connections = 0

    async def mute(reader, writer):
        nonlocal connections
        connections += 1
        await reader.read(-1)

    async with raw_server(mute) as mute_url:
        async with proglog.connect(mute_url, timeout_seconds=1) as log:
            waiting = asyncio.ensure_future(anext(log.consume(0)))
            await until(lambda: connections >= 3)
            waiting.cancel()
            await asyncio.wait([waiting])


# --- the end -------------------------------------------------------------------------------------


async def test_a_consumer_ends_when_its_log_is_closed(server):
    server.service.fake.log.extend([b"a"])
    async with proglog.connect(url(server), timeout_seconds=5) as log:
        records = log.consume(0)
        assert (await anext(records)).value == b"a"
        waiting = asyncio.ensure_future(anext(records))
        await asyncio.sleep(0)
    await until(waiting.done)
    with pytest.raises(InvalidRequest, match="the log is closed"):
        waiting.result()
    await until(lambda: server.connections == 0)


async def test_a_consumer_does_not_begin_when_its_log_is_closed(server):
    server.service.fake.log.extend([b"a"])
    async with proglog.connect(url(server), timeout_seconds=5) as log:
        records = log.consume(0)
    with pytest.raises(InvalidRequest, match="the log is closed"):
        await anext(records)
    assert not server._protocols


async def test_a_connection_that_comes_after_its_log_was_closed(server, monkeypatch):
    dialled, go_on = asyncio.Event(), asyncio.Event()
    dial = channel.Channel._dial

    async def slow_dial(self):
        connection = await dial(self)
        dialled.set()
        await go_on.wait()
        return connection

    monkeypatch.setattr(channel.Channel, "_dial", slow_dial)
    async with proglog.connect(url(server), timeout_seconds=5) as log:
        calls = [asyncio.ensure_future(log.describe()) for _ in range(2)]
        await dialled.wait()
    go_on.set()
    results = await asyncio.gather(*calls, return_exceptions=True)
    assert list(map(type, results)) == [LogClosed] * 2
    await until(lambda: server.connections == 0)
    assert len(server._protocols) == 1


# --- servers that are none -----------------------------------------------------------------------


@pytest.mark.parametrize(
    "answer",
    [b"", b"HTTP/1.1 400 Bad Request\r\n\r\n", b"\x00" * 100, b"\xff" * 100_000],
    ids=["nothing", "http/1.1", "zeros", "ones"],
)
async def test_what_does_not_speak_http2(answer):
    async def handle(reader, writer):
        await reader.read(24)
        writer.write(answer)
        await writer.drain()

    async with raw_server(handle) as bad_url:
        async with proglog.connect(bad_url, timeout_seconds=0.2) as log:
            with pytest.raises((OutcomeUnknown, Unavailable)):
                await log.produce(b"a")
            with pytest.raises((OutcomeUnknown, Unavailable)):
                await log.read(0)


def answering(headers, data, trailers=None):
    """A server that answers the first bytes of each call with these."""

    async def handle(reader, writer):
        state = H2Connection(H2Configuration(client_side=False, header_encoding=None))
        state.initiate_connection()
        writer.write(state.data_to_send())
        answered = set()
        while received := await reader.read(65536):
            for event in state.receive_data(received):
                if isinstance(event, RequestReceived):
                    state.send_headers(event.stream_id, headers, end_stream=not data)
                elif isinstance(event, DataReceived) and data and event.stream_id not in answered:
                    answered.add(event.stream_id)
                    state.send_data(event.stream_id, data, end_stream=trailers is None)
                    if trailers is not None:
                        state.send_headers(event.stream_id, trailers, end_stream=True)
            writer.write(state.data_to_send())

    return handle


OK = [(":status", "200"), ("content-type", "application/grpc")]
DONE = [("grpc-status", "0")]


@pytest.mark.parametrize(
    "handle",
    [
        answering([(":status", "502")], b""),
        answering([(":status", "502")], b"<html>"),
        answering(OK, b"\x00\x00\x00\x00\x02\xff\xff", DONE),
        answering(OK, b"\x00\xff\xff\xff\xff" + bytes(1000), DONE),
        answering(OK, b"\x01\x00\x00\x00\x00", DONE),
        answering(OK, b"\x00\x00\x00\x00\x09abc", DONE),
        answering(OK, b"\x00\x00", DONE),
        answering(OK, b"\x00\x00\x00\x00\x00"),
        answering(OK, b"\x00\x00\x00\x00\x00", [("grpc-status", "x")]),
        answering(OK, b"\x00\x00\x00\x00\x00" * 2, DONE),
        answering(OK, b"\x00\x00", [("grpc-status", "14"), ("grpc-status-details-bin", "AAAA")]),
    ],
)
async def test_answers_that_are_none(handle):
    async with raw_server(handle) as bad_url:
        async with proglog.connect(bad_url, timeout_seconds=0.1) as log:
            with pytest.raises(OutcomeUnknown):
                await log.describe()


async def test_frames_of_a_later_http2_are_ignored(server, log):
    await log.produce(b"a")
    for protocol in server._protocols:
        protocol.connection._transport.write(b"\x00\x00\x03\xbe\x00\x00\x00\x00\x00abc")
    assert await log.produce(b"b") == 1
    assert len(server._protocols) == 1


# --- TLS -----------------------------------------------------------------------------------------


async def test_a_certificate_that_is_not_trusted(tmp_path):
    server_context = _self_signed(tmp_path)

    async def handle(reader, writer):
        await reader.read(-1)

    server = await asyncio.start_server(handle, "127.0.0.1", 0, ssl=server_context)
    port = server.sockets[0].getsockname()[1]
    try:
        async with proglog.connect(
            f"proglog://127.0.0.1:{port}", tls=ssl.create_default_context()
        ) as log:
            with pytest.raises(Unauthenticated, match="not trusted"):
                await log.produce(b"a")
    finally:
        server.close()


async def test_tls_when_it_is_trusted(tmp_path):
    async with serving(tls=_self_signed(tmp_path)) as server:
        tls = ssl.create_default_context(cafile=str(tmp_path / "cert.pem"))
        async with proglog.connect(url(server), tls=tls, timeout_seconds=5) as log:
            assert await log.produce(b"secret") == 0
            assert (await log.read(0)).value == b"secret"


def _self_signed(folder) -> ssl.SSLContext:
    from datetime import UTC, datetime, timedelta
    from ipaddress import ip_address

    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "test")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(hours=1))
        .add_extension(
            x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))]), critical=False
        )
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    (folder / "cert.pem").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    (folder / "key.pem").write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(folder / "cert.pem", folder / "key.pem")
    return context
