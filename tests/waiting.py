"""Waiting for what is to come true, with a deadline that tells what did not."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import TypeVar

T = TypeVar("T")

DEADLINE_SECONDS = 60.0
"""Generous: the machine may be busy. What is waited for normally takes a second or a few."""
_PAUSE_SECONDS = 0.01


async def until(condition: Callable[[], T | Awaitable[T]], what: str = "") -> T:
    """Waits until the condition, which may be a coroutine function, holds; what it then says."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + DEADLINE_SECONDS
    while True:
        said = condition()
        holds = await said if inspect.isawaitable(said) else said
        if holds:
            return holds
        assert loop.time() < deadline, f"still not so after {DEADLINE_SECONDS:g} s: {what}"
        await asyncio.sleep(_PAUSE_SECONDS)


@asynccontextmanager
async def meanwhile(doing: Awaitable[T]) -> AsyncIterator[asyncio.Future[T]]:
    """Goes on with it beside what is within, and no longer: also where that ends early or badly.

    How it ended is the test's to ask; where the test does not, nobody minds.
    """
    task = asyncio.ensure_future(doing)
    try:
        yield task
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
