"""The HTTP API, version 1: records in and out, and a tail to follow.

    POST /v1/records              the body, any bytes, becomes one record -> {"offset": N}
                                  ?expected_offset=N: there or not at all (409)
                                  X-Proglog-Key: BASE64
                                  X-Proglog-Header: NAME=BASE64      (as often as needed)
                                  X-Proglog-Timestamp: MILLISECONDS
    GET  /v1/records              ?offset=N|earliest|latest or ?last=N or ?time=2026-03-01T12:00:00Z
                                  &limit=N &format=base64|text
                                  -> a JSON list; from `earliest` on unless told
    GET  /v1/records/{offset}     -> the value, as it is, with the rest in headers; as JSON where
                                  that is accepted
    GET  /v1/tail                 ?offset= ?last= ?time= &format=  -> JSON lines, for ever; from
                                  `latest` on; events where text/event-stream is accepted
    GET  /v1/log                  -> what the log holds, and where
    GET  /v1/openapi.json         -> all this, for programs

A parameter that a call does not know is refused. `log=NAME` names another log than the default one.
A list may be shorter than `limit` and yet not end the log: go on behind its last record. A tail
that ends by the node's will says why in a last line: an object with `code`, `message` and `details`
in place of a record.
"""

from __future__ import annotations

from itertools import chain, islice

import orjson
from aiohttp import web

from proglog import limits
from proglog.batch import RecordHeaders, check_record_headers
from proglog.errors import InvalidRequest, ProglogError
from proglog.gateway import api, events, render
from proglog.gateway.body import Bodies
from proglog.gateway.guard import LOG, error_content, json_response
from proglog.gateway.lifetime import Lifetime
from proglog.gateway.parameters import (
    from_base64,
    number,
    query_number,
    query_start,
    wants_text,
)
from proglog.gateway.records import Cursor, append, read_one
from proglog.types import Log

_PAGE_RECORDS_DEFAULT = 100


class V1:
    """The handlers of `/v1`."""

    def __init__(self, bodies: Bodies, lifetime: Lifetime) -> None:
        self._bodies = bodies
        self._lifetime = lifetime

    async def produce(self, request: web.Request) -> web.StreamResponse:
        api.check_query(request, api.PRODUCE)
        expected = request.query.get("expected_offset")
        expected_offset = None if expected is None else number(expected, "expected_offset")
        key = request.headers.get("X-Proglog-Key")
        timestamp = request.headers.get("X-Proglog-Timestamp")
        headers = _record_headers(request)
        async with self._bodies.read(request) as value:
            offset = await append(
                request[LOG],
                value,
                None if key is None else from_base64(key, "X-Proglog-Key"),
                headers,
                None if timestamp is None else number(timestamp, "X-Proglog-Timestamp"),
                expected_offset,
            )
        return json_response({"offset": offset})

    async def value(self, request: web.Request) -> web.StreamResponse:
        api.check_query(request, api.VALUE)
        offset = number(request.match_info["offset"], "offset")
        record = await read_one(request[LOG], offset)
        if "application/json" in request.headers.get("Accept", ""):
            response = await _begin(request, "application/json")
            await render.write(response, render.lines([record], text=False))
            return response
        response = web.StreamResponse(
            headers={
                "Content-Type": "application/octet-stream",
                # A value is anything: no browser shall take it for a page of this node's.
                "X-Content-Type-Options": "nosniff",
                "X-Proglog-Timestamp": str(record.timestamp),
            }
        )
        if record.key is not None:
            response.headers["X-Proglog-Key"] = render.base64(record.key)
        for name, content in record.headers:
            response.headers.add("X-Proglog-Header", f"{name}={render.base64(content)}")
        response.content_length = len(record.value)
        await response.prepare(request)
        starts = range(0, len(record.value), render.PIECE_BYTES)
        await render.write(
            response, (record.value[start : start + render.PIECE_BYTES] for start in starts)
        )
        return response

    async def page(self, request: web.Request) -> web.StreamResponse:
        api.check_query(request, api.PAGE)
        replica = request[LOG]
        text = wants_text(request)
        left = query_number(request, "limit", _PAGE_RECORDS_DEFAULT)
        left = min(left, limits.http_page_records_max)
        start = await query_start(request, replica, "earliest")
        cursor = Cursor(replica, start)
        batches = await cursor.step()
        response = await _begin(request, "application/json")
        await response.write(b"[")
        first = True
        while batches and left > 0:
            records = islice(chain.from_iterable(batches), left)
            await render.write(response, render.list_items(records, text=text, first=first))
            first = False
            left -= sum(map(len, batches))
            if cursor.bytes_read >= limits.http_page_bytes_max:
                break
            try:
                batches = await cursor.step()
            except ProglogError:
                # What can be read is answered; who asks for the rest is told why it cannot.
                break
        await response.write(b"]\n")
        return response

    async def tail(self, request: web.Request) -> web.StreamResponse:
        api.check_query(request, api.TAIL)
        replica = request[LOG]
        text = wants_text(request)
        start = await query_start(request, replica, "latest")
        if events.are_wanted(request):
            return await self._events(request, replica, start, text=text)
        cursor = Cursor(replica, start)
        batches = await cursor.step()
        response = await _begin(request, "application/x-ndjson")
        try:
            while True:
                records = chain.from_iterable(batches)
                await render.write(response, render.lines(records, text=text))
                self._lifetime.check()
                if not batches:
                    await self._lifetime.wait(replica.wait_past(cursor.offset))
                batches = await cursor.step()
        except ProglogError as error:
            await response.write(_last_line(error))
        return response

    async def _events(
        self, request: web.Request, replica: Log, start: int, *, text: bool
    ) -> web.StreamResponse:
        resumed = events.resumed(request)
        offset = start if resumed is None else resumed
        if resumed is None:
            await Cursor(replica, offset).step()  # What is out of range is told by a status.
        response = web.StreamResponse(
            headers={"Content-Type": events.CONTENT_TYPE, "Cache-Control": "no-store"}
        )
        await response.prepare(request)
        try:
            await events.send(response, replica, offset, self._lifetime, text=text)
        except ProglogError as error:
            await events.end(response, error)
        return response

    async def openapi(self, request: web.Request) -> web.StreamResponse:
        del request
        return json_response(api.openapi())

    async def describe(self, request: web.Request) -> web.StreamResponse:
        api.check_query(request, api.DESCRIBE)
        return json_response(request[LOG].describe())


def _record_headers(request: web.Request) -> RecordHeaders:
    pairs = []
    for text in request.headers.getall("X-Proglog-Header", ()):
        name, separator, value = text.partition("=")
        if not separator:
            raise InvalidRequest("X-Proglog-Header must be NAME=BASE64")
        pairs.append((name, from_base64(value, "X-Proglog-Header")))
    return check_record_headers(pairs)


async def _begin(request: web.Request, content_type: str) -> web.StreamResponse:
    response = web.StreamResponse(headers={"Content-Type": content_type})
    await response.prepare(request)
    return response


def _last_line(error: ProglogError) -> bytes:
    return orjson.dumps(error_content(error.reason, str(error), error.facts)) + b"\n"
