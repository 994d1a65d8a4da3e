"""A node as the benchmarks need it: on a slow disk, with a stopwatch, or under a profiler.

It differs from `proglog serve` in nothing else.
"""

from __future__ import annotations

import argparse
import asyncio
import cProfile
import json
import signal
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from time import perf_counter
from typing import NamedTuple

import uvloop

from proglog.agent.node import Node
from proglog.batch import Buffer, ProposedBatch
from proglog.config import Address, NodeConfig
from proglog.observability import logging
from proglog.ports import File, Ports, RealFile, RealFiles
from proglog.types import Appended

STARTED = r"^started in (\S+) s$"
"""What it says once it serves."""


class Write(NamedTuple):
    """One write of batches: when it began, was written, and was durable."""

    began: float
    written: float
    synced: float


class WatchedFile(RealFile):
    """Notes the times of writes that are no lone marks, and can be slower than the disk is."""

    __slots__ = ("_began", "_delay", "_writes", "_written")

    def __init__(self, descriptor: int, delay: float, writes: list[Write]) -> None:
        super().__init__(descriptor)
        self._delay = delay
        self._writes = writes
        self._began = self._written = 0.0

    def pwritev(self, parts: Sequence[Buffer], position: int) -> None:
        self._began = self._began or perf_counter()
        super().pwritev(parts, position)
        if len(parts) > 1:
            self._written = perf_counter()

    def fdatasync(self) -> None:
        super().fdatasync()
        if self._delay:
            time.sleep(self._delay)
        if self._written:
            self._writes.append(Write(self._began, self._written, perf_counter()))
        self._began = self._written = 0.0


class WatchedFiles(RealFiles):
    """The operating system's files, watched."""

    def __init__(self, delay: float) -> None:
        super().__init__()
        self._delay = delay
        self.writes: list[Write] = []

    def open(self, path: Path, *, writable: bool = True) -> File:
        return self._watched(super().open(path, writable=writable))

    def create(self, path: Path) -> File:
        return self._watched(super().create(path))

    def _watched(self, file: File) -> File:
        assert isinstance(file, RealFile)
        return WatchedFile(file._descriptor, self._delay, self.writes)


class Trace:
    """When each batch passed the stations of the server; times are those of `perf_counter`, which
    processes of one machine share."""

    def __init__(self, node: Node, files: WatchedFiles) -> None:
        self._files = files
        self.proposed: list[float] = []
        self.accepted: list[float] = []
        self.answered: list[float] = []
        self.group_batches: list[int] = []
        self._propose = node.replica.propose
        self._group_written = node.group_written
        files.writes.clear()
        node.replica.propose = self.propose  # type: ignore[method-assign]  # that is the watching
        node.group_written = self.group_written  # type: ignore[method-assign]  # and so is that

    async def propose(
        self, batch: ProposedBatch, after: asyncio.Future[Appended] | None = None
    ) -> asyncio.Future[Appended]:
        self.proposed.append(perf_counter())
        answer = await self._propose(batch, after)
        self.accepted.append(perf_counter())
        answer.add_done_callback(lambda _: self.answered.append(perf_counter()))
        return answer

    def consumed(self, size: int) -> None: ...

    def group_written(self, batches: int, size: int, seconds: float) -> None:
        self.group_batches.append(batches)
        self._group_written(batches, size, seconds)

    def save(self, path: Path) -> None:
        trace = {
            "proposed": self.proposed,
            "accepted": self.accepted,
            "answered": self.answered,
            "writes": self._files.writes,
            "group_batches": self.group_batches,
        }
        path.write_text(json.dumps(trace))


def command(
    folder: Path, port: int, *, delay_ms: float = 0, trace: Path | None = None
) -> list[str]:
    """What starts such a node with its data in `folder`."""
    words = [sys.executable, "-m", "scripts.bench.node", str(folder / "data"), str(port)]
    return [*words, f"--delay-ms={delay_ms}", *([f"--trace={trace}"] if trace else [])]


async def _run(options: argparse.Namespace) -> None:
    files = WatchedFiles(options.delay_ms / 1000)
    config = NodeConfig(
        data_dir=options.data_dir,
        bind_addr=Address("127.0.0.1", 0),
        rpc_port=options.port,
        http_addr=None,
    )
    node = Node(config, Ports(files=files))
    began = perf_counter()
    await node.start()
    seconds = perf_counter() - began
    trace = Trace(node, files) if options.trace else None
    print(f"started in {seconds:.6f} s", flush=True)
    asked = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, asked.set)
    await asked.wait()
    await node.stop()
    if trace is not None:
        trace.save(options.trace)


def _profiled(run: Callable[[], None], path: Path) -> None:
    profile = cProfile.Profile(time.thread_time)  # without what the loop waits
    profile.runcall(run)
    profile.dump_stats(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data_dir", type=Path)
    parser.add_argument("port", type=int)
    parser.add_argument("--delay-ms", type=float, default=0, help="added to each fdatasync")
    parser.add_argument("--trace", type=Path, help="file for the times, written at the end")
    parser.add_argument("--profile", type=Path, help="file for a profile of the loop")
    options = parser.parse_args()
    logging.configure("warning", "json")

    def run() -> None:
        uvloop.run(_run(options))

    if options.profile:
        _profiled(run, options.profile)
    else:
        run()


if __name__ == "__main__":
    main()
