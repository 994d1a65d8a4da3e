"""Waiting for what is to come true, with a deadline that tells what did not."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable
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
