"""Makes Raft's configuration follow who is there: the leader looks once a second, and makes one
change at a time. See `policy` for which, and why not."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import structlog

from proglog import limits
from proglog.agent.policy import (
    DRAINING_TAG,
    ROLE,
    Add,
    Remove,
    View,
    foreigners,
    impostors,
    next_change,
    server_of,
)
from proglog.errors import ProglogError
from proglog.membership import CLUSTER_TAG, Member, Membership, NameConflict, NodeRefused
from proglog.membership.address import Address as GossipAddress
from proglog.raft.configuration import Server
from proglog.replica.replica import Replica

_logger = structlog.get_logger("reconciler")

Authenticate = Callable[[str], Awaitable[Server]]
"""Asks the node at an RPC address who it is. Raises ProglogError if it may not join."""


class Reconciler:
    """Belongs to a node, which runs `run` and `watch` as tasks."""

    def __init__(
        self,
        replica: Replica,
        membership: Membership,
        authenticate: Authenticate,
        *,
        cluster_name: str,
        rpc_addr: str,
        expect: int,
        dead_server_after_seconds: float,
        draining: Callable[[], str],
    ) -> None:
        self._replica = replica
        self._membership = membership
        self._authenticate = authenticate
        self._cluster_name = cluster_name
        self._rpc_addr = rpc_addr
        self._expect = expect
        self._dead_server_after_seconds = dead_server_after_seconds
        self._draining = draining
        self._loop = asyncio.get_running_loop()
        self._heard: dict[str, float] = {}
        self._heard_term = 0
        self._gone_since: dict[str, float] = {}
        self._not_before: dict[str, float] = {}
        self._tried: dict[str, float] = {}
        """When a change with this member did not come about last."""
        self._reported: set[str] = set()

    @property
    def tags(self) -> dict[str, str]:
        """What this node tells of itself by gossip."""
        identity = self._replica.identity
        tags = {
            CLUSTER_TAG: self._cluster_name,
            "role": ROLE,
            "rpc_addr": self._rpc_addr,
            "uuid": identity.uuid,
        }
        if self._expect:
            tags["expect"] = str(self._expect)
        if began := self._draining():
            tags[DRAINING_TAG] = began
        if self._replica.leadership.configuration.servers:
            # Absent while the node belongs to no cluster that exists, promised or not.
            tags["cluster"] = identity.cluster_id
        return tags

    async def run(self) -> None:
        """Reconciles for ever."""
        while True:
            self.tell()
            self._listen()
            if self._replica.leadership.is_mine:
                await self._step()
            await asyncio.sleep(limits.reconcile_seconds)

    def tell(self) -> None:
        """Brings about what this node tells of itself, where that has changed."""
        if self._membership.local.tags != self.tags:
            self._membership.set_tags(self.tags)

    def _listen(self) -> None:
        """Learns for how long who has been gone."""
        now = self._loop.time()
        status = self._replica.status()
        for member in self._membership.members():
            uuid = member.tags.get("uuid", "")
            if member.tags.get("role") != ROLE or server_of(status.configuration, member) is None:
                continue  # Whatever it says of a server's uuid, it is not that server.
            if member.status.gone:
                self._gone_since.setdefault(uuid, now)
            else:
                self._gone_since.pop(uuid, None)
        if status.term != self._heard_term:
            # What was heard in an earlier term, as its leader, is no silence in this one.
            self._heard.clear()
            self._heard_term = status.term
        for known in (self._gone_since, self._heard):
            for uuid in [each for each in known if status.configuration.find(each) is None]:
                del known[uuid]
        for peer in status.peers:
            if peer.active:
                self._heard[peer.id] = now
            else:
                # A new leader has heard nobody yet: silence counts from the first look.
                self._heard.setdefault(peer.id, now)

    def view(self) -> View:
        """What this node, as leader, goes by."""
        now = self._loop.time()
        status = self._replica.status()
        own = self._replica.identity.uuid
        healthy = {own, *(peer.id for peer in status.peers if peer.active)}
        gone = {
            uuid: min(now - since, now - self._heard.get(uuid, now))
            for uuid, since in self._gone_since.items()
            if uuid not in healthy
        }
        return View(
            cluster_id=self._replica.identity.cluster_id,
            configuration=status.configuration,
            members=self._members_due(now),
            healthy=healthy,
            gone_seconds=gone,
            dead_server_after_seconds=self._dead_server_after_seconds,
            left_server_after_seconds=limits.left_server_after_seconds,
            voters_min=limits.voters_min,
        )

    def _members_due(self, now: float) -> list[Member]:
        """Those that were not refused just now. Who has answered gossip comes before whom there is
        only talk of, and of these who waits longest for another try: so that some that never
        answer, be they a thousand, hold up nobody."""
        members = self._membership.members()
        names = {member.name for member in members}
        self._not_before = {
            name: due for name, due in self._not_before.items() if name in names and due > now
        }
        self._tried = {name: when for name, when in self._tried.items() if name in names}
        self._reported &= names
        return sorted(
            (member for member in members if member.name not in self._not_before),
            key=lambda member: (not member.heard, self._tried.get(member.name, 0.0)),
        )

    async def _step(self) -> None:
        name = ""
        try:
            await self._replica.members.turn()
            view = self.view()
            self._report_strangers(view)
            match next_change(view):
                case Add(member):
                    name = member.name
                    server = await self._authenticate(member.tags.get("rpc_addr", ""))
                    await self._replica.members.add(server)
                    _logger.info(
                        "server added",
                        server=server.name,
                        rpc_addr=server.address,
                        votes="once it has caught up"
                        if len(view.configuration.voters) > 1
                        else "once a third server is there, or after `proglog cluster promote`",
                    )
                case Remove(uuid, why):
                    removed = view.configuration.find(uuid)
                    assert removed is not None, "only servers are removed"
                    await self._replica.members.remove(uuid)
                    _logger.info("server removed", server=removed.name, uuid=uuid, why=why)
        except ProglogError as error:
            # Another change is under way, leadership is gone, or the member is not what it says.
            _logger.info("change not made", server=name, why=str(error))
            self._tried[name] = self._loop.time()
            self._not_before[name] = self._tried[name] + limits.reconcile_retry_seconds

    def _report_strangers(self, view: View) -> None:
        for member in foreigners(view.members, view.cluster_id):
            if self._is_new(member.name):
                _logger.warning(
                    "a member of another cluster shares our gossip and is ignored",
                    member=member.name,
                    cluster=member.tags.get("cluster"),
                )
        for member in impostors(view.members, view.configuration):
            if self._is_new(member.name):
                _logger.warning(
                    "a member has the uuid of a server, but not its name, and is ignored",
                    member=member.name,
                    uuid=member.tags.get("uuid"),
                )

    def _is_new(self, name: str) -> bool:
        """Whether this member has not been reported yet."""
        if name in self._reported:
            return False
        self._reported.add(name)
        return True

    async def watch(self) -> None:
        """Reports what only an operator can mend."""
        async for event in self._membership.subscribe():
            if isinstance(event, NameConflict):
                # Another node under this name, or this one under another address, which is taken
                # once the old one is known to be dead.
                _logger.warning(
                    "a second address claims the same name; it is ignored while the first is alive",
                    member=event.member.name,
                    address=str(GossipAddress(event.address, event.port)),
                )
            elif isinstance(event, NodeRefused):
                _logger.warning(
                    "a node that gossip names is ignored",
                    member=event.name,
                    address=str(event.address),
                    why=event.why,
                )
