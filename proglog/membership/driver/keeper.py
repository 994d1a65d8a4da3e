"""Small files of the membership, each replaced as a whole, off the loop."""

from __future__ import annotations

import asyncio
from pathlib import Path

from proglog.ports import Files, write_whole


class Keeper:
    """Keeps the newest content of each file on disk.

    Content that is replaced before it was written is never written. A failure is remembered, not
    raised: the next content is tried again.
    """

    def __init__(self, files: Files) -> None:
        self._files = files
        self._waiting: dict[Path, bytes] = {}
        self._writer: asyncio.Task[None] | None = None
        self.failures = 0
        self.last_failure = ""

    async def load(self, path: Path, size_max: int) -> bytes | None:
        """What the file holds, at most `size_max` bytes of it; None without a file.
        Raises OSError."""
        return await asyncio.to_thread(self._load, path, size_max)

    def save(self, path: Path, content: bytes) -> None:
        self._waiting[path] = content
        if self._writer is None:
            self._writer = asyncio.get_running_loop().create_task(self._write())

    async def written(self) -> None:
        """Returns when everything is written, or has failed."""
        if self._writer is not None:
            await self._writer

    def failed(self, path: Path, error: Exception) -> None:
        self.failures += 1
        self.last_failure = f"{path}: {error}"

    async def _write(self) -> None:
        while self._waiting:
            path = next(iter(self._waiting))
            content = self._waiting.pop(path)
            try:
                await asyncio.to_thread(write_whole, self._files, path, content)
            except OSError as error:
                self.failed(path, error)
        self._writer = None

    def _load(self, path: Path, size_max: int) -> bytes | None:
        if not self._files.exists(path):
            return None
        file = self._files.open(path)
        try:
            return file.pread(min(file.size(), size_max), 0)
        finally:
            file.close()
