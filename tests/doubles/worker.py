"""`ports.Worker` on the running loop: the disk's thread as one more source of events."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable

from tests.doubles.disk import PowerCut


class SimWorker:
    """Runs its steps as callbacks of the loop that runs when it starts, simulated or real.

    A step takes no time, but each begins up to `delay_seconds_max` after its wake: a slow disk.
    That is kinder than a thread, which the loop overtakes in the middle of a step: `tests/log` and
    `tests/replica` run on `ports.ThreadWorker`.
    A step that meets a power cut is the last one, as its thread is gone.
    """

    def __init__(
        self,
        name: str,
        *,
        chance: random.Random | None = None,
        delay_seconds_max: float = 0.0,
    ) -> None:
        self._name = name
        self._chance = chance if chance is not None else random.Random(0)
        self.delay_seconds_max = delay_seconds_max
        self._loop: asyncio.AbstractEventLoop | None = None
        self._step: Callable[[], None] | None = None
        self._woken = False
        self._due: asyncio.Handle | None = None

    def __repr__(self) -> str:
        return f"<SimWorker {self._name}>"

    def start(self, step: Callable[[], None]) -> None:
        assert self._loop is None, "a worker starts once"
        self._loop = asyncio.get_running_loop()
        self._step = step
        self._schedule()

    def wake(self) -> None:
        self._woken = True
        self._schedule()

    def stop(self) -> None:
        while self._woken and self._step is not None:
            self._run()
        self.kill()

    def kill(self) -> None:
        """Ends it without running what was woken, as the end of the process does."""
        self._step = None
        if self._due is not None:
            self._due.cancel()

    def _schedule(self) -> None:
        if not self._woken or self._due is not None or self._step is None:
            return
        assert self._loop is not None, "a step is there, so it was started"
        delay = self._chance.uniform(0, self.delay_seconds_max)
        if delay > 0:
            self._due = self._loop.call_later(delay, self._run)
        else:
            self._due = self._loop.call_soon(self._run)

    def _run(self) -> None:
        assert self._step is not None, "a killed worker runs nothing"
        if self._due is not None:
            self._due.cancel()
        self._woken = False
        # Still `_due` while it runs: a wake from within does not run it within itself.
        try:
            self._step()
        except PowerCut:
            self._step = None
        self._due = None
        self._schedule()
