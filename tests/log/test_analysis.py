"""One analysis, three users: whatever is under way or fails meanwhile, they come to one verdict."""

from __future__ import annotations

import errno
from collections.abc import Callable
from pathlib import Path

import pytest

from proglog.batch import parse_header
from proglog.errors import CorruptionError
from proglog.log import format as fmt
from proglog.log.envelope import MANIFEST
from proglog.log.format import Tip
from proglog.log.manifest import Change, Manifest
from proglog.log.names import index_name, snapshot_path, store_name
from proglog.log.reading import Reading
from proglog.log.repair import Allow, repair
from proglog.log.snapshot import Snapshot, write
from proglog.log.twin import TwinFile, read_twin
from proglog.log.verify import verify
from proglog.replica.state import ReplicatedState
from tests.doubles.disk import PowerCut, SimDisk
from tests.log.damaged import FilesWithBadBlocks as Files
from tests.log.damaged import Served, agree, start
from tests.log.small import CONFIG, FOLDER, small
from tests.log.test_repair import CRASHES, after

BEGUN = Callable[[SimDisk, Served], None]


def set_manifest(disk: SimDisk, **changes: object) -> None:
    files = Files(disk)
    state = read_twin(Reading(files, writable=False), FOLDER / "manifest", MANIFEST)
    assert state.payload is not None
    manifest = Manifest.parse(state.payload)._replace(**changes)  # type: ignore[arg-type]
    TwinFile.create(files, FOLDER / "manifest", MANIFEST, manifest.pack()).close()


def tip_after(served: Served, index: int) -> tuple[Tip, int]:
    header = parse_header(served.batches[index])
    return Tip.after(header), served.places[index][1] + header.size


def _cut(disk: SimDisk, served: Served) -> None:
    tip, position = tip_after(served, 6)
    # An honest cut is after the newest snapshot.
    disk.lose(snapshot_path(FOLDER, 8))
    set_manifest(disk, change=Change.CUT, tip=tip, position=position)


def _cut_aside(disk: SimDisk, served: Served) -> None:
    tip, position = tip_after(served, 6)
    set_manifest(disk, change=Change.CUT_ASIDE, tip=tip, position=position)


def _reset(disk: SimDisk, served: Served) -> None:
    tip = Tip(100, 9, 500, 1_800_000_000_000, 7)
    write(Files(disk), FOLDER, Snapshot(tip, ReplicatedState().encode()))
    set_manifest(disk, change=Change.RESET, tip=tip)


def _drop(disk: SimDisk, served: Served) -> None:
    set_manifest(disk, base=tip_after(served, 4)[0])


def _give_up(disk: SimDisk, served: Served) -> None:
    set_manifest(disk, change=Change.GIVE_UP, tip=tip_after(served, 4)[0])


def _lost_index(disk: SimDisk, served: Served) -> None:
    disk.lose(FOLDER / index_name(1))


def _lost_manifest(disk: SimDisk, served: Served) -> None:
    disk.lose(FOLDER / "manifest")


def _torn(disk: SimDisk, served: Served) -> None:
    path = FOLDER / store_name(9)
    data = bytearray(disk.files()[path])
    end = tip_after(served, 11)[1]
    data[end : end + 9] = b"\x01garbage!"
    disk.put(path, bytes(data))


def _lost_headers_and_mark(disk: SimDisk, served: Served) -> None:
    for at in (*fmt.HEADER_POSITIONS, fmt.MARK_POSITIONS[0]):
        disk.flip_bit(FOLDER / store_name(9), (at + 30) * 8)


STATES: dict[str, tuple[BEGUN, int, int]] = {
    "nothing": (lambda *_: None, 0, 11),
    "a cut": (_cut, 0, 6),
    "a cut by repair": (_cut_aside, 0, 6),
    "a snapshot that is installed": (_reset, 100, 100),
    "a prefix that was dropped": (_drop, 4, 11),
    "giving up": (_give_up, 0, 11),
    "a lost index": (_lost_index, 0, 11),
    "a lost manifest": (_lost_manifest, 0, 11),
    "a torn end": (_torn, 0, 11),
    "lost headers and a lost mark": (_lost_headers_and_mark, 0, 11),
}


@pytest.fixture(params=STATES)
def state(request: pytest.FixtureRequest) -> tuple[SimDisk, Served, int, int]:
    begin, base, last = STATES[request.param]
    disk = small()
    written = start(Files(disk.copy()), FOLDER, CONFIG)
    begin(disk, written)
    return disk.crash([True] * len(disk.unsynced())), written, base, last


def check(served: Served, written: Served, base: int, last: int) -> None:
    assert (served.base, served.last) == (base, last)
    assert not served.gaps
    assert not served.unreadable
    assert served.batches == {
        index: data for index, data in written.batches.items() if base < index <= last
    }


def test_all_three_agree(state: tuple[SimDisk, Served, int, int]) -> None:
    disk, written, base, last = state
    outcome = agree(disk, FOLDER, config=CONFIG)
    assert outcome.started is not None
    check(outcome.started, written, base, last)
    for allow in Allow:
        again = outcome.repaired[allow]
        assert again is not None
        check(again, written, base, last)


@pytest.mark.parametrize("crash", CRASHES)
def test_a_start_that_is_killed(state: tuple[SimDisk, Served, int, int], crash: str) -> None:
    disk, written, base, last = state
    for number in range(1000):
        killed = disk.copy()
        killed.faults.power_cut_at = killed.operations + number
        try:
            start(Files(killed), FOLDER, CONFIG)
        except PowerCut:
            killed.faults.power_cut_at, killed.powered = None, True
            killed.locks.clear()
        else:
            assert number > 5
            return
        left = after(killed, crash)
        if number % 4 == 0:
            agree(left, FOLDER, config=CONFIG)
        check(start(Files(left), FOLDER, CONFIG), written, base, last)
        check(start(Files(left), FOLDER, CONFIG), written, base, last)
        assert verify(FOLDER, Files(left)).entries == ()
    raise AssertionError("a start takes few operations")


class WithoutDescriptors(Files):
    """So many files may be opened, and then none."""

    def __init__(self, disk: SimDisk, number: int) -> None:
        super().__init__(disk)
        self.left = number

    def open(self, path: Path, *, writable: bool = True):  # type: ignore[no-untyped-def]
        self.left -= 1
        if self.left < 0:
            raise OSError(errno.EMFILE, "as asked for", str(path))
        return super().open(path, writable=writable)


@pytest.mark.parametrize("act", ["start", "verify", "repair"])
def test_without_descriptors_nothing_is_called_damage(act: str) -> None:
    disk = small()
    for number in range(200):
        other = disk.copy()
        files = WithoutDescriptors(other, number)
        before = other.digest()
        try:
            if act == "start":
                start(files, FOLDER, CONFIG)
            elif act == "verify":
                verify(FOLDER, files)
            else:
                repair(FOLDER, allow=Allow.GIVE_UP, files=files)
        except CorruptionError as error:
            raise AssertionError(f"open {number}") from error
        except Exception as error:
            assert "as asked for" in str(error)
            if act != "start":
                assert other.digest() == before
        else:
            assert number > 5
            return
    raise AssertionError("few files are opened")
