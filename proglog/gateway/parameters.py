"""Numbers, offsets and bytes out of requests."""

from __future__ import annotations

import binascii
from datetime import datetime

from aiohttp import web

from proglog.errors import InvalidRequest, quoted
from proglog.types import Log


def number(text: str, name: str) -> int:
    """An unsigned 64-bit number. Raises InvalidRequest."""
    if text.isascii() and text.isdecimal() and len(text) <= 20 and int(text) < 2**64:
        return int(text)
    raise InvalidRequest(f"{name} must be a whole number from 0 on, not {quoted(text)}")


def query_number(request: web.Request, name: str, default: int) -> int:
    """The number in the query, or the default where it is absent. Raises InvalidRequest."""
    text = request.query.get(name)
    return default if text is None else number(text, name)


async def query_start(request: web.Request, replica: Log, default: str) -> int:
    """Where to begin: `offset=N`, `earliest` or `latest` (the next record), `last=N`, or `time=`.

    Raises InvalidRequest.
    """
    last, moment = request.query.get("last"), request.query.get("time")
    if last is not None:
        described = replica.describe()
        return max(described.next - number(last, "last"), described.earliest)
    if moment is not None:
        return await replica.seek(_milliseconds(moment))
    text = request.query.get("offset", default)
    if text == "earliest":
        return replica.describe().earliest
    if text == "latest":
        return replica.describe().next
    return number(text, "offset")


def _milliseconds(text: str) -> int:
    """A time with its zone. Raises InvalidRequest."""
    try:
        # A "+" in a query is a space.
        moment = datetime.fromisoformat(text.replace(" ", "+") if "T" in text else text)
    except ValueError:
        moment = None
    if moment is None or moment.utcoffset() is None or moment.timestamp() < 0:
        raise InvalidRequest(f"time is like 2026-03-01T12:00:00Z, with a zone, not {quoted(text)}")
    return round(moment.timestamp() * 1000)


def wants_text(request: web.Request) -> bool:
    """Whether `format=text` asks for values as text. Raises InvalidRequest."""
    name = request.query.get("format", "base64")
    if name not in {"base64", "text"}:
        raise InvalidRequest(f"format must be base64 or text, not {quoted(name)}")
    return name == "text"


def from_base64(text: str, name: str) -> bytes:
    """Bytes from standard base64; line ends in it are ignored. Raises InvalidRequest."""
    try:
        data = text.encode("ascii").translate(None, b"\r\n")
        return binascii.a2b_base64(data, strict_mode=True)
    except (binascii.Error, UnicodeEncodeError) as error:
        raise InvalidRequest(f"{name} is not base64: {error}") from None
