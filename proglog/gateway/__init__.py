"""HTTP and JSON for what has no gRPC client: curl, browsers, probes and Prometheus."""

from __future__ import annotations

from proglog.gateway.health import Probes
from proglog.gateway.server import Gateway

__all__ = ["Gateway", "Probes"]
