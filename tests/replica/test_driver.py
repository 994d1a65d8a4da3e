"""The driver beside a disk that is slow or full."""

from __future__ import annotations

import asyncio
import errno
import random
from pathlib import Path

import pytest

from proglog import batch as batches
from proglog import limits
from proglog.batch import HEADER_BYTES, Kind
from proglog.config import LogConfig
from proglog.errors import DiskFull
from proglog.log.snapshot import Snapshot
from proglog.raft.config import RaftConfig
from proglog.raft.configuration import AddLearner, Configuration, Server
from proglog.raft.core import Raft
from proglog.raft.driver import Driver, ReceivedBatch
from proglog.raft.log_view import LogView
from proglog.raft.messages import AppendRequest, HardState, Heartbeat, InstallSnapshot
from tests.log.disk import Disk
from tests.replica.support import Node
from tests.waiting import until

CONFIG = LogConfig(segment_bytes=64 * limits.KiB, segment_batches=1000)
TERM = 7


def pod(number: int) -> Server:
    """With a name and an address as long as they are in Kubernetes."""
    name = f"proglog-{number}.proglog.messaging.svc.cluster.local"
    return Server(f"00000000-0000-4000-8000-{number:012d}", name, f"{name}:8400")


def make_follower(node: Node) -> Driver:
    """The driver of a replica, no longer a cluster of its own but one of three servers."""
    driver, log = node.replica._driver, node.replica.log
    uuid = node.replica.identity.uuid
    servers = (Server(uuid, uuid), Server("leader", "leader"), Server("other", "other"))
    driver.raft = Raft(
        id=uuid,
        config=RaftConfig(),
        hard_state=HardState(log.tip.term),
        log=LogView(runs=[(1, log.tip.term)], last_index=log.tip.index, size_of=log.size_of),
        configurations=[(1, Configuration(servers))],
        commit=log.tip.index,
        rng=random.Random(1),
    )
    return driver


def next_batch(node: Node) -> ReceivedBatch:
    tip, body = node.replica.log.tip, batches.encode([b"x"])
    header, packed = batches.build(
        body,
        kind=Kind.DATA,
        index=tip.index + 1,
        term=TERM,
        base_offset=tip.next_offset,
        timestamp=tip.timestamp,
        chain_crc=tip.chain,
    )
    return ReceivedBatch(header, memoryview(packed + bytes(body.data)))


# --- room for changes ----------------------------------------------------------------------------


async def test_a_change_without_room_for_it_is_refused(folder: Path) -> None:
    disk = Disk()
    async with Node(folder, config=CONFIG, files=disk) as node:
        members, log = node.replica.members, node.replica.log
        for number in range(1, 5):
            await members.add(pod(number))
        disk.failing = {"create": errno.ENOSPC, "reserve": errno.ENOSPC}
        for size in (1000, 100, 30, 1):
            with pytest.raises(DiskFull):
                while True:
                    await node.produce(bytes(size))
        size = HEADER_BYTES + len(node.replica.leadership.configuration.encode())
        assert not log.has_room(size)
        assert log.has_room(limits.control_bytes_reserved)
        with pytest.raises(DiskFull):
            await members.remove(pod(1).uuid)
        disk.failing = {}

        async def removed() -> bool:
            try:
                await members.remove(pod(1).uuid)
            except DiskFull:  # A refusal is remembered for a moment.
                return False
            return True

        await until(removed)
        assert node.failure is None


async def test_a_change_takes_room_at_once(folder: Path) -> None:
    async with Node(folder, config=CONFIG) as node:
        driver = node.replica._driver
        driver.propose_change(AddLearner(pod(1)))
        size = HEADER_BYTES + len(driver.raft.configuration.encode())
        assert (driver.pending_bytes, driver.pending_batches) == (size, 1)
        await node.produce(b"x")
        assert (driver.pending_bytes, driver.pending_batches) == (0, 0)
        assert node.replica.leadership.configuration.learners == (pod(1),)


# --- what waits for the disk ---------------------------------------------------------------------


async def test_room_is_promised_when_what_came_before_has_taken_its_own(folder: Path) -> None:
    async with Node(folder, config=CONFIG) as node:
        driver, received = make_follower(node), [next_batch(node)]
        us, log = node.replica.identity.uuid, node.replica.log
        assert driver.has_room_for(received)
        driver.receive(Heartbeat("leader", us, TERM, 0, 0))
        await asyncio.sleep(0)
        assert driver._waiting_for_disk is not None
        assert not driver.has_room_for(received)
        await driver.make_room_for(received)
        assert driver._waiting_for_disk is None
        request = AppendRequest(
            "leader", us, TERM, log.tip.index, log.tip.term, log.tip.index + 1, 0
        )
        driver.receive_append(request, received)
        assert log.tip.term == TERM


async def test_who_waits_for_space_takes_no_part(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing of what it would say could leave, and it could be a lot until there is space."""
    async with Node(folder, config=CONFIG) as node:
        driver, log, us = make_follower(node), node.replica.log, node.replica.identity.uuid
        is_full = True
        reset = log.reset

        async def full(snapshot: Snapshot) -> None:
            if is_full:
                raise DiskFull("no space")
            await reset(snapshot)

        monkeypatch.setattr(log, "reset", full)
        tip = log.tip._replace(index=100, term=TERM)
        state = node.replica._applier.state.encode()
        offer = InstallSnapshot("leader", us, TERM, 100, TERM, driver.raft.configuration)
        driver.receive_snapshot(offer, Snapshot(tip, state))
        await until(lambda: driver._is_starved)
        for number in range(1000):
            driver.receive(Heartbeat("leader", us, TERM, 0, number))
            driver.tick(1)
        said = driver.raft._state.messages_after_persist
        assert len(said) < 10
        is_full = False
        await until(lambda: not driver._is_starved)
        assert log.tip.index == 100
        driver.receive(Heartbeat("leader", us, TERM, 0, 1000))
        assert driver.raft._state.messages_after_persist
        assert node.failure is None
