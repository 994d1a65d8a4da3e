"""`proglog cluster`: who the servers are, and changes of them."""

from __future__ import annotations

import json
from collections.abc import Sequence

from cyclopts import App

from proglog._generated.log.v1 import Member, ServerStatus
from proglog.cli import changes
from proglog.cli.connection import FIRST_ANSWER_SECONDS_MAX, run_on_loop
from proglog.cli.parameters import (
    PLAINTEXT,
    SERVER_DEFAULT,
    SERVERS_DEFAULT,
    Json,
    ListenAddress,
    Server,
    Servers,
    TlsFiles,
)
from proglog.client.admin import Cluster
from proglog.config import Address

_SERVER = ("id", "uuid", "rpc_addr", "is_leader", "suffrage", "match_index", "active")
_STATUS = ("term", "commit_index", "applied_index", "cluster_id", "node", "role", "notes")
_MEMBER = ("name", "address", "status", "protocol")

app = App(name="cluster")


@app.command
def status(
    *, server: Servers = SERVERS_DEFAULT, tls: TlsFiles = PLAINTEXT, json: Json = False
) -> int:
    """Print the servers of a cluster, as a node sees them.

    Parameters
    ----------
    server
        The node to ask, or some: the first that answers is asked.
    json
        Print one JSON document.
    """
    return run_on_loop(_status(server, tls, as_json=json))


@app.command
def add(
    rpc_addr: ListenAddress, *, server: Servers = SERVERS_DEFAULT, tls: TlsFiles = PLAINTEXT
) -> int:
    """Add a node to the cluster. It catches up first, then votes.

    Parameters
    ----------
    rpc_addr
        HOST:PORT of its RPC port, as the other nodes reach it.
    server
        Some nodes of the cluster.
    """
    return run_on_loop(changes.add(server, tls.tls, str(rpc_addr)))


@app.command
def promote(name: str, *, server: Servers = SERVERS_DEFAULT, tls: TlsFiles = PLAINTEXT) -> int:
    """Give a learner its vote once it has caught up: also where it is the second of two servers,
    which by itself gets none, as two voters write nothing without each other.

    Parameters
    ----------
    name
        Its name or uuid.
    server
        Some nodes of the cluster.
    """
    return run_on_loop(changes.promote(server, tls.tls, name))


@app.command
def remove(name: str, *, server: Servers = SERVERS_DEFAULT, tls: TlsFiles = PLAINTEXT) -> int:
    """Remove a node that is stopped: one that runs is added again (see `proglog leave`).

    Parameters
    ----------
    name
        Its name or uuid.
    server
        Some nodes of the cluster.
    """
    return run_on_loop(changes.remove(server, tls.tls, name))


@app.command
def transfer(
    name: str = "", /, *, server: Servers = SERVERS_DEFAULT, tls: TlsFiles = PLAINTEXT
) -> int:
    """Hand leadership over.

    Parameters
    ----------
    name
        Name or uuid of the next leader; the node that is most up to date unless given.
    server
        Some nodes of the cluster.
    """
    return run_on_loop(changes.transfer(server, tls.tls, name))


@app.command(name="fix-time")
def fix_time(*, server: Servers = SERVERS_DEFAULT, tls: TlsFiles = PLAINTEXT) -> int:
    """Correct log time that is ahead, which `cluster status` tells: it goes back to what the clocks
    of all voters show. Records keep the times that they have.

    Parameters
    ----------
    server
        Some nodes of the cluster.
    """
    return run_on_loop(changes.fix_time(server, tls.tls))


async def _status(servers: Sequence[Address], tls: TlsFiles, *, as_json: bool) -> int:
    async with Cluster(servers, way=tls.tls, timeout_seconds=FIRST_ANSWER_SECONDS_MAX) as cluster:
        found = await cluster.status()
        members = (await cluster.members()).members
    differing = differences(found.cluster_id, found.servers, members)
    if as_json:
        document = {
            "servers": [_fields(each, _SERVER) for each in found.servers],
            **_fields(found, _STATUS),
            "members": [_row(member) for member in members],
            "differences": differing,
        }
        print(json.dumps(document))
        return 0
    print(f"cluster {found.cluster_id or '(none yet)'}, term {found.term}, ", end="")
    print(f"committed {found.commit_index}, told by {found.node} ({found.role})")
    for each in sorted(found.servers, key=lambda server: server.id):
        role = "leader" if each.is_leader else each.suffrage
        match = "" if each.match_index is None else f"at {each.match_index}"
        silent = ", silent" if each.active is False else ""
        print(f"{each.id:<20} {each.rpc_addr:<24} {role:<8} {match}{silent}".rstrip())
    for line in [*found.notes, *differing]:
        print(f"! {line}")
    return 0


def differences(
    cluster_id: str, servers: Sequence[ServerStatus], members: Sequence[Member]
) -> list[str]:
    """Where Raft's configuration and what gossip tells are not the same."""
    ours = {
        tags["uuid"]: (member, tags) for member in members if (tags := _tags(member)).get("uuid")
    }
    lines = []
    for server in servers:
        if server.uuid not in ours:
            lines.append(f"{server.id} is a {server.suffrage}, but gossip does not know it")
            continue
        member, tags = ours.pop(server.uuid)
        if member.status != "alive":
            lines.append(f"{server.id} is a {server.suffrage}, but gossip says {member.status}")
        elif tags.get("rpc_addr") != server.rpc_addr:
            told = tags.get("rpc_addr", "")
            lines.append(f"{server.id} is configured at {server.rpc_addr}, but tells {told}")
    for member, tags in ours.values():
        if member.status != "alive" or tags.get("role") != "proglog":
            continue
        other = tags.get("cluster", "")
        if other not in {"", cluster_id}:
            lines.append(f"{member.name} is alive, but a server of another cluster: {other}")
        else:
            lines.append(f"{member.name} is alive, but no server of this cluster")
    return lines


def _tags(member: Member) -> dict[str, str]:
    return {tag.name: tag.value for tag in member.tags}


def _row(member: Member) -> dict[str, object]:
    return {**_fields(member, _MEMBER), "tags": _tags(member)}


def _fields(message: object, names: Sequence[str]) -> dict[str, object]:
    return {name: getattr(message, name) for name in names}


def members(
    *, server: Servers = SERVERS_DEFAULT, tls: TlsFiles = PLAINTEXT, json: Json = False
) -> int:
    """Print who is there, by the gossip of a node: name, address, status, tags.

    Parameters
    ----------
    server
        The node to ask, or some: the first that answers is asked.
    json
        Print a JSON object a line.
    """
    return run_on_loop(_members(server, tls, as_json=json))


def leave(*, server: Server = SERVER_DEFAULT, tls: TlsFiles = PLAINTEXT) -> int:
    """Make a node leave its cluster for good, and stop. Its data stays where it is.

    Parameters
    ----------
    server
        The node that is to leave.
    """
    return run_on_loop(changes.leave(server, tls.tls))


async def _members(servers: Sequence[Address], tls: TlsFiles, *, as_json: bool) -> int:
    async with Cluster(servers, way=tls.tls, timeout_seconds=FIRST_ANSWER_SECONDS_MAX) as cluster:
        found = (await cluster.members()).members
    for member in found:
        if as_json:
            print(json.dumps(_row(member)))
            continue
        shown = ",".join(f"{name}={value}" for name, value in _tags(member).items())
        print(f"{member.name:<20} {member.address:<24} {member.status:<8} {shown}".rstrip())
    return 0
