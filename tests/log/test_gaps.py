"""Giving up batches: what is lost is said, all else stays where it was, and readers go on."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

import proglog
from proglog.agent import embedded
from proglog.batch import HEADER_BYTES, Kind, parse_header
from proglog.config import LogConfig
from proglog.errors import ConsumerGap, CorruptionError, RecordLost
from proglog.log.format import Tip
from proglog.log.gaps import Lost
from proglog.log.names import DEFAULT_GROUP, group_folder, index_name, store_name
from proglog.log.repair import Allow, repair
from proglog.log.verify import verify
from proglog.replica.offline import why_not_given_up
from tests.log.damaged import BLOCK_BYTES, Blocks, Served, agree, agree_on, start
from tests.log.damaged import FilesWithBadBlocks as Files
from tests.log.small import CONFIG, FOLDER, small
from tests.log.support import flip

SEGMENTS = {1: range(1, 5), 5: range(5, 9), 9: range(9, 12)}
ACTIVE = 9


class Log:
    """A log on a simulated disk, and what it served before anything was damaged."""

    def __init__(self, *, based: bool = False, snapshots: bool = True) -> None:
        self.disk = small(based=based, snapshots=snapshots)
        self.written: Served = start(Files(self.disk.copy()), FOLDER, CONFIG)

    def flip(self, index: int, at: int) -> None:
        path, position = self.written.places[index]
        self.disk.flip_bit(path, (position + at) * 8)

    def give_up(self, blocks: Blocks = Blocks()) -> Served:
        """What is served after what is damaged was given up; start, verify and repair agree."""
        outcome = agree(self.disk, FOLDER, blocks, written=self.written, config=CONFIG)
        served = outcome.repaired[Allow.GIVE_UP]
        assert served is not None
        return served

    def refused(self) -> str:
        agree(self.disk, FOLDER, written=self.written, config=CONFIG)
        with pytest.raises(CorruptionError) as caught:
            repair(FOLDER, allow=Allow.GIVE_UP, files=Files(self.disk.copy()))
        return str(caught.value)


WHERE = {"header": 20, "body": HEADER_BYTES + 5}
ADJACENT = [
    (2,),
    (4,),
    (5,),
    (5, 6),
    (6, 7, 8),
    (5, 6, 7, 8),
    (4, 5),
    (9,),
    (10,),
    (11,),
    (9, 10),
    (10, 11),
    (9, 10, 11),
    (2, 4, 6, 8, 10),
]


@pytest.mark.parametrize("where", WHERE)
@pytest.mark.parametrize("lost", ADJACENT, ids=str)
@pytest.mark.parametrize("index", ["with its index", "without"])
def test_just_what_is_damaged_is_lost(lost: tuple[int, ...], where: str, index: str) -> None:
    log = Log()
    for each in lost:
        log.flip(each, WHERE[where])
    if index == "without":
        for first, batches in SEGMENTS.items():
            if first != ACTIVE and set(lost) & set(batches):
                log.disk.lose(FOLDER / index_name(first))
    served = log.give_up()
    assert set(served.gaps) == set(lost)
    assert served.last == log.written.last
    offsets = {at for gap in served.gaps.values() for at in gap}
    assert offsets == {at for each in lost for at in _offsets(log, each)}


def _offsets(log: Log, index: int) -> range:
    header = parse_header(log.written.batches[index])
    return range(header.base_offset, header.next_offset)


@pytest.mark.parametrize("first", [5, 9])
@pytest.mark.parametrize("index", ["with its index", "without"])
def test_a_block_that_cannot_be_read_is_written_anew(first: int, index: str) -> None:
    log = Log()
    if index == "without":
        log.disk.lose(FOLDER / index_name(first))
    served = log.give_up(Blocks.of(FOLDER / store_name(first), [4]))
    assert set(served.gaps) == set(SEGMENTS[first])


def test_a_configuration_that_no_snapshot_holds_is_not_given_up() -> None:
    log = Log(snapshots=False)
    log.flip(1, WHERE["body"])
    assert "who the servers are" in log.refused()


def test_where_nothing_says_how_much_was_lost_nothing_is_given_up() -> None:
    """Both marks are lost, and so is the header of the last batch."""
    log = Log()
    path = FOLDER / store_name(ACTIVE)
    for at in (2 * BLOCK_BYTES, 3 * BLOCK_BYTES):
        log.disk.flip_bit(path, (at + 30) * 8)
    log.flip(11, WHERE["header"])
    assert "cannot be told" in log.refused()


def test_the_first_batch_of_all_without_its_index() -> None:
    """Nothing says when it was appended; what follows must fit its segment, years after zero."""
    log = Log()
    log.flip(1, WHERE["header"])
    log.disk.lose(FOLDER / index_name(1))
    assert set(log.give_up().gaps) == {1}


def test_what_a_shorter_store_still_has_is_kept() -> None:
    log = Log()
    path = FOLDER / store_name(ACTIVE)
    _, last = log.written.places[11]
    log.disk.put(path, log.disk.files()[path][: last + len(log.written.batches[11]) - 1])
    log.flip(9, WHERE["header"])
    assert set(log.give_up().gaps) == {9, 11}


def test_given_up_twice() -> None:
    """Further damage later, also in a gap."""
    log = Log()
    for lost in ({6}, {6, 7}, {6, 7, 10}):
        for each in lost:
            log.flip(each, WHERE["body"])
        repair(FOLDER, allow=Allow.GIVE_UP, files=Files(log.disk))
        served = start(Files(log.disk.copy()), FOLDER, CONFIG)
        assert set(served.gaps) == lost
        assert verify(FOLDER, Files(log.disk.copy())).entries == ()


@pytest.mark.parametrize("counts", [(1,), (3, 0, 2)])
def test_gaps_take_the_place_of_what_was_lost(counts: tuple[int, ...]) -> None:
    before = Tip(7, 2, 100, 5, 1234)
    lost = Lost(before, 16384, 16384 + 72 * len(counts) + 100, 8 + len(counts), 130, 99, 3, 6)
    assert lost.is_possible
    tip, position = before, lost.position
    for header, packed, body in lost.gaps():
        assert header.kind == Kind.GAP
        assert (header.index, header.chain, header.base_offset) == (
            tip.index + 1,
            tip.chain,
            tip.next_offset,
        )
        tip, position = Tip.after(header), position + len(packed) + len(body)
    assert (tip.index + 1, tip.next_offset, tip.chain) == (8 + len(counts), 130, 99)
    assert position == lost.position_end


def test_batches_too_small_for_what_was_lost_are_not_possible() -> None:
    before = Tip(7, 2, 100, 5, 1234)
    assert not Lost(before, 0, 71, 9, 130, 99, 3, 6).is_possible
    assert not Lost(before, 0, 72, 8, 130, 99, 3, 6).is_possible
    assert not Lost(before, 0, 72, 10, 130, 99, 3, 6).is_possible


# --- for those who read --------------------------------------------------------------------------


@pytest.fixture
async def data_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A log of 12 records, two a batch, of one producer."""
    monkeypatch.setattr(embedded, "LogConfig", lambda **_: LogConfig.for_tests())
    async with proglog.open(tmp_path) as log:
        for number in range(0, 12, 2):
            await log.produce_many([b"value %02d" % at for at in (number, number + 1)])
    return tmp_path


def give_up(data_dir: Path, *batches: int) -> list[str]:
    """Batches of records, counted from 0, are damaged and given up."""
    folder = group_folder(data_dir, DEFAULT_GROUP)
    for number in batches:
        value = b"value %02d" % (number * 2)
        (path,) = (path for path in folder.glob("0*.store") if value in path.read_bytes())
        flip(path, path.read_bytes().index(value))
    assert verify(folder).is_damaged
    agree_on(data_dir / "groups" / folder.name, LogConfig.for_tests())
    done = repair(folder, allow=Allow.GIVE_UP, guard=why_not_given_up)
    assert not verify(folder).is_damaged
    return done


async def offsets_of(records) -> list[int]:  # type: ignore[no-untyped-def]
    return [record.offset async for record in records]


@pytest.mark.parametrize("batches", [(2,), (1, 2), (0,), (5,), (1, 3)], ids=str)
async def test_a_consumer_that_skips_gets_all_the_others(
    data_dir: Path, batches: tuple[int, ...]
) -> None:
    done = await asyncio.to_thread(give_up, data_dir, *batches)
    assert len(done) == len(batches)
    lost = {offset for number in batches for offset in (2 * number, 2 * number + 1)}
    async with proglog.open(data_dir) as log:
        found = await offsets_of(log.consume(0, follow=False, on_gap="skip"))
        assert found == [offset for offset in range(12) if offset not in lost]


@pytest.mark.parametrize("number", range(6))
async def test_a_consumer_is_told_what_is_lost(data_dir: Path, number: int) -> None:
    await asyncio.to_thread(give_up, data_dir, number)
    async with proglog.open(data_dir) as log:
        found = []
        with pytest.raises(ConsumerGap) as caught:
            async for record in log.consume(0, follow=False):
                found.append(record.offset)
        assert found == list(range(2 * number))
        assert caught.value.number("lost_from") == 2 * number
        assert caught.value.number("lost_until") == 2 * number + 2
        later = await offsets_of(log.consume(2 * number + 2, follow=False))
        assert later == list(range(2 * number + 2, 12))


async def test_one_that_begins_within_a_gap_is_told_the_rest_of_it(data_dir: Path) -> None:
    await asyncio.to_thread(give_up, data_dir, 2)
    async with proglog.open(data_dir) as log:
        with pytest.raises(ConsumerGap) as caught:
            await offsets_of(log.consume(5, follow=False))
        assert (caught.value.number("lost_from"), caught.value.number("lost_until")) == (5, 6)
        assert await offsets_of(log.consume(5, follow=False, on_gap="skip")) == list(range(6, 12))


@pytest.mark.parametrize("number", [2, 5])
async def test_a_lost_record_is_said_to_be_lost(data_dir: Path, number: int) -> None:
    await asyncio.to_thread(give_up, data_dir, number)
    async with proglog.open(data_dir) as log:
        for offset in (2 * number, 2 * number + 1):
            with pytest.raises(RecordLost, match="gave them up") as caught:
                await log.read(offset)
            assert caught.value.number("next") == 2 * number + 2
        assert (await log.read(2 * number - 1)).value == b"value %02d" % (2 * number - 1)


@pytest.mark.parametrize("number", [2, 5])
async def test_a_follower_goes_on_after_a_gap(data_dir: Path, number: int) -> None:
    await asyncio.to_thread(give_up, data_dir, number)
    async with proglog.open(data_dir) as log:
        records = log.consume(0, on_gap="skip")
        expected = [at for at in range(12) if at not in (2 * number, 2 * number + 1)]
        async with asyncio.timeout(20):
            assert [(await anext(records)).offset for _ in expected] == expected
            waiting = asyncio.ensure_future(anext(records))
            assert await log.produce(b"new") == 12
            assert (await waiting).offset == 12
        await records.aclose()


async def test_a_producer_goes_on_after_its_batch_was_given_up(data_dir: Path) -> None:
    """Its sequence numbers have a hole, which must not stop the node."""
    await asyncio.to_thread(give_up, data_dir, 2)
    for offset in (12, 13):
        async with proglog.open(data_dir) as log:
            assert await log.produce(b"new") == offset
