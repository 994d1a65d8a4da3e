"""HTTP/2 by the book: each case breaks, or uses, one rule of RFC 9113 or RFC 7541.

The cases are those of the conformance tool h2spec, written anew. As there, what should be an error
of a stream may be one of the connection, and a connection that is in error may just be closed.
"""

# ruff: noqa: E501  # a case is a line
from __future__ import annotations

import asyncio
import struct
from collections.abc import Callable
from typing import NamedTuple

import pytest
from h2.errors import ErrorCodes
from hyperframe.frame import (
    ContinuationFrame,
    GoAwayFrame,
    HeadersFrame,
    PingFrame,
    RstStreamFrame,
)

from proglog import limits
from proglog._generated.log import v1
from tests.rpc.raw import RawPeer, frame, message

DATA, HEADERS, PRIORITY, RST, SETTINGS, PUSH, PING, GOAWAY, WINDOW, CONTINUATION = range(10)
END_STREAM, END_HEADERS, PADDED, PRIORITIZED, ACK = 0x1, 0x4, 0x8, 0x20, 0x1
PROTOCOL, FLOW, CLOSED = "PROTOCOL_ERROR", "FLOW_CONTROL_ERROR", "STREAM_CLOSED"
SIZE, COMPRESSION = "FRAME_SIZE_ERROR", "COMPRESSION_ERROR"
GOOD = message(bytes(v1.ProduceRequest(record=v1.Record(value=b"good"))))


class Case(NamedTuple):
    section: str
    rule: str
    sends: Callable[[RawPeer], bytes]
    wanted: str | tuple[str, ...]
    """"answered", "alive", or the codes of errors, any of which will do; of a stream if it says so."""
    of_stream: bool = False


def setting(number: int, value: int) -> bytes:
    return frame(SETTINGS, 0, 0, struct.pack(">HL", number, value))


def update(stream_id: int, size: int) -> bytes:
    return frame(WINDOW, 0, stream_id, struct.pack(">L", size))


def block(peer: RawPeer, *changes: tuple[str, str], without: str = "") -> bytes:
    """A header block of a Produce, with some fields more, or another one less."""
    fields = [
        (":method", "POST"),
        (":scheme", "http"),
        (":path", "/log.v1.Log/Produce"),
        (":authority", "x"),
        ("te", "trailers"),
        ("content-type", "application/grpc"),
    ]
    return peer.encoder.encode([f for f in fields if f[0] != without] + list(changes))


def call(peer: RawPeer, *changes: tuple[str, str], without: str = "") -> bytes:
    peer.stream_id += 2
    opened = frame(HEADERS, END_HEADERS, peer.stream_id, block(peer, *changes, without=without))
    return opened + peer.data(GOOD, end=True)


def opened(peer: RawPeer) -> bytes:
    return peer.headers("/log.v1.Log/ProduceBatches")


def ended(peer: RawPeer) -> bytes:
    """A stream that the client has ended and the server not: it waits for what comes."""
    request = message(bytes(v1.ConsumeBatchesRequest(latest=True, follow=True)))
    return peer.headers("/log.v1.Log/ConsumeBatches") + peer.data(request, end=True)


def reset(peer: RawPeer) -> bytes:
    return opened(peer) + peer.reset()


def headers_on(peer: RawPeer, stream_id: int, flags: int = END_HEADERS) -> bytes:
    return frame(HEADERS, flags, stream_id, block(peer))


CASES = (
    # --- frames
    Case("4.1", "unknown type", lambda p: frame(0x16, 0, 0, b"12345678"), "alive"),
    Case("4.1", "flags without meaning", lambda p: frame(PING, 0x16, 0, b"12345678"), "alive"),
    Case("4.1", "reserved bit", lambda p: frame(PING, 0, 1 << 31, b"12345678"), "alive"),
    Case(
        "4.2",
        "DATA larger than our maximum",
        lambda p: opened(p) + p.data(bytes(limits.http2_frame_bytes_max + 1)),
        (SIZE,),
    ),
    Case("4.2", "large HEADERS", lambda p: frame(HEADERS, 4, 1, bytes(2**15)), (SIZE, COMPRESSION)),
    Case("4.3", "invalid block", lambda p: frame(HEADERS, 4, 1, b"\xff\xff\xff"), (COMPRESSION, PROTOCOL)),
    Case(
        "4.3",
        "PRIORITY within a block",
        lambda p: headers_on(p, 1, 0) + frame(PRIORITY, 0, 1, b"\0\0\0\0\1"),
        (PROTOCOL,),
    ),
    Case(
        "4.3",
        "another stream's HEADERS within a block",
        lambda p: headers_on(p, 1, 0) + headers_on(p, 3),
        (PROTOCOL,),
    ),
    # --- states of streams
    Case("5.1", "idle: DATA", lambda p: frame(DATA, 1, 1, b"x"), (PROTOCOL, CLOSED)),
    Case("5.1", "idle: RST_STREAM", lambda p: frame(RST, 0, 1, bytes(4)), (PROTOCOL,)),
    Case("5.1", "idle: WINDOW_UPDATE", lambda p: update(1, 100), (PROTOCOL,)),
    Case("5.1", "idle: CONTINUATION", lambda p: frame(CONTINUATION, 4, 1, b""), (PROTOCOL,)),
    Case("5.1", "half closed: DATA", lambda p: ended(p) + p.data(b"x"), (CLOSED,), of_stream=True),
    Case(
        "5.1", "half closed: HEADERS", lambda p: ended(p) + headers_on(p, 1), (CLOSED, PROTOCOL),
        of_stream=True,
    ),
    Case(
        "5.1", "half closed: CONTINUATION",
        lambda p: ended(p) + frame(CONTINUATION, 4, 1, b""), (CLOSED, PROTOCOL),
        of_stream=True,
    ),
    Case("5.1", "reset: DATA", lambda p: reset(p) + p.data(b"x"), (CLOSED,), of_stream=True),
    Case(
        "5.1", "reset: HEADERS", lambda p: reset(p) + headers_on(p, 1), (CLOSED, PROTOCOL),
        of_stream=True,
    ),
    Case("5.1.1", "even number", lambda p: headers_on(p, 2), (PROTOCOL,)),
    Case("5.1.1", "lower number", lambda p: headers_on(p, 5) + headers_on(p, 3), (PROTOCOL, CLOSED)),
    Case(
        "5.1.2",
        "more streams than allowed",
        lambda p: b"".join(opened(p) for _ in range(limits.streams_per_connection_max + 1)),
        (PROTOCOL, "REFUSED_STREAM"),
        of_stream=True,
    ),
    Case("5.3.1", "HEADERS that depend on themselves",
         lambda p: frame(HEADERS, 4 | PRIORITIZED, 1, b"\0\0\0\1\0" + block(p)),
         (PROTOCOL,), of_stream=True),
    Case("5.3.1", "PRIORITY that depends on itself", lambda p: frame(PRIORITY, 0, 1, b"\0\0\0\1\0"),
         (PROTOCOL,), of_stream=True),
    Case("5.5", "unknown within a block",
         lambda p: headers_on(p, 1, 0) + frame(0x16, 0, 0, b""), (PROTOCOL,)),
    # --- DATA
    Case("6.1", "on stream 0", lambda p: frame(DATA, 0, 0, b"x"), (PROTOCOL,)),
    Case("6.1", "padding longer than it",
         lambda p: opened(p) + frame(DATA, PADDED, 1, b"\x05xyz"), (PROTOCOL,)),
    Case("6.1", "padded", lambda p: opened(p) + frame(DATA, PADDED, 1, b"\2\0\0\0"), "alive"),
    # --- HEADERS
    Case("6.2", "on stream 0", lambda p: headers_on(p, 0), (PROTOCOL,)),
    Case("6.2", "padding longer than it", lambda p: frame(HEADERS, 4 | PADDED, 1, b"\xffx"), (PROTOCOL,)),
    Case("6.2", "without END_HEADERS",
         lambda p: headers_on(p, 1, 0) + frame(PING, 0, 0, bytes(8)), (PROTOCOL,)),
    # --- PRIORITY
    Case("6.3", "on stream 0", lambda p: frame(PRIORITY, 0, 0, b"\0\0\0\1\0"), (PROTOCOL,)),
    Case("6.3", "of four bytes", lambda p: frame(PRIORITY, 0, 1, bytes(4)), (SIZE,), of_stream=True),
    Case("6.3", "of an idle stream", lambda p: frame(PRIORITY, 0, 1, b"\0\0\0\0\1"), "alive"),
    # --- RST_STREAM
    Case("6.4", "on stream 0", lambda p: frame(RST, 0, 0, bytes(4)), (PROTOCOL,)),
    Case("6.4", "of three bytes", lambda p: opened(p) + frame(RST, 0, 1, bytes(3)), (SIZE,)),
    Case("6.4", "of five bytes", lambda p: opened(p) + frame(RST, 0, 1, bytes(5)), (SIZE,)),
    # --- SETTINGS
    Case("6.5", "ACK with content", lambda p: frame(SETTINGS, ACK, 0, bytes(6)), (SIZE, PROTOCOL)),
    Case("6.5", "on a stream", lambda p: frame(SETTINGS, 0, 1, bytes(6)), (PROTOCOL,)),
    Case("6.5", "of five bytes", lambda p: frame(SETTINGS, 0, 0, bytes(5)), (SIZE,)),
    Case("6.5.2", "ENABLE_PUSH 2", lambda p: setting(2, 2), (PROTOCOL,)),
    Case("6.5.2", "INITIAL_WINDOW_SIZE 2**31", lambda p: setting(4, 2**31), (FLOW,)),
    Case("6.5.2", "MAX_FRAME_SIZE 2**14 - 1", lambda p: setting(5, 2**14 - 1), (PROTOCOL,)),
    Case("6.5.2", "MAX_FRAME_SIZE 2**24", lambda p: setting(5, 2**24), (PROTOCOL,)),
    Case("6.5.2", "unknown", lambda p: setting(0xFF, 1), "alive"),
    Case("6.5.3", "the same twice", lambda p: setting(4, 100) + setting(4, 1), "alive"),
    # --- PUSH_PROMISE
    Case("6.6", "of a client", lambda p: opened(p) + frame(PUSH, 4, 1, b"\0\0\0\2" + block(p)),
         (PROTOCOL,)),
    # --- PING
    Case("6.7", "is answered", lambda p: b"", "alive"),
    Case("6.7", "ACK is not", lambda p: frame(PING, ACK, 0, b"invalid!"), "alive"),
    Case("6.7", "on a stream", lambda p: frame(PING, 0, 1, bytes(8)), (PROTOCOL,)),
    Case("6.7", "of six bytes", lambda p: frame(PING, 0, 0, bytes(6)), (SIZE,)),
    # --- GOAWAY
    Case("6.8", "on a stream", lambda p: frame(GOAWAY, 0, 1, bytes(8)), (PROTOCOL,)),
    # --- WINDOW_UPDATE
    Case("6.9", "of nothing", lambda p: update(0, 0), (PROTOCOL,)),
    Case("6.9", "of nothing, on a stream", lambda p: opened(p) + update(1, 0), (PROTOCOL,),
         of_stream=True),
    Case("6.9", "of three bytes", lambda p: frame(WINDOW, 0, 0, bytes(3)), (SIZE,)),
    Case("6.9.1", "over 2**31 - 1", lambda p: update(0, 2**31 - 1) * 2, (FLOW,)),
    Case("6.9.1", "over 2**31 - 1, on a stream", lambda p: opened(p) + update(1, 2**31 - 1) * 2,
         (FLOW,), of_stream=True),
    Case("6.9.2", "a window that becomes negative",
         lambda p: opened(p) + setting(4, 10) + setting(4, 0), "alive"),
    # --- CONTINUATION
    Case("6.10", "after END_HEADERS", lambda p: opened(p) + frame(CONTINUATION, 4, 1, b""),
         (PROTOCOL,)),
    Case("6.10", "on stream 0", lambda p: headers_on(p, 1, 0) + frame(CONTINUATION, 4, 0, b""),
         (PROTOCOL,)),
    Case("6.10", "after DATA", lambda p: opened(p) + p.data(b"") + frame(CONTINUATION, 4, 1, b""),
         (PROTOCOL,)),
    # --- messages
    Case("8.1", "a second HEADERS without END_STREAM", lambda p: opened(p) + headers_on(p, 1),
         (PROTOCOL,), of_stream=True),
    Case("8.2.1", "upper case", lambda p: call(p, ("X-TEST", "1")), (PROTOCOL,), of_stream=True),
    Case("8.2.1", "a line break", lambda p: call(p, ("x", "a\r\nb")), (PROTOCOL,), of_stream=True),
    Case("8.2.1", "a zero", lambda p: call(p, ("x", "a\0b")), (PROTOCOL,), of_stream=True),
    Case("8.2.2", "connection", lambda p: call(p, ("connection", "close")), (PROTOCOL,),
         of_stream=True),
    Case("8.2.2", "te that is not trailers", lambda p: call(p, ("te", "gzip"), without="te"),
         (PROTOCOL,), of_stream=True),
    Case("8.3", "unknown pseudo-header", lambda p: call(p, (":test", "1")), (PROTOCOL,),
         of_stream=True),
    Case("8.3", "one of an answer", lambda p: call(p, (":status", "200")), (PROTOCOL,),
         of_stream=True),
    Case("8.3", "one after the others", lambda p: call(p, (":scheme", "http"), without=":scheme"),
         (PROTOCOL,), of_stream=True),
    Case("8.3.1", "two of one", lambda p: call(p, (":path", "/x")), (PROTOCOL,), of_stream=True),
    Case("8.1.1", "content-length that is wrong", lambda p: call(p, ("content-length", "1")),
         (PROTOCOL,), of_stream=True),
    Case("8.1.1", "content-length that is right",
         lambda p: call(p, ("content-length", str(len(GOOD)))), "answered"),
    # --- RFC 7541
    Case("7541 2.3.3", "an index that is none", lambda p: frame(HEADERS, 4, 1, b"\xfe"),
         (COMPRESSION, PROTOCOL)),
    Case("7541 4.2", "a change of size at the end", lambda p: frame(HEADERS, 4, 1, block(p) + b"\x3e"),
         (COMPRESSION, PROTOCOL)),
    Case("7541 6.1", "index 0", lambda p: frame(HEADERS, 4, 1, b"\x80"), (COMPRESSION, PROTOCOL)),
    Case("7541 6.3", "a size above the limit", lambda p: frame(HEADERS, 4, 1, b"\x3f\xe1\xff\x03"),
         (COMPRESSION, PROTOCOL)),
    # --- gRPC over it
    Case("8.3.1", "a call", lambda p: call(p), "answered"),
)  # fmt: skip


async def outcome(peer: RawPeer, mark: bytes) -> tuple[str, str]:
    """What the server makes of it first, an answered PING being the last thing to come."""
    async with asyncio.timeout(20):
        while (found := await peer.receive()) is not None:
            if isinstance(found, GoAwayFrame):
                return "connection", ErrorCodes(found.error_code).name
            if isinstance(found, RstStreamFrame):
                return "stream", ErrorCodes(found.error_code).name
            if isinstance(found, PingFrame) and found.opaque_data == mark:
                return "alive", ""
            if isinstance(found, HeadersFrame | ContinuationFrame):
                fields = dict(peer.decoder.decode(found.data))
                if fields.get("grpc-status") == "0":
                    return "answered", ""
    return "connection", "closed"


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.section} {case.rule}")
async def test_the_book(node, case):
    async with RawPeer(node) as peer:
        mark = b"the last"
        peer.send(case.sends(peer))
        if case.wanted == "alive":
            peer.send(frame(PING, 0, 0, mark))
        kind, code = await outcome(peer, mark)
        if isinstance(case.wanted, str):
            assert kind == case.wanted
        else:
            assert (kind, code) == ("connection", "closed") or code in case.wanted
            assert kind == "connection" or case.of_stream
    async with RawPeer(node) as other:
        other.send(call(other))
        assert await outcome(other, b"") == ("answered", "")
