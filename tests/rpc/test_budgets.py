"""The budgets of the edge: who asks for too much gives way, and nobody else notices."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path

import pytest
from h2.errors import ErrorCodes
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import generate_latest

from proglog import limits
from proglog.agent.exposition import LimitsCollector
from proglog.grpc.budgets import LIMITS, Budgets, Pool, Seldom, limits_document
from tests.rpc.raw import PREFACE, RawPeer
from tests.rpc.test_quick import answers, produce
from tests.waiting import until

BATCHES = "/log.v1.Log/ProduceBatches"


# --- in themselves -------------------------------------------------------------------------------


class Holder:
    held_bytes = 0
    gone = False

    def give_way(self) -> None:
        self.gone = True


def test_whoever_holds_most_gives_way_and_nobody_else():
    budgets = Budgets()
    pool = Pool(100, budgets)
    modest, greedy = Holder(), Holder()
    pool.hold(greedy, 60)
    pool.hold(modest, 40)
    assert not greedy.gone
    pool.hold(modest, 1)
    assert (greedy.gone, modest.gone) == (True, False)
    assert (pool.used, budgets.reached["held_bytes"]) == (41, 1)
    pool.release(greedy, 60)  # what it held is released as its calls end
    assert pool.used == 41
    pool.release(modest, 1)
    pool.leave(modest)
    assert pool.used == 0


def test_lines_about_outsiders_are_few_and_lose_nothing(caplog):
    now = 0.0
    seldom = Seldom(lambda: now, 60)
    with caplog.at_level(logging.INFO):
        for _ in range(1000):
            seldom.tell(logging.INFO, "refused", "a")
        seldom.tell(logging.WARNING, "other", "b")
        now = 61.0
        seldom.tell(logging.INFO, "refused", "c")
    assert [record.getMessage() for record in caplog.records] == [
        "refused: a",
        "other: b",
        "refused: c (and 999 more since the last line)",
    ]


def test_the_page_of_limits_is_that_of_the_code():
    page = Path(__file__).resolve().parents[2] / "docs" / "limits.md"
    assert page.read_text() == limits_document(), "make it anew from proglog.grpc.budgets"


def test_each_limit_is_a_metric():
    budgets = Budgets()
    budgets.count("resets")
    registry = CollectorRegistry()
    registry.register(LimitsCollector(budgets))
    text = generate_latest(registry).decode()
    for limit in LIMITS:
        assert f'proglog_limit_max{{limit="{limit.name}"}}' in text
    assert 'proglog_limit_reached_total{limit="resets"} 1.0' in text


# --- on a connection -----------------------------------------------------------------------------


async def test_the_connection_that_makes_the_node_hold_most_ends(node):
    node.server.budgets.pool.bytes_max = 300_000
    part = b"x" * 16_000
    async with RawPeer(node) as greedy, RawPeer(node) as modest:
        for peer, count in ((greedy, 14), (modest, 3)):
            peer.send(peer.headers(BATCHES) + peer.data(b"\0\0\x10\0\0"))
            for _ in range(count):
                peer.send(peer.data(part))
        await until(lambda: node.server.budgets.pool.used == 17 * len(part))
        for _ in range(3):
            modest.send(modest.data(part))
        goodbye = await greedy.goodbye()
        assert goodbye is not None
        assert goodbye.error_code == ErrorCodes.ENHANCE_YOUR_CALM
        modest.send(modest.reset())
        modest.send(produce(modest))
        assert 3 in await answers(modest, 1)
    await until(lambda: node.server.budgets.pool.used == 0)
    assert node.server.budgets.reached["held_bytes"] == 1


async def test_answers_that_are_not_taken_are_counted(node):
    await node.log.append(b"x" * 300_000)
    async with RawPeer(node) as peer:
        peer.send(peer.headers("/log.v1.Log/ConsumeStream") + peer.data(bytes(5), end=True))
        await until(lambda: 200_000 < node.server.budgets.pool.used < 300_000)
    await until(lambda: node.server.budgets.pool.used == 0)


async def test_a_connection_that_does_nothing_ends(node):
    async with RawPeer(node) as peer:
        peer.send(produce(peer))
        await answers(peer, 1)
        (connection,) = node.server._connections
        now = asyncio.get_running_loop().time()
        connection.look(now)
        connection.look(now + limits.http2_idle_seconds_max - 1)
        assert not connection.connection.is_closing()
        connection.look(now + limits.http2_idle_seconds_max + 1)
        goodbye = await peer.goodbye()
        assert goodbye is not None
        assert goodbye.error_code == ErrorCodes.NO_ERROR


async def test_a_connection_with_a_call_stays(node):
    async with RawPeer(node) as peer:
        peer.send(peer.headers(BATCHES))
        await until(lambda: node.calls)
        (connection,) = node.server._connections
        connection.look(asyncio.get_running_loop().time() + 10 * limits.http2_idle_seconds_max)
        assert not connection.connection.is_closing()


@pytest.mark.parametrize("said", [PREFACE[:10], PREFACE])
async def test_a_preface_that_nothing_follows_ends(node, said):
    reader, writer = await asyncio.open_connection(node.host, node.port)
    writer.write(said)
    await until(lambda: node.server._connections)
    (connection,) = node.server._connections
    now = asyncio.get_running_loop().time()
    connection.look(now)
    assert not connection.connection.is_closing()
    connection.look(now + limits.sniff_seconds_max + 1)
    async with asyncio.timeout(10):
        try:
            await reader.read()
        except ConnectionError:
            pass
    await until(lambda: not node.server._connections)
    assert node.server.budgets.reached["preface_seconds"] == 1
    writer.close()


async def test_a_peer_that_takes_nothing_for_long_is_closed(node):
    async with RawPeer(node) as peer:
        peer.send(produce(peer))
        await answers(peer, 1)
        (connection,) = node.server._connections
        now = asyncio.get_running_loop().time()
        connection.pause_writing()
        connection.look(now)
        connection.resume_writing()
        connection.look(now + limits.http2_unread_seconds_max + 1)
        assert not connection.connection.is_closing(), "it has taken something meanwhile"
        connection.pause_writing()
        connection.look(now)
        connection.look(now + limits.http2_unread_seconds_max + 1)
        assert connection.connection.is_closing()


async def test_a_message_that_begins_and_does_not_come_is_refused(node, monkeypatch):
    monkeypatch.setattr(limits, "message_grace_seconds", 0.05)
    monkeypatch.setattr(limits, "message_bytes_per_second_min", 10_000)
    async with RawPeer(node) as peer:
        peer.send(peer.headers(BATCHES) + peer.data(b"\0\0\0\1\0x"))
        assert (await peer.trailers())["grpc-status"] == "4"
    await until(lambda: node.server.budgets.pool.used == 0)


async def test_a_unary_call_of_which_nothing_comes_is_refused(node, monkeypatch):
    monkeypatch.setattr(limits, "unary_seconds_max", 0.05)
    monkeypatch.setattr(limits, "edge_look_seconds", 0.02)
    async with RawPeer(node) as peer:
        peer.send(peer.headers())
        assert (await peer.trailers())["grpc-status"] == "4"


# --- of the port ---------------------------------------------------------------------------------


async def _open(node, source: str, said: bytes = b""):
    reader, writer = await asyncio.open_connection(node.host, node.port, local_addr=(source, 0))
    writer.write(said)
    return reader, writer


async def test_a_source_that_takes_all_places_makes_room_for_another(node, monkeypatch):
    monkeypatch.setattr(limits, "connections_max", 3)
    greedy = [await _open(node, "127.0.0.2") for _ in range(3)]
    await until(lambda: node.mux.connections == 3)
    modest_reader, modest = await _open(node, "127.0.0.3", b"GET ")
    assert await modest_reader.readexactly(9) == b"http:GET "
    assert await greedy[0][0].read() == b"", "its oldest has gone"
    last_reader, last = await _open(node, "127.0.0.2")
    assert await last_reader.read() == b"", "it still has most, and gets no more"
    for _, writer in [*greedy, (None, modest), (None, last)]:
        writer.close()


async def test_some_places_are_for_other_nodes_alone(node, monkeypatch):
    monkeypatch.setattr(limits, "connections_max", 8)
    clients = [await _open(node, "127.0.0.1", b"GET ") for _ in range(6)]
    for reader, _ in clients:
        assert await reader.readexactly(9) == b"http:GET "
    refused_reader, refused = await _open(node, "127.0.0.1", b"GET ")
    with pytest.raises((asyncio.IncompleteReadError, ConnectionError)):
        await refused_reader.readexactly(9)
    peer_reader, peer = await _open(node, "127.0.0.1", b"\1")
    assert await peer_reader.readexactly(6) == b"raft:\1"
    for _, writer in [*clients, (None, refused), (None, peer)]:
        writer.close()
