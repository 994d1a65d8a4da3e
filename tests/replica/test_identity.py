"""Whose a data directory is: over restarts, power cuts, lost copies, and moved folders."""

from __future__ import annotations

import asyncio
import json
import random
import shutil
from pathlib import Path

import pytest

from proglog.config import LogConfig
from proglog.errors import ConfigurationError, CorruptionError, UnknownFormat
from proglog.log.envelope import NODE
from proglog.log.format import END_OF_LOG, PREAMBLE_BYTES
from proglog.log.plan import Verdict
from proglog.log.twin import BLOCK_BYTES, TwinFile
from proglog.ports import Ports, RealFiles
from proglog.raft.configuration import Configuration, Server
from proglog.raft.hard_state import FILE_NAME as HARD_STATE
from proglog.raft.messages import HardState
from proglog.replica.identity import (
    FILE_NAME,
    Begin,
    NodeReport,
    open_node_directory,
    verify_node,
)
from proglog.replica.opening import FIRST_TERM, Opened, first_batch, open_log
from tests.doubles import crash
from tests.doubles.disk import PowerCut, SimDisk
from tests.doubles.files import SimFiles
from tests.doubles.worker import SimWorker
from tests.replica.support import Clock, Node, log_in

DATA_DIR = Path("/data")
CLUSTER = "c" * 36


def members_of(data_dir: Path) -> dict[str, object]:
    """What the first copy says, by the description of the format alone."""
    data = (data_dir / FILE_NAME).read_bytes()
    length = int.from_bytes(data[12:16], "little")
    members: dict[str, object] = json.loads(data[24 + 8 : length])
    return members


async def put(data_dir: Path, payload: bytes) -> None:
    def make() -> None:
        TwinFile.create(RealFiles(), data_dir / FILE_NAME, NODE, payload).close()

    await asyncio.to_thread(make)


async def verified(data_dir: Path) -> NodeReport:
    return await asyncio.to_thread(verify_node, data_dir)


async def test_a_node_stays_who_it_is_and_counts_its_lives(folder: Path, tmp_path: Path) -> None:
    async with Node(folder) as node:
        first = node.replica.identity
        assert node.directory.incarnation == 1
        for life in (2, 3):
            await node.restart()
            assert (node.replica.identity, node.directory.incarnation) == (first, life)
    members = members_of(tmp_path)
    assert members == {
        "cluster": "",
        "cluster_id": first.cluster_id,
        "created": node.clock.ms,
        "incarnation": 3,
        "journal": 0,
        "labels": {},
        "name": "n1",
        "uuid": first.uuid,
    }
    data = (tmp_path / FILE_NAME).read_bytes()
    assert data[:BLOCK_BYTES] == data[BLOCK_BYTES:]


async def test_what_a_newer_version_added_is_kept(folder: Path, tmp_path: Path) -> None:
    async with Node(folder):
        pass
    members = {**members_of(tmp_path), "zone": "b", "labels": {"rack": "7"}}
    payload = json.dumps(members, separators=(",", ":"), sort_keys=True).encode()
    await put(tmp_path, payload)
    async with Node(folder):
        pass
    assert members_of(tmp_path) == {**members, "incarnation": 2}


@pytest.mark.parametrize("copy", [0, 1])
async def test_one_damaged_copy_is_rewritten(folder: Path, tmp_path: Path, copy: int) -> None:
    async with Node(folder) as node:
        identity = node.replica.identity
    path = tmp_path / FILE_NAME
    data = bytearray(path.read_bytes())
    data[copy * BLOCK_BYTES + 50] ^= 1
    path.write_bytes(data)
    (entry,) = (await verified(tmp_path)).entries
    assert (entry.file, entry.position, entry.verdict) == (
        path,
        copy * BLOCK_BYTES,
        Verdict.REWRITTEN,
    )
    async with Node(folder) as node:
        assert node.replica.identity == identity
    assert (await verified(tmp_path)).entries == ()


@pytest.mark.parametrize("how", ["both copies", "the file"])
async def test_who_does_not_know_who_it_is_does_not_start(
    folder: Path, tmp_path: Path, how: str
) -> None:
    """Its log has promised things to others, under a name that is lost."""
    async with Node(folder):
        pass
    path = tmp_path / FILE_NAME
    data = bytearray(path.read_bytes())
    data[50] ^= 1
    data[BLOCK_BYTES + 60] ^= 1
    path.write_bytes(data)
    if how == "the file":
        path.unlink()
    before = contents(tmp_path)
    for _ in range(2):
        with pytest.raises(CorruptionError, match="start it anew with an empty directory") as told:
            await Node(folder).open()
        assert told.value.facts["file"] == str(path)
    assert (await verified(tmp_path)).is_damaged
    assert contents(tmp_path) == before


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("alone", ["a log without its hard state", "no log at all"])
async def test_a_node_whose_log_is_gone_does_not_begin_another(
    folder: Path, tmp_path: Path, alone: str
) -> None:
    """It would vote and acknowledge anew under a uuid that has done both."""
    async with Node(folder):
        pass
    if alone == "no log at all":
        shutil.rmtree(folder)
    else:
        (folder / HARD_STATE).unlink()
    for _ in range(2):
        with pytest.raises(CorruptionError, match="hard-state is missing"):
            await Node(folder).open()
    (entry,) = (await verified(tmp_path)).entries
    assert entry.verdict is Verdict.REFUSED


async def test_the_log_of_another_node_is_refused_and_left_alone(
    tmp_path: Path,
) -> None:
    ours, theirs = log_in(tmp_path / "ours"), log_in(tmp_path / "theirs")
    async with Node(ours, seed=1), Node(theirs, seed=2):
        pass
    shutil.rmtree(ours)
    shutil.copytree(theirs, ours)
    before = contents(tmp_path)
    with pytest.raises(ConfigurationError, match=r"of another node.*Put each log's folder back"):
        await Node(ours).open()
    assert contents(tmp_path) == before
    assert (await verified(tmp_path / "ours")).is_damaged
    async with Node(theirs):
        pass


async def test_a_refused_start_is_no_life(folder: Path, tmp_path: Path) -> None:
    async with Node(folder):
        pass
    before = contents(tmp_path)
    with pytest.raises(ConfigurationError, match="belongs to node n1, not n2"):
        await Node(folder, name="n2").open()
    store = min(folder.glob("0*.store"))
    damaged = bytearray(store.read_bytes())
    damaged[PREAMBLE_BYTES + 80] ^= 1
    store.write_bytes(damaged)
    with pytest.raises(CorruptionError, match="Nothing was changed"):
        await Node(folder).open()
    store.write_bytes(before[store])
    assert contents(tmp_path) == before


async def test_a_log_with_a_journal_needs_a_newer_version(folder: Path, tmp_path: Path) -> None:
    async with Node(folder):
        pass
    members = {**members_of(tmp_path), "journal": 4}
    await put(tmp_path, json.dumps(members).encode())
    before = contents(tmp_path)
    with pytest.raises(UnknownFormat, match=r"node has format version 2 with journal 4"):
        await Node(folder).open()
    with pytest.raises(UnknownFormat):
        await verified(tmp_path)
    assert contents(tmp_path) == before


# --- power cuts ----------------------------------------------------------------------------------


def start(disk: SimDisk, *, bootstrap: bool = True, seed: int = 1) -> Opened:
    """A start up to where a replica would be made, and its end."""
    ports = Ports(files=SimFiles(disk), clock=Clock(), random=random.Random(seed), worker=SimWorker)
    node = open_node_directory(DATA_DIR, node_name="n", ports=ports)
    try:
        opened = open_log(
            node,
            2,
            config=LogConfig.for_tests(),
            ports=ports,
            rpc_addr="n:1",
            bootstrap=bootstrap,
        )
        opened.recovered.close()
        opened.hard_state.close()
    finally:
        if disk.powered:
            node.close()
    return opened


def cut_at(disk: SimDisk, number: int) -> bool:
    """A start whose power is cut at an operation; false if it was over before."""
    disk.faults.power_cut_at = disk.operations + number
    try:
        start(disk, seed=number)
    except PowerCut:
        return True
    return False


def left_of(disk: SimDisk) -> list[SimDisk]:
    """What a power cut leaves: nothing unsynced, everything, each alone, each but one."""
    changes = disk.unsynced()
    plans = [*crash.extremes(changes), *crash.singles(changes)]
    return [disk.crash(plan.fates) for plan in plans]


def test_a_first_start_goes_on_whenever_the_power_goes() -> None:
    """As one node of one cluster, also where the power goes a second time."""
    number, looked = 1, 0
    while cut_at(disk := SimDisk(number), number):
        for left in left_of(disk):
            for again in range(1, 40, 4):
                copy = left.copy()
                cut_at(copy, again)
                for last in left_of(copy):
                    looked += 1
                    opened = start(last)
                    identity = opened.node.identity
                    assert identity.cluster_id == opened.hard_state.seal.cluster_id != ""
                    assert identity.uuid == opened.hard_state.seal.node
                    assert opened.recovered.tip.index == 1
                    assert opened.configurations[-1][1].voter_ids == (identity.uuid,)
                    later = start(last)
                    assert later.node.identity == identity
                    assert later.node.incarnation == opened.node.incarnation + 1
        number += 1
    assert number > 20
    assert looked > 500


def test_no_two_lives_bear_one_number_whenever_the_power_goes() -> None:
    disk = SimDisk()
    first = start(disk)
    number = 1
    while True:
        cut = disk.copy()
        over = not cut_at(cut, number)
        for left in left_of(cut):
            opened = start(left)
            assert opened.node.identity == first.node.identity
            # Where the life that was cut short had begun, somebody may have heard of it.
            heard = first.node.incarnation + (1 if over else 0)
            assert opened.node.incarnation > heard
        if over:
            break
        number += 1
    assert number > 3


def test_a_promise_is_kept_by_both_files_whenever_the_power_goes() -> None:
    """To belong to a cluster: first the hard state says so, then the node's file."""
    made = SimDisk()
    start(made, bootstrap=False)
    for number in range(1, 20):
        disk = made.copy()
        files = SimFiles(disk)
        ports = Ports(files=files, clock=Clock(), random=random.Random(1), worker=SimWorker)
        node = open_node_directory(DATA_DIR, node_name="", ports=ports)
        opened = open_log(
            node, 2, config=LogConfig.for_tests(), ports=ports, rpc_addr="n:1", bootstrap=False
        )
        disk.faults.power_cut_at = disk.operations + number
        answered = False
        try:
            opened.hard_state.save(opened.hard_state.hard_state, "c" * 36)
            node.adopt("c" * 36)
            answered = True
            disk.faults.power_cut_at = disk.operations
            node.begin_life()
        except PowerCut:
            pass
        for left in left_of(disk):
            again = start(left, bootstrap=False)
            found = again.node.identity.cluster_id
            assert found == again.hard_state.seal.cluster_id
            assert found == "c" * 36 or not answered
        if answered:
            return
    raise AssertionError("it never ends")


def form(disk: SimDisk, cluster_id: str) -> None:
    """A node that has promised itself begins the cluster of three, as `Replica.begin` does."""
    ports = Ports(files=SimFiles(disk), clock=Clock(), random=random.Random(1), worker=SimWorker)
    node = open_node_directory(DATA_DIR, node_name="", ports=ports)
    opened = open_log(
        node, 2, config=LogConfig.for_tests(), ports=ports, rpc_addr="n:1", bootstrap=False
    )
    own = Server(node.identity.uuid, "n", "n:1")
    three = Configuration((own, Server("b", "b", "b:1"), Server("c", "c", "c:1")))
    begin = Begin(2, cluster_id, three.encode().decode(), 7)
    node.intend(begin)
    opened.hard_state.save(HardState(FIRST_TERM), cluster_id)
    _, packed, body = first_batch(begin.configuration.encode(), begin.timestamp)
    segment = opened.recovered.segments[-1]
    store = segment.open()
    store.pwritev([packed, body, END_OF_LOG], segment.index.end_position)
    store.fdatasync()
    node.has_begun(begin)
    opened.recovered.close()
    opened.hard_state.close()
    node.close()


def promised() -> SimDisk:
    """What has promised itself to a cluster, and waits."""
    disk = SimDisk()
    start(disk, bootstrap=False)
    ports = Ports(files=SimFiles(disk), clock=Clock(), random=random.Random(1), worker=SimWorker)
    node = open_node_directory(DATA_DIR, node_name="", ports=ports)
    opened = open_log(
        node, 2, config=LogConfig.for_tests(), ports=ports, rpc_addr="n:1", bootstrap=False
    )
    opened.hard_state.save(opened.hard_state.hard_state, CLUSTER)
    node.adopt(CLUSTER)
    opened.recovered.close()
    opened.hard_state.close()
    node.close()
    return disk


def test_a_cluster_that_is_formed_is_whole_or_none_whenever_the_power_goes() -> None:
    """Never one of a single server under the id that the others have promised themselves to: for
    its first batch it does not go by what the hard state looks like, but by what was intended."""
    made = promised()
    found: set[int] = set()
    number, over = 1, False
    while not over:
        disk = made.copy()
        disk.faults.power_cut_at = disk.operations + number
        try:
            form(disk, CLUSTER)
            over = True
        except PowerCut:
            pass
        for left in left_of(disk):
            for again in (0, 1, 3, 5, 8, 12, 20):
                copy = left.copy()
                if again:
                    cut_at(copy, again)
                for last in left_of(copy):
                    opened = start(last, seed=number)
                    assert opened.node.identity.cluster_id == CLUSTER
                    configurations = [each for _, each in opened.configurations]
                    found.add(len(configurations[-1].voters) if configurations else 0)
                    if configurations:
                        assert opened.hard_state.hard_state == HardState(FIRST_TERM)
                        assert opened.node.beginning is None
                        batch = opened.recovered.segments[-1].index.last
                        assert (batch.index, batch.timestamp) == (1, 7)
        number += 1
    assert number > 8
    assert found == {0, 3}


async def test_a_directory_is_locked_before_it_is_looked_at(folder: Path, tmp_path: Path) -> None:
    async with Node(folder):
        with pytest.raises(ConfigurationError, match="in use"):
            await verified(tmp_path)
