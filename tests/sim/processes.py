"""Processes of a simulated world: what they run, how they are killed, stopped and continued.

Which process code belongs to is a context variable, as the host is in `proglog.simulation.network`:
tasks, timers and callbacks inherit it. So all that a process has under way can be found and taken
away between two callbacks, which is what `kill -9` does, or held back, which is what SIGSTOP does.
"""

from __future__ import annotations

import asyncio
import contextlib
import heapq
from collections.abc import Awaitable, Callable, Coroutine
from contextvars import Context, ContextVar, copy_context
from typing import Any, TypeVar

from proglog.simulation.disk import PowerCut
from proglog.simulation.loop import Deadlock, SimLoop
from proglog.simulation.network import on_host

T = TypeVar("T")

_process: ContextVar[Process | None] = ContextVar("process", default=None)


class Gone(Exception):
    """The process ended before it answered."""


class Process:
    """One life of one program on one host."""

    def __init__(self, loop: ProcessLoop, host: str) -> None:
        self.host = host
        self.is_alive = True
        self.is_paused = False
        self.is_stopping = False
        self.failure: BaseException | None = None
        """Why it must be ended, by its own word."""
        self._loop = loop
        self._tasks: list[asyncio.Task[Any]] = []
        self._held: list[asyncio.Handle] = []
        self._calls: dict[asyncio.Future[Any], None] = {}
        with on_host(host):
            token = _process.set(self)
            self._context = copy_context()
            _process.reset(token)

    def spawn(self, coroutine: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """Runs a coroutine within the process."""
        return self._loop.create_task(coroutine, context=self._context.copy())

    async def call(self, serve: Callable[[], Awaitable[T]]) -> T:
        """The result of what runs within the process, for one outside of it. Raises what it raises,
        and Gone if the process ends before."""
        if not self.is_alive:
            raise Gone
        done: asyncio.Future[T] = self._loop.create_future()
        self._calls[done] = None
        self.spawn(_report(serve, done))
        try:
            return await done
        finally:
            self._calls.pop(done, None)

    def owns(self, task: asyncio.Task[Any]) -> None:
        self._tasks.append(task)
        if len(self._tasks) > 500:
            self._tasks = [task for task in self._tasks if not task.done()]

    def hold(self, handle: asyncio.Handle) -> None:
        self._held.append(handle)

    def pause(self) -> None:
        if not self.is_paused:
            self.is_paused = True
            self._loop.paused += 1

    def resume(self) -> None:
        """What was due meanwhile runs now, in its order."""
        if self.is_paused:
            self.is_paused = False
            self._loop.paused -= 1
            self._loop.run_soon(self._held)
            self._held = []

    def kill(self) -> None:
        """Nothing of it runs any more. Closing its coroutines here and now, rather than whenever
        the collector comes, keeps a run the same each time."""
        assert _process.get() is not self, "a process is killed from outside"
        self.is_alive = False
        self._held = []
        self.resume()
        for task in self._tasks:
            if not task.done():
                task._log_destroy_pending = False  # type: ignore[attr-defined]  # it ends here
                with contextlib.suppress(BaseException):
                    self._context.copy().run(task.get_coro().close)
        self._loop.forget(self)
        for done in self._calls:
            if not done.done():
                done.set_exception(Gone())
        self._calls = {}


async def _report(serve: Callable[[], Awaitable[T]], done: asyncio.Future[T]) -> None:
    try:
        result = await serve()
    except Exception as error:  # it is raised where it is awaited
        if not done.done():
            done.set_exception(error)
            done.exception()
    else:
        if not done.done():
            done.set_result(result)


class ProcessLoop(SimLoop):
    """A loop that knows whose each callback is.

    Attributes:
        after_turn: called after each turn of the loop.
        turns: how many there were.
    """

    def __init__(self, seed: int) -> None:
        super().__init__(seed)
        self.after_turn: Callable[[], None] = lambda: None
        self.turns = 0
        self.paused = 0
        self.set_task_factory(_make_task)  # type: ignore[arg-type]  # stubs want a protocol

    def run_soon(self, handles: list[asyncio.Handle]) -> None:
        self._ready.extend(handles)

    def forget(self, process: Process) -> None:
        """Drops all that a process has scheduled."""
        for handle in [*self._ready, *self._scheduled]:
            if handle._context.get(_process) is process:  # type: ignore[attr-defined]
                handle.cancel()

    def _run_once(self) -> None:
        self._prune()
        ready, scheduled = self._ready, self._scheduled
        if not ready:
            if not scheduled:
                raise Deadlock("every task waits for another one")
            self.advance()
        now = self.now
        while scheduled and scheduled[0]._when <= now:
            handle = heapq.heappop(scheduled)
            handle._scheduled = False
            ready.append(handle)
        for _ in range(len(ready)):
            self._run_handle(ready.popleft())
        self.turns += 1
        self.after_turn()

    def _run_handle(self, handle: asyncio.Handle) -> None:
        if handle._cancelled:
            return
        if self.paused:
            process = handle._context.get(_process)  # type: ignore[attr-defined]  # asyncio's own
            if process is not None and process.is_paused:
                process.hold(handle)
                return
        handle._run()

    def _prune(self) -> None:
        scheduled = self._scheduled
        if len(scheduled) > 200 and self._timer_cancelled_count * 2 > len(scheduled):  # type: ignore[has-type]
            self._scheduled = [timer for timer in scheduled if not timer._cancelled]
            heapq.heapify(self._scheduled)
            self._timer_cancelled_count = 0
        while self._scheduled and self._scheduled[0]._cancelled:
            handle = heapq.heappop(self._scheduled)
            handle._scheduled = False
            self._timer_cancelled_count -= 1

    def end(self) -> None:
        """Ends the world, with whatever is under way in it."""
        for task in asyncio.all_tasks(self):
            task._log_destroy_pending = False  # type: ignore[attr-defined]  # it ends here
            with contextlib.suppress(BaseException):
                task.get_coro().close()
        self._ready.clear()
        self._scheduled.clear()
        self.close()


def _make_task(
    loop: asyncio.AbstractEventLoop, coroutine: Coroutine[Any, Any, T], **options: Any
) -> asyncio.Task[T]:
    task = asyncio.Task(coroutine, loop=loop, **options)
    context: Context | None = options.get("context")
    process = context.get(_process) if context is not None else _process.get()
    if process is not None:
        process.owns(task)
    return task


def is_power_cut(error: BaseException | None) -> bool:
    """Whether a failure is only that the machine has no power, or that the process is gone."""
    while error is not None:
        if isinstance(error, PowerCut):
            return True
        error = error.__cause__ or error.__context__
    return False
