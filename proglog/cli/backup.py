"""`proglog backup` and `proglog restore`."""

from __future__ import annotations

import sys
from collections.abc import Coroutine, Sequence
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from proglog.backup.contents import Contents, Refused
from proglog.backup.place import Place
from proglog.backup.restore import restore as restore_from
from proglog.backup.restore import verify
from proglog.backup.take import Taking
from proglog.cli.connection import FIRST_ANSWER_SECONDS_MAX, run_on_loop
from proglog.cli.parameters import PLAINTEXT, SERVERS_DEFAULT, OptionalSize, Servers, TlsFiles
from proglog.cli.units import counted, format_bytes
from proglog.client.admin import Cluster
from proglog.client.network import NetworkBackend
from proglog.config import Address
from proglog.net.dialling import Way
from proglog.ports import Ports


def backup(
    dest: str,
    /,
    *,
    server: Servers = SERVERS_DEFAULT,
    tls: TlsFiles = PLAINTEXT,
    source: Annotated[str, Parameter(name="--from")] = "any",
    rate: OptionalSize = None,
    check: Annotated[bool, Parameter(negative=())] = False,
) -> int:
    """Copy what is new in a log to a directory or an object store, while it is in use.

    Exit status: 0 done; 1 failed; 5 there would be a hole, as retention was quicker; 6 what is
    there already is damaged.

    Parameters
    ----------
    dest
        A directory, or an address of fsspec, as s3://bucket/folder.
    server
        Some nodes of the cluster.
    source
        Which node to read from: any, leader, follower, or a node's name.
    rate
        Bytes a second, at most, as 50MiB.
    check
        Copy nothing: read every byte of what is there, and say whether it is whole.
    """
    if check:
        return _run(verify(Place(dest)), f"{dest} is whole")
    return _run(_take(dest, server, tls.tls, source, rate), f"backed up to {dest}")


async def _take(
    dest: str, servers: Sequence[Address], way: Way | None, source: str, rate: int | None
) -> Contents:
    at = await _node(servers, way, source)
    node = NetworkBackend(servers if at is None else [at], "", way)
    try:
        taking = Taking(Place(dest), node, at, now_ms=Ports().clock.now_ms, bytes_per_second=rate)
        return await taking.run()
    finally:
        await node.close()


async def _node(servers: Sequence[Address], way: Way | None, source: str) -> Address | None:
    """The address of the node that was chosen; None for any."""
    if source == "any":
        return None
    async with Cluster(servers, way=way, timeout_seconds=FIRST_ANSWER_SECONDS_MAX) as cluster:
        found = (await cluster.status()).servers
    for each in found:
        if source in {each.id, "leader" if each.is_leader else "follower"}:
            return Address.parse(each.rpc_addr)
    names = ", ".join(each.id for each in found)
    raise Refused(f"--from is {source}: expected any, leader, follower or one of {names}")


def restore(dest: str, /, *, data_dir: Path, node_name: str = "") -> int:
    """Make a data directory out of a backup: a new cluster of one, which others may join.

    All records are where they were, with their offsets, times and bytes. Exit status: 0 done; 1
    failed; 6 the backup is damaged, and nothing was made.

    Parameters
    ----------
    dest
        Where the backup is: a directory, or an address of fsspec.
    data_dir
        Directory to make.
    node_name
        Name of the node; the host's unless given.
    """
    made = restore_from(Place(dest), data_dir, node_name=node_name, ports=Ports())
    return _run(made, f"restored to {data_dir}; start it with: proglog serve --data-dir {data_dir}")


def _run(work: Coroutine[Any, Any, Contents], done: str) -> int:
    async def run() -> int:
        try:
            contents = await work
        except Refused as refused:
            print(f"proglog: {refused}", file=sys.stderr)
            return refused.status
        size = sum(part.size for part in contents.parts)
        records = counted(contents.next - contents.first, "record")
        upto = f"offsets {contents.first} to {contents.next - 1}"
        held = f"{records}, {upto}, {format_bytes(size)}" if size else "no record"
        print(f"{done}\n{held}")
        return 0

    return run_on_loop(run())
