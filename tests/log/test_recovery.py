"""The decision table of DESIGN.md, row by row; and what becomes of what is cut."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest

from proglog import limits
from proglog.batch import HEADER_BYTES
from proglog.errors import CorruptionError
from proglog.log import format as fmt
from proglog.log import snapshot as snapshots
from proglog.log.format import ORIGIN, Mark, Tip
from proglog.log.recovery import Recovered, recover
from proglog.log.segment import index_name, store_name
from proglog.log.snapshot import Snapshot, snapshot_path
from proglog.ports import RealFiles
from tests.log.support import CONFIG, Engine, build, flip, let_go, values_in

COUNT = 20
"""Batches: segments 1-8, 9-16 and, active, 17-20. All are marked: the log was closed."""
FIRST, SECOND, LAST = 1, 9, 17
VALUES = [b"%010d" % index for index in range(1, COUNT + 1)]


@pytest.fixture
async def made(folder: Path) -> Path:
    async with Engine(folder) as engine:
        assert await engine.fill(COUNT) == VALUES
        await engine.all_durable()
    return folder


@pytest.fixture
async def with_snapshots(folder: Path) -> Path:
    """The first segment is gone, snapshots stand at 8 and 16."""
    async with Engine(folder) as engine:
        await engine.fill(COUNT)
        await engine.all_durable()
        for tip in engine.log.sealed_tips():
            await engine.log.write_snapshot(tip, b"state".upper)
        assert engine.log.drop_prefix(9) == 1
    return folder


def start(folder: Path, *, may_be_new: bool = True) -> Recovered:
    found = recover(
        RealFiles(),
        folder,
        segment_bytes=CONFIG.segment_bytes,
        segment_batches=CONFIG.segment_batches,
        may_be_new=may_be_new,
    )
    let_go(found)
    return found


def refused(folder: Path, name: str, *, may_be_new: bool = True) -> str:
    """That a start is refused, names a file, and changes nothing; what it says."""
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(CorruptionError) as caught:
        start(folder, may_be_new=may_be_new)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert Path(caught.value.facts["file"]).name == name
    assert caught.value.number("position") is not None
    return str(caught.value)


def change(path: Path, *edits: tuple[int, bytes]) -> None:
    data = bytearray(path.read_bytes())
    for position, new in edits:
        data[position : position + len(new)] = new
    path.write_bytes(data)


def positions(folder: Path, first_index: int) -> list[int]:
    """Where each batch of a segment begins, and where the last ends."""
    found = start(folder)
    (index,) = [s.index for s in found.segments if s.first_index == first_index]
    return [index.position(slot) for slot in range(len(index) + 1)]


def set_marks(folder: Path, first_index: int, *, index: int, cut: bool = False) -> None:
    """Both marks of a segment say that it was synced up to a batch of it."""
    path = folder / store_name(first_index)
    ends = positions(folder, first_index)
    at = ends[index - first_index + 1]
    data = path.read_bytes()
    if index >= first_index:
        (chain,) = fmt._CRC.unpack_from(data, ends[index - first_index])
    else:
        before = fmt.parse_segment_header(data)
        assert before is not None
        chain = before.chain
    edits = []
    for sequence in (100, 101):
        mark = fmt.pack_mark(Mark(sequence, index, at, 0, chain, cut))
        edits.append((fmt.mark_position(sequence), mark))
    change(path, *edits)


# --- rows ----------------------------------------------------------------------------------------


def test_name_not_of_this_table_is_left_alone(made: Path) -> None:
    for name in ("x", "1.store", "0.index", "snapshot-1", "00000000000000000099.storeX"):
        (made / name).write_bytes(b"mine")
    assert start(made).notes == []
    assert values_in(made) == VALUES
    for name in ("x", "1.store", "0.index", "snapshot-1", "00000000000000000099.storeX"):
        assert (made / name).read_bytes() == b"mine"


def test_tmp_reserved_and_index_without_store_are_deleted(made: Path) -> None:
    worthless = ["x.tmp", "reserved.store", "reserved.index", index_name(500)]
    for name in worthless:
        (made / name).write_bytes(b"garbage")
    start(made)
    assert not {path.name for path in made.iterdir()} & set(worthless)
    assert values_in(made) == VALUES


@pytest.mark.parametrize("segments_left", [[FIRST, SECOND, LAST], [LAST], []])
def test_newest_snapshot_resets_all_segments_are_deleted(
    made: Path, segments_left: list[int]
) -> None:
    far = Snapshot(Tip(1000, 5, 5000, 77, 3), b"far", resets=True)
    snapshots.write(RealFiles(), made, Snapshot(Tip(8, 1, 8, 0, 1), b"old"))
    snapshots.write(RealFiles(), made, far)
    for first_index in {FIRST, SECOND, LAST} - set(segments_left):
        (made / store_name(first_index)).unlink()
    for _ in range(2):
        found = start(made)
        assert found.tip == far.tip
        assert found.snapshots == {1000: far._replace(resets=False)}
    assert sorted(path.name for path in made.iterdir()) == [
        index_name(1001),
        store_name(1001),
        snapshot_path(made, 1000).name,
    ]


def test_snapshot_fails_its_crc_and_a_newer_one_is_valid(with_snapshots: Path) -> None:
    flip(snapshot_path(with_snapshots, 8), 30)
    for notes in (1, 0):
        found = start(with_snapshots)
        assert list(found.snapshots) == [16]
        assert len(found.notes) == notes
    assert values_in(with_snapshots) == VALUES[8:]


def test_snapshot_fails_its_crc_and_an_older_one_is_valid(with_snapshots: Path) -> None:
    flip(snapshot_path(with_snapshots, 16), 30)
    assert list(start(with_snapshots).snapshots) == [8]
    assert not snapshot_path(with_snapshots, 16).exists()
    assert values_in(with_snapshots) == VALUES[8:]


def test_snapshot_fails_its_crc_and_the_log_begins_at_one(made: Path) -> None:
    snapshot_path(made, 16).write_bytes(b"garbage")
    assert start(made).snapshots == {}
    assert values_in(made) == VALUES


def test_snapshot_fails_its_crc_and_no_other_will_do(with_snapshots: Path) -> None:
    flip(snapshot_path(with_snapshots, 8), 30)
    flip(snapshot_path(with_snapshots, 16), 30)
    assert "snapshot is damaged" in refused(with_snapshots, snapshot_path(Path(), 8).name)


def test_no_segment_and_none_expected_is_a_new_log(tmp_path: Path) -> None:
    found = start(tmp_path)
    assert found.tip == ORIGIN
    assert sorted(path.name for path in tmp_path.iterdir()) == [index_name(1), store_name(1)]
    assert start(tmp_path, may_be_new=False).tip == ORIGIN


def test_no_segment_but_a_hard_state_is_refused(tmp_path: Path) -> None:
    assert "segments are lost" in refused(tmp_path, tmp_path.name, may_be_new=False)


def test_no_segment_but_a_snapshot_is_refused(with_snapshots: Path) -> None:
    for first_index in (SECOND, LAST):
        (with_snapshots / store_name(first_index)).unlink()
    assert "no segment" in refused(with_snapshots, with_snapshots.name)


def test_first_segment_starts_after_1_without_a_snapshot_there_or_behind(
    with_snapshots: Path,
) -> None:
    for index in (8, 16):
        snapshot_path(with_snapshots, index).unlink()
    assert "snapshot" in refused(with_snapshots, store_name(SECOND))


@pytest.mark.parametrize("first_index", [FIRST, SECOND, LAST])
def test_segment_header_invalid_is_rewritten_from_what_precedes_it(
    made: Path, first_index: int
) -> None:
    before = (made / store_name(first_index)).read_bytes()
    flip(made / store_name(first_index), 20)
    assert any("header damaged" in note for note in start(made).notes)
    assert (made / store_name(first_index)).read_bytes()[:64] == before[:64]
    assert start(made).notes == []
    assert values_in(made) == VALUES


def test_first_segment_header_invalid_is_rewritten_from_the_snapshot(
    with_snapshots: Path,
) -> None:
    flip(with_snapshots / store_name(SECOND), 20)
    start(with_snapshots)
    assert values_in(with_snapshots) == VALUES[8:]


def test_segment_header_invalid_and_nothing_tells_it(with_snapshots: Path) -> None:
    snapshot_path(with_snapshots, 8).unlink()
    flip(with_snapshots / store_name(SECOND), 20)
    assert "header is damaged" in refused(with_snapshots, store_name(SECOND))


def test_a_segment_that_does_not_follow_is_refused(made: Path) -> None:
    (made / store_name(SECOND)).unlink()
    assert "the log ends here" in refused(made, store_name(FIRST))


def test_a_foreign_segment_is_refused(made: Path) -> None:
    foreign = fmt.pack_preamble(Tip(16, 1, 16, 0, 12345))
    (made / store_name(LAST)).write_bytes(foreign.ljust(CONFIG.segment_bytes, b"\0"))
    assert "does not follow" in refused(made, store_name(LAST))


def test_a_segment_under_a_wrong_name_is_refused(with_snapshots: Path) -> None:
    (with_snapshots / store_name(SECOND)).rename(with_snapshots / store_name(SECOND + 1))
    refused(with_snapshots, store_name(SECOND + 1))


@pytest.mark.parametrize("later", [True, False], ids=["later segments left", "none left"])
@pytest.mark.parametrize("zeroed", [True, False], ids=["zeros written", "not yet"])
def test_a_cut_that_was_begun_is_finished(made: Path, later: bool, zeroed: bool) -> None:
    ends = positions(made, SECOND)
    set_marks(made, SECOND, index=11, cut=True)
    if zeroed or not later:
        (made / store_name(LAST)).unlink()
        (made / index_name(LAST)).unlink()
    if zeroed:
        change(made / store_name(SECOND), (ends[3], bytes(HEADER_BYTES)))
    found = start(made)
    assert found.tip.index == 11
    assert not (made / store_name(LAST)).exists()
    marks = fmt.parse_marks((made / store_name(SECOND)).read_bytes())
    assert [(mark.index, mark.cut) for mark in marks] == [(11, False)] * 2
    assert start(made).notes == []
    assert values_in(made) == VALUES[:11]


async def test_a_finished_cut_takes_new_batches(made: Path) -> None:
    await asyncio.to_thread(set_marks, made, SECOND, index=11, cut=True)
    async with Engine(made) as engine:
        values = VALUES[:11] + await engine.fill(12, term=2)
        await engine.all_durable()
    async with Engine(made) as engine:
        assert await engine.read_all() == values


def test_both_marks_of_the_last_segment_invalid_is_refused(made: Path) -> None:
    flip(made / store_name(LAST), *(at + 10 for at in fmt.MARK_POSITIONS))
    assert "both synced marks" in refused(made, store_name(LAST))


@pytest.mark.parametrize("slot", [0, 1])
def test_one_mark_of_the_last_segment_invalid_is_rewritten(made: Path, slot: int) -> None:
    flip(made / store_name(LAST), fmt.MARK_POSITIONS[slot] + 10)
    start(made)
    assert len(fmt.parse_marks((made / store_name(LAST)).read_bytes())) == 2
    assert values_in(made) == VALUES


def test_marks_of_a_sealed_segment_do_not_matter(made: Path) -> None:
    flip(made / store_name(FIRST), *(at + 10 for at in fmt.MARK_POSITIONS))
    assert values_in(made) == VALUES


INDEX_DAMAGE: dict[str, Callable[[Path], object]] = {
    "absent": lambda path: path.unlink(),
    "empty": lambda path: path.write_bytes(b""),
    "zeros": lambda path: path.write_bytes(bytes(5000)),
    "rotten": lambda path: flip(path, 5),
    "cut short": lambda path: path.write_bytes(path.read_bytes()[:-1]),
    "another's": lambda path: path.write_bytes(
        (path.parent / index_name(FIRST + SECOND - int(path.name[:20]))).read_bytes()
    ),
}


@pytest.mark.parametrize("damage", INDEX_DAMAGE)
@pytest.mark.parametrize("first_index", [FIRST, SECOND])
def test_sealed_index_invalid_or_absent_is_rewritten(
    made: Path, first_index: int, damage: str
) -> None:
    path = made / index_name(first_index)
    before = path.read_bytes()
    INDEX_DAMAGE[damage](path)
    assert [note for note in start(made).notes if "rebuilt" in note]
    assert path.read_bytes() == before
    assert start(made).notes == []
    assert values_in(made) == VALUES


def test_sealed_index_invalid_and_its_store_damaged_is_refused(made: Path) -> None:
    at = positions(made, FIRST)[4]
    flip(made / index_name(FIRST), 5)
    flip(made / store_name(FIRST), at + 80)
    message = refused(made, store_name(FIRST))
    assert f"at {at}: batch 5" in message


def test_sealed_store_shorter_than_its_index_is_refused(made: Path) -> None:
    path = made / store_name(FIRST)
    path.write_bytes(path.read_bytes()[:-1])
    assert "shorter than its index" in refused(made, store_name(FIRST))


@pytest.mark.parametrize("index", range(LAST, COUNT + 1))
def test_last_segment_fails_at_or_before_the_mark_is_refused(made: Path, index: int) -> None:
    at = positions(made, LAST)[index - LAST]
    flip(made / store_name(LAST), at + 75)
    message = refused(made, store_name(LAST))
    assert f"at {at}: batch {index}" in message
    assert "in what was synced" in message


@pytest.mark.parametrize("bad", range(LAST, COUNT + 1))
@pytest.mark.parametrize("offset", [3, 20, 75], ids=["crc", "header", "body"])
def test_last_segment_fails_behind_the_mark_is_cut_with_valid_ones_after_it(
    made: Path, bad: int, offset: int
) -> None:
    ends = positions(made, LAST)
    set_marks(made, LAST, index=LAST - 1)
    flip(made / store_name(LAST), ends[bad - LAST] + offset)
    lost = (made / store_name(LAST)).read_bytes()[ends[bad - LAST] : ends[-1]]
    found = start(made)
    assert found.tip.index == bad - 1
    assert len(found.notes) == 1
    assert f"cut at {ends[bad - LAST]}" in found.notes[0]
    (aside,) = [path for path in made.iterdir() if path.name.startswith("aside-")]
    assert aside.name == f"aside-000000-{bad:020d}"
    assert aside.read_bytes() == lost
    assert start(made).notes == []
    assert values_in(made) == VALUES[: bad - 1]


def test_last_segment_ends_behind_the_mark_without_a_failure(made: Path) -> None:
    set_marks(made, LAST, index=LAST - 1)
    found = start(made)
    assert (found.tip.index, found.notes) == (COUNT, [])


@pytest.mark.parametrize("how", ["file", "zeros"])
def test_last_segment_shorter_than_its_mark_is_refused(made: Path, how: str) -> None:
    ends = positions(made, LAST)
    path = made / store_name(LAST)
    if how == "file":
        path.write_bytes(path.read_bytes()[: ends[2]])
    else:
        change(path, (ends[2], bytes(HEADER_BYTES)))
    assert "in what was synced" in refused(made, store_name(LAST))


def test_a_log_that_ends_before_its_newest_snapshot_is_refused(made: Path) -> None:
    found = start(made)
    snapshots.write(
        RealFiles(), made, Snapshot(found.tip._replace(index=COUNT + 5), b"of another log")
    )
    assert "before its newest snapshot" in refused(made, snapshot_path(made, COUNT + 5).name)


# --- behind the mark -----------------------------------------------------------------------------


STRANGERS: dict[str, Callable[[Tip], Tip]] = {
    "index": lambda tip: tip._replace(index=tip.index + 1),
    "older index": lambda tip: tip._replace(index=tip.index - 1),
    "base offset": lambda tip: tip._replace(next_offset=tip.next_offset + 1),
    "chain": lambda tip: tip._replace(chain=tip.chain ^ 1),
}


@pytest.mark.parametrize("what", STRANGERS)
def test_a_valid_batch_that_does_not_follow_is_not_taken(made: Path, what: str) -> None:
    """What an earlier truncation left there, or another log."""
    found = start(made)
    _, parts = build(STRANGERS[what](found.tip), [b"stranger"])
    end = found.segments[-1].index.end_position
    change(made / store_name(LAST), (end, b"".join(parts)))
    assert "does not follow" in start(made).notes[0]
    assert values_in(made) == VALUES


def test_a_valid_batch_that_follows_is_taken(made: Path) -> None:
    found = start(made)
    _, parts = build(found.tip, [b"next"])
    change(made / store_name(LAST), (found.segments[-1].index.end_position, b"".join(parts)))
    assert values_in(made) == [*VALUES, b"next"]


def test_few_asides_are_kept(made: Path) -> None:
    for round_ in range(limits.aside_files_max + 3):
        end = start(made).segments[-1].index.end_position
        change(made / store_name(LAST), (end, b"\x01garbage %d" % round_))
        assert len(start(made).notes) == 1
    asides = sorted(path.name for path in made.iterdir() if path.name.startswith("aside-"))
    assert len(asides) == limits.aside_files_max
    assert asides[-1] == f"aside-{round_:06d}-{COUNT + 1:020d}"
    assert (made / asides[-1]).read_bytes() == b"\x01garbage %d" % round_
    assert values_in(made) == VALUES


def test_recovering_again_changes_nothing_but_the_marks(made: Path) -> None:
    start(made)
    before = {path.name: path.read_bytes() for path in made.iterdir()}
    start(made)
    after = {path.name: path.read_bytes() for path in made.iterdir()}
    assert before.keys() == after.keys()
    for name, data in before.items():
        start_at = fmt.PREAMBLE_BYTES if name == store_name(LAST) else 0
        assert data[start_at:] == after[name][start_at:], name
