"""How commands reach a node."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Coroutine, Sequence
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import uvloop

import proglog
from proglog.cli import INTERRUPTED
from proglog.config import Address, join_addresses

if TYPE_CHECKING:
    from proglog.client.client import Log
    from proglog.client.tls import Tls

FIRST_ANSWER_SECONDS_MAX = 2.0
INTERRUPTED_SECONDS_MAX = 5.0


def run_on_loop(main: Coroutine[Any, Any, int]) -> int:
    """Runs `main` to its end; its exit status. Ctrl-C cancels it, and ends the process soon even if
    something does not let itself be cancelled."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(_interruptible(main))


async def _interruptible(main: Coroutine[Any, Any, int]) -> int:
    loop = asyncio.get_running_loop()
    task = loop.create_task(main)
    interrupted = False

    def on_interrupt() -> None:
        nonlocal interrupted
        interrupted = True
        task.cancel()
        loop.call_later(INTERRUPTED_SECONDS_MAX, os._exit, INTERRUPTED)

    loop.add_signal_handler(signal.SIGINT, on_interrupt)
    try:
        return await task
    except asyncio.CancelledError:
        if not interrupted:
            raise
        return INTERRUPTED


@asynccontextmanager
async def connected(servers: Sequence[Address], tls: Tls | None = None) -> AsyncIterator[Log]:
    """The log of nodes of which one answered once: that none is there at all is told soon, while
    one that goes away later is waited for as long as the client does. Raises ProglogError."""
    url = f"proglog://{join_addresses(servers)}"
    async with proglog.connect(url, tls=tls, timeout_seconds=FIRST_ANSWER_SECONDS_MAX) as log:
        await log.describe()
    async with proglog.connect(url, tls=tls) as log:
        yield log
