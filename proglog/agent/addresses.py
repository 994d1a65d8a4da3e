"""Where servers are, by gossip: it only says where to look. An address is passed on to the
connections once whoever answers there has said that it is that server. Anybody may forge gossip.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from proglog import limits
from proglog.agent.policy import server_of
from proglog.errors import ProglogError
from proglog.membership import Member, Membership, Status
from proglog.peers.peers import Peers
from proglog.raft.configuration import Server
from proglog.replica.replica import Replica


class Addresses:
    """Belongs to a node, which runs `run` as a task."""

    def __init__(
        self,
        replica: Replica,
        membership: Membership,
        peers: Peers,
        authenticate: Callable[[str], Awaitable[Server]],
    ) -> None:
        self._replica = replica
        self._membership = membership
        self._peers = peers
        self._authenticate = authenticate
        self._loop = asyncio.get_running_loop()
        self._not_before: dict[str, float] = {}

    async def run(self) -> None:
        """Looks for ever."""
        while True:
            # A claim a server at most: name and uuid must both be its own.
            await asyncio.gather(*map(self._look, self._claims()))
            await asyncio.sleep(limits.reconcile_seconds)

    def _claims(self) -> list[Member]:
        """Members that are servers and tell another address than the one that is used."""
        now = self._loop.time()
        configuration = self._replica.leadership.configuration
        self._not_before = {uuid: due for uuid, due in self._not_before.items() if due > now}
        return [
            member
            for member in self._membership.members()
            if member.status is Status.ALIVE
            and (server := server_of(configuration, member)) is not None
            and server.uuid not in self._not_before
            and member.tags.get("rpc_addr", "") not in {"", self._peers.address_of(server.uuid)}
        ]

    async def _look(self, member: Member) -> None:
        uuid, rpc_addr = member.tags["uuid"], member.tags["rpc_addr"]
        # Whatever comes of it: one dial in this time, however often the claim changes.
        self._not_before[uuid] = self._loop.time() + limits.reconcile_retry_seconds
        try:
            found = await self._authenticate(rpc_addr)
        except ProglogError:
            return  # The connections say whom they cannot reach.
        if found.uuid == uuid:
            self._peers.hint(uuid, member.name, rpc_addr)
