"""`--bootstrap-expect N`: N new nodes that see each other become one cluster, or none.

The one with the smallest name asks each for its promise to belong to their cluster and no other. A
promise is on disk before it is given and never taken back. A node gives one, to a coordinator that
sees exactly the nodes that it sees itself. Only with all N is the first configuration written.

The cluster's id is made of the N uuids, so a promise holds for these nodes only. Two coordinators
with different views therefore cannot both succeed: a node that both name gives its promise to one
of them. An id made up by a coordinator would not do: were one to pause behind its last promise
while gossip loses it and finds another node, the next coordinator, bound by its own promise, would
use the same id again, and there were two first configurations of one cluster. Two coordinators of
the same nodes there are not, since names decide.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Awaitable, Callable, Iterable, Sequence

import structlog

from proglog import limits
from proglog.agent.policy import ROLE
from proglog.errors import ChangeRefused, ProglogError
from proglog.membership import Member, Membership, Status
from proglog.raft.configuration import Configuration, Server
from proglog.replica.replica import Replica

_logger = structlog.get_logger("forming")

AskPromise = Callable[[str, str, Sequence[str]], Awaitable[None]]
"""(rpc_addr, cluster id, uuids): asks a node for its promise. Raises ProglogError."""

_NAMESPACE = uuid.UUID("5fb0a2f4-7a0c-4b57-9d0e-6a1f7c0d9d43")


def cluster_of(uuids: Iterable[str]) -> str:
    """The id of the cluster that these nodes form (RFC 9562, version 5)."""
    return str(uuid.uuid5(_NAMESPACE, " ".join(sorted(uuids))))


class Forming:
    """Belongs to a node; `run` ends when the node belongs to a cluster."""

    def __init__(
        self, replica: Replica, membership: Membership, expect: int, ask: AskPromise
    ) -> None:
        self._replica = replica
        self._membership = membership
        self._expect = expect
        self._ask = ask

    @property
    def _is_done(self) -> bool:
        return bool(self._replica.leadership.configuration.servers)

    async def run(self) -> None:
        """Forms the cluster, if it falls to this node, or waits until another has."""
        while not self._is_done:
            candidates = self._candidates()
            if self._complete(candidates) and candidates[0].name == self._membership.local.name:
                try:
                    await self._form(candidates)
                except ProglogError as error:
                    _logger.info("the cluster did not form yet", why=str(error))
            await asyncio.sleep(limits.reconcile_seconds)

    def _candidates(self) -> list[Member]:
        """New nodes that wait for as many as this one, by name; none if a cluster is in view."""
        alive = [
            member
            for member in self._membership.members()
            if member.status is Status.ALIVE and member.tags.get("role") == ROLE
        ]
        if any(member.tags.get("cluster") for member in alive):
            return []
        expect = str(self._expect)
        return sorted(
            (member for member in alive if member.tags.get("expect") == expect),
            key=lambda member: member.name,
        )

    def _complete(self, candidates: Sequence[Member]) -> bool:
        return len(candidates) == self._expect

    async def _form(self, candidates: Sequence[Member]) -> None:
        uuids = sorted(member.tags["uuid"] for member in candidates)
        cluster_id = cluster_of(uuids)
        await self._replica.adopt_cluster(cluster_id)
        own = self._replica.identity.uuid
        for member in candidates:
            if member.tags["uuid"] != own:
                await self._ask(member.tags["rpc_addr"], cluster_id, uuids)
        servers = [
            Server(member.tags["uuid"], member.name, member.tags["rpc_addr"])
            for member in candidates
        ]
        await self._replica.begin(Configuration(tuple(servers)))
        _logger.info("a cluster was formed", cluster=cluster_id, servers=len(servers))

    async def promise(self, cluster_id: str, uuids: Sequence[str]) -> None:
        """Another node coordinates. Raises ChangeRefused, Unavailable: there is no promise."""
        seen = sorted(member.tags.get("uuid", "") for member in self._candidates())
        expected = len(seen) == self._expect and cluster_id == cluster_of(seen)
        if self._is_done or seen != list(uuids) or not expected:
            raise ChangeRefused("this node does not see the nodes that are to form the cluster")
        await self._replica.adopt_cluster(cluster_id)
