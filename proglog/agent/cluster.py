"""Changes of the cluster that an operator asks for."""

from __future__ import annotations

from proglog.client.network import NetworkBackend
from proglog.config import Address
from proglog.errors import ChangeRefused, InvalidRequest
from proglog.raft.configuration import Server
from proglog.replica.replica import Replica
from proglog.replica.types import ClusterStatus


class ClusterAdmin:
    """What the service log.v1.Cluster does, on the replica of this node."""

    def __init__(self, replica: Replica) -> None:
        self._replica = replica

    def status(self) -> ClusterStatus:
        return self._replica.cluster_status()

    async def add(self, rpc_addr: str) -> None:
        """Asks the node at an address who it is, and adds it as a learner."""
        if not self._replica.leadership.is_mine:
            raise self._replica.leadership.refusal()
        backend = NetworkBackend([Address.parse(rpc_addr, "rpc_addr")], "", None)
        try:
            found = await backend.describe()
        finally:
            await backend.close()
        own = self._replica.identity.cluster_id
        if found.cluster_id not in {"", own}:
            raise ChangeRefused(
                f"{found.node} at {rpc_addr} belongs to another cluster ({found.cluster_id}): only "
                "a node started without --bootstrap, with an empty directory, can be added"
            )
        await self._replica.members.add(Server(found.node_uuid, found.node, rpc_addr))

    async def remove(self, name: str) -> None:
        if not name:
            raise InvalidRequest("say which server is to be removed, by its name or uuid")
        await self._replica.members.remove(name)

    async def transfer(self, name: str) -> None:
        await self._replica.members.transfer(name)
