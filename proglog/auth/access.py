"""What each call and each route needs: the one table. What is not in it is not served.

The object of a log's calls is the log's name, that of all others `*`. Produce, consume and admin on
an object imply describe on it.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from typing import NamedTuple

PRODUCE, CONSUME, DESCRIBE, ADMIN = ACTIONS = ("produce", "consume", "describe", "admin")
EVERYTHING = "*"
"""The object of what is about no log."""


class Scope(enum.Enum):
    """What a decision is about."""

    LOG = "log"
    CLUSTER = "cluster"
    PEER = "peer"
    """Between nodes; no policy is asked."""
    OPEN = "open"
    """Whoever gets through the handshake."""


class Access(NamedTuple):
    """What a route needs."""

    action: str
    scope: Scope
    for_peers: bool = False
    """Whether another node may, by its certificate alone."""


_LOG, _CLUSTER, _PEER, _OPEN = Scope
_PRODUCE = Access(PRODUCE, _LOG)
_CONSUME = Access(CONSUME, _LOG)
_DESCRIBE = Access(DESCRIBE, _LOG)
_LOOK = Access(DESCRIBE, _CLUSTER)
_CHANGE = Access(ADMIN, _CLUSTER)
_ANYBODY = Access("", _OPEN)

ACCESS: Mapping[str, Access] = {
    "/log.v1.Log/Produce": _PRODUCE,
    "/log.v1.Log/ProduceStream": _PRODUCE,
    "/log.v1.Log/ProduceBatches": _PRODUCE,
    "/log.v1.Log/Consume": _CONSUME,
    "/log.v1.Log/ConsumeStream": _CONSUME,
    "/log.v1.Log/ConsumeBatches": _CONSUME,
    # Another node asks by it who this one is.
    "/log.v1.Log/Describe": Access(DESCRIBE, _LOG, for_peers=True),
    "/log.v1.Log/GetServers": _DESCRIBE,
    "/log.v1.Cluster/Status": _LOOK,
    "/log.v1.Cluster/Members": _LOOK,
    "/log.v1.Cluster/AddServer": _CHANGE,
    # A node that leaves asks to be removed, itself and no other.
    "/log.v1.Cluster/RemoveServer": Access(ADMIN, _CLUSTER, for_peers=True),
    "/log.v1.Cluster/TransferLeadership": _CHANGE,
    "/log.v1.Cluster/FixTime": _CHANGE,
    "/log.v1.Cluster/Leave": _CHANGE,
    "/log.v1.Cluster/Promise": Access("", _PEER, for_peers=True),
    "/grpc.health.v1.Health/Check": _ANYBODY,
    "/grpc.health.v1.Health/Watch": _ANYBODY,
    "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo": _LOOK,
    "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo": _LOOK,
    "POST /": _PRODUCE,
    "GET /": _CONSUME,
    "POST /v1/records": _PRODUCE,
    "GET /v1/records": _CONSUME,
    "GET /v1/records/{offset}": _CONSUME,
    "GET /v1/tail": _CONSUME,
    "GET /v1/log": _DESCRIBE,
    "GET /livez": _ANYBODY,
    "GET /readyz": _ANYBODY,
    "GET /startupz": _ANYBODY,
    "GET /metrics": _LOOK,
    "GET /v1/status": _LOOK,
    "GET /v1/watch": _LOOK,
    # The same for everybody.
    "GET /v1/openapi.json": _ANYBODY,
    "GET /console/{name}": _ANYBODY,
}


def access_of(route: str) -> Access:
    """Of a gRPC path, or of an HTTP method and the template of its path. To be asked when a server
    is made: one that serves a route without an entry does not start."""
    found = ACCESS.get(route)
    assert found is not None, f"{route} has no entry in proglog.auth.access"
    return found
