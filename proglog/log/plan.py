"""What an analysis of a log's directory finds, and what is to become of it: one plan, for a start,
for `proglog verify` and for `proglog repair`."""

from __future__ import annotations

import enum
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from proglog.errors import CorruptionError
from proglog.log.format import Mark, Tip
from proglog.log.index import Index
from proglog.log.manifest import Manifest
from proglog.log.names import store_name
from proglog.log.reading import Damage
from proglog.log.snapshot import Snapshot
from proglog.log.twin import TwinState


class Verdict(enum.Enum):
    """What becomes of something that is not as it should be."""

    HARMLESS = "harmless"
    """Nothing relies on it."""
    REWRITTEN = "rewritten"
    """From what is redundant to it. No record is lost."""
    CUT = "cut"
    """It was acknowledged to nobody."""
    UNREADABLE = "unreadable"
    """Records cannot be read. The node starts, and serves the others."""
    REFUSED = "refused"
    """The node does not start."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One thing that is not as it should be."""

    file: Path
    position: int
    """Bytes from the start of the file."""
    what: str
    verdict: Verdict
    first_offset: int | None = None
    """The first record that it touches, where that is known,"""
    last_offset: int | None = None
    """and the last."""

    def __str__(self) -> str:
        offsets = ""
        if self.first_offset is not None:
            offsets = f", from offset {self.first_offset}"
            if self.last_offset is not None:
                offsets += f" to {self.last_offset}"
        return f"{self.file} at {self.position}{offsets}: {self.what} ({self.verdict.value})"


@dataclass(slots=True, kw_only=True)
class Found:
    """A segment that counts. `index` is as far as its batches are known."""

    folder: Path
    index: Index
    store_bytes: int = 0
    headers_lost: list[int] = field(default_factory=list)
    """Positions at which the segment header is to be written anew."""
    is_index_lost: bool = False
    is_torn: bool = False
    """Bytes follow the last batch that are to be cut."""
    unreadable: list[int] = field(default_factory=list)
    """Slots of the batches of a sealed segment that cannot be read; only looked for by a thorough
    analysis."""

    @property
    def first_index(self) -> int:
        return self.index.before.index + 1

    @property
    def store_path(self) -> Path:
        return self.folder / store_name(self.first_index)


@dataclass(slots=True, kw_only=True)
class Plan:
    """See the module. Files are only named here; nothing has been changed."""

    folder: Path
    manifest: Manifest
    manifest_state: TwinState
    entries: list[Entry] = field(default_factory=list)
    worthless: list[Path] = field(default_factory=list)
    """To be deleted before anything else."""
    garbage: list[Path] = field(default_factory=list)
    """To be deleted at leisure: what is before the base, and snapshots that nobody needs."""
    snapshot: Snapshot | None = None
    """The newest that is whole."""
    snapshot_indexes: list[int] = field(default_factory=list)
    """Batches of the snapshots that are kept, ascending."""
    segments: list[Found] = field(default_factory=list)
    """Oldest first; the last one is active. Empty for a log that is to begin."""
    later: list[int] = field(default_factory=list)
    """First indexes of the segments that the cut under way removes."""
    reset_to: Tip | None = None
    """The tip of the newest snapshot, where that replaces the log."""
    mark: Mark | None = None
    """The newest of the active segment."""
    unforgotten: Path | None = None
    """A file of which the page cache would not let go."""

    def add(
        self,
        verdict: Verdict,
        path: Path,
        what: str,
        position: int = 0,
        *,
        offset: int | None = None,
    ) -> None:
        self.entries.append(
            Entry(file=path, position=position, what=what, verdict=verdict, first_offset=offset)
        )

    def add_damage(self, verdict: Verdict, damage: Damage, then: str = "") -> None:
        what = f"{damage.why}; {then}" if then else damage.why
        self.add(verdict, damage.path, what, damage.position)

    def of(self, *verdicts: Verdict) -> Iterable[Entry]:
        return (entry for entry in self.entries if entry.verdict in verdicts)

    @property
    def commit(self) -> int:
        """Batches up to here are committed, by what the newest mark and snapshot say."""
        marked = self.mark.commit if self.mark is not None else 0
        return max(marked, self.snapshot.tip.index if self.snapshot is not None else 0)

    @property
    def tip(self) -> Tip:
        """After the last batch that is known."""
        return self.segments[-1].index.last if self.segments else self.manifest.base

    def refusal(self) -> CorruptionError | None:
        """Why the node does not start, if it does not."""
        entry = next(iter(self.of(Verdict.REFUSED)), None)
        if entry is None:
            return None
        return CorruptionError(
            f"{entry.file} at {entry.position}: {entry.what}. Nothing was changed; run proglog "
            f"verify {self.folder} to see everything that is wrong",
            file=entry.file,
            position=entry.position,
        )
