"""What a stopped node's log says of the others that count on it."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from proglog import batch as batches
from proglog.batch import Kind
from proglog.errors import CorruptionError
from proglog.log.names import store_name
from proglog.log.repair import Allow, repair
from proglog.raft.configuration import Configuration, Server
from proglog.replica.offline import why_not_given_up
from proglog.replica.state import ReplicatedState
from tests.log.support import Engine, flip

ALONE = Configuration((Server("1" * 32, "n1", "h1:8400"),))
THREE = Configuration(tuple(Server(str(n) * 32, f"n{n}", f"h{n}:8400") for n in (1, 2, 3)))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "log"


async def configure(engine: Engine, configuration: Configuration) -> None:
    tip = engine.log.tip
    body = batches.plain_body(configuration.encode())
    header, packed = batches.build(
        body,
        kind=Kind.CONFIGURATION,
        index=tip.index + 1,
        term=1,
        base_offset=tip.next_offset,
        timestamp=0,
        chain_crc=tip.chain,
    )
    await engine.log.make_room(header.size)
    engine.log.append(header, (packed, bytes(body.data)))


async def make(folder: Path, grown_at: int, damaged: int, *, snapshot: bool) -> None:
    """A log of a server that is alone until batch `grown_at`; a batch of it is damaged."""
    async with Engine(folder) as engine:
        await configure(engine, THREE if grown_at == 1 else ALONE)
        for index in range(2, 21):
            if index == grown_at:
                await configure(engine, THREE)
            else:
                await engine.append(b"value")
        await engine.all_durable()
        await engine.settled()
        if snapshot:
            state = ReplicatedState()
            state.configuration = THREE if grown_at == 1 else ALONE
            state.configuration_index = 1
            await engine.log.write_snapshot(engine.log.sealed_tips()[0], state.encode)
        segment = engine.log.segment_of(damaged)
        position = segment.index.position(damaged - segment.first_index)
        path = folder / store_name(segment.first_index)
    flip(path, position + 80)


@pytest.mark.parametrize("allow", [Allow.GIVE_UP, Allow.CUT])
@pytest.mark.parametrize("snapshot", [False, True], ids=["no snapshot", "an old snapshot"])
@pytest.mark.parametrize(
    ("grown_at", "damaged"), [(1, 5), (9, 12), (12, 10), (17, 19), (19, 18), (10, 6)], ids=str
)
def test_a_member_gives_up_nothing_whatever_its_snapshots_know(
    folder: Path, grown_at: int, damaged: int, snapshot: bool, allow: Allow
) -> None:
    asyncio.run(make(folder, grown_at, damaged, snapshot=snapshot))
    before = {path: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(CorruptionError, match=r"member of a cluster \(n1, n2, n3\)"):
        repair(folder, allow=allow, guard=why_not_given_up)
    assert {path: path.read_bytes() for path in folder.iterdir()} == before


@pytest.mark.parametrize("snapshot", [False, True], ids=["no snapshot", "an old snapshot"])
def test_a_server_that_is_alone_may(folder: Path, snapshot: bool) -> None:
    asyncio.run(make(folder, 0, 12, snapshot=snapshot))
    assert len(repair(folder, allow=Allow.GIVE_UP, guard=why_not_given_up)) == 1
