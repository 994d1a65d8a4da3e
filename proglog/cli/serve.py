"""`proglog serve`: one node, until it is told to stop."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from proglog.cli.parameters import (
    SERVER_DEFAULT,
    Duration,
    ListenAddress,
    OptionalDuration,
    OptionalListenAddress,
    OptionalSize,
    OptionalToldAddress,
    Size,
    Words,
)
from proglog.config import Address, LogConfig, LogFormat, LogLevel, NodeConfig, SecurityConfig

if TYPE_CHECKING:
    from proglog.agent.node import Node
    from proglog.replica.replica import Replica

_NODE = NodeConfig()
_LOG = LogConfig()


def serve(
    *,
    config_file: Path | None = None,
    data_dir: Path = _NODE.data_dir,
    node_name: str = _NODE.node_name,
    cluster_name: str = _NODE.cluster_name,
    bind_addr: ListenAddress = _NODE.bind_addr,
    advertise_addr: OptionalToldAddress = _NODE.advertise_addr,
    rpc_port: int = _NODE.rpc_port,
    http_addr: OptionalListenAddress = _NODE.http_addr,
    health_addr: OptionalListenAddress = _NODE.health_addr,
    http_hosts: Words = _NODE.http_hosts,
    http_origins: Words = _NODE.http_origins,
    start_join_addrs: Words = _NODE.start_join_addrs,
    bootstrap: bool | None = _NODE.bootstrap,
    bootstrap_expect: int = _NODE.bootstrap_expect,
    gossip_keys: Words = _NODE.gossip_keys,
    dead_server_after: Duration = _NODE.dead_server_after_seconds,
    segment_bytes: Size = _LOG.segment_bytes,
    segment_batches: int = _LOG.segment_batches,
    retention_bytes: OptionalSize = _LOG.retention_bytes,
    retention_time: OptionalDuration = _LOG.retention_seconds,
    drain_timeout: Duration = _NODE.drain_seconds,
    security: Annotated[SecurityConfig, Parameter(name="*")] = _NODE.security,
    log_level: LogLevel = _NODE.log_level,
    log_format: LogFormat = _NODE.log_format,
    quiet: Annotated[bool, Parameter(negative=())] = False,
) -> int:
    """Starts a node and returns its exit status.

    Parameters
    ----------
    config_file
        YAML or TOML file of settings.
    data_dir
        Directory of everything that must survive; made where missing.
    node_name
        Name of the node in the cluster; the host's for a new one unless given.
    cluster_name
        Name of the cluster, the same on all its nodes. Gossip of another name is refused.
    bind_addr
        Where gossip listens. The RPC port listens on the same host; [::] is every address.
    advertise_addr
        Name or address by which other nodes and clients reach the RPC port; that of bind-addr
        unless given. Names are resolved at each dial.
    rpc_port
        Port of gRPC and HTTP; 0 takes a free one.
    http_addr
        Where HTTP is served as well, or none.
    health_addr
        Where probes and metrics alone are served, in plaintext and to any host, or none.
    http_hosts
        Host names besides loopback and those of the certificate that HTTP answers to.
    http_origins
        Pages that browsers let use this node, as https://app.example; +credentials behind one that
        may send those.
    start_join_addrs
        Gossip addresses of other nodes, tried until one answers.
    bootstrap
        Begin a cluster of one on the first start, or wait until a cluster adds this node. The
        former unless there is somebody to join or to expect.
    bootstrap_expect
        Form a cluster once so many new nodes see each other.
    gossip_keys
        Base64 keys of 16, 24 or 32 bytes that encrypt gossip, the one to use first.
    dead_server_after
        Remove a server that is gone this long, if the others can do without it.
    segment_bytes
        Size of one file of the log.
    segment_batches
        Batches in one file of the log.
    retention_bytes
        Delete the oldest segments while the log is larger, as 10GiB.
    retention_time
        Delete segments once all in them is older, as 7d.
    drain_timeout
        How long what is under way may take to end when the node stops.
    log_level
        Least severe messages to write to stderr.
    log_format
        Lines for people, or JSON; auto: the former on a terminal.
    quiet
        Print no welcome.
    """
    del config_file  # its settings have arrived as the other parameters
    config = NodeConfig(
        data_dir=data_dir,
        node_name=node_name,
        cluster_name=cluster_name,
        bind_addr=bind_addr,
        advertise_addr=advertise_addr,
        rpc_port=rpc_port,
        http_addr=http_addr,
        health_addr=health_addr,
        http_hosts=http_hosts,
        http_origins=http_origins,
        start_join_addrs=start_join_addrs,
        bootstrap=bootstrap,
        bootstrap_expect=bootstrap_expect,
        gossip_keys=gossip_keys,
        dead_server_after_seconds=dead_server_after,
        drain_seconds=drain_timeout,
        log=LogConfig(
            segment_bytes=segment_bytes,
            segment_batches=segment_batches,
            retention_bytes=retention_bytes,
            retention_seconds=retention_time,
        ),
        security=security,
        log_level=log_level,
        log_format=log_format,
    )
    from proglog.agent.daemon import run

    return run(config, _welcome(config, quiet=quiet))


def _welcome(config: NodeConfig, *, quiet: bool) -> Callable[[Node], None]:
    """What to print when the node serves: nothing where a machine reads along."""

    def print_welcome(node: Node) -> None:
        if quiet or config.log_format == "json":
            return
        waits_for = _waits_for(config, node.replica)
        lines = [
            f"Node {node.replica.identity.name} {waits_for or _serves(config, node.replica)}.",
            "",
            f"  gRPC and HTTP   {node.rpc_addr}",
            *([f"  HTTP            {node.http_addr}"] if node.http_addr else []),
            "",
            "Try in another terminal:",
            "",
            *(_to_try_waiting(node) if waits_for else _to_try(node)),
            "",
            "Ctrl-C stops the node.",
            "",
        ]
        print("\n".join(lines), flush=True)

    return print_welcome


def _serves(config: NodeConfig, replica: Replica) -> str:
    earliest, following = replica.earliest, replica.next_offset
    held = f"offsets {earliest} to {following - 1}" if following > earliest else "empty"
    return f"serves the log in {config.data_dir} ({held})"


def _waits_for(config: NodeConfig, replica: Replica) -> str:
    """What a node that has started needs before it serves; empty if nothing."""
    servers = replica.leadership.configuration.servers
    if not servers and config.bootstrap_expect:
        return f"waits until {config.bootstrap_expect} new nodes see each other (bootstrap-expect)"
    if not servers:
        return "waits until a cluster adds it"
    if len(servers) > 1 and not replica.is_ready:
        names = ", ".join(sorted(server.name for server in servers))
        return f"looks for the leader of its cluster: a majority of {names} must be up"
    return ""


def _to_try(node: Node) -> list[str]:
    http = f"http://{node.http_addr or node.rpc_addr}"
    return [
        f"  curl {http}/v1/records --data 'hello, world'",
        f"  curl '{http}/v1/records?format=text'",
        f"  {sys.argv[0]} consume --follow{_server_flag(node.rpc_addr)}",
        f"  {sys.argv[0]} produce README.md{_server_flag(node.rpc_addr)}",
    ]


def _to_try_waiting(node: Node) -> list[str]:
    return [
        f"  curl http://{node.http_addr or node.rpc_addr}/readyz",
        f"  {sys.argv[0]} members{_server_flag(node.rpc_addr)}",
    ]


def _server_flag(rpc_addr: Address) -> str:
    return "" if rpc_addr == SERVER_DEFAULT else f" --server {rpc_addr}"
