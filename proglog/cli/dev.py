"""`proglog dev`: a cluster of local nodes in one terminal."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import signal
import socket
import sys
from asyncio.subprocess import PIPE, STDOUT, Process
from pathlib import Path

from proglog.cli.connection import run_on_loop
from proglog.client.admin import Cluster
from proglog.config import RPC_PORT_DEFAULT, Address, join_addresses
from proglog.errors import ConfigurationError, ProglogError, reason_of
from proglog.ports import stop_with_parent

_COLOURS = (36, 33, 35, 32, 34, 31)
_PORT_STEP = 10
_NODES_MAX = 9
_HTTP_BELOW_RPC = 320
"""The HTTP port of a node is its RPC port less this: 8080 for 8400."""
_WATCH_SECONDS = 0.2
_RESTART_SECONDS_MIN = 2.0
_RESTART_SECONDS_MAX = 60.0
"""Pauses before a killed node starts again: doubled each time, unless it ran so long:"""
_LASTED_SECONDS = 60.0


def dev(
    *, nodes: int = 3, data_dir: Path = Path("data/dev"), port_base: int = RPC_PORT_DEFAULT
) -> int:
    """Run a local cluster. Ctrl-C stops all of it; the data stays for the next time. A node that
    is killed starts again.

    Parameters
    ----------
    nodes
        How many nodes, 1 to 9.
    data_dir
        Directory of their data, a folder each.
    port_base
        Node i has RPC port PORT-BASE + 10 i, gossips on the next port, and its HTTP port is 320
        below. All of them must be free.
    """
    if not 1 <= nodes <= _NODES_MAX:
        raise ConfigurationError(f"--nodes is {nodes}: expected 1 to {_NODES_MAX}")
    port_base_max = 65535 - _PORT_STEP * (nodes - 1) - 1
    if not _HTTP_BELOW_RPC < port_base <= port_base_max:
        raise ConfigurationError(
            f"--port-base is {port_base}: expected {_HTTP_BELOW_RPC + 1} to {port_base_max} with "
            f"--nodes {nodes}, as HTTP is {_HTTP_BELOW_RPC} below"
        )
    cluster = _Cluster(nodes, data_dir, port_base)
    cluster.check_ports()
    return run_on_loop(cluster.run())


def _gossip(rpc: Address) -> Address:
    return Address(rpc.host, rpc.port + 1)


def _http(rpc: Address) -> Address:
    return Address(rpc.host, rpc.port - _HTTP_BELOW_RPC)


def _why_taken(address: Address, kind: socket.SocketKind) -> str:
    """Why a node could not listen there; empty if it can."""
    with socket.socket(type=kind) as probe:
        if kind == socket.SOCK_STREAM:
            # As servers do: a connection of the last run that has not faded yet is in nobody's way.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(address)
        except OSError as error:
            return reason_of(error)
    return ""


class _Cluster:
    def __init__(self, count: int, data_dir: Path, port_base: int) -> None:
        self._data_dir = data_dir
        self._addresses = [
            Address("127.0.0.1", port_base + _PORT_STEP * number) for number in range(count)
        ]
        self._processes: dict[int, Process] = {}
        # Of the directory, so that it is the same the next time, and met nowhere else.
        folder = hashlib.sha256(os.fsencode(data_dir.resolve())).hexdigest()
        self._name = f"dev-{folder[:6]}"

    def check_ports(self) -> None:
        """Before any node starts: those that found their ports would join whoever holds that of the
        first, and be missing there when all are stopped for the one that could not start.

        Raises ConfigurationError.
        """
        tcp, udp = socket.SOCK_STREAM, socket.SOCK_DGRAM
        taken = [
            f"{address} ({what} of node-{number}): {why}"
            for number, node in enumerate(self._addresses)
            for what, address, kinds in (
                ("RPC", node, [tcp]),
                ("gossip", _gossip(node), [tcp, udp]),
                ("HTTP", _http(node), [tcp]),
            )
            if (why := next(filter(None, (_why_taken(address, kind) for kind in kinds)), ""))
        ]
        if taken:
            raise ConfigurationError(
                f"cannot listen on {', '.join(taken)}. Is another node running? Stop it, or choose "
                "another --port-base"
            )

    async def run(self) -> int:
        loop = asyncio.get_running_loop()
        asked = asyncio.Event()
        for stop in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(stop, asked.set)
        try:
            async with asyncio.TaskGroup() as tasks:
                for number in range(len(self._addresses)):
                    tasks.create_task(self._run_node(number, asked))
                watching = tasks.create_task(self._watch())
                await asked.wait()
                watching.cancel()
                for process in self._processes.values():
                    if process.returncode is None:
                        process.terminate()
        finally:
            for process in self._processes.values():
                if process.returncode is None:
                    process.kill()
        return 1 if any((each.returncode or 0) > 0 for each in self._processes.values()) else 0

    async def _run_node(self, number: int, asked: asyncio.Event) -> None:
        """Over its lives: one that is killed starts again, later each time while it does not last.
        What others do without it can be seen meanwhile."""
        loop = asyncio.get_running_loop()
        pause = _RESTART_SECONDS_MIN
        while not asked.is_set():
            started = loop.time()
            status = await self._live(number, asked)
            if asked.is_set():
                return
            if status >= 0:
                # It has left its cluster, or it cannot start: then it could not again.
                print(f"node-{number} ended with status {status}", file=sys.stderr)
                if status:
                    asked.set()
                return
            if loop.time() - started >= _LASTED_SECONDS:
                pause = _RESTART_SECONDS_MIN
            killed = f"was killed by {signal.Signals(-status).name}"
            print(f"node-{number} {killed}: it starts again in {pause:g} s", file=sys.stderr)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(asked.wait(), pause)
            pause = min(2 * pause, _RESTART_SECONDS_MAX)

    async def _live(self, number: int, asked: asyncio.Event) -> int:
        """One life of a node: its exit status, negative where a signal killed it."""
        address = self._addresses[number]
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "proglog.cli",
            "serve",
            f"--data-dir={self._data_dir / f'node-{number}'}",
            f"--node-name=node-{number}",
            f"--cluster-name={self._name}",
            f"--rpc-port={address.port}",
            f"--bind-addr={_gossip(address)}",
            f"--http-addr={_http(address)}",
            "--bootstrap" if number == 0 else f"--start-join-addrs={_gossip(self._addresses[0])}",
            "--log-format=console",
            "--quiet",
            stdout=PIPE,
            stderr=STDOUT,
            # Ctrl-C reaches the whole group of a terminal: a node is told once, by us.
            start_new_session=True,
            preexec_fn=stop_with_parent,
        )
        self._processes[number] = process
        if asked.is_set():  # while this one was being started
            process.terminate()
        assert process.stdout is not None
        async for line in process.stdout:
            self._show(number, line)
        return await process.wait()

    def _show(self, number: int, line: bytes) -> None:
        name = f"node-{number}"
        if sys.stdout.isatty():
            name = f"\x1b[{_COLOURS[number % len(_COLOURS)]}m{name}\x1b[0m"
        print(f"{name} | {line.decode(errors='replace').rstrip()}", flush=True)

    async def _watch(self) -> None:
        """Says when the cluster is whole."""
        while not await self._is_whole():  # noqa: ASYNC110  # other processes decide
            await asyncio.sleep(_WATCH_SECONDS)
        print(f"a cluster of {len(self._addresses)} is up; try:", flush=True)
        servers = join_addresses(self._addresses)
        print(f"  proglog cluster status --server {servers}", flush=True)

    async def _is_whole(self) -> bool:
        """Whether a leader has heard from all of them lately."""
        for address in self._addresses:
            async with Cluster([address], timeout_seconds=_WATCH_SECONDS) as cluster:
                with contextlib.suppress(ProglogError):
                    status = await cluster.status()
                    count = len(self._addresses)
                    voters = [each for each in status.servers if each.suffrage == "voter"]
                    # The second of two gets no vote by itself.
                    if (
                        status.role == "leader"
                        and len(status.servers) == count
                        and len(voters) == (1 if count == 2 else count)
                    ):
                        return all(each.is_leader or each.active for each in status.servers)
        return False
