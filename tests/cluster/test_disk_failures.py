"""Disks that are lost, rot, or are all switched off together."""

from __future__ import annotations

from pathlib import Path

import pytest

from proglog import batch
from proglog.client.network import NetworkBackend
from proglog.errors import ProglogError
from tests.cluster.harness import Processes, Server, processes
from tests.cluster.load import Load, load_on, verify
from tests.cluster.stores import read_store
from tests.replica.support import log_in
from tests.waiting import until

pytestmark = pytest.mark.timeout(300)
OPTIONS = ("--segment-bytes=64KiB",)


async def follower(cluster: Processes) -> Server:
    leader = await cluster.leader()
    return next(server for server in cluster.servers if server is not leader)


async def test_a_follower_whose_disk_is_lost_is_replaced(tmp_path: Path) -> None:
    async with processes(tmp_path, options=OPTIONS) as cluster:
        async with load_on(cluster) as load:
            lost = await follower(cluster)
            (before,) = await _uuids(cluster, lost.name)
            await lost.kill()
            await lost.wipe()
            await load.progress()
            await lost.start()
            # Same name and new identity: the old server goes before the new one comes.
            await until(lambda: _is_replaced(cluster, lost.name, before), "it has a new uuid")
            await cluster.healthy()
        await verify(cluster, load)


async def _all_uuids(cluster: Processes) -> set[str]:
    async with cluster.admin() as admin:
        return {server.uuid for server in (await admin.status()).servers}


async def _uuids(cluster: Processes, name: str) -> list[str]:
    async with cluster.admin() as admin:
        servers = (await admin.status()).servers
    return [server.uuid for server in servers if server.id == name]


async def _is_replaced(cluster: Processes, name: str, before: str) -> bool:
    found = await _uuids(cluster, name)
    return len(found) == 1 and found != [before]


async def test_all_are_killed_at_once_and_started_again(tmp_path: Path) -> None:
    async with processes(tmp_path, options=OPTIONS) as cluster:
        async with load_on(cluster) as load:
            before = await _all_uuids(cluster)
            for server in cluster.servers:
                await server.kill()
            await cluster.start()
            await load.progress()
            await cluster.healthy()
            assert await _all_uuids(cluster) == before
        await verify(cluster, load)


async def test_a_flipped_bit_is_mended_from_a_peer(tmp_path: Path) -> None:
    async with processes(tmp_path, options=OPTIONS) as cluster:
        async with load_on(cluster) as load:
            await until(lambda: _has_segments(cluster, 3), "some segments are sealed")
        await cluster.whole()
        sick = await follower(cluster)
        await sick.stop()
        offset = _flip_a_bit(sick)
        await sick.start()
        await cluster.whole()
        await _read_all_from(sick, load)
        # The store is as it was before the bit was flipped: `verify` reads each of its bytes.
        assert "damage mended" in sick.log
        assert offset in load.acknowledged
        await verify(cluster, load)


async def _has_segments(cluster: Processes, count: int) -> bool:
    return all(
        len(list(log_in(server.data_dir).glob("0*.store"))) > count for server in cluster.servers
    )


def _flip_a_bit(server: Server) -> int:
    """Flips one bit in the middle of the oldest segment; the offset of the record it is in."""
    path = min(log_in(server.data_dir).glob("0*.store"))
    victim = next(
        batch
        for batch in read_store(server.data_dir).batches[20:]
        if batch.values and len(batch.raw) > 200
    )
    data = bytearray(path.read_bytes())
    data[data.index(victim.raw) + 150] ^= 0x10
    path.write_bytes(data)
    with pytest.raises(AssertionError):
        read_store(server.data_dir)
    return victim.base_offset


async def _read_all_from(server: Server, load: Load) -> None:
    """Whoever reads from this server, and no other one, gets every record, if it has to wait for
    some."""
    backend = NetworkBackend([server.address], "", None)
    offset = 0

    async def read_on() -> bool:
        nonlocal offset
        try:
            async for chunk in backend.consume(offset, follow=False, at=server.address):
                for header, body in batch.walk(chunk.data):
                    for record in batch.decode(header, body).between(offset):
                        assert record.offset == offset
                        assert load.acknowledged.get(offset, record.value) == record.value
                        offset += 1
        except ProglogError:
            return False  # damaged, for the moment
        return offset > max(load.acknowledged)

    try:
        await until(read_on, "every record is there")
    finally:
        await backend.close()
