"""`proglog serve` on a failing disk, in several lives, and what was acknowledged in all of them."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import AsyncIterator
from itertools import count
from pathlib import Path

import proglog
from proglog.errors import ProglogError
from tests.disk.device import Disk
from tests.ports import free_port
from tests.waiting import DEADLINE_SECONDS, until

ROOT = Path(__file__).resolve().parents[2]
CALL_SECONDS_MAX = 3.0
IDLE_SECONDS = 0.2
"""By then a node without work has put in order what it does beside its work."""
SEGMENT_BYTES = 256 * 1024
FILES_MAX = 4096
SMALL, LARGE = 100, 10_000
"""Bytes of a value: many to a block, and some blocks to one."""
LOAD_SIZE = 2000


class Node:
    """Its data are on the disk; what it says is not."""

    def __init__(
        self,
        disk: Disk,
        *options: str,
        segment_bytes: int = SEGMENT_BYTES,
        files_max: int = FILES_MAX,
    ) -> None:
        self.data = disk.folder / "data"
        self.port = free_port()
        self.acknowledged: dict[int, bytes] = {}
        self.refusals: list[ProglogError] = []
        self.segment_bytes = segment_bytes
        self._numbers = count()
        self._files_max = files_max
        self._log = disk.folder.with_name("node.log")
        self._options = (
            *(f"--data-dir={self.data}", f"--rpc-port={self.port}", "--http-addr=none"),
            *(f"--bind-addr=127.0.0.1:{free_port()}", f"--segment-bytes={segment_bytes}"),
            *("--segment-batches=1000", *options),
        )

    # --- lives -----------------------------------------------------------------------------------

    async def start(self) -> None:
        """Raises AssertionError where it does not serve."""
        assert await self.attempt(), f"it does not serve\n{self.log}"

    async def attempt(self) -> bool:
        """Starts it; whether it serves. If not, it has ended."""
        self._log.unlink(missing_ok=True)
        with self._log.open("wb") as log:
            self.process = await asyncio.create_subprocess_exec(
                *("prlimit", f"--nofile={self._files_max}", "setpriv", "--pdeathsig=KILL"),
                *(sys.executable, "-m", "proglog.cli", "serve", *self._options),
                cwd=ROOT,
                stdout=asyncio.subprocess.PIPE,
                stderr=log,
            )
        async with asyncio.timeout(DEADLINE_SECONDS):
            while line := await self.process.stdout.readline():
                if line.startswith(b"Ctrl-C"):
                    return True
            await self.process.wait()
        return False

    async def ended(self) -> int:
        """Its exit status, once it has ended by itself."""
        async with asyncio.timeout(DEADLINE_SECONDS):
            return await self.process.wait()

    async def stop(self) -> None:
        self.process.terminate()
        assert await self.ended() == 0, self.log

    async def kill(self) -> None:
        if self.process.returncode is None:
            self.process.kill()
            await self.process.wait()

    @property
    def log(self) -> str:
        return self._log.read_text(errors="replace")

    # --- clients ---------------------------------------------------------------------------------

    def connect(self, seconds: float = CALL_SECONDS_MAX) -> proglog.Log:
        return proglog.connect(f"proglog://127.0.0.1:{self.port}", timeout_seconds=seconds)

    async def produce(
        self, records: int, size: int = SMALL, *, seconds: float = CALL_SECONDS_MAX
    ) -> None:
        """So many records, one at a time. Raises what the first that fails raises."""
        async with self.connect(seconds) as log:
            for _ in range(records):
                await self.append(log, size)

    async def append(self, log: proglog.Log, size: int) -> None:
        """One record more, through this client."""
        value = b"%d:" % next(self._numbers)
        value = value.ljust(size, b".")
        offset = await log.produce(value)
        assert self.acknowledged.setdefault(offset, value) is value, f"offset {offset} twice"

    async def load(self, tasks: int = 8, size: int = LOAD_SIZE) -> None:
        """Produces until it is cancelled, or one after the other hears that this is no use."""
        async with self.connect() as log, asyncio.TaskGroup() as group:
            for _ in range(tasks):
                group.create_task(self._load(log, size))

    async def _load(self, log: proglog.Log, size: int) -> None:
        while True:
            try:
                await self.append(log, size)
            except ProglogError as error:
                self.refusals.append(error)
                return

    async def progress(self, records: int = 100) -> None:
        wanted = len(self.acknowledged) + records
        await until(lambda: len(self.acknowledged) >= wanted, "records are acknowledged")

    async def read(self) -> dict[int, bytes]:
        async with self.connect() as log:
            return {record.offset: record.value async for record in log.consume(0, follow=False)}

    async def has_all(self) -> None:
        """Nothing that was acknowledged is missing, and nothing is there twice."""
        acknowledged = dict(self.acknowledged)  # perhaps there is a load
        found = await self.read()
        lost = [offset for offset, value in acknowledged.items() if found.get(offset) != value]
        assert not lost, f"acknowledged and not there: {lost[:20]}\n{self.log}"
        assert len(set(found.values())) == len(found)

    # --- commands --------------------------------------------------------------------------------

    async def command(self, name: str, *words: str) -> tuple[int, str]:
        """`proglog verify` or `repair` of the data: exit status and all that it says."""
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "proglog.cli", name, str(self.data), *words),
            cwd=ROOT,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        output, _ = await asyncio.wait_for(process.communicate(), DEADLINE_SECONDS)
        return process.returncode, output.decode()

    # --- files -----------------------------------------------------------------------------------

    def files(self, pattern: str) -> list[Path]:
        """Those of its data, oldest first."""
        return sorted(path for path in self.data.rglob(pattern) if path.is_file())

    def end(self) -> tuple[Path, int]:
        """In which file the newest acknowledged record stands, and where it ends there."""
        value = self.acknowledged[max(self.acknowledged)]
        for path in reversed(self.files("*.store")):
            if (position := path.read_bytes().rfind(value)) >= 0:
                return path, position + len(value)
        raise AssertionError(f"{value!r} is in no store")


@contextlib.asynccontextmanager
async def running(disk: Disk, *options: str, **how: int) -> AsyncIterator[Node]:
    """A node that serves; it is killed at the end, whatever life it is in then."""
    node = Node(disk, *options, **how)
    try:
        await node.start()
        yield node
        assert "Traceback" not in node.log, node.log
    finally:
        await node.kill()


@contextlib.asynccontextmanager
async def under_load(node: Node) -> AsyncIterator[None]:
    """The load has been heard, and ends when the node or what is within does."""
    task = asyncio.create_task(node.load())
    try:
        await node.progress()
        yield
    finally:
        task.cancel()
        await asyncio.wait([task])
