"""Gossip that names addresses which a node cannot send to: real packets to a real node, which must
go on. uvloop, which the product runs on, raises where asyncio's own loop only reports."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import uvloop

from proglog.client.admin import Cluster
from proglog.membership.address import Address
from proglog.membership.codec import packets
from proglog.membership.codec.keyring import Keyring
from proglog.membership.codec.messages import (
    OURS,
    Alive,
    IndirectPing,
    NodeState,
    Ping,
    State,
    Suspect,
    Type,
    encode_message,
)
from proglog.membership.codec.serf_messages import (
    QueryFlag,
    QueryMessage,
    RelayDestination,
    RelayHeader,
    SerfType,
    encode_serf,
)
from proglog.membership.codec.streams import PushPull, encode_stream
from proglog.membership.codec.wire import encode
from tests.cluster.harness import Server
from tests.membership.stock import Agent
from tests.membership.test_driver import config, running
from tests.ports import free_port
from tests.waiting import until

PLAIN = Keyring((), bytes)
UNREACHABLE = [
    "2001:db8::1",
    "::1",
    "::",
    "ff02::1",
    "fe80::1",
    "0.0.0.0",
    "224.0.0.1",
    "255.255.255.255",
]


def packed(host: str) -> bytes:
    return Address(host, 1).packed


def user(message: Any) -> bytes:
    return bytes([Type.USER]) + encode_serf(message)


def hostile(host: str) -> list[bytes]:
    """A message of each kind that names an address to which the node would then send."""
    at = {"host": packed(host), "port": 7946}
    source = {"source_host": packed(host), "source_port": 7946, "source_name": "x"}
    name = f"x-{host}"
    destination = RelayDestination(**at)
    relay = encode(RelayHeader(destination=destination, name=name))
    query = {"ltime": 5, "name": "q", "flags": QueryFlag.ACK, "timeout_ns": 10**9, "source": name}
    return [
        encode_message(Alive(incarnation=1, node=name, versions=OURS, **at)),
        encode_message(Suspect(incarnation=1, node=name, source="y")),
        encode_message(IndirectPing(sequence=1, node=name, nack=True, **at, **source)),
        encode_message(Ping(sequence=2, **source)),
        user(QueryMessage(id=UNREACHABLE.index(host), **at, **query)),
        bytes([Type.USER, SerfType.RELAY]) + relay + b"\x05",
    ]


def push_pull(*hosts: str) -> PushPull:
    nodes = tuple(
        NodeState(
            node=f"pp-{host}",
            host=packed(host),
            port=7946,
            incarnation=1,
            state=State.ALIVE,
            versions=OURS,
        )
        for host in hosts
    )
    return PushPull(join=True, nodes=nodes, user_state=b"")


def send(target: Address) -> None:
    """All of it, as somebody outside would: one datagram a message, then a push/pull."""
    with socket.socket(type=socket.SOCK_DGRAM) as sender:
        for host in UNREACHABLE:
            for message in hostile(host):
                sender.sendto(packets.seal([message], PLAIN, checksum=False), target)
    with socket.create_connection(target, timeout=10) as stream:
        stream.sendall(encode_stream(push_pull(*UNREACHABLE), PLAIN))
        stream.shutdown(socket.SHUT_WR)
        while stream.recv(65536):
            pass


async def test_a_membership_goes_on() -> None:
    assert isinstance(asyncio.get_running_loop(), uvloop.Loop), "the loop of the product"
    async with running("a") as a, running("b") as b:
        at = Address("127.0.0.1", a.local.port)
        await asyncio.to_thread(send, at)
        sent = a.statistics().transport
        await until(lambda: a.statistics().transport.packets_received >= 6 * len(UNREACHABLE))
        # It probes, gossips and synchronises meanwhile: with whom it can.
        await asyncio.sleep(0.5)
        assert await b.join([str(at)]) == 1
        await until(lambda: [member.name for member in b.members()] == ["a", "b"])
        assert [member.name for member in a.members()] == ["a", "b"]
        await until(lambda: a.statistics().transport.packets_sent > sent.packets_sent)
        assert a.statistics().core.ignored["node that is refused"] >= len(UNREACHABLE)


async def test_a_member_does_not_move_to_where_it_cannot_be_reached() -> None:
    async with running("a") as a, running("b") as b:
        await b.join([f"127.0.0.1:{a.local.port}"])
        await until(lambda: len(a.members()) == 2)
        move = Alive(incarnation=9, node="b", host=packed("::1"), port=7946, versions=OURS)
        a.on_packet(encode_message(move), Address("127.0.0.1", 1))
        assert {member.address for member in a.members()} == {"127.0.0.1"}


async def test_what_is_advertised_can_be_reached_from_where_it_is_bound() -> None:
    async with running("a", advertise_host="localhost") as a:
        assert a.local.address == "127.0.0.1"


async def test_an_exchange_that_cannot_be_made_fails_and_no_more() -> None:
    async with running("a") as a:
        for host in UNREACHABLE:
            # Some are other words for this host, where nobody listens on this port.
            assert await a._join_address(Address(host, config("x").bind_port or 9)) is not None
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(a.wait_ended(), 0.05)


@pytest.fixture
async def node(tmp_path: Path) -> AsyncIterator[Server]:
    server = Server(tmp_path, "n0", ["--bootstrap"])
    await server.start()
    try:
        await until(server.status, "it answers")
        yield server
    finally:
        if server.is_running:
            await server.kill()


async def test_a_node_goes_on_and_says_so_once(node: Server) -> None:
    async def told() -> bool:
        await asyncio.to_thread(send, Address(*node.gossip))
        return "x-2001:db8::1" in node.log

    await until(told, "it says what it refuses")
    for _ in range(3):
        await asyncio.to_thread(send, Address(*node.gossip))
    await asyncio.sleep(2.5)  # two probes and a rejoin later
    assert node.is_running, node.log
    async with Cluster([node.address]) as asked:
        assert [member.name for member in (await asked.members()).members] == ["n0"]
    assert node.log.count("x-2001:db8::1") == 1, node.log
    await node.stop()


async def test_a_stock_agent_of_the_other_family_harms_nobody(node: Server, tmp_path: Path) -> None:
    port = free_port()
    agent = Agent("v6", tmp_path, (f"-bind=[::]:{port}",), port=port)
    try:
        await agent.start()
        await agent.run("join", str(node.gossip))
        await until(lambda: '"v6"' in node.log, "it is told")
        await asyncio.sleep(2.5)
        assert node.is_running, node.log
        async with Cluster([node.address]) as asked:
            assert [member.name for member in (await asked.members()).members] == ["n0"]
    finally:
        await agent.kill()
    await node.stop()
