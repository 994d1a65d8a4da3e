"""The service log.v1.Cluster: what a node knows of its cluster, and changes of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from grpclib.const import Cardinality
from grpclib.const import Handler as Method

from proglog import limits
from proglog._generated.log import v1
from proglog.auth.access import EVERYTHING
from proglog.auth.gate import denied
from proglog.auth.principal import Kind, Principal
from proglog.membership import Member
from proglog.rpc.calls import Call
from proglog.types import ClusterStatus, ServerInfo


class Cluster(Protocol):
    """What changes a cluster; all raise NotLeader elsewhere than on the leader."""

    def status(self) -> ClusterStatus: ...

    def servers(self) -> Sequence[ServerInfo]:
        """Those that a client may be sent to."""

    async def add(self, rpc_addr: str) -> None:
        """Adds the node that answers at an address. Raises ChangeRefused, Unavailable."""

    async def remove(self, name: str) -> None:
        """Removes a server. Raises ChangeRefused."""

    def is_own(self, principal: Principal, name: str) -> bool:
        """Whether a caller's certificate is that of the server of this name or uuid."""

    async def transfer(self, name: str) -> None:
        """Hands leadership over. Raises ChangeRefused, Unavailable."""

    async def fix_time(self) -> int:
        """Corrects log time that is ahead; by how many ms. Raises ChangeRefused, Unavailable."""

    def members(self) -> Sequence[Member]:
        """Who is there, by gossip."""

    async def leave(self) -> None:
        """This node leaves, and stops. Raises ChangeRefused."""

    async def promise(self, cluster_id: str, uuids: Sequence[str]) -> None:
        """This node will belong to no other cluster. Raises ChangeRefused, Unavailable."""


class ClusterService:
    """The handlers, for `Calls`."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster

    def __mapping__(self) -> Mapping[str, Method]:
        unary = Cardinality.UNARY_UNARY
        return {
            f"/log.v1.Cluster/{name}": Method(handler, unary, request, response)
            for name, handler, request, response in (
                ("Status", self.status, v1.StatusRequest, v1.StatusResponse),
                ("AddServer", self.add_server, v1.AddServerRequest, v1.AddServerResponse),
                (
                    "RemoveServer",
                    self.remove_server,
                    v1.RemoveServerRequest,
                    v1.RemoveServerResponse,
                ),
                (
                    "TransferLeadership",
                    self.transfer_leadership,
                    v1.TransferLeadershipRequest,
                    v1.TransferLeadershipResponse,
                ),
                ("FixTime", self.fix_time, v1.FixTimeRequest, v1.FixTimeResponse),
                ("Members", self.members, v1.MembersRequest, v1.MembersResponse),
                ("Leave", self.leave, v1.LeaveRequest, v1.LeaveResponse),
                ("Promise", self.promise, v1.PromiseRequest, v1.PromiseResponse),
            )
        }

    async def status(self, call: Call) -> None:
        await call.request()
        status = self._cluster.status()
        await call.send_message(
            v1.StatusResponse(
                servers=[
                    v1.ServerStatus(
                        id=server.name,
                        uuid=server.uuid,
                        rpc_addr=server.rpc_addr,
                        is_leader=server.is_leader,
                        suffrage=server.suffrage,
                        match_index=server.match_index,
                        active=server.active,
                    )
                    for server in status.servers
                ],
                term=status.term,
                commit_index=status.commit_index,
                applied_index=status.applied_index,
                cluster_id=status.cluster_id,
                node=status.node,
                role=status.role,
                notes=list(status.notes),
            )
        )

    async def add_server(self, call: Call) -> None:
        request: v1.AddServerRequest = await call.request()
        await self._cluster.add(request.rpc_addr)
        await call.send_message(v1.AddServerResponse())

    async def remove_server(self, call: Call) -> None:
        request: v1.RemoveServerRequest = await call.request()
        # By its certificate alone a node may remove itself, and no other.
        if call.principal.kind is Kind.PEER and not self._cluster.is_own(
            call.principal, request.id
        ):
            raise denied(call.principal, call.access, EVERYTHING)
        await self._cluster.remove(request.id)
        await call.send_message(v1.RemoveServerResponse())

    async def transfer_leadership(self, call: Call) -> None:
        request: v1.TransferLeadershipRequest = await call.request()
        await self._cluster.transfer(request.id)
        await call.send_message(v1.TransferLeadershipResponse())

    async def fix_time(self, call: Call) -> None:
        await call.request()
        await call.send_message(v1.FixTimeResponse(back=await self._cluster.fix_time()))

    async def members(self, call: Call) -> None:
        request: v1.MembersRequest = await call.request()
        page, more = _page([each for each in self._cluster.members() if each.name > request.after])
        await call.send_message(v1.MembersResponse(members=list(map(_member, page)), more=more))

    async def leave(self, call: Call) -> None:
        await call.request()
        await self._cluster.leave()
        await call.send_message(v1.LeaveResponse())

    async def promise(self, call: Call) -> None:
        request: v1.PromiseRequest = await call.request()
        await self._cluster.promise(request.cluster_id, request.uuids)
        await call.send_message(v1.PromiseResponse())


def _page(members: Sequence[Member]) -> tuple[Sequence[Member], bool]:
    """As many of them as one message may hold, and whether there are more."""
    elements = 0
    for count, member in enumerate(members):
        elements += 1 + len(member.tags)
        if elements > limits.message_elements_max:
            assert count, "one member alone always fits"
            return members[:count], True
    return members, False


def _member(member: Member) -> v1.Member:
    return v1.Member(
        name=member.name,
        address=f"{member.address}:{member.port}",
        status=str(member.status),
        tags=[v1.Tag(name=name, value=value) for name, value in sorted(member.tags.items())],
        protocol=member.protocol,
    )
