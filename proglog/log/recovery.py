"""From a directory, as a crash may have left it, to a log that may be appended to.

`analysis` looks, and its plan says what is safe; here that is done. So a directory that is refused
is left as it was, for `proglog verify` and `proglog repair`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from proglog import limits
from proglog.errors import reason_of
from proglog.log import changes
from proglog.log import format as fmt
from proglog.log.analysis import Replay, analyse
from proglog.log.changes import ManifestFile
from proglog.log.format import ORIGIN, Mark, Place, SegmentHeader, Tip
from proglog.log.index import Index
from proglog.log.manifest import Change
from proglog.log.names import ASIDE, DEFAULT_GROUP, index_name, snapshot_path
from proglog.log.plan import Found, Plan, Verdict
from proglog.log.segment import (
    NO_SPACE,
    REFUSALS,
    Segment,
    allocate,
    create_segment,
)
from proglog.log.snapshot import Snapshot
from proglog.log.tail import TailEntry
from proglog.ports import File, Files, write_whole


@dataclass(slots=True, kw_only=True)
class Recovered:
    """A log that may be appended to. The last segment is the active one."""

    manifest: ManifestFile
    segments: list[Segment]
    snapshot: Snapshot | None
    """The newest. Whoever decodes it lets go of it."""
    snapshot_indexes: list[int]
    """Batches at which there is one."""
    commit_hint: int
    """Batches up to here are committed, by what the newest mark and snapshot say."""
    mark_sequence: int
    """Of the active segment's newest mark."""
    garbage: list[Path] = field(default_factory=list)
    """Files that nobody needs."""
    tail: Sequence[TailEntry] = ()
    """The newest batches, where somebody has kept them while they were verified."""
    notes: list[str] = field(default_factory=list)
    """What was rewritten or cut, for the operator."""

    @property
    def tip(self) -> Tip:
        return self.segments[-1].index.last

    def close(self) -> None:
        """Closes the files, where nobody will use them."""
        self.manifest.close()
        for segment in self.segments:
            segment.retire()


def recover(
    files: Files,
    folder: Path,
    *,
    segment_bytes: int,
    segment_batches: int,
    group: int = DEFAULT_GROUP,
    with_hard_state: bool = True,
    replay: Replay | None = None,
) -> Recovered:
    """Opens the log in `folder`, or a new one if there is none and none was.

    May wait for the disk: call it before serving. Raises CorruptionError, UnknownFormat, OSError.
    """
    plan = analyse(files, folder, group=group, with_hard_state=with_hard_state, replay=replay)
    if (refusal := plan.refusal()) is not None:
        raise refusal
    return _Recovery(files, plan, segment_bytes, segment_batches).run()


class _Recovery:
    def __init__(self, files: Files, plan: Plan, segment_bytes: int, segment_batches: int) -> None:
        self._files = files
        self._plan = plan
        self._folder = plan.folder
        self._segment_bytes = segment_bytes
        self._index_bytes = fmt.index_bytes_max(segment_batches)
        self._notes = [
            str(entry) for entry in plan.entries if entry.verdict is not Verdict.HARMLESS
        ]

    def run(self) -> Recovered:
        plan = self._plan
        # After kill -9 names may be in the page cache only; what follows relies on them, and
        # destroys what a power cut would need if it took them back.
        self._files.sync_directory(self._folder)
        for path in plan.worthless:
            self._remove(path)
        manifest = ManifestFile(self._files, self._folder, plan.manifest, plan.manifest_state)
        segments: list[Segment] = []
        try:
            sequence = self._make_segments(manifest, segments)
        except BaseException:  # whatever it is, the files belong to nobody yet
            manifest.close()
            for segment in segments:
                segment.retire()
            raise
        return self._recovered(manifest, segments, sequence)

    def _remove(self, path: Path) -> None:
        try:
            self._files.unlink(path)
        except OSError as error:
            # As a folder of that name, which is not ours. Nothing relies on it.
            self._notes.append(f"{path} cannot be deleted: {reason_of(error)}")

    def _recovered(
        self, manifest: ManifestFile, segments: list[Segment], sequence: int
    ) -> Recovered:
        plan = self._plan
        if plan.unforgotten is not None:
            self._notes.append(
                f"{plan.unforgotten}: its file system keeps files in memory, so that what was read "
                "at this start may not be what a disk has"
            )
        return Recovered(
            manifest=manifest,
            segments=segments,
            snapshot=plan.snapshot,
            snapshot_indexes=plan.snapshot_indexes,
            commit_hint=plan.commit,
            mark_sequence=sequence,
            garbage=plan.garbage,
            notes=self._notes,
        )

    def _make_segments(self, manifest: ManifestFile, segments: list[Segment]) -> int:
        """Fills in the segments; the sequence of the active one's newest mark."""
        plan = self._plan
        if plan.reset_to is not None:
            manifest.begin(Change.RESET, plan.reset_to)
            segments.append(
                changes.replace_all(
                    self._files,
                    self._folder,
                    manifest,
                    capacity=self._segment_bytes,
                    index_bytes=self._index_bytes,
                )
            )
            return 1
        if not plan.segments:
            segments.append(self._create_first())
            return 1
        *sealed, active = plan.segments
        segments += map(self._sealed, sealed)
        segments.append(self._active(active))
        return self._settle(manifest, segments[-1], active)

    def _create_first(self) -> Segment:
        header = SegmentHeader(Place(self._plan.manifest.group), ORIGIN)
        return create_segment(
            self._files,
            self._folder,
            header,
            capacity=self._segment_bytes,
            index_bytes=self._index_bytes,
        )

    # --- sealed segments -------------------------------------------------------------------------

    def _sealed(self, found: Found) -> Segment:
        if found.headers_lost:
            rewrite_headers(self._files, found)
        segment = Segment(self._files, self._folder, found.index, found.index.end_position)
        if not found.is_index_lost or self._rewrite_index(found):
            found.index.map(segment.map_index())
        return segment

    def _rewrite_index(self, found: Found) -> bool:
        """Whether it is written."""
        path = self._folder / index_name(found.first_index)
        try:
            write_whole(self._files, path, found.index.pack())
        except OSError as error:
            # It serves from memory as well; the next start tries again.
            if error.errno not in NO_SPACE:
                raise
            return False
        return True

    # --- the active segment ----------------------------------------------------------------------

    def _active(self, found: Found) -> Segment:
        capacity = max(found.store_bytes, found.index.end_position)
        store = self._files.open(found.store_path)
        return Segment(self._files, self._folder, found.index, capacity, store)

    def _settle(self, manifest: ManifestFile, segment: Segment, found: Found) -> int:
        """Makes durable what was found, before anyone hears of it."""
        plan, store, index = self._plan, segment.open(), segment.index
        _write_headers(store, found)
        commit = plan.mark.commit if plan.mark is not None else 0
        sequence = plan.mark.sequence if plan.mark is not None else 0
        if plan.manifest.is_cutting:
            self._finish_cut(segment, aside=plan.manifest.change is Change.CUT_ASIDE)
            sequence = changes.end_store(
                store, index.last, index.end_position, sequence=sequence, commit=commit
            )
        else:
            if found.is_torn:
                self._keep_tail_aside(store, index)
                changes.end_log(store, index.end_position)
            # First what the marks will speak of, then the marks: never the other way round. One
            # after the other, so that a torn write of the one leaves the other; and both, so that
            # no single lost block makes the log shorter.
            store.fdatasync()
            for _ in fmt.MARK_POSITIONS:
                sequence += 1
                mark = Mark(sequence, index.last, index.end_position, commit)
                store.pwritev([fmt.pack_mark(mark)], fmt.mark_position(sequence))
                store.fdatasync()
        if plan.manifest.change is Change.INSTALL:
            self._give_up_install(index.last)
        if plan.manifest.change is not Change.NONE:
            manifest.end()
        segment.index_file = self._allocate_index(segment)
        self._files.sync_directory(self._folder)
        return sequence

    def _give_up_install(self, end: Tip) -> None:
        """The snapshot that was being installed cannot be read, so the log stays. Nobody was told
        that it is here; and a start that could read it, later, would find the log too short."""
        tip = self._plan.manifest.tip
        path = snapshot_path(self._folder, tip.index)
        if tip.index > end.index and self._files.exists(path):
            self._files.unlink(path)
            self._files.sync_directory(self._folder)

    def _finish_cut(self, segment: Segment, *, aside: bool) -> None:
        plan, kept = self._plan, segment.first_index
        if aside:
            last = plan.manifest.tip.index
            names = changes.keep_aside(self._files, self._folder, kept, plan.later, last)
            self._notes += [f"{name} keeps what was cut" for name in names]
        elif plan.later:
            changes.remove_later(self._files, self._folder, kept, plan.later)

    def _allocate_index(self, segment: Segment) -> File | None:
        path, size = segment.index_path, self._index_bytes
        try:
            return allocate(self._files, path, size)
        except OSError as error:
            if error.errno in REFUSALS:
                return None
        # It holds nothing until the segment is sealed: another one does as well.
        changes.unlink_if_there(self._files, path)
        return allocate(self._files, path, size)

    def _keep_tail_aside(self, store: File, index: Index) -> None:
        try:
            data = store.pread(limits.aside_bytes_max, index.end_position).rstrip(b"\0")
        except OSError as error:
            self._notes.append(f"what was cut cannot be kept: {reason_of(error)}")
            return
        names = [name for name in self._files.listdir(self._folder) if _is_tail(name)]
        for name in names[: max(len(names) + 1 - limits.aside_files_max, 0)]:
            self._files.unlink(self._folder / name)
        number = int(names[-1].split("-")[1]) + 1 if names else 0
        path = self._folder / f"{ASIDE}{number:06d}-{index.last.index + 1:020d}"
        try:
            write_whole(self._files, path, data)
        except OSError as error:
            # A full disk must not keep a node from starting over bytes that nobody was promised.
            if error.errno not in NO_SPACE:
                raise
            self._notes.append(f"{path.name}: no space to keep aside what was cut")


def rewrite_headers(files: Files, found: Found) -> None:
    """Writes the copies of a segment's header that are lost, durably."""
    store = files.open(found.store_path)
    try:
        _write_headers(store, found)
        store.fdatasync()
    finally:
        store.close()


def _write_headers(store: File, found: Found) -> None:
    packed = fmt.pack_segment_header(SegmentHeader(found.index.place, found.index.before))
    for position in found.headers_lost:
        store.pwritev([packed.ljust(fmt.BLOCK_BYTES, b"\0")], position)


def _is_tail(name: str) -> bool:
    parts = name.split("-")
    return name.startswith(ASIDE) and len(parts) == 3 and parts[1].isdecimal()
