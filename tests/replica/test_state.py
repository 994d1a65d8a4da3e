"""The replicated state as bytes, and what this version does with what it does not know."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
from crc32c import crc32c

from proglog import limits
from proglog.batch import Kind, plain_body
from proglog.batch import build as build_batch
from proglog.errors import CorruptionError, UnknownFormat, UnknownProducer
from proglog.log.envelope import NODE
from proglog.log.format import ORIGIN, Tip
from proglog.log.names import snapshot_path
from proglog.log.reading import Reading
from proglog.log.snapshot import Snapshot, read, write
from proglog.log.twin import BLOCK_BYTES, TwinFile, pack_members
from proglog.peers.frames import Type
from proglog.ports import Ports, RealFiles
from proglog.raft.configuration import Configuration, Server
from proglog.raft.hard_state import HardStateFile, Identity, Seal
from proglog.raft.messages import AppendRequest, HardState
from proglog.replica import commands, sections
from proglog.replica.commands import SetLevel, SetStart
from proglog.replica.identity import open_node_directory
from proglog.replica.messages import encode_append
from proglog.replica.settings import LEVEL, Settings
from proglog.replica.state import ReplicatedState
from tests.doubles.disk import SimDisk
from tests.doubles.files import SimFiles
from tests.log.support import build
from tests.replica.support import Node, outcomes, proposed
from tests.waiting import DEADLINE_SECONDS

UNKNOWN = commands.frame(16, 1, 0, b"a cursor")
FOREIGN = sections.frame(9, 0, b"")
IGNORABLE = commands.frame(16, 1, commands.MAY_BE_IGNORED, b"a cursor")


def state() -> ReplicatedState:
    """One with something of everything."""
    made = ReplicatedState()
    header, _ = build(ORIGIN, [b"x"], producer_id=7)
    made.apply(header, b"")
    made.start_offset = 3
    made.configuration_index = 1
    made.configuration = Configuration((Server("u1", "n1", "h:1"),), (Server("u2", "n2"),))
    return made


# --- commands ------------------------------------------------------------------------------------


def test_commands_round_trip() -> None:
    body = commands.encode([SetStart(5), SetStart(2**64 - 1)])
    assert commands.decode(body, 1) == [SetStart(5), SetStart(2**64 - 1)]
    assert commands.decode(b"", 1) == []


def test_an_unknown_command_is_skipped_only_if_it_may_be() -> None:
    known = commands.encode([SetStart(5)])
    assert commands.decode(IGNORABLE + known + IGNORABLE, 9) == [SetStart(5)]
    for body in (
        known + UNKNOWN,
        commands.frame(commands.SET_START, 2, 0, bytes(8)),
        commands.frame(commands.SET_START, 1, 2, bytes(8)),
        commands.frame(16, 1, commands.MAY_BE_IGNORED | 2, b""),
    ):
        with pytest.raises(UnknownFormat, match=r"batch 9 .*stays at batch 8.*newer"):
            commands.decode(body, 9)


def test_a_malformed_list_of_commands_is_refused() -> None:
    body = commands.encode([SetStart(5)]) + IGNORABLE
    whole = {0, len(body) - len(IGNORABLE), len(body)}
    for size in range(len(body) + 1):
        if size not in whole:
            with pytest.raises(CorruptionError, match="batch 9"):
                commands.decode(body[:size], 9)
    with pytest.raises(CorruptionError):
        commands.decode(commands.frame(commands.SET_START, 1, 0, bytes(9)), 9)


def test_nothing_of_a_batch_with_an_unknown_command_is_applied() -> None:
    made = state()
    before = made.encode()
    body = commands.encode([SetStart(50)]) + UNKNOWN
    header, _ = build(ORIGIN, [])
    header = header._replace(kind=Kind.COMMAND)
    with pytest.raises(UnknownFormat):
        made.apply(header, body)
    assert made.encode() == before


async def test_a_replica_ends_before_what_it_cannot_apply(folder: Path) -> None:
    """And at every later start, until it is a version that can."""
    async with Node(folder) as node:
        await node.fill(3)
        index, _ = node.replica._driver.propose_command(UNKNOWN)
        await asyncio.wait_for(node.failed_event.wait(), DEADLINE_SECONDS)
        assert isinstance(node.failure, UnknownFormat)
        assert node.failure.number("index") == index
        assert node.replica.applied_index == index - 1
        assert not node.replica.is_ready
    for _ in range(2):
        with pytest.raises(UnknownFormat, match=f"batch {index} holds command 16"):
            await Node(folder).open()


async def test_a_replica_that_reads_what_it_cannot_apply_ends_too(folder: Path) -> None:
    """Far behind, it is read from the disk in runs."""
    async with Node(folder) as node:
        node.replica._applier._replaying = True  # nothing is applied
        futures = [await node.replica.propose(proposed(b"x")) for _ in range(40)]
        index, _ = node.replica._driver.propose_command(UNKNOWN)
        futures += [await node.replica.propose(proposed(b"y")) for _ in range(3)]
        while node.replica.commit_index < index + 3:
            await asyncio.sleep(0.005)
        node.replica._applier._replaying = False
        node.replica.log.in_memory = lambda index: None  # type: ignore[method-assign]
        node.replica._applier.committed(node.replica.commit_index)
        await asyncio.wait_for(node.failed_event.wait(), DEADLINE_SECONDS)
        assert isinstance(node.failure, UnknownFormat)
        assert node.replica.applied_index == index - 1
    told = await outcomes(futures)
    assert told[:40] == list(range(40))
    assert all(isinstance(each, Exception) for each in told[40:])


async def test_what_may_be_ignored_stops_nobody(folder: Path) -> None:
    async with Node(folder) as node:
        node.replica._driver.propose_command(IGNORABLE)
        values = await node.fill(3)
        await node.restart()
        assert await node.consume() == values


async def test_what_cannot_be_applied_is_not_acknowledged(folder: Path) -> None:
    """A server of an older version, behind a leader of a newer one, ends before it takes it."""
    async with Node(folder) as node:
        await node.fill(3)
        term, tip = node.replica.status().term, node.replica.log.tip
        body = plain_body(UNKNOWN)
        _, packed = build_batch(
            body,
            kind=Kind.COMMAND,
            index=tip.index + 1,
            term=term + 1,
            base_offset=tip.next_offset,
            timestamp=tip.timestamp,
            chain_crc=tip.chain,
        )
        own = node.replica.identity.uuid
        request = AppendRequest("u2", own, term + 1, tip.index, term, tip.index + 1, 0)
        payload = b"".join(encode_append(2, request, [packed, body.data])[1:])
        node.replica.exchange.receive("u2", Type.APPEND, memoryview(payload))
        await asyncio.wait_for(node.failed_event.wait(), DEADLINE_SECONDS)
        assert isinstance(node.failure, UnknownFormat)
        assert node.replica.log.tip == tip


async def test_what_a_newer_version_left_is_not_acknowledged_either(folder: Path) -> None:
    """It may be uncommitted: the start refuses it all the same."""
    async with Node(folder) as node:
        await node.fill(3)
        node.replica._applier._replaying = True  # nothing is applied
        index, _ = node.replica._driver.propose_command(UNKNOWN)
        await node.written()
    with pytest.raises(UnknownFormat, match=f"batch {index} holds command 16"):
        await Node(folder).open()


# --- levels --------------------------------------------------------------------------------------

LATER = Settings(producers_max=3, producer_window_batches=2, level=2)


def raised(made: ReplicatedState, index: int, settings: Settings = LATER) -> ReplicatedState:
    """After a command that raises the level, in this batch."""
    header, _ = build(ORIGIN, [])
    body = commands.encode([SetLevel(settings)])
    made.apply(header._replace(kind=Kind.COMMAND, index=index), body)
    return made


def test_a_level_brings_its_numbers_and_is_never_lowered() -> None:
    made = raised(ReplicatedState(level_max=3), 9)
    assert made.settings == LATER._replace(since=9)
    again = LATER._replace(producers_max=99)
    for settings in (again, again._replace(level=1)):
        assert raised(made, 10, settings).settings == LATER._replace(since=9)
    assert raised(made, 11, again._replace(level=3)).settings.since == 11
    decoded = ReplicatedState.decode(made.encode(), level_max=3)
    assert decoded.encode() == made.encode() == made.copy().encode()
    assert decoded.producers.settings == made.settings


def test_a_level_that_is_not_known_is_refused() -> None:
    with pytest.raises(UnknownFormat, match=r"batch 9.* level 2"):
        raised(ReplicatedState(), 9)
    encoded = raised(ReplicatedState(level_max=2), 9).encode()
    with pytest.raises(UnknownFormat, match="level 2"):
        ReplicatedState.decode(encoded)


def test_commands_of_a_later_level_are_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    known = commands.Known(1, 2, lambda *_: SetStart(7))
    monkeypatch.setitem(commands.KNOWN, 16, known)
    assert commands.decode(UNKNOWN, 9, level_max=2) == [SetStart(7)]
    with pytest.raises(UnknownFormat):
        commands.decode(UNKNOWN, 9, level_max=1)


def test_a_larger_table_does_not_make_newcomers_of_the_forgotten() -> None:
    """It is not full, but it was."""
    made = ReplicatedState(Settings(producers_max=2, producer_window_batches=3), level_max=2)
    tip = ORIGIN
    for producer in (1, 2, 3):
        header, _ = build(tip, [b"x"], producer_id=producer)
        made.apply(header, b"")
        tip = Tip.after(header)
    raised(made, tip.index + 1, LATER._replace(producers_max=100))
    again = proposed(b"x", producer_id=1)
    with pytest.raises(UnknownProducer) as caught:
        made.producers.find(again)
    assert caught.value.number("seen_index") == tip.index + 1
    newcomer = proposed(b"x", producer_id=4)._replace(seen_index=tip.index + 1)
    assert made.producers.find(newcomer) is None


def test_the_first_numbers_never_change() -> None:
    """Two versions that began a log with others would forget different producers."""
    assert Settings.first() == Settings.of(1) == (10_000, 16, 1, 0)
    assert LEVEL == 1, "a later level has numbers of its own; add them here"


# --- sections ------------------------------------------------------------------------------------


def test_the_state_round_trips() -> None:
    made = state()
    encoded = made.encode()
    decoded = ReplicatedState.decode(encoded)
    assert decoded.encode() == encoded == made.copy().encode()
    assert decoded.start_offset == 3
    assert (decoded.configuration_index, decoded.configuration) == (1, made.configuration)
    assert decoded.settings == Settings(limits.producers_max, limits.producer_window_batches)
    assert decoded.producers._committed == made.producers._committed


def test_every_flipped_bit_and_every_truncation_of_a_state_is_refused() -> None:
    encoded = state().encode()
    for size in range(len(encoded)):
        with pytest.raises(CorruptionError, match="the state in a snapshot"):
            ReplicatedState.decode(encoded[:size])
    for bit in range(len(encoded) * 8):
        damaged = bytearray(encoded)
        damaged[bit // 8] ^= 1 << bit % 8
        with pytest.raises((CorruptionError, UnknownFormat)):
            ReplicatedState.decode(bytes(damaged))


def test_an_unknown_section_is_skipped_only_if_it_may_be() -> None:
    encoded = state().encode()
    ignorable = sections.frame(9, sections.MAY_BE_IGNORED, b"a cursor or two")
    assert ReplicatedState.decode(encoded + ignorable).encode() == encoded
    for flags in (0, 2, 3):
        with pytest.raises(UnknownFormat, match=r"the state in /x/snapshot-5 has a section 9"):
            ReplicatedState.decode(encoded + sections.frame(9, flags, b""), "/x/snapshot-5")


def _with_settings(text: bytes) -> bytes:
    parts = sections.split(state().encode(), "")
    return sections.join({**parts, sections.Tag.SETTINGS: text})


def test_settings_that_are_not_known_are_refused() -> None:
    text = Settings.first().encode()
    with pytest.raises(UnknownFormat, match="retention_bytes"):
        ReplicatedState.decode(_with_settings(text[:-1] + b',"retention_bytes":5}'))


def test_the_state_goes_by_its_own_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not by those of the program that reads it, which may be another version."""
    made = ReplicatedState(Settings(producers_max=2, producer_window_batches=3))
    decoded = ReplicatedState.decode(made.encode())
    monkeypatch.setattr(limits, "producers_max", 100)
    monkeypatch.setattr(limits, "producer_window_batches", 100)
    for one in (made, decoded, decoded.copy()):
        for index, producer in enumerate([1, 2, 2, 2, 2, 2, 3], 1):
            sequence = max(index - 2, 0) if producer == 2 else 0
            before = ORIGIN._replace(index=index - 1, next_offset=index - 1)
            header, _ = build(before, [b"x"], producer_id=producer, sequence=sequence)
            one.apply(header, b"")
        assert list(one.producers._committed) == [2, 3]
        assert len(one.producers._committed[2].window) == 3
    assert made.encode() == decoded.encode()


async def test_a_start_names_the_snapshot_whose_state_is_newer(folder: Path) -> None:
    async with Node(folder) as node:
        await node.fill(40)
        await node.written()
        newest = node.snapshots()[-1]
    path = snapshot_path(folder, newest)
    before = await asyncio.to_thread(_add_a_section, path)
    with pytest.raises(UnknownFormat, match=f"state in {path} has a section 9"):
        await Node(folder).open()
    assert await asyncio.to_thread(lambda: {each: each.read_bytes() for each in before}) == before


def _add_a_section(path: Path) -> dict[Path, bytes]:
    """As a newer version might; all files after that."""
    snapshot = read(Reading(RealFiles(), writable=False), path)
    assert isinstance(snapshot, Snapshot)
    path.unlink()
    write(RealFiles(), path.parent, snapshot._replace(state=snapshot.state + FOREIGN))
    data_dir = path.parent.parent.parent
    return {each: each.read_bytes() for each in data_dir.rglob("*") if each.is_file()}


# --- golden bytes --------------------------------------------------------------------------------

GOLDEN = {
    path.stem: bytes.fromhex(path.read_text())
    for path in (Path(__file__).parent / "golden").glob("*.hex")
}
UUIDS = ("6fa459ea-ee8a-4ca4-894e-db77e160355e", "16fd2706-8baf-433b-82eb-8c7fada847da")


def _twin(path: Path, make: Callable[[SimFiles, Path], object]) -> bytes:
    """What a file that keeps two copies of itself begins with."""
    disk = SimDisk()
    files = SimFiles(disk)
    files.mkdir(path.parent)
    make(files, path)
    data = bytes(disk.find(path).cached.read(2 * BLOCK_BYTES, 0))
    assert data[:BLOCK_BYTES] == data[BLOCK_BYTES:]
    return data[:BLOCK_BYTES].rstrip(b"\0")


def _node() -> bytes:
    members = {
        "cluster": "",
        "cluster_id": UUIDS[1],
        "created": 1_700_000_000_000,
        "incarnation": 3,
        "journal": 0,
        "labels": {},
        "name": "n1",
        "uuid": UUIDS[0],
    }
    packed = pack_members(members)
    return _twin(Path("/d/node"), lambda files, path: TwinFile.create(files, path, NODE, packed))


def _hard_state() -> bytes:
    def make(files: SimFiles, path: Path) -> None:
        who = Identity(UUIDS[1], UUIDS[0], "n1")
        file = HardStateFile.create(files, path.parent, 2, who, HardState(1))
        file.save(HardState(7, UUIDS[0]))

    return _twin(Path("/d/hard-state"), make)


@pytest.mark.parametrize(
    ("name", "make"),
    [
        ("state", lambda: state().encode()),
        ("configuration", lambda: state().configuration.encode()),
        ("command", lambda: commands.encode([SetStart(0x1122334455667788)]) + IGNORABLE),
        ("level", lambda: commands.encode([SetLevel(LATER)])),
        ("node", _node),
        ("hard-state", _hard_state),
    ],
)
def test_the_bytes_are_what_they_were(name: str, make: Callable[[], bytes]) -> None:
    """The formats are final: what is written here was written by the first version."""
    assert make().hex() == GOLDEN[name].hex()


def test_what_the_first_version_wrote_is_read() -> None:
    assert ReplicatedState.decode(GOLDEN["state"]).encode() == GOLDEN["state"]
    assert Configuration.decode(GOLDEN["configuration"]) == state().configuration
    assert commands.decode(GOLDEN["command"], 1) == [SetStart(0x1122334455667788)]
    disk = SimDisk()
    disk.put(Path("/d/hard-state"), GOLDEN["hard-state"].ljust(BLOCK_BYTES, b"\0") * 2)
    disk.put(Path("/d/node"), GOLDEN["node"].ljust(BLOCK_BYTES, b"\0") * 2)
    file = HardStateFile(SimFiles(disk), Path("/d"))
    assert file.hard_state == HardState(7, UUIDS[0])
    assert file.seal == Seal(2, UUIDS[1], UUIDS[0])
    ports = Ports(files=SimFiles(disk))
    directory = open_node_directory(Path("/d"), node_name="n1", ports=ports)
    assert directory.identity == Identity(UUIDS[1], UUIDS[0], "n1")
    assert directory.incarnation == 3


def test_the_frames_are_as_described() -> None:
    """By a reader that shares no code with the writer."""
    data, tags = state().encode(), []
    while data:
        tag, flags, length, crc = struct.unpack_from("<HHQI", data)
        payload, data = data[16 : 16 + length], data[16 + length :]
        assert (flags, crc) == (0, crc32c(payload))
        tags.append(tag)
    assert tags == [1, 2, 3, 4]
    assert struct.unpack("<HBBIQ", commands.encode([SetStart(9)])) == (1, 1, 0, 8, 9)
