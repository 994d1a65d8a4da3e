"""What servers state, what is remembered of it, and who has forgotten something."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path
from typing import Any, NamedTuple, cast

import pytest

from proglog.errors import Unavailable
from proglog.log.envelope import FLOORS
from proglog.peers.frames import FrameError
from proglog.peers.hello import Life, Refusal
from proglog.ports import RealFiles
from proglog.raft.messages import Heartbeat
from proglog.replica import floors
from proglog.replica.floors import Floor, Memory
from proglog.replica.standing import NOTHING, Standing, Statement, notes, raised, why_above
from tests.replica.support import Node
from tests.waiting import until

FLOOR = Floor(sequence=10, term=4, index=100)
ENOUGH = Statement(sequence=10, term=4, end=100, committed=90)


class Configured(NamedTuple):
    uuids: tuple[str, ...]

    def find(self, uuid: str) -> str | None:
        return uuid if uuid in self.uuids else None


class Shape:
    """A log, its hard state, the core and the node, as far as a standing looks at them."""

    def __init__(self) -> None:
        self.is_void = False
        self.durable_index = 100
        self.commit = 90
        self.sequence = 10
        self.hard_state = self
        self.term = 4
        self.configuration = Configured(("them",))
        self.acks: dict[str, int] = {}
        self.restarts: list[tuple[str, int]] = []
        self.identity = self
        self.name = "us"
        self.doubts = ""

    def acknowledged(self) -> dict[str, int]:
        return self.acks

    def restarted(self, uuid: str, end: int) -> None:
        self.restarts.append((uuid, end))


def standing_of(shape: Shape) -> Standing:
    each = cast("Any", shape)
    return Standing(log=each, hard_state=each, raft=lambda: each, node=each, memory=Memory({}, {}))


def life(incarnation: int, uuid: str = "them") -> Life:
    return Life(uuid, uuid, incarnation, f"s{incarnation}")


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"sequence": 9}, "its vote was saved 10 times, and it knows of 9"),
        ({"term": 3}, "it was seen in term 4, and knows of 3"),
        ({"end": 99}, "batch 100 was acknowledged, and its log ends at 99"),
    ],
)
def test_who_states_less_than_before_has_forgotten(change: dict[str, int], why: str) -> None:
    assert why_above(FLOOR, ENOUGH) == ""
    assert why_above(FLOOR, ENOUGH._replace(**change)) == why
    assert why_above(NOTHING, Statement(0, 0, 0, 0)) == ""


def test_a_floor_only_rises_and_only_to_what_is_committed() -> None:
    assert raised(FLOOR, Statement(9, 3, 99, 50)) == FLOOR
    assert raised(FLOOR, Statement(11, 5, 200, 150)) == Floor(11, 5, 150)


def test_one_that_is_back_with_less_is_refused() -> None:
    shape = Shape()
    standing = standing_of(shape)
    assert standing.judge(life(1), Statement(10, 4, 100, 95)) is None
    shape.acks = {"them": 98}  # A leader knows more than what is stated.
    refusal = standing.judge(life(2), Statement(10, 4, 97, 97))
    assert refusal is not None
    assert refusal.code == "ROLLED_BACK"
    assert refusal.why == (
        "the directory of them is older than what us knew of it: batch 98 was acknowledged, and "
        "its log ends at 97"
    )
    # Again and again, and what it says of itself raises nothing.
    assert standing.judge(life(3), Statement(11, 5, 97, 97)) is not None
    assert standing.memory.floors["them"] == Floor(10, 4, 98)
    assert standing.judge(life(4), Statement(10, 4, 98, 98)) is None


def test_in_one_life_what_is_stated_late_is_no_proof() -> None:
    shape = Shape()
    standing = standing_of(shape)
    assert standing.judge(life(1), Statement(10, 4, 0, 0)) is None
    shape.acks = {"them": 98}
    assert standing.judge(life(1), Statement(10, 4, 0, 0)) is None
    assert shape.restarts == [("them", 0)]


def test_what_an_earlier_life_acknowledged_is_not_counted_any_more() -> None:
    shape = Shape()
    standing = standing_of(shape)
    for number in (1, 1, 2):
        standing.judge(life(number), Statement(10, 4, 50 + number, 0))
    assert shape.restarts == [("them", 51), ("them", 52)]


def test_only_servers_are_remembered() -> None:
    shape = Shape()
    standing = standing_of(shape)
    for uuid in ("them", "others"):
        standing.judge(life(1, uuid), ENOUGH)
    assert list(standing.memory.floors) == ["them"]
    shape.configuration = Configured(())
    standing.look()
    assert standing.memory == Memory({}, {})


def test_only_what_is_durable_is_stated() -> None:
    shape = Shape()
    standing = standing_of(shape)
    shape.commit = 120  # as the leader says, and the disk is behind
    assert standing.is_news
    assert standing.state() == Statement(10, 4, 100, 100).encode()
    assert not standing.is_news
    # While a snapshot takes the place of the log, what was there is what counts.
    shape.is_void, shape.durable_index = True, 3
    assert standing.state() == Statement(10, 4, 100, 100).encode()
    assert not standing.has_voted_since
    shape.is_void, shape.durable_index, shape.sequence = False, 130, 11
    assert standing.has_voted_since
    assert standing.state() == Statement(11, 4, 130, 120).encode()
    assert not standing.has_voted_since
    standing.doubt = "we are old"
    assert standing.state() is None
    assert not standing.is_news


def test_a_later_version_may_say_more_and_nobody_less() -> None:
    packed = ENOUGH.encode()
    assert Statement.decode(memoryview(packed + b"more")) == ENOUGH
    with pytest.raises(FrameError):
        Statement.decode(memoryview(packed[:-1]))


def test_operators_are_told_who_takes_part_in_nothing() -> None:
    assert notes("", []) == []
    assert notes("it is old", [("n2", Refusal("TWIN", "there are two"))]) == [
        "this node takes part in nothing: it is old",
        "n2 is refused (TWIN): there are two",
    ]


# --- over restarts -------------------------------------------------------------------------------


def test_what_is_remembered_survives(tmp_path: Path) -> None:
    files, memory = RealFiles(), Memory({"them": FLOOR}, {"them": life(3)})
    assert floors.load(files, tmp_path) == Memory({}, {})
    floors.save(files, tmp_path, memory)
    assert floors.load(files, tmp_path) == memory
    floors.save(files, tmp_path, Memory({}, {}))
    assert floors.load(files, tmp_path) == Memory({}, {})


@pytest.mark.parametrize("left", [b"", b"\0" * 100, b"PROGFLOO" + bytes(90)])
def test_a_file_that_says_nothing_is_none(tmp_path: Path, left: bytes) -> None:
    (tmp_path / floors.FILE_NAME).write_bytes(left)
    assert floors.load(RealFiles(), tmp_path) == Memory({}, {})


def test_one_flipped_bit_makes_it_none(tmp_path: Path) -> None:
    floors.save(RealFiles(), tmp_path, Memory({"them": FLOOR}, {}))
    path = tmp_path / floors.FILE_NAME
    whole = path.read_bytes()
    assert whole.startswith(FLOORS)
    chance = random.Random(1)
    for _ in range(50):
        flipped = bytearray(whole)
        flipped[chance.randrange(len(whole))] ^= 1 << chance.randrange(8)
        path.write_bytes(flipped)
        assert floors.load(RealFiles(), tmp_path) == Memory({}, {})


# --- a whole replica -----------------------------------------------------------------------------


async def test_one_that_is_doubted_takes_part_in_nothing_also_when_it_is_back(
    folder: Path,
) -> None:
    async with Node(folder) as node:
        await node.produce(b"x")
        home = node.replica.home
        home.doubted(Refusal("CLUSTER", "no such cluster"), "n2")
        assert node.replica.is_ready
        home.doubted(Refusal("ROLLED_BACK", "it is old"), "n2")
        why = node.replica.standing.doubt
        assert why.startswith("it is old (told by n2)")
        assert f"proglog renew {node.data_dir}" in why
        for _ in range(2):
            await node.written()
            assert not node.replica.is_ready
            assert not node.replica.leadership.is_mine
            assert node.replica.exchange.statement() is None
            assert why in node.replica.cluster_status().notes[0]
            with pytest.raises(Unavailable, match="it is old"):
                node.replica.describe()
            with pytest.raises(Unavailable):
                await node.produce(b"y")
            await node.close()
            await node.open()
            assert node.replica.standing.doubt == why
            await asyncio.sleep(0.1)  # It does not run, however long it waits.


async def test_of_two_processes_only_this_one_is_doubted(folder: Path) -> None:
    async with Node(folder) as node:
        node.replica.home.doubted(Refusal("TWIN", "there are two"), "n2")
        assert "stop one of them" in node.replica.standing.doubt
        await node.restart()
        assert node.replica.standing.doubt == ""
        assert await node.produce(b"x") == 0


async def test_a_leader_that_counts_on_what_is_gone_is_no_fault_of_the_program(
    folder: Path,
) -> None:
    """It was a failed assertion, and the node ended."""
    async with Node(folder) as node:
        last, term = node.replica.log.tip.index, node.replica.status().term
        heartbeat = Heartbeat("them", node.replica.identity.uuid, term + 1, last + 1, 1)
        node.replica._driver.receive(heartbeat._replace(term=term - 1))
        assert node.replica.is_ready
        node.replica._driver.receive(heartbeat)

        async def doubted() -> bool:
            return bool(node.replica.standing.doubt)

        await until(doubted, "it is doubted")
        assert f"batch {last + 1} was acknowledged" in node.replica.standing.doubt
        assert node.failure is None
