"""Whole nodes in one process, on free ports of 127.0.0.1."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import shutil
from collections.abc import AsyncIterator, Iterable, Sequence
from pathlib import Path

import pytest

from proglog import limits
from proglog.agent.node import Node
from proglog.client.admin import Cluster
from proglog.config import Address, NodeConfig
from proglog.membership import Status, Timing
from tests.ports import free_port
from tests.waiting import until


class Nodes:
    """Nodes by name. Each keeps its ports and its directory over its lives."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._configs: dict[str, NodeConfig] = {}
        self.running: dict[str, Node] = {}

    def config(self, name: str, **changes: object) -> NodeConfig:
        """That of the node's first life with what has changed since."""
        config = self._configs.get(name) or dataclasses.replace(
            NodeConfig.for_tests(self._folder / name),
            node_name=name,
            bind_addr=Address("127.0.0.1", free_port()),
            rpc_port=free_port(),
            http_addr=None,
        )
        self._configs[name] = dataclasses.replace(config, **changes)  # type: ignore[arg-type]
        return self._configs[name]

    def gossip(self, *names: str) -> tuple[str, ...]:
        return tuple(str(self.config(name).bind_addr) for name in names)

    def move(self, name: str) -> None:
        """Its next life is at other addresses."""
        self.config(name, bind_addr=Address("127.0.0.1", free_port()), rpc_port=free_port())

    async def wipe(self, name: str) -> None:
        """Its disk is lost."""
        assert name not in self.running
        await asyncio.to_thread(shutil.rmtree, self._folder / name)

    async def start(self, name: str, **changes: object) -> Node:
        node = Node(self.config(name, **changes))
        await node.start()
        self.running[name] = node
        return node

    async def stop(self, *names: str) -> None:
        await asyncio.gather(*(self.running.pop(name).stop() for name in names))

    async def form(self, *names: str, **changes: object) -> None:
        """A cluster of these: the first begins it, the others join, and each has met the others.

        (Of a node that is gone before another has met it, that other never hears.)
        """
        first, *others = names
        await self.start(first, bootstrap=True, **changes)
        joined = self.gossip(first)
        await asyncio.gather(
            *(self.start(name, start_join_addrs=joined, **changes) for name in others)
        )
        if len(names) == 2:
            # By itself the second of two gets no vote.
            async with self.admin(first) as admin:
                await admin.add(str(self.running[names[1]].rpc_addr))
        await self.voters(*names)
        await asyncio.gather(
            *(self.sees(one, other, Status.ALIVE) for one in names for other in names)
        )

    @property
    def leader(self) -> Node | None:
        """The one that leads with the newest term."""
        leading = [node for node in self.running.values() if node.replica.leadership.is_mine]
        return max(leading, key=lambda node: node.replica.leadership.state.term, default=None)

    async def find_leader(self) -> Node:
        async def found() -> Node | None:
            return self.leader

        return await until(found, "somebody leads")

    async def voters(self, *names: str, learners: Sequence[str] = ()) -> None:
        """Until all that run agree that exactly these are the voters, and have applied the same."""

        async def agreed() -> bool:
            replicas = [node.replica for node in self.running.values()]
            wanted = {**dict.fromkeys(names, "voter"), **dict.fromkeys(learners, "learner")}
            return (
                all(
                    {server.name: server.suffrage for server in replica.servers()} == wanted
                    and len(replica.servers()) == len(wanted)
                    and replica.is_ready
                    for replica in replicas
                )
                and len({replica.applied_index for replica in replicas}) == 1
            )

        await until(agreed, f"{names} are the voters")

    async def sees(self, watcher: str, name: str, status: Status) -> None:
        """Until one node's gossip says this of another."""

        async def seen() -> bool:
            members = self.running[watcher].membership.members()
            return any(each.name == name and each.status is status for each in members)

        await until(seen, f"{watcher} sees that {name} is {status}")

    def admin(self, *names: str) -> Cluster:
        return Cluster([self.running[name].rpc_addr for name in names or self.running])

    def url(self, names: Iterable[str] = ()) -> str:
        addresses = [str(self.config(name).rpc_addr) for name in names or self._configs]
        return "proglog://" + ",".join(addresses)

    def cluster_ids(self) -> set[str]:
        return {node.replica.identity.cluster_id for node in self.running.values()}

    async def close(self) -> None:
        for name in list(self.running):
            with contextlib.suppress(Exception):
                await self.running[name].stop()


@contextlib.asynccontextmanager
async def some_nodes(folder: Path) -> AsyncIterator[Nodes]:
    """Nodes that look at each other more often than others do, so that tests take less time."""
    nodes = Nodes(folder)
    timing = dataclasses.replace(Timing.local(), probe_interval_s=0.3, probe_timeout_s=0.15)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Timing, "local", lambda: timing)
        patch.setattr(limits, "reconcile_seconds", 0.1)
        patch.setattr(limits, "left_server_after_seconds", 1.0)
        try:
            yield nodes
            for name, node in nodes.running.items():
                assert not node.failure.done(), f"{name} failed: {node.failure.exception()}"
            # Where all stop at once there is nobody to hand over to.
            patch.setattr(limits, "transfer_seconds_max", 0.1)
            await nodes.stop(*nodes.running)
        finally:
            await nodes.close()
