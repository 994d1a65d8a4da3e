"""`admin.sock` in the data directory: what only who may read the node's data may ask of it.

A connection brings one line of JSON, and gets one. The socket is its owner's alone (mode 0600), so
it needs no certificate; and its name is the node's, whatever address that has now.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
import sys
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

from proglog import limits
from proglog.errors import InvalidRequest, ProglogError

NAME = "admin.sock"
_KEPT: dict[str, Any] = {"cleanup_socket": False} if sys.version_info >= (3, 13) else {}
"""The loop leaves the file to us: what it cannot delete it would tell as an error."""

Handler = Callable[[Mapping[str, Any]], Awaitable[Mapping[str, Any]]]
"""Answers a request. Raises ProglogError."""


class AdminSocket:
    """Listens in a directory that this process has locked."""

    def __init__(self, data_dir: Path, handler: Handler) -> None:
        self._path = data_dir / NAME
        self._handler = handler
        self._directory: int | None = None
        self._server: asyncio.Server | None = None
        self._serving: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Raises OSError."""
        # Open as long as the server: the loop looks at the address again.
        self._directory = await asyncio.to_thread(_open_directory, self._path.parent)
        listener = await asyncio.to_thread(_listen, self._path, self._directory)
        self._server = await asyncio.start_unix_server(
            self._serve, sock=listener, limit=limits.admin_line_bytes_max, **_KEPT
        )

    async def close(self) -> None:
        """Ends the conversations, and what they wait for."""
        if self._server is not None:
            self._server.close()
            for task in self._serving:
                task.cancel()
            await asyncio.gather(*self._serving, return_exceptions=True)
            # Where the disk takes nothing any more it stays, and goes at the next start.
            with contextlib.suppress(OSError):
                await asyncio.to_thread(self._path.unlink, missing_ok=True)
        if self._directory is not None:
            await asyncio.to_thread(os.close, self._directory)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        if len(self._serving) >= limits.admin_connections_max:
            writer.close()
            return
        self._serving.add(task)
        try:
            answer = await self._answer(reader)
            writer.write(json.dumps(answer).encode() + b"\n")
            await writer.drain()
        except OSError:
            # Whoever asked is gone; what was begun for it goes on.
            return
        finally:
            self._serving.discard(task)
            writer.close()

    async def _answer(self, reader: asyncio.StreamReader) -> Mapping[str, Any]:
        try:
            async with asyncio.timeout(limits.sniff_seconds_max):
                line = await reader.readline()
            request = json.loads(line)
            if not isinstance(request, dict):
                raise InvalidRequest("a request is an object of JSON")
            return await self._handler(request)
        except TimeoutError:
            return {"error": "no request came"}
        except (ProglogError, ValueError) as error:
            return {"error": str(error)}


async def ask(data_dir: Path, request: Mapping[str, Any]) -> dict[str, Any]:
    """Asks the node of a directory on this machine. Raises OSError, and InvalidRequest with what it
    refused."""
    connecting = await asyncio.to_thread(_connect, data_dir / NAME)
    reader, writer = await asyncio.open_unix_connection(sock=connecting)
    try:
        writer.write(json.dumps(request).encode() + b"\n")
        line = await reader.readline()
    finally:
        writer.close()
    if not line:
        raise ConnectionResetError("the node ended before it answered")
    answer: dict[str, Any] = json.loads(line)
    if "error" in answer:
        raise InvalidRequest(answer["error"])
    return answer


def _listen(path: Path, directory: int) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX)
    try:
        listener.setblocking(False)
        # What the kernel gives the name that it makes, less the umask: never open for a moment.
        os.fchmod(listener.fileno(), 0o600)
        # One of the last life: this one has the lock.
        path.unlink(missing_ok=True)
        listener.bind(_address(directory))
        listener.listen(limits.admin_connections_max)
    except OSError:
        listener.close()
        raise
    return listener


def _connect(path: Path) -> socket.socket:
    directory = _open_directory(path.parent)
    connecting = socket.socket(socket.AF_UNIX)
    try:
        connecting.connect(_address(directory))
        connecting.setblocking(False)
    except OSError:
        connecting.close()
        raise
    finally:
        os.close(directory)
    return connecting


def _open_directory(path: Path) -> int:
    return os.open(path, os.O_RDONLY | os.O_DIRECTORY)


def _address(directory: int) -> str:
    """By way of the directory: the address of a socket has 107 bytes at most."""
    return f"/proc/self/fd/{directory}/{NAME}"
