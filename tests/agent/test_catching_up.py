"""When a node is ready for the first time: not before it has caught up, and has its vote."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

import proglog
from proglog import limits
from proglog.agent import cluster as cluster_module
from proglog.agent import node as node_module
from proglog.agent.catching_up import has_its_place
from proglog.errors import Unavailable
from proglog.raft.configuration import Configuration
from tests.agent.nodes import Nodes, some_nodes
from tests.agent.test_policy import servers
from tests.waiting import until


@pytest.mark.parametrize(
    ("voters", "learners", "own", "has"),
    [
        (1, 0, 0, True),
        (1, 1, 1, True),  # stays without a vote, as the second of two
        (2, 1, 2, False),
        (3, 1, 3, False),
        (3, 1, 0, True),
        (5, 1, 5, True),  # five vote
        (3, 0, 9, False),  # not in the cluster at all
    ],
)
def test_who_has_its_place(voters: int, learners: int, own: int, has: bool) -> None:
    configuration = Configuration(servers(voters), servers(learners, first=voters))
    assert has_its_place(configuration, f"uuid-{own}") is has


@pytest.fixture
async def nodes(tmp_path: Path) -> AsyncIterator[Nodes]:
    async with some_nodes(tmp_path) as made:
        yield made


async def test_a_follower_is_ready_once_it_is_near_the_leader(
    nodes: Nodes, monkeypatch: pytest.MonkeyPatch
) -> None:
    await nodes.form("n0", "n1", "n2")
    await until(lambda: not any(node._why_not_ready() for node in nodes.running.values()))
    leader = await nodes.find_leader()
    name = next(each for each in nodes.running if nodes.running[each] is not leader)
    async with proglog.connect(nodes.url()) as log:
        await log.produce(b"x")
    await nodes.stop(name)
    monkeypatch.setattr(limits, "ready_behind_batches_max", 0)
    ahead, refused = 10**6, 2

    async def ask_commit(address: str, way: object) -> int:
        nonlocal refused
        assert address == str(leader.rpc_addr)
        if refused:
            refused -= 1
            raise Unavailable("it leads no more")
        return ahead + await cluster_module.ask_commit(address, way)

    monkeypatch.setattr(node_module, "ask_commit", ask_commit)
    node = await nodes.start(name)
    await until(lambda: node.replica.is_ready)
    await until(lambda: not refused)
    assert node._why_not_ready() == "it catches up with the leader"
    ahead = 0
    await until(lambda: not node._why_not_ready(), "it has caught up")
    # Once ready, it does not ask again.
    ahead = 10**6
    assert not node._why_not_ready()
