"""Peers that break the rules: each is told so or cut off, nothing grows, nobody else notices."""

from __future__ import annotations

import asyncio
import logging
import random
from pathlib import Path

import pytest
from h2.errors import ErrorCodes
from hyperframe.frame import ContinuationFrame, HeadersFrame, PingFrame, SettingsFrame

from proglog import limits, wire
from proglog._generated.log import v1
from tests.rpc.fakes import new_channel
from tests.rpc.raw import PREFACE, RawPeer, frame, message
from tests.waiting import until

GOOD = message(bytes(v1.ProduceRequest(record=v1.Record(value=b"good"))))


@pytest.fixture(autouse=True)
async def _others_are_served_and_nothing_is_logged_as_ours(node, caplog):
    channel = new_channel(node)
    with caplog.at_level(logging.INFO):
        yield
    channel = new_channel(node)
    async with asyncio.timeout(10):
        await v1.LogStub(channel).describe(v1.DescribeRequest())
    channel.close()
    await until(lambda: node.calls == 0)
    assert [r for r in caplog.records if r.levelno > logging.INFO or r.exc_info] == []


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


# --- messages ------------------------------------------------------------------------------------


async def test_a_message_beyond_the_limit_is_refused_by_its_prefix(node):
    async with RawPeer(node) as peer:
        peer.send(peer.headers() + peer.data(b"\0\xff\xff\xff\xff"))
        found = await peer.trailers()
        assert found["grpc-status"] == "8"
        peer.send(peer.headers() + peer.data(GOOD, end=True))
        assert (await peer.trailers())["grpc-status"] == "0"


@pytest.mark.parametrize("flag", [1, 2, 255])
async def test_a_compressed_message_is_unimplemented(node, flag):
    async with RawPeer(node) as peer:
        peer.send(peer.headers() + peer.data(message(b"x", flag), end=True))
        assert (await peer.trailers())["grpc-status"] == "12"


@pytest.mark.parametrize("cut", [1, 4, 5, 6])
async def test_a_message_cut_short_is_invalid(node, cut):
    async with RawPeer(node) as peer:
        peer.send(peer.headers() + peer.data(GOOD[:cut], end=True))
        assert (await peer.trailers())["grpc-status"] == "3"
    assert node.log.next == 0


async def test_a_call_without_a_message_is_invalid(node):
    async with RawPeer(node) as peer:
        peer.send(peer.headers() + peer.data(b"", end=True))
        assert (await peer.trailers())["grpc-status"] == "3"


async def test_a_mebibyte_of_unknown_fields_is_invalid(node):
    """betterproto2's decoder takes 7 seconds of the loop for this."""
    unknown = message(b"\xf8\x07\x01" * (349_000))
    async with RawPeer(node) as peer:
        peer.send(peer.headers())
        for start in range(0, len(unknown), 16_000):
            peer.send(peer.data(unknown[start : start + 16_000]))
        assert (await peer.trailers())["grpc-status"] == "3"


async def test_bytes_that_are_no_message_are_invalid(node):
    async with RawPeer(node) as peer:
        for method in ("Produce", "Consume", "ConsumeBatches", "Describe", "ProduceBatches"):
            peer.send(peer.headers(f"/log.v1.Log/{method}"))
            peer.send(peer.data(message(b"\xff\xff\xff"), end=True))
            assert (await peer.trailers())["grpc-status"] == "3"


async def test_messages_in_pieces_and_with_padding_are_read(node):
    async with RawPeer(node) as peer:
        peer.send(peer.headers())
        for byte in GOOD:
            padded = frame(0, 0x8, peer.stream_id, bytes((3, byte)) + b"\0\0\0")
            peer.send(padded + peer.data(b""))
        peer.send(peer.data(b"", end=True))
        assert (await peer.trailers())["grpc-status"] == "0"


async def test_padding_does_not_use_up_the_window(node):
    """Padding counts against the window but is never read: it is given back when it comes."""
    record = message(bytes(v1.ProduceRequest(record=v1.Record(value=b"x" * 6000))))
    async with RawPeer(node) as peer:
        peer.send(peer.headers())
        for byte in record:
            peer.send(frame(0, 0x8, peer.stream_id, bytes((255, byte)) + bytes(255)))
            await peer.writer.drain()
        peer.send(peer.data(b"", end=True))
        assert (await peer.trailers())["grpc-status"] == "0"


async def test_what_an_error_says_is_bounded_where_it_leaves(node):
    """Here the error itself quotes all of the name: some other one may."""
    request = message(bytes(v1.DescribeRequest(log="é" * 8000)))
    async with RawPeer(node) as peer:
        peer.send(peer.headers("/log.v1.Log/Describe") + peer.data(request, end=True))
        found = await peer.trailers()
    assert found["grpc-status"] == "5"
    assert len(found["grpc-message"]) <= 3 * limits.error_text_bytes_max
    assert sum(len(name) + len(value) for name, value in found.items()) < 8 * 1024


# --- headers -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"__method": "GET"}, (":status", "405")),
        ({"__method": None}, (":status", "405")),
        ({"content_type": "text/plain"}, (":status", "415")),
        ({"content_type": None}, (":status", "415")),
        ({"__path": None}, ("grpc-status", "12")),
        ({"grpc_timeout": "soon"}, ("grpc-status", "3")),
        ({"grpc_timeout": "9" * 5000 + "S"}, ("grpc-status", "3")),
        ({"grpc_timeout": "99999999H"}, ("grpc-status", "0")),
        ({"grpc_timeout": "0n"}, ("grpc-status", "4")),
        ({"x_bin": "abcde"}, ("grpc-status", "3")),
        ({"x_text": "\xff\xfe"}, ("grpc-status", "0")),
    ],
)
async def test_strange_headers_get_a_plain_answer(node, changes, expected):
    async with RawPeer(node) as peer:
        peer.send(peer.headers(**changes) + peer.data(GOOD, end=True))
        name, value = expected
        assert (await peer.trailers())[name] == value


async def test_a_header_block_that_never_ends_is_cut(node):
    async with RawPeer(node) as peer:
        peer.send(HeadersFrame(1, b"\0" * 100).serialize())
        for _ in range(60):
            peer.send(ContinuationFrame(1, b"\0" * 1000).serialize())
        assert (await peer.goodbye()).error_code == ErrorCodes.ENHANCE_YOUR_CALM


async def test_headers_in_many_small_frames_are_cut(node):
    async with RawPeer(node) as peer:
        peer.send(HeadersFrame(1, b"").serialize())
        for _ in range(limits.http2_continuations_max + 1):
            peer.send(ContinuationFrame(1, b"").serialize())
        assert (await peer.goodbye()).error_code == ErrorCodes.ENHANCE_YOUR_CALM


@pytest.mark.parametrize("size", [0, 64, 2**32 - 1])
async def test_what_a_peer_says_of_its_table_of_headers_costs_nothing(node, size):
    async with RawPeer(node) as peer:
        peer.send(SettingsFrame(0, settings={SettingsFrame.HEADER_TABLE_SIZE: size}).serialize())
        peer.decoder.max_allowed_table_size = size
        for _ in range(3):
            peer.send(peer.headers() + peer.data(GOOD, end=True))
            assert (await peer.trailers())["grpc-status"] == "0"
        (connection,) = node.server._connections
        assert connection.state.encoder.header_table_size <= 4096


async def test_a_header_bomb_is_cut(node):
    async with RawPeer(node) as peer:
        first = peer.headers(x_bomb="b" * 3000)
        bomb = peer.encoder.encode([("x-bomb", "b" * 3000)])
        block = bomb * 1000
        peer.send(first)
        peer.send(HeadersFrame(3, block, flags=["END_HEADERS"]).serialize())
        assert await peer.goodbye() is not None


# --- frames --------------------------------------------------------------------------------------


async def test_frames_of_unknown_type_are_ignored(node):
    async with RawPeer(node) as peer:
        for kind in (0x0B, 0x2A, 0xEE):
            peer.send(frame(kind, 0x55, 0, b"grease") + frame(kind, 0, 7, b"x" * 1000))
        peer.send(peer.headers() + frame(0x0B, 0, 1, b"") + peer.data(GOOD, end=True))
        assert (await peer.trailers())["grpc-status"] == "0"


async def test_an_overlong_frame_is_refused_by_its_header(node):
    async with RawPeer(node) as peer:
        peer.send(b"\xff\xff\xff\0\0\0\0\0\1")
        assert (await peer.goodbye()).error_code == ErrorCodes.FRAME_SIZE_ERROR


async def test_random_bytes_after_the_preface_end_the_connection(node):
    chance = random.Random(7)
    for _ in range(100):
        async with RawPeer(node) as peer:
            peer.send(chance.randbytes(chance.randrange(9, 3000)))
            peer.writer.write_eof()
            await peer.goodbye()


async def test_random_frames_end_the_connection_at_worst(node):
    chance = random.Random(11)
    for _ in range(150):
        async with RawPeer(node) as peer:
            for _ in range(chance.randrange(1, 30)):
                if chance.random() < 0.3:
                    peer.send(peer.headers(chance.choice(["/log.v1.Log/ProduceBatches", "/x"])))
                elif chance.random() < 0.3 and peer.stream_id > 0:
                    peer.send(peer.data(chance.randbytes(20), end=chance.random() < 0.5))
                else:
                    body = chance.randbytes(chance.choice([0, 4, 5, 6, 8, 20]))
                    kind, flags = chance.randrange(0, 12), chance.randrange(256)
                    peer.send(frame(kind, flags, chance.randrange(0, 6), body))
            peer.writer.write_eof()
            await peer.goodbye()


async def test_a_wrong_preface_ends_the_connection(node):
    reader, writer = await asyncio.open_connection(node.host, node.port)
    writer.write(PREFACE.replace(b"SM", b"MS"))
    async with asyncio.timeout(10):
        await reader.read()
    writer.close()


# --- floods --------------------------------------------------------------------------------------


async def _flood(peer: RawPeer, unit: bytes, count: int) -> int:
    """Sends without reading; how many bytes the server took before it stopped or cut us."""
    sent = 0
    try:
        async with asyncio.timeout(3):
            for _ in range(count):
                peer.send(unit)
                sent += len(unit)
                await peer.writer.drain()
    except (TimeoutError, ConnectionError):
        pass
    return sent


@pytest.mark.parametrize(
    "unit",
    [
        PingFrame(0, b"12345678").serialize(),
        SettingsFrame(0).serialize(),
        frame(0x2A, 0, 0, b""),
        frame(2, 0, 1, b"\0\0\0\0\x10"),
        # Each makes the window larger, as far as windows go, or is of a stream that is none.
        frame(8, 0, 0, b"\0\0\0\1"),
    ],
    ids=["ping", "settings", "unknown", "priority", "window"],
)
async def test_a_flood_of_idle_frames_is_cut(node, unit, caplog):
    async with RawPeer(node) as peer:
        before = resident_bytes()
        await _flood(peer, unit * 100, 10_000)
        # Its GOAWAY may be lost: closing with unread bytes resets the connection.
        await peer.goodbye()
        assert "too many frames that carry nothing" in caplog.text
        assert resident_bytes() - before < 16 << 20


async def test_a_peer_that_does_not_read_is_not_read(node, monkeypatch):
    """Each PING makes the server write; without a bound its unread answers pile up."""
    monkeypatch.setattr(limits, "http2_idle_frames_per_second_max", 1e9)
    async with RawPeer(node) as peer:
        peer.reader._transport.pause_reading()
        before = resident_bytes()
        ping = PingFrame(0, b"12345678").serialize()
        sent = await _flood(peer, ping * 1000, 10_000)
        assert sent < 100 << 20
        (connection,) = node.server._connections
        pending = connection.connection._transport.get_write_buffer_size()
        # What had been read when the peer stopped is still answered.
        assert pending < limits.http2_write_buffer_bytes_max + (8 << 20)
        assert resident_bytes() - before < 32 << 20


async def test_data_of_a_byte_each_is_kept_in_few_buffers(node):
    """A window full of them took a hundred times its size, and is all within the rules."""
    node.log.durable_at_once = False
    async with RawPeer(node) as peer:
        before = resident_bytes()
        peer.send(peer.headers("/log.v1.Log/ProduceBatches") + peer.data(b"\0\0\x10\0\0"))
        units = peer.data(b"x") * 1000
        for _ in range(100):
            peer.send(units)
            await peer.writer.drain()

        def streams():
            return [s for c in node.server._connections for s in c.processor.streams.values()]

        await until(lambda: [s.buffer.size for s in streams()] == [100_000])
        (stream,) = streams()
        assert len(stream.buffer._parts) < 10
        assert resident_bytes() - before < 16 << 20


async def test_a_flood_of_empty_data_is_cut(node):
    async with RawPeer(node) as peer:
        peer.send(peer.headers())
        await _flood(peer, peer.data(b"") * 100, 1000)
        assert (await peer.goodbye()).error_code == ErrorCodes.ENHANCE_YOUR_CALM


async def test_rapid_resets_are_cut(node):
    started = []
    original = node.log.read

    async def read(offset, bytes_max):
        started.append(offset)
        return await original(offset, bytes_max)

    node.log.read = read
    async with RawPeer(node) as peer:
        before = resident_bytes()
        request = message(bytes(v1.ConsumeRequest()))
        for _ in range(20_000):
            opened = peer.headers("/log.v1.Log/ConsumeStream")
            peer.send(opened + peer.data(request, end=True) + peer.reset())
        assert (await peer.goodbye()).error_code == ErrorCodes.ENHANCE_YOUR_CALM
        assert len(started) <= limits.resets_per_second_max
        assert resident_bytes() - before < 32 << 20


async def test_streams_that_make_the_server_reset_them_are_cut(node):
    """CVE-2025-8671: the client sends no reset, but breaks a stream's rules so that we do."""
    async with RawPeer(node) as peer:
        for _ in range(5_000):
            opened = peer.headers("/log.v1.Log/ProduceBatches")
            peer.send(opened + frame(8, 0, peer.stream_id, b"\x7f\xff\xff\xff") * 2)
        assert await peer.goodbye() is not None


async def test_more_streams_than_allowed_end_the_connection(node):
    async with RawPeer(node) as peer:
        for _ in range(limits.streams_per_connection_max + 1):
            peer.send(peer.headers("/log.v1.Log/ProduceBatches"))
        assert await peer.goodbye() is not None


async def test_received_but_unread_data_is_bounded_by_the_window(node):
    """A peer that ignores our windows is cut off at the first byte beyond."""
    node.log.durable_at_once = False
    value = b"x" * 10_000
    batch = wire.Codec().encode(wire.ProduceBatch(_batch(value)), v1.ProduceBatchesRequest)
    async with RawPeer(node) as peer:
        peer.send(peer.headers("/log.v1.Log/ProduceBatches"))
        for _ in range(1000):
            peer.send(peer.data(message(batch)))
        goodbye = await peer.goodbye()
        assert goodbye.error_code == ErrorCodes.FLOW_CONTROL_ERROR
        assert node.log.next < 200


def _batch(value: bytes):
    from proglog import batch

    return batch.ProposedBatch(batch.encode([value]))
