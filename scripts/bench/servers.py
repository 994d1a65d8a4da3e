"""Processes of servers: started on free ports, watched, and gone at the end."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import subprocess
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from time import perf_counter
from typing import TypeVar

from proglog.cli.bench import free_port
from scripts.bench.systems import System

ROOT = Path(__file__).resolve().parents[2]
START_SECONDS_MAX = 30.0
STOP_SECONDS_MAX = 20.0
_TICKS = os.sysconf("SC_CLK_TCK")

S = TypeVar("S", bound=System)


class Server:
    """A running process."""

    def __init__(self, command: Sequence[str], output: Path) -> None:
        self._name = " ".join(command)
        self._output = output
        with output.open("ab") as file:
            # A session of its own: Ctrl-C at the terminal reaches the benchmark, which ends it.
            self.process = subprocess.Popen(
                command, stdout=file, stderr=file, cwd=ROOT, start_new_session=True
            )

    @property
    def pid(self) -> int:
        return self.process.pid

    def cpu_seconds(self) -> float:
        """User and system time of all its threads so far."""
        return cpu_seconds(self.pid)

    def memory_bytes(self) -> int:
        """RssAnon: resident memory that is not pages of files."""
        for line in Path(f"/proc/{self.pid}/status").read_text().splitlines():
            if line.startswith("RssAnon:"):
                return int(line.split()[1]) * 1024
        raise ProcessLookupError(self.pid)

    def check(self) -> None:
        """Raises RuntimeError if it has ended."""
        if self.process.poll() is not None:
            tail = self._output.read_text(errors="replace")[-2000:]
            raise RuntimeError(f"{self._name} ended with {self.process.returncode}:\n{tail}")

    async def said(self, pattern: str) -> re.Match[str]:
        """Waits for a line in its output. Raises RuntimeError or TimeoutError."""
        async with asyncio.timeout(START_SECONDS_MAX):
            while True:
                if found := re.search(
                    pattern, self._output.read_text(errors="replace"), re.MULTILINE
                ):
                    return found
                self.check()
                await asyncio.sleep(0.01)

    def kill(self) -> None:
        """kill -9, and waits for its end."""
        self.process.kill()
        self.process.wait()

    def stop(self) -> None:
        """Asks it to end, and makes it."""
        if self.process.poll() is None:
            self.process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(STOP_SECONDS_MAX)
                return
            self.kill()


def cpu_seconds(pid: int) -> float:
    """User and system time of a process so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS


@contextmanager
def running(command: Sequence[str], output: Path) -> Iterator[Server]:
    """A process while the context lasts."""
    server = Server(command, output)
    try:
        yield server
    finally:
        server.stop()


async def connected(system: type[S], port: int, server: Server) -> S:
    """A client, once the server answers. Raises RuntimeError if it does not."""
    deadline = perf_counter() + START_SECONDS_MAX
    while True:
        server.check()
        try:
            async with asyncio.timeout(START_SECONDS_MAX):
                return await system.connect(port)
        except Exception as error:
            # Each client has errors of its own for a server that is not there yet.
            if perf_counter() > deadline:
                raise RuntimeError(f"{system.name} does not answer") from error
        await asyncio.sleep(0.02)


@asynccontextmanager
async def serving(
    system: type[S], folder: Path, command: Callable[[Path, int], list[str] | None] | None = None
) -> AsyncIterator[tuple[S, Server, int]]:
    """A system with a new, empty log: its client, its server, and its port."""
    port = free_port()
    with tempfile.TemporaryDirectory(dir=folder) as own:
        words = (command or system.command)(Path(own), port)
        assert words is not None, "asked for only if it is installed"
        with running(words, Path(own) / "output") as server:
            client = await connected(system, port, server)
            try:
                yield client, server, port
            finally:
                await client.close()
