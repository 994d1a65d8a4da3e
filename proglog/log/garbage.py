"""Deleting files that nobody needs any more, off the writer: no append waits for it."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterable
from functools import partial
from pathlib import Path

import structlog

from proglog import limits
from proglog.errors import reason_of
from proglog.log.changes import unlink_if_there
from proglog.ports import Files, Offload

_logger = structlog.get_logger("log")


class Garbage:
    """Belongs to a log. What is still here when the log is closed, the next start deletes.

    One file at a time, with a pause, on the reader's thread: reads go on between, and so do the
    file system's own transactions, for which the writer's syncs would have to wait.
    """

    def __init__(self, files: Files, reader: Offload) -> None:
        self._files = files
        self._reader = reader
        self._paths: deque[Path] = deque()
        self._task: asyncio.Task[None] | None = None

    def __len__(self) -> int:
        return len(self._paths)

    def add(self, paths: Iterable[Path]) -> None:
        """Files that the durable state of the log does not need."""
        self._paths.extend(paths)
        if self._paths and self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._delete_all())

    def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()

    async def _delete_all(self) -> None:
        while self._paths:
            path = self._paths.popleft()
            try:
                await self._reader.run(partial(unlink_if_there, self._files, path))
            except OSError as error:
                # Nothing relies on it: the next start tries again.
                _logger.warning("file not deleted", path=str(path), error=reason_of(error))
            await asyncio.sleep(limits.unlink_pause_seconds)
        self._task = None
