"""`proglog consume`: prints records."""

from __future__ import annotations

import sys
from binascii import b2a_base64
from collections.abc import Callable, Sequence
from contextlib import aclosing
from datetime import UTC, datetime
from typing import Annotated, Literal, TypeAlias

import orjson
from cyclopts import Parameter

from proglog.batch import Record, RecordBatch
from proglog.cli.connection import connected, run_on_loop
from proglog.cli.parameters import (
    PLAINTEXT,
    SERVERS_DEFAULT,
    Json,
    Servers,
    Timestamp,
    TlsFiles,
)
from proglog.client.backend import OFFSETS_END
from proglog.client.consumer import Last
from proglog.config import Address
from proglog.errors import ConfigurationError

Offset: TypeAlias = int | Literal["earliest", "latest"]
Start: TypeAlias = Offset | datetime | Last
Render: TypeAlias = Callable[[RecordBatch], bytes]


def consume(
    *,
    server: Servers = SERVERS_DEFAULT,
    tls: TlsFiles = PLAINTEXT,
    offset: Offset | None = None,
    timestamp: Timestamp | None = None,
    tail: int | None = None,
    follow: Annotated[bool, Parameter(name=("--follow", "-f"), negative=())] = False,
    limit: Annotated[int | None, Parameter(name=("--limit", "-n"))] = None,
    json: Json = False,
    raw: Annotated[bool, Parameter(negative=())] = False,
) -> int:
    """Prints records.

    Parameters
    ----------
    server
        The node, or some nodes of the cluster.
    offset
        Where to begin: an offset, earliest or latest; earliest unless given.
    timestamp
        Begin with the first record appended at or after this time, as 2026-03-01T12:00:00Z.
    tail
        Begin with the last so many records.
    follow
        Wait for new records at the end, instead of ending there.
    limit
        End after this many records.
    json
        Print each record as a JSON object on a line; value, key and headers are base64.
    raw
        Print values back to back, without line ends.
    """
    if json and raw:
        raise ConfigurationError("--json and --raw exclude each other: leave one out")
    if limit is not None and limit < 0:
        raise ConfigurationError(f"--limit is {limit}: expected 0 or more")
    starts = {"--offset": offset, "--timestamp": timestamp, "--tail": tail}
    given = [name for name, value in starts.items() if value is not None]
    if len(given) > 1:
        raise ConfigurationError(f"{' and '.join(given)} exclude each other: leave one out")
    if tail is not None and not 0 <= tail < OFFSETS_END:
        raise ConfigurationError(f"--tail is {tail}: expected 0 or more")
    if isinstance(offset, int) and not 0 <= offset < OFFSETS_END:
        raise ConfigurationError(f"--offset is {offset}: expected 0 to 2**64 - 1")
    render = _json if json else _raw if raw else _values
    if limit == 0:
        return 0
    start: Start = "earliest" if offset is None else offset
    if timestamp is not None:
        start = datetime.fromtimestamp(timestamp / 1000, UTC)
    if tail is not None:
        start = Last(tail)
    return run_on_loop(_consume(server, tls, start, render, follow=follow, limit=limit))


async def _consume(
    servers: Sequence[Address],
    tls: TlsFiles,
    start: Start,
    render: Render,
    *,
    follow: bool,
    limit: int | None,
) -> int:
    left = limit
    async with (
        connected(servers, tls.tls) as log,
        aclosing(log.consume_batches(start, follow=follow)) as batches,
    ):
        async for batch in batches:
            stop = None if left is None else batch.base_offset + left
            wanted = batch.between(0, stop)
            sys.stdout.buffer.write(render(wanted))
            sys.stdout.buffer.flush()
            if left is not None:
                left -= len(wanted)
                if left == 0:
                    break
    return 0


def _values(batch: RecordBatch) -> bytes:
    return b"\n".join([*batch.values, b""])


def _raw(batch: RecordBatch) -> bytes:
    return b"".join(batch.values)


def _json(batch: RecordBatch) -> bytes:
    return b"".join(orjson.dumps(_members(record)) + b"\n" for record in batch)


def _members(record: Record) -> dict[str, object]:
    return {
        "offset": record.offset,
        "timestamp": record.timestamp,
        "key": None if record.key is None else _base64(record.key),
        "headers": [[name, _base64(content)] for name, content in record.headers],
        "value": _base64(record.value),
    }


def _base64(data: bytes) -> str:
    return b2a_base64(data, newline=False).decode("ascii")
