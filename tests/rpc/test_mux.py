"""One port for Raft, gRPC and HTTP, without TLS, under uvloop and asyncio."""

from __future__ import annotations

import asyncio
import errno
import gc
import logging
import socket
import ssl

import pytest
import uvloop
from grpclib.client import Channel

from proglog import limits
from proglog._generated.log import v1
from proglog.net.listening import listen
from proglog.rpc import mux
from proglog.rpc.routes import Routes
from tests import judges
from tests.rpc.fakes import MemoryLog, Node, new_channel
from tests.waiting import until


async def talk(node: Node, data: bytes, *, tls: ssl.SSLContext | None = None) -> bytes:
    """What the port answers to some first bytes, nothing if it closes."""
    reader, writer = await asyncio.open_connection(node.host, node.port, ssl=tls)
    try:
        async with asyncio.timeout(10):
            writer.write(data)
            return await reader.read(1000)
    except ConnectionResetError:  # closed with what we sent unread
        return b""
    finally:
        writer.close()


async def produce(channel: Channel) -> int:
    async with asyncio.timeout(10):
        answer = await v1.LogStub(channel).produce(v1.ProduceRequest(record=v1.Record(value=b"x")))
    channel.close()
    return answer.offset


# --- plaintext -----------------------------------------------------------------------------------


@pytest.mark.parametrize("new_loop", [asyncio.new_event_loop, uvloop.new_event_loop])
def test_the_first_bytes_decide(new_loop):
    async def work():
        async with Node() as node:
            assert await produce(new_channel(node)) == 0
            assert await talk(node, b"\x01raft") == b"raft:\x01raft"
            for request in (b"GET / HTTP/1.1\r\n\r\n", b"POST / ", b"PUT", b"PRONTO", b"\xff"):
                assert await talk(node, request) == b"http:" + request

    with asyncio.Runner(loop_factory=new_loop) as runner:
        runner.run(work())


async def test_first_bytes_that_come_one_by_one(node):
    for sent, answer in ((b"PRI * HTTP/2.0", None), (b"PROPFIND", b"http:PRO"), (b"\x01", b"raft")):
        reader, writer = await asyncio.open_connection(node.host, node.port)
        for byte in sent:
            writer.write(bytes((byte,)))
            await asyncio.sleep(0.005)
        async with asyncio.timeout(10):
            found = await reader.read(100)
        # gRPC begins with the server's SETTINGS.
        assert found.startswith(answer) if answer else found[3] == 4
        writer.close()


async def test_half_a_preface_and_then_the_end_is_left_to_http(node):
    reader, writer = await asyncio.open_connection(node.host, node.port)
    writer.write(b"PR")
    writer.write_eof()
    async with asyncio.timeout(10):
        assert await reader.read(100) == b"http:PR"
    writer.close()


async def test_w21_a_connection_that_says_nothing_is_dropped(node, monkeypatch):
    monkeypatch.setattr(limits, "sniff_seconds_max", 0.05)
    for first in (b"", b"P", b"PRI"):
        assert await talk(node, first) == b""
    await until(lambda: node.mux.connections == 0)


async def test_without_raft_its_connections_are_closed():
    async with Node() as node:
        node.mux._routes = Routes(
            grpc=node.server.protocol_factory, http=lambda _: asyncio.Protocol()
        )
        assert await talk(node, b"\x01raft") == b""
        await until(lambda: node.mux.connections == 0)


async def test_tls_on_a_plaintext_port_gets_an_alert(node):
    context = ssl.create_default_context()
    with pytest.raises(ssl.SSLError, match=r"(?i)protocol.version"):
        await talk(node, b"", tls=context)


async def test_connections_are_bounded(node, monkeypatch):
    monkeypatch.setattr(limits, "connections_max", 3)
    held = [await asyncio.open_connection(node.host, node.port) for _ in range(3)]
    await until(lambda: node.mux.connections == 3)
    assert await talk(node, b"") == b""
    held.pop()[1].close()
    await until(lambda: node.mux.connections == 2)
    assert await talk(node, b"GET ") == b"http:GET "
    for _, writer in held:
        writer.close()


async def test_a_closed_connection_is_not_counted_whatever_it_spoke(node):
    await produce(new_channel(node))
    await talk(node, b"GET ")
    await talk(node, b"\x01")
    await until(lambda: node.mux.connections == 0)


async def test_too_many_open_files_is_survived(node, monkeypatch, caplog):
    monkeypatch.setattr(mux, "_ACCEPT_RETRY_SECONDS", 0.01)
    failures = [OSError(errno.EMFILE, "Too many open files")] * 3
    original = mux._Socket.__init__

    def fail(self, accepted, *args):
        if failures:
            accepted.close()
            raise failures.pop()
        original(self, accepted, *args)

    monkeypatch.setattr(mux._Socket, "__init__", fail)
    with caplog.at_level(logging.ERROR):
        for _ in range(3):
            await talk(node, b"GET ")
        assert await talk(node, b"GET ") == b"http:GET "
    assert "Too many open files" in caplog.text


async def test_close_ends_serve_and_drops_the_undecided():
    async with Node() as node:
        reader, writer = await asyncio.open_connection(node.host, node.port)
        await until(lambda: node.mux.connections == 1)
        await node.mux.close()
        async with asyncio.timeout(10):
            await node.serving
            assert await reader.read() == b""
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection(node.host, node.port)
        writer.close()


@pytest.mark.parametrize("new_loop", [asyncio.new_event_loop, uvloop.new_event_loop])
@pytest.mark.parametrize("steps", range(6))
@pytest.mark.filterwarnings("error")
def test_close_loses_no_connection_wherever_it_finds_it(new_loop, steps):
    routes = Routes(grpc=lambda _: asyncio.Protocol(), http=lambda _: asyncio.Protocol())

    async def work():
        accepting = mux.Mux(listen("127.0.0.1", 0), routes)
        serving = asyncio.get_running_loop().create_task(accepting.serve())
        await asyncio.sleep(0.01)
        with socket.create_connection(accepting.address):
            for _ in range(steps):  # of the loop: found, accepted, given to a task, looked at
                await asyncio.sleep(0)
            await accepting.close()
            await serving
        assert accepting.connections == 0

    with asyncio.Runner(loop_factory=new_loop) as runner:
        runner.run(work())
    gc.collect()


async def test_a_fault_of_the_accept_loop_ends_serve(node, monkeypatch):
    async def broken(*_):
        raise KeyError("bug")

    other = mux.Mux(listen("127.0.0.1", 0), node.mux._routes)
    monkeypatch.setattr(other, "_accept_all", broken)
    with pytest.raises(KeyError):
        await other.serve()
    await other.close()


# --- sockets -------------------------------------------------------------------------------------


async def test_vanished_hosts_are_found(node):
    _, writer = await asyncio.open_connection(node.host, node.port)
    await until(lambda: node.mux.connections == 1)
    (connection,) = node.mux._open
    assert connection.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
    writer.close()


def test_an_address_in_use_is_an_error():
    taken = listen("127.0.0.1", 0)
    with pytest.raises(OSError, match="in use"):
        listen(*taken.getsockname())
    taken.close()


async def test_a_node_is_whole_with_ipv6():
    log = MemoryLog()
    node = Node(log)
    node.mux._listener.close()
    try:
        node.mux._listener = listen("::1", 0)
    except OSError as error:
        judges.leave_out("IPv6 is missing", error)
    node.host, node.port = node.mux.address
    async with node:
        assert await produce(new_channel(node)) == 0
