"""Whether start, verify and repair are of one mind about a damaged directory.

Each runs on a copy of it in a simulated disk, of which single blocks may not be readable. `agree`
is for every test that makes a damaged directory.
"""

from __future__ import annotations

import errno
import os
import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from proglog.batch import Buffer, Kind
from proglog.config import LogConfig
from proglog.errors import CorruptionError, RangeCorrupt, UnknownFormat
from proglog.log.names import GROUPS, HARD_STATE, group_of, node_folder
from proglog.log.plan import Verdict
from proglog.log.reading import Damage
from proglog.log.recovery import Recovered, recover
from proglog.log.repair import Allow, repair
from proglog.log.verify import Report, verify
from proglog.ports import File, Ports
from tests.doubles.disk import SimDisk
from tests.doubles.files import SimFiles
from tests.opening import open_directory

BLOCK_BYTES = 4096
CONFIG = LogConfig(segment_bytes=28 * 1024, segment_batches=8)
BAD = frozenset({Verdict.UNREADABLE, Verdict.REFUSED})
TYPED = (CorruptionError, UnknownFormat)


class Blocks(NamedTuple):
    """Blocks of files that the disk cannot read: EIO, until they are written anew."""

    bad: frozenset[tuple[str, int]] = frozenset()

    @classmethod
    def of(cls, path: Path, numbers: Iterable[int]) -> Blocks:
        return cls(frozenset((str(path), number) for number in numbers))


class FilesWithBadBlocks(SimFiles):
    """The files of one process on a disk with such blocks."""

    def __init__(self, disk: SimDisk, blocks: Blocks = Blocks()) -> None:
        super().__init__(disk)
        inodes = {}
        for name, number in blocks.bad:
            inodes.setdefault(disk.find(Path(name)).number, set()).add(number)
        self.bad: dict[int, set[int]] = inodes
        """By file, whatever its name is."""

    def open(self, path: Path, *, writable: bool = True) -> File:  # type: ignore[override]
        file = super().open(path, writable=writable)
        number = self.disk.find(path).number
        return FileWithBadBlocks(file, self.bad[number], path) if number in self.bad else file

    def read_only_map(self, path: Path) -> Buffer:
        number = self.disk.find(path).number
        assert not self.bad.get(number), f"{path} is mapped: SIGBUS"
        return super().read_only_map(path)


class FileWithBadBlocks:
    """One of its files."""

    def __init__(self, file: File, bad: set[int], path: Path) -> None:
        self._file, self._bad, self._path = file, bad, path

    def pwritev(self, parts: Sequence[Buffer], position: int) -> None:
        end = position + sum(map(len, parts))
        # A disk remaps a block that is written whole; to write a part of it, it must be read.
        for block in list(self._bad):
            if position < (block + 1) * BLOCK_BYTES and block * BLOCK_BYTES < end:
                stop = min((block + 1) * BLOCK_BYTES, self._file.size())
                if not (position <= block * BLOCK_BYTES and stop <= end):
                    raise OSError(errno.EIO, os.strerror(errno.EIO), str(self._path))
                self._bad.discard(block)
        self._file.pwritev(parts, position)

    def pread(self, size: int, position: int) -> bytes:
        data = self._file.pread(size, position)
        if any(
            position < (block + 1) * BLOCK_BYTES and block * BLOCK_BYTES < position + len(data)
            for block in self._bad
        ):
            raise OSError(errno.EIO, os.strerror(errno.EIO), str(self._path))
        return data

    def pread_cached(self, size: int, position: int) -> bytes | None:
        return self.pread(size, position)

    def __getattr__(self, name: str) -> object:
        return getattr(self._file, name)


@dataclass
class Served:
    """What a start serves."""

    batches: dict[int, bytes] = field(default_factory=dict)
    """Those that can be read, by their index."""
    gaps: dict[int, range] = field(default_factory=dict)
    """Those that were given up: the offsets of each."""
    unreadable: dict[int, RangeCorrupt] = field(default_factory=dict)
    places: dict[int, tuple[Path, int]] = field(default_factory=dict)
    snapshots: list[int] = field(default_factory=list)
    base: int = 0
    last: int = 0
    notes: list[str] = field(default_factory=list)


def start(files: SimFiles, folder: Path, config: LogConfig = CONFIG) -> Served:
    """Opens a log as its node does, and reads everything. Raises what a start raises."""
    if folder.parent.name == GROUPS:
        ports = Ports(files=files, random=random.Random(1))
        opened = open_directory(
            folder, config=config, ports=ports, node_name="", rpc_addr="n:1", bootstrap=True
        )
        try:
            return serve(opened.recovered)
        finally:
            opened.recovered.close()
            opened.hard_state.close()
            opened.node.close()
    recovered = recover(
        files,
        folder,
        segment_bytes=config.segment_bytes,
        segment_batches=config.segment_batches,
        group=group_of(folder),
        with_hard_state=HARD_STATE in files.listdir(folder),
    )
    try:
        return serve(recovered)
    finally:
        recovered.close()


def serve(recovered: Recovered) -> Served:
    """Every batch, read as `Log.read` does it: none comes that fails its checks."""
    segments = recovered.segments
    served = Served(
        snapshots=recovered.snapshot_indexes,
        base=segments[0].index.before.index,
        last=recovered.tip.index,
        notes=recovered.notes,
    )
    for segment in segments:
        for index in range(segment.first_index, segment.last_index + 1):
            position, size = segment.extent(index, index, 1)
            served.places[index] = (segment.store_path, position)
            data = segment.read(size, position)
            try:
                if isinstance(data, Damage):
                    raise segment.damaged(data, index)
                (header,) = segment.check(data, position, index)
            except RangeCorrupt as error:
                assert Path(error.facts["file"]) == segment.store_path
                assert error.number("index") == index
                served.unreadable[index] = error
                continue
            if header.kind == Kind.GAP:
                served.gaps[index] = range(header.base_offset, header.next_offset)
            else:
                served.batches[index] = data
    return served


@dataclass
class Outcome:
    """What the three made of a directory."""

    report: Report | None
    """None for what has another version."""
    started: Served | None
    """None where the start was refused."""
    repaired: dict[Allow, Served | None]
    """What a start serves after each repair; None where that was refused."""

    @property
    def kind(self) -> str:
        if self.report is None:
            return "unknown format"
        verdicts = {entry.verdict for entry in self.report.entries}
        for verdict in reversed(Verdict):
            if verdict in verdicts:
                return verdict.value
        return "whole"


def agree_on(folder: Path, config: LogConfig = CONFIG, written: Served | None = None) -> Outcome:
    """As `agree`, for a directory of the real file system, which is left as it is."""
    disk = SimDisk()
    for root, _folders, names in os.walk(node_folder(folder)):
        SimFiles(disk).mkdir(Path(root))
        for name in names:
            disk.put(Path(root, name), Path(root, name).read_bytes())
    return agree(disk, folder, written=written, config=config)


def agree(
    disk: SimDisk,
    folder: Path,
    blocks: Blocks = Blocks(),
    *,
    written: Served | None = None,
    config: LogConfig = CONFIG,
) -> Outcome:
    """Runs verify, a start and each repair on copies of a directory, and asserts that they agree;
    with `written`, what a start served before the damage, that what is served now is that."""
    report = _verified(disk, folder, blocks)
    started = _started(disk, folder, blocks, report, config)
    outcome = Outcome(report, started, {})
    if started is not None and written is not None:
        _check_served(started, written)
        assert report is not None
        if not report.is_damaged:
            assert not started.unreadable
    for allow in Allow:
        outcome.repaired[allow] = _repaired(disk, folder, blocks, allow, outcome, config)
    if written is not None:
        _check_repaired(disk, blocks, outcome, written)
    return outcome


def _unchanged(disk: SimDisk, before: bytes) -> None:
    assert disk.digest() == before, "something was changed"


def _verified(disk: SimDisk, folder: Path, blocks: Blocks) -> Report | None:
    disk = disk.copy()
    before = disk.digest()
    try:
        return verify(folder, FilesWithBadBlocks(disk, blocks))
    except UnknownFormat:
        return None
    finally:
        _unchanged(disk, before)


def _started(
    disk: SimDisk, folder: Path, blocks: Blocks, report: Report | None, config: LogConfig
) -> Served | None:
    disk = disk.copy()
    before = disk.digest()
    files = FilesWithBadBlocks(disk, blocks)
    try:
        served = start(files, folder, config)
    except UnknownFormat:
        assert report is None, f"the start knows another format, verify says {report}"
        _unchanged(disk, before)
        return None
    except CorruptionError as error:
        assert report is not None, error
        refused = {str(e.file) for e in report.entries if e.verdict is Verdict.REFUSED}
        assert refused, f"the start refuses, verify does not: {error}; {_told(report)}"
        assert error.facts["file"] in refused, f"{error}; {_told(report)}"
        assert error.number("position") is not None
        if "change of the cluster's members" not in str(error):
            _unchanged(disk, before)
        return None
    assert report is not None, "the start serves what verify does not know"
    refused = [e for e in report.entries if e.verdict is Verdict.REFUSED]
    assert not refused, f"the start serves what verify says it refuses: {_told(report)}"
    _check_unreadable(served, report)
    again = start(FilesWithBadBlocks(disk, _left(files)), folder, config)
    assert (again.batches, again.last) == (served.batches, served.last), "the second start differs"
    return served


def _check_unreadable(served: Served, report: Report) -> None:
    """What a start cannot serve is what verify says of it."""
    places = {served.places[index] for index in served.unreadable}
    said = {(e.file, e.position) for e in report.entries if e.verdict is Verdict.UNREADABLE}
    if any(position == 0 for _, position in said):  # a whole file
        return
    assert places == said, f"{places} cannot be served, verify says {_told(report)}"


def _left(files: FilesWithBadBlocks) -> Blocks:
    """The blocks that are bad still."""
    names = {
        number: Path(folder, name)
        for folder, found in files.disk.names.items()
        for name, number in found.items()
    }
    return Blocks(
        frozenset(
            (str(names[inode]), block)
            for inode, bad in files.bad.items()
            if inode in names
            for block in bad
        )
    )


def _repaired(
    disk: SimDisk,
    folder: Path,
    blocks: Blocks,
    allow: Allow,
    outcome: Outcome,
    config: LogConfig,
) -> Served | None:
    disk = disk.copy()
    before = disk.digest()
    files = FilesWithBadBlocks(disk, blocks)
    report = outcome.report
    try:
        done = repair(folder, allow=allow, files=files)
    except UnknownFormat:
        assert report is None
        _unchanged(disk, before)
        return None
    except CorruptionError:
        assert report is not None
        assert report.is_damaged, f"{allow} refuses what verify calls whole"
        if allow is not Allow.GIVE_UP:
            _unchanged(disk, before)
        return None
    assert report is not None
    assert allow is not Allow.NOTHING or not report.is_damaged
    assert done
    left = _left(files)
    after = verify(folder, FilesWithBadBlocks(disk.copy(), left))
    assert not after.is_damaged, f"after {allow}: {_told(after)}"
    return start(FilesWithBadBlocks(disk, left), folder, config)


def _check_served(served: Served, written: Served) -> None:
    for index, data in served.batches.items():
        assert data == written.batches[index], f"batch {index} is served with other bytes"


def _check_repaired(disk: SimDisk, blocks: Blocks, outcome: Outcome, written: Served) -> None:
    nothing, cut = outcome.repaired[Allow.NOTHING], outcome.repaired[Allow.CUT]
    if nothing is not None:
        assert outcome.started is not None
        assert nothing.batches == outcome.started.batches, "a repair that may nothing loses some"
    given_up = outcome.repaired[Allow.GIVE_UP]
    if given_up is not None:
        _check_served(given_up, written)
        assert not given_up.unreadable
        whole = readable(disk, blocks, written)
        lost = {at for at in range(written.base + 1, given_up.last + 1) if at not in whole}
        assert set(given_up.gaps) == lost, f"{set(given_up.gaps)} are gaps, {lost} were lost"
        assert whole <= {*given_up.batches, *range(given_up.last + 1, written.last + 1)}
    if cut is not None:
        _check_served(cut, written)
        assert not cut.unreadable
        assert not cut.gaps


def readable(disk: SimDisk, blocks: Blocks, written: Served) -> set[int]:
    """The batches that stand on the disk as they were written."""
    found = set()
    files = FilesWithBadBlocks(disk, blocks)
    for index, (path, position) in written.places.items():
        if index not in written.batches or not files.exists(path):
            continue
        data = written.batches[index]
        try:
            if files.open(path).pread(len(data), position) == data:
                found.add(index)
        except OSError:
            pass
    return found


def _told(report: Report) -> str:
    return "; ".join(map(str, report.entries)) or "nothing"


Damaging = Callable[[SimDisk], Blocks | None]
"""Damages a disk, and says which blocks it cannot read."""
