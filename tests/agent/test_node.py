"""A node by itself."""

from __future__ import annotations

import asyncio
import socket
from dataclasses import replace
from pathlib import Path

import aiohttp
import pytest

from proglog.agent.cluster import ask_identity
from proglog.agent.node import Node
from proglog.client.admin import Cluster
from proglog.config import Address, NodeConfig
from proglog.errors import InvalidRequest
from proglog.membership.errors import BindFailed
from tests.ports import free_port


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
        http_addr=Address("::", 0),
        bootstrap=True,
    )
    node = Node(config)
    await node.start()
    try:
        port = node.rpc_addr.port
        assert node.told_addr == Address("node.example", port)
        assert node.replica.leadership.configuration.servers[0].address == f"node.example:{port}"
        assert node.membership.local.tags["rpc_addr"] == f"node.example:{port}"
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
