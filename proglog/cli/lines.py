"""Lines of files, as bytes: only a newline byte parts them, and all other bytes are kept."""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import TypeVar

from proglog import limits
from proglog.errors import TooLarge

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
