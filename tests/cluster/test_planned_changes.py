"""What an operator does under load costs no call: handing over, stopping, restarting one by one."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cluster.harness import processes, rounds
from tests.cluster.load import load_on, verify

pytestmark = pytest.mark.timeout(600)


async def test_a_planned_transfer_fails_no_call(tmp_path: Path) -> None:
    async with processes(tmp_path) as cluster:
        async with load_on(cluster) as load:
            for number in range(rounds(4)):
                before = await cluster.leader()
                others = [server for server in cluster.servers if server is not before]
                target = others[number % 2]
                async with cluster.admin() as admin:
                    await admin.transfer(target.name)
                assert await cluster.leader() is target
                await load.progress(50)
        assert load.failures == []
        print(f"longest pause {1000 * load.longest_pause_seconds:.0f} ms")
        await verify(cluster, load)


async def test_a_rolling_restart_fails_no_call(tmp_path: Path) -> None:
    async with processes(tmp_path) as cluster:
        async with load_on(cluster) as load:
            for server in cluster.servers:
                await server.stop()
                await load.progress(50)
                await server.start()
                await cluster.healthy()
        assert load.failures == []
        print(f"longest pause {1000 * load.longest_pause_seconds:.0f} ms")
        await verify(cluster, load)
