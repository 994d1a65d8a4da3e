"""Changes of a cluster, and what is said of them: each is told when it is done, by its outcome, and
where something is still awaited, what."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable, Callable, Sequence

from proglog import limits
from proglog._generated.log.v1 import Member, ServerStatus, StatusResponse
from proglog.cli.connection import FIRST_ANSWER_SECONDS_MAX
from proglog.client.admin import Cluster
from proglog.config import Address
from proglog.errors import ChangeRefused, quoted
from proglog.net.dialling import Way

SETTLE_SECONDS_MAX = 10.0
"""A change that is committed reaches the node that is asked within this time."""
PROMOTE_SECONDS_MAX = 30.0
"""So long `promote` waits for a learner to catch up; it gets its vote later all the same."""
_LOOK_SECONDS = 0.1


async def add(servers: Sequence[Address], way: Way | None, rpc_addr: str) -> int:
    await change(servers, way, lambda cluster: cluster.add(rpc_addr))

    def added(status: StatusResponse) -> bool:
        return any(each.rpc_addr == rpc_addr for each in status.servers)

    after = await _look(servers, way, added, SETTLE_SECONDS_MAX)
    for each in after.servers:
        if each.rpc_addr == rpc_addr:
            print(f"{each.id} is a {each.suffrage}{_awaited(each)}")
            return 0
    # It is known at another address: the one in the configuration stays until it has moved.
    print(f"the node at {rpc_addr} is in the cluster{_voters(after.servers)}")
    return 0


async def promote(servers: Sequence[Address], way: Way | None, name: str) -> int:
    """Raises ChangeRefused where it gets no vote whatever happens."""
    async with Cluster(servers, way=way, timeout_seconds=FIRST_ANSWER_SECONDS_MAX) as cluster:
        before = await cluster.status()
    learner = named(before.servers, name)
    if learner.suffrage == "voter":
        print(f"{learner.id} votes already{_voters(before.servers)}")
        return 0
    if len(voters(before.servers)) >= limits.voters_max:
        raise ChangeRefused(
            f"{len(voters(before.servers))} servers vote, and no more than {limits.voters_max} "
            f"may: {learner.id} gets the vote of one that leaves"
        )
    await change(servers, way, lambda cluster: cluster.add(learner.rpc_addr))

    def votes(status: StatusResponse) -> bool:
        return any(each.uuid == learner.uuid for each in voters(status.servers))

    after = await _look(servers, way, votes, PROMOTE_SECONDS_MAX)
    if votes(after):
        print(f"{learner.id} votes now{_voters(after.servers)}")
    else:
        print(f"{learner.id} is still a learner{_awaited(named(after.servers, learner.uuid))}")
    return 0


async def remove(servers: Sequence[Address], way: Way | None, name: str) -> int:
    async with Cluster(servers, way=way, timeout_seconds=FIRST_ANSWER_SECONDS_MAX) as cluster:
        before, members = await cluster.status(), (await cluster.members()).members
    await change(servers, way, lambda cluster: cluster.remove(name))
    gone = [each for each in before.servers if name in {each.id, each.uuid}]
    uuids = {each.uuid for each in gone}

    def removed(status: StatusResponse) -> bool:
        return not any(each.uuid in uuids for each in status.servers)

    after = await _look(servers, way, removed, SETTLE_SECONDS_MAX)
    for each in gone or [ServerStatus(id=name)]:
        print(f"{each.id} is no server any more{_voters(after.servers)}")
        if each.uuid and is_alive(each.uuid, members):
            print(
                f"{each.id} runs, so it is found and added again: stop it, or make it leave for "
                f"good with proglog leave --server {each.rpc_addr}",
                file=sys.stderr,
            )
    return 0


async def transfer(servers: Sequence[Address], way: Way | None, name: str) -> int:
    await change(servers, way, lambda cluster: cluster.transfer(name))
    after = await _look(
        servers,
        way,
        lambda status: any(each.is_leader for each in status.servers),
        SETTLE_SECONDS_MAX,
    )
    leader = next((each.id for each in after.servers if each.is_leader), "another server")
    print(f"{leader} leads now, in term {after.term}")
    return 0


async def fix_time(servers: Sequence[Address], way: Way | None) -> int:
    await change(servers, way, Cluster.fix_time)
    print("log time is what the voters' clocks show")
    return 0


async def leave(server: Address, way: Way | None) -> int:
    async with Cluster([server], way=way, timeout_seconds=FIRST_ANSWER_SECONDS_MAX) as cluster:
        before = await cluster.status()
    await change([server], way, Cluster.leave)
    print(f"{before.node} has left its cluster for good, and stops; its data stays where it is")
    return 0


async def change(
    servers: Sequence[Address], way: Way | None, change: Callable[[Cluster], Awaitable[None]]
) -> None:
    """Makes it, and says so where a leader has to be waited for. Raises ProglogError."""
    async with Cluster(servers, way=way, timeout_seconds=FIRST_ANSWER_SECONDS_MAX) as cluster:
        found = await cluster.status()
    if found.servers and not any(each.is_leader for each in found.servers):
        seconds = limits.produce_timeout_seconds_default
        told = f"{found.node} knows no leader now: waiting for one, up to {seconds:g} s"
        print(told, file=sys.stderr)
    async with Cluster(servers, way=way) as cluster:
        await change(cluster)


async def _look(
    servers: Sequence[Address],
    way: Way | None,
    shows: Callable[[StatusResponse], bool],
    seconds: float,
) -> StatusResponse:
    """The cluster once it shows that, or as it is after so long. Raises ProglogError."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + seconds
    async with Cluster(servers, way=way) as cluster:
        found = await cluster.status()
        while not shows(found) and loop.time() < deadline:
            await asyncio.sleep(_LOOK_SECONDS)
            found = await cluster.status()
    return found


# --- words ---------------------------------------------------------------------------------------


def voters(servers: Sequence[ServerStatus]) -> list[ServerStatus]:
    return [each for each in servers if each.suffrage == "voter"]


def named(servers: Sequence[ServerStatus], name: str) -> ServerStatus:
    """The server of this name or uuid. Raises ChangeRefused."""
    for each in servers:
        if name in {each.id, each.uuid}:
            return each
    known = ", ".join(sorted(each.id for each in servers)) or "none yet"
    raise ChangeRefused(f"no server of the cluster is called {quoted(name)}: there is {known}")


def is_alive(uuid: str, members: Sequence[Member]) -> bool:
    """Whether gossip says that this server runs."""
    return any(
        member.status == "alive" and any((tag.name, tag.value) == ("uuid", uuid) for tag in tags)
        for member in members
        if (tags := member.tags)
    )


def _voters(servers: Sequence[ServerStatus]) -> str:
    count = len(voters(servers))
    if count == 2:
        return ": 2 voters, and the loss of either stops the cluster"
    return f": {count} voter{'s' if count != 1 else ''}"


def _awaited(server: ServerStatus) -> str:
    return "" if server.suffrage == "voter" else ": it gets its vote once it has caught up"
