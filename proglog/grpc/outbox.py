"""What is written to one connection in one turn of the loop, sent together."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterable
from typing import Any

from proglog import limits
from proglog.batch import Buffer


class Outbox(asyncio.Transport):
    """A transport that gathers what is written in one turn.

    A unary answer is three frames of some ten bytes, and hundreds are written in one turn when a
    batch is committed: each by itself would cost a system call here and a wake-up at the peer. Once
    the connection closes, what is still written is dropped: uvloop's transport would raise.
    """

    def __init__(self, transport: asyncio.Transport) -> None:
        super().__init__()
        self._transport = transport
        self._parts: list[Buffer] = []
        self._size = 0

    def write(self, data: Buffer) -> None:
        self.writelines((data,))

    def writelines(self, parts: Iterable[Buffer]) -> None:
        if not self._parts:
            asyncio.get_running_loop().call_soon(self.flush)
        for part in parts:
            self._parts.append(part)
            self._size += len(part)
        if self._size >= limits.http2_gathered_bytes_max:
            self.flush()

    def flush(self) -> None:
        """Hands on what has gathered."""
        parts, self._parts, size, self._size = self._parts, [], self._size, 0
        if not parts or self._transport.is_closing():
            return
        # A peer that is gone: uvloop has closed the handle, says so a turn later, and raises now.
        with contextlib.suppress(RuntimeError):
            if size <= limits.http2_gathered_bytes_max:
                self._transport.write(b"".join(parts))
            else:
                self._transport.writelines(parts)

    def close(self) -> None:
        self.flush()
        self._transport.close()

    def abort(self) -> None:
        self._parts.clear()
        self._size = 0
        self._transport.abort()

    def is_closing(self) -> bool:
        return self._transport.is_closing()

    def pause_reading(self) -> None:
        with contextlib.suppress(RuntimeError):
            self._transport.pause_reading()

    def resume_reading(self) -> None:
        with contextlib.suppress(RuntimeError):
            self._transport.resume_reading()

    def get_write_buffer_size(self) -> int:
        return self._size + self._transport.get_write_buffer_size()

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return self._transport.get_extra_info(name, default)
