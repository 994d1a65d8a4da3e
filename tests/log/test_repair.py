"""A repair that is killed, at any moment, goes on when it is run again, or the next start copes."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest

from proglog.errors import ConfigurationError, CorruptionError
from proglog.log import names as naming
from proglog.log.names import index_name, store_name
from proglog.log.repair import Allow, repair
from proglog.log.verify import verify
from tests.doubles.disk import PowerCut, SimDisk
from tests.log.damaged import Blocks, Served, agree, readable, start
from tests.log.damaged import FilesWithBadBlocks as Files
from tests.log.small import CONFIG, FOLDER, small

CRASHES = ("killed", "nothing synced survives", "all survives", "every other change survives")


def after(disk: SimDisk, crash: str) -> SimDisk:
    """What a power cut leaves; or the disk as it is after the process alone was killed."""
    if crash == "killed":
        return disk.copy()
    changes = len(disk.unsynced())
    fates = {
        "nothing synced survives": [False] * changes,
        "all survives": [True] * changes,
        "every other change survives": [at % 2 == 0 for at in range(changes)],
    }
    return disk.crash(fates[crash])


DAMAGE: dict[str, tuple[int, ...]] = {
    "one batch": (6,),
    "batches of several segments": (2, 6, 7, 10),
    "of the active one": (9, 11),
}


class Damaged:
    """A damaged log."""

    def __init__(self, batches: tuple[int, ...], *, without_index: bool = False) -> None:
        self.disk = small()
        self.written: Served = start(Files(self.disk.copy()), FOLDER, CONFIG)
        for index in batches:
            path, position = self.written.places[index]
            self.disk.flip_bit(path, (position + 75) * 8)
            first = int(path.name[:20])
            if without_index and first != 9 and index_name(first) in self.disk.listing(FOLDER):
                self.disk.lose(FOLDER / index_name(first))
        self.readable = readable(self.disk, Blocks(), self.written)

    def moments(self, allow: Allow) -> list[SimDisk]:
        """The disk when the power goes before each operation of a repair."""
        found = []
        for number in range(1000):
            disk = self.disk.copy()
            disk.faults.power_cut_at = disk.operations + number
            try:
                repair(FOLDER, allow=allow, files=Files(disk))
            except PowerCut:
                disk.faults.power_cut_at, disk.powered = None, True
                disk.locks.clear()
                found.append(disk)
            else:
                return found
        raise AssertionError("a repair takes few operations")


@pytest.mark.parametrize("crash", CRASHES)
@pytest.mark.parametrize("without_index", [False, True], ids=["with indexes", "without"])
@pytest.mark.parametrize("damage", DAMAGE)
def test_giving_up_that_is_killed(damage: str, without_index: bool, crash: str) -> None:
    log = Damaged(DAMAGE[damage], without_index=without_index)
    moments = log.moments(Allow.GIVE_UP)
    assert len(moments) > 5
    for disk in moments:
        left = after(disk, crash)
        outcome = agree(left, FOLDER, config=CONFIG)
        if outcome.started is not None:
            check(log, outcome.started, at_least=set())
        repair(FOLDER, allow=Allow.GIVE_UP, files=Files(left))
        assert not verify(FOLDER, Files(left.copy())).is_damaged
        served = start(Files(left), FOLDER, CONFIG)
        check(log, served, at_least=log.readable)
        assert set(served.gaps) == set(DAMAGE[damage])


def check(log: Damaged, served: Served, *, at_least: set[int]) -> None:
    for index, data in served.batches.items():
        assert data == log.written.batches[index]
    assert at_least <= set(served.batches)


@pytest.mark.parametrize("crash", CRASHES)
@pytest.mark.parametrize("damage", [(6,), (2, 6), (5,), (10,), (9,)], ids=str)
def test_cutting_that_is_killed(damage: tuple[int, ...], crash: str) -> None:
    log = Damaged(damage)
    moments = log.moments(Allow.CUT)
    assert len(moments) > 5
    for disk in moments:
        left = after(disk, crash)
        agree(left, FOLDER, config=CONFIG)
        try:
            served = start(Files(left.copy()), FOLDER, CONFIG)
        except CorruptionError:
            served = None
        if served is None or served.unreadable:
            repair(FOLDER, allow=Allow.CUT, files=Files(left))
        else:
            repair(FOLDER, files=Files(left))
        served = start(Files(left), FOLDER, CONFIG)
        check(log, served, at_least=set(range(1, min(damage))))
        assert served.last == min(damage) - 1
        kept = b"".join(
            data for path, data in left.files().items() if path.name.startswith(naming.ASIDE)
        )
        for index in log.readable - set(served.batches):
            assert log.written.batches[index] in kept, f"batch {index} is lost"


def test_cutting_keeps_the_bytes_that_it_removes() -> None:
    log = Damaged((6,))
    before = log.disk.files()
    done = repair(FOLDER, allow=Allow.CUT, files=Files(log.disk))
    assert done[-1] == "the log ends at offset 9 now"
    files = {path.name: data for path, data in log.disk.files().items()}
    path, position = log.written.places[6]
    assert files[f"aside-repair-{6:020d}"] == before[path][position:]
    assert files[f"aside-{store_name(9)}"] == before[FOLDER / store_name(9)]
    assert files["aside-snapshot-" + "8".zfill(20)]
    assert sorted(start(Files(log.disk), FOLDER, CONFIG).batches) == [1, 2, 3, 4, 5]


def test_a_cut_that_leaves_nobody_who_knows_the_servers_is_refused() -> None:
    log = Damaged((1,))
    digest = log.disk.digest()
    with pytest.raises(CorruptionError, match="who the servers are"):
        repair(FOLDER, allow=Allow.CUT, files=Files(log.disk))
    assert log.disk.digest() == digest


def test_what_a_guard_forbids_is_not_done() -> None:
    log = Damaged((6,))
    digest = log.disk.digest()
    for allow in (Allow.GIVE_UP, Allow.CUT):
        with pytest.raises(CorruptionError, match="because I say so"):
            repair(
                FOLDER, allow=allow, guard=lambda _plan: "because I say so", files=Files(log.disk)
            )
    assert log.disk.digest() == digest


def test_a_guard_is_not_asked_where_nothing_is_lost() -> None:
    disk = small()

    def guard(_plan: object) -> str:
        raise AssertionError("nothing is given up")

    assert repair(FOLDER, allow=Allow.CUT, guard=guard, files=Files(disk)) == ["nothing to repair"]


@pytest.mark.parametrize("allow", [Allow.GIVE_UP, Allow.CUT])
def test_a_disk_that_takes_nothing_is_said(allow: Allow) -> None:
    log = Damaged((6,))
    log.disk.faults.write_error_rate = 1.0
    with pytest.raises(OSError, match=re.escape(str(FOLDER))):
        repair(FOLDER, allow=allow, files=Files(log.disk))
    log.disk.faults.write_error_rate = 0.0
    assert log.readable <= readable(log.disk, Blocks(), log.written)
    agree(log.disk, FOLDER, config=CONFIG)


@pytest.mark.parametrize("allow", Allow)
@pytest.mark.parametrize("call", [verify, repair])
def test_a_log_in_use_is_left_alone(allow: Allow, call: Callable[..., object]) -> None:
    disk = small()
    unlock = Files(disk).lock(naming.node_folder(FOLDER))
    options = {"allow": allow} if call is repair else {}
    with pytest.raises(ConfigurationError, match="in use"):
        call(FOLDER, files=Files(disk), **options)
    unlock()
    call(FOLDER, files=Files(disk), **options)
