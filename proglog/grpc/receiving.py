"""DATA of one stream, received but not read."""

from __future__ import annotations

import asyncio
import copy
from collections import deque
from collections.abc import Callable

from proglog import limits
from proglog.batch import Buffer
from proglog.wire import BadMessage


def _count_nothing(_size: int) -> None:
    """A client holds what it wants."""


class ReceiveBuffer:
    """DATA of one stream, received but not read. Bounded by the stream's window.

    `acknowledge` gives that many bytes back to the peer's window: once some have been read, or
    earlier where a large message waits for its rest, which the window could keep from coming.
    """

    def __init__(
        self, acknowledge: Callable[[int], None], hold: Callable[[int], None] = _count_nothing
    ) -> None:
        """`hold` is told how many bytes more are kept here, or less."""
        self._acknowledge = acknowledge
        self._hold = hold
        self._parts: deque[memoryview] = deque()
        self._small = bytearray()
        """What came last in small frames: a buffer for each byte would take a hundred bytes."""
        self._unacknowledged = 0
        self._ended = False
        self._error: Exception | None = None
        self._waiter: asyncio.Future[None] | None = None
        self.size = 0
        """Bytes that can be read without waiting."""

    def add(self, data: bytes, flow_controlled_size: int) -> None:
        if len(data) < flow_controlled_size:
            self._acknowledge(flow_controlled_size - len(data))  # padding
        if data:
            if len(data) < limits.http2_small_data_bytes:
                self._small += data
            else:
                self._seal()
                self._parts.append(memoryview(data))
            self.size += len(data)
            self._unacknowledged += len(data)
            self._wake()
            self._hold(len(data))

    def eof(self) -> None:
        self._ended = True
        self._wake()

    def fail(self, error: Exception) -> None:
        """What is read from here on raises `error`, whatever has been received."""
        self._error = error
        self._wake()

    async def read(self, size: int) -> Buffer:
        """Exactly `size` bytes; none at the end. Raises BadMessage if it ends in between."""
        while self._error is None and self.size < size and not self._ended:
            if size > limits.http2_acknowledge_bytes_min:
                self._acknowledge_all_but(0)
            await self._more()
        if self._error is not None:
            raise copy.copy(self._error)  # the same one goes to all calls of a node that stops
        if self.size >= size:
            return self.take(size)
        if self.size:
            raise BadMessage("the stream ended within a message")
        return b""

    def peek(self, size: int) -> bytes:
        """Up to `size` of the next bytes, which stay unread."""
        found = b""
        for part in (*self._parts, memoryview(self._small)):
            found += part[: size - len(found)]
            if len(found) == size:
                break
        return found

    def _seal(self) -> None:
        if self._small:
            self._parts.append(memoryview(self._small))
            self._small = bytearray()

    def take(self, size: int) -> Buffer:
        """Exactly `size` bytes, which must be there."""
        assert size <= self.size, "only what has been received can be taken"
        self._seal()
        parts: list[memoryview] = []
        missing = size
        while missing:
            part = self._parts.popleft()
            if len(part) > missing:
                self._parts.appendleft(part[missing:])
                part = part[:missing]
            parts.append(part)
            missing -= len(part)
        self.size -= size
        self._hold(-size)
        self._acknowledge_all_but(self.size)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def drop(self) -> None:
        """Nobody reads any more."""
        self._hold(-self.size)
        self.size = 0
        self._parts.clear()
        self._small.clear()

    def unacked_size(self) -> int:
        """Bytes to give back to the window when nobody reads any more."""
        size, self._unacknowledged = self._unacknowledged, 0
        return size

    def _acknowledge_all_but(self, kept: int) -> None:
        if self._unacknowledged - kept >= limits.http2_acknowledge_bytes_min:
            size, self._unacknowledged = self._unacknowledged - kept, kept
            self._acknowledge(size)

    async def _more(self) -> None:
        assert self._waiter is None, "one task reads a stream"
        self._waiter = asyncio.get_running_loop().create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)
