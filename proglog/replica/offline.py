"""What the replicated state of a stopped node says, as far as it can be read."""

from __future__ import annotations

from proglog.log.names import snapshot_path
from proglog.log.plan import Plan
from proglog.replica.state import ReplicatedState


def why_not_given_up(plan: Plan) -> str | None:
    """Why records of this log must not be given up: others may count on this server having them."""
    if plan.snapshot is None:
        return None
    path = snapshot_path(plan.folder, plan.snapshot.tip.index)
    servers = ReplicatedState.decode(plan.snapshot.state, path).configuration.servers
    if len(servers) < 2:
        return None
    names = ", ".join(server.name for server in servers)
    return (
        f"It is a member of a cluster ({names}), where others count on what it acknowledged: "
        "remove it there with proglog cluster remove NAME, delete its data, and start it again, "
        "as a new server"
    )
