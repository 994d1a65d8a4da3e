from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from grpclib.client import Channel

from tests.rpc.fakes import Node, new_channel


@pytest.fixture
async def node() -> AsyncIterator[Node]:
    async with Node() as node:
        yield node


@pytest.fixture
async def channel(node: Node) -> AsyncIterator[Channel]:
    """grpclib's own client, with our codec."""
    channel = new_channel(node)
    yield channel
    channel.close()
