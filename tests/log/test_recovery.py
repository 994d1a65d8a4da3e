"""The decision table of DESIGN.md, row by row; and what becomes of what is cut."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest

from proglog import limits
from proglog.batch import HEADER_BYTES, parse_header
from proglog.errors import CorruptionError, UnknownFormat
from proglog.log import format as fmt
from proglog.log import snapshot as snapshots
from proglog.log.envelope import MANIFEST
from proglog.log.format import ORIGIN, Mark, Place, SegmentHeader, Tip
from proglog.log.manifest import Change, Manifest
from proglog.log.names import index_name, snapshot_name, snapshot_path, store_name
from proglog.log.plan import Verdict
from proglog.log.reading import Reading
from proglog.log.recovery import Recovered, recover
from proglog.log.snapshot import Snapshot
from proglog.log.twin import TwinFile, read_twin
from proglog.ports import RealFiles
from tests.log.damaged import agree_on
from tests.log.support import CONFIG, Engine, build, flip, let_go, marks_of, values_in

COUNT = 20
"""Batches: segments 1-8, 9-16 and, active, 17-20. All are marked: the log was closed."""
FIRST, SECOND, LAST = 1, 9, 17
VALUES = [b"%010d" % index for index in range(1, COUNT + 1)]
GROUP = 2


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
        await engine.tidied()
    return folder


def start(folder: Path, *, with_hard_state: bool = False, group: int = GROUP) -> Recovered:
    found = recover(
        RealFiles(),
        folder,
        segment_bytes=CONFIG.segment_bytes,
        segment_batches=CONFIG.segment_batches,
        with_hard_state=with_hard_state,
        group=group,
    )
    let_go(found)
    return found


def notes_of(found: Recovered) -> list[str]:
    """What was rewritten or cut. Not that a file system keeps files in memory."""
    return [note for note in found.notes if "keeps files in memory" not in note]


def refused(folder: Path, name: str, *, with_hard_state: bool = False) -> str:
    """That a start is refused, names a file, and changes nothing; what it says. Verify and repair
    agree."""
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(CorruptionError) as caught:
        start(folder, with_hard_state=with_hard_state)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert Path(caught.value.facts["file"]).name == name
    assert caught.value.number("position") is not None
    if not with_hard_state:
        assert agree_on(folder).started is None
    return str(caught.value)


def verdicts(folder: Path) -> set[Verdict]:
    """What start, verify and repair agree to find, where a start is not refused."""
    outcome = agree_on(folder)
    assert outcome.started is not None
    assert outcome.report is not None
    return {entry.verdict for entry in outcome.report.entries}


def change(path: Path, *edits: tuple[int, bytes]) -> None:
    data = bytearray(path.read_bytes())
    for position, new in edits:
        data[position : position + len(new)] = new
    path.write_bytes(data)


def positions(folder: Path, first_index: int) -> list[int]:
    """Where each batch of a segment begins, and where the last ends."""
    data = (folder / store_name(first_index)).read_bytes()
    found = [fmt.PREAMBLE_BYTES]
    while data[found[-1] : found[-1] + 8].strip(b"\0"):
        found.append(found[-1] + parse_header(data, found[-1]).size)
    return found


def tip_at(folder: Path, first_index: int, index: int) -> tuple[Tip, int]:
    """The tip after a batch of a segment, or before its first, and where that ends."""
    path = folder / store_name(first_index)
    ends, data = positions(folder, first_index), path.read_bytes()
    if index < first_index:
        header = fmt.parse_segment_header(data, path)
        assert header is not None
        return header.before, ends[0]
    slot = index - first_index
    return Tip.after(parse_header(data, ends[slot])), ends[slot + 1]


def set_marks(folder: Path, first_index: int, *, index: int, commit: int = 0) -> None:
    """Both marks of a segment say that it was synced up to a batch of it."""
    tip, end = tip_at(folder, first_index, index)
    for sequence in (100, 101):
        mark = fmt.pack_mark(Mark(sequence, tip, end, commit))
        change(folder / store_name(first_index), (fmt.mark_position(sequence), mark))


def manifest_of(folder: Path) -> Manifest:
    state = read_twin(Reading(RealFiles(), writable=False), folder / "manifest", MANIFEST)
    assert state.payload is not None
    assert state.damages == state.stale == []
    return Manifest.parse(state.payload)


def set_manifest(folder: Path, manifest: Manifest) -> None:
    TwinFile.create(RealFiles(), folder / "manifest", MANIFEST, manifest.pack()).close()


def begin(folder: Path, what: Change, first_index: int, index: int) -> None:
    """A change after a batch was begun, and nothing of it was done."""
    tip, end = tip_at(folder, first_index, index)
    set_manifest(folder, manifest_of(folder)._replace(change=what, tip=tip, position=end))


# --- names ---------------------------------------------------------------------------------------


def test_name_not_of_this_table_is_left_alone(made: Path) -> None:
    strangers = ("x", "1.store", "0.index", "snapshot-1", "00000000000000000099.storeX", "lock")
    for name in strangers:
        (made / name).write_bytes(b"mine")
    assert verdicts(made) == set()
    assert notes_of(start(made)) == []
    assert values_in(made) == VALUES
    for name in strangers:
        assert (made / name).read_bytes() == b"mine"


def test_tmp_reserved_and_index_without_store_are_deleted(made: Path) -> None:
    worthless = ["x.tmp", "manifest.tmp", "reserved.store", "reserved.index", index_name(500)]
    for name in worthless:
        (made / name).write_bytes(b"garbage")
    assert verdicts(made) == set()
    start(made)
    assert not {path.name for path in made.iterdir()} & set(worthless)
    assert values_in(made) == VALUES


def test_a_folder_with_a_worthless_name_stops_nobody(made: Path) -> None:
    (made / "x.tmp").mkdir()
    (made / "x.tmp" / "mine").write_bytes(b"mine")
    (note,) = notes_of(start(made))
    assert "x.tmp" in note
    assert (made / "x.tmp" / "mine").read_bytes() == b"mine"
    assert values_in(made) == VALUES


# --- manifest ------------------------------------------------------------------------------------


@pytest.mark.parametrize("place", [0, 4096])
def test_one_copy_of_the_manifest_is_lost(with_snapshots: Path, place: int) -> None:
    before = (with_snapshots / "manifest").read_bytes()
    flip(with_snapshots / "manifest", place + 30)
    assert verdicts(with_snapshots) == {Verdict.REWRITTEN}
    assert len(notes_of(start(with_snapshots))) == 1
    assert (with_snapshots / "manifest").read_bytes() == before
    assert notes_of(start(with_snapshots)) == []


LOST: dict[str, Callable[[Path], object]] = {
    "both copies rotten": lambda path: flip(path, 30, 4096 + 30),
    "empty": lambda path: path.write_bytes(b""),
    "cut short": lambda path: path.write_bytes(path.read_bytes()[:20]),
    "zeros": lambda path: path.write_bytes(bytes(8192)),
    "missing": lambda path: path.unlink(),
}


@pytest.mark.parametrize("how", LOST)
def test_a_lost_manifest_is_made_again_from_the_segments(with_snapshots: Path, how: str) -> None:
    before = manifest_of(with_snapshots)
    assert before.base.index == 8
    LOST[how](with_snapshots / "manifest")
    assert verdicts(with_snapshots) == {Verdict.REWRITTEN}
    assert notes_of(start(with_snapshots))
    assert manifest_of(with_snapshots) == before
    assert values_in(with_snapshots) == VALUES[8:]
    assert notes_of(start(with_snapshots)) == []


@pytest.mark.parametrize("how", LOST)
def test_a_lost_manifest_and_a_lost_index(with_snapshots: Path, how: str) -> None:
    before = manifest_of(with_snapshots)
    LOST[how](with_snapshots / "manifest")
    (with_snapshots / index_name(SECOND)).unlink()
    start(with_snapshots)
    assert manifest_of(with_snapshots) == before
    assert values_in(with_snapshots) == VALUES[8:]


def test_a_log_of_another_group_is_refused(made: Path) -> None:
    set_manifest(made, manifest_of(made)._replace(group=7))
    assert "belongs to log 7" in refused(made, "manifest")


def test_a_prefix_that_was_dropped_is_deleted(made: Path) -> None:
    """The record of the new base was durable, no file was gone yet."""
    snapshots.write(RealFiles(), made, Snapshot(tip_at(made, FIRST, 8)[0], b"old"))
    tip = tip_at(made, SECOND, 16)[0]
    snapshots.write(RealFiles(), made, Snapshot(tip, b"new"))
    set_manifest(made, manifest_of(made)._replace(base=tip))
    assert verdicts(made) == set()
    found = start(made)
    assert {path.name for path in found.garbage} == {
        store_name(FIRST),
        index_name(FIRST),
        store_name(SECOND),
        index_name(SECOND),
        snapshot_name(8),
    }
    assert values_in(made) == VALUES[16:]
    for path in found.garbage:
        path.unlink()
    assert start(made).garbage == []
    assert values_in(made) == VALUES[16:]


def test_a_base_whose_segment_is_lost_is_refused(with_snapshots: Path) -> None:
    for name in (store_name(SECOND), index_name(SECOND)):
        (with_snapshots / name).unlink()
    assert "whose segment is lost" in refused(with_snapshots, store_name(LAST))


# --- a snapshot that was being installed ---------------------------------------------------------


def begin_reset(folder: Path, snapshot: Snapshot) -> None:
    snapshots.write(RealFiles(), folder, snapshot)
    manifest = manifest_of(folder)
    set_manifest(folder, manifest._replace(change=Change.RESET, tip=snapshot.tip))


FAR = Snapshot(Tip(1000, 5, 5000, 77, 3), b"far")


@pytest.mark.parametrize("segments_left", [[FIRST, SECOND, LAST], [LAST], []])
@pytest.mark.parametrize("begun", [False, True], ids=["old log", "new log begun"])
def test_a_reset_that_was_begun_is_finished(
    made: Path, segments_left: list[int], begun: bool
) -> None:
    snapshots.write(RealFiles(), made, Snapshot(Tip(8, 1, 8, 0, 1), b"old"))
    begin_reset(made, FAR)
    for first_index in {FIRST, SECOND, LAST} - set(segments_left):
        (made / store_name(first_index)).unlink()
    if begun and not segments_left:
        preamble = fmt.pack_preamble(SegmentHeader(Place(GROUP, 1), FAR.tip))
        (made / store_name(1001)).write_bytes(preamble.ljust(CONFIG.segment_bytes, b"\0"))
        (made / index_name(1001)).write_bytes(bytes(1000))
    assert verdicts(made) == {Verdict.HARMLESS}
    for _ in range(2):
        found = start(made)
        assert found.tip == FAR.tip
        assert found.snapshot == FAR
        assert found.snapshot_indexes == [1000]
    assert sorted(path.name for path in made.iterdir()) == [
        index_name(1001),
        store_name(1001),
        "manifest",
        snapshot_path(made, 1000).name,
    ]
    assert manifest_of(made) == Manifest(GROUP, generation=1, base=FAR.tip)


def test_a_reset_without_its_snapshot_is_refused(made: Path) -> None:
    begin_reset(made, FAR)
    snapshot_path(made, 1000).unlink()
    assert "being installed" in refused(made, snapshot_name(1000))


def test_a_snapshot_alone_begins_no_reset(made: Path) -> None:
    """It was written, the record was not: nothing was voided."""
    snapshots.write(RealFiles(), made, FAR)
    assert "before its newest snapshot" in refused(made, snapshot_name(1000))


# --- snapshots -----------------------------------------------------------------------------------


def test_at_most_two_snapshots_are_kept_and_one_is_read(made: Path) -> None:
    tips = [tip_at(made, FIRST, index)[0] for index in (2, 4, 6, 8)]
    for tip in tips:
        snapshots.write(RealFiles(), made, Snapshot(tip, b"state %d" % tip.index))
    flip(snapshot_path(made, 2), 30)  # Nobody looks at it.
    found = start(made)
    assert found.snapshot_indexes == [2, 8]
    assert found.garbage == [snapshot_path(made, 4), snapshot_path(made, 6)]
    assert found.snapshot == Snapshot(tips[-1], b"state 8")


def test_newest_snapshot_damaged_and_an_older_one_is_whole(with_snapshots: Path) -> None:
    flip(snapshot_path(with_snapshots, 16), 30)
    assert verdicts(with_snapshots) == {Verdict.HARMLESS}
    found = start(with_snapshots)
    assert found.snapshot_indexes == [8]
    assert found.garbage == [], "the next one of that name takes its place"
    assert values_in(with_snapshots) == VALUES[8:]


def test_older_snapshot_damaged_is_not_looked_at(with_snapshots: Path) -> None:
    flip(snapshot_path(with_snapshots, 8), 30)
    assert verdicts(with_snapshots) == {Verdict.HARMLESS}
    assert start(with_snapshots).snapshot_indexes == [8, 16]
    assert values_in(with_snapshots) == VALUES[8:]


def test_snapshot_damaged_and_the_log_begins_at_one(made: Path) -> None:
    snapshot_path(made, 16).write_bytes(b"garbage")
    assert verdicts(made) == {Verdict.HARMLESS}
    found = start(made)
    assert (found.snapshot, found.snapshot_indexes) == (None, [])
    assert values_in(made) == VALUES


def test_all_snapshots_damaged_and_the_log_begins_after_one(with_snapshots: Path) -> None:
    flip(snapshot_path(with_snapshots, 8), 30)
    flip(snapshot_path(with_snapshots, 16), 30)
    assert "no other snapshot will do" in refused(with_snapshots, snapshot_path(Path(), 16).name)


def test_no_snapshot_and_the_log_begins_after_one(with_snapshots: Path) -> None:
    for index in (8, 16):
        snapshot_path(with_snapshots, index).unlink()
    assert "is lost" in refused(with_snapshots, snapshot_name(8))


def test_a_snapshot_under_a_wrong_name_is_damaged(made: Path) -> None:
    snapshots.write(RealFiles(), made, Snapshot(tip_at(made, FIRST, 8)[0], b"state"))
    snapshot_path(made, 8).rename(snapshot_path(made, 7))
    assert start(made).snapshot is None


def test_a_log_that_ends_before_its_newest_snapshot_is_refused(made: Path) -> None:
    tip = tip_at(made, LAST, COUNT)[0]._replace(index=COUNT + 5)
    snapshots.write(RealFiles(), made, Snapshot(tip, b"of another log"))
    assert "before its newest snapshot" in refused(made, snapshot_name(COUNT + 5))


# --- new or lost ---------------------------------------------------------------------------------


def test_no_segment_and_none_expected_is_a_new_log(tmp_path: Path) -> None:
    found = start(tmp_path)
    assert found.tip == ORIGIN
    names = [index_name(1), store_name(1), "manifest"]
    assert sorted(path.name for path in tmp_path.iterdir()) == names
    assert start(tmp_path, with_hard_state=True).tip == ORIGIN
    assert notes_of(start(tmp_path)) == []


def test_a_manifest_alone_is_a_first_start_that_was_interrupted(tmp_path: Path) -> None:
    set_manifest(tmp_path, Manifest(GROUP))
    assert start(tmp_path, with_hard_state=True).tip == ORIGIN


def test_no_segment_but_a_hard_state_is_refused(tmp_path: Path) -> None:
    (tmp_path / "hard-state").write_bytes(b"something")
    with pytest.raises(CorruptionError, match=r"segments are lost|no copy is whole"):
        start(tmp_path, with_hard_state=True)
    assert [path.name for path in tmp_path.iterdir()] == ["hard-state"]


def test_no_segment_but_a_snapshot_is_refused(with_snapshots: Path) -> None:
    for first_index in (SECOND, LAST):
        (with_snapshots / store_name(first_index)).unlink()
    assert "segments are lost" in refused(with_snapshots, with_snapshots.name)


def test_a_log_without_its_hard_state_is_refused(made: Path) -> None:
    assert "what it promised" in refused(made, "hard-state", with_hard_state=True)


# --- segments ------------------------------------------------------------------------------------


def test_one_header_of_the_last_segment_is_rewritten(made: Path) -> None:
    path = made / store_name(LAST)
    before = path.read_bytes()
    for at in fmt.HEADER_POSITIONS:
        flip(path, at + 20)
        assert verdicts(made) == {Verdict.REWRITTEN}
        assert len(notes_of(start(made))) == 1
        assert path.read_bytes()[: fmt.MARK_POSITIONS[0]] == before[: fmt.MARK_POSITIONS[0]]
        assert notes_of(start(made)) == []
    assert values_in(made) == VALUES


def test_both_headers_of_the_last_segment_are_rewritten_from_what_precedes(made: Path) -> None:
    path = made / store_name(LAST)
    before = path.read_bytes()[: fmt.MARK_POSITIONS[0]]
    flip(path, *(at + 20 for at in fmt.HEADER_POSITIONS))
    assert verdicts(made) == {Verdict.REWRITTEN}
    assert len(notes_of(start(made))) == 2
    assert path.read_bytes()[: fmt.MARK_POSITIONS[0]] == before
    assert values_in(made) == VALUES


@pytest.mark.parametrize("first_index", [FIRST, SECOND])
def test_headers_and_marks_of_a_sealed_segment_do_not_matter(made: Path, first_index: int) -> None:
    change(made / store_name(first_index), (0, bytes(fmt.PREAMBLE_BYTES)))
    assert verdicts(made) == {Verdict.HARMLESS}
    assert notes_of(start(made)) == []
    assert values_in(made) == VALUES


async def test_a_cut_into_a_segment_without_headers_and_marks(made: Path) -> None:
    """Found by review: an IndexError."""
    change(made / store_name(SECOND), (0, bytes(fmt.PREAMBLE_BYTES)))
    async with Engine(made) as engine:
        await engine.log.prepare_cut(11)
        engine.log.cut_suffix(11)
        values = VALUES[:11] + await engine.fill(3, term=2)
        await engine.all_durable()
    assert (await asyncio.to_thread(verdicts, made)) <= {Verdict.REWRITTEN}
    assert await asyncio.to_thread(values_in, made) == values


def test_first_segment_both_headers_and_index_and_manifest_lost(made: Path) -> None:
    """A log that begins with batch 1 has nothing before that."""
    (made / "manifest").unlink()
    (made / index_name(FIRST)).unlink()
    change(made / store_name(FIRST), (0, bytes(2 * fmt.BLOCK_BYTES)))
    start(made)
    assert values_in(made) == VALUES


def test_headers_and_index_and_manifest_lost_and_nothing_tells_them(with_snapshots: Path) -> None:
    (with_snapshots / "manifest").unlink()
    (with_snapshots / index_name(SECOND)).unlink()
    change(with_snapshots / store_name(SECOND), (0, bytes(2 * fmt.BLOCK_BYTES)))
    refused(with_snapshots, store_name(SECOND))


def test_a_lost_segment_is_refused(made: Path) -> None:
    (made / store_name(SECOND)).unlink()
    assert "ends at batch 8, not 16" in refused(made, store_name(FIRST))


def test_a_foreign_segment_is_refused(made: Path) -> None:
    foreign = fmt.pack_preamble(SegmentHeader(Place(GROUP), Tip(16, 1, 16, 0, 12345)))
    (made / store_name(LAST)).write_bytes(foreign.ljust(CONFIG.segment_bytes, b"\0"))
    assert "does not follow" in refused(made, store_name(LAST))


@pytest.mark.parametrize("place", [Place(GROUP, 1), Place(7)], ids=["generation", "group"])
def test_a_segment_of_another_place_is_refused(made: Path, place: Place) -> None:
    tip = tip_at(made, SECOND, 16)[0]
    foreign = fmt.pack_preamble(SegmentHeader(place, tip))
    (made / store_name(LAST)).write_bytes(foreign.ljust(CONFIG.segment_bytes, b"\0"))
    assert "is of log" in refused(made, store_name(LAST))


def test_a_segment_under_a_wrong_name_is_refused(with_snapshots: Path) -> None:
    for name in (store_name, index_name):
        (with_snapshots / name(SECOND)).rename(with_snapshots / name(SECOND + 1))
    refused(with_snapshots, store_name(SECOND + 1))


# --- cuts that were begun ------------------------------------------------------------------------


@pytest.mark.parametrize("later", [True, False], ids=["later segments left", "none left"])
@pytest.mark.parametrize("zeroed", [True, False], ids=["zeros written", "not yet"])
@pytest.mark.parametrize("last", [8, 11, 15])
def test_a_cut_that_was_begun_is_finished(made: Path, later: bool, zeroed: bool, last: int) -> None:
    begin(made, Change.CUT, SECOND, last)
    end = tip_at(made, SECOND, last)[1]
    if not later:
        (made / store_name(LAST)).unlink()
        (made / index_name(LAST)).rename(made / index_name(SECOND))
    if zeroed:
        change(made / store_name(SECOND), (end, bytes(HEADER_BYTES)))
    assert verdicts(made) == {Verdict.CUT}
    found = start(made)
    assert found.tip.index == last
    assert not (made / store_name(LAST)).exists()
    assert not list(made.glob("aside-*"))
    assert [mark.tip.index for mark in marks_of(made / store_name(SECOND))] == [last] * 2
    assert manifest_of(made).change is Change.NONE
    assert notes_of(start(made)) == []
    assert values_in(made) == VALUES[:last]


@pytest.mark.parametrize("how", ["rotten", "missing"])
def test_a_cut_whose_batches_are_lost_is_refused(made: Path, how: str) -> None:
    ends = positions(made, SECOND)
    begin(made, Change.CUT, SECOND, 11)
    if how == "rotten":
        flip(made / store_name(SECOND), ends[1] + 75)
    else:
        change(made / store_name(SECOND), (ends[2], bytes(HEADER_BYTES)))
    assert "before the cut that is under way" in refused(made, store_name(SECOND))


@pytest.mark.parametrize("renamed", [0, 1, 2, 3])
def test_a_cut_by_repair_keeps_what_it_removes(with_snapshots: Path, renamed: int) -> None:
    begin(with_snapshots, Change.CUT_ASIDE, SECOND, 11)
    going = [store_name(LAST), snapshot_name(16)]
    before = {name: (with_snapshots / name).read_bytes() for name in going}
    for name in going[:renamed]:
        (with_snapshots / name).rename(with_snapshots / f"aside-{name}")
    assert verdicts(with_snapshots) == {Verdict.CUT}
    start(with_snapshots)
    for name, data in before.items():
        assert not (with_snapshots / name).exists()
        assert (with_snapshots / f"aside-{name}").read_bytes() == data
    assert notes_of(start(with_snapshots)) == []
    assert values_in(with_snapshots) == VALUES[8:11]


async def test_a_finished_cut_takes_new_batches(made: Path) -> None:
    await asyncio.to_thread(begin, made, Change.CUT, SECOND, 11)
    async with Engine(made) as engine:
        values = VALUES[:11] + await engine.fill(12, term=2)
        await engine.all_durable()
    async with Engine(made) as engine:
        assert await engine.read_all() == values


@pytest.mark.parametrize("first_index", [FIRST, SECOND, LAST])
def test_giving_up_that_was_interrupted_builds_the_index_anew(made: Path, first_index: int) -> None:
    """Whatever the index says may be of batches that are no more."""
    manifest = manifest_of(made)
    tip = tip_at(made, first_index, first_index - 1)[0]
    set_manifest(made, manifest._replace(change=Change.GIVE_UP, tip=tip))
    before = (made / index_name(first_index)).read_bytes()
    assert verdicts(made) == (set() if first_index == LAST else {Verdict.REWRITTEN})
    start(made)
    assert manifest_of(made) == manifest
    if first_index != LAST:
        assert (made / index_name(first_index)).read_bytes() == before
    assert values_in(made) == VALUES


# --- marks ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("slot", [0, 1])
def test_one_mark_of_the_last_segment_invalid_is_rewritten(made: Path, slot: int) -> None:
    flip(made / store_name(LAST), fmt.MARK_POSITIONS[slot] + 10)
    assert verdicts(made) == {Verdict.REWRITTEN}
    start(made)
    marks = marks_of(made / store_name(LAST))
    assert [mark.tip.index for mark in marks] == [COUNT] * 2
    assert notes_of(start(made)) == []
    assert values_in(made) == VALUES


def test_both_marks_invalid_and_the_log_ends_cleanly(made: Path) -> None:
    flip(made / store_name(LAST), *(at + 10 for at in fmt.MARK_POSITIONS))
    assert verdicts(made) == {Verdict.REWRITTEN}
    assert start(made).tip.index == COUNT
    assert [mark.tip.index for mark in marks_of(made / store_name(LAST))] == [COUNT] * 2
    assert values_in(made) == VALUES


def test_both_marks_invalid_and_the_log_does_not_end_cleanly(made: Path) -> None:
    end = positions(made, LAST)[-1]
    change(made / store_name(LAST), (end, b"\x01garbage"))
    flip(made / store_name(LAST), *(at + 10 for at in fmt.MARK_POSITIONS))
    assert "both marks are lost" in refused(made, store_name(LAST))


@pytest.mark.parametrize("blocks", range(4))
def test_a_store_that_ends_before_its_marks_is_no_empty_one(made: Path, blocks: int) -> None:
    path = made / store_name(LAST)
    path.write_bytes(path.read_bytes()[: blocks * fmt.BLOCK_BYTES])
    message = refused(made, store_name(LAST))
    assert (
        "both marks are lost" in message or "in what was synced" in message or "header" in message
    )


def test_the_newest_mark_says_how_far_the_log_is_committed(made: Path) -> None:
    set_marks(made, LAST, index=19, commit=18)
    assert start(made).commit_hint == 18


# --- indexes -------------------------------------------------------------------------------------


INDEX_DAMAGE: dict[str, Callable[[Path], object]] = {
    "absent": lambda path: path.unlink(),
    "empty": lambda path: path.write_bytes(b""),
    "zeros": lambda path: path.write_bytes(bytes(5000)),
    "rotten": lambda path: flip(path, 5),
    "cut short": lambda path: path.write_bytes(path.read_bytes()[:-1]),
    "longer": lambda path: path.write_bytes(path.read_bytes() + bytes(16)),
}


@pytest.mark.parametrize("damage", INDEX_DAMAGE)
@pytest.mark.parametrize("first_index", [FIRST, SECOND])
def test_sealed_index_invalid_or_absent_is_rewritten(
    made: Path, first_index: int, damage: str
) -> None:
    path = made / index_name(first_index)
    before = path.read_bytes()
    INDEX_DAMAGE[damage](path)
    assert verdicts(made) == {Verdict.REWRITTEN}
    assert [note for note in start(made).notes if "built anew" in note]
    assert path.read_bytes() == before
    assert notes_of(start(made)) == []
    assert values_in(made) == VALUES


def test_another_segments_index_is_refused(made: Path) -> None:
    (made / index_name(FIRST)).write_bytes((made / index_name(SECOND)).read_bytes())
    assert "does not follow" in refused(made, store_name(FIRST))


def test_sealed_index_invalid_and_its_store_damaged_is_refused(made: Path) -> None:
    at = positions(made, FIRST)[4]
    flip(made / index_name(FIRST), 5)
    flip(made / store_name(FIRST), at + 80)
    message = refused(made, store_name(FIRST))
    assert f"at {at}: batch 5" in message


def test_a_damaged_batch_of_a_sealed_segment_stops_nobody(made: Path) -> None:
    flip(made / store_name(FIRST), positions(made, FIRST)[4] + 75)
    assert verdicts(made) == {Verdict.UNREADABLE}
    assert notes_of(start(made)) == []


@pytest.mark.parametrize("size", [0, 100, 5000, 12288, 16384, 16500, -1])
def test_sealed_store_shorter_than_its_index_is_refused(made: Path, size: int) -> None:
    path = made / store_name(FIRST)
    path.write_bytes(path.read_bytes()[:size])
    assert "shorter than its index" in refused(made, store_name(FIRST))


# --- the active segment --------------------------------------------------------------------------


@pytest.mark.parametrize("index", range(LAST, COUNT + 1))
def test_last_segment_fails_at_or_before_the_mark_is_refused(made: Path, index: int) -> None:
    at = positions(made, LAST)[index - LAST]
    flip(made / store_name(LAST), at + 75)
    message = refused(made, store_name(LAST))
    assert f"at {at}: batch {index}" in message
    assert "in what was synced" in message


@pytest.mark.parametrize("bad", range(LAST, COUNT + 1))
@pytest.mark.parametrize("offset", [3, 20, 75], ids=["crc", "header", "body"])
def test_last_segment_fails_after_the_mark_is_cut_with_valid_ones_after_it(
    made: Path, bad: int, offset: int
) -> None:
    ends = positions(made, LAST)
    set_marks(made, LAST, index=LAST - 1)
    flip(made / store_name(LAST), ends[bad - LAST] + offset)
    lost = (made / store_name(LAST)).read_bytes()[ends[bad - LAST] : ends[-1]]
    assert verdicts(made) == {Verdict.CUT}
    found = start(made)
    assert found.tip.index == bad - 1
    (note,) = notes_of(found)
    assert f"at {ends[bad - LAST]}" in note
    assert f"cut after batch {bad - 1}" in note
    (aside,) = [path for path in made.iterdir() if path.name.startswith("aside-")]
    assert aside.name == f"aside-000000-{bad:020d}"
    assert aside.read_bytes() == lost
    assert notes_of(start(made)) == []
    assert values_in(made) == VALUES[: bad - 1]


def test_last_segment_ends_after_the_mark_without_a_failure(made: Path) -> None:
    set_marks(made, LAST, index=LAST - 1)
    found = start(made)
    assert (found.tip.index, notes_of(found)) == (COUNT, [])


@pytest.mark.parametrize("how", ["file", "zeros"])
def test_last_segment_shorter_than_its_mark_is_refused(made: Path, how: str) -> None:
    ends = positions(made, LAST)
    path = made / store_name(LAST)
    if how == "file":
        path.write_bytes(path.read_bytes()[: ends[2]])
    else:
        change(path, (ends[2], bytes(HEADER_BYTES)))
    assert "in what was synced" in refused(made, store_name(LAST))


def test_a_mark_of_another_log_is_refused(made: Path) -> None:
    tip, end = tip_at(made, LAST, 18)
    for sequence in (100, 101):
        mark = fmt.pack_mark(Mark(sequence, tip._replace(chain=1), end, 0))
        change(made / store_name(LAST), (fmt.mark_position(sequence), mark))
    assert "the log is not what" in refused(made, store_name(LAST))


STRANGERS: dict[str, Callable[[Tip], Tip]] = {
    "index": lambda tip: tip._replace(index=tip.index + 1),
    "older index": lambda tip: tip._replace(index=tip.index - 1),
    "base offset": lambda tip: tip._replace(next_offset=tip.next_offset + 1),
    "chain": lambda tip: tip._replace(chain=tip.chain ^ 1),
}


@pytest.mark.parametrize("what", STRANGERS)
def test_a_valid_batch_that_does_not_follow_is_not_taken(made: Path, what: str) -> None:
    """What an earlier truncation left there, or another log."""
    tip, end = tip_at(made, LAST, COUNT)
    _, parts = build(STRANGERS[what](tip), [b"stranger"])
    change(made / store_name(LAST), (end, b"".join(parts)))
    assert verdicts(made) == {Verdict.CUT}
    assert "does not follow" in start(made).notes[0]
    assert values_in(made) == VALUES


def test_a_valid_batch_that_follows_is_taken(made: Path) -> None:
    tip, end = tip_at(made, LAST, COUNT)
    _, parts = build(tip, [b"next"])
    change(made / store_name(LAST), (end, b"".join(parts)))
    assert verdicts(made) == set()
    assert values_in(made) == [*VALUES, b"next"]


def test_few_asides_are_kept(made: Path) -> None:
    end = positions(made, LAST)[-1]
    for round_ in range(limits.aside_files_max + 3):
        change(made / store_name(LAST), (end, b"\x01garbage %d" % round_))
        assert len(notes_of(start(made))) == 1
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


# --- other versions ------------------------------------------------------------------------------


def _newer(data: bytes, at: int) -> bytes:
    """The structure at a position as version 3 would have written it."""
    from crc32c import crc32c

    length = int.from_bytes(data[at + 12 : at + 16], "little")
    new = bytearray(data[at : at + length])
    new[8:10] = (3).to_bytes(2, "little")
    new[20:24] = bytes(4)
    new[20:24] = crc32c(bytes(new)).to_bytes(4, "little")
    return data[:at] + new + data[at + length :]


NEWER: dict[str, tuple[str, tuple[int, ...]]] = {
    "manifest": ("manifest", (0, 4096)),
    "one copy of the manifest": ("manifest", (4096,)),
    "snapshot": (snapshot_name(16), (0,)),
    "index": (index_name(SECOND), (0,)),
    "header": (store_name(LAST), (0,)),
    "second header": (store_name(LAST), (4096,)),
    "mark": (store_name(LAST), (8192,)),
    "other mark": (store_name(LAST), (12288,)),
}


@pytest.mark.parametrize("what", NEWER)
def test_what_a_newer_version_wrote_is_said_and_not_touched(
    with_snapshots: Path, what: str
) -> None:
    name, places = NEWER[what]
    path = with_snapshots / name
    data = path.read_bytes()
    for at in places:
        data = _newer(data, at)
    path.write_bytes(data)
    unknown(with_snapshots, name, "3")


def unknown(folder: Path, name: str, version: str) -> None:
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(UnknownFormat, match=f"format version {version}") as caught:
        start(folder)
    assert Path(caught.value.facts["file"]).name == name
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert agree_on(folder).report is None


VERSION_1 = {
    store_name(LAST): b"PROGLOG1",
    index_name(SECOND): b"PROGIDX1",
    snapshot_name(16): b"PROGSNP1",
}


@pytest.mark.parametrize("name", VERSION_1)
def test_what_version_1_wrote_is_said(with_snapshots: Path, name: str) -> None:
    change(with_snapshots / name, (0, VERSION_1[name]))
    unknown(with_snapshots, name, "1")
