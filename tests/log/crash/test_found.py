"""What was found in the engine by reading and by the explorer, each in the smallest form."""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from proglog.log import analysis, twin
from proglog.log import format as fmt
from proglog.log import snapshot as snapshots
from proglog.log.changes import unlink_if_there
from proglog.log.format import Tip
from proglog.log.log import Log
from proglog.log.names import snapshot_name
from proglog.log.reading import CheckedFile, Reading
from proglog.log.segment import Segment
from proglog.log.snapshot import Snapshot
from proglog.log.space import Space
from proglog.log.twin import TwinState
from proglog.ports import File
from proglog.raft.messages import HardState
from tests.doubles import crash
from tests.doubles.disk import SimDisk
from tests.doubles.files import SimFile, SimFiles
from tests.doubles.inode import Kind
from tests.doubles.loop import run
from tests.log.crash import node
from tests.log.crash.explore import open_once

A, B = Path("/data/a"), Path("/data/b")


def test_a_file_that_is_not_forgotten_keeps_no_other_from_being_forgotten() -> None:
    disk = SimDisk(2)
    files = SimFiles(disk)
    disk.put(A, b"mapped")
    disk.put(B, b"old")
    mapped = files.read_only_map(A)  # The kernel keeps what is mapped.
    disk.faults.next_error[Kind.SYNC] = errno.EIO
    file = files.open(B)
    file.pwritev([b"new"], 0)
    with pytest.raises(OSError, match="Input/output"):
        file.fdatasync()
    reading = Reading(files, writable=True)
    opened = [reading.open(path) for path in (A, B)][1]
    assert isinstance(opened, CheckedFile)
    assert opened.read(3, 0) == b"old", "what the failed sync has left in the cache is not there"
    assert (reading.unforgotten, bytes(mapped)) == (A, b"mapped")


async def log_of(disk: SimDisk, batches: int) -> tuple[node.Process, Log]:
    """A log of a first batch and so many others."""
    process = node.open_log(disk)
    log = process.start_log(node.Events())
    for _ in range(batches):
        await log.make_room(300)
        log.append(*node.build_batch(log.tip, [b"record"]))
    await log.run_job(lambda: None)
    return process, log


def test_an_install_that_is_interrupted_anywhere_leaves_a_log() -> None:
    """A snapshot that is whole, while the manifest did not say yet that it replaces the log, was
    taken for a sign that the log had lost its end: refused for ever."""
    disk = SimDisk()
    tip = Tip(50, 3, 120, 0, 7)

    async def main() -> None:
        _, log = await log_of(disk, 3)
        recording = disk.record()
        await log.reset(Snapshot(tip, node.snapshot_state(tip.index)))
        ends = set()
        for then in recording.points():
            for plan in crash.extremes(then.unsynced()):
                found = node.outcome(node.open_log(then.crash(plan.fates)))
                assert not found.error
                ends.add(found.last)
        assert ends == {4, 50}

    run(main())


class Overtaken(SimFiles):
    """The reader's thread deletes a file just after the writer's has seen it."""

    def __init__(self, disk: SimDisk) -> None:
        super().__init__(disk)
        self.path: Path | None = None

    def _overtake(self, folder: Path) -> None:
        if self.path is not None and self.path.parent == folder:
            path, self.path = self.path, None
            self.unlink(path)

    def listdir(self, path: Path) -> list[str]:
        names = super().listdir(path)
        self._overtake(path)
        return names

    def exists(self, path: Path) -> bool:
        found = super().exists(path)
        if path == self.path:
            self._overtake(path.parent)
        return found


def test_garbage_may_be_deleted_by_two_threads_at_once() -> None:
    disk = SimDisk()
    files = Overtaken(disk)
    tip = Tip(50, 3, 120, 0, 7)

    async def main() -> None:
        process = node.open_log(disk, files)
        log = process.start_log(node.Events())
        disk.put(node.FOLDER / snapshot_name(1), b"about to be deleted")
        files.path = node.FOLDER / snapshot_name(1)
        await log.reset(Snapshot(tip, node.snapshot_state(tip.index)))
        assert log.tip == tip

    run(main())
    disk.put(A, b"")
    files.path = A
    unlink_if_there(files, A)
    assert A not in disk.files()


def test_the_index_of_an_active_segment_that_cannot_be_opened_is_made_anew() -> None:
    """It holds nothing yet, and kept a node from starting."""
    disk = SimDisk()

    async def main() -> None:
        process, log = await log_of(disk, 3)
        await log.close()
        process.files.kill()

    run(main())
    opened: list[Path] = []
    clean = disk.copy()
    clean.on_access = lambda kind, path, _: opened.append(path) if kind is Kind.OPEN else None
    node.open_log(clean)
    number = max(at for at, path in enumerate(opened, 1) if path.suffix == ".index")
    disk.faults.fail_at[Kind.OPEN, number] = errno.EIO
    assert node.outcome(node.open_log(disk)).last == 4


def test_a_torn_block_that_cannot_be_read_is_written_whole() -> None:
    """A power cut took the first batch and its block with it: nothing was lost, and the node did
    not start, since the disk takes no part of such a block."""

    async def main() -> None:
        disk = SimDisk()
        recording = disk.record()
        node.open_log(disk)
        first = next(
            at
            for at, done in enumerate(recording.operations, 1)
            if done.kind is Kind.WRITE and done.path.suffix == ".store" and done.position >= 16384
        )
        then = next(each for at, each in enumerate(recording.points()) if at == first)
        plan = next(
            plan for plan in crash.blocks(then.unsynced()) if plan.label.endswith("unreadable")
        )
        assert node.outcome(node.open_log(then.crash(plan.fates))).last == 1

    run(main())


def test_a_mark_says_of_nothing_that_it_is_committed_that_may_not_be_there() -> None:
    """What others have committed may be known before it is durable here."""
    disk = SimDisk()

    async def main() -> None:
        _, log = await log_of(disk, 2)
        recording = disk.record()
        for _ in range(3):
            log.append(*node.build_batch(log.tip, [b"not durable yet"]))
            log.set_commit(log.tip.index)
            log.append(*node.build_batch(log.tip, [b"nor this"]))
            log.set_commit(log.tip.index)
            await log.run_job(lambda: None)
            await asyncio.sleep(0)
        hints = set()
        for then in recording.points():
            changes = then.unsynced()
            for plan in [*crash.extremes(changes), *crash.singles(changes)]:
                found = node.outcome(node.open_log(then.crash(plan.fates)))
                assert found.commit_hint <= found.last
                hints.add(found.commit_hint)
        assert len(hints) > 1

    run(main())


# --- what the review of the first engine found, with the rule taken out ---------------------------

SEED_OF_S1 = range(40)


async def acknowledged_after_a_failed_write(seed: int) -> str:
    """A sync fails, the node stops and is started again without a reboot, goes on, and then the
    power is cut: what is wrong afterwards."""
    disk = SimDisk(seed)
    process, log = await log_of(disk, 2)
    await log.make_room(6400)
    disk.faults.next_error[Kind.SYNC] = errno.EIO
    # More than a page, since a page is written as a whole when something else in it is.
    log.append(*node.build_batch(log.tip, [b"not synced" * 600]))
    for _ in range(100):
        await asyncio.sleep(0)
    process.files.kill()
    log._garbage.stop()
    opened, again = open_once(disk)
    if again is None:
        return opened.error
    log = again.start_log(node.Events())
    log.append(*node.build_batch(log.tip, [b"acknowledged"]))
    await log.run_job(lambda: None)
    last = log.durable_index
    again.files.kill()
    log._garbage.stop()
    after, _ = open_once(disk.crash([False] * len(disk.unsynced())))
    return after.error if after.error or after.last >= last else f"{last} is lost"


def test_s1_what_only_the_cache_has_is_not_relied_on() -> None:
    for seed in SEED_OF_S1:
        assert not run(acknowledged_after_a_failed_write(seed))


@pytest.mark.parametrize("start", [None, fmt.PREAMBLE_BYTES + 300])
def test_s1_is_seen_where_the_rule_is_taken_out(
    monkeypatch: pytest.MonkeyPatch, start: int | None
) -> None:
    """The cache is not let go of, or only from the mark on."""

    def forget(file: SimFile) -> bool:
        return True if start is None else file._inode.forget(start)

    monkeypatch.setattr(SimFile, "forget_cache", forget)
    assert any(run(acknowledged_after_a_failed_write(seed)) for seed in SEED_OF_S1)


async def cut_that_fails(seed: int, number: int) -> str:
    """The n-th sync of a cut fails, the node is started again, and the power is cut while it
    recovers: what is wrong at the start after that."""
    disk = SimDisk(seed)
    process, log = await log_of(disk, 20)
    log.set_commit(8)
    await log.prepare_cut(8)
    disk.faults.fail_at[Kind.SYNC, number] = errno.EIO
    log.cut_suffix(8)
    for _ in range(100):
        await asyncio.sleep(0.001)
    process.files.kill()
    log._garbage.stop()
    recording = disk.record()
    found, _ = open_once(disk)
    if found.error:
        return found.error
    for then in recording.points():
        changes = then.unsynced()
        for plan in [*crash.extremes(changes), *crash.singles(changes)]:
            again, _ = open_once(then.crash(plan.fates))
            if again.error or again.last < 8:
                return again.error or f"the log ends at {again.last}"
    return ""


CUTS = [(seed, number) for seed in range(6) for number in range(1, 6)]


def test_s2_a_cut_whose_sync_fails_never_refuses_the_log_for_ever() -> None:
    for seed, number in CUTS:
        assert not run(cut_that_fails(seed, number))


def test_s2_is_seen_where_the_rule_is_taken_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the cache has of the intent is believed, and nothing makes it durable."""

    def read_twin(reading: Reading, path: Path, magic: bytes) -> TwinState:
        return twin.read_twin(reading, path, magic)._replace(stale=[])

    monkeypatch.setattr(SimFile, "forget_cache", lambda file: True)
    monkeypatch.setattr(analysis, "read_twin", read_twin)
    assert any(run(cut_that_fails(seed, number)) for seed, number in CUTS)


async def without_an_index(change: Callable[[Log], Awaitable[None]]) -> BaseException | None:
    """The active segment has no index, since there was no descriptor for it. Space for one is
    asked for, and meanwhile something makes another segment the active one. What stops the log
    when that is full."""
    disk = SimDisk()
    process, log = await log_of(disk, 12)
    await log.close()
    process.files.kill()
    opened: list[Path] = []
    clean = disk.copy()
    clean.on_access = lambda kind, path, _: opened.append(path) if kind is Kind.OPEN else None
    node.open_log(clean)
    number = max(at for at, path in enumerate(opened, 1) if path.suffix == ".index")
    disk.faults.fail_at[Kind.OPEN, number] = errno.EMFILE
    process = node.open_log(disk)
    log = process.start_log(events := node.Events())
    assert log._active.index_file is None
    await change(log)
    for _ in range(12):
        await log.make_room(300)
        log.append(*node.build_batch(log.tip, [b"after the cut"]))
        await asyncio.sleep(0.001)
        if events.failure is not None:
            return events.failure
    await log.close()
    return events.failure


async def install(log: Log) -> None:
    """Space is asked for when the new segment is made, and the loop has not heard of it."""
    tip = Tip(50, 3, 120, 0, 7)
    resetting = asyncio.ensure_future(log.reset(Snapshot(tip, node.snapshot_state(tip.index))))
    while log._writer._manifest.manifest.generation == 0:
        assert not resetting.done()
        await asyncio.sleep(0)
    log.ask_for_room(300)
    await resetting


async def cut(log: Log) -> None:
    log.ask_for_room(300)
    await log.prepare_cut(3)
    log.cut_suffix(3)


async def nothing(log: Log) -> None:
    """Space is there, and the active segment cannot be sealed without its index."""


@pytest.mark.parametrize("change", [install, cut, nothing])
def test_s8_space_that_was_asked_for_goes_to_nobody_else(
    change: Callable[[Log], Awaitable[None]],
) -> None:
    assert run(without_an_index(change)) is None


def test_s8_is_seen_where_the_rule_is_taken_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def hand_over(path: Path, index_file: File, active: Segment) -> None:
        active.index_file = index_file

    monkeypatch.setattr(Space, "_hand_over", staticmethod(hand_over))
    assert run(without_an_index(install)) is not None


# --- what a mutant survived ----------------------------------------------------------------------


def test_a_start_makes_the_older_copy_anew_so_that_what_it_showed_survives_a_block() -> None:
    disk = SimDisk()

    async def main() -> None:
        process, _ = await log_of(disk, 1)
        process.opened.hard_state.save(HardState(5))
        recording = disk.record()
        process.opened.hard_state.save(HardState(9))
        synced = recording.operations.index(
            next(done for done in recording.operations if done.kind is Kind.SYNC)
        )
        half = next(each for at, each in enumerate(recording.points()) if at == synced + 1)
        half = half.crash([False] * len(half.unsynced()))
        shown = node.open_log(half).opened.hard_state.hard_state
        assert shown == HardState(9)
        half = half.crash([False] * len(half.unsynced()))
        half.lose_block(node.FOLDER / "hard-state", 0, bytes(4096))
        assert node.open_log(half).opened.hard_state.hard_state == shown

    run(main())


def test_a_snapshot_whose_state_rots_is_none() -> None:
    packed = bytearray(snapshots.pack(Snapshot(Tip(5, 1, 5, 0, 0), b"state")))
    path = node.FOLDER / snapshot_name(5)
    assert snapshots.parse(packed, path) is not None
    packed[-1] ^= 1
    assert snapshots.parse(packed, path) is None


def test_no_prefix_is_dropped_that_no_snapshot_holds() -> None:
    async def main() -> None:
        _, log = await log_of(SimDisk(), 20)
        assert log.drop_prefix(15) == 0

    run(main())
