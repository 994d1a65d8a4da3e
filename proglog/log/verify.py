"""Offline: check every byte of a log's directory, and repair what is safe.

`verify` changes nothing and says everything that is wrong, where, and what that means. `repair`
does only what loses no record that could still be read, and ends the log before a damaged range
only if told to, keeping what it removes.
"""

from __future__ import annotations

import contextlib
import enum
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from proglog.errors import ConfigurationError, CorruptionError
from proglog.log import format as fmt
from proglog.log import snapshot as snapshots
from proglog.log.format import ORIGIN, Tip
from proglog.log.index import Index
from proglog.log.recovery import walk_store
from proglog.log.segment import index_name, store_name
from proglog.ports import File, Files, RealFiles

_STORE = re.compile(r"(\d{20})\.store")
_SNAPSHOT = re.compile(snapshots.PREFIX + r"(\d{20})")


class Severity(enum.Enum):
    """What a problem means for the records."""

    MENDED_ON_START = "mended on start"
    """Redundant, or behind what was synced: the next start repairs it and no record is lost."""
    DAMAGE = "damage"
    """Records cannot be read: the node refuses to start, or to serve them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """Something that is not as it was written."""

    file: Path
    position: int
    """Bytes from the start of the file."""
    what: str
    severity: Severity
    first_offset: int | None = None
    """The first record that it touches, where that is known."""

    def __str__(self) -> str:
        offset = "" if self.first_offset is None else f", from offset {self.first_offset}"
        return f"{self.file} at {self.position}{offset}: {self.what} ({self.severity.value})"


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What `verify` saw."""

    folder: Path
    segments: int
    batches: int
    records: int
    bytes: int
    problems: tuple[Problem, ...]

    @property
    def is_damaged(self) -> bool:
        return any(problem.severity is Severity.DAMAGE for problem in self.problems)


def verify(folder: Path, files: Files | None = None) -> Report:
    """Reads everything in a log's directory. The node must be stopped.

    Raises ConfigurationError if it is in use or no log's directory, OSError.
    """
    files = files or RealFiles()
    with _locked(files, folder):
        return _Verifier(files, folder).run()


@contextlib.contextmanager
def _locked(files: Files, folder: Path) -> Iterator[None]:
    """No node, and nobody else who repairs, has the directory meanwhile."""
    names = files.listdir(folder) if files.exists(folder) else []
    if not any(_STORE.fullmatch(name) for name in names):
        raise ConfigurationError(
            f"{folder} is no log's directory: it holds no *.store file. A node keeps its log in "
            "<data-dir>/logs/default",
            setting="DIR",
        )
    try:
        unlock = files.lock(folder / "lock")
    except BlockingIOError:
        raise ConfigurationError(f"{folder} is in use: stop its node first") from None
    try:
        yield
    finally:
        unlock()


class _Verifier:
    def __init__(self, files: Files, folder: Path) -> None:
        names = files.listdir(folder)
        self._files = files
        self._folder = folder
        self._stores = sorted(int(m[1]) for name in names if (m := _STORE.fullmatch(name)))
        self._snapshots = sorted(int(m[1]) for name in names if (m := _SNAPSHOT.fullmatch(name)))
        self._problems: list[Problem] = []
        self._batches = self._records = self._bytes = 0

    def run(self) -> Report:
        before = self._check_snapshots()
        for slot, first_index in enumerate(self._stores):
            last = self._stores[slot + 1] - 1 if slot + 1 < len(self._stores) else None
            before = self._check_segment(first_index, before, last)
        return Report(
            folder=self._folder,
            segments=len(self._stores),
            batches=self._batches,
            records=self._records,
            bytes=self._bytes,
            problems=tuple(self._problems),
        )

    def _add(
        self,
        file: Path,
        position: int,
        what: str,
        *,
        offset: int | None = None,
        damage: bool = True,
    ) -> None:
        severity = Severity.DAMAGE if damage else Severity.MENDED_ON_START
        self._problems.append(
            Problem(file=file, position=position, what=what, severity=severity, first_offset=offset)
        )

    # --- snapshots -------------------------------------------------------------------------------

    def _check_snapshots(self) -> Tip | None:
        """The tip before the first segment, if it is known."""
        base = self._stores[0] - 1
        valid = {}
        for index in self._snapshots:
            path = snapshots.snapshot_path(self._folder, index)
            snapshot = snapshots.read(self._files, path)
            if snapshot is not None:
                valid[index] = snapshot
        usable = base == 0 or any(index >= base for index in valid)
        for index in self._snapshots:
            if index not in valid:
                path = snapshots.snapshot_path(self._folder, index)
                self._add(path, 0, "the snapshot is damaged", damage=not usable)
        if not usable and base not in self._snapshots:
            path = snapshots.snapshot_path(self._folder, base)
            self._add(path, 0, "the snapshot that the log begins with is missing")
        if base == 0:
            return ORIGIN
        return valid[base].tip if base in valid else None

    # --- segments --------------------------------------------------------------------------------

    def _check_segment(self, first_index: int, before: Tip | None, last: int | None) -> Tip | None:
        """Checks one segment; the tip after it, None where that is not known any more."""
        path = self._folder / store_name(first_index)
        store = self._files.open(path)
        try:
            preamble = store.pread(fmt.PREAMBLE_BYTES, 0)
            header = fmt.parse_segment_header(preamble)
            if header is None:
                mended = before is not None and before.index == first_index - 1
                self._add(path, 0, "the segment header is damaged", damage=not mended)
            elif header.index != first_index - 1 or (before is not None and header != before):
                self._add(path, 0, "the segment does not follow what precedes it")
            start = header or before
            if start is None:
                return None
            return self._check_batches(path, store, preamble, Index(start), last)
        finally:
            store.close()

    def _check_batches(
        self, path: Path, store: File, preamble: bytes, index: Index, last: int | None
    ) -> Tip | None:
        marks = fmt.parse_marks(preamble)
        if len(marks) < len(fmt.MARK_POSITIONS):
            damage = not marks and last is None
            self._add(path, fmt.MARK_POSITIONS[0], "a synced mark is damaged", damage=damage)
        failure = walk_store(store, index, last_index=last)
        self._count(index)
        next_offset = index.last.next_offset
        if failure is not None:
            synced = last is not None or not marks or index.last.index < marks[0].index
            self._add(path, index.end_position, failure, offset=next_offset, damage=synced)
        elif last is None and marks and index.last.index < marks[0].index:
            what = f"the log ends before batch {marks[0].index}, which was synced"
            self._add(path, index.end_position, what, offset=next_offset)
        if last is not None and failure is None:
            self._check_index(index)
        return index.last if failure is None else None

    def _count(self, index: Index) -> None:
        self._batches += len(index)
        self._records += index.last.next_offset - index.before.next_offset
        self._bytes += index.end_position - fmt.PREAMBLE_BYTES

    def _check_index(self, walked: Index) -> None:
        path = self._folder / index_name(walked.before.index + 1)
        if not self._files.exists(path):
            self._add(path, 0, "the index is missing", damage=False)
            return
        written = bytes(self._files.read_only_map(path))
        expected = walked.pack()
        if written != expected:
            common = zip(written, expected, strict=False)
            at = next((i for i, (a, b) in enumerate(common) if a != b), len(written))
            # One that is damaged is rebuilt; one that is whole and says something else would lie.
            whole = fmt.parse_index(written) is not None
            self._add(path, at, "the index does not agree with its store", damage=whole)


# --- repair --------------------------------------------------------------------------------------


def repair(folder: Path, *, cut_damaged: bool = False, files: Files | None = None) -> list[str]:
    """Mends what is safe and says what it did. The node must be stopped.

    What the next start would mend by itself is left to it. With `cut_damaged` the log is ended
    before the first damaged batch and all that follows is kept in files beside it: those records
    are lost to this node, so it is for a log that exists nowhere else.

    Raises CorruptionError if damage remains, ConfigurationError as `verify`, OSError.
    """
    files = files or RealFiles()
    with _locked(files, folder):
        return _repair(files, folder, cut_damaged=cut_damaged)


def _repair(files: Files, folder: Path, *, cut_damaged: bool) -> list[str]:
    report = _Verifier(files, folder).run()
    damage = [problem for problem in report.problems if problem.severity is Severity.DAMAGE]
    if not damage:
        return ["nothing to repair" if not report.problems else "the next start mends the rest"]
    first = damage[0]
    if not cut_damaged or _STORE.fullmatch(first.file.name) is None or first.position == 0:
        raise CorruptionError(
            f"{first}. It cannot be mended without losing records. In a cluster, delete this "
            "node's data and let it fetch everything again; alone, --cut-damaged ends the log "
            "there and keeps what it removes",
            file=first.file,
            position=first.position,
        )
    return _cut(folder, files, first)


def _cut(folder: Path, files: Files, damage: Problem) -> list[str]:
    """Ends the log before the damaged batch, as recovery would behind a mark."""
    first_index = int(damage.file.name[:20])
    kept = files.open(damage.file)
    try:
        header = fmt.parse_segment_header(kept.pread(fmt.PREAMBLE_BYTES, 0))
        if header is None:
            raise CorruptionError(
                f"{damage}. The header of the segment is damaged too: it cannot be cut there",
                file=damage.file,
                position=0,
            )
        index = Index(header)
        walk_store(kept, index)
        aside = folder / f"aside-repair-{index.last.index + 1:020d}"
        size = kept.size() - index.end_position
        removed = kept.pread(size, index.end_position).rstrip(b"\0")
        snapshots.write_whole(files, aside, removed)
        _mark_end(kept, index)
    finally:
        kept.close()
    done = [f"{aside.name} keeps what was behind batch {index.last.index}"]
    for name in files.listdir(folder):
        number = int(name[:20]) if _STORE.fullmatch(name) else None
        if number is not None and number > first_index:
            files.rename(folder / name, folder / f"aside-{name}")
            done.append(f"aside-{name} keeps a later segment")
        snapshot = _SNAPSHOT.fullmatch(name)
        if snapshot and int(snapshot[1]) > index.last.index:
            files.rename(folder / name, folder / f"aside-{name}")
            done.append(f"aside-{name} keeps a later snapshot")
    files.sync_directory(folder)
    done.append(f"the log ends at offset {index.last.next_offset} now")
    return done


def _mark_end(store: File, index: Index) -> None:
    marks = fmt.parse_marks(store.pread(fmt.PREAMBLE_BYTES, 0))
    sequence = marks[0].sequence if marks else 0
    store.pwritev([fmt.END_OF_LOG], index.end_position)
    store.fdatasync()
    for number in (sequence + 1, sequence + 2):
        commit = min(marks[0].commit if marks else 0, index.last.index)
        mark = fmt.Mark(number, index.last.index, index.end_position, commit, index.last.chain)
        store.pwritev([fmt.pack_mark(mark)], fmt.mark_position(number))
        store.fdatasync()
