"""Request bodies, read within a bound on each and on all together."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from aiohttp import web

from proglog import limits
from proglog.errors import InvalidRequest, Overloaded, TooLarge


class Bodies:
    """Counts the bytes of all bodies in memory, so that many slow posts cannot exhaust it."""

    def __init__(self) -> None:
        self._held = 0

    @asynccontextmanager
    async def read(self, request: web.Request) -> AsyncIterator[bytes]:
        """The whole body, which counts until the block ends.

        Raises TooLarge, Overloaded, InvalidRequest.
        """
        parts: list[bytes] = []
        try:
            try:
                async with asyncio.timeout(limits.http_body_seconds_max):
                    await self._receive(request, parts)
            except TimeoutError:
                raise InvalidRequest(
                    f"the body did not arrive within {limits.http_body_seconds_max:g} s"
                ) from None
            except web.RequestPayloadError as error:
                raise InvalidRequest(f"the body is cut short or badly encoded: {error}") from None
            yield b"".join(parts)
        finally:
            self._held -= sum(map(len, parts))

    async def _receive(self, request: web.Request, parts: list[bytes]) -> None:
        size = request.content_length or 0
        _check_size(size)
        size = 0
        while part := await request.content.readany():
            parts.append(part)
            size += len(part)
            self._held += len(part)
            _check_size(size)
            if self._held > limits.http_bodies_bytes_max:
                raise Overloaded("too many request bodies are under way")


def _check_size(size: int) -> None:
    if size > limits.http_body_bytes_max:
        raise TooLarge(
            f"the body exceeds {limits.http_body_bytes_max} bytes",
            bytes=size,
            bytes_max=limits.http_body_bytes_max,
        )
