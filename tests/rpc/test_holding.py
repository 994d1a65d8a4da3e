"""No callback of a served connection holds the loop.

Measured in CPU time of its own thread, so that a busy machine does not count, and on asyncio's own
loop, which lets its callbacks be watched.
"""

from __future__ import annotations

import asyncio
import gc
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from hyperframe.frame import PingFrame

from proglog import errors
from proglog._generated.log import v1
from tests.rpc.fakes import Node
from tests.rpc.raw import RawPeer, frame, message
from tests.rpc.test_quick import answers, produce

HELD_SECONDS_MAX = 0.02


class Watch:
    """What the callback that held the loop longest was."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self.what = ""


@contextmanager
def watched() -> Iterator[Watch]:
    watch = Watch()
    run = asyncio.Handle._run

    def timed(handle: asyncio.Handle) -> None:
        begun = time.thread_time()
        run(handle)
        seconds = time.thread_time() - begun
        if seconds > watch.seconds:
            watch.seconds, watch.what = seconds, repr(handle)

    asyncio.Handle._run = timed
    # What all other tests have left is collected in somebody's callback, whosever that is.
    gc.collect()
    gc.disable()
    try:
        yield watch
    finally:
        gc.enable()
        asyncio.Handle._run = run


def test_a_callback_that_holds_the_loop_is_noticed():
    async def hold() -> None:
        until = time.thread_time() + 2 * HELD_SECONDS_MAX
        while time.thread_time() < until:
            pass

    with watched() as watch, asyncio.Runner(loop_factory=asyncio.SelectorEventLoop) as runner:
        runner.run(hold())
    assert watch.seconds > HELD_SECONDS_MAX


async def small_records(node: Node, peer: RawPeer) -> None:
    """A window of them at once."""
    record = message(bytes(v1.ProduceRequest(record=v1.Record(value=b"x"))))
    peer.send(peer.headers("/log.v1.Log/ProduceStream"))
    for _ in range(10):
        peer.send(peer.data(record * 500))
    peer.send(peer.data(b"", end=True))
    await answers(peer, 1, 60)
    assert node.log.next == 5000


async def many_produces(node: Node, peer: RawPeer) -> None:
    # Made elsewhere: it would be the longest step of all.
    peer.send(await asyncio.to_thread(lambda: b"".join(produce(peer) for _ in range(400))))
    assert len(await answers(peer, 400, 60)) == 400


async def many_refusals(node: Node, peer: RawPeer) -> None:
    node.log.refusals = [errors.DiskFull("é" * 2000, files="é" * 300)] * 400
    await many_produces(node, peer)


async def window_updates(node: Node, peer: RawPeer) -> None:
    """One read of them, to streams that all wait for their window."""
    peer.send(frame(4, 0, 0, b"\0\4\0\0\0\0"))
    await node.log.append(b"x" * 1000)
    for _ in range(200):
        peer.send(peer.headers("/log.v1.Log/ConsumeStream") + peer.data(bytes(5), end=True))
    peer.send(frame(8, 0, 0, b"\0\0\0\1") * 9000)
    peer.send(frame(6, 0, 0, b"the last"))
    async with asyncio.timeout(60):
        while not isinstance(await peer.receive(), PingFrame):
            await asyncio.sleep(0)


async def long_reads(node: Node, peer: RawPeer) -> None:
    for _ in range(20):
        await node.log.append(*[b"x"] * 1000)
    peer.send(frame(4, 0, 0, b"\0\4\x7f\xff\xff\xff") + frame(8, 0, 0, b"\x3f\0\0\0"))
    peer.send(peer.headers("/log.v1.Log/ConsumeStream", grpc_timeout="300m"))
    peer.send(peer.data(bytes(5), end=True))
    await answers(peer, 1, 60)


@pytest.mark.parametrize(
    "load", [small_records, many_produces, many_refusals, window_updates, long_reads]
)
def test_no_callback_holds_the_loop(load):
    async def run() -> None:
        async with Node() as node, RawPeer(node) as peer:
            await load(node, peer)

    with watched() as watch, asyncio.Runner(loop_factory=asyncio.SelectorEventLoop) as runner:
        runner.run(run())
    print(f"{load.__name__}: {1000 * watch.seconds:.1f} ms, {watch.what}")
    assert watch.seconds < HELD_SECONDS_MAX, watch.what
