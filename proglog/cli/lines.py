"""Lines of files, as bytes: only a newline byte parts them, and all other bytes are kept."""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
from binascii import a2b_base64
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import TypeVar

import orjson

from proglog import limits
from proglog.client.columns import NewRecord
from proglog.errors import InvalidRequest, TooLarge

Answer = TypeVar("Answer")

READ_BYTES = 256 * limits.KiB
LINE_BYTES_MAX = limits.batch_bytes_max - limits.KiB
"""What fits into a batch beside its lengths."""


async def read_lines(path: Path) -> AsyncIterator[list[bytes]]:
    """The lines of a file as they arrive, a list for each read.

    A last line without an end counts too. Raises OSError, and TooLarge for a line that no batch can
    hold.
    """
    flags = os.O_RDONLY | os.O_CLOEXEC
    descriptor = await _in_thread(lambda: os.open(path, flags))
    rest = b""
    number = 0
    try:
        while data := await _in_thread(lambda: os.read(descriptor, READ_BYTES)):
            *lines, rest = (rest + data).split(b"\n")
            number += len(lines)
            if len(rest) > LINE_BYTES_MAX:
                raise TooLarge(
                    f"{path}, line {number + 1}: longer than {LINE_BYTES_MAX} bytes",
                    bytes_max=LINE_BYTES_MAX,
                )
            if lines:
                yield lines
        if rest:
            yield [rest]
    finally:
        os.close(descriptor)


def read_record(line: bytes, number: int) -> NewRecord:
    """A record from JSON, as `proglog consume --json` prints it. Raises InvalidRequest."""
    try:
        members = orjson.loads(line)
        return NewRecord(
            _bytes(members["value"]),
            None if members.get("key") is None else _bytes(members["key"]),
            tuple((name, _bytes(content)) for name, content in members.get("headers") or ()),
            members.get("timestamp"),
        )
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise InvalidRequest(
            f"line {number} is no record in JSON ({error!r}): expected value, key and headers in"
            " base64, as `proglog consume --json` prints them"
        ) from None


def _bytes(text: str) -> bytes:
    return a2b_base64(text.encode("ascii"), strict_mode=True)


async def _in_thread(call: Callable[[], Answer]) -> Answer:
    """What `call` gives, in a thread of its own: the one kind that a silent terminal or pipe cannot
    make outlive the command. Raises OSError."""
    loop = asyncio.get_running_loop()
    answer: asyncio.Future[Answer] = loop.create_future()

    def settle(set_result: Callable[..., None], result: object) -> None:
        if not answer.cancelled():
            set_result(result)

    def work() -> None:
        result: tuple[Callable[..., None], object]
        try:
            result = answer.set_result, call()
        except OSError as error:
            result = answer.set_exception, error
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
            loop.call_soon_threadsafe(settle, *result)

    threading.Thread(target=work, name="proglog-input", daemon=True).start()
    return await answer
