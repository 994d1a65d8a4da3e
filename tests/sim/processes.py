"""Processes of a simulated world: what they run, how they are killed, stopped and continued.

Which process code belongs to is a context variable, as the host is in `tests.doubles.network`:
tasks, timers and callbacks inherit it. So all that a process has under way can be found and taken
away between two callbacks, which is what `kill -9` does, or held back, which is what SIGSTOP does.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Coroutine
from contextvars import Context, ContextVar, copy_context
from typing import Any, TypeVar, TypeVarTuple

from tests.doubles.disk import PowerCut
from tests.doubles.loop import SimLoop
from tests.doubles.network import on_host

T = TypeVar("T")
_Ts = TypeVarTuple("_Ts")

_process: ContextVar[Process | None] = ContextVar("process", default=None)


def running_host() -> str:
    """The host of the process whose code runs now; "" outside of all."""
    process = _process.get()
    return process.host if process else ""


class Gone(Exception):
    """The process ended before it answered."""


class Process:
    """One life of one program on one host. `after_run` is called after each callback of it."""

    def __init__(
        self,
        loop: ProcessLoop,
        host: str,
        after_run: Callable[[Process], None],
        *,
        rate: float = 1.0,
    ) -> None:
        """`rate` is how fast its monotonic clock runs."""
        self.host = host
        self.rate = rate
        self.after_run = after_run
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

    def resume(self) -> None:
        """What was due meanwhile runs now, in its order."""
        if self.is_paused:
            self.is_paused = False
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
    """A loop that knows whose each callback is."""

    def __init__(self, seed: int) -> None:
        super().__init__(seed)
        self.set_task_factory(_make_task)  # type: ignore[arg-type]  # stubs want a protocol

    def time(self) -> float:
        process = _process.get()
        return self.now if process is None else self.now * process.rate

    def call_at(
        self,
        when: float,
        callback: Callable[[*_Ts], object],
        *args: *_Ts,
        context: Context | None = None,
    ) -> asyncio.TimerHandle:
        process = _process.get()
        moment = when if process is None else when / process.rate
        return self.call_at_moment(moment, callback, *args, context=context)

    def run_soon(self, handles: list[asyncio.Handle]) -> None:
        self._ready.extend(handles)

    def forget(self, process: Process) -> None:
        """Drops all that a process has scheduled."""
        for handle in [*self._ready, *(timer for _, _, timer in self._timers)]:
            if handle._context.get(_process) is process:  # type: ignore[attr-defined]
                handle.cancel()

    def _run_handle(self, handle: asyncio.Handle) -> None:
        process = handle._context.get(_process)  # type: ignore[attr-defined]  # asyncio's own
        if process is None:
            handle._run()
        elif process.is_paused:
            process.hold(handle)
        else:
            handle._run()
            process.after_run(process)

    def end(self) -> None:
        """Ends the world, with whatever is under way in it."""
        for task in asyncio.all_tasks(self):
            task._log_destroy_pending = False  # type: ignore[attr-defined]  # it ends here
            with contextlib.suppress(BaseException):
                task.get_coro().close()
        self._ready.clear()
        self._timers.clear()
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
