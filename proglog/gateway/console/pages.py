"""The console's files, as they are in the package: ES modules, without a build.

They run under a policy that allows nothing but these files and this node's answers. All text gets
into the page as text nodes (`dom.js`), and the browser is told to refuse anything else.
"""

from __future__ import annotations

import asyncio
import hashlib
from dataclasses import dataclass
from importlib.resources import files
from typing import Final

from aiohttp import web

_TYPES: Final = {
    "css": "text/css",
    "html": "text/html",
    "js": "text/javascript",
    "svg": "image/svg+xml",
}
_POLICY: Final = (
    "default-src 'none'",
    "script-src 'self'",
    "style-src 'self'",
    "img-src 'self'",
    "connect-src 'self'",
    "base-uri 'none'",
    "form-action 'none'",
    "frame-ancestors 'none'",
    "require-trusted-types-for 'script'",
    "trusted-types 'none'",
)
_HEADERS: Final = {
    "Content-Security-Policy": "; ".join(_POLICY),
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    # Asked for each time, and answered without a body while it is the same.
    "Cache-Control": "no-cache",
}


@dataclass(frozen=True, slots=True)
class _Page:
    body: bytes
    content_type: str
    tag: str


class Pages:
    """The files, read once by `load`."""

    def __init__(self) -> None:
        self._pages: dict[str, _Page] = {}

    async def load(self) -> None:
        """Reads them, on a thread."""
        self._pages = await asyncio.to_thread(_read)

    def index(self, request: web.Request) -> web.StreamResponse:
        """The page that shows everything."""
        return self._answer(request, "index.html")

    async def file(self, request: web.Request) -> web.StreamResponse:
        """What the page is made of."""
        return self._answer(request, request.match_info["name"])

    def _answer(self, request: web.Request, name: str) -> web.StreamResponse:
        page = self._pages.get(name)
        if page is None:
            raise web.HTTPNotFound
        # The same address is chapter 1's to who does not ask for a page.
        headers = {**_HEADERS, "ETag": f'"{page.tag}"', "Vary": "Accept"}
        if any(tag.value == page.tag for tag in request.if_none_match or ()):
            return web.Response(status=304, headers=headers)
        return web.Response(
            body=page.body, content_type=page.content_type, charset="utf-8", headers=headers
        )


def is_wanted(request: web.Request) -> bool:
    """Whether `GET /` comes from a browser that wants to show something: chapter 1's has a body or
    a query, and curl takes anything."""
    accepts = request.headers.get("Accept", "")
    return "text/html" in accepts and not request.can_read_body and not request.query_string


def _read() -> dict[str, _Page]:
    pages = {}
    for file in files("proglog.gateway.console").joinpath("static").iterdir():
        body = file.read_bytes()
        content_type = _TYPES[file.name.rpartition(".")[2]]
        pages[file.name] = _Page(body, content_type, hashlib.sha256(body).hexdigest()[:16])
    return pages
