"""What is refused, and not lost: no space, no quota, no descriptors, a read-only file system."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
from collections.abc import AsyncIterator, Callable
from pathlib import Path

from proglog.errors import DiskFull, ProglogError
from tests.disk.device import Disk, MiB, QuotaDisk
from tests.disk.node import LARGE, LOAD_SIZE, SEGMENT_BYTES, Node, running, under_load
from tests.waiting import until

FILES_MAX = 200
"""Descriptors that the node may have."""


async def until_refused(node: Node) -> None:
    """Produces until there is no space, and finds the node well."""
    await node.load()
    assert node.process.returncode is None, node.log
    assert {type(error) for error in node.refusals} == {DiskFull}, node.refusals
    node.refusals.clear()
    await node.has_all()


async def until_taken(node: Node) -> None:
    """Until a segment's worth of records is taken: a few may have found a place in the last one."""
    wanted = len(node.acknowledged) + 2 * node.segment_bytes // LOAD_SIZE

    async def are_taken() -> bool:
        with contextlib.suppress(DiskFull):
            await node.produce(wanted - len(node.acknowledged), LOAD_SIZE)
        return len(node.acknowledged) >= wanted

    await until(are_taken, "there is space again")


async def refuses_and_goes_on(node: Node, give_space: Callable[[], object]) -> None:
    """Full, full again after a start, and served once there is space."""
    await until_refused(node)
    await node.stop()
    await node.start()
    await until_refused(node)
    await node.kill()
    await node.start()
    await node.has_all()
    await asyncio.to_thread(give_space)
    await until_taken(node)
    await node.has_all()
    await node.stop()
    assert (await node.command("verify"))[0] == 0


async def test_no_space_but_what_others_leave(disk: Disk) -> None:
    async with running(disk) as node:
        filler = await asyncio.to_thread(disk.fill, leave=4 * SEGMENT_BYTES)
        await refuses_and_goes_on(node, filler.unlink)


async def test_no_space_all_of_a_sudden(disk: Disk) -> None:
    async with running(disk) as node:
        async with under_load(node):
            filler = await asyncio.to_thread(disk.fill)
            await until_refused(node)
        await asyncio.to_thread(filler.unlink)
        await until_taken(node)
        node.refusals.clear()
        async with under_load(node):
            await node.progress(1000)
        assert not node.refusals
        await node.has_all()


async def test_no_quota(tmp_path: Path) -> None:
    with QuotaDisk(tmp_path) as disk:
        # btrfs wants some space for what it knows of a file: also where one is overwritten.
        disk.set_quota(5 * MiB - MiB // 4)
        async with running(disk, segment_bytes=MiB) as node:
            await refuses_and_goes_on(node, lambda: disk.set_quota(100 * MiB))


async def test_the_file_system_becomes_read_only(disk: Disk) -> None:
    """As ext4 does where it finds itself damaged: nobody asked for it, and it is for good."""
    async with running(disk) as node:
        async with under_load(node):
            await asyncio.to_thread(disk.turn_read_only)
            assert await node.ended() == 1
            assert node.log.count("Read-only file system") == 1, node.log
        assert not await node.attempt()
        assert node.process.returncode == 1
        assert "Read-only file system" in node.log
        assert str(node.data) in node.log
        disk.remount()
        await node.start()
        await node.has_all()
        await node.produce(20)
        await node.has_all()


@contextlib.asynccontextmanager
async def strangers(port: int, count: int) -> AsyncIterator[None]:
    """Connections that begin to speak HTTP/2 and say no more."""
    opened: list[asyncio.StreamWriter] = []
    try:
        for _ in range(count):
            with contextlib.suppress(OSError):
                async with asyncio.timeout(1):
                    _, writer = await asyncio.open_connection("127.0.0.1", port)
                opened.append(writer)
                writer.write(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\4\0\0\0\0\0")
        yield
    finally:
        for writer in opened:
            writer.close()


async def test_no_descriptors(disk: Disk) -> None:
    """Strangers may take the node's last descriptors; then it refuses, and is well once they are
    gone. Segments are begun all the time, for each of which it needs some."""
    async with running(disk, files_max=FILES_MAX) as node:
        async with node.connect() as log:
            await node.append(log, LARGE)
            async with strangers(node.port, 2 * FILES_MAX):
                try:
                    for _ in range(20 * SEGMENT_BYTES // LARGE):
                        await node.append(log, LARGE)
                except ProglogError as error:
                    assert node.process.returncode is None, node.log
                    assert os.strerror(errno.EMFILE) in str(error)
        await until(lambda: can_connect(node), "it accepts again")
        await node.produce(200, LOAD_SIZE)
        await node.has_all()
        await node.kill()
        await node.start()
        await node.has_all()


async def can_connect(node: Node) -> bool:
    with contextlib.suppress(ProglogError):
        await node.produce(1)
        return True
    return False
