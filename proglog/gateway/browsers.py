"""What keeps pages of others out: the rules for Host, Origin and the paths of requests.

A browser sends what its user has along with any page's requests: the way to a node on this machine,
and under TLS the user's certificate. So these rules hold with TLS as without. Whoever is no browser
meets only the first of them: to ask by a name that is the node's.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from ipaddress import IPv4Address, IPv6Address, ip_address
from urllib.parse import urlsplit

from aiohttp import web

from proglog.errors import InvalidRequest, PermissionDenied, quoted

_ODD_PATH = re.compile(r"%2f|%5c|//|/\.|;", re.IGNORECASE)
"""Ways to write another path than the one that is decided on."""
_WITH_CREDENTIALS = "+credentials"
_HEADERS_ALLOWED = "Content-Type, X-Proglog-Key, X-Proglog-Header, X-Proglog-Timestamp"


class Browsers:
    """See the module."""

    def __init__(
        self,
        hosts: Iterable[str],
        origins: Iterable[str] = (),
        own_names: Callable[[], Iterable[str]] = tuple,
    ) -> None:
        """`hosts` are answered to, besides loopback, the dialled address and `own_names`: those of
        the certificate in force, say. `origins` are of pages that may use this node, each
        perhaps with +credentials behind."""
        self._hosts = {host_name(host) for host in hosts}
        self._origins = {
            origin.removesuffix(_WITH_CREDENTIALS): origin.endswith(_WITH_CREDENTIALS)
            for origin in origins
        }
        self._own_names = own_names

    def check(self, request: web.Request, *, is_page: bool = False) -> None:
        """Raises PermissionDenied, InvalidRequest. `is_page` is of what a browser may show, whoever
        leads there."""
        if _ODD_PATH.search(request.raw_path.partition("?")[0]):
            raise InvalidRequest("the path is not written as simply as it can be")
        host = request.headers.get("Host", "")
        # A name of the attacker's may lead here (DNS rebinding), and the browser would let his page
        # read the answer.
        if not self._is_ours(request, host_name(host)):
            raise PermissionDenied(
                f"this node does not answer to the host {quoted(host)}; see --http-hosts",
                host=host,
            )
        origin = request.headers.get("Origin")
        if origin is None:
            self._check_site(request, is_page=is_page)
        elif origin not in self._origins and not _is_own(request, origin, host):
            raise PermissionDenied("pages of another origin may not use this node", origin=origin)

    def _check_site(self, request: web.Request, *, is_page: bool) -> None:
        """A browser tells the origin only of some requests, but of each how near its page is."""
        site = request.headers.get("Sec-Fetch-Site", "none")
        navigates = request.headers.get("Sec-Fetch-Mode") == "navigate"
        if site in {"cross-site", "same-site"} and not (is_page and navigates):
            raise PermissionDenied("pages of another origin may not use this node", origin=site)

    def preflight(self, request: web.Request) -> web.Response | None:
        """The answer to a browser that asks whether a page may ask; None to all else."""
        asked = request.headers.get("Access-Control-Request-Method")
        if request.method != "OPTIONS" or asked is None:
            return None
        if request.headers.get("Origin", "") not in self._origins:
            raise PermissionDenied("pages of another origin may not use this node")
        return web.Response(
            status=204,
            headers={
                "Access-Control-Allow-Methods": "GET, POST",
                "Access-Control-Allow-Headers": _HEADERS_ALLOWED,
                "Access-Control-Max-Age": "600",
            },
        )

    def tell(self, request: web.Request, response: web.StreamResponse) -> None:
        """Lets the page of a listed origin read the answer."""
        origin = request.headers.get("Origin", "")
        if origin not in self._origins:
            return
        response.headers["Access-Control-Allow-Origin"] = origin
        response.headers["Vary"] = "Origin"
        if self._origins[origin]:
            response.headers["Access-Control-Allow-Credentials"] = "true"

    def _is_ours(self, request: web.Request, host: str) -> bool:
        if host in self._hosts or host == "localhost" or host.endswith(".localhost"):
            return True
        if any(_is_named(host, name) for name in self._own_names()):
            return True
        address = as_address(host)
        if address is None:
            return False
        # An address needs no DNS: if it is the one that was dialled, the page came from here.
        if request.transport is None:
            raise ConnectionError("the client went away")
        dialled = request.transport.get_extra_info("sockname")
        return address.is_loopback or address == as_address(dialled[0])


def _is_own(request: web.Request, origin: str, host: str) -> bool:
    return origin.lower() == f"{request.scheme}://{host}".lower()


def _is_named(host: str, name: str) -> bool:
    if name.startswith("*."):
        return host.partition(".")[2] == name[2:].lower()
    return host == name.lower()


def host_name(host: str) -> str:
    """The name in a Host header, without its port."""
    try:
        return (urlsplit(f"//{host}").hostname or "").rstrip(".")
    except ValueError:
        return ""


def as_address(host: str) -> IPv4Address | IPv6Address | None:
    """None where it is a name."""
    try:
        address = ip_address(host)
    except ValueError:
        return None
    return getattr(address, "ipv4_mapped", None) or address
