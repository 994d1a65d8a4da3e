"""How soon a log of a million records opens after kill -9."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import sys
import tempfile
from collections import deque
from pathlib import Path
from time import perf_counter
from typing import NamedTuple

import uvloop

import proglog
from proglog.batch import ProposedBatch, encode
from proglog.cli.bench import free_port, values_of
from proglog.types import Appended
from scripts.bench import node
from scripts.bench.servers import ROOT, START_SECONDS_MAX, connected, running
from scripts.bench.systems import Proglog

BUILD_SECONDS_MAX = 180
_INFLIGHT = 1000


class Opened(NamedTuple):
    """Seconds until the node served: from when its program was loaded, and from its very start."""

    node_seconds: float
    process_seconds: float


async def build(folder: Path, records: int, batch_records: int) -> None:
    """Fills a log in this process, and kills the process."""
    body = encode(values_of(100)[:batch_records])
    async with proglog.open(folder) as log:
        stream = await log._backend.open_produce()
        waiting: deque[asyncio.Future[Appended]] = deque()
        for _ in range(records // batch_records):
            waiting.append(await stream.submit(ProposedBatch(body)))
            if len(waiting) == _INFLIGHT:
                await waiting.popleft()
        for answer in waiting:
            await answer
        os.kill(os.getpid(), signal.SIGKILL)


async def opening(folder: Path, records: int, batch_records: int, runs: int) -> list[Opened]:
    """Opens copies of such a log."""
    with tempfile.TemporaryDirectory(dir=folder) as own:
        data = Path(own) / "data"
        words = ("-m", "scripts.bench.opening", str(data), str(records), str(batch_records))
        builder = await asyncio.create_subprocess_exec(sys.executable, *words, cwd=ROOT)
        try:
            status = await asyncio.wait_for(builder.wait(), BUILD_SECONDS_MAX)
            assert status == -signal.SIGKILL, f"building the log ended with {status}"
        finally:
            if builder.returncode is None:
                builder.kill()
                await builder.wait()
        opened = []
        for run in range(runs):
            copy = Path(own) / str(run)
            await asyncio.to_thread(shutil.copytree, data, copy / "data")
            # kill -9 leaves little that is not on the disk; a copy all.
            await asyncio.to_thread(os.sync)
            opened.append(await _open(copy, records))
        return opened


async def _open(folder: Path, records: int) -> Opened:
    port = free_port()
    began = perf_counter()
    with running(node.command(folder, port), folder / "output") as server:
        client = await connected(Proglog, port, server)
        async with asyncio.timeout(START_SECONDS_MAX):
            while (await client.log.describe()).next < records:
                await asyncio.sleep(0.005)
            elapsed = perf_counter() - began
        started = await server.said(node.STARTED)
        await client.close()
        server.kill()
    return Opened(float(started[1]), elapsed)


if __name__ == "__main__":
    uvloop.run(build(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])))
