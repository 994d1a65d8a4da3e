"""A node as a process: signals in, exit status out."""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
import signal
import sys
from collections.abc import Callable
from typing import Any

import structlog
import uvloop

import proglog
from proglog.agent.node import Node
from proglog.config import NodeConfig
from proglog.errors import ConfigurationError, ProglogError, UnknownFormat
from proglog.net.notify import ServiceManager
from proglog.observability import logging
from proglog.ports import keep_memory_private

_logger = structlog.get_logger("node")

_STARTING_SECONDS = 10.0
"""How often a start that takes long says that it goes on."""


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
    if config.holds_keys:
        keep_memory_private()
    if any(word.startswith("--gossip-keys") for word in sys.argv):
        _logger.warning("gossip keys on a command line are shown by ps: use PROGLOG_GOSSIP_KEYS")
    return uvloop.run(_run(config, announce))


def _allow_many_files() -> None:
    """Each connection takes a descriptor: as many as may be."""
    _soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


async def _run(config: NodeConfig, announce: Callable[[Node], None]) -> int:
    manager = ServiceManager(os.environ)
    node = Node(config)
    node.failure.add_done_callback(_tell)
    await _start(node, config, manager)
    asked = _on_signals()
    _reload_on_signal(node)
    announce(node)
    manager.ready()
    await _first_of(asked, node.failure, node.left)
    manager.stopping()
    if not node.failure.done():
        _logger.info("stopping", why=asked.result() if asked.done() else "the node has left")
    await _stop(node)
    _logger.info("stopped")
    # Asked now, not before: the disk may fail while the last batches are written.
    if not node.failure.done():
        return 0
    error = node.failure.exception()
    return error.exit_status if isinstance(error, UnknownFormat) else 1


async def _start(node: Node, config: NodeConfig, manager: ServiceManager) -> None:
    """Starts it, however long the recovery of its log takes, and says so meanwhile."""
    starting = asyncio.ensure_future(node.start())
    while not starting.done():
        # Twice the time: one look may come late.
        manager.starting(2 * _STARTING_SECONDS)
        await asyncio.wait([starting], timeout=_STARTING_SECONDS)
        if not starting.done():
            _logger.info("still starting: the log is recovered")
    await starting
    _logger.info(
        "started",
        version=proglog.__version__,
        node=node.replica.identity.name,
        data_dir=str(config.data_dir),
        rpc=str(node.rpc_addr),
        told=str(node.told_addr),
        gossip=f"{node.membership.local.address}:{node.membership.local.port}",
        http=str(node.http_addr),
        earliest=node.replica.earliest,
        next=node.replica.next_offset,
    )


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


def _reload_on_signal(node: Node) -> None:
    """SIGHUP: the files of certificates and policies are whole, and to be taken now."""
    loop = asyncio.get_running_loop()
    reloading: set[asyncio.Task[None]] = set()

    def reload() -> None:
        task = loop.create_task(node.security.reload(at_once=True))
        reloading.add(task)
        task.add_done_callback(reloading.discard)

    loop.add_signal_handler(signal.SIGHUP, reload)


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
