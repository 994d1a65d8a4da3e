"""A small log of a node on a simulated disk, with one of everything."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path

from proglog import batch as batches
from proglog.batch import Kind
from proglog.config import LogConfig
from proglog.log.format import Tip
from proglog.log.log import Log
from proglog.log.names import DEFAULT_GROUP, group_folder
from proglog.log.operations import Group
from proglog.ports import Offload, Ports
from proglog.raft.messages import HardState
from proglog.replica.state import ReplicatedState
from tests.doubles.disk import SimDisk
from tests.doubles.files import SimFiles
from tests.doubles.loop import SimClock, run
from tests.doubles.worker import SimWorker
from tests.opening import open_directory

DATA_DIR = Path("/data")
FOLDER = group_folder(DATA_DIR, DEFAULT_GROUP)
CONFIG = LogConfig(segment_bytes=24 * 1024, segment_batches=4)
BATCHES = 11
"""Segments 1-4, 5-8 and, active, 9-11."""
NODE = "00000000-0000-4000-8000-000000000007"


class _Events:
    def durable(self, index: int) -> None: ...

    def group_written(self, group: Group) -> None: ...

    def sealed(self, last: Tip) -> None: ...

    def failed(self, error: BaseException) -> None:
        raise error


async def _append(log: Log, number: int) -> None:
    body = batches.encode([b"value %d of %d" % (at, number) for at in range(1 + number % 3)])
    header, packed = batches.build(
        body,
        kind=Kind.DATA,
        index=log.tip.index + 1,
        term=1 + number // 3,
        base_offset=log.tip.next_offset,
        timestamp=max(log.tip.timestamp, number),
        chain_crc=log.tip.chain,
        producer_id=number % 2,
        sequence=number // 2,
    )
    await log.make_room(header.size)
    log.append(header, (packed, bytes(body.data)))
    # So that each has its mark.
    await asyncio.sleep(0.1)


async def _make(*, based: bool, snapshots: bool, count: int) -> SimDisk:
    disk = SimDisk()
    ports = Ports(files=SimFiles(disk), clock=SimClock(), random=random.Random(1), worker=SimWorker)
    opened = open_directory(
        FOLDER, config=CONFIG, ports=ports, node_name="n", rpc_addr="n:8400", bootstrap=True
    )
    log = Log(FOLDER, opened.recovered, CONFIG, ports, _Events(), Offload(ports.worker("reader")))
    state = ReplicatedState()
    state.configuration_index, state.configuration = opened.configurations[0]
    for number in range(2, count + 1):
        await _append(log, number)
    log.set_commit(log.tip.index - 1)
    for tip in log.sealed_tips() if snapshots else []:
        await log.write_snapshot(tip, state.encode)
    if based:
        assert log.drop_prefix(log.sealed_tips()[0].index + 1) == 1
    await asyncio.sleep(1)
    opened.hard_state.save(HardState(7, NODE))
    await log.close()
    opened.hard_state.close()
    opened.node.close()
    return disk


def small(*, based: bool = False, snapshots: bool = True, count: int = BATCHES) -> SimDisk:
    """The disk of a node that was stopped. `based`: its first segment was dropped."""
    return run(_make(based=based, snapshots=snapshots, count=count))
