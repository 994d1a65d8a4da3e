"""Offline: every byte is checked, by whoever may read it, and nothing is changed."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from proglog.errors import ConfigurationError
from proglog.log import format as fmt
from proglog.log.index import Index
from proglog.log.names import index_name, snapshot_name, store_name
from proglog.log.plan import Entry, Verdict
from proglog.log.repair import Allow, repair
from proglog.log.verify import Report, verify
from proglog.ports import RealFiles
from tests.log.damaged import agree_on
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


def entry_of(report: Report) -> Entry:
    (entry,) = report.entries
    assert str(entry.file) in str(entry)
    assert str(entry.position) in str(entry)
    assert entry.verdict.value in str(entry)
    return entry


def facts_of(report: Report) -> tuple[str, int, Verdict]:
    entry = entry_of(report)
    return entry.file.name, entry.position, entry.verdict


def test_a_clean_log_has_no_entries(made: Path) -> None:
    before = {path.name: path.read_bytes() for path in made.iterdir()}
    report = verify(made)
    assert (report.entries, report.is_damaged) == ((), False)
    assert (report.segments, report.batches, report.records) == (3, COUNT, COUNT)
    assert report.bytes == sum(
        positions(made, first)[-1] - fmt.PREAMBLE_BYTES for first in (FIRST, SECOND, LAST)
    )
    assert repair(made) == ["nothing to repair"]
    assert {path.name: path.read_bytes() for path in made.iterdir()} == before


async def test_a_clean_log_after_everything_that_can_happen(folder: Path) -> None:
    async with Engine(folder) as engine:
        await engine.fill(30)
        await engine.all_durable()
        for tip in engine.log.sealed_tips():
            await engine.log.write_snapshot(tip, b"state".upper)
        engine.log.drop_prefix(9)
        await engine.log.prepare_cut(26)
        engine.log.cut_suffix(26)
        await engine.fill(10, term=2)
        await engine.append(bytes(50_000))
        await engine.append()
    report = await asyncio.to_thread(verify, folder)
    assert report.entries == ()
    assert report.batches == 38 - 8


def test_each_flipped_byte_of_a_store_is_seen_and_placed(made: Path) -> None:
    path = made / store_name(FIRST)
    ends = positions(made, FIRST)
    original = path.read_bytes()
    for at in range(ends[0], ends[-1], 7):
        flip(path, at)
        entry = entry_of(verify(made))
        slot = max(slot for slot in range(8) if ends[slot] <= at)
        assert (entry.file, entry.position, entry.verdict) == (path, ends[slot], Verdict.UNREADABLE)
        assert (entry.first_offset, entry.last_offset) == (slot, slot)
        path.write_bytes(original)


DAMAGE = {
    "snapshot that another replaces": (snapshot_name(8), 30, 0, Verdict.HARMLESS),
    "newest snapshot": (snapshot_name(16), 30, 0, Verdict.HARMLESS),
    "header of a sealed segment": (store_name(SECOND), 20, 0, Verdict.HARMLESS),
    "header of the active segment": (store_name(LAST), 20, 0, Verdict.REWRITTEN),
    "one mark": (store_name(LAST), 8192 + 9, 8192, Verdict.REWRITTEN),
    "index": (index_name(FIRST), 40, 0, Verdict.REWRITTEN),
    "one copy of the manifest": ("manifest", 4096 + 9, 4096, Verdict.REWRITTEN),
    "batch of a sealed segment": (store_name(SECOND), 16388, 16384, Verdict.UNREADABLE),
    "batch that was synced": (store_name(LAST), 16388, 16384, Verdict.REFUSED),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_each_kind_of_damage(made: Path, name: str) -> None:
    file, at, position, verdict = DAMAGE[name]
    flip(made / file, at)
    agree_on(made)
    report = verify(made)
    assert facts_of(report) == (file, position, verdict)
    assert report.is_damaged == (verdict in {Verdict.UNREADABLE, Verdict.REFUSED})
    if not report.is_damaged:
        (done,) = repair(made)
        if verdict is Verdict.HARMLESS:
            assert done.startswith(file)
            assert verify(made).entries == ()
        else:
            assert done == "the next start does the rest"
        assert values_in(made) == VALUES


def test_an_index_that_lies_is_seen(made: Path) -> None:
    """Whole, but of other batches: a start would believe it."""
    path = made / index_name(FIRST)
    index = Index.parse(path.read_bytes(), path, keep_entries=True)
    assert index is not None
    index._numbers[4 * 4 + 1] += 1  # type: ignore[index]
    path.write_bytes(index.pack())
    entries = verify(made).entries
    assert {entry.verdict for entry in entries} == {Verdict.UNREADABLE}
    assert "not the one that the index describes" in entries[0].what


def test_several_damaged_batches_are_several_entries(made: Path) -> None:
    ends = positions(made, SECOND)
    flip(made / store_name(SECOND), *(ends[slot] + 75 for slot in (0, 3, 4, 7)))
    flip(made / store_name(FIRST), positions(made, FIRST)[2] + 75)
    entries = verify(made).entries
    assert [entry.first_offset for entry in entries] == [2, 8, 11, 12, 15]
    agree_on(made)


def test_what_is_torn_after_the_mark_is_cut(made: Path) -> None:
    ends = positions(made, LAST)
    set_marks(made, LAST, index=18)
    flip(made / store_name(LAST), ends[2] + 75)
    report = verify(made)
    assert facts_of(report) == (store_name(LAST), ends[2], Verdict.CUT)
    assert not report.is_damaged
    assert values_in(made) == VALUES[:18]
    assert verify(made).entries == ()


@pytest.mark.parametrize("bad", [1, 5, 8, 9, 12, 16, 17, 20])
def test_repair_gives_up_one_batch_or_ends_the_log_before_it(made: Path, bad: int) -> None:
    first_index = FIRST if bad < SECOND else SECOND if bad < LAST else LAST
    path = made / store_name(first_index)
    ends = positions(made, first_index)
    at = ends[bad - first_index]
    flip(path, at + 75)
    assert entry_of(verify(made)).position == at
    assert entry_of(verify(made)).first_offset == bad - 1
    outcome = agree_on(made)
    given_up, cut = outcome.repaired[Allow.GIVE_UP], outcome.repaired[Allow.CUT]
    assert given_up is not None
    assert list(given_up.gaps.values()) == [range(bad - 1, bad)]
    assert sorted(given_up.batches) == [index for index in range(1, COUNT + 1) if index != bad]
    if bad == 1:
        assert cut is None
    else:
        assert cut is not None
        assert sorted(cut.batches) == list(range(1, bad))


async def test_a_repaired_log_goes_on(made: Path) -> None:
    def damage_and_repair(allow: Allow, slot: int) -> list[str]:
        flip(made / store_name(SECOND), positions(made, SECOND)[slot] + 75)
        return repair(made, allow=allow)

    done = await asyncio.to_thread(damage_and_repair, Allow.GIVE_UP, 5)
    assert done == [f"{store_name(SECOND)}: a gap stands for batch 14: offsets 13 to 13 are lost"]
    done = await asyncio.to_thread(damage_and_repair, Allow.CUT, 3)
    assert done[-1] == "the log ends at offset 11 now"
    async with Engine(made) as engine:
        values = VALUES[:11] + await engine.fill(20, term=2)
        await engine.all_durable()
    async with Engine(made) as engine:
        assert await engine.read_all() == values
    assert (await asyncio.to_thread(verify, made)).entries == ()


def test_what_is_no_log_is_said(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "absent"):
        for call in (verify, repair):
            with pytest.raises(ConfigurationError, match="no log's directory"):
                call(folder)
    assert list(tmp_path.iterdir()) == []


def test_a_log_in_use_is_not_touched(made: Path) -> None:
    unlock = RealFiles().lock(made)
    for call in (verify, repair):
        with pytest.raises(ConfigurationError, match="in use"):
            call(made)
    unlock()
    assert verify(made).segments == 3


def test_two_may_verify_at_a_time_and_nobody_repairs_meanwhile(made: Path) -> None:
    unlock = RealFiles().lock(made, shared=True)
    assert verify(made).segments == 3
    with pytest.raises(ConfigurationError, match="in use"):
        repair(made)
    unlock()


def test_removing_files_from_a_folder_in_use_opens_it_to_nobody(made: Path) -> None:
    """Found by review: whoever removed the file `lock` could start a second node."""
    unlock = RealFiles().lock(made)
    for name in ("lock", "x.tmp"):
        (made / name).write_bytes(b"")
        (made / name).unlink()
    with pytest.raises(BlockingIOError):
        RealFiles().lock(made)
    unlock()


# --- without write access ------------------------------------------------------------------------

NOBODY = 65534
AS_NOBODY = f"""
import os, sys
import proglog.cli.app, proglog.cli.check
if os.getuid() == 0:
    os.setgroups([])
    os.setgid({NOBODY})
    os.setuid({NOBODY})
sys.exit(proglog.cli.app.run(sys.argv[1:]))
"""


def run(*words: str) -> subprocess.CompletedProcess[str]:
    """A command in a process of its own, of a user who may not write."""
    command = [sys.executable, "-c", AS_NOBODY, *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


@contextlib.contextmanager
def readable_for_all(folder: Path) -> Iterator[Path]:
    """A copy that everybody may read and nobody may write, where everybody may go."""
    with tempfile.TemporaryDirectory() as name:
        copy = Path(name) / folder.name
        shutil.copytree(folder, copy)
        for path in copy.iterdir():
            path.chmod(0o444)
        Path(name).chmod(0o755)
        copy.chmod(0o555)
        yield copy
        copy.chmod(0o755)


@pytest.fixture
def unwritable(made: Path) -> Iterator[Path]:
    with readable_for_all(made) as copy:
        yield copy


def test_verify_needs_no_write_access(unwritable: Path) -> None:
    """As another user, where this one may everything."""
    made = unwritable
    before = {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in made.iterdir()}
    before_folder = made.stat().st_mtime_ns
    ran = run("verify", str(made))
    assert (ran.returncode, ran.stderr) == (0, "")
    assert "20 records" in ran.stdout
    assert "whole" in ran.stdout
    after = {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in made.iterdir()}
    assert after == before
    assert made.stat().st_mtime_ns == before_folder


def test_what_may_not_be_read_is_said(unwritable: Path) -> None:
    made, path = unwritable, unwritable / store_name(SECOND)
    path.chmod(0o000)
    ran = run("verify", str(made))
    assert ran.returncode == 1
    assert f"{path} at 0: cannot be opened: Permission denied" in ran.stdout
    assert "Traceback" not in ran.stderr


def test_verify_on_a_read_only_mount(made: Path) -> None:
    flip(made / store_name(SECOND), 16388)
    script = f"""
        mount --bind {made} {made} && mount -o remount,bind,ro {made} && ! touch {made}/x &&
        exec {sys.executable} -m proglog.cli verify {made}
    """
    map_root = [] if os.getuid() == 0 else ["--map-root-user"]
    ran = subprocess.run(
        ["unshare", "--mount", *map_root, "sh", "-c", script],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ran.returncode == 1
    assert "from offset 8 to 8: the batch is damaged" in ran.stdout
    assert "damaged" in ran.stdout
