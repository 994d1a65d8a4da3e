"""What one client does to a node that is a process of its own, as another client sees it."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from grpclib.const import Status
from grpclib.exceptions import GRPCError
from grpclib.metadata import encode_grpc_message

import proglog
from proglog import limits
from proglog._generated.log import v1
from tests.cluster.harness import Server, processes
from tests.rpc.fakes import new_channel
from tests.waiting import DEADLINE_SECONDS, meanwhile, until

pytestmark = pytest.mark.timeout(300)


async def test_a_name_of_megabytes_holds_up_nobody_else(tmp_path: Path) -> None:
    """The refusal quotes the name, and to render it took the node's loop an hour."""
    async with processes(tmp_path, count=1) as cluster, proglog.connect(cluster.url) as log:
        channel = new_channel(cluster.servers[0].address)
        stub = v1.LogStub(channel)
        for name in ("é" * 1_000_000, "n" * 4_000_000, "\n" * 4_000_000, "%" * 4_000_000):
            async with meanwhile(stub.describe(v1.DescribeRequest(log=name))) as refused:
                async with asyncio.timeout(DEADLINE_SECONDS):
                    while not refused.done():
                        await log.describe()
                    with pytest.raises(GRPCError) as error:
                        await refused
            assert error.value.status is Status.NOT_FOUND
            assert len(encode_grpc_message(error.value.message)) <= 3 * limits.error_text_bytes_max
            assert error.value.details.reason == "UNKNOWN_LOG"
        channel.close()


async def get_servers(server: Server) -> set[str]:
    channel = new_channel(server.address)
    try:
        reply = await v1.LogStub(channel).get_servers(v1.GetServersRequest())
    finally:
        channel.close()
    return {each.id for each in reply.servers}


async def test_a_killed_server_is_not_among_the_servers_until_it_is_back(tmp_path: Path) -> None:
    """The original's client sends its calls to all of them in turn."""
    async with processes(tmp_path) as cluster:
        names = {server.name for server in cluster.servers}
        for victim in (await cluster.leader(), cluster.servers[-1]):
            assert all([await get_servers(server) == names for server in cluster.servers])
            await victim.kill()
            for other in cluster.servers:
                if other is victim:
                    continue

                async def is_left_out(asked: Server = other, gone: str = victim.name) -> bool:
                    return await get_servers(asked) == names - {gone}

                await until(is_left_out, f"{other.name} leaves {victim.name} out")
                status = await other.status()
                assert {each.id for each in status.servers} == names
            await victim.start()

            async def is_back() -> bool:
                return all([await get_servers(server) == names for server in cluster.servers])

            await cluster.healthy()
            await until(is_back, f"{victim.name} is back")
