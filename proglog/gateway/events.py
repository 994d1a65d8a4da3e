"""A tail as server-sent events: what a browser's EventSource takes up again by itself.

The id of an event is the offset of its record, and `Last-Event-ID` goes on after it. The first
event is an id alone: it is not handed to the page, but remembered, so that who is cut off before
the first record does not begin anew at a later end. What retention deleted is told by an event
`gap`, once. An EventSource gives up for good at any status but 200, so what passes, as a node that
stops, is an end: the browser comes back by itself.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import orjson
from aiohttp import web

from proglog import limits
from proglog.batch import Record
from proglog.errors import InvalidRequest, OffsetOutOfRange, ProglogError, RecordLost, Unavailable
from proglog.gateway import render
from proglog.gateway.lifetime import Lifetime
from proglog.gateway.records import Cursor
from proglog.types import Log

CONTENT_TYPE = "text/event-stream"


def are_wanted(request: web.Request) -> bool:
    return CONTENT_TYPE in request.headers.get("Accept", "")


def resumed(request: web.Request) -> int | None:
    """The offset after `Last-Event-ID`; None where there is none. Raises InvalidRequest."""
    text = request.headers.get("Last-Event-ID")
    if text is None:
        return None
    if text == "-1":
        return 0
    if text.isascii() and text.isdecimal() and len(text) <= 20 and int(text) < 2**64 - 1:
        return int(text) + 1
    raise InvalidRequest("Last-Event-ID is the offset of a record, or -1")


async def send(
    response: web.StreamResponse,
    replica: Log,
    offset: int,
    lifetime: Lifetime,
    *,
    text: bool,
) -> None:
    """Sends events until the client is gone, or the node stops."""
    cursor = Cursor(replica, offset)
    await response.write(b"id: %d\n\n" % (offset - 1))
    while True:
        try:
            batches = await cursor.step()
            for batch in batches:
                await render.write(response, _events(iter(batch), text=text))
            lifetime.check()
            if not batches:
                await _wait(response, replica, cursor.offset, lifetime)
        except (OffsetOutOfRange, RecordLost) as error:
            lost_until = error.number("earliest") or error.number("next") or 0
            if lost_until <= cursor.offset:
                raise
            gap = {"lost_from": cursor.offset, "lost_until": lost_until}
            await response.write(
                b"event: gap\nid: %d\ndata: %s\n\n" % (lost_until - 1, orjson.dumps(gap))
            )
            cursor.offset = lost_until
        except Unavailable:
            return


async def _wait(
    response: web.StreamResponse, replica: Log, offset: int, lifetime: Lifetime
) -> None:
    """Waits for records. A comment now and then keeps proxies from ending it."""
    while True:
        try:
            async with asyncio.timeout(limits.http_event_comment_seconds):
                await lifetime.wait(replica.wait_past(offset))
                return
        except TimeoutError:
            await response.write(b":\n\n")


def _events(records: Iterator[Record], *, text: bool) -> Iterator[bytes]:
    for record in records:
        yield b"id: %d\ndata: " % record.offset
        yield from render.record_json(record, text=text)
        yield b"\n\n"


async def end(response: web.StreamResponse, error: ProglogError) -> None:
    """Tells what lasts; an EventSource comes back and is told it again, by a status."""
    told = {"code": error.reason, "message": str(error)}
    await response.write(b"event: error\ndata: %s\n\n" % orjson.dumps(told))
