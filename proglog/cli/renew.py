"""`proglog renew` and `proglog recover`: a stopped node becomes a new server."""

from __future__ import annotations

from pathlib import Path

from proglog.cli.units import counted
from proglog.replica import renewal


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
