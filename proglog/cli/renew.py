"""`proglog renew` and `proglog recover`: a stopped node becomes a new server."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from proglog import limits
from proglog.cli.connection import run_on_loop
from proglog.cli.units import counted
from proglog.config import Address
from proglog.errors import ConfigurationError
from proglog.raft.configuration import Server
from proglog.raft.quorum import majority
from proglog.replica import renewal
from proglog.replica.renewal import Survivor


def renew(directory: Path, /, *, cluster: str = "") -> int:
    """Makes a stopped node a new server of its cluster: for one that others refuse, or that was
    restored from a backup. It keeps its name and its records, and promises nothing that it
    promised before. Start it with the others in its --start-join-addrs: it copies what it lacks.

    Parameters
    ----------
    directory
        The node's data directory.
    cluster
        The id of another cluster to join: what `proglog recover` printed.
    """
    done = renewal.renew(directory, cluster_id=cluster)
    print(
        f"{done.name} is a new server now, {done.uuid}, of cluster {done.cluster_id or '(none)'}; "
        f"{counted(done.kept, 'batch')} of its log stay, to be compared with the cluster's. "
        "Start it again"
    )
    return 0


def recover(
    directory: Path, /, *, accept_loss: Annotated[bool, Parameter(negative=())] = False
) -> int:
    """For a cluster whose majority is lost for good. Without --accept-loss it only says what this
    stopped node has: ask every survivor, and choose the one with the greatest (term, batch), which
    has every committed batch that any of them has.

    Parameters
    ----------
    directory
        The data directory of a survivor.
    accept_loss
        Make this node the only voter of a new cluster, which goes on where its log ends. What only
        the lost nodes had is lost. The others rejoin by `proglog renew DIR --cluster ID`.
    """
    survivor = renewal.look_at_survivor(directory)
    if not accept_loss:
        print(*describe(survivor), sep="\n")
        return 0
    _refuse_while_others_answer(survivor)
    done = renewal.recover(directory)
    print(
        *describe(survivor),
        f"{done.name} is the only server of cluster {done.cluster_id} now, which goes on behind "
        f"batch {survivor.last_index}. Start it; for each other survivor: proglog renew DIR "
        f"--cluster {done.cluster_id}",
        sep="\n",
    )
    return 0


def describe(survivor: Survivor) -> list[str]:
    """What an operator should know before, a line each."""
    names = ", ".join(f"{server.name} at {server.address}" for server in survivor.servers)
    lines = [
        (
            f"{survivor.name} ({survivor.uuid}) of cluster {survivor.cluster_id or '(none)'}: "
            f"its log ends at (term {survivor.last_term}, batch {survivor.last_index}), "
            f"known to be committed up to {survivor.known_commit}"
        ),
        f"servers by its log: {names or 'none'}",
    ]
    lines += [f"{name} is known to have had batch {index}" for name, index in survivor.others]
    lost = survivor.lost_at_least
    lines.append(
        f"if this one goes on, at least {counted(lost, 'committed batch')} are lost"
        if lost
        else "if this one goes on, it is not known whether committed batches are lost: what the "
        "others had acknowledged last may be missing"
    )
    if survivor.doubts:
        lines.append(f"but it must not go on: {survivor.doubts}")
    return lines


def _refuse_while_others_answer(survivor: Survivor) -> None:
    """Two clusters would go on, under one name."""
    others = [server for server in survivor.servers if server.uuid != survivor.uuid]
    answering: list[str] = []

    async def ask() -> int:
        answering.extend(await _answering(others))
        return 0

    run_on_loop(ask())
    if len(answering) >= majority(len(survivor.servers)):
        raise ConfigurationError(
            f"{' and '.join(answering)} answer at their addresses: the cluster has its majority, "
            f"and {survivor.name} joins it when it is started, or after proglog renew. If they "
            "are not to go on, stop them first",
            setting="DIR",
        )


async def _answering(servers: Sequence[Server]) -> list[str]:
    found = await asyncio.gather(*(_answers(server) for server in servers))
    return [server.name for server, is_there in zip(servers, found, strict=True) if is_there]


async def _answers(server: Server) -> bool:
    """Whether anybody listens where a server was."""
    with contextlib.suppress(OSError, ConfigurationError, TimeoutError):
        host, port = Address.parse(server.address)
        async with asyncio.timeout(limits.identify_seconds_max):
            _, writer = await asyncio.open_connection(host, port)
        writer.close()
        return True
    return False
