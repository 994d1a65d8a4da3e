"""A stopped node becomes a new server: what it keeps, also where the power goes meanwhile."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path

import pytest

from proglog.cli.app import run
from proglog.config import LogConfig
from proglog.errors import ConfigurationError
from proglog.limits import KiB
from proglog.log.names import DEFAULT_GROUP, group_folder
from proglog.ports import Ports, RealFiles
from proglog.raft.configuration import Configuration, Server
from proglog.raft.messages import HardState
from proglog.replica import floors
from proglog.replica.floors import Floor, Memory
from proglog.replica.identity import open_node_directory
from proglog.replica.opening import look_into
from proglog.replica.renewal import look_at_survivor, recover, renew
from tests.doubles.disk import PowerCut, SimDisk
from tests.doubles.files import SimFiles
from tests.doubles.worker import SimWorker
from tests.replica.support import Clock, Node
from tests.replica.test_identity import CLUSTER, DATA_DIR, form, left_of, promised, start

FOLDER = group_folder(DATA_DIR, DEFAULT_GROUP)
ANOTHER = "d" * 36


def ports_on(disk: SimDisk, seed: int = 77) -> Ports:
    return Ports(files=SimFiles(disk), clock=Clock(), random=random.Random(seed), worker=SimWorker)


@pytest.fixture
def member() -> SimDisk:
    """The directory of one of three servers."""
    disk = promised()
    form(disk, CLUSTER)
    return disk


def doubt(disk: SimDisk) -> None:
    node = open_node_directory(DATA_DIR, node_name="", ports=ports_on(disk))
    node.doubt("it is old")
    node.close()


def test_a_new_server_keeps_name_term_and_log_and_believes_nothing_of_it(member: SimDisk) -> None:
    before = start(member, bootstrap=False)
    doubt(member)
    floors.save(SimFiles(member), FOLDER, Memory({"b": Floor(1, 2, 3)}, {}))
    done = renew(DATA_DIR, ports=ports_on(member))
    after = start(member)
    identity = after.node.identity
    assert (done.uuid, done.name, done.kept) == (identity.uuid, "n", 1)
    assert identity.uuid != before.node.identity.uuid
    assert identity.cluster_id == done.cluster_id == CLUSTER
    assert after.node.doubts == ""
    assert after.node.incarnation == 1
    assert after.hard_state.hard_state == HardState(before.hard_state.hard_state.term)
    assert after.hard_state.seal.node == identity.uuid
    assert (after.recovered.tip, after.recovered.commit_hint, after.applied) == (
        before.recovered.tip,
        0,
        0,
    )
    assert after.memory == Memory({}, {})
    # It is no voter by its own log: it waits to be called, and does not begin a cluster.
    assert not after.configurations[-1][1].is_voter(identity.uuid)


def test_it_may_join_another_cluster(member: SimDisk) -> None:
    renew(DATA_DIR, cluster_id=ANOTHER, ports=ports_on(member))
    opened = start(member, bootstrap=False)
    assert opened.node.identity.cluster_id == opened.hard_state.seal.cluster_id == ANOTHER


@pytest.mark.parametrize("command", [renew, recover])
def test_it_is_done_or_done_again_whenever_the_power_goes(member: SimDisk, command: object) -> None:
    old = start(member, bootstrap=False).node.identity.uuid
    number, over, begun = 1, False, 0
    while not over:
        disk = member.copy()
        disk.faults.power_cut_at = disk.operations + number
        try:
            command(DATA_DIR, ports=ports_on(disk, 1000 + number))  # type: ignore[operator]
            over = True
        except PowerCut:
            pass
        for left in left_of(disk):
            try:
                opened = start(left, bootstrap=False)
            except ConfigurationError as error:
                assert "was cut off: run it again" in str(error)
                begun += 1
                command(DATA_DIR, ports=ports_on(left, 99))  # type: ignore[operator]
                opened = start(left, bootstrap=False)
            identity = opened.node.identity
            assert identity.uuid == opened.hard_state.seal.node
            assert identity.cluster_id == opened.hard_state.seal.cluster_id
            if identity.uuid == old:
                assert not over
                assert len(opened.configurations[-1][1].voters) == 3
            elif command is renew:
                assert opened.recovered.commit_hint == 0
                assert not opened.configurations[-1][1].is_voter(identity.uuid)
            else:
                assert opened.recovered.commit_hint == opened.recovered.tip.index == 2
                assert opened.configurations[-1][1].voter_ids == (identity.uuid,)
        number += 1
    assert begun > 10


def test_of_the_two_commands_the_one_that_was_begun_is_to_be_ended(member: SimDisk) -> None:
    number = 0
    while True:
        number += 1
        disk = member.copy()
        disk.faults.power_cut_at = disk.operations + number
        with pytest.raises(PowerCut):
            renew(DATA_DIR, ports=ports_on(disk))
        left = left_of(disk)[0]
        node = open_node_directory(DATA_DIR, node_name="", ports=ports_on(left))
        node.close()
        if node.rebirth is not None:
            break
    with pytest.raises(ConfigurationError, match="renew of this directory was begun"):
        recover(DATA_DIR, ports=ports_on(left))
    renew(DATA_DIR, ports=ports_on(left))


def test_a_damaged_log_is_no_hint(member: SimDisk) -> None:
    start(member, bootstrap=False)
    (store,) = (name for name in member.listing(FOLDER) if name.endswith("1.store"))
    member.flip_bit(FOLDER / store, 8 * (16384 + 80))
    assert renew(DATA_DIR, ports=ports_on(member)).kept == 0
    opened = start(member, bootstrap=False)
    assert opened.recovered.tip.index == 0
    assert opened.node.identity.cluster_id == CLUSTER


# --- one that goes on alone ----------------------------------------------------------------------


def test_who_recovers_goes_on_where_its_log_ends(member: SimDisk) -> None:
    before = start(member, bootstrap=False)
    done = recover(DATA_DIR, ports=ports_on(member))
    after = start(member, bootstrap=False)
    identity, hard_state = after.node.identity, after.hard_state.hard_state
    assert identity.uuid == done.uuid != before.node.identity.uuid
    assert identity.cluster_id == done.cluster_id != CLUSTER
    (voter,) = after.configurations[-1][1].voters
    assert voter == Server(identity.uuid, "n", "n:1")
    assert (after.recovered.tip.index, after.recovered.tip.term) == (2, 2)
    assert after.recovered.commit_hint == 2
    assert hard_state == HardState(2)


def test_who_is_doubted_or_no_server_does_not_recover(member: SimDisk) -> None:
    renewed = member.copy()
    renew(DATA_DIR, ports=ports_on(renewed))
    with pytest.raises(ConfigurationError, match="no server of a cluster, by its own log"):
        recover(DATA_DIR, ports=ports_on(renewed))
    doubt(member)
    with pytest.raises(ConfigurationError, match="it is old"):
        recover(DATA_DIR, ports=ports_on(member))


def test_a_survivor_says_what_it_has_and_what_the_others_had(member: SimDisk) -> None:
    floors.save(SimFiles(member), FOLDER, Memory({"b": Floor(1, 2, 38), "x": Floor(1, 1, 99)}, {}))
    survivor = look_at_survivor(DATA_DIR, ports_on(member))
    assert (survivor.name, survivor.cluster_id) == ("n", CLUSTER)
    assert (survivor.last_term, survivor.last_index, survivor.known_commit) == (1, 1, 0)
    assert [server.name for server in survivor.servers] == ["b", "c", "n"]
    assert survivor.others == (("b", 38),)
    assert survivor.lost_at_least == 37


# --- real files ----------------------------------------------------------------------------------


async def test_the_only_server_of_a_cluster_has_nobody_to_join(
    folder: Path, tmp_path: Path
) -> None:
    async with Node(folder) as node:
        await node.fill(3)
        with pytest.raises(ConfigurationError, match="in use"):
            await asyncio.to_thread(renew, tmp_path)
    with pytest.raises(ConfigurationError, match="only server of its cluster"):
        await asyncio.to_thread(renew, tmp_path)
    with pytest.raises(ConfigurationError, match="no node's data directory"):
        await asyncio.to_thread(renew, tmp_path / "elsewhere")
    async with Node(folder) as node:
        assert node.replica.next_offset == 3


async def test_nothing_is_believed_of_what_was_committed(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One that led where it should not have committed what its cluster never did."""
    config = LogConfig(segment_bytes=64 * KiB, segment_batches=4)
    async with Node(folder, config=config) as node:
        await node.fill(10)
        await node.written()
        await asyncio.to_thread(node.directory.doubt, "it is old")
    assert node.snapshots()
    survivor = await asyncio.to_thread(look_at_survivor, tmp_path)
    last = survivor.last_index
    assert survivor.known_commit == last > 10
    assert await asyncio.to_thread(run, ["renew", str(tmp_path)]) == 0
    assert f"{last} batches of its log stay" in capsys.readouterr().out
    assert not node.snapshots()
    await node.open()
    try:
        assert (node.replica.commit_index, node.replica.applied_index) == (0, 0)
        assert node.replica.status().last_index == last
        await asyncio.sleep(0.1)
        assert not node.replica.leadership.is_mine
    finally:
        await node.close()


async def test_one_that_is_alone_recovers_with_all_its_records(
    folder: Path, tmp_path: Path
) -> None:
    config = LogConfig(segment_bytes=64 * KiB, segment_batches=4)
    async with Node(folder, config=config) as node:
        values = await node.fill(10)
    await asyncio.to_thread(recover, tmp_path)
    async with Node(folder, config=config) as node:
        assert await node.consume() == values
        await node.produce(b"more")
    recovered, configurations = await asyncio.to_thread(
        look_into, RealFiles(), folder, DEFAULT_GROUP, config
    )
    recovered.close()
    assert configurations[-1][1] == Configuration(configurations[-1][1].voters)
