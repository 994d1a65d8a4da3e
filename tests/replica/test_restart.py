"""Starting: with an old directory, a wrong one, one in use, a damaged one."""

from __future__ import annotations

import asyncio
import gc
import os
import shutil
from functools import partial
from pathlib import Path

import pytest

from proglog.errors import ConfigurationError, CorruptionError
from proglog.log.format import PREAMBLE_BYTES
from proglog.log.names import store_name
from proglog.log.repair import Allow, repair
from proglog.raft.hard_state import FILE_NAME
from tests.replica.support import Node, descriptors, log_in

BLOCK = 4096


async def made(folder: Path, count: int = 40) -> list[bytes]:
    """A directory with some records, closed."""
    async with Node(folder) as node:
        return await node.fill(count)


async def test_everything_is_there_again(folder: Path) -> None:
    async with Node(folder) as node:
        values = await node.fill(40)
        first = node.replica.describe()
        for _ in range(3):
            await node.restart()
            assert await node.consume() == values
            values += await node.fill(7)
        last = node.replica.describe()
    assert (last.cluster_id, last.node_uuid) == (first.cluster_id, first.node_uuid)
    assert last.term == first.term + 3
    assert last.next == 61


async def test_after_a_copy_of_a_running_directory(
    folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Like kill -9: nothing was closed."""
    async with Node(folder) as node:
        values = await node.fill(40)
        await node.written()
        copy = tmp_path_factory.mktemp("other") / "copy"
        await asyncio.to_thread(shutil.copytree, node.data_dir, copy)
    async with Node(log_in(copy)) as node:
        assert await node.consume() == values
        await node.produce(b"more")


async def test_a_directory_knows_its_node(folder: Path) -> None:
    values = await made(folder)
    for _ in range(3):
        with pytest.raises(ConfigurationError, match="belongs to node n1, not n2"):
            await Node(folder, name="n2").open()
    gc.collect()
    assert descriptors(folder) <= 2, "the last error may hold the maps of two indexes"
    # Without a name it is the directory's. And the refused start left nothing locked.
    async with Node(folder, name="") as node:
        assert node.replica.describe().node == "n1"
        assert await node.consume() == values


async def test_closing_is_over_for_everybody_at_once(folder: Path) -> None:
    async with Node(folder) as node:
        await node.fill(40)
        replica = node.replica
        await asyncio.gather(*(replica.close() for _ in range(3)))
        assert replica.log.durable_index == replica.log.tip.index
    async with Node(folder) as node:
        assert len(await node.consume()) == 40


async def test_the_files_are_their_users_own(folder: Path) -> None:
    await made(folder)
    assert {path.stat().st_mode & 0o777 for path in folder.iterdir()} == {0o600}


async def test_a_directory_has_one_user(folder: Path) -> None:
    async with Node(folder) as node:
        for _ in range(2):
            with pytest.raises(ConfigurationError, match="in use"):
                await Node(folder).open()
        await node.produce(b"undisturbed")
    async with Node(folder) as node:
        assert await node.consume() == [b"undisturbed"]


@pytest.mark.parametrize("copy", [0, 1])
async def test_one_damaged_copy_of_the_hard_state_is_rewritten(folder: Path, copy: int) -> None:
    values = await made(folder)
    path = folder / FILE_NAME
    data = bytearray(path.read_bytes())
    whole = bytes(data)
    data[copy * BLOCK + 50] ^= 1
    path.write_bytes(data)
    async with Node(folder) as node:
        assert await node.consume() == values
        term = node.replica.describe().term
    healed = path.read_bytes()
    assert healed[:200] != whole[:200], "its term was raised"
    assert healed[: BLOCK // 2] == healed[BLOCK : BLOCK + BLOCK // 2]
    assert term == 3


async def test_a_hard_state_that_is_damaged_twice_is_refused(folder: Path) -> None:
    await made(folder)
    path = folder / FILE_NAME
    data = bytearray(path.read_bytes())
    data[50] ^= 1
    data[BLOCK + 60] ^= 1
    path.write_bytes(data)
    for _ in range(2):
        with pytest.raises(
            CorruptionError, match=r"hard-state at 0: .* no copy is whole"
        ) as caught:
            await Node(folder).open()
        assert caught.value.facts["file"] == str(path)
    assert path.read_bytes() == data


async def test_a_missing_hard_state_is_refused(folder: Path) -> None:
    await made(folder)
    (folder / FILE_NAME).unlink()
    for _ in range(2):
        with pytest.raises(CorruptionError, match="missing"):
            await Node(folder).open()
    assert not (folder / FILE_NAME).exists()


async def test_missing_segments_are_refused(folder: Path) -> None:
    await made(folder, 5)
    (folder / store_name(1)).unlink()
    for _ in range(2):
        with pytest.raises(CorruptionError, match="lost"):
            await Node(folder).open()


async def test_a_damaged_log_is_refused_and_left_as_it_is(folder: Path) -> None:
    await made(folder, 5)
    path = folder / store_name(1)
    data = bytearray(path.read_bytes())
    data[PREAMBLE_BYTES + 100] ^= 1
    path.write_bytes(data)
    with pytest.raises(CorruptionError, match="verify") as caught:
        await Node(folder).open()
    assert caught.value.facts["file"] == str(path)
    assert path.read_bytes() == data
    gc.collect()
    assert descriptors(folder) == 0


async def test_the_snapshot_is_not_needed_to_know_the_records(folder: Path) -> None:
    values = await made(folder, 40)
    for name in os.listdir(folder):
        if name.startswith("snapshot-"):
            (folder / name).unlink()
    async with Node(folder) as node:
        assert await node.consume() == values
        await node.written()
        assert len(node.snapshots()) == 2, "they are written again"


async def test_a_sole_server_says_that_nobody_has_what_it_cannot_read(folder: Path) -> None:
    """Committed, in no snapshot, and damaged: waiting for another server would last for ever."""
    await made(folder)
    first, *_ = sorted(folder.glob("0*.store"))
    for snapshot in folder.glob("snapshot-*"):
        snapshot.unlink()
    data = bytearray(first.read_bytes())
    data[PREAMBLE_BYTES + 500] ^= 1
    first.write_bytes(data)
    with pytest.raises(CorruptionError, match="no other server has it: proglog repair"):
        await Node(folder).__aenter__()
    [done] = await asyncio.to_thread(partial(repair, folder, allow=Allow.GIVE_UP))
    assert "offsets" in done
    async with Node(folder) as node:
        assert len(await node.consume()) < 40
        await node.produce(b"more")
