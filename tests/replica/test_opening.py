"""What keeps a directory from being opened."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from proglog.errors import CorruptionError
from proglog.raft.configuration import Server
from tests.log.support import flip
from tests.replica.support import Node


async def test_a_rotten_change_of_members_that_no_snapshot_holds_refuses(folder: Path) -> None:
    """Nobody could say who would mend it."""
    async with Node(folder) as node:
        await node.replica.members.add(Server("u2", "n2", "127.0.0.1:1"))
        log = node.replica.log
        index = log.tip.index
        # Behind the newest mark rot would pass for a torn write.
        while log.segment_of(index) is log.segment_of(log.tip.index):
            await node.produce(b"x")
        segment = log.segment_of(index)
        position, size = segment.extent(index, index, 1)
    for snapshot in folder.glob("snapshot-*"):
        snapshot.unlink()
    await asyncio.to_thread(flip, segment.store_path, position + size - 1)
    with pytest.raises(CorruptionError, match=r"change of the cluster.*Replace it") as told:
        await node.open()
    assert told.value.number("position") == position
