"""grpclib runs over the simulated network: a bidirectional stream between two hosts."""

from __future__ import annotations

import asyncio

from grpclib.client import Channel, StreamStreamMethod
from grpclib.const import Cardinality, Handler
from grpclib.encoding.base import CodecBase
from grpclib.server import Server, Stream

from tests.doubles.loop import run
from tests.doubles.network import on_host


class Raw(CodecBase):
    __content_subtype__ = "raw"

    def encode(self, message: object, message_type: object) -> bytes:
        assert isinstance(message, bytes)
        return message

    def decode(self, data: bytes, message_type: object) -> bytes:
        return data


class Echo:
    async def echo(self, stream: Stream[bytes, bytes]) -> None:
        async for message in stream:
            await asyncio.sleep(1)
            await stream.send_message(message)

    def __mapping__(self) -> dict[str, Handler]:
        return {"/test.Echo/Echo": Handler(self.echo, Cardinality.STREAM_STREAM, bytes, bytes)}


async def talk() -> float:
    with on_host("server"):
        server = Server([Echo()], codec=Raw())
        await server.start("0.0.0.0", 8400)
    with on_host("client"):
        channel = Channel("server", 8400, codec=Raw())
    method: StreamStreamMethod[bytes, bytes] = StreamStreamMethod(
        channel, "/test.Echo/Echo", bytes, bytes
    )
    with on_host("client"):
        async with method.open() as stream:
            for size in (1, 100_000, 3):
                await stream.send_message(b"x" * size)
                assert await stream.recv_message() == b"x" * size
            await stream.end()
            assert await stream.recv_message() is None
    channel.close()
    server.close()
    await server.wait_closed()
    return asyncio.get_running_loop().time()


def test_a_bidirectional_stream() -> None:
    assert 3 < run(talk(), seed=1) < 3.5
    assert run(talk(), seed=1) == run(talk(), seed=1) != run(talk(), seed=2)
