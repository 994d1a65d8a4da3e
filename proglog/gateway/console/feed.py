"""What a console is told: everything at first, then each second what is new, as server-sent events.

    event: hello      {"view": ..., "verdict": ..., "seconds": SERIES, "events": [...]}
    event: second     {"view": ..., "verdict": ..., "sample": {...}, "events": [...]}

Each is encoded once, for all who watch. Who does not take what it is sent is cut off, and begins
anew with a hello.
"""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Iterable
from typing import Any, Final

import orjson
from aiohttp import web

from proglog.errors import Overloaded, Unavailable
from proglog.gateway.guard import PERMISSION, json_response
from proglog.gateway.lifetime import Lifetime
from proglog.observability.history import History
from proglog.observability.view import Event, View, explain

WATCHERS_MAX: Final = 64
UNTAKEN_MAX: Final = 8
"""Seconds that wait for a slow watcher before it is cut off."""


class Feed:
    """Told by `Watch` (agent) once a second; asked by the routes of the gateway."""

    def __init__(self, history: History) -> None:
        self._history = history
        self._watchers: set[asyncio.Queue[bytes | None]] = set()
        self.view: View | None = None
        """The newest; none while the node starts."""
        self._told = 0

    def publish(self, view: View, sample: dict[str, float]) -> None:
        """A second has passed."""
        self.view = view
        told, self._told = self._told, self._history.events_told
        if not self._watchers:
            return
        content = _state(view) | {"sample": sample, "events": _events(self._history.events(told))}
        data = _event("second", content)
        for watcher in self._watchers:
            if watcher.full():
                # It hears the end in place of all that waits.
                while not watcher.empty():
                    watcher.get_nowait()
                watcher.put_nowait(None)
            else:
                watcher.put_nowait(data)

    def _seen(self) -> View:
        if self.view is None:
            raise Unavailable("the node is starting")
        return self.view

    async def status(self, _: web.Request) -> web.StreamResponse:
        """`GET /v1/status`: the view and the verdict."""
        return json_response(_state(self._seen()))

    def watch(self, lifetime: Lifetime) -> Any:
        """`GET /v1/watch`, as long as the node does not drain."""

        async def handle(request: web.Request) -> web.StreamResponse:
            view = self._seen()
            if len(self._watchers) >= WATCHERS_MAX:
                raise Overloaded(f"{WATCHERS_MAX} consoles watch this node already")
            queue: asyncio.Queue[bytes | None] = asyncio.Queue(UNTAKEN_MAX)
            self._watchers.add(queue)
            try:
                return await self._stream(request, view, queue, lifetime)
            finally:
                self._watchers.discard(queue)

        return handle

    async def _stream(
        self,
        request: web.Request,
        view: View,
        queue: asyncio.Queue[bytes | None],
        lifetime: Lifetime,
    ) -> web.StreamResponse:
        response = web.StreamResponse(
            headers={"Content-Type": "text/event-stream", "Cache-Control": "no-store"}
        )
        await response.prepare(request)
        past = {
            "seconds": self._history.samples(),
            "events": _events(self._history.events()),
        }
        await response.write(_event("hello", _state(view) | past))
        taken: list[bytes] = []

        async def take() -> None:
            if (data := await queue.get()) is not None:
                taken.append(data)

        while True:
            await lifetime.wait(take())
            if not taken:
                return response
            await request[PERMISSION].check()
            await response.write(taken.pop())


def _state(view: View) -> dict[str, Any]:
    return {
        "view": dataclasses.asdict(view) | {"answering": view.answering, "needed": view.needed},
        "verdict": dataclasses.asdict(explain(view)),
    }


def _events(numbered: Iterable[tuple[int, Event]]) -> list[dict[str, Any]]:
    return [{"id": number} | dataclasses.asdict(event) for number, event in numbered]


def _event(name: str, content: dict[str, Any]) -> bytes:
    return b"event: %s\ndata: %s\n\n" % (name.encode(), orjson.dumps(content))
