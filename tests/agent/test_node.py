"""A node by itself."""

from __future__ import annotations

import asyncio
import socket
from dataclasses import replace
from pathlib import Path

import pytest

from proglog.agent.node import Node
from proglog.config import Address, NodeConfig
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
