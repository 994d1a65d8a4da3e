"""How commands reach a node."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import uvloop

import proglog
from proglog.config import Address

if TYPE_CHECKING:
    from proglog.client.client import Log

FIRST_ANSWER_SECONDS_MAX = 2.0


def run_on_loop(main: Coroutine[Any, Any, int]) -> int:
    """Runs `main` to its end. Ctrl-C cancels it and raises KeyboardInterrupt."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(main)


@asynccontextmanager
async def connected(server: Address) -> AsyncIterator[Log]:
    """The log of a node that answered once: one that is not there at all is told soon, while one
    that goes away later is waited for as long as the client does. Raises ProglogError."""
    url = f"proglog://{server}"
    async with proglog.connect(url, timeout_seconds=FIRST_ANSWER_SECONDS_MAX) as log:
        await log.describe()
    async with proglog.connect(url) as log:
        yield log
