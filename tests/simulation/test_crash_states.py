"""The simulated disk can produce every surprise that file systems are known for, and no other."""

from __future__ import annotations

import itertools
import random
from pathlib import Path

import pytest

from tests.doubles import crash, inode
from tests.doubles.disk import SimDisk
from tests.doubles.files import SimFiles
from tests.doubles.inode import Fate, Kind, Torn

A, B = Path("/d/a"), Path("/d/b")


@pytest.fixture
def files() -> SimFiles:
    files = SimFiles(SimDisk())
    files.mkdir(Path("/d"))
    return files


def states(disk: SimDisk) -> list[dict[str, bytes]]:
    """All that may be in /d after a power cut now, if no write is torn."""
    found = []
    for fates in itertools.product((False, True), repeat=len(disk.unsynced())):
        state = {path.name: data for path, data in disk.crash(fates).files().items()}
        if state not in found:
            found.append(state)
    return found


def synced(files: SimFiles, path: Path, data: bytes) -> None:
    file = files.create(path)
    file.pwritev([data], 0)
    file.fdatasync()
    file.close()
    files.sync_directory(path.parent)


def test_what_was_synced_always_survives(files: SimFiles) -> None:
    synced(files, A, b"old")
    assert states(files.disk) == [{"a": b"old"}]


def test_a_synced_file_may_lose_its_name(files: SimFiles) -> None:
    file = files.create(A)
    file.pwritev([b"x"], 0)
    file.fdatasync()
    assert states(files.disk) == [{}, {"a": b"x"}]


def test_a_named_file_may_lose_its_content_and_keep_its_size(files: SimFiles) -> None:
    file = files.create(A)
    files.sync_directory(A.parent)
    file.pwritev([b"xy"], 0)
    assert {"a": b""} in states(files.disk)
    assert {"a": b"\0\0"} in states(files.disk)
    assert {"a": b"xy"} in states(files.disk)


def test_writes_are_reordered_until_a_barrier(files: SimFiles) -> None:
    synced(files, A, b"....")
    file = files.open(A)
    file.pwritev([b"1"], 0)
    file.pwritev([b"2"], 1)
    assert {"a": b".2.."} in states(files.disk), "the second write without the first"
    file.fdatasync()
    file.pwritev([b"3"], 2)
    assert states(files.disk) == [{"a": b"12.."}, {"a": b"123."}]


def test_an_overwritten_write_may_be_the_one_that_survives(files: SimFiles) -> None:
    synced(files, A, b".")
    file = files.open(A)
    file.pwritev([b"1"], 0)
    file.pwritev([b"2"], 0)
    assert states(files.disk) == [{"a": b"."}, {"a": b"2"}, {"a": b"1"}]


def test_a_rename_is_lost_or_whole(files: SimFiles) -> None:
    synced(files, A, b"old")
    synced(files, B, b"new")
    files.rename(B, A)
    assert files.disk.files() == {A: b"new"}
    assert states(files.disk) == [{"a": b"old", "b": b"new"}, {"a": b"new"}]
    files.sync_directory(A.parent)
    assert states(files.disk) == [{"a": b"new"}]


def test_a_renamed_file_may_be_named_before_it_has_content(files: SimFiles) -> None:
    synced(files, A, b"old")
    file = files.create(B)
    file.pwritev([b"new"], 0)
    files.rename(B, A)
    assert {"a": b""} in states(files.disk), "the classic empty file after a power cut"
    assert {"a": b"old", "b": b"new"} in states(files.disk)


def test_an_unlinked_file_may_come_back(files: SimFiles) -> None:
    synced(files, A, b"1")
    synced(files, B, b"2")
    files.unlink(A)
    files.unlink(B)
    found = states(files.disk)
    assert {"a": b"1"} in found
    assert {"b": b"2"} in found, "unlinks in any order"
    files.sync_directory(A.parent)
    assert states(files.disk) == [{}]


def test_a_recreated_file_may_be_the_old_one(files: SimFiles) -> None:
    synced(files, A, b"old")
    files.unlink(A)
    file = files.create(A)
    file.pwritev([b"new"], 0)
    file.fdatasync()
    assert {tuple(state.items()) for state in states(files.disk)} == {
        (("a", b"old"),),
        (),
        (("a", b"new"),),
    }


def test_a_truncation_may_be_lost_and_what_was_written_after_it_not(files: SimFiles) -> None:
    synced(files, A, b"12345")
    file = files.open(A)
    file.truncate(1)
    file.pwritev([b"x"], 1)
    assert {"a": b"1x345"} in states(files.disk)
    file.fdatasync()
    assert states(files.disk) == [{"a": b"1x"}]


def test_reserved_space_may_be_lost_with_what_was_written_there(files: SimFiles) -> None:
    synced(files, A, b"")
    file = files.open(A)
    file.reserve(3)
    file.pwritev([b"x"], 1)
    assert states(files.disk) == [{"a": b""}, {"a": b"\0\0\0"}, {"a": b"\0x\0"}]


def test_a_write_tears_at_a_byte_and_at_a_sector(files: SimFiles) -> None:
    synced(files, A, b"." * 1200)
    file = files.open(A)
    file.pwritev([b"x" * 1000], 100)
    changes = files.disk.unsynced()
    by_sector = list(crash.tears(changes, 512))
    assert len(by_sector) == 2 * 3, "two boundaries lie within the write"
    front = files.disk.crash(by_sector[0].fates).files()[A]
    assert front == b"." * 100 + b"x" * 412 + b"." * 688
    back = files.disk.crash(by_sector[1].fates).files()[A]
    assert back == b"." * 512 + b"x" * 588 + b"." * 100
    garbage = files.disk.crash(by_sector[2].fates).files()[A]
    assert garbage == b"." * 100 + b"x" * 412 + b"\xa5" * 588 + b"." * 100
    assert len(list(crash.tears(changes, 1))) == 999 * 3


def test_a_tear_keeps_to_the_range_of_its_write(files: SimFiles) -> None:
    synced(files, A, b"." * 6)
    files.open(A).pwritev([b"xyz"], 2)
    fates: list[Fate] = [Torn(((0, 3), (4, 9)), b"?")]
    assert files.disk.crash(fates).files()[A] == b"..x?z."


def test_the_plans_reach_every_combination(files: SimFiles) -> None:
    synced(files, A, b"...")
    file = files.open(A)
    for position in range(3):
        file.pwritev([b"x"], position)
    changes = files.disk.unsynced()
    chance = random.Random(1)
    systematic = [*crash.extremes(changes), *crash.singles(changes)]
    assert len({files.disk.crash(plan.fates).digest() for plan in systematic}) == 8
    subsets = [crash.subset(changes, chance) for _ in range(100)]
    reached = {files.disk.crash(plan.fates).files()[A] for plan in subsets}
    assert {state["a"] for state in states(files.disk)} < reached, "and torn ones too"


def test_each_block_is_lost_or_kept_as_a_whole(files: SimFiles) -> None:
    page = inode.PAGE_BYTES
    synced(files, A, b"..." * page)
    file = files.open(A)
    file.pwritev([b"x" * (2 * page)], 10)  # Blocks 0 to 2.
    file.pwritev([b"yz"], page - 1)  # Blocks 0 and 1.
    plans = list(crash.blocks(files.disk.unsynced()))
    assert len({plan.label for plan in plans}) == len(plans) == 2 * 3 + 2 * 2 + 2 * 3
    found = set()
    for plan in plans:
        after = files.disk.crash(plan.fates)
        data = after.files()[A]
        letters = bytes(data[at] for at in (10, page - 1, page, page + 1, 2 * page))
        found.add((letters, frozenset(after.find(A).unreadable)))
    readable = {letters for letters, unreadable in found if not unreadable}
    assert readable == {
        *(b".yzxx", b"xyz.x", b"xyzx."),  # of the first write, one block is lost
        *(b"xyz..", b".yzx.", b".yz.x"),  # or is all that survives
        *(b"xxzxx", b"xyxxx"),  # of the second
        *(b"..zxx", b"xy..x"),  # of both
    }
    assert {unreadable for _, unreadable in found if unreadable} == {
        frozenset({block}) for block in range(3)
    }


def test_a_torn_block_may_be_unreadable(files: SimFiles) -> None:
    synced(files, A, b"." * 9000)
    files.open(A).pwritev([b"x" * 9000], 0)
    changes, chance = files.disk.unsynced(), random.Random(2)
    for rate in (0.0, 0.5):
        after = [files.disk.crash(crash.subset(changes, chance, rate).fates) for _ in range(200)]
        blocks = {block for disk in after for block in disk.find(A).unreadable}
        assert blocks == ({0, 1, 2} if rate else set())


def test_plans_are_the_same_for_the_same_seed(files: SimFiles) -> None:
    file = files.create(A)
    file.pwritev([b"x" * 2000], 3)
    changes = files.disk.unsynced()
    runs = [
        [crash.subset(changes, chance) for _ in range(50)] for chance in map(random.Random, (7, 7))
    ]
    assert runs[0] == runs[1]


def test_a_failed_fsync_may_have_lost_what_looks_clean(files: SimFiles) -> None:
    outcomes = set()
    for seed in range(40):
        disk = SimDisk(seed)
        disk.put(A, b".")
        file = SimFiles(disk).open(A)
        file.pwritev([b"x"], 0)
        disk.faults.next_error[Kind.SYNC] = 5
        with pytest.raises(OSError):
            file.fdatasync()
        assert file.pread(1, 0) == b"x"
        file.fdatasync()
        assert not disk.unsynced(), "the second sync has nothing to do, and says so"
        outcomes.add(disk.crash([]).files()[A])
    assert outcomes == {b".", b"x"}


def test_killing_a_process_loses_nothing_but_syncs_nothing(files: SimFiles) -> None:
    release = files.lock(Path("/d"))
    file = files.create(A)
    file.pwritev([b"x"], 0)
    files.kill()
    release()
    successor = SimFiles(files.disk)
    successor.lock(Path("/d"))
    assert files.disk.files()[A] == b"x"
    assert {"a": b""} in states(files.disk)


def test_a_copy_goes_its_own_way_and_is_as_unsynced(files: SimFiles) -> None:
    synced(files, B, b"old")
    files.open(B).pwritev([b"new"], 0)
    files.create(A).pwritev([b"x"], 0)
    files.unlink(B)
    twin = files.disk.copy()
    assert twin.files() == files.disk.files()
    assert states(twin) == states(files.disk)
    SimFiles(twin).open(A).pwritev([b"y"], 0)
    assert files.disk.files() == {A: b"x"}


def test_a_recording_gives_every_moment_again(files: SimFiles) -> None:
    recording = files.disk.record()
    seen = [(files.disk.files(), states(files.disk))]

    def saw() -> None:
        seen.append((files.disk.files(), states(files.disk)))

    file = files.create(A)
    saw()
    file.pwritev([b"x"], 0)
    saw()
    file.fdatasync()
    saw()
    files.rename(A, B)
    saw()
    files.sync_directory(A.parent)
    saw()
    files.unlink(B)
    saw()
    file.pwritev([b"nobody sees this"], 0)
    saw()
    assert [(disk.files(), states(disk)) for disk in recording.points()] == seen
    assert len(recording.operations) == len(seen) - 1
