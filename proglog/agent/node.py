"""One node: the log, its servers, and their lives.

Parts start in the order in which they need each other and stop in reverse, within a deadline. A
part that fails stops the node: a node that half works is worse than one that is down.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import signal
import socket
import sys
from collections.abc import Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import structlog
import uvloop

from proglog.agent.cluster import ClusterAdmin
from proglog.config import Address, NodeConfig
from proglog.errors import ConfigurationError, ProglogError
from proglog.gateway.health import Probes
from proglog.gateway.server import Gateway
from proglog.observability import logging
from proglog.observability.metrics import Metrics
from proglog.ports import Ports
from proglog.raft.config import RaftConfig
from proglog.replica.logs import DEFAULT, Logs
from proglog.replica.replica import Replica, open_replica
from proglog.rpc.mux import Mux, Routes, listen
from proglog.rpc.server import RpcServer

_logger = structlog.get_logger("node")

_SWITCH_INTERVAL_SECONDS = 20e-6
"""How long the writer's thread waits before it asks the loop for the interpreter. With the default
of 5 ms it starves beside a busy loop, and every durable write with it (see `ports`)."""


class Node:
    """A node. `start` it, wait for `failure` or decide to end it, then `stop`."""

    def __init__(self, config: NodeConfig, ports: Ports | None = None) -> None:
        self._config = config
        self._ports = ports or Ports()
        self._parts = AsyncExitStack()
        self._stopping = False
        self.metrics = Metrics()
        self.failure: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        """Gets the exception of the first part that fails."""
        self.rpc_addr = config.rpc_addr
        """Where gRPC and HTTP are served; with its real port once started."""
        self.http_addr = config.http_addr
        self.replica: Replica

    async def start(self) -> None:
        """Starts everything. Raises ProglogError or OSError; then nothing is left running."""
        sys.setswitchinterval(_SWITCH_INTERVAL_SECONDS)
        try:
            await self._start()
        except BaseException:
            await self._parts.aclose()
            raise

    async def _start(self) -> None:
        config = self._config
        # The port first: it is in the way most often, and its number is part of what follows.
        listener = _listen(config.rpc_addr)
        self._parts.callback(listener.close)
        self.rpc_addr = Address(*listener.getsockname()[:2])
        self.replica = await open_replica(
            DEFAULT,
            Path(config.data_dir) / "logs" / DEFAULT,
            node_name=config.node_name,
            rpc_addr=str(self.rpc_addr),
            config=config.log,
            raft_config=RaftConfig(),
            ports=self._ports,
            observer=self,
            bootstrap=config.bootstrap,
            connect=_connect,
        )
        self._parts.push_async_callback(self.replica.close)
        self._watch_replica()
        logs = Logs([self.replica])
        rpc = RpcServer(logs, ClusterAdmin(self.replica))
        self._parts.push_async_callback(rpc.close)
        gateway = Gateway(
            logs, self.metrics, allowed_hosts=config.http_hosts, probes=self._probes()
        )
        await gateway.start()
        self._parts.push_async_callback(gateway.close)
        routes = Routes(
            grpc=rpc.protocol_factory,
            http=gateway.factory,
            raft=self.replica.transport.accept,
        )
        mux = Mux(listener, routes)
        self._parts.push_async_callback(mux.close)
        if config.http_addr is not None:
            self.http_addr = await _serve_http(gateway, config.http_addr)
        if config.bootstrap:
            await self.replica.wait_ready()
        # What recovery left is there for good: the collector need not look at it again.
        gc.collect()
        gc.freeze()
        rpc.set_serving(True)
        self._parts.push_async_callback(self._drain, rpc, gateway)
        serving = asyncio.get_running_loop().create_task(mux.serve())
        serving.add_done_callback(self._part_ended)

    async def _drain(self, rpc: RpcServer, gateway: Gateway) -> None:
        rpc.set_serving(False)
        # While clients can still be told where to go.
        await self.replica.hand_over()
        seconds = self._config.drain_seconds
        await asyncio.gather(rpc.drain(seconds), gateway.drain(seconds))

    async def stop(self) -> None:
        """Answers what is under way, then stops everything, newest part first. Every part is
        stopped; what went wrong on the way is raised at the end."""
        self._stopping = True
        await self._parts.aclose()

    # --- supervision -----------------------------------------------------------------------------

    def _part_ended(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            self.failed(error)

    def failed(self, error: BaseException) -> None:
        """A part cannot go on: the node must stop."""
        if not self.failure.done():
            self.failure.set_exception(error)
            # Whoever stops a node that was failing anyway need not look at why.
            self.failure.exception()

    def group_written(self, batches: int, size: int, seconds: float) -> None:
        self.metrics.group_written(batches, size, seconds)

    def appended(self, records: int, size: int, seconds: float) -> None:
        self.metrics.appended(records, size, seconds)

    # --- looking ---------------------------------------------------------------------------------

    def _watch_replica(self) -> None:
        replica, gauge = self.replica, self.metrics.gauge
        gauge("log_earliest_offset", "Oldest offset retained.", lambda: replica.earliest)
        gauge("log_next_offset", "Next offset.", lambda: replica.next_offset)
        gauge("log_commit_index", "Batches committed.", lambda: replica.commit_index)
        gauge("log_bytes", "Bytes retained.", lambda: replica.describe().bytes)

    def _probes(self) -> Probes:
        return Probes(
            live=lambda: "a part of it failed" if self.failure.done() else "",
            ready=lambda: "" if self.replica.is_ready and not self._stopping else "not ready",
            started=lambda: "",
        )


async def _connect(address: str, factory: Callable[[], asyncio.Protocol]) -> None:
    """Dials another server."""
    host, port = Address.parse(address)
    await asyncio.get_running_loop().create_connection(factory, host, port)


def _listen(address: Address) -> socket.socket:
    try:
        return listen(*address)
    except OSError as error:
        raise _cannot_listen(address, error) from None


async def _serve_http(gateway: Gateway, address: Address) -> Address:
    try:
        return Address(*await gateway.serve(*address))
    except OSError as error:
        raise _cannot_listen(address, error) from None


def _cannot_listen(address: Address, error: OSError) -> ConfigurationError:
    return ConfigurationError(
        f"cannot listen on {address}: {error.strerror}. Is another node running? Stop it, or "
        "choose another --rpc-port, --bind-addr or --http-addr",
        address=address,
    )


# --- the daemon ----------------------------------------------------------------------------------


def run(config: NodeConfig, announce: Callable[[Node], None]) -> int:
    """Runs a node until SIGTERM or SIGINT; the exit code. `announce` is called when it serves.

    A second signal skips what is left of draining. Raises ProglogError or OSError where the node
    cannot start.
    """
    if not __debug__:
        raise ConfigurationError("python -O drops the assertions that keep the log safe; unset it")
    logging.configure(config.log_level, config.log_format)
    return uvloop.run(_run(config, announce))


async def _run(config: NodeConfig, announce: Callable[[Node], None]) -> int:
    node = Node(config)
    await node.start()
    announce(node)
    asked = _on_signals()
    await _first_of(asked, node.failure)
    failed = node.failure.done()
    if failed:
        error = node.failure.exception()
        _logger.critical(
            "stopped by a failure",
            error=str(error),
            exc_info=None if isinstance(error, ProglogError) else error,
        )
    else:
        _logger.info("stopping", signal=asked.result())
    await _stop(node)
    _logger.info("stopped")
    return 1 if failed else 0


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
