"""Streams and datagrams between simulated hosts, and their faults."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, cast

import pytest

from tests.doubles.loop import SimLoop, run
from tests.doubles.network import SimNetwork, on_host
from tests.doubles.transports import SimTransport


def network() -> SimNetwork:
    return cast("SimLoop", asyncio.get_running_loop()).network


class Peer(asyncio.Protocol):
    """Remembers what it is told."""

    def __init__(self) -> None:
        self.events: list[Any] = []
        self.received = b""
        self.transport: SimTransport
        self.keep_open = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("SimTransport", transport)
        self.events.append("made")

    def data_received(self, data: bytes) -> None:
        self.received += data

    def eof_received(self) -> bool:
        self.events.append("eof")
        return self.keep_open

    def connection_lost(self, exc: Exception | None) -> None:
        self.events.append(("lost", type(exc)))

    def pause_writing(self) -> None:
        self.events.append("pause")

    def resume_writing(self) -> None:
        self.events.append("resume")


async def connected(port: int = 1) -> tuple[Peer, Peer]:
    """A client on host a, and its server on host b."""
    server = Peer()
    with on_host("b"):
        await asyncio.get_running_loop().create_server(lambda: server, "0.0.0.0", port)
    with on_host("a"):
        _, client = await asyncio.get_running_loop().create_connection(Peer, "b", port)
    await asyncio.sleep(1)
    return cast("Peer", client), server


def simulated(test: Any) -> Any:
    def wrapper() -> None:
        for seed in range(5):
            main: Coroutine[Any, Any, None] = test()
            run(main, seed=seed)

    wrapper.__name__ = test.__name__
    return wrapper


@simulated
async def test_bytes_arrive_in_order_and_late() -> None:
    client, server = await connected()
    data = bytes(range(256)) * 4000
    for start in range(0, len(data), 10_000):
        client.transport.write(data[start : start + 10_000])
    assert server.received == b""
    await asyncio.sleep(1)
    assert server.received == data
    server.transport.writelines([b"x", b"y"])
    await asyncio.sleep(1)
    assert client.received == b"xy"
    assert client.transport.get_extra_info("peername") == ("b", 1)
    assert server.transport.get_extra_info("peername")[0] == "a"


@simulated
async def test_flow_control_reaches_the_writer() -> None:
    client, server = await connected()
    server.transport.pause_reading()
    client.transport.write(bytes(100_000))
    assert "pause" not in client.events, "64 KiB are on their way, the rest is below high water"
    client.transport.write(bytes(100_000))
    assert client.events[-1] == "pause"
    await asyncio.sleep(10)
    assert server.received == b""
    server.transport.resume_reading()
    await asyncio.sleep(1)
    assert client.events[-1] == "resume"
    assert len(server.received) == 200_000


@simulated
async def test_a_close_delivers_what_was_written_then_ends_both() -> None:
    client, server = await connected()
    client.transport.write(b"last words")
    client.transport.close()
    client.transport.write(b"too late")
    await asyncio.sleep(1)
    assert server.received == b"last words"
    assert client.events == ["made", ("lost", type(None))]
    assert server.events == ["made", "eof", ("lost", type(None))]
    assert not network()._pipes


@simulated
async def test_a_half_closed_stream_goes_on_in_the_other_direction() -> None:
    client, server = await connected()
    server.keep_open = True
    client.transport.write_eof()
    await asyncio.sleep(1)
    server.transport.write(b"answer")
    server.transport.close()
    await asyncio.sleep(1)
    assert client.received == b"answer"
    assert client.events[1:] == ["eof", ("lost", type(None))]


@simulated
async def test_a_reader_that_closed_resets_the_writer() -> None:
    client, server = await connected()
    server.transport.close()
    client.keep_open = True
    client.transport.write(b"x")
    await asyncio.sleep(1)
    assert client.events[-1] == ("lost", ConnectionResetError)


@simulated
async def test_an_abort_resets_the_other_end() -> None:
    client, server = await connected()
    client.transport.abort()
    await asyncio.sleep(1)
    assert client.events[-1] == ("lost", type(None))
    assert server.events[-1] == ("lost", ConnectionResetError)
    assert not network()._pipes


@simulated
async def test_streams_wait_longer_than_a_partition_as_tcp_does() -> None:
    client, server = await connected()
    network().partition(["a"], ["b", "c"])
    client.transport.write(b"x")
    server.transport.write(b"y")
    await asyncio.sleep(14)
    network().heal()
    client.transport.write(b"z")
    # Sent again after 0.2, 0.6, 1.4, ... 12.6 and 25.4 s, whatever is written meanwhile.
    await asyncio.sleep(11)
    assert (client.received, server.received) == (b"", b"")
    await asyncio.sleep(1)
    assert (client.received, server.received) == (b"y", b"xz")
    # The next loss begins anew.
    network().partition(["a"], ["b"])
    client.transport.write(b"1")
    await asyncio.sleep(0.3)
    network().heal()
    await asyncio.sleep(0.4)
    assert server.received == b"xz1"


@simulated
async def test_streams_do_not_wait_for_ever() -> None:
    client, server = await connected()
    network().partition(["a"], ["b"])
    client.transport.write(b"x")
    await asyncio.sleep(900)
    assert client.events == ["made"]
    await asyncio.sleep(200)
    assert client.events == ["made", ("lost", TimeoutError)]
    assert server.events == ["made"]


@simulated
async def test_a_block_has_one_direction() -> None:
    client, server = await connected()
    network().block("a", "b")
    client.transport.write(b"x")
    server.transport.write(b"y")
    await asyncio.sleep(1)
    assert (client.received, server.received) == (b"y", b"")


@simulated
async def test_one_host_is_healed_alone() -> None:
    client, server = await connected()
    network().partition(["a"], ["b"], ["c"])
    client.transport.write(b"x")
    network().heal("c")
    await asyncio.sleep(1)
    assert server.received == b""
    network().heal("b")
    await asyncio.sleep(2)
    assert server.received == b"x"


@simulated
async def test_a_stalled_stream_waits_and_others_go_on() -> None:
    pairs = [await connected(port) for port in range(1, 11)]
    for client, _ in pairs:
        client.transport.write(b"x")
    network().stall("a", "b", 5.0)
    for client, server in pairs:
        client.transport.write(b"y")
        server.transport.write(b"z")
    await asyncio.sleep(4)
    received = [server.received for _, server in pairs]
    assert set(received) == {b"", b"xy"}
    assert all(client.received == b"z" for client, _ in pairs)
    await asyncio.sleep(2)
    assert all(server.received == b"xy" for _, server in pairs)


@simulated
async def test_connecting() -> None:
    loop = asyncio.get_running_loop()
    with on_host("a"):
        with pytest.raises(ConnectionRefusedError):
            await loop.create_connection(Peer, "b", 1)
    with on_host("b"):
        server = await loop.create_server(Peer, "b", 1)
        with pytest.raises(OSError):
            await loop.create_server(Peer, "b", 1)
        await loop.create_connection(Peer, "127.0.0.1", 1)
    network().partition(["a"], ["b"])
    with on_host("a"):
        began = loop.time()
        with pytest.raises(TimeoutError):
            await loop.create_connection(Peer, "b", 1)
        assert loop.time() - began >= 60
        attempt = asyncio.create_task(loop.create_connection(Peer, "b", 1))
    await asyncio.sleep(5)
    network().heal()
    await attempt
    server.close()
    await server.wait_closed()
    with on_host("a"):
        with pytest.raises(ConnectionRefusedError):
            await loop.create_connection(Peer, "b", 1)


@simulated
async def test_a_cut_resets_both_ends() -> None:
    client, server = await connected()
    network().cut("b", "a")
    await asyncio.sleep(1)
    assert client.events[-1] == server.events[-1] == ("lost", ConnectionResetError)
    assert not network()._pipes


@simulated
async def test_a_crash_is_heard_by_the_peer_only() -> None:
    client, server = await connected()
    network().crash("b")
    await asyncio.sleep(1)
    assert client.events[-1] == ("lost", ConnectionResetError)
    assert server.events == ["made"]
    with on_host("a"):
        with pytest.raises(ConnectionRefusedError):
            await asyncio.get_running_loop().create_connection(Peer, "b", 1)


@simulated
async def test_without_power_a_host_is_silent_and_then_remembers_nothing() -> None:
    client, server = await connected()
    network().power_off("b")
    client.transport.write(b"x")
    await asyncio.sleep(100)
    assert client.events == ["made"]
    network().power_on("b")
    await asyncio.sleep(3)  # Until it is sent again.
    assert client.events[-1] == ("lost", ConnectionResetError)
    assert server.events == ["made"]
    assert server.received == b""


@simulated
async def test_a_failing_protocol_ends_its_stream_and_the_run_hears_of_it() -> None:
    client, server = await connected()
    server.data_received = lambda data: 1 / 0  # type: ignore[method-assign]
    client.transport.write(b"x")
    await asyncio.sleep(1)
    assert client.events[-1] == ("lost", ConnectionResetError)
    loop = cast("SimLoop", asyncio.get_running_loop())
    assert isinstance(loop.failures.pop()["exception"], ZeroDivisionError)


@simulated
async def test_buffered_protocols() -> None:
    class Buffered(asyncio.BufferedProtocol):
        def __init__(self) -> None:
            self.buffer = bytearray(7)
            self.received = b""

        def get_buffer(self, sizehint: int) -> bytearray:
            return self.buffer

        def buffer_updated(self, nbytes: int) -> None:
            self.received += self.buffer[:nbytes]

    loop = asyncio.get_running_loop()
    server = Buffered()
    await loop.create_server(lambda: server, None, 5)  # type: ignore[arg-type,return-value]
    transport, _ = await loop.create_connection(Peer, "localhost", 5)
    transport.write(b"0123456789" * 3)
    await asyncio.sleep(1)
    assert server.received == b"0123456789" * 3


@simulated
async def test_tasks_of_a_protocol_run_on_its_host() -> None:
    """A server that dials back reaches the client's host from its own."""
    loop = asyncio.get_running_loop()
    back = Peer()

    async def dial_back(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await loop.create_connection(Peer, "a", 9)
        writer.close()

    with on_host("a"):
        await loop.create_server(lambda: back, "a", 9)
    with on_host("b"):
        await asyncio.start_server(dial_back, "b", 1)
    with on_host("a"):
        reader, writer = await asyncio.open_connection("b", 1)
    assert await reader.read() == b""
    writer.close()
    assert back.transport.get_extra_info("peername")[0] == "b"


class Datagrams(asyncio.DatagramProtocol):
    def __init__(self) -> None:
        self.received: list[tuple[bytes, Any]] = []
        self.lost = False

    def datagram_received(self, data: bytes, addr: Any) -> None:
        self.received.append((data, addr))

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost = True


@simulated
async def test_datagrams_are_lost_doubled_and_reordered() -> None:
    loop = asyncio.get_running_loop()
    with on_host("b"):
        far, receiver = await loop.create_datagram_endpoint(Datagrams, ("0.0.0.0", 7))
    with on_host("a"):
        near, _ = await loop.create_datagram_endpoint(Datagrams, ("0.0.0.0", 8))
    for number in range(100):
        near.sendto(b"%d" % number, ("b", 7))
    await asyncio.sleep(1)
    numbers = [int(data) for data, _ in receiver.received]
    assert sorted(numbers) == list(range(100))
    assert numbers != sorted(numbers)
    assert {addr for _, addr in receiver.received} == {("a", 8)}
    receiver.received.clear()
    network().weather.datagram_loss_rate = network().weather.datagram_duplicate_rate = 0.3
    for number in range(100):
        near.sendto(b"%d" % number, ("b", 7))
    await asyncio.sleep(1)
    numbers = [int(data) for data, _ in receiver.received]
    assert 40 < len(set(numbers)) < 95
    assert len(set(numbers)) < len(numbers)
    receiver.received.clear()
    network().block("a", "b")
    near.sendto(b"x", ("b", 7))
    await asyncio.sleep(1)
    network().heal()
    await asyncio.sleep(1)
    assert not receiver.received, "datagrams do not wait"
    far.close()
    near.sendto(b"x", ("b", 7))
    await asyncio.sleep(1)
    assert receiver.lost
    assert not receiver.received
