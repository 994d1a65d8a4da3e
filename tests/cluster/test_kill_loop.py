"""One node under load is killed with -9 fifty times: nothing acknowledged is lost.

This proves the process; what a disk does to writes that were not synced is `tests/log/crash`.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cluster.harness import processes
from tests.cluster.load import load_on, verify

KILLS = 50


@pytest.mark.timeout(600)
async def test_a_node_is_killed_fifty_times(tmp_path: Path) -> None:
    async with processes(tmp_path, 1, ("--segment-bytes=128KiB",)) as node:
        (server,) = node.servers
        async with load_on(node, writers=2) as load:
            for _ in range(KILLS):
                await load.progress(40)
                await server.kill()
                await server.start()
        assert load.unknown == 0, "the client finds out what became of each record"
        await verify(node, load)
