"""Changes of the cluster that an operator or another node asks for."""

from __future__ import annotations

import asyncio
import contextlib
import uuid
from collections.abc import Awaitable, Callable, Sequence

from proglog import limits
from proglog.agent.forming import Forming
from proglog.agent.policy import in_reach, may_leave, refuse_unreachable
from proglog.agent.reconciler import Reconciler
from proglog.agent.security import Security
from proglog.auth.principal import Principal
from proglog.client.admin import Cluster
from proglog.client.network import NetworkBackend
from proglog.config import Address, is_node_name
from proglog.errors import (
    ChangeRefused,
    ConfigurationError,
    InvalidRequest,
    NotLeader,
    ProglogError,
    clip,
    quoted,
)
from proglog.membership import Member, Membership
from proglog.net.dialling import Way
from proglog.peers.local import host_of
from proglog.raft.configuration import Server
from proglog.replica.replica import Replica
from proglog.types import ClusterStatus, Description, ServerInfo


class ClusterAdmin:
    """What the service log.v1.Cluster does, on this node."""

    def __init__(
        self,
        replica: Replica,
        membership: Membership,
        reconciler: Reconciler,
        leave: Callable[[], Awaitable[None]],
        security: Security,
    ) -> None:
        self._security = security
        self._way = security.way
        self._replica = replica
        self._membership = membership
        self._reconciler = reconciler
        self._leave = leave
        self._loop = asyncio.get_running_loop()
        self.forming: Forming | None = None

    def status(self) -> ClusterStatus:
        return self._replica.cluster_status()

    def members(self) -> Sequence[Member]:
        return self._membership.members()

    def servers(self) -> Sequence[ServerInfo]:
        return in_reach(self._replica.servers(), self._membership.members())

    async def add(self, rpc_addr: str) -> None:
        """Asks the node at an address who it is, and adds it as a learner; or, where gossip has
        done so before, sees to it that it gets its vote."""
        members = self._replica.members
        await members.turn()
        await members.add(await newcomer(rpc_addr, self._replica, self._way), by_operator=True)

    async def remove(self, name: str) -> None:
        """Removes a server, if those that are left answer and are a quorum."""
        if not name:
            raise InvalidRequest("say which server is to be removed, by its name or uuid")
        await self._replica.members.turn()
        deadline = self._loop.time() + limits.hearing_seconds_max
        while not self._may_go(name):
            # A leader that has only just taken over has not heard from everybody yet.
            if self._loop.time() >= deadline:
                called = self._replica.exchange.name_of(name)  # one that leaves asks by its uuid
                raise ChangeRefused(
                    f"without {called} the cluster would have no quorum that answers"
                )
            await asyncio.sleep(limits.health_seconds)
            await self._replica.members.turn()
        await self._replica.members.remove(name)

    def _may_go(self, name: str) -> bool:
        view = self._reconciler.view()
        return all(
            may_leave(view.configuration, view.healthy, server.uuid)
            for server in view.configuration.servers
            if name in {server.name, server.uuid}
        )

    def is_own(self, principal: Principal, name: str) -> bool:
        names = self._security.names_of(principal)
        return names is not None and any(
            name in {server.name, server.uuid} and names(server.name, host_of(server.rpc_addr))
            for server in self._replica.servers()
        )

    async def transfer(self, name: str) -> None:
        await self._replica.members.transfer(name)

    async def fix_time(self) -> int:
        return await self._replica.fix_time()

    async def leave(self) -> None:
        await self._leave()

    async def promise(self, cluster_id: str, uuids: Sequence[str]) -> None:
        if self.forming is None:
            raise ChangeRefused("this node was not started with --bootstrap-expect")
        await self.forming.promise(cluster_id, uuids)


async def identify(
    rpc_addr: str, cluster_id: str, way: Way | None = None, *, cluster_name: str = ""
) -> Server:
    """Asks as `ask_identity` does. Raises ChangeRefused as well if the node that answers belongs to
    another cluster than this, or waits for one of another name."""
    server, found = await _ask(rpc_addr, way)
    theirs = found.cluster_id
    if theirs not in {"", cluster_id}:
        raise ChangeRefused(
            f"{server.name} at {rpc_addr} belongs to another cluster "
            f"({clip(theirs, limits.error_name_bytes_max)}): only a "
            "node that began with --no-bootstrap and an empty directory can be added"
        )
    if cluster_name and found.cluster_name not in {"", cluster_name}:
        # It would be added, and refuse every call.
        raise ChangeRefused(
            f"{server.name} at {rpc_addr} waits for a cluster called {quoted(found.cluster_name)}, "
            f"and this one is called {quoted(cluster_name)}: start it with "
            f"--cluster-name={cluster_name}"
        )
    return server


async def newcomer(rpc_addr: str, replica: Replica, way: Way | None = None) -> Server:
    """Asks as `identify` does whom to add. Raises ChangeRefused as well if the others could not
    reach it there: who is in the configuration is dialled by all of them."""
    identity, name = replica.identity, replica.exchange.cluster_name
    server = await identify(rpc_addr, identity.cluster_id, way, cluster_name=name)
    refuse_unreachable(replica.leadership.configuration, server)
    return server


async def ask_identity(rpc_addr: str, way: Way | None = None) -> tuple[Server, str]:
    """Asks the node at an address who it is, and to which cluster it belongs or has promised itself
    ("": none). Gossip and operators only say whom to ask.

    Raises InvalidRequest if that is no address, and ChangeRefused if nobody answers, or one who
    says what no node can be called: what is found here enters the configuration.
    """
    server, found = await _ask(rpc_addr, way)
    return server, found.cluster_id


async def _ask(rpc_addr: str, way: Way | None) -> tuple[Server, Description]:
    try:
        address = Address.parse(rpc_addr, "rpc_addr")
    except ConfigurationError as error:
        raise InvalidRequest(str(error)) from None
    if address.is_unspecified:
        raise InvalidRequest(f"rpc_addr is {address}: nobody can be reached at every address")
    found = await _describe(address, way)
    if not is_node_name(found.node) or not _is_uuid(found.node_uuid):
        raise ChangeRefused(
            f"what answers at {address} is no node: it calls itself {quoted(found.node)}, "
            f"with the uuid {quoted(found.node_uuid)}"
        )
    return Server(found.node_uuid, found.node, str(address)), found


async def ask_commit(rpc_addr: str, way: Way | None = None) -> int:
    """How many batches the node at an address has committed. Raises ProglogError."""
    return (await _describe(Address.parse(rpc_addr, "rpc_addr"), way)).commit_index


async def _describe(address: Address, way: Way | None) -> Description:
    backend = NetworkBackend([address], "", way)
    try:
        async with asyncio.timeout(limits.identify_seconds_max):
            return await backend.describe(at=address)
    except TimeoutError:
        raise ChangeRefused(f"{address} does not say who it is") from None
    except ProglogError as error:
        # Whoever asks for a change would take its Unavailable for this node's, and try again.
        raise ChangeRefused(f"{address} does not say who it is: {error}") from None
    finally:
        await backend.close()


def _is_uuid(text: str) -> bool:
    try:
        return str(uuid.UUID(text)) == text
    except ValueError:
        return False


async def ask_promise(
    rpc_addr: str, cluster_id: str, uuids: Sequence[str], way: Way | None = None
) -> None:
    """Asks a new node to promise that it belongs to this cluster. Raises ProglogError."""
    async with Cluster(
        [Address.parse(rpc_addr)], way=way, timeout_seconds=limits.reconcile_retry_seconds
    ) as node:
        await node.promise(cluster_id, uuids)


async def leave_configuration(replica: Replica, way: Way | None = None) -> None:
    """Gets this server out of its cluster's configuration. Raises ProglogError: it stays."""
    own = replica.identity.uuid
    if replica.leadership.configuration.find(own) is None:
        return
    if len(replica.leadership.configuration.servers) == 1:
        raise ChangeRefused("the last server cannot leave its cluster")
    with contextlib.suppress(NotLeader):
        # A leader may remove itself, but then nobody leads until the next election.
        await replica.members.transfer()
    others = [Address.parse(server.rpc_addr) for server in replica.servers() if server.uuid != own]
    async with Cluster(others, way=way, timeout_seconds=limits.leave_seconds_max) as cluster:
        try:
            await cluster.remove(own)
        except ProglogError:
            if replica.leadership.configuration.find(own) is not None:
                raise
