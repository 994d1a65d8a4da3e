"""The leader of three processes is killed and paused, again and again, while clients produce."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from tests.cluster.harness import processes, rounds
from tests.cluster.load import load_on, verify
from tests.waiting import until

pytestmark = pytest.mark.timeout(900)
OPTIONS = ("--segment-bytes=128KiB",)


async def test_nothing_is_lost_when_the_leader_is_killed(tmp_path: Path) -> None:
    async with processes(tmp_path, options=OPTIONS) as cluster:
        async with load_on(cluster) as load:
            for _ in range(rounds(3)):
                leader = await cluster.leader()
                await leader.kill()
                await load.progress()
                await leader.start()
                await cluster.healthy()
        print(
            f"{len(load.acknowledged)} acknowledged, longest pause "
            f"{load.longest_pause_seconds:.2f} s, {load.unknown} unknown"
        )
        await verify(cluster, load)


async def test_nothing_is_lost_when_the_leader_is_paused(tmp_path: Path) -> None:
    async with processes(tmp_path, options=OPTIONS) as cluster:
        async with load_on(cluster) as load:
            for _ in range(rounds(1)):
                leader = await cluster.leader()
                leader.pause()
                # Only another leader can acknowledge these.
                await load.progress()
                leader.resume()
                await cluster.healthy()
        print(
            f"{len(load.acknowledged)} acknowledged, longest pause "
            f"{load.longest_pause_seconds:.2f} s, {load.unknown} unknown"
        )
        await verify(cluster, load)


async def test_what_a_leader_took_alone_was_not_acknowledged(tmp_path: Path) -> None:
    """Its followers die under it, it goes on until it notices, and dies; then they come back
    without it and with other batches at the indexes of its last ones."""
    async with processes(tmp_path, options=OPTIONS) as cluster:
        async with load_on(cluster) as load:
            for _ in range(rounds(1)):
                leader = await cluster.leader()
                followers = [server for server in cluster.servers if server is not leader]
                await asyncio.gather(*(follower.kill() for follower in followers))
                await until(leader.is_deposed, "the leader notices that it is alone")
                await leader.kill()
                await cluster.start(followers)
                await load.progress()
                await leader.start()
                await cluster.healthy()
        await verify(cluster, load)
