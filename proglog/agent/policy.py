"""Which change of the cluster is due, and which is allowed. Pure: a table of tests goes with it.

Gossip is a hint, Raft is the truth. A member that is alive and unknown becomes a learner. A server
is removed because gossip says that it has left, or has been gone for long, and in either case only
if Raft has no answer from it either and those that are left can do without it: never on the word of
gossip alone, which anybody may forge. (One that leaves as planned asks the leader itself.)
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from proglog.config import Address
from proglog.errors import ChangeRefused
from proglog.membership import Member, Status
from proglog.raft.configuration import Configuration, Server
from proglog.raft.quorum import majority
from proglog.types import ServerInfo

ROLE = "proglog"
"""The tag `role` of our members; others, such as stock Serf agents, are listed and ignored."""

DRAINING_TAG = "draining"
"""The tag of a member that is about to stop: when that began, on its own wall clock in
milliseconds. Who is first goes first; a wrong clock makes somebody wait, for a while."""


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """What the leader knows."""

    cluster_id: str
    configuration: Configuration
    members: Sequence[Member]
    healthy: Collection[str]
    """Uuids of servers that answered Raft lately, this one included."""
    gone_seconds: Mapping[str, float]
    """By uuid: how long gossip has said failed or left *and* Raft had no answer."""
    dead_server_after_seconds: float
    left_server_after_seconds: float
    voters_min: int


@dataclass(frozen=True, slots=True)
class Add:
    """This member should be asked who it is, and become a learner."""

    member: Member


@dataclass(frozen=True, slots=True)
class Remove:
    """This server should go; `why` is for the log."""

    uuid: str
    why: str


def server_of(configuration: Configuration, member: Member) -> Server | None:
    """The server that a member is. Gossip knows nodes by name, Raft by uuid, and a server keeps
    both for life: what has only one of them is another node, or somebody's invention."""
    server = configuration.find(member.tags.get("uuid", ""))
    return server if server is not None and server.name == member.name else None


def next_change(view: View) -> Add | Remove | None:
    """The one change to make now, if any."""
    return _leaver(view) or _dead(view) or _newcomer(view)


def may_leave(configuration: Configuration, healthy: Collection[str], uuid: str) -> bool:
    """Whether a server that wants to go may: the rest must have a quorum that answers."""
    if not configuration.is_voter(uuid):
        return True
    rest = [voter for voter in configuration.voter_ids if voter != uuid]
    answering = sum(voter in healthy for voter in rest)
    return bool(rest) and answering >= majority(len(rest))


def may_remove_dead(
    configuration: Configuration, healthy: Collection[str], uuid: str, voters_min: int
) -> bool:
    """Whether a server that is gone may be removed without anybody asking for it.

    Removing voters by themselves must not shrink a cluster to where a second failure ends it, nor
    happen while more are gone than the rest can bear: then a person must look.
    """
    if not configuration.is_voter(uuid):
        return True
    voters = configuration.voter_ids
    rest = [voter for voter in voters if voter != uuid]
    margin = sum(voter in healthy for voter in voters) - majority(len(voters))
    margin_after = sum(voter in healthy for voter in rest) - majority(len(rest)) if rest else -1
    return len(rest) >= voters_min and margin >= 0 and margin_after >= margin


def in_reach(servers: Sequence[ServerInfo], members: Sequence[Member]) -> list[ServerInfo]:
    """The servers that a client may be sent to: all but those that gossip calls failed or left, or
    that are about to stop.

    One that gossip does not know, or not yet, is kept. So is the leader: whether it is there, its
    followers know better and sooner.
    """
    there: dict[str, bool] = {}
    for member in _ours(members):
        uuid, stays = member.tags.get("uuid", ""), DRAINING_TAG not in member.tags
        there[uuid] = there.get(uuid, False) or (stays and not member.status.gone)
    return [server for server in servers if server.is_leader or there.get(server.uuid, True)]


def misses_somebody(configuration: Configuration, members: Sequence[Member], own: str) -> bool:
    """Whether a node should go on looking for others: while it belongs to no cluster, sees nobody,
    or does not see a server of its cluster."""
    alive = [member for member in members if member.status is Status.ALIVE]
    uuids = {server.uuid for member in alive if (server := server_of(configuration, member))}
    missed = {server.uuid for server in configuration.servers} - uuids - {own}
    return not configuration.servers or len(alive) <= 1 or bool(missed)


def refuse_unreachable(configuration: Configuration, server: Server) -> None:
    """Raises ChangeRefused where a new server and the others are not all on one machine, and yet
    one of them tells an address of loopback: there, each of them would reach itself."""
    alone = [
        each
        for each in (*configuration.servers, server)
        if each.address and Address.parse(each.address).is_loopback
    ]
    others = [each for each in (*configuration.servers, server) if each.address]
    if alone and len(alone) < len(others):
        names = ", ".join(f"{each.name} at {each.address}" for each in alone)
        raise ChangeRefused(
            f"{names} can be reached on its own machine only, and others are elsewhere: start it "
            "with --advertise-addr"
        )


def _leaver(view: View) -> Remove | None:
    for member in _ours(view.members):
        server = server_of(view.configuration, member)
        if (
            server is not None
            and member.status is Status.LEFT
            # One that only stops says goodbye to gossip too, so that its name is free at once.
            and DRAINING_TAG not in member.tags
            and view.gone_seconds.get(server.uuid, 0.0) >= view.left_server_after_seconds
            and may_leave(view.configuration, view.healthy, server.uuid)
        ):
            return Remove(server.uuid, "it has left")
    return None


def _dead(view: View) -> Remove | None:
    for server in view.configuration.servers:
        gone = view.gone_seconds.get(server.uuid, 0.0)
        if gone >= view.dead_server_after_seconds and may_remove_dead(
            view.configuration, view.healthy, server.uuid, view.voters_min
        ):
            return Remove(server.uuid, f"it has been gone for {gone:.0f} s")
    return None


def _newcomer(view: View) -> Add | None:
    for member in _ours(view.members):
        if (
            member.status is Status.ALIVE
            and member.tags.get("cluster", "") in {"", view.cluster_id}
            and member.tags.get("uuid")
            # One that leaves is out of the configuration before it is out of the gossip.
            and DRAINING_TAG not in member.tags
            and view.configuration.find(member.tags["uuid"]) is None
        ):
            return Add(member)
    return None


def impostors(members: Sequence[Member], configuration: Configuration) -> list[Member]:
    """Members of our role with the uuid of a server and another name."""
    return [
        member
        for member in _ours(members)
        if server_of(configuration, member) is None
        and configuration.find(member.tags.get("uuid", "")) is not None
    ]


def foreigners(members: Sequence[Member], cluster_id: str) -> list[Member]:
    """Members of our role that belong to another cluster: they share our gossip by mistake."""
    return [
        member
        for member in _ours(members)
        if member.status is Status.ALIVE and member.tags.get("cluster", "") not in {"", cluster_id}
    ]


def _ours(members: Sequence[Member]) -> list[Member]:
    return [member for member in members if member.tags.get("role") == ROLE]
