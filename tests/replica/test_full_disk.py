"""A disk that is really full: a small tmpfs."""

from __future__ import annotations

import asyncio
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from proglog import limits
from proglog.config import LogConfig
from proglog.errors import DiskFull
from tests import judges
from tests.replica.support import Node, log_in
from tests.replica.test_failures import until_refused, until_taken

DISK_BYTES = 2 * limits.MiB
CONFIG = LogConfig(segment_bytes=256 * limits.KiB, segment_batches=1000)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own, of a few segments."""
    mount = tmp_path / "disk"
    mount.mkdir()
    done = subprocess.run(
        [judges.program("mount"), "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "tmpfs", str(mount)],
        check=False,
        capture_output=True,
        text=True,
    )
    if done.returncode:
        judges.leave_out("a file system must be mounted", done.stderr)
    try:
        yield mount
    finally:
        subprocess.run(["umount", "-l", str(mount)], check=True, capture_output=True)


def fill_up(path: Path) -> None:
    """Takes all the space that is left."""
    with path.open("wb", buffering=0) as file:
        for size in (65536, 4096):
            try:
                while True:
                    file.write(bytes(size))
            except OSError:
                continue


async def test_until_it_is_full_and_then_has_space(disk: Path) -> None:
    async with Node(log_in(disk), config=CONFIG) as node:
        values = await until_refused(node, size=5000)
        assert len(values) * 5000 > DISK_BYTES // 2
        for _ in range(3):
            with pytest.raises(DiskFull):
                await node.produce(bytes(5000))
        assert node.failure is None
        assert await node.consume() == values
        await node.restart()
        assert await node.consume() == values
        with pytest.raises(DiskFull):
            for _ in range(1000):
                await node.produce(bytes(5000))
        assert (await node.consume())[: len(values)] == values
        assert node.failure is None


async def test_full_because_of_others(disk: Path) -> None:
    async with Node(log_in(disk), config=CONFIG) as node:
        values = await node.fill(10, size=5000)
        await asyncio.to_thread(fill_up, disk / "others")
        values += await until_refused(node, size=5000)
        assert await node.consume() == values
        await node.restart()
        assert await node.consume() == values
        await asyncio.to_thread((disk / "others").unlink)
        values.append(bytes(5000))
        await until_taken(node, values[-1])
        values += await node.fill(100, size=5000)
        assert await node.consume() == values
        assert node.failure is None
        await node.restart()
        assert await node.consume() == values
