"""`--bootstrap-expect N`: N new nodes that see each other become one cluster, or none.

Of the new nodes that wait for N and answer, the N with the smallest names are chosen. Of these the
one with the smallest uuid coordinates: it promises first, and then asks each of the others for its
promise to belong to their cluster and no other. A promise is on disk before it is given. Only with
all N promises, given in one round, is the first configuration written.

The cluster's id is made of the N uuids, so a promise holds for these nodes only, and the id says
who coordinates: nobody else ever writes that configuration. Two coordinators with different views
cannot both succeed: a node that both name gives its promise to one of them.

A round that fails is given up: the coordinator lets go of its own promise, on disk, and never
counts what was promised in that round. A participant lets go of its promise once it has heard from
the coordinator itself, asked after the promise was given, that this one does not hold the id: so
the round in which it was given is over, and nothing was written. A coordinator that does not answer
keeps its participants: it may have written it.
"""

from __future__ import annotations

import asyncio
import itertools
import random
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
AskIdentity = Callable[[str], Awaitable[tuple[Server, str]]]
"""(rpc_addr): who answers there, and the id of the cluster that it promised to belong to, or "".
Raises ProglogError."""

_NAMESPACE = uuid.UUID("5fb0a2f4-7a0c-4b57-9d0e-6a1f7c0d9d43")


def cluster_of(uuids: Iterable[str]) -> str:
    """The id of the cluster that these nodes form (RFC 9562, version 5)."""
    return str(uuid.uuid5(_NAMESPACE, " ".join(sorted(uuids))))


class Forming:
    """Belongs to a node; `run` ends when the node belongs to a cluster."""

    def __init__(
        self,
        replica: Replica,
        membership: Membership,
        expect: int,
        ask: AskPromise,
        identify: AskIdentity,
        chance: random.Random,
    ) -> None:
        self._replica = replica
        self._membership = membership
        self._expect = expect
        self._ask = ask
        self._identify = identify
        self._chance = chance
        self._silent: dict[str, int] = {}
        """How often in a row a candidate did not answer, by name."""
        self._promises = 0
        self.why = f"waiting to form a cluster of {expect}"
        """What is awaited, for people."""

    @property
    def _is_done(self) -> bool:
        return bool(self._replica.leadership.configuration.servers)

    @property
    def _own(self) -> str:
        return self._replica.identity.uuid

    async def run(self) -> None:
        """Forms the cluster, if it falls to this node, or waits until another has."""
        while not self._is_done:
            pause = limits.reconcile_seconds
            try:
                await self._step()
            except ProglogError as error:
                self._tell(f"waiting to form a cluster of {self._expect}: {error}")
                # Two that are in each other's way must not try again at the same time.
                pause *= self._chance.uniform(1.0, 3.0)
            await asyncio.sleep(pause)

    async def _step(self) -> None:
        promised = self._replica.identity.cluster_id
        if promised:
            await self._go_on(promised)
            return
        chosen = await self._choose(self._candidates())
        if min(member.tags["uuid"] for member in chosen) == self._own:
            await self._form(chosen)
        else:
            names = ", ".join(member.name for member in chosen)
            self._tell(f"forming a cluster of {names}: another of them coordinates")

    async def _go_on(self, promised: str) -> None:
        """This node has promised itself, in this life or before."""
        chosen = self._promised_to(promised)
        if chosen is None:
            raise ChangeRefused("this node has promised itself to nodes that it does not see")
        coordinator = min(chosen, key=lambda member: member.tags["uuid"])
        if coordinator.tags["uuid"] != self._own:
            await self._ask_whether_it_stands(coordinator, promised)
            return
        free = {member.tags["uuid"] for member in self._candidates()}
        if free.issuperset(member.tags["uuid"] for member in chosen):
            await self._form(chosen)
        else:
            # No round is under way, and none will be.
            await self._replica.home.release_cluster(promised)

    def _tell(self, why: str) -> None:
        """Once for each reason."""
        if why != self.why:
            self.why = why
            _logger.info("the cluster did not form yet", why=why)

    # --- who -------------------------------------------------------------------------------------

    def _expecting(self) -> list[Member]:
        """Members in whatever state that wait, or waited, for as many as this one."""
        expect = str(self._expect)
        return [
            member
            for member in self._membership.members()
            if member.tags.get("role") == ROLE
            and member.tags.get("expect") == expect
            and member.tags.get("uuid")
        ]

    def _candidates(self) -> list[Member]:
        """New nodes that wait for as many as this one, by name; none if a cluster is in view."""
        if any(
            member.status is Status.ALIVE
            and member.tags.get("role") == ROLE
            and member.tags.get("cluster")
            for member in self._membership.members()
        ):
            return []
        alive = (member for member in self._expecting() if member.status is Status.ALIVE)
        return sorted(alive, key=lambda member: member.name)

    async def _choose(self, candidates: Sequence[Member]) -> list[Member]:
        """The smallest names of those that answer and are who they are said to be: anybody may make
        up a member, and one that nobody runs must not hold up the others."""
        names = {member.name for member in candidates}
        self._silent = {name: count for name, count in self._silent.items() if name in names}
        # Who did not answer comes last; all get their turn.
        order = sorted(candidates, key=lambda each: (self._silent.get(each.name, 0), each.name))
        tried = order[: self._expect + limits.forming_spare_max]
        answers = await asyncio.gather(*map(self._answers, tried))
        found = sorted(
            (member for member, answer in zip(tried, answers, strict=True) if answer),
            key=lambda member: member.name,
        )
        if len(found) < self._expect:
            seen = ", ".join(member.name for member in found)
            raise ChangeRefused(
                f"{len(found)} of {self._expect} are there and free ({seen}){self._others()}"
            )
        return found[: self._expect]

    async def _answers(self, member: Member) -> bool:
        if member.tags["uuid"] == self._own:
            return member.name == self._membership.local.name
        try:
            _, holds = await self._ask_who(member)
        except ProglogError:
            self._silent[member.name] = self._silent.get(member.name, 0) + 1
            return False
        self._silent.pop(member.name, None)
        return not holds  # One that has promised itself to others is not to be had.

    async def _ask_who(self, member: Member) -> tuple[Server, str]:
        """Who answers where a member says that it is, and what that one holds: it must be this
        member, which perhaps says nothing of an address. Raises ProglogError."""
        server, holds = await self._identify(member.tags.get("rpc_addr", ""))
        if (server.uuid, server.name) != (member.tags["uuid"], member.name):
            raise ChangeRefused(f"{server.name} answers at the address of {member.name}")
        return server, holds

    def _others(self) -> str:
        """Whom this node sees that waits for something else: most often a slip of the operator."""
        others = [
            f"{member.name} belongs to a cluster already"
            if member.tags.get("cluster")
            else f"{member.name} was started with --bootstrap-expect={member.tags['expect']}"
            if "expect" in member.tags
            else f"{member.name} was started without --bootstrap-expect"
            for member in self._membership.members()
            if member.status is Status.ALIVE
            and member.tags.get("role") == ROLE
            and (member.tags.get("cluster") or member.tags.get("expect") != str(self._expect))
        ]
        return "".join(f"; {other}" for other in others[:3])

    def _promised_to(self, cluster_id: str) -> list[Member] | None:
        """The nodes to whose cluster this one has promised itself, if it knows them all. (Only the
        id is kept, so they are searched for: among the first few, that is done at once.)"""
        expecting = sorted(self._expecting(), key=lambda member: (not member.heard, member.name))
        own = [member for member in expecting if member.tags["uuid"] == self._own]
        others = [member for member in expecting if member.tags["uuid"] != self._own]
        subsets = itertools.combinations(others, self._expect - 1)
        for some in itertools.islice(subsets, limits.forming_subsets_max):
            if cluster_of(member.tags["uuid"] for member in (*own, *some)) == cluster_id:
                return [*own, *some]
        return None

    # --- coordinating ----------------------------------------------------------------------------

    async def _form(self, chosen: Sequence[Member]) -> None:
        uuids = sorted(member.tags["uuid"] for member in chosen)
        cluster_id = cluster_of(uuids)
        await self._replica.home.adopt_cluster(cluster_id)
        try:
            servers = await asyncio.gather(
                *(self._promise_of(member, cluster_id, uuids) for member in chosen)
            )
        except ProglogError:
            # This round is over, whoever has promised: from here on nobody is kept by it.
            await self._replica.home.release_cluster(cluster_id)
            raise
        await self._replica.begin(Configuration(tuple(servers)))
        _logger.info("a cluster was formed", cluster=cluster_id, servers=len(servers))

    async def _promise_of(self, member: Member, cluster_id: str, uuids: Sequence[str]) -> Server:
        if member.tags["uuid"] == self._own:
            return Server(self._own, member.name, member.tags["rpc_addr"])
        server, _ = await self._ask_who(member)
        await self._ask(member.tags["rpc_addr"], cluster_id, uuids)
        return server

    # --- promising -------------------------------------------------------------------------------

    async def promise(self, cluster_id: str, uuids: Sequence[str]) -> None:
        """Another node coordinates. Raises ChangeRefused, Unavailable: there is no promise."""
        seen = {member.tags["uuid"] for member in self._candidates()}
        fits = len(set(uuids)) == len(uuids) == self._expect and cluster_id == cluster_of(uuids)
        if self._is_done or not fits or self._own not in uuids or not seen.issuperset(uuids):
            raise ChangeRefused("this node does not see the nodes that are to form the cluster")
        if min(uuids) == self._own:
            raise ChangeRefused("of these nodes it is this one that coordinates")
        self._promises += 1
        await self._replica.home.adopt_cluster(cluster_id)

    async def _ask_whether_it_stands(self, coordinator: Member, cluster_id: str) -> None:
        """Lets go of a promise where the coordinator has given up."""
        before = self._promises
        server, holds = await self._identify(coordinator.tags.get("rpc_addr", ""))
        if server.uuid != coordinator.tags["uuid"]:
            raise ChangeRefused(f"{server.name} answers at the address of {coordinator.name}")
        # Promised anew meanwhile: what was answered is from before.
        if holds != cluster_id and before == self._promises and not self._is_done:
            await self._replica.home.release_cluster(cluster_id)
