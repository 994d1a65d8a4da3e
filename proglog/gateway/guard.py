"""What stands before every handler: who may ask, and how errors are told."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from http import HTTPStatus
from typing import Any

import orjson
import structlog
from aiohttp import web
from aiohttp.web_server import Server

from proglog import limits
from proglog.auth.access import ACCESS, Scope
from proglog.auth.gate import Gate
from proglog.auth.principal import Principal
from proglog.errors import (
    Internal,
    InvalidRequest,
    NotLeader,
    ProglogError,
    clip,
    let_go,
)
from proglog.gateway.browsers import Browsers
from proglog.gateway.console.pages import is_wanted
from proglog.gateway.lifetime import Lifetime
from proglog.observability.metrics import Metrics
from proglog.ports import connections_max
from proglog.types import Log, Logs

_log = structlog.get_logger()

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

_BEGUN = web.RequestKey("begun", bool)
LOG = web.RequestKey("log", Log)
"""The log that a request is about, for one who may do with it what the route says."""
_CONSOLE = "GET /console/{name}"


class Permission:
    """Of a request that is about no log."""

    def __init__(self, ask: Callable[[], Awaitable[None]]) -> None:
        self.check = ask
        """Raises PermissionDenied; also later, where the policy has changed."""


PERMISSION = web.RequestKey("permission", Permission)

_PROBES = {"/livez", "/readyz", "/startupz"}
ANSWERED_WHILE_DRAINING = {"/livez", "/startupz", "/metrics"}


class Guard:
    """Checks and translates around every handler, by its `middleware`."""

    def __init__(
        self,
        lifetime: Lifetime,
        metrics: Metrics,
        browsers: Browsers,
        logs: Logs,
        gate: Gate,
    ) -> None:
        self._logs = logs
        self._gate = gate
        self._lifetime = lifetime
        self._metrics = metrics
        self._browsers = browsers

    @web.middleware
    async def middleware(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        with self._lifetime:
            try:
                self._check(request)
                if (preflight := self._browsers.preflight(request)) is not None:
                    return preflight
                await self._decide(request)
                return await handler(request)
            except ConnectionError:
                # The client went away; aiohttp closes what is left.
                raise
            except ProglogError as error:
                response = self._refuse(request, error)
                let_go(error)
            except web.HTTPException as error:
                response = _of_http(error)
            except Exception as error:  # noqa: BLE001  # told to the log, and as 500
                response = self._fault(request, error)
        if _BEGUN in request:
            # An answer is half sent: cut off it is an error to the client, where a second head in
            # the midst of it would be data.
            raise ConnectionError("an answer is under way")
        return response

    async def begin(self, request: web.Request, response: web.StreamResponse) -> None:
        """Remembers that an answer is under way (aiohttp's `on_response_prepare`)."""
        request[_BEGUN] = True
        self._browsers.tell(request, response)

    def _check(self, request: web.Request) -> None:
        # A kubelet asks by an address of its own, and is told next to nothing.
        if request.path not in _PROBES:
            is_page = request.path == "/" and is_wanted(request)
            self._browsers.check(request, is_page=is_page)
        if request.path not in ANSWERED_WHILE_DRAINING:
            self._lifetime.check()

    async def _decide(self, request: web.Request) -> None:
        """Whether the caller may. Raises PermissionDenied, UnknownLog."""
        route = request.match_info.route
        if route.resource is None:
            return  # there is nothing; aiohttp says so
        name = route_of(route)
        if name == "GET /" and is_wanted(request):
            name = _CONSOLE
        access = ACCESS[name]
        protocol = request.protocol
        assert isinstance(protocol, Connection), "every connection knows who is at its other end"
        if access.scope is not Scope.LOG:
            ask = partial(self._gate.check, protocol.principal, name, access)
            request[PERMISSION] = Permission(ask)
            await ask()
            return
        logs = request.query.getall("log", [""])
        if len(logs) > 1:
            raise InvalidRequest("log is given more than once")
        request[LOG] = await self._gate.open(protocol.principal, name, access, logs[0], self._logs)

    def _refuse(self, request: web.Request, error: ProglogError) -> web.Response:
        self._metrics.refused(error.reason)
        if error.http_status == Internal.http_status:
            _log.error("request failed", method=request.method, path=request.path, error=str(error))
        response = error_response(error.http_status, error.reason, str(error), error.facts)
        if isinstance(error, NotLeader) and error.facts.get("leader_addr"):
            leader = error.facts["leader_addr"]
            response.headers["Location"] = f"{request.scheme}://{leader}{request.rel_url}"
        if self._lifetime.draining:
            response.force_close()
        return response

    def _fault(self, request: web.Request, error: Exception) -> web.Response:
        """An error nobody foresaw. The client learns no more than that; the log has it once."""
        self._metrics.refused(Internal.reason)
        context = {
            "message": f"{request.method} {request.path} failed",
            "exception": error,
        }
        if isinstance(error, AssertionError):
            # Broken invariants are for whoever supervises the node: it ends on them.
            asyncio.get_running_loop().call_exception_handler(context)
        else:
            _log.error("request failed", method=request.method, path=request.path, exc_info=error)
        return error_response(500, Internal.reason, "the server failed; its log says more", {})


def route_of(route: web.AbstractRoute) -> str:
    """As the table of access has it."""
    assert route.resource is not None, "a route of a path"
    method = "GET" if route.method == "HEAD" else route.method
    return f"{method} {route.resource.canonical}"


def error_response(
    status: int, code: str, message: str, details: Mapping[str, str]
) -> web.Response:
    """An error as JSON."""
    return json_response(error_content(code, message, details), status)


def error_content(code: str, message: str, details: Mapping[str, str]) -> dict[str, object]:
    """An error as an object of JSON, within its bounds whoever's text it repeats."""
    return {
        "code": code,
        "message": clip(message, limits.error_text_bytes_max),
        "details": {
            name: clip(value, limits.error_fact_bytes_max) for name, value in details.items()
        },
    }


def json_response(content: object, status: int = 200) -> web.Response:
    """A small JSON document, on a line of its own."""
    return web.Response(
        status=status, body=orjson.dumps(content) + b"\n", content_type="application/json"
    )


def _of_http(error: web.HTTPException) -> web.Response:
    """What aiohttp itself refuses: unknown paths and methods."""
    status = HTTPStatus(error.status)
    response = error_response(status, status.name, status.phrase, {})
    if isinstance(error, web.HTTPMethodNotAllowed):
        response.headers["Allow"] = error.headers["Allow"]
    return response


class Connection(web.RequestHandler):
    """One HTTP connection, whose answer to what is not HTTP is JSON too."""

    __slots__ = ("principal",)

    def __init__(self, principal: Principal, manager: Server, **options: Any) -> None:
        super().__init__(manager, **options)
        self.principal = principal

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        assert self._manager is not None
        if len(self._manager.connections) > connections_max():
            assert self.transport is not None
            self.transport.abort()

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        if request.writer.output_size > 0:
            raise ConnectionError("an answer is under way")
        if status >= 500:
            _log.error("request failed", path=request.path, exc_info=exc)
        name = HTTPStatus(status)
        first_line = (message or name.phrase).partition("\n")[0].rstrip(":")
        response = error_response(status, name.name, first_line, {})
        response.force_close()
        return response
