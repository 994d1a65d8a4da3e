"""`POST /` and `GET /` of the book's first chapter, to the status and the field.

Any content type will do, since curl says `application/x-www-form-urlencoded` of what `-d` sends.
Member names match whatever their case and null is zero, as in Go's decoder.
"""

from __future__ import annotations

from itertools import chain
from typing import Any

import orjson
from aiohttp import web

from proglog.errors import InvalidRequest
from proglog.gateway import render
from proglog.gateway.body import Bodies
from proglog.gateway.console.pages import Pages, is_wanted
from proglog.gateway.guard import LOG, json_response
from proglog.gateway.parameters import from_base64, number
from proglog.gateway.records import append, read_one

_JSON_VALUES_MAX = 10_000


class Chapter1:
    """The two handlers of `/`."""

    def __init__(self, bodies: Bodies, pages: Pages) -> None:
        self._pages = pages
        self._bodies = bodies

    async def produce(self, request: web.Request) -> web.StreamResponse:
        """`{"record": {"value": BASE64}}` -> `{"offset": N}`; without a record, an empty one."""
        async with self._bodies.read(request) as body:
            record = _member(_object(body, "the body"), "record")
            value = _member(_object(record, "record"), "value")
            if value is not None and not isinstance(value, str):
                raise InvalidRequest("value must be base64 in a string")
            offset = await append(request[LOG], from_base64(value or "", "value"))
        return json_response({"offset": offset})

    async def consume(self, request: web.Request) -> web.StreamResponse:
        """`{"offset": N}` in the body, or for people `?offset=N` -> `{"record": {...}}`.

        A browser that asks for neither gets the console.
        """
        if is_wanted(request):
            return self._pages.index(request)
        async with self._bodies.read(request) as body:
            offset = _asked_offset(body, request.query.get("offset"))
        record = await read_one(request[LOG], offset)
        before, after = b'{"record":{"value":"', b'","offset":%d}}\n' % offset
        response = web.StreamResponse(headers={"Content-Type": "application/json"})
        base64_bytes = (len(record.value) + 2) // 3 * 4
        response.content_length = len(before) + base64_bytes + len(after)
        await response.prepare(request)
        pieces = chain([before], render.base64_pieces(record.value), [after])
        await render.write(response, pieces)
        return response


def _asked_offset(body: bytes, query: str | None) -> int:
    if not body and query is not None:
        return number(query, "offset")
    offset = _member(_object(body, "the body"), "offset")
    if offset is None:
        return 0
    if type(offset) is not int or offset < 0:
        raise InvalidRequest("offset must be a whole number from 0 on")
    return offset


def _object(content: Any, name: str) -> dict[str, Any]:
    if isinstance(content, bytes):
        # Millions of tiny values would hold up the loop for longer than the bytes of a large one.
        if sum(map(content.count, (b"[", b"{", b","))) > _JSON_VALUES_MAX:
            raise InvalidRequest(f"{name} holds more than {_JSON_VALUES_MAX} values")
        try:
            content = orjson.loads(content)
        except orjson.JSONDecodeError as error:
            raise InvalidRequest(f"{name} is not JSON: {error}") from None
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise InvalidRequest(f"{name} must be a JSON object")
    return content


def _member(content: dict[str, Any], name: str) -> Any:
    return next((value for key, value in content.items() if key.lower() == name), None)
