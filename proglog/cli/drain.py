"""`proglog drain`: before a node is stopped, what it does goes on elsewhere."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from proglog.agent.admin_socket import NAME, ask
from proglog.agent.drain import Order
from proglog.cli.connection import run_on_loop
from proglog.cli.parameters import Duration
from proglog.config import NodeConfig
from proglog.errors import ProglogError, reason_of
from proglog.k8s.statefulset import Doubt, is_scaled_away

_ORDER = Order()
_NODE = NodeConfig()


def drain(
    *,
    data_dir: Annotated[Path, Parameter(env_var="PROGLOG_DATA_DIR")] = _NODE.data_dir,
    deadline: Duration = _ORDER.deadline_seconds,
    leave: Literal["auto", "never", "always"] = "auto",
    wait_unready: Duration = _ORDER.wait_unready_seconds,
    undo: Annotated[bool, Parameter(negative=())] = False,
) -> int:
    """Make the node of a directory ready to be stopped, and wait until it is.

    It hands leadership over, sends streams elsewhere, tells others that it is not ready, and goes
    on answering until it is stopped. Exit status: 0 drained; 1 the node is not there, or failed;
    3 the others may have no quorum without it, so stopping costs a pause; 4 it was to leave its
    cluster and has not.

    Parameters
    ----------
    data_dir
        The data directory of the node, on this machine.
    deadline
        How long all of it may take.
    leave
        Leave the cluster for good as well. auto: only in a pod that its StatefulSet has been told
        to do without.
    wait_unready
        Keep serving so long at the end, while load balancers notice.
    undo
        Take part again instead.
    """
    return run_on_loop(_drain(data_dir, deadline, leave, wait_unready, undo=undo))


async def _drain(
    data_dir: Path, deadline: float, leave: str, wait_unready: float, *, undo: bool
) -> int:
    request: dict[str, object] = {"do": "undo"}
    if not undo:
        request = {
            "do": "drain",
            "leave": leave == "always" or (leave == "auto" and await _is_to_leave()),
            "deadline_seconds": float(deadline),
            "wait_unready_seconds": float(wait_unready),
        }
    try:
        answer = await ask(data_dir, request)
    except OSError as error:
        print(f"proglog drain: {data_dir / NAME}: {reason_of(error)}", file=sys.stderr)
        return 1
    except ProglogError as error:
        print(f"proglog drain: {error}", file=sys.stderr)
        return 1
    print(answer["said"])
    return int(answer["result"])


async def _is_to_leave() -> bool:
    if "KUBERNETES_SERVICE_HOST" not in os.environ:
        return False
    try:
        return await is_scaled_away(os.environ)
    except Doubt as doubt:
        # To stop is never wrong: a server that is gone for good can be removed later.
        print(f"proglog drain: stops, and does not leave: {doubt}", file=sys.stderr)
        return False
