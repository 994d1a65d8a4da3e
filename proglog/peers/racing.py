"""Several ways to the same end, tried side by side."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

from proglog.net.dialling import forget_failure

_T = TypeVar("_T")


async def first_of(
    ways: Sequence[Callable[[], Awaitable[_T]]], apart_seconds: float, undo: Callable[[_T], None]
) -> _T:
    """The result of the first way that has one; each begins a little after the one before, or when
    that has failed. Raises what the first of them raised if all fail; `undo` gets what another had
    by then."""
    waiting = list(ways)
    begun: list[asyncio.Task[_T]] = []
    running: set[asyncio.Task[_T]] = set()
    try:
        while waiting or running:
            if waiting:
                begun.append(asyncio.ensure_future(_await(waiting.pop(0))))
                running.add(begun[-1])
            done, running = await asyncio.wait(
                running,
                timeout=apart_seconds if waiting else None,
                return_when=asyncio.FIRST_COMPLETED,
            )
            for task in begun:
                if task in done and task.exception() is None:
                    return _take(task, begun, undo)
    finally:
        for task in begun:
            task.cancel()
            task.add_done_callback(forget_failure)
    return begun[0].result()


async def _await(way: Callable[[], Awaitable[_T]]) -> _T:
    return await way()


def _take(
    winner: asyncio.Task[_T], begun: list[asyncio.Task[_T]], undo: Callable[[_T], None]
) -> _T:
    for task in begun:
        if task is not winner and task.done() and task.exception() is None:
            undo(task.result())
    return winner.result()
