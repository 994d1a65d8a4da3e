"""What befalls a log, and which of its files: the inputs of the exploration, counted.

An exploration that finds nothing shows something only if it has met everything. So each adversity
is counted against the part of the log's files that it met, and the tests ask that no cell of
`WANTED` is empty.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from proglog.log import format as fmt
from proglog.log import names as naming
from tests.doubles.inode import PAGE_BYTES, Fate, Kind, Operation, Torn

PARTS = (
    "header",
    "header copy",
    "mark",
    "data",
    "index",
    "snapshot",
    "manifest",
    "hard state",
    "reserved",
    "aside",
    "directory",
)
"""Of a log: pieces of stores, and other files. A file's temporary name counts as its own."""
PREAMBLE = {"header", "header copy", "mark"}

NAMES_KINDS = {Kind.CREATE, Kind.RENAME, Kind.UNLINK}
_STARTS = {"snapshot-": "snapshot", naming.MANIFEST: "manifest", naming.HARD_STATE: "hard state"}


class Access(NamedTuple):
    """Something that was asked of the disk, and may fail."""

    kind: Kind
    part: str


def part_of(path: Path, position: int = 0) -> str:
    """Which part of a log stands there."""
    name = path.name
    if name in {naming.RESERVED_STORE, naming.RESERVED_INDEX}:
        return "reserved"
    if name.startswith(naming.ASIDE):
        return "aside"
    for start, part in _STARTS.items():
        if name.startswith(start):
            return part
    if naming.indexes([name]):
        return "index"
    if not naming.stores([name]):
        return "directory"
    return _of_store(position)


def _of_store(position: int) -> str:
    if position >= fmt.PREAMBLE_BYTES:
        return "data"
    if position >= fmt.MARK_POSITIONS[0]:
        return "mark"
    return "header copy" if position >= fmt.HEADER_POSITIONS[1] else "header"


def access(kind: Kind, path: Path, position: int) -> Access:
    """What `SimDisk.on_access` was told. Of a store opened, synced or renamed the data count."""
    if kind in {Kind.READ, Kind.WRITE}:
        return Access(kind, part_of(path, position))
    return Access(kind, part_of(path, fmt.PREAMBLE_BYTES))


def numbered(accesses: list[Access]) -> dict[Access, list[int]]:
    """Of each access, which of its kind, from 1, they are."""
    counts: dict[Kind, int] = defaultdict(int)
    numbers: dict[Access, list[int]] = defaultdict(list)
    for each in accesses:
        counts[each.kind] += 1
        numbers[each].append(counts[each.kind])
    return numbers


def met_by(changes: Iterable[Operation], fates: Iterable[Fate]) -> set[tuple[str, str]]:
    """What a power cut does to which parts."""
    met: set[tuple[str, str]] = set()
    for change, fate in zip(changes, fates, strict=True):
        if fate is False:
            lost = "name lost" if change.kind in NAMES_KINDS else "change lost"
            met.add((lost, access(*change[:2], change.position).part))
        elif isinstance(fate, Torn):
            met.add(("write torn", part_of(change.path, change.position)))
            for block in fate.unreadable:
                met.add(("block unreadable", part_of(change.path, block * PAGE_BYTES)))
    return met


class Tally:
    """How often each adversity met each part."""

    def __init__(self) -> None:
        self.cells: Counter[tuple[str, str]] = Counter()

    def add(self, adversity: str, part: str) -> None:
        self.cells[adversity, part] += 1

    def update(self, other: Tally) -> None:
        self.cells.update(other.cells)

    def missing(self) -> list[tuple[str, str]]:
        """Cells of `WANTED` that are empty."""
        return sorted(cell for cell in WANTED if not self.cells[cell])

    def __str__(self) -> str:
        rows = sorted({adversity for adversity, _ in self.cells} | {row for row, _ in WANTED})
        lines = [" " * 30 + "".join(f"{part:>12}" for part in PARTS)]
        for row in rows:
            cells = (self._cell(row, part) for part in PARTS)
            lines.append(f"{row:30}" + "".join(f"{cell:>12}" for cell in cells))
        return "\n".join(lines)

    def _cell(self, row: str, part: str) -> str:
        count = self.cells[row, part]
        return str(count) if count or (row, part) in WANTED else "."


def _rows(table: dict[str, str]) -> frozenset[tuple[str, str]]:
    return frozenset(
        (row, part.strip()) for row, parts in table.items() for part in parts.split(",")
    )


WANTED = _rows(
    {
        "change lost": "mark, data, index, snapshot, manifest, hard state, reserved",
        "name lost": "data, index, snapshot, manifest, hard state, reserved",
        "write torn": "mark, data, index, snapshot, manifest, hard state, reserved",
        "block unreadable": "mark, data, index, snapshot, manifest, hard state, reserved",
        "block zeroed": "header, header copy, mark, data, index, snapshot, manifest, hard state",
        "block garbage": "header, header copy, mark, data, index, snapshot, manifest, hard state",
        "block gone": "header, header copy, mark, data, index, snapshot, manifest, hard state",
        "EIO at a read": "header, header copy, mark, data, index, snapshot, manifest, hard state",
        "EIO at a write": "mark, data, index, snapshot, manifest, hard state, reserved",
        "EIO at a fdatasync": "data, index, snapshot, manifest, hard state, reserved",
        "EIO at a open": "data, index, snapshot, manifest, hard state",
        "EIO at a map": "index",
        "EIO at a create": "snapshot, manifest, hard state, reserved, aside",
        "EIO at a rename": "index, snapshot, manifest, hard state, reserved",
        "EIO at a unlink": "data, index, snapshot, reserved",
        "EIO at a grow": "index, reserved",
        "EIO at a truncate": "data, index",
        "EIO at a sync_directory": "directory",
        "EMFILE at a open": "data, index, snapshot, manifest, hard state",
        "EMFILE at a create": "snapshot, manifest, hard state, reserved, aside",
        "EMFILE at a map": "index",
        "EMFILE at a sync_directory": "directory",
        "ENOSPC at a create": "snapshot, manifest, hard state, reserved",
        "ENOSPC at a write": "snapshot",
        "ENOSPC at a grow": "reserved",
    }
)
"""What must be met. No other cell can be: a header is written with its reserved file, say, and only
names have names to lose."""
