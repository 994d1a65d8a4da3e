"""An asyncio event loop in virtual time: it sleeps by moving its clock.

Everything that happens is a callback of this loop, in an order that only the seed decides, so that
a run can be had again. Sockets are those of `network`, threads are events: `run_in_executor` runs
the function later on the loop itself.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
import random
from collections import deque
from collections.abc import Callable, Coroutine
from contextvars import Context
from hashlib import blake2b
from typing import Any, TypeVar, TypeVarTuple

from tests.doubles.network import SimNetwork

_T = TypeVar("_T")
_Ts = TypeVarTuple("_Ts")

EXECUTOR_SECONDS_MAX = 0.002
"""A function given to `run_in_executor` begins within this time."""


class Deadlock(Exception):
    """Every task waits, and nothing is due that could wake one."""


class TraceHash:
    """A rolling hash of what happened: equal for two runs that did the same."""

    def __init__(self) -> None:
        self._hash = blake2b(digest_size=16)
        self.events = 0

    def add(self, *event: object) -> None:
        """Notes an event; its fields must have a `repr` that is the same in every process."""
        self._hash.update(repr(event).encode())
        self.events += 1

    def hexdigest(self) -> str:
        return self._hash.hexdigest()


class SimLoop(asyncio.BaseEventLoop):
    """The loop of one simulated world.

    Attributes:
        now: virtual seconds since the world began.
        network: the network between its hosts.
        trace: hash of what happened so far.
        failures: what was reported to the exception handler; `run` raises the first.
    """

    _ready: deque[asyncio.Handle]
    _stopping: bool

    def __init__(self, seed: int = 0, *, shuffle: bool = False) -> None:
        super().__init__()
        self.now = 0.0
        self.seed = seed
        self.trace = TraceHash()
        self.failures: list[dict[str, Any]] = []
        self._chance = self.chance("loop")
        self._shuffle = shuffle
        self._timers: list[tuple[float, int, asyncio.TimerHandle]] = []
        """A heap. The numbers keep timers of one moment in their order: asyncio does not promise
        that, but a stream of bytes needs it."""
        self._numbers = itertools.count()
        self.network = SimNetwork(self, self.chance("network"), self.trace.add)
        self.set_exception_handler(lambda _, context: self.failures.append(context))

    def chance(self, name: str) -> random.Random:
        """A source of randomness of its own for one part of the world: drawing more from one leaves
        the others as they were."""
        return random.Random(f"{self.seed}/{name}")

    # --- in place of asyncio's own, which would wait for sockets ---------------------------------

    def time(self) -> float:
        return self.now

    def call_soon(
        self,
        callback: Callable[[*_Ts], object],
        *args: *_Ts,
        context: Context | None = None,
    ) -> asyncio.Handle:
        handle = asyncio.Handle(callback, args, self, context)
        self._ready.append(handle)
        return handle

    call_soon_threadsafe = call_soon

    def call_at(
        self,
        when: float,
        callback: Callable[[*_Ts], object],
        *args: *_Ts,
        context: Context | None = None,
    ) -> asyncio.TimerHandle:
        return self.call_at_moment(when, callback, *args, context=context)

    def call_at_moment(
        self,
        when: float,
        callback: Callable[[*_Ts], object],
        *args: *_Ts,
        context: Context | None = None,
    ) -> asyncio.TimerHandle:
        """As `call_at`, by the world's time, `now`: some worlds have clocks that run otherwise."""
        assert not self.is_closed(), "the world has ended"
        timer = asyncio.TimerHandle(when, callback, args, self, context)
        heapq.heappush(self._timers, (when, next(self._numbers), timer))
        return timer

    def _run_once(self) -> None:
        """One turn: everything that is ready or due, and if nothing is, what is due next."""
        ready, timers = self._ready, self._timers
        if not ready and not self._stopping:
            self._advance()
        while timers and timers[0][0] <= self.now:
            ready.append(heapq.heappop(timers)[2])
        if self._shuffle:
            self._shuffle_tasks()
        for _ in range(len(ready)):
            handle = ready.popleft()
            if not handle._cancelled:
                self._run_handle(handle)

    def _advance(self) -> None:
        """Sleeps, by moving the clock to the next timer."""
        timers = self._timers
        while timers and timers[0][2]._cancelled:
            heapq.heappop(timers)
        if not timers:
            raise Deadlock("every task waits for another one")
        self.now = max(self.now, timers[0][0])

    def _run_handle(self, handle: asyncio.Handle) -> None:
        handle._run()

    def _shuffle_tasks(self) -> None:
        """Lets ready tasks run in any order. All other callbacks keep their places: protocols are
        promised that theirs come in order."""
        ready = self._ready
        places = [place for place, handle in enumerate(ready) if _is_task_step(handle)]
        handles = [ready[place] for place in places]
        self._chance.shuffle(handles)
        for place, handle in zip(places, handles, strict=True):
            ready[place] = handle

    # --- threads and sockets ---------------------------------------------------------------------

    def run_in_executor(  # type: ignore[override]  # BaseEventLoop's own is no coroutine either
        self, _executor: Any, func: Callable[..., _T], *args: Any
    ) -> asyncio.Future[_T]:
        future: asyncio.Future[_T] = self.create_future()
        delay = self._chance.uniform(0, EXECUTOR_SECONDS_MAX)
        self.call_later(delay, _run_into, future, func, args)
        return future

    async def create_connection(  # type: ignore[override]  # the options that make sense here
        self, protocol_factory: Any, host: str, port: int, **options: Any
    ) -> tuple[asyncio.Transport, Any]:
        return await self.network.connect(protocol_factory, host, port, **options)

    async def create_server(  # type: ignore[override]  # likewise
        self,
        protocol_factory: Any,
        host: Any = None,  # a server listens on all addresses of its host
        port: int = 0,
        **options: Any,
    ) -> asyncio.AbstractServer:
        return self.network.listen(protocol_factory, port, **options)

    async def create_datagram_endpoint(  # type: ignore[override]  # likewise
        self, protocol_factory: Any, local_addr: tuple[str, int] | None = None, **options: Any
    ) -> tuple[asyncio.DatagramTransport, Any]:
        port = local_addr[1] if local_addr is not None else 0
        return self.network.open_datagrams(protocol_factory, port, **options)


def _is_task_step(handle: asyncio.Handle) -> bool:
    callback = getattr(handle, "_callback", None)
    return isinstance(getattr(callback, "__self__", None), asyncio.Task)


def _run_into(future: asyncio.Future[_T], func: Callable[..., _T], args: tuple[Any, ...]) -> None:
    if future.cancelled():
        return
    try:
        future.set_result(func(*args))
    except Exception as error:  # a thread hands every exception to who waits
        future.set_exception(error)


def run(main: Coroutine[Any, Any, _T], *, seed: int = 0, shuffle: bool = False) -> _T:
    """Runs `main` in a world of its own, and then ends all that it left behind.

    Raises what `main` raises, else the first exception that nobody handled; that one first where
    `main` waits for ever, since it may be why.
    """
    loop = SimLoop(seed, shuffle=shuffle)
    with asyncio.Runner(loop_factory=lambda: loop) as runner:
        try:
            result = runner.run(main)
        except Deadlock:
            _raise_first(loop.failures)
            raise
        failures = list(loop.failures)
    _raise_first(failures)
    return result


def _raise_first(failures: list[dict[str, Any]]) -> None:
    if failures:
        raise failures[0].get("exception") or RuntimeError(failures[0]["message"])


class SimClock:
    """`ports.Clock` on the time of a loop: the running one, unless one is given.

    Attributes:
        offset_ms: may be changed at any time: a wall clock jumps.
    """

    def __init__(
        self,
        offset_ms: int = 1_700_000_000_000,
        *,
        loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        self.offset_ms = offset_ms
        self._loop = loop

    def now_ms(self) -> int:
        return self.offset_ms + int(self.stopwatch() * 1000)

    def stopwatch(self) -> float:
        return (self._loop or asyncio.get_running_loop()).time()
