"""`proglog produce`: appends lines."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeAlias

import orjson
from cyclopts import Parameter

from proglog.batch import check_record_headers
from proglog.cli.connection import connected, run_on_loop
from proglog.cli.lines import read_lines, read_record
from proglog.cli.parameters import PLAINTEXT, SERVERS_DEFAULT, Json, Servers, TlsFiles
from proglog.cli.progress import Progress
from proglog.client.columns import NewRecord
from proglog.config import Address
from proglog.errors import ConfigurationError, ProglogError

if TYPE_CHECKING:
    from proglog.client.client import Log
    from proglog.client.producer import Producer

CHUNKS_INFLIGHT_MAX = 16
STDIN = Path("/dev/stdin")
Chunk: TypeAlias = tuple[list[bytes], Sequence[int] | ProglogError]
"""Some lines, and their offsets or why not all of them are in the log."""
Make: TypeAlias = Callable[[bytes, int], NewRecord]
"""Makes a record of a line and its number."""


def produce(
    *files: Path,
    server: Servers = SERVERS_DEFAULT,
    tls: TlsFiles = PLAINTEXT,
    key: str | None = None,
    header: Sequence[str] = (),
    from_json: Annotated[bool, Parameter(negative=())] = False,
    json: Json = False,
) -> int:
    """Appends each line as one record: without its newline byte, and with all other bytes.

    Parameters
    ----------
    files
        Files to read, in this order; stdin without any.
    server
        The node, or some nodes of the cluster.
    key
        The key of each record.
    header
        A header of each record, NAME=VALUE; as often as needed.
    from_json
        Each line is a record as `proglog consume --json` prints it. Its offset is not looked at.
    json
        Print a summary as JSON to stdout.
    """
    if from_json and (key is not None or header):
        raise ConfigurationError("--from-json has its own keys and headers: leave the others out")
    make = read_record if from_json else _with(key, header)
    for path in files:
        if path.is_dir() or not path.exists():
            what = "is a directory" if path.is_dir() else "does not exist"
            raise ConfigurationError(f'"{path}" {what}: expected files')
    files = files or (STDIN,)
    progress = Progress(_bytes_total(files))
    return run_on_loop(_produce(files, server, tls, make, progress, json=json))


def _with(key: str | None, headers: Sequence[str]) -> Make | None:
    """What makes a record of a line; None where its value alone will do. Raises
    ConfigurationError."""
    pairs = []
    for text in headers:
        name, separator, value = text.partition("=")
        if not separator:
            raise ConfigurationError(f"--header is {text!r}: expected NAME=VALUE")
        pairs.append((name, value.encode(errors="surrogateescape")))
    if key is None and not pairs:
        return None
    try:
        check_record_headers(pairs)
    except ProglogError as error:
        raise ConfigurationError(f"--header: {error}") from None
    encoded = None if key is None else key.encode(errors="surrogateescape")
    return lambda line, _number: NewRecord(line, encoded, tuple(pairs))


async def _produce(
    files: tuple[Path, ...],
    servers: Sequence[Address],
    tls: TlsFiles,
    make: Make | None,
    progress: Progress,
    *,
    json: bool,
) -> int:
    async with connected(servers, tls.tls) as log:
        try:
            first, last = await _append(log, files, make, progress)
        finally:
            progress.finish()
    if json:
        summary = {
            "records": progress.records,
            "bytes": progress.bytes,
            "seconds": round(progress.seconds, 6),
            "first_offset": first,
            "last_offset": last,
        }
        print(orjson.dumps(summary).decode())
    return 0


async def _append(
    log: Log, files: tuple[Path, ...], make: Make | None, progress: Progress
) -> tuple[int | None, int | None]:
    """Keeps several chunks under way, in order. Returns the first and the last offset, if any.

    What fails first ends it all, in its turn: by then `progress` has counted what is in the log
    before it, and there is nothing behind it.
    """
    first: int | None = None
    last: int | None = None
    underway: asyncio.Queue[asyncio.Task[Chunk] | Exception | None]
    underway = asyncio.Queue(CHUNKS_INFLIGHT_MAX)

    async def append(out: Producer, lines: list[bytes], number: int) -> Chunk:
        # Made as they are appended: nothing is appended behind a line that is no record.
        records = lines if make is None else map(make, lines, count(number))
        try:
            return lines, await out.produce_many(records)
        except ProglogError as error:
            return lines, error

    async def hand_over(out: Producer) -> None:
        try:
            for path in files:
                number = 1
                async for lines in read_lines(path):
                    await underway.put(tasks.create_task(append(out, lines, number)))
                    number += len(lines)
        except (OSError, ProglogError) as error:
            await underway.put(error)
        else:
            await underway.put(None)

    try:
        async with log.producer() as out, asyncio.TaskGroup() as tasks:
            tasks.create_task(hand_over(out))
            while (following := await underway.get()) is not None:
                if isinstance(following, Exception):
                    raise following
                offsets = _count(*await following, progress)
                first = offsets[0] if first is None else first
                last = offsets[-1]
    except ExceptionGroup as errors:
        raise errors.exceptions[0] from None
    return first, last


def _count(
    lines: list[bytes], outcome: Sequence[int] | ProglogError, progress: Progress
) -> Sequence[int]:
    """Counts the lines that are in the log; the offsets of all. Raises why not all are."""
    if isinstance(outcome, ProglogError):
        lines = lines[: outcome.number("appended") or 0]
    progress.add(len(lines), sum(map(len, lines)) + len(lines))
    if isinstance(outcome, ProglogError):
        raise outcome
    return outcome


def _bytes_total(files: tuple[Path, ...]) -> int | None:
    """Size of all files, or None where one is a stream."""
    if not all(path.is_file() for path in files):
        return None
    return sum(path.stat().st_size for path in files)
