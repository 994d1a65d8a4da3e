"""What stands before every handler: who may ask, and how errors are told."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping
from http import HTTPStatus
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Any
from urllib.parse import urlsplit

import orjson
import structlog
from aiohttp import web
from aiohttp.web_server import Server

from proglog import limits
from proglog.auth.principal import Principal
from proglog.errors import Internal, NotLeader, PermissionDenied, ProglogError, clip, let_go, quoted
from proglog.gateway.lifetime import Lifetime
from proglog.observability.metrics import Metrics
from proglog.ports import connections_max

_log = structlog.get_logger()

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

_BEGUN = web.RequestKey("begun", bool)

ANSWERED_WHILE_DRAINING = {"/livez", "/startupz", "/metrics"}


class Guard:
    """Checks and translates around every handler, by its `middleware`."""

    def __init__(self, lifetime: Lifetime, metrics: Metrics, allowed_hosts: Iterable[str]) -> None:
        self._lifetime = lifetime
        self._metrics = metrics
        self._hosts = {_host_name(host) for host in allowed_hosts}

    @web.middleware
    async def middleware(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        with self._lifetime:
            try:
                self._check(request)
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

    @staticmethod
    async def begin(request: web.Request, _: web.StreamResponse) -> None:
        """Remembers that an answer is under way (aiohttp's `on_response_prepare`)."""
        request[_BEGUN] = True

    def _check(self, request: web.Request) -> None:
        host = request.headers.get("Host", "")
        # A certificate proves the name that was asked for. Without one, a name of the attacker's
        # may lead here (DNS rebinding), and the browser would let his page read the answer.
        if not request.secure and not self._is_ours(request, _host_name(host)):
            raise PermissionDenied(
                f"this node does not answer to the host {quoted(host)}; see --http-hosts",
                host=host,
            )
        origin = request.headers.get("Origin")
        if origin is not None and origin.partition("//")[2].lower() != host.lower():
            raise PermissionDenied("pages of another origin may not use this node", origin=origin)
        if request.path not in ANSWERED_WHILE_DRAINING:
            self._lifetime.check()

    def _is_ours(self, request: web.Request, host: str) -> bool:
        if host in self._hosts or host == "localhost" or host.endswith(".localhost"):
            return True
        address = _address(host)
        if address is None:
            return False
        # An address needs no DNS: if it is the one that was dialled, the page came from here.
        if request.transport is None:
            raise ConnectionError("the client went away")
        dialled = request.transport.get_extra_info("sockname")
        return address.is_loopback or address == _address(dialled[0])

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


def _host_name(host: str) -> str:
    """The name in a Host header, without its port."""
    try:
        return (urlsplit(f"//{host}").hostname or "").rstrip(".")
    except ValueError:
        return ""


def _address(host: str) -> IPv4Address | IPv6Address | None:
    try:
        address = ip_address(host)
    except ValueError:
        return None
    return getattr(address, "ipv4_mapped", None) or address


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
