"""A small grpclib server over a FakeLog, which can be told to misbehave."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator

import grpclib
from grpclib.const import Cardinality, Handler
from grpclib.server import Server
from h2.settings import SettingCodes
from hyperframe.frame import GoAwayFrame

from proglog import wire
from proglog._generated.log import v1
from proglog.client.backend import At
from proglog.errors import ProglogError
from proglog.types import Appended
from tests.client.fake import FakeBackend


def grpc_error(error: ProglogError) -> grpclib.GRPCError:
    return grpclib.GRPCError(grpclib.Status(error.status.value), str(error), error)


class LogService:
    """Answers to batches wait for `release`; faults of `fake` refuse them."""

    def __init__(self) -> None:
        self.fake = FakeBackend()
        self.release = asyncio.Event()
        self.release.set()
        self.received = 0
        self.calls: list[str] = []

    def __mapping__(self) -> dict[str, Handler]:
        def handler(function, cardinality, name, reply):
            return Handler(function, cardinality, getattr(v1, name), getattr(v1, reply))

        return {
            "/log.v1.Log/ProduceBatches": handler(
                self.produce,
                Cardinality.STREAM_STREAM,
                "ProduceBatchesRequest",
                "ProduceBatchesResponse",
            ),
            "/log.v1.Log/ConsumeBatches": handler(
                self.consume,
                Cardinality.UNARY_STREAM,
                "ConsumeBatchesRequest",
                "ConsumeBatchesResponse",
            ),
            "/log.v1.Log/Consume": handler(
                self.read, Cardinality.UNARY_UNARY, "ConsumeRequest", "ConsumeResponse"
            ),
            "/log.v1.Log/GetServers": handler(
                self.get_servers, Cardinality.UNARY_UNARY, "GetServersRequest", "GetServersResponse"
            ),
            "/log.v1.Log/Describe": handler(
                self.describe, Cardinality.UNARY_UNARY, "DescribeRequest", "DescribeResponse"
            ),
        }

    async def produce(self, stream) -> None:
        self.calls.append("produce")
        while (message := await stream.recv_message()) is not None:
            self.received += 1
            await self.release.wait()
            try:
                appended: Appended = self.fake.append(message.batch)
            except ProglogError as error:
                raise grpc_error(error) from None
            await stream.send_message(appended)

    async def consume(self, stream) -> None:
        self.calls.append("consume")
        request = await stream.recv_message()
        start = next(
            (name for name in ("offset", "timestamp") if getattr(request, name) is not None), None
        )
        if start == "offset":
            start = request.offset
        elif start == "timestamp":
            start = At(request.timestamp)
        else:
            start = "earliest" if request.earliest else "latest"
        try:
            async with contextlib.aclosing(
                self.fake.consume(start, follow=request.follow, bytes_max=100_000)
            ) as chunks:
                async for chunk in chunks:
                    await stream.send_message(chunk)
        except ProglogError as error:
            raise grpc_error(error) from None

    async def read(self, stream) -> None:
        request = await stream.recv_message()
        try:
            record = await self.fake.read(request.offset)
        except ProglogError as error:
            raise grpc_error(error) from None
        await stream.send_message(
            v1.ConsumeResponse(
                record=v1.Record(
                    value=record.value,
                    offset=record.offset,
                    key=record.key,
                    timestamp=record.timestamp,
                    headers=[v1.Header(name=n, value=v) for n, v in record.headers],
                )
            )
        )

    async def get_servers(self, stream) -> None:
        await stream.recv_message()
        raise grpclib.GRPCError(grpclib.Status.UNIMPLEMENTED)

    async def describe(self, stream) -> None:
        self.calls.append("describe")
        await stream.recv_message()
        description = await self.fake.describe()
        names = v1.DescribeResponse().__dataclass_fields__
        await stream.send_message(
            v1.DescribeResponse(**{name: getattr(description, name) for name in names})
        )


class TestServer:
    """A listening server whose connections can be cut or told to go away."""

    __test__ = False

    def __init__(self, service: LogService, port: int, tls: ssl.SSLContext | None) -> None:
        self.service = service
        self._tls = tls
        self.port = port
        self._protocols: list = []
        self._grpc = Server([service], codec=wire.Codec(), status_details_codec=wire.ErrorDetails())
        self._listener: asyncio.Server | None = None

    async def start(self) -> None:
        def factory():
            protocol = self._grpc._protocol_factory()
            self._protocols.append(protocol)
            return protocol

        loop = asyncio.get_running_loop()
        self._listener = await loop.create_server(factory, "127.0.0.1", self.port, ssl=self._tls)
        self.port = self._listener.sockets[0].getsockname()[1]

    @property
    def connections(self) -> int:
        """How many are open."""
        return sum(not protocol.connection.is_closing() for protocol in self._protocols)

    def remap(self) -> None:
        """Takes over methods of the service that a test has replaced."""
        self._grpc._mapping.update(self.service.__mapping__())

    def allow_calls(self, count: int) -> None:
        """So many at once on each connection."""
        for protocol in self._protocols:
            settings = {SettingCodes.MAX_CONCURRENT_STREAMS: count}
            protocol.connection._connection.update_settings(settings)
            protocol.connection.flush()

    def cut(self) -> None:
        """Loses all connections at once, without a word."""
        for protocol in self._protocols:
            if not protocol.connection.is_closing():
                protocol.connection._transport.abort()
        self._protocols.clear()

    def go_away(self) -> None:
        for protocol in self._protocols:
            frame = GoAwayFrame(0, last_stream_id=2**31 - 1, error_code=0)
            protocol.connection._transport.write(frame.serialize())

    async def stop(self) -> None:
        assert self._listener is not None
        self._listener.close()
        self.cut()
        await asyncio.sleep(0)
        for handler in list(self._grpc._handlers):
            for task in list(handler._tasks.values()):
                task.cancel()


@contextlib.asynccontextmanager
async def serving(port: int = 0, tls: ssl.SSLContext | None = None) -> AsyncIterator[TestServer]:
    server = TestServer(LogService(), port, tls)
    await server.start()
    try:
        yield server
    finally:
        await server.stop()
