"""JSON out of records, in pieces that keep the loop free.

Values and keys are base64, as in the original; with `text` they are UTF-8 with U+FFFD for what is
not: for people, not for programs.
"""

from __future__ import annotations

import asyncio
import codecs
from binascii import b2a_base64
from collections.abc import Iterable, Iterator

import orjson
from aiohttp import web

from proglog.batch import Record

PIECE_BYTES = 48 * 1024
"""Whole groups of three bytes, so that the base64 of the pieces joins to that of the whole."""
assert PIECE_BYTES % 3 == 0


def base64(data: bytes) -> str:
    return b2a_base64(data, newline=False).decode("ascii")


def record_json(record: Record, *, text: bool) -> Iterator[bytes]:
    """One record as an object, in one piece or, where its value is large, in several."""
    value = record.value
    if len(value) <= PIECE_BYTES:
        yield _object(record, value, text=text)
        return
    # The value is the last member, so it can grow inside the quotes of an empty one.
    yield _object(record, b"", text=text).removesuffix(b'"}')
    yield from text_pieces(value) if text else base64_pieces(value)
    yield b'"}'


def _object(record: Record, value: bytes, *, text: bool) -> bytes:
    encode = _text if text else base64
    return orjson.dumps(
        {
            "offset": record.offset,
            "timestamp": record.timestamp,
            "key": None if record.key is None else encode(record.key),
            "headers": [[name, encode(content)] for name, content in record.headers],
            "value": encode(value),
        }
    )


def _text(data: bytes) -> str:
    return data.decode("utf-8", "replace")


def base64_pieces(value: bytes) -> Iterator[bytes]:
    """The base64 of `value`."""
    for start in range(0, len(value), PIECE_BYTES):
        yield b2a_base64(value[start : start + PIECE_BYTES], newline=False)


def text_pieces(value: bytes) -> Iterator[bytes]:
    """`value` as the inside of a JSON string."""
    pieces = (value[start : start + PIECE_BYTES] for start in range(0, len(value), PIECE_BYTES))
    for text in codecs.iterdecode(pieces, "utf-8", "replace"):
        yield orjson.dumps(text)[1:-1]


def list_items(records: Iterable[Record], *, text: bool, first: bool) -> Iterator[bytes]:
    """Records as items of a JSON list, each after a comma but for the first of all."""
    for record in records:
        yield b"\n" if first else b",\n"
        first = False
        yield from record_json(record, text=text)


def lines(records: Iterable[Record], *, text: bool) -> Iterator[bytes]:
    """Records as newline-delimited JSON."""
    for record in records:
        yield from record_json(record, text=text)
        yield b"\n"


async def write(response: web.StreamResponse, pieces: Iterable[bytes]) -> None:
    """Sends the pieces, gathered to a fair size. The loop runs between them, and a client that does
    not read makes them wait."""
    for piece in _gathered(pieces):
        await response.write(piece)
        await asyncio.sleep(0)


def _gathered(pieces: Iterable[bytes]) -> Iterator[bytes]:
    gathered: list[bytes] = []
    size = 0
    for piece in pieces:
        gathered.append(piece)
        size += len(piece)
        if size >= PIECE_BYTES // 2:
            yield b"".join(gathered)
            gathered.clear()
            size = 0
    if gathered:
        yield b"".join(gathered)
