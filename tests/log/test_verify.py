"""Offline: every byte is checked, and repair removes nothing that it does not keep."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from proglog.errors import ConfigurationError, CorruptionError
from proglog.log import format as fmt
from proglog.log.index import Index
from proglog.log.segment import index_name, store_name
from proglog.log.snapshot import snapshot_path
from proglog.log.verify import Report, Severity, repair, verify
from proglog.ports import RealFiles
from tests.log.support import Engine, flip, values_in
from tests.log.test_recovery import COUNT, FIRST, LAST, SECOND, VALUES, positions, set_marks


@pytest.fixture
async def made(folder: Path) -> Path:
    """Segments 1-8, 9-16 and 17-20, snapshots at 8 and 16."""
    async with Engine(folder) as engine:
        await engine.fill(COUNT)
        await engine.all_durable()
        for tip in engine.log.sealed_tips():
            await engine.log.write_snapshot(tip, b"state".upper)
    return folder


def the_problem(report: Report) -> tuple[str, int, Severity]:
    (problem,) = report.problems
    assert str(problem.file) in str(problem)
    return problem.file.name, problem.position, problem.severity


def test_a_clean_log_has_no_problems(made: Path) -> None:
    before = {path.name: path.read_bytes() for path in made.iterdir()}
    report = verify(made)
    assert (report.problems, report.is_damaged) == ((), False)
    assert (report.segments, report.batches, report.records) == (3, COUNT, COUNT)
    sizes = sum(path.stat().st_size for path in made.glob("*.store"))
    assert 0 < report.bytes < sizes
    assert repair(made) == ["nothing to repair"]
    after = {path.name: path.read_bytes() for path in made.iterdir()}
    assert {name: after[name] for name in before} == before


async def test_a_clean_log_after_everything_that_can_happen(folder: Path) -> None:
    async with Engine(folder) as engine:
        await engine.fill(30)
        await engine.all_durable()
        for tip in engine.log.sealed_tips():
            await engine.log.write_snapshot(tip, b"state".upper)
        engine.log.drop_prefix(9)
        engine.log.cut_suffix(20)
        await engine.fill(10, term=2)
        await engine.append(bytes(50_000))
        await engine.append()
    report = await asyncio.to_thread(verify, folder)
    assert report.problems == ()
    assert report.batches == 32 - 8


def test_each_flipped_byte_of_a_store_is_seen_and_placed(made: Path) -> None:
    path = made / store_name(FIRST)
    ends = positions(made, FIRST)
    original = path.read_bytes()
    for at in range(ends[0], ends[-1], 7):
        flip(path, at)
        name, position, severity = the_problem(verify(made))
        batch = max(slot for slot in range(8) if ends[slot] <= at)
        assert (name, position, severity) == (path.name, ends[batch], Severity.DAMAGE)
        path.write_bytes(original)


DAMAGE = {
    "snapshot that another replaces": (snapshot_path(Path(), 8).name, 30, Severity.MENDED_ON_START),
    "header of a segment": (store_name(SECOND), 20, Severity.MENDED_ON_START),
    "one mark": (store_name(LAST), fmt.MARK_POSITIONS[0] + 9, Severity.MENDED_ON_START),
    "index": (index_name(FIRST), 40, Severity.MENDED_ON_START),
    "batch of a sealed segment": (store_name(SECOND), 4100, Severity.DAMAGE),
    "batch that was synced": (store_name(LAST), 4100, Severity.DAMAGE),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_each_kind_of_damage(made: Path, name: str) -> None:
    file, position, severity = DAMAGE[name]
    flip(made / file, position)
    found, _at, how = the_problem(verify(made))
    assert (found, how) == (file, severity)
    before = {path.name: path.read_bytes() for path in made.iterdir()}
    if severity is Severity.MENDED_ON_START:
        assert repair(made) == ["the next start mends the rest"]
        assert values_in(made) == VALUES
        assert verify(made).problems == ()
    else:
        with pytest.raises(CorruptionError, match="--cut-damaged"):
            repair(made)
        assert {path.name: path.read_bytes() for path in made.iterdir()} == before


def test_an_index_that_lies_is_damage(made: Path) -> None:
    """Whole, but of other batches: a start would believe it."""
    path = made / index_name(FIRST)
    index = Index.parse(path.read_bytes())
    assert index is not None
    index.end_position += 1
    path.write_bytes(index.pack())
    assert the_problem(verify(made))[2] is Severity.DAMAGE


def test_a_missing_index_is_mended(made: Path) -> None:
    (made / index_name(SECOND)).unlink()
    assert the_problem(verify(made)) == (index_name(SECOND), 0, Severity.MENDED_ON_START)
    assert values_in(made) == VALUES


def test_both_marks_damaged(made: Path) -> None:
    flip(made / store_name(LAST), *(at + 9 for at in fmt.MARK_POSITIONS))
    assert the_problem(verify(made))[2] is Severity.DAMAGE
    repair(made, cut_damaged=True)
    assert verify(made).problems == ()
    assert values_in(made) == VALUES


def test_a_lost_segment_is_damage(made: Path) -> None:
    (made / store_name(SECOND)).unlink()
    report = verify(made)
    assert report.is_damaged


def test_a_lost_base_is_damage(made: Path) -> None:
    for name in (store_name(FIRST), index_name(FIRST)):
        (made / name).unlink()
    assert verify(made).problems == ()
    for index in (8, 16):
        snapshot_path(made, index).unlink()
    assert the_problem(verify(made))[2] is Severity.DAMAGE


def test_what_is_torn_behind_the_mark_is_mended(made: Path) -> None:
    ends = positions(made, LAST)
    set_marks(made, LAST, index=18)
    flip(made / store_name(LAST), ends[2] + 75)
    problem = the_problem(verify(made))
    assert problem == (store_name(LAST), ends[2], Severity.MENDED_ON_START)
    assert values_in(made) == VALUES[:18]
    assert verify(made).problems == ()


@pytest.mark.parametrize("bad", [1, 5, 8, 9, 12, 16, 17, 20])
def test_repair_ends_the_log_before_the_damage_and_keeps_the_rest(made: Path, bad: int) -> None:
    first_index = FIRST if bad < SECOND else SECOND if bad < LAST else LAST
    path = made / store_name(first_index)
    ends = positions(made, first_index)
    at = ends[bad - first_index]
    flip(path, at + 75)
    original = {each.name: each.read_bytes() for each in made.iterdir()}
    report = verify(made)
    assert report.problems[0].position == at
    assert report.problems[0].first_offset == bad - 1
    done = repair(made, cut_damaged=True)
    assert done[-1] == f"the log ends at offset {bad - 1} now"
    assert not verify(made).is_damaged
    assert values_in(made) == VALUES[: bad - 1]
    # Nothing that was removed is lost.
    kept = {each.name: each.read_bytes() for each in made.iterdir()}
    removed = original[path.name][at : ends[-1]]
    assert kept[f"aside-repair-{bad:020d}"] == removed
    for later in (SECOND, LAST):
        if later > first_index:
            assert kept[f"aside-{store_name(later)}"] == original[store_name(later)]
    for index in (8, 16):
        name = snapshot_path(made, index).name
        assert kept[name if index < bad else f"aside-{name}"] == original[name]
    assert verify(made).problems == ()


async def test_a_repaired_log_goes_on(made: Path) -> None:
    def damage_and_repair() -> None:
        flip(made / store_name(SECOND), positions(made, SECOND)[3] + 75)
        repair(made, cut_damaged=True)

    await asyncio.to_thread(damage_and_repair)
    async with Engine(made) as engine:
        values = VALUES[:11] + await engine.fill(20, term=2)
        await engine.all_durable()
    async with Engine(made) as engine:
        assert await engine.read_all() == values
    assert (await asyncio.to_thread(verify, made)).problems == ()


def test_damage_in_two_segments(made: Path) -> None:
    flip(made / store_name(FIRST), positions(made, FIRST)[4] + 75)
    flip(made / store_name(LAST), positions(made, LAST)[1] + 75)
    assert len([p for p in verify(made).problems if p.severity is Severity.DAMAGE]) >= 2
    repair(made, cut_damaged=True)
    assert values_in(made) == VALUES[:4]


def test_a_damaged_header_and_a_damaged_batch(made: Path) -> None:
    at = positions(made, SECOND)[2]
    flip(made / store_name(SECOND), 20, at + 75)
    assert verify(made).is_damaged
    before = {path.name: path.read_bytes() for path in made.iterdir()}
    with pytest.raises(CorruptionError, match="header"):
        repair(made, cut_damaged=True)
    assert {path.name: path.read_bytes() for path in made.iterdir()} == before


def test_what_is_no_log_is_said(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "absent"):
        for call in (verify, repair):
            with pytest.raises(ConfigurationError, match="no log's directory"):
                call(folder)
    assert list(tmp_path.iterdir()) == []


def test_a_log_in_use_is_not_touched(made: Path) -> None:
    unlock = RealFiles().lock(made / "lock")
    for call in (verify, repair):
        with pytest.raises(ConfigurationError, match="in use"):
            call(made)
    unlock()
    assert verify(made).segments == 3
