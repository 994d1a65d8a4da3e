"""The gateway: an aiohttp application and the connections that speak to it."""

from __future__ import annotations

import asyncio

from aiohttp import web

from proglog import limits
from proglog.auth.access import access_of
from proglog.auth.gate import Gate, OpenGate
from proglog.auth.principal import ANONYMOUS, Principal
from proglog.gateway.body import Bodies
from proglog.gateway.browsers import Browsers
from proglog.gateway.chapter1 import Chapter1
from proglog.gateway.console.feed import Feed
from proglog.gateway.console.pages import Pages
from proglog.gateway.guard import Connection, Guard, route_of
from proglog.gateway.health import Probes, metrics_handler, probe_handler
from proglog.gateway.lifetime import Lifetime
from proglog.gateway.v1 import V1
from proglog.observability.metrics import Metrics
from proglog.types import Logs


class Gateway:
    """HTTP of one node. `start` it, then hand `factory` to whoever listens.

    Args:
        logs: the logs to serve.
        metrics: exposed, and added to.
        browsers: the rules for pages of others.
        probes: what `/livez`, `/readyz` and `/startupz` ask.
        feed: what a console is told.
        gate: who may do what; all may all without one.
    """

    def __init__(
        self,
        logs: Logs,
        metrics: Metrics,
        *,
        browsers: Browsers,
        probes: Probes,
        feed: Feed,
        gate: Gate | None = None,
    ) -> None:
        self._lifetime = Lifetime()
        guard = Guard(self._lifetime, metrics, browsers, logs, gate or OpenGate())
        app = web.Application(middlewares=[guard.middleware])
        app.on_response_prepare.append(guard.begin)
        self._pages = Pages()
        app.add_routes(_routes(metrics, probes, self._lifetime, self._pages))
        app.add_routes(_console_routes(self._pages, feed, self._lifetime))
        for route in app.router.routes():
            access_of(route_of(route))
        self._runner = web.AppRunner(
            app, handler_cancellation=True, shutdown_timeout=limits.http_close_seconds_max
        )
        metrics.gauge(
            "http_connections", "Open HTTP connections.", lambda: len(self._connections())
        )
        metrics.gauge(
            "http_tails_waiting", "Tails that wait for records.", lambda: self._lifetime.waits
        )

    async def start(self) -> None:
        """Makes `factory` usable."""
        await self._pages.load()
        await self._runner.setup()

    def factory(self, principal: Principal = ANONYMOUS) -> asyncio.Protocol:
        """The protocol of one new connection, and who is at its other end."""
        assert self._runner.server is not None, "the gateway is started first"
        return Connection(
            principal,
            self._runner.server,
            loop=asyncio.get_running_loop(),
            keepalive_timeout=limits.http_idle_seconds_max,
        )

    async def drain(self, seconds: float) -> None:
        """Refuses new requests, ends tails, and waits for those under way, `seconds` at most."""
        await self._lifetime.drain(seconds)

    async def close(self) -> None:
        """Closes connections; what is still under way is cut off."""
        transports = [connection.transport for connection in self._connections()]
        await self._runner.cleanup()
        for transport in transports:
            # A client that does not read would keep its last bytes, and this connection, for ever.
            if transport is not None and transport.get_write_buffer_size():
                transport.abort()
        await asyncio.sleep(0)  # transports close in the next turn of the loop

    def _connections(self) -> list[web.RequestHandler]:
        server = self._runner.server
        return server.connections if server is not None else []


def _routes(
    metrics: Metrics, probes: Probes, lifetime: Lifetime, pages: Pages
) -> list[web.RouteDef]:
    bodies = Bodies()
    chapter1 = Chapter1(bodies, pages)
    v1 = V1(bodies, lifetime)
    return [
        web.post("/", chapter1.produce),
        web.get("/", chapter1.consume, allow_head=False),
        web.post("/v1/records", v1.produce),
        web.get("/v1/records", v1.page, allow_head=False),
        web.get("/v1/records/{offset}", v1.value, allow_head=False),
        web.get("/v1/tail", v1.tail, allow_head=False),
        web.get("/v1/log", v1.describe),
        web.get("/v1/openapi.json", v1.openapi),
        web.get("/livez", probe_handler(probes.live)),
        web.get("/readyz", probe_handler(probes.ready)),
        web.get("/startupz", probe_handler(probes.started)),
        web.get("/metrics", metrics_handler(metrics)),
    ]


def _console_routes(pages: Pages, feed: Feed, lifetime: Lifetime) -> list[web.RouteDef]:
    return [
        web.get("/console/{name}", pages.file, allow_head=False),
        web.get("/v1/status", feed.status, allow_head=False),
        web.get("/v1/watch", feed.watch(lifetime), allow_head=False),
    ]
