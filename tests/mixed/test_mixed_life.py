"""Nodes among stock Serf agents and beside another cluster: they grow, shrink, and are told apart.

`make mixed` does it with ten agents.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from structlog.testing import capture_logs

import proglog
from proglog.membership import Status
from tests.agent.nodes import Nodes, some_nodes
from tests.membership.stock import Agent, agents
from tests.waiting import until

AGENTS = int(os.environ.get("PROGLOG_AGENTS", "2"))


@pytest.fixture
async def nodes(tmp_path: Path) -> AsyncIterator[Nodes]:
    async with some_nodes(tmp_path) as nodes:
        yield nodes


async def grow(nodes: Nodes, *names: str) -> None:
    for name in names:
        await nodes.start(name, start_join_addrs=nodes.gossip("a"))
    await nodes.voters(*nodes.running)


async def leave(nodes: Nodes, name: str) -> None:
    async with nodes.admin(name) as admin:
        await admin.leave()
    await until(nodes.running[name].left.done, f"{name} has left")
    await nodes.stop(name)


async def test_a_cluster_among_agents_grows_and_shrinks(nodes: Nodes, tmp_path: Path) -> None:
    """1 -> 3 -> 5 -> 3. All see all, and no agent becomes a server."""
    names = [f"agent{number}" for number in range(max(2, AGENTS))]
    await nodes.start("a", bootstrap=True)
    async with agents(tmp_path, *names) as stock:
        await stock[0].command("join", *nodes.gossip("a"))
        await grow(nodes, "b", "c")
        await grow(nodes, "d", "e")
        async with proglog.connect(nodes.url()) as log:
            assert list(await log.produce_many([b"%d" % n for n in range(20)])) == [*range(20)]
        gone = [name for name in "bcde" if nodes.running[name] is not nodes.leader][:2]
        for name in gone:
            await leave(nodes, name)
        await nodes.voters(*nodes.running)
        for agent in stock:
            for name in nodes.running:
                await until(lambda name=name, agent=agent: agent.sees(name, "alive"))
            for name in gone:
                await until(lambda name=name, agent=agent: agent.sees(name, "left"))
        for name in nodes.running:
            for other in names:
                await nodes.sees(name, other, Status.ALIVE)
        async with proglog.connect(nodes.url(nodes.running)) as log:
            assert await log.produce(b"goes on") == 20


async def test_a_slip_in_the_clusters_name_is_told_on_both_sides(
    nodes: Nodes, tmp_path: Path
) -> None:
    """And an agent, which has no cluster, is no bridge between them."""
    with capture_logs() as lines:
        await nodes.start("a", bootstrap=True, cluster_name="prod")
        await nodes.start("x", bootstrap=True, cluster_name="prdo")
        await nodes.start("b", cluster_name="prdo", start_join_addrs=nodes.gossip("a"))
        async with agents(tmp_path, "between") as between:
            assert isinstance(between, Agent)
            await between.command("join", *nodes.gossip("a"))
            await between.run("join", *nodes.gossip("x"))

            def told() -> bool:
                said = [str(line.get("why")) for line in lines]
                return any("of cluster 'prdo', not 'prod'" in why for why in said) and any(
                    "of cluster 'prod'" in why and "'prdo'" in why for why in said
                )

            await until(told, "each side says both names")
            for name in ("a", "x"):
                async with proglog.connect(nodes.url([name])) as log:
                    assert await log.produce(b"its own") == 0
            servers = {
                name: [server.name for server in node.replica.servers()]
                for name, node in nodes.running.items()
            }
            assert servers == {"a": ["a"], "x": ["x"], "b": []}
            seen = {member.name for member in nodes.running["a"].membership.members()}
            assert not seen & {"x", "b"}
