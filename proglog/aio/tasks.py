"""The tasks of a replica: what one fails with is everybody's, and none outlives it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine


class Tasks:
    """See the module."""

    def __init__(self, failed: Callable[[BaseException], None]) -> None:
        self._failed = failed
        self._loop = asyncio.get_running_loop()
        # In the order of their making, unlike a set: so that a simulated run is always the same.
        self._tasks: dict[asyncio.Task[None], None] = {}
        self._ending = False

    def spawn(self, coroutine: Coroutine[None, None, None]) -> None:
        """Runs it until it is done, or `end`."""
        task = self._loop.create_task(coroutine)
        self._tasks[task] = None
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.pop(task, None)
        if not task.cancelled() and (error := task.exception()) is not None and not self._ending:
            self._failed(error)

    async def end(self) -> None:
        """Cancels them all, and those that they begin meanwhile; until the last has ended."""
        self._ending = True
        while self._tasks:
            for task in list(self._tasks):
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)
