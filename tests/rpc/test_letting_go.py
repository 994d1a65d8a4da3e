"""What a call held is free when it ends, however it ends: nothing waits for the garbage collector,
which a node that answers large records runs too seldom."""

from __future__ import annotations

import asyncio
import gc
import weakref
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest

from proglog import errors, wire
from proglog._generated.log import v1
from proglog.batch import ProposedBatch, encode
from proglog.errors import Unavailable
from proglog.rpc.calls import Call
from proglog.types import Chunk
from tests.rpc.fakes import MemoryLog, Node
from tests.rpc.raw import RawPeer, message
from tests.waiting import until

BATCH = wire.ProduceBatch(ProposedBatch(encode([b"x" * 1000])))
BATCHES = message(wire.Codec().encode(BATCH, v1.ProduceBatchesRequest))
RECORD = message(bytes(v1.ProduceRequest(record=v1.Record(value=b"x" * 1000))))
NO_RECORD = message(bytes(v1.ProduceRequest()))
STREAM = message(bytes(v1.ConsumeRequest(offset=0)))
READ = message(bytes(v1.ConsumeBatchesRequest(offset=0, follow=True)))


class Read(bytearray):
    """Bytes of a chunk that can be watched."""


class WatchedLog(MemoryLog):
    """Tells what it gave out, and to which calls."""

    def __init__(self) -> None:
        super().__init__()
        self.given: list[weakref.ref[object]] = []

    async def read(self, offset: int, bytes_max: int) -> Chunk:
        chunk = await super().read(offset, bytes_max)
        data = Read(chunk.data)
        self.given.append(weakref.ref(data))
        return Chunk(data, chunk.next_offset)


@pytest.fixture
async def node() -> AsyncIterator[Node]:
    async with Node(WatchedLog()) as node:
        for _ in range(4):
            await node.log.append(b"x" * 1_000_000)
        gc.collect()
        gc.disable()
        try:
            yield node
        finally:
            gc.enable()


def calls_of(node: Node) -> list[weakref.ref[Call]]:
    """The calls that run."""
    (connection,) = node.server._connections
    return [weakref.ref(call) for call in connection.calls._calls.values()]


async def let_go(node: Node, held: list[weakref.ref[Call]]) -> None:
    assert held
    await until(lambda: node.calls == 0)
    for _ in range(20):
        await asyncio.sleep(0.001)
    kept = [ref() for ref in [*held, *node.log.given] if ref() is not None]
    assert not kept, [(type(each), [type(who) for who in gc.get_referrers(each)]) for each in kept]


async def reset(node: Node, peer: RawPeer) -> None:
    peer.send(peer.reset())


async def lose(node: Node, peer: RawPeer) -> None:
    peer.writer.transport.abort()


async def break_rules(node: Node, peer: RawPeer) -> None:
    """A WINDOW_UPDATE of nothing: the server resets the stream."""
    peer.send(b"\0\0\x04\x08\0" + peer.stream_id.to_bytes(4) + bytes(4))


async def drain(node: Node, peer: RawPeer) -> None:
    for connection in node.server._connections:
        connection.calls.end(Unavailable("the node is shutting down"))


async def expire(node: Node, peer: RawPeer) -> None:
    """It has a deadline."""


HOW = [reset, lose, break_rules, drain, expire]
End = Callable[[Node, RawPeer], Awaitable[None]]


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize(
    ("path", "request_"), [("ConsumeStream", STREAM), ("ConsumeBatches", READ)]
)
async def test_a_reader_that_ends_while_it_is_sent_something(
    node: Node, how: End, path: str, request_: bytes
) -> None:
    async with RawPeer(node) as peer:
        timeout = "200m" if how is expire else None
        peer.send(peer.headers(f"/log.v1.Log/{path}", grpc_timeout=timeout))
        peer.send(peer.data(request_, end=True))
        await until(lambda: node.log.given)
        await asyncio.sleep(0.02)  # until it waits for the peer's window
        held = calls_of(node)
        await how(node, peer)
        await let_go(node, held)


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize(
    ("path", "request_"), [("ConsumeStream", STREAM), ("ConsumeBatches", READ)]
)
async def test_a_reader_that_ends_while_it_waits(
    node: Node, how: End, path: str, request_: bytes
) -> None:
    node.log.batches.clear()
    node.log.earliest = node.log.next = 0
    async with RawPeer(node) as peer:
        timeout = "200m" if how is expire else None
        peer.send(peer.headers(f"/log.v1.Log/{path}", grpc_timeout=timeout))
        peer.send(peer.data(request_, end=True))
        await until(lambda: node.log.readers)
        held = calls_of(node)
        await how(node, peer)
        await let_go(node, held)


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize(
    ("path", "request_"),
    [("Produce", RECORD), ("ProduceStream", RECORD), ("ProduceBatches", BATCHES)],
)
async def test_a_writer_that_ends_before_its_answer(
    node: Node, how: End, path: str, request_: bytes
) -> None:
    node.log.durable_at_once = False
    async with RawPeer(node) as peer:
        timeout = "200m" if how is expire else None
        # A call with such a header has a task of its own, also a Produce.
        peer.send(peer.headers(f"/log.v1.Log/{path}", grpc_timeout=timeout, x_bin="AAAA"))
        peer.send(peer.data(request_, end=path == "Produce"))
        await until(lambda: node.log.waiting)
        held = calls_of(node)
        await how(node, peer)
        if how is drain:
            node.log.sync()
        node.log.waiting.clear()
        await let_go(node, held)


@pytest.mark.parametrize(
    ("path", "requests"),
    [
        ("Produce", [NO_RECORD]),
        ("Produce", [message(b"\xff")]),
        ("ProduceStream", [RECORD, NO_RECORD]),
        ("ProduceStream", [RECORD + NO_RECORD]),
        ("ProduceStream", [RECORD + message(b"\xff")]),
        ("ProduceBatches", [BATCHES, message(b"\xff")]),
        ("ProduceBatches", [BATCHES, message(b"x", 1)]),
        ("Consume", [message(bytes(v1.ConsumeRequest(offset=99)))]),
        ("ConsumeBatches", [message(bytes(v1.ConsumeBatchesRequest(offset=99)))]),
        ("Describe", [message(bytes(v1.DescribeRequest(log="unknown")))]),
    ],
)
async def test_a_call_that_is_refused(node: Node, path: str, requests: list[bytes]) -> None:
    held = []
    async with RawPeer(node) as peer:
        # With such a header it is a call at once, also a Produce.
        peer.send(peer.headers(f"/log.v1.Log/{path}", x_bin="AAAA"))
        await until(lambda: node.calls)
        held = calls_of(node)
        for request in requests:
            peer.send(peer.data(request))
            await asyncio.sleep(0.01)
        assert (await peer.trailers())["grpc-status"] != "0"
        await let_go(node, held)


async def test_a_batch_that_the_log_refuses(node: Node) -> None:
    node.log.refusals = [None, errors.DiskFull("no space")]
    async with RawPeer(node) as peer:
        peer.send(peer.headers("/log.v1.Log/ProduceBatches"))
        await until(lambda: node.calls)
        held = calls_of(node)
        peer.send(peer.data(BATCHES + BATCHES))
        assert (await peer.trailers())["grpc-status"] == "8"
        await let_go(node, held)
