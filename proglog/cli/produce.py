"""`proglog produce`: appends lines."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import orjson

from proglog.cli.connection import connected, run_on_loop
from proglog.cli.lines import read_lines
from proglog.cli.parameters import SERVERS_DEFAULT, Json, Servers
from proglog.cli.progress import Progress
from proglog.config import Address
from proglog.errors import ConfigurationError, ProglogError

if TYPE_CHECKING:
    from proglog.client.client import Log
    from proglog.client.producer import Producer

CHUNKS_INFLIGHT_MAX = 16
STDIN = Path("/dev/stdin")
Chunk: TypeAlias = tuple[list[bytes], Sequence[int] | ProglogError]
"""Some lines, and their offsets or why not all of them are in the log."""


def produce(*files: Path, server: Servers = SERVERS_DEFAULT, json: Json = False) -> int:
    """Appends each line as one record: without its newline byte, and with all other bytes.

    Parameters
    ----------
    files
        Files to read, in this order; stdin without any.
    server
        The node, or some nodes of the cluster.
    json
        Print a summary as JSON to stdout.
    """
    for path in files:
        if path.is_dir() or not path.exists():
            what = "is a directory" if path.is_dir() else "does not exist"
            raise ConfigurationError(f'"{path}" {what}: expected files')
    files = files or (STDIN,)
    progress = Progress(_bytes_total(files))
    return run_on_loop(_produce(files, server, progress, json=json))


async def _produce(
    files: tuple[Path, ...], servers: Sequence[Address], progress: Progress, *, json: bool
) -> int:
    async with connected(servers) as log:
        try:
            first, last = await _append(log, files, progress)
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
    log: Log, files: tuple[Path, ...], progress: Progress
) -> tuple[int | None, int | None]:
    """Keeps several chunks under way, in order. Returns the first and the last offset, if any.

    What fails first ends it all, in its turn: by then `progress` has counted what is in the log
    before it, and there is nothing behind it.
    """
    first: int | None = None
    last: int | None = None
    underway: asyncio.Queue[asyncio.Task[Chunk] | Exception | None]
    underway = asyncio.Queue(CHUNKS_INFLIGHT_MAX)

    async def append(out: Producer, lines: list[bytes]) -> Chunk:
        try:
            return lines, await out.produce_many(lines)
        except ProglogError as error:
            return lines, error

    async def hand_over(out: Producer) -> None:
        try:
            for path in files:
                async for lines in read_lines(path):
                    await underway.put(tasks.create_task(append(out, lines)))
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
