"""From a directory, as a crash may have left it, to a log that may be appended to.

`recover` goes by the decision table in DESIGN.md. It looks first and acts last: what must be
changed is collected while everything is checked, and done only once nothing was found that refuses.
So a directory that is refused is left as it was, for `proglog verify` and `proglog repair`.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from proglog import limits
from proglog.batch import HEADER_BYTES, BadBatch, BatchHeader, check_stored_body, parse_header
from proglog.errors import CorruptionError
from proglog.log import format as fmt
from proglog.log import snapshot as snapshots
from proglog.log.format import ORIGIN, Mark, Tip
from proglog.log.index import Index
from proglog.log.segment import (
    NO_SPACE,
    RESERVED_INDEX,
    RESERVED_STORE,
    Segment,
    allocate,
    create_segment,
    finish_cut,
    index_name,
    store_name,
    write_index,
)
from proglog.log.snapshot import Snapshot
from proglog.ports import File, Files

_STORE = re.compile(r"(\d{20})\.store")
_INDEX = re.compile(r"(\d{20})\.index")
_SNAPSHOT = re.compile(snapshots.PREFIX + r"(\d{20})")
_ASIDE = re.compile(r"aside-\d{6}-\d{20}")


@dataclass(slots=True, kw_only=True)
class Recovered:
    """A log that may be appended to. The last segment is the active one."""

    segments: list[Segment]
    snapshots: dict[int, Snapshot]
    """By the index of their batch."""
    commit_hint: int
    """Batches up to here are committed, by what the newest mark says."""
    notes: list[str] = field(default_factory=list)
    """What was repaired or cut, for the operator."""

    @property
    def tip(self) -> Tip:
        return self.segments[-1].index.last

    def close(self) -> None:
        """Closes the files, where nobody will use them."""
        for segment in self.segments:
            segment.retire()


def recover(
    files: Files, folder: Path, *, segment_bytes: int, segment_batches: int, may_be_new: bool
) -> Recovered:
    """Opens the log in `folder`, or a new one if `may_be_new` and there is none.

    May wait for the disk: call it before serving. Raises CorruptionError and OSError.
    """
    return _Recovery(files, folder, segment_bytes, segment_batches).run(may_be_new)


class _Recovery:
    def __init__(
        self, files: Files, folder: Path, segment_bytes: int, segment_batches: int
    ) -> None:
        self._files = files
        self._folder = folder
        self._segment_bytes = segment_bytes
        self._index_bytes = fmt.index_bytes_max(segment_batches)
        self._actions: list[Callable[[], None]] = []
        self._notes: list[str] = []
        self._opened: list[File] = []

    def run(self, may_be_new: bool) -> Recovered:
        try:
            return self._run(may_be_new)
        except BaseException:  # whatever it is, its files belong to nobody yet
            for file in self._opened:
                file.close()
            raise

    def _run(self, may_be_new: bool) -> Recovered:
        names = self._files.listdir(self._folder)
        self._forget_worthless(names)
        first_indexes = _numbers(_STORE, names)
        states = self._load_snapshots(_numbers(_SNAPSHOT, names), first_indexes)
        commit_hint = max(states, default=0)
        if states and states[commit_hint].resets:
            segments = [self._finish_reset(states, first_indexes)]
        elif not first_indexes:
            segments = [self._create_first(states, may_be_new)]
        else:
            segments, mark = self._open_segments(first_indexes, states)
            commit_hint = max(commit_hint, mark.commit)
        if commit_hint > segments[-1].last_index:
            missing = f"the log ends at batch {segments[-1].last_index}, before its newest snapshot"
            raise self._refuse(snapshots.snapshot_path(self._folder, commit_hint), 0, missing)
        self._act()
        return Recovered(
            segments=segments, snapshots=states, commit_hint=commit_hint, notes=self._notes
        )

    def _act(self) -> None:
        # After kill -9 what was found may be in the page cache only; what follows relies on it, and
        # destroys what a power cut would need if it took that back.
        self._files.sync_directory(self._folder)
        for act in self._actions:
            act()
        self._actions.clear()

    def _refuse(self, path: Path, position: int, why: str) -> CorruptionError:
        return CorruptionError(
            f"{path} at {position}: {why}. Nothing was changed; run proglog verify "
            f"{self._folder} to see everything that is wrong",
            file=path,
            position=position,
        )

    def _note(self, path: Path, what: str) -> None:
        self._notes.append(f"{path.name}: {what}")

    # --- what is worthless -----------------------------------------------------------------------

    def _forget_worthless(self, names: list[str]) -> None:
        stores = set(_numbers(_STORE, names))
        for name in names:
            orphan = _INDEX.fullmatch(name) and int(name[:20]) not in stores
            if name in {RESERVED_STORE, RESERVED_INDEX} or name.endswith(".tmp") or orphan:
                self._delete_later(self._folder / name)

    def _delete_later(self, path: Path) -> None:
        self._actions.append(lambda: self._files.unlink(path))

    # --- snapshots -------------------------------------------------------------------------------

    def _load_snapshots(self, indexes: list[int], first_indexes: list[int]) -> dict[int, Snapshot]:
        """The valid snapshots. A damaged one is dropped if the state can be had without it."""
        base = first_indexes[0] - 1 if first_indexes else None
        valid: dict[int, Snapshot] = {}
        damaged: list[Path] = []
        for index in indexes:
            path = snapshots.snapshot_path(self._folder, index)
            snapshot = snapshots.read(self._files, path)
            if snapshot is None:
                damaged.append(path)
            else:
                valid[index] = snapshot
        usable = base == 0 or any(base is not None and index >= base for index in valid)
        if base is not None and not usable and not damaged:
            first = self._folder / store_name(base + 1)
            raise self._refuse(first, 0, f"the snapshot at batch {base}, where it begins, is lost")
        for path in damaged:
            if not usable and not any(snapshot.resets for snapshot in valid.values()):
                raise self._refuse(path, 0, "the snapshot is damaged and no other will do")
            self._delete_later(path)
            self._note(path, "damaged; another snapshot or the log itself replaces it")
        return valid

    def _finish_reset(self, states: dict[int, Snapshot], first_indexes: list[int]) -> Segment:
        """A snapshot was being installed: whatever log there was is void."""
        newest = states[max(states)]
        self._delete_segments_later(first_indexes)
        for index in sorted(states):
            if index != newest.tip.index:
                self._delete_later(snapshots.snapshot_path(self._folder, index))
                del states[index]
        self._act()
        segment = self._create_segment(newest.tip)
        # Only now is the reset over: nothing can have been appended before the flag is gone.
        states[newest.tip.index] = newest._replace(resets=False)
        snapshots.write(self._files, self._folder, states[newest.tip.index])
        self._note(self._folder, f"finished installing the snapshot of batch {newest.tip.index}")
        return segment

    # --- the first segment -----------------------------------------------------------------------

    def _create_first(self, states: dict[int, Snapshot], may_be_new: bool) -> Segment:
        if states:
            raise self._refuse(
                self._folder, 0, "there is a snapshot but no segment: files are lost"
            )
        if not may_be_new:
            raise self._refuse(self._folder, 0, "the log's segments are lost")
        self._act()
        return self._create_segment(ORIGIN)

    def _create_segment(self, before: Tip) -> Segment:
        return create_segment(
            self._files,
            self._folder,
            before,
            capacity=self._segment_bytes,
            index_bytes=self._index_bytes,
        )

    # --- segments --------------------------------------------------------------------------------

    def _open_segments(
        self, first_indexes: list[int], states: dict[int, Snapshot]
    ) -> tuple[list[Segment], Mark]:
        base = first_indexes[0] - 1
        if base and max(states, default=0) < base:
            path = self._folder / store_name(first_indexes[0])
            raise self._refuse(path, 0, f"there is no snapshot of what precedes batch {base + 1}")
        before = ORIGIN if base == 0 else (states[base].tip if base in states else None)
        segments: list[Segment] = []
        for slot, first_index in enumerate(first_indexes):
            path = self._folder / store_name(first_index)
            store = self._files.open(path)
            self._opened.append(store)
            preamble = store.pread(fmt.PREAMBLE_BYTES, 0)
            before = self._check_header(path, store, preamble, before)
            marks = fmt.parse_marks(preamble)
            following = first_indexes[slot + 1 :]
            if not following or (marks and marks[0].cut):
                if not marks:
                    raise self._refuse(path, fmt.MARK_POSITIONS[0], "both synced marks are damaged")
                self._actions.append(store.fdatasync)
                self._delete_segments_later(following)
                self._actions.append(lambda: self._files.sync_directory(self._folder))
                segments.append(self._open_active(path, store, before, marks[0]))
                return segments, marks[0]
            index = self._open_sealed(path, store, before, following[0] - 1)
            segments.append(Segment(self._folder, index, store, store.size()))
            before = index.last
        raise AssertionError("the last segment always returns")

    def _check_header(self, path: Path, store: File, preamble: bytes, expected: Tip | None) -> Tip:
        """The tip before a segment, which its header, its name and what precedes it agree on."""
        header = fmt.parse_segment_header(preamble)
        first_index = int(path.name[:20])
        if header is None and expected is not None and expected.index == first_index - 1:
            packed = fmt.pack_segment_header(expected)
            self._actions.append(lambda: store.pwritev([packed], 0))
            self._actions.append(store.fdatasync)
            self._note(path, "segment header damaged; rewritten from what precedes it")
            return expected
        if header is None:
            raise self._refuse(path, 0, "the segment header is damaged")
        if header.index != first_index - 1 or (expected is not None and header != expected):
            raise self._refuse(path, 0, "the segment does not follow what precedes it")
        return header

    def _delete_segments_later(self, first_indexes: list[int]) -> None:
        for first_index in reversed(first_indexes):
            self._delete_later(self._folder / store_name(first_index))
            if self._files.exists(self._folder / index_name(first_index)):
                self._delete_later(self._folder / index_name(first_index))

    def _open_sealed(self, path: Path, store: File, before: Tip, last_index: int) -> Index:
        index_path = path.with_name(index_name(before.index + 1))
        if self._files.exists(index_path):
            index = Index.parse(self._files.read_only_map(index_path))
            if index is not None and index.before == before and index.last.index == last_index:
                if store.size() < index.end_position:
                    raise self._refuse(
                        path, store.size(), "the store is shorter than its index says"
                    )
                return index
        index = Index(before)
        failure = walk_store(store, index, last_index=last_index)
        if failure is not None or index.last.index != last_index:
            why = failure or f"the segment ends at batch {index.last.index}, not {last_index}"
            raise self._refuse(path, index.end_position, why)
        self._actions.append(lambda: self._rewrite_index(index_path, index))
        self._note(index_path, "index damaged or missing; rebuilt from its store")
        return index

    def _rewrite_index(self, path: Path, index: Index) -> None:
        if self._files.exists(path):
            self._files.unlink(path)
        packed = index.pack()
        try:
            write_index(allocate(self._files, path, len(packed)), packed)
        except OSError as error:
            # It serves from memory as well; the next start tries again.
            if error.errno not in NO_SPACE:
                raise

    def _open_active(self, path: Path, store: File, before: Tip, mark: Mark) -> Segment:
        # What is behind the mark may be in the page cache only. After kill -9 it is dirty there,
        # and this makes it durable. After a failed fdatasync, for which the daemon before this one
        # ended, the kernel leaves pages that it could not write as clean as if it had (Rebello et
        # al., ATC 2020): so what is cached is let go, and what the disk really has is read.
        store.fdatasync()
        store.forget_cache(mark.position)
        index = Index(before)
        failure = walk_store(store, index, last_index=mark.index)
        if failure is not None:
            raise self._refuse(path, index.end_position, f"{failure}, in what was synced")
        if (mark.index, mark.position, mark.chain) != (
            index.last.index,
            index.end_position,
            index.last.chain,
        ):
            raise self._refuse(path, index.end_position, f"the log is not what {mark} says")
        failure = None if mark.cut else walk_store(store, index)
        if failure is not None:
            self._note(
                path, f"cut at {index.end_position} behind batch {index.last.index}: {failure}"
            )
        segment = Segment(self._folder, index, store, max(store.size(), index.end_position))
        self._actions.append(lambda: self._settle(segment, mark, failure is not None))
        return segment

    def _settle(self, segment: Segment, mark: Mark, torn: bool) -> None:
        """Makes durable what was found, before anyone hears of it."""
        store, index = segment.file, segment.index
        if torn:
            self._keep_aside(store, index)
        if torn or mark.cut:
            finish_cut(store, index.end_position)
        # First what the mark will speak of, then the mark: never the other way round. Both marks,
        # since a cut flag must not come back if the newer one rots.
        store.fdatasync()
        for sequence in (mark.sequence + 1, mark.sequence + 2):
            fresh = mark._replace(
                sequence=sequence,
                index=index.last.index,
                position=index.end_position,
                chain=index.last.chain,
                cut=False,
            )
            store.pwritev([fmt.pack_mark(fresh)], fmt.mark_position(sequence))
            store.fdatasync()
        segment.index_file = self._allocate_index(segment)
        self._files.sync_directory(self._folder)

    def _allocate_index(self, segment: Segment) -> File | None:
        try:
            return allocate(self._files, segment.index_path, self._index_bytes)
        except OSError as error:
            if error.errno not in NO_SPACE:
                raise
            return None

    def _keep_aside(self, store: File, index: Index) -> None:
        data = store.pread(limits.aside_bytes_max, index.end_position).rstrip(b"\0")
        names = [name for name in self._files.listdir(self._folder) if _ASIDE.fullmatch(name)]
        for name in names[: max(len(names) + 1 - limits.aside_files_max, 0)]:
            self._files.unlink(self._folder / name)
        number = int(names[-1][6:12]) + 1 if names else 0
        path = self._folder / f"aside-{number:06d}-{index.last.index + 1:020d}"
        try:
            snapshots.write_whole(self._files, path, data)
        except OSError as error:
            # A full disk must not keep a node from starting over bytes that nobody was promised.
            if error.errno not in NO_SPACE:
                raise
            self._note(path, "no space to keep aside what was cut")


def _numbers(pattern: re.Pattern[str], names: list[str]) -> list[int]:
    return sorted(int(match[1]) for name in names if (match := pattern.fullmatch(name)))


# --- walking -------------------------------------------------------------------------------------

_END_FIELDS = bytes(8)


def walk_store(store: File, index: Index, *, last_index: int | None = None) -> str | None:
    """Adds the batches behind `index.end_position` to `index`, each checked whole, up to the end of
    the log or `last_index`. Returns why it stopped, or None where that is how it should be."""
    window = b""
    window_at = index.end_position
    while last_index is None or index.last.index < last_index:
        position = index.end_position
        at = position - window_at
        if len(window) - at < HEADER_BYTES:
            window, window_at, at = store.pread(limits.walk_window_bytes, position), position, 0
        ahead = window[at : at + 8]
        if ahead == _END_FIELDS or not ahead:
            return None if last_index is None else "the log ends here"
        try:
            header = parse_header(window, at)
            if len(window) - at < header.size:
                size = max(limits.walk_window_bytes, header.size)
                window, window_at, at = store.pread(size, position), position, 0
            check_stored_body(header, memoryview(window)[at + HEADER_BYTES : at + header.size])
            check_follows(header, index.last)
        except BadBatch as bad:
            return f"batch {index.last.index + 1} {bad}"
        index.append(header)
    return None


def check_follows(header: BatchHeader, tip: Tip) -> None:
    """Raises BadBatch unless a batch continues the log that ends with `tip`."""
    if (
        header.index != tip.index + 1
        or header.chain != tip.chain
        or header.base_offset != tip.next_offset
        or header.term < tip.term
        or header.timestamp < tip.timestamp
    ):
        raise BadBatch(f"does not follow the batch before: {header} after {tip}")
