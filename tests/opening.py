"""Opening a log as its node does, without a node around it."""

from __future__ import annotations

from pathlib import Path

from proglog.config import LogConfig
from proglog.log.names import group_of
from proglog.ports import Ports
from proglog.replica.identity import open_node_directory
from proglog.replica.opening import Opened, open_log


def open_directory(
    folder: Path,
    *,
    config: LogConfig,
    ports: Ports,
    node_name: str,
    rpc_addr: str,
    bootstrap: bool,
) -> Opened:
    """The log in `folder`, which is in a node's directory. Close its `node` in the end."""
    node = open_node_directory(folder.parent.parent, node_name=node_name, ports=ports)
    try:
        return open_log(
            node,
            group_of(folder),
            config=config,
            ports=ports,
            rpc_addr=rpc_addr,
            bootstrap=bootstrap,
        )
    except BaseException:
        node.close()
        raise
