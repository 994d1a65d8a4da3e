"""Other people's clients: grpcio, and grpclib with the generated betterproto2 stub."""

from __future__ import annotations

import asyncio
import functools
import queue

import grpc
import pytest
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from grpclib.client import Channel
from grpclib.health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
from grpclib.reflection.v1.reflection_pb2 import ServerReflectionRequest, ServerReflectionResponse

import proglog._generated
from proglog import batch, errors, wire
from proglog._generated.log import v1
from tests.rpc.fakes import MemoryLog, Node
from tests.waiting import until

SECONDS = 10


@functools.cache
def messages() -> dict[str, type]:
    with open(proglog._generated.__path__[0] + "/log_v1.fds", "rb") as file:
        described = descriptor_pb2.FileDescriptorSet.FromString(file.read())
    return message_factory.GetMessages(described.file)


messages()  # reads a file, so not on the loop


def unary(channel: grpc.Channel, name: str, request: str, response: str):
    return channel.unary_unary(
        f"/log.v1.Log/{name}",
        messages()[f"log.v1.{request}"].SerializeToString,
        messages()[f"log.v1.{response}"].FromString,
    )


def record(**fields: object):
    return messages()["log.v1.Record"](**fields)


async def in_thread(node: Node, work):
    def run():
        with grpc.insecure_channel(f"{node.host}:{node.port}") as channel:
            return work(channel)

    return await asyncio.to_thread(run)


async def test_grpcio_makes_the_originals_five_calls(node):
    def work(channel: grpc.Channel):
        produce = unary(channel, "Produce", "ProduceRequest", "ProduceResponse")
        consume = unary(channel, "Consume", "ConsumeRequest", "ConsumeResponse")
        servers = unary(channel, "GetServers", "GetServersRequest", "GetServersResponse")
        new = messages()
        assert produce(new["log.v1.ProduceRequest"](record=record(value=b"a"))).offset == 0
        found = consume(new["log.v1.ConsumeRequest"](offset=0), timeout=SECONDS).record
        assert (found.value, found.offset, found.term, found.type) == (b"a", 0, 3, 0)
        assert servers(new["log.v1.GetServersRequest"]()).servers[0].id == "n0"
        stream = channel.stream_stream(
            "/log.v1.Log/ProduceStream",
            new["log.v1.ProduceRequest"].SerializeToString,
            new["log.v1.ProduceResponse"].FromString,
        )
        requests = (new["log.v1.ProduceRequest"](record=record(value=v)) for v in (b"b", b"c"))
        assert [answer.offset for answer in stream(requests, timeout=SECONDS)] == [1, 2]
        following = channel.unary_stream(
            "/log.v1.Log/ConsumeStream",
            new["log.v1.ConsumeRequest"].SerializeToString,
            new["log.v1.ConsumeResponse"].FromString,
        )(new["log.v1.ConsumeRequest"](offset=1), timeout=SECONDS)
        assert [next(following).record.value for _ in range(2)] == [b"b", b"c"]
        produce(new["log.v1.ProduceRequest"](record=record(value=b"d")))
        assert next(following).record.value == b"d"
        following.cancel()

    await in_thread(node, work)
    await until(lambda: node.calls == 0)


async def test_grpcio_sees_status_and_details(node):
    def work(channel: grpc.Channel):
        consume = unary(channel, "Consume", "ConsumeRequest", "ConsumeResponse")
        with pytest.raises(grpc.RpcError) as caught:
            consume(messages()["log.v1.ConsumeRequest"](offset=9), timeout=SECONDS)
        return caught.value

    error = await in_thread(node, work)
    assert error.code() is grpc.StatusCode.OUT_OF_RANGE
    details = dict(error.trailing_metadata())["grpc-status-details-bin"]
    assert wire.decode_error(details).facts == {"offset": "9", "earliest": "0", "next": "0"}


async def test_grpcio_gets_a_refusal_in_the_middle_of_its_stream(node):
    node.log.refusals = [None, errors.DiskFull("no space")]

    def work(channel: grpc.Channel):
        stream = channel.stream_stream(
            "/log.v1.Log/ProduceStream",
            messages()["log.v1.ProduceRequest"].SerializeToString,
            messages()["log.v1.ProduceResponse"].FromString,
        )
        requests = queue.Queue()
        answers = stream(iter(requests.get, None), timeout=SECONDS)
        requests.put(messages()["log.v1.ProduceRequest"](record=record(value=b"a")))
        assert next(answers).offset == 0
        requests.put(messages()["log.v1.ProduceRequest"](record=record(value=b"b")))
        with pytest.raises(grpc.RpcError) as caught:
            next(answers)
        requests.put(None)
        return caught.value.code()

    assert await in_thread(node, work) is grpc.StatusCode.RESOURCE_EXHAUSTED


async def test_grpcio_that_compresses_is_told_so(node):
    def work(channel: grpc.Channel):
        produce = unary(channel, "Produce", "ProduceRequest", "ProduceResponse")
        request = messages()["log.v1.ProduceRequest"](record=record(value=b"a" * 10_000))
        with pytest.raises(grpc.RpcError) as caught:
            produce(request, timeout=SECONDS, compression=grpc.Compression.Gzip)
        return caught.value

    error = await in_thread(node, work)
    assert error.code() is grpc.StatusCode.UNIMPLEMENTED
    assert "compress" in error.details()


async def test_grpcio_finishes_and_is_told_to_go_when_the_server_drains():
    log = MemoryLog()
    log.durable_at_once = False
    async with Node(log) as node:

        def work(channel: grpc.Channel):
            produce = unary(channel, "Produce", "ProduceRequest", "ProduceResponse")
            request = messages()["log.v1.ProduceRequest"](record=record(value=b"a"))
            return produce(request, timeout=SECONDS).offset

        call = asyncio.ensure_future(in_thread(node, work))
        await until(lambda: log.waiting)
        draining = asyncio.ensure_future(node.server.drain(10))
        await asyncio.sleep(0)
        log.sync()
        await draining
        assert await call == 0


async def test_health_by_name_and_watch(node):
    def check(channel: grpc.Channel, name: str):
        call = channel.unary_unary(
            "/grpc.health.v1.Health/Check",
            HealthCheckRequest.SerializeToString,
            HealthCheckResponse.FromString,
        )
        return call(HealthCheckRequest(service=name), timeout=SECONDS).status

    def work(channel: grpc.Channel):
        return check(channel, ""), check(channel, "log.v1.Log")

    node.server.set_serving(False)
    assert await in_thread(node, work) == (2, 2)
    node.server.set_serving(True)
    assert await in_thread(node, work) == (1, 1)
    seen: asyncio.Queue[int] = asyncio.Queue()
    loop = asyncio.get_running_loop()

    def watch(channel: grpc.Channel):
        with pytest.raises(grpc.RpcError) as unknown:
            check(channel, "nope")
        call = channel.unary_stream(
            "/grpc.health.v1.Health/Watch",
            HealthCheckRequest.SerializeToString,
            HealthCheckResponse.FromString,
        )(HealthCheckRequest(service="log.v1.Log"), timeout=SECONDS)
        with pytest.raises(grpc.RpcError) as ended:
            for message in call:
                loop.call_soon_threadsafe(seen.put_nowait, message.status)
        return unknown.value.code(), ended.value.code()

    watching = asyncio.ensure_future(in_thread(node, watch))
    assert await seen.get() == 1
    node.server.set_serving(False)
    assert await seen.get() == 2
    # A watch is a stream like any other: draining ends it.
    await node.server.drain(SECONDS)
    assert await watching == (grpc.StatusCode.NOT_FOUND, grpc.StatusCode.UNAVAILABLE)


@pytest.mark.parametrize("version", ["v1", "v1alpha"])
async def test_reflection_describes_the_service(node, version):
    requests = [
        ServerReflectionRequest(list_services=""),
        ServerReflectionRequest(file_containing_symbol="log.v1.Log"),
        ServerReflectionRequest(file_containing_symbol="grpc.health.v1.Health"),
        ServerReflectionRequest(file_by_filename="nope.proto"),
    ]

    def work(channel: grpc.Channel):
        call = channel.stream_stream(
            f"/grpc.reflection.{version}.ServerReflection/ServerReflectionInfo",
            ServerReflectionRequest.SerializeToString,
            ServerReflectionResponse.FromString,
        )
        return list(call(iter(requests), timeout=SECONDS))

    listed, ours, health, missing = await in_thread(node, work)
    assert {s.name for s in listed.list_services_response.service} == {
        "log.v1.Log",
        "log.v1.Cluster",
        "grpc.health.v1.Health",
    }
    pool = descriptor_pool.DescriptorPool()
    for answer in (ours, health):
        for data in answer.file_descriptor_response.file_descriptor_proto:
            pool.AddSerializedFile(data)
    methods = pool.FindServiceByName("log.v1.Log").methods_by_name
    assert {"Produce", "Consume", "ConsumeStream", "ProduceStream", "GetServers"} < set(methods)
    assert missing.error_response.error_code == 5


async def test_garbage_in_a_google_message_is_invalid(node):
    def work(channel: grpc.Channel):
        call = channel.unary_unary("/grpc.health.v1.Health/Check")
        with pytest.raises(grpc.RpcError) as caught:
            call(b"\xff\xff\xff", timeout=SECONDS)
        return caught.value.code()

    assert await in_thread(node, work) is grpc.StatusCode.INVALID_ARGUMENT


async def test_the_generated_stub_with_grpclibs_own_codec(node):
    channel = Channel(node.host, node.port)
    stub = v1.LogStub(channel)

    async def requests():
        for value in (b"a", b"b"):
            body = batch.encode([value])
            yield v1.ProduceBatchesRequest(count=1, body_crc=body.crc, body=bytes(body.data))

    answers = [answer.offset async for answer in stub.produce_batches(requests())]
    assert answers == [0, 1]
    found = [
        record.value
        async for answer in stub.consume_batches(v1.ConsumeBatchesRequest(earliest=True))
        for records in batch.decode_all(answer.batches)
        for record in records
    ]
    assert found == [b"a", b"b"]
    assert (await stub.describe(v1.DescribeRequest())).next == 2
    channel.close()
