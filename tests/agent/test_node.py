"""A node by itself."""

from __future__ import annotations

import asyncio
import socket
from dataclasses import replace
from pathlib import Path

import aiohttp
import pytest

from proglog import limits
from proglog.agent import node as node_module
from proglog.agent.cluster import ask_identity
from proglog.agent.node import Node
from proglog.client.admin import Cluster
from proglog.config import Address, NodeConfig, SecurityConfig
from proglog.errors import InvalidRequest
from proglog.gateway.health import Probes
from proglog.gateway.probing import ProbeServer
from proglog.membership.errors import BindFailed
from proglog.net.listening import listen
from proglog.observability.metrics import Metrics
from tests.ports import free_port
from tests.waiting import until


async def test_a_node_that_cannot_start_leaves_nothing_running(tmp_path: Path) -> None:
    port = free_port()
    with socket.create_server(("127.0.0.1", port)):
        config = NodeConfig.for_tests(tmp_path / "data")
        node = Node(replace(config, bind_addr=Address("127.0.0.1", port)))
        with pytest.raises(BindFailed):
            await node.start()
        assert asyncio.all_tasks() == {asyncio.current_task()}


async def test_a_node_that_listens_everywhere_tells_what_it_was_told_to(tmp_path: Path) -> None:
    config = replace(
        NodeConfig.for_tests(tmp_path / "data"),
        bind_addr=Address("::", 0),
        advertise_addr=Address("node.example", 0),
        security=SecurityConfig(allow_plaintext=True),
        http_addr=Address("::", 0),
        bootstrap=True,
    )
    node = Node(config)
    await node.start()
    try:
        port = node.rpc_addr.port
        assert node.told_addr == Address("node.example", port)
        assert node.replica.leadership.configuration.servers[0].address == f"node.example:{port}"
        told = f"node.example:{port}"
        await until(lambda: node.membership.local.tags.get("rpc_addr") == told, "it tells it")
        assert node.membership.local.address not in {"0.0.0.0", "::"}
        for host in ["127.0.0.1", *(["::1"] if socket.has_dualstack_ipv6() else [])]:
            async with Cluster([Address(host, port)]) as cluster:
                assert (await cluster.status()).servers[0].rpc_addr == f"node.example:{port}"
            async with aiohttp.ClientSession() as session:
                # As an address, which is what was dialled, in whatever form the system tells it.
                url = f"http://{Address(host, node.http_addr.port)}/readyz"
                async with session.get(url) as response:
                    assert response.status == 200
    finally:
        await node.stop()


async def test_an_address_that_reaches_nobody_is_not_asked(tmp_path: Path) -> None:
    for text in ("0.0.0.0:8400", "[::]:8400"):
        with pytest.raises(InvalidRequest, match="nobody can be reached"):
            await ask_identity(text)


async def test_probes_are_answered_before_the_log_is_recovered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = replace(
        NodeConfig.for_tests(tmp_path / "data"),
        health_addr=Address("127.0.0.1", 0),
        bootstrap=True,
    )
    node = Node(config)
    begin, begun = asyncio.Event(), asyncio.Event()
    opening = node_module.open_replica

    async def open_slowly(*arguments: object, **options: object) -> object:
        begun.set()
        await begin.wait()
        return await opening(*arguments, **options)

    monkeypatch.setattr(node_module, "open_replica", open_slowly)

    async def probe(path: str) -> int:
        async with aiohttp.ClientSession() as session:
            # A kubelet's name for it, or Prometheus's.
            async with session.get(
                f"http://{node.health_addr}{path}", headers={"Host": "10.1.2.3"}
            ) as answer:
                return answer.status

    starting = asyncio.ensure_future(node.start())
    try:
        await begun.wait()
        assert [await probe(path) for path in ("/livez", "/startupz", "/readyz")] == [200, 503, 503]
        assert await probe("/metrics") == 200
        begin.set()
        await starting
        paths = ("/livez", "/startupz", "/readyz", "/metrics")
        assert [await probe(path) for path in paths] == [200] * 4
        # And nothing else.
        assert [await probe(path) for path in ("/", "/v1/log", "/v1/records")] == [404] * 3
    finally:
        begin.set()
        await asyncio.wait([starting])
        await node.stop()


async def test_probes_have_a_bound(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "probe_connections_max", 2)
    listener = listen("127.0.0.1", 0)
    address = listener.getsockname()
    always = Probes(live=str, ready=str, started=str)
    server = ProbeServer(always, Metrics())
    await server.start(listener)
    connections = [await asyncio.open_connection(*address) for _ in range(3)]
    try:
        # The last one is one too many.
        assert await connections[2][0].read() == b""
        connections[0][1].write(b"GET /livez HTTP/1.1\r\nHost: a\r\n\r\n")
        assert (await connections[0][0].readline()).startswith(b"HTTP/1.1 200")
    finally:
        for _, writer in connections:
            writer.close()
        await server.close()
