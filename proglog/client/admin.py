"""A cluster, as an operator sees and changes it."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from typing import Any, Self

from proglog import limits
from proglog._generated.log import v1
from proglog.client.backend import to_timeout
from proglog.client.call import Method
from proglog.client.network import NetworkBackend
from proglog.client.retry import RETRIED, Backoff, call_until
from proglog.config import Address
from proglog.errors import ProglogError
from proglog.net.dialling import Way


def _method(name: str) -> Method:
    request, response = getattr(v1, f"{name}Request"), getattr(v1, f"{name}Response")
    return Method(name, request, response, service="log.v1.Cluster")


_STATUS = _method("Status")
_ADD = _method("AddServer")
_REMOVE = _method("RemoveServer")
_TRANSFER = _method("TransferLeadership")
_FIX_TIME = _method("FixTime")
_MEMBERS = _method("Members")
_LEAVE = _method("Leave")
_PROMISE = _method("Promise")


class Cluster:
    """Asks any of some nodes, and follows to the leader where only that one can answer.

    An async context manager. All calls raise ProglogError.
    """

    def __init__(
        self,
        addresses: Sequence[Address],
        *,
        way: Way | None = None,
        timeout_seconds: float = limits.produce_timeout_seconds_default,
    ) -> None:
        self._backend = NetworkBackend(addresses, "", way)
        self._timeout_seconds = to_timeout(timeout_seconds)
        self._chance = random.Random()

    async def status(self) -> v1.StatusResponse:
        """What the asked node knows of the cluster."""
        reply: v1.StatusResponse = await call_until(
            lambda: self._backend.ask(_STATUS, v1.StatusRequest()),
            self._timeout_seconds,
            self._chance,
        )
        return reply

    async def add(self, rpc_addr: str) -> None:
        """Adds the node that answers at an address; it becomes a voter once it has caught up."""
        await self._change(_ADD, v1.AddServerRequest(rpc_addr=rpc_addr))

    async def remove(self, name: str) -> None:
        """Removes a server by its name or uuid."""
        await self._change(_REMOVE, v1.RemoveServerRequest(id=name))

    async def transfer(self, name: str = "") -> None:
        """Hands leadership to a server by its name or uuid, or to the one most up to date."""
        await self._change(_TRANSFER, v1.TransferLeadershipRequest(id=name))

    async def fix_time(self) -> None:
        """Sets log time that is ahead to what all voters' clocks show."""
        await self._change(_FIX_TIME, v1.FixTimeRequest())

    async def members(self) -> v1.MembersResponse:
        """Who is there, by the gossip of the asked node, in pages put together."""
        found: list[v1.Member] = []
        more = True
        while more:
            after = found[-1].name if found else ""
            page = await self._members_after(after)
            found += page.members
            # Names only grow, unless the other end is no node.
            more = page.more and bool(page.members) and page.members[-1].name > after
        return v1.MembersResponse(members=found)

    async def _members_after(self, name: str) -> v1.MembersResponse:
        reply: v1.MembersResponse = await call_until(
            lambda: self._backend.ask(_MEMBERS, v1.MembersRequest(after=name)),
            self._timeout_seconds,
            self._chance,
        )
        return reply

    async def leave(self) -> None:
        """The asked node leaves its cluster and stops."""
        await self._change(_LEAVE, v1.LeaveRequest())

    async def promise(self, cluster_id: str, uuids: Sequence[str]) -> None:
        """The asked node, which is new, promises to belong to this cluster and no other."""
        await self._change(_PROMISE, v1.PromiseRequest(cluster_id=cluster_id, uuids=list(uuids)))

    async def _change(self, method: Method, request: Any) -> None:
        """Tries until it is done or refused for good; an unknown outcome is not tried again."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._timeout_seconds
        backoff = Backoff(self._chance)
        while True:
            try:
                await self._backend.ask(method, request)
            except ProglogError as error:
                if error.action not in RETRIED or loop.time() >= deadline:
                    raise
                await backoff.pause(deadline)
            else:
                return

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._backend.close()
