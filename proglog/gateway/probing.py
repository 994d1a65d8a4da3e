"""The listener for probes and metrics alone (`health-addr`): what a kubelet and Prometheus ask.

It is there from the first moment of a start, while the log is recovered. It tells nothing of the
log and changes nothing, so it is plaintext whatever the other ports are: a kubelet has no
certificate. And it answers to any host: it cannot know by which name or address it is reached.
"""

from __future__ import annotations

import asyncio
import socket

from aiohttp import web

from proglog import limits
from proglog.gateway.guard import Handler, json_response
from proglog.gateway.health import Probe, Probes, metrics_handler
from proglog.observability.metrics import Metrics


class ProbeServer:
    """Serves on one listening socket, from `start` to `close`."""

    def __init__(self, probes: Probes, metrics: Metrics) -> None:
        app = web.Application()
        app.router.add_get("/livez", _handler(probes.live))
        app.router.add_get("/readyz", _handler(probes.ready))
        app.router.add_get("/startupz", _handler(probes.started))
        app.router.add_get("/metrics", metrics_handler(metrics))
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0)
        self._server: asyncio.Server | None = None

    async def start(self, listener: socket.socket) -> None:
        await self._runner.setup()
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(self._connection, sock=listener)

    def _connection(self) -> asyncio.Protocol:
        assert self._runner.server is not None, "it is set up first"
        return _Connection(
            self._runner.server,
            loop=asyncio.get_running_loop(),
            keepalive_timeout=limits.http_idle_seconds_max,
        )

    async def close(self) -> None:
        if self._server is not None:
            self._server.close()
        await self._runner.cleanup()


class _Connection(web.RequestHandler):
    """One of a few."""

    __slots__ = ()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        assert self._manager is not None
        assert self.transport is not None
        if len(self._manager.connections) > limits.probe_connections_max:
            self.transport.abort()


def _handler(probe: Probe) -> Handler:
    async def handle(_: web.Request) -> web.StreamResponse:
        why_not = probe()
        return json_response({"status": why_not or "ok"}, 503 if why_not else 200)

    return handle
