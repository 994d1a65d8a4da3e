"""Probes for orchestrators and metrics for Prometheus."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

from aiohttp import web
from prometheus_client.exposition import choose_encoder

from proglog.errors import Unavailable
from proglog.gateway.guard import Handler, json_response
from proglog.observability.metrics import Metrics

Probe = Callable[[], str]
"""Why not, in a few words; empty when all is well."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Probes:
    """What an orchestrator asks of a node."""

    live: Probe
    """Should it be left alone, rather than killed and started anew?"""
    ready: Probe
    """Should it get requests?"""
    started: Probe
    """Is it through with its start, recovery included?"""


def probe_handler(probe: Probe) -> Handler:
    """Answers 200, or 503 and the reason."""

    async def handle(_: web.Request) -> web.StreamResponse:
        if why_not := probe():
            raise Unavailable(why_not)
        return json_response({"status": "ok"})

    return handle


def metrics_handler(metrics: Metrics) -> Handler:
    """Answers a scrape in the format that it accepts."""

    async def handle(request: web.Request) -> web.StreamResponse:
        encode, content_type = choose_encoder(request.headers.get("Accept", ""))
        # Some samples come out of /proc, and the whole takes a millisecond: not on the loop.
        text = await asyncio.to_thread(encode, metrics.registry)
        return web.Response(body=text, headers={"Content-Type": content_type})

    return handle
