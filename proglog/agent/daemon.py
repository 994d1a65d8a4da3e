"""A node as a process: signals in, exit status out."""

from __future__ import annotations

import asyncio
import contextlib
import resource
import signal
from collections.abc import Callable
from typing import Any

import structlog
import uvloop

from proglog.agent.node import Node
from proglog.config import NodeConfig
from proglog.errors import ConfigurationError, ProglogError, UnknownFormat
from proglog.observability import logging

_logger = structlog.get_logger("node")


def run(config: NodeConfig, announce: Callable[[Node], None]) -> int:
    """Runs a node until SIGTERM or SIGINT; the exit code: 0, 1 after a failure, 3 where a newer
    version is needed to go on. `announce` is called when it serves.

    A second signal skips what is left of draining. Raises ProglogError or OSError where the node
    cannot start.
    """
    if not __debug__:
        raise ConfigurationError("python -O drops the assertions that keep the log safe; unset it")
    logging.configure(config.log_level, config.log_format)
    _allow_many_files()
    return uvloop.run(_run(config, announce))


def _allow_many_files() -> None:
    """Each connection takes a descriptor: as many as may be."""
    _soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


async def _run(config: NodeConfig, announce: Callable[[Node], None]) -> int:
    node = Node(config)
    node.failure.add_done_callback(_tell)
    await node.start()
    asked = _on_signals()
    announce(node)
    await _first_of(asked, node.failure, node.left)
    if not node.failure.done():
        _logger.info("stopping", why=asked.result() if asked.done() else "the node has left")
    await _stop(node)
    _logger.info("stopped")
    # Asked now, not before: the disk may fail while the last batches are written.
    if not node.failure.done():
        return 0
    error = node.failure.exception()
    return error.exit_status if isinstance(error, UnknownFormat) else 1


def _tell(failure: asyncio.Future[None]) -> None:
    error = failure.exception()
    _logger.critical(
        "stopped by a failure",
        error=str(error),
        exc_info=None if isinstance(error, ProglogError) else error,
    )


async def _stop(node: Node) -> None:
    again = _on_signals()
    stopping = asyncio.ensure_future(node.stop())
    await _first_of(again, stopping)
    if not stopping.done():
        # What is appended is still made durable: only the waiting ends.
        _logger.warning("draining was cut short", signal=again.result())
        stopping.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await stopping


async def _first_of(*futures: asyncio.Future[Any]) -> None:
    await asyncio.wait(futures, return_when=asyncio.FIRST_COMPLETED)


def _on_signals() -> asyncio.Future[str]:
    """Gets the name of the next signal that asks the process to end."""
    loop = asyncio.get_running_loop()
    received: asyncio.Future[str] = loop.create_future()

    def on_signal(name: str) -> None:
        if not received.done():
            received.set_result(name)

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, on_signal, number.name)
    return received
