"""For tests of programs that use a log: a small log, a node, a cluster that can be hurt.

As pytest fixtures, which are there once the package is installed: `proglog_log`, `proglog_node`,
`proglog_cluster`. Without pytest:

    with proglog.testing.Cluster(3) as cluster:
        ...  # cluster.url
        cluster.kill(cluster.leader())

All of it is plain functions that wait until it is so, for tests with an event loop and without.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

import proglog
from proglog.client.admin import Cluster as Admin
from proglog.config import Address
from proglog.errors import ProglogError
from proglog.ports import stop_with_parent

T = TypeVar("T")

SEGMENT_BYTES = 64 * 1024
NODE_SEGMENT_BYTES = 1024 * 1024
READY_SECONDS_MAX = 60.0
ASK_SECONDS_MAX = 1.0
PAUSE_SECONDS = 0.02
_SHARED_MEMORY = Path("/dev/shm")  # noqa: S108  # each folder in it is made for one user only  # nosec B108
_LOG_LINES = 40


def temporary_folder() -> Path:
    """A new folder: in memory where the system has such files, for syncing is quicker there."""
    there = _SHARED_MEMORY if os.access(_SHARED_MEMORY, os.W_OK) else None
    return Path(tempfile.mkdtemp(prefix="proglog-test-", dir=there))


@contextlib.contextmanager
def small_log() -> Iterator[proglog.Log]:
    """A log of its own in this process, not entered yet, that takes some 100 KB and goes away."""
    folder = temporary_folder()
    try:
        yield proglog.open(folder / "log", segment_bytes=SEGMENT_BYTES)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


class Node:
    """One `proglog serve` on 127.0.0.1, which ends with this process at the latest."""

    def __init__(self, folder: Path, name: str = "node-0", options: Sequence[str] = ()) -> None:
        """`options` are those of `proglog serve`, each in one word: "--segment-bytes=1MiB"."""
        self.name = name
        self.address = Address("127.0.0.1", free_port())
        self.gossip = Address("127.0.0.1", free_port())
        self._folder = folder
        self._options = options
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """For `proglog.connect`."""
        return f"proglog://{self.address}"

    @property
    def is_running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def start(self) -> None:
        """Starts the process, unless it runs. It is of use a moment later: see `wait`."""
        if self.is_running:
            return
        self._folder.mkdir(parents=True, exist_ok=True)
        with self._log_path.open("ab") as log:
            self._process = subprocess.Popen(  # noqa: S603  # our own program
                [
                    sys.executable,
                    *("-m", "proglog.cli", "serve", "--quiet"),
                    *self._flags(),
                ],
                stdout=log,
                stderr=log,
                preexec_fn=stop_with_parent,  # noqa: PLW1509  # it only makes a system call
            )

    def _flags(self) -> list[str]:
        """What was asked for, and the rest."""
        rest = {
            "--data-dir": self._folder / self.name,
            "--node-name": self.name,
            "--rpc-port": self.address.port,
            "--bind-addr": self.gossip,
            "--http-addr": "none",
            "--segment-bytes": NODE_SEGMENT_BYTES,
        }
        given = {option.partition("=")[0] for option in self._options}
        flags = [f"{name}={value}" for name, value in rest.items() if name not in given]
        return [*flags, *self._options]

    def wait(self) -> None:
        """Waits until it answers and knows a leader."""
        _until(lambda: self._leader_name() != "", f"{self.name} knows a leader", self.log)

    def stop(self) -> None:
        """Ends it as an orchestrator does."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """Ends it at once, as if its machine had lost power, but for what the disk has."""
        self._end(signal.SIGKILL)

    def pause(self) -> None:
        """It stands still (SIGSTOP) until `resume`: its connections stay, and say nothing."""
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        """It goes on (SIGCONT)."""
        self._signal(signal.SIGCONT)

    def log(self) -> str:
        """The end of what it wrote."""
        if not self._log_path.exists():
            return f"{self.name} was never started"
        lines = self._log_path.read_text(errors="replace").splitlines()
        return "\n".join([f"--- {self.name}", *lines[-_LOG_LINES:]])

    @property
    def _log_path(self) -> Path:
        return self._folder / f"{self.name}.log"

    def _signal(self, number: signal.Signals) -> None:
        if self._process is not None and self.is_running:
            self._process.send_signal(number)

    def _end(self, number: signal.Signals) -> None:
        self._signal(number)
        self._signal(signal.SIGCONT)  # One that stands still hears of nothing else.
        if self._process is not None:
            self._process.wait(READY_SECONDS_MAX)

    def _leader_name(self) -> str:
        """Whom it takes for the leader; empty if for nobody, or if it does not answer."""
        status = self.status()
        return next((s.id for s in status.servers if s.is_leader), "") if status else ""

    def status(self) -> Any:
        """What it knows of its cluster; None if it does not answer."""

        async def ask() -> Any:
            async with Admin([self.address], timeout_seconds=ASK_SECONDS_MAX) as admin:
                with contextlib.suppress(ProglogError):
                    return await admin.status()

        return _elsewhere(ask) if self.is_running else None

    def __enter__(self) -> Self:
        self.start()
        self.wait()
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.kill()


class Cluster:
    """So many nodes that are one cluster. A context manager: all run, and agree, once entered."""

    def __init__(self, size: int = 3, folder: Path | None = None) -> None:
        self._made = None if folder else temporary_folder()
        folder = folder or self._made
        assert folder is not None, "one of the two"
        self.nodes: list[Node] = []
        for number in range(size):
            join = "--bootstrap" if number == 0 else f"--start-join-addrs={self.nodes[0].gossip}"
            options = (join, f"--cluster-name=test-{os.getpid()}-{id(self):x}")
            self.nodes.append(Node(folder, f"node-{number}", options))

    @property
    def url(self) -> str:
        """For `proglog.connect`."""
        return "proglog://" + ",".join(str(node.address) for node in self.nodes)

    def leader(self) -> int:
        """The number of the node that leads, once one does."""
        return _until(self._leader, "somebody leads", self.log) - 1

    def start(self, number: int | None = None) -> None:
        """Starts one node, or all that do not run."""
        for node in self.nodes if number is None else [self.nodes[number]]:
            node.start()

    def stop(self, number: int) -> None:
        """See `Node.stop`."""
        self.nodes[number].stop()

    def kill(self, number: int) -> None:
        """See `Node.kill`."""
        self.nodes[number].kill()

    def pause(self, number: int) -> None:
        """See `Node.pause`."""
        self.nodes[number].pause()

    def resume(self, number: int) -> None:
        """See `Node.resume`."""
        self.nodes[number].resume()

    def heal(self) -> None:
        """All nodes run again, and this waits until all of them vote and hear their leader."""
        for node in self.nodes:
            node.resume()
            node.start()
        _until(self._is_whole, "all nodes are one cluster", self.log)

    def log(self) -> str:
        """The end of what each node wrote."""
        return "\n".join(node.log() for node in self.nodes)

    def _leader(self) -> int:
        """One more than its number; 0 if nobody leads."""
        found = {}
        for number, node in enumerate(self.nodes):
            status = node.status()
            if status is not None and status.role == "leader":
                found[status.term] = number + 1
        return found[max(found)] if found else 0

    def _is_whole(self) -> bool:
        leader = self._leader()
        status = self.nodes[leader - 1].status() if leader else None
        if status is None or len(status.servers) != len(self.nodes):
            return False
        return all(
            server.suffrage == "voter" and (server.is_leader or server.active)
            for server in status.servers
        )

    def __enter__(self) -> Self:
        try:
            self.heal()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Ends all nodes."""
        for node in self.nodes:
            node.kill()
        if self._made is not None:
            shutil.rmtree(self._made, ignore_errors=True)


def free_port() -> int:
    """A port of 127.0.0.1 that is free for TCP and UDP."""
    while True:
        with socket.socket() as tcp, socket.socket(type=socket.SOCK_DGRAM) as udp:
            tcp.bind(("127.0.0.1", 0))
            port: int = tcp.getsockname()[1]
            with contextlib.suppress(OSError):
                udp.bind(("127.0.0.1", port))
                return port


def _until(condition: Callable[[], T], what: str, log: Callable[[], str]) -> T:
    """Waits until the condition holds; what it then says. Raises TimeoutError."""
    event = threading.Event()
    deadline = time.perf_counter() + READY_SECONDS_MAX
    while not (said := condition()):
        if time.perf_counter() > deadline:
            raise TimeoutError(f"not so after {READY_SECONDS_MAX:g} s: {what}\n{log()}")
        event.wait(PAUSE_SECONDS)
    return said


def _elsewhere(main: Callable[[], Any]) -> Any:
    """Runs it on a loop of its own in a thread of its own: the test's thread may have one."""
    answers: list[Any] = []
    thread = threading.Thread(target=lambda: answers.append(asyncio.run(main())))
    thread.start()
    thread.join()
    return answers[0] if answers else None
