"""Offline: `proglog repair`. Follows the plan of the analysis as far as its user allows.

What a start does by itself is left to it. Each change is in the manifest before it is begun, so a
repair that is killed is finished by the next one, or by the next start.
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from pathlib import Path

from proglog import limits
from proglog.batch import Kind
from proglog.errors import CorruptionError
from proglog.log import names as naming
from proglog.log.analysis import INDEX_BYTES_MAX
from proglog.log.changes import ManifestFile
from proglog.log.format import Tip
from proglog.log.gaps import Lost, give_up, read_leniently
from proglog.log.index import Index
from proglog.log.manifest import Change, Manifest
from proglog.log.names import ASIDE, index_name, snapshot_path
from proglog.log.plan import Entry, Found, Plan, Verdict
from proglog.log.reading import CheckedFile, Damage, Reading
from proglog.log.recovery import recover, rewrite_headers
from proglog.log.verify import analyse_thoroughly, locked
from proglog.log.walking import walk_store
from proglog.ports import Files, RealFiles, write_parts, write_whole


class Allow(enum.Enum):
    """What a repair may do with records that cannot be read."""

    NOTHING = "nothing"
    GIVE_UP = "--give-up-damaged"
    """Replace just the damaged batches by gaps."""
    CUT = "--cut-damaged"
    """End the log before the first of them."""


Guard = Callable[[Plan], str | None]
"""Says why nothing may be given up here, if so."""


def repair(
    folder: Path,
    *,
    allow: Allow = Allow.NOTHING,
    guard: Guard | None = None,
    files: Files | None = None,
) -> list[str]:
    """Repairs what may be, and says what it did. The node must be stopped.

    Raises CorruptionError if damage remains, ConfigurationError as `verify`, UnknownFormat,
    OSError.
    """
    files = files or RealFiles()
    with locked(files, folder):
        plan = analyse_thoroughly(files, folder)
        bad = list(plan.of(Verdict.UNREADABLE, Verdict.REFUSED))
        if not bad:
            return _finish(files, plan)
        if allow is Allow.NOTHING:
            raise _remains(bad[0], _ADVICE)
        if guard is not None and (why := guard(plan)) is not None:
            raise _remains(bad[0], why)
        done: list[str] = []
        if plan.refusal() is None and plan.manifest.change not in {Change.NONE, Change.GIVE_UP}:
            # A start could finish what is under way: one thing after the other.
            done = _start(files, folder)
            plan = analyse_thoroughly(files, folder)
            if not any(plan.of(Verdict.UNREADABLE, Verdict.REFUSED)):
                return done
        repairing = _Repair(files, plan)
        return done + (repairing.cut() if allow is Allow.CUT else repairing.give_up())


_ADVICE = (
    "It cannot be repaired without losing records. In a cluster, remove this server from it, "
    "delete its data and let it fetch everything again; alone, --give-up-damaged gives up just "
    "what cannot be read, and --cut-damaged ends the log there and keeps what it removes"
)


def _remains(entry: Entry, advice: str) -> CorruptionError:
    return CorruptionError(f"{entry}. {advice}", file=entry.file, position=entry.position)


def _finish(files: Files, plan: Plan) -> list[str]:
    """No record is in danger: whatever was begun is finished, the rest is the next start's."""
    if plan.manifest.change in {Change.CUT_ASIDE, Change.GIVE_UP}:
        return [*_start(files, plan.folder), "the repair that was interrupted is finished"]
    done = _tidy(files, plan)
    if any(plan.of(Verdict.REWRITTEN, Verdict.CUT)):
        done.append("the next start does the rest")
    return done or ["nothing to repair"]


def _tidy(files: Files, plan: Plan) -> list[str]:
    """What nothing relies on and a start does not look at: after it verify finds nothing more."""
    done = []
    for found in plan.segments[:-1]:
        if found.headers_lost:
            rewrite_headers(files, found)
            done.append(f"{found.store_path.name}: the segment header is written anew")
    damaged = {entry.file for entry in plan.of(Verdict.HARMLESS)}
    for at in naming.snapshots(files.listdir(plan.folder)):
        path = snapshot_path(plan.folder, at)
        if path in damaged:
            files.unlink(path)
            done.append(f"{path.name}: deleted, since another one stands in for it")
    files.sync_directory(plan.folder)
    return done


def _start(files: Files, folder: Path) -> list[str]:
    """Does what a start does with the directory."""
    recovered = recover(
        files,
        folder,
        group=naming.group_of(folder),
        segment_bytes=limits.segment_bytes_default,
        segment_batches=limits.segment_batches_default,
        with_hard_state=False,
    )
    recovered.close()
    return [note for note in recovered.notes if ASIDE in note]


class _Repair:
    def __init__(self, files: Files, plan: Plan) -> None:
        self._files = files
        self._plan = plan
        self._folder = plan.folder
        self._reading = Reading(files, writable=True)

    def _ends(self) -> list[tuple[Found, Tip | None]]:
        """The segments, and the tips at which they must end: those before the next ones."""
        segments = self._plan.segments
        ends: list[Tip | None] = [following.index.before for following in segments[1:]]
        end = self._active_end()
        return list(zip(segments, [*ends, end[0] if end else None][: len(segments)], strict=True))

    def _active_end(self) -> tuple[Tip, int] | None:
        """Where the active segment must end, at least, if that is known."""
        manifest, mark = self._plan.manifest, self._plan.mark
        if self._plan.manifest.is_cutting:
            return manifest.tip, manifest.position
        return (mark.tip, mark.position) if mark is not None else None

    def _is_damaged(self, found: Found, end: Tip | None) -> bool:
        """Whether there is something in its store to give up."""
        short = end is not None and found.index.last.index < end.index
        refused = any(entry.file == found.store_path for entry in self._plan.of(Verdict.REFUSED))
        return bool(found.unreadable) or short or refused

    # --- giving up -------------------------------------------------------------------------------

    def give_up(self) -> list[str]:
        """Replaces what is damaged by gaps, segment by segment."""
        plan, done = self._plan, list[str]()
        ends = self._ends()
        if not any(self._is_damaged(*each) for each in ends):
            raise _remains(next(iter(plan.of(Verdict.REFUSED))), "There is no batch to give up")
        # Also where a repair that was interrupted had given up everything: the index is void.
        damaged = [each for each in ends if self._is_damaged(*each) or each[0].is_index_lost]
        manifest = ManifestFile(self._files, self._folder, plan.manifest, plan.manifest_state)
        try:
            for found, end in damaged:
                if found is plan.segments[-1]:
                    done += self._give_up_in(found, _empty_index(found), self._active_end())
                elif not self._plan.manifest.is_cutting:
                    done += self._give_up_in_sealed(manifest, found, end)
        finally:
            manifest.close()
        if self._plan.manifest.is_cutting:
            done += _start(self._files, self._folder)
        self._check_again(done)
        return done

    def _check_again(self, done: list[str]) -> None:
        left = analyse_thoroughly(self._files, self._folder)
        for entry in left.of(Verdict.UNREADABLE, Verdict.REFUSED):
            raise _remains(entry, "; ".join([*done, "That remains"]))

    def _give_up_in_sealed(
        self, manifest: ManifestFile, found: Found, end: Tip | None
    ) -> list[str]:
        index = _empty_index(found)
        known = None if end is None else (end, self._files.size(found.store_path))
        whole = self._whole_index(found)
        # What its index says is void from now on.
        manifest.begin(Change.GIVE_UP, index.before)
        done = self._give_up_in(found, index, known, whole)
        write_whole(self._files, self._folder / index_name(found.first_index), index.pack())
        manifest.end()
        return done

    def _give_up_in(
        self,
        found: Found,
        index: Index,
        end: tuple[Tip, int] | None,
        whole: Index | None = None,
    ) -> list[str]:
        """Fills in `index`."""
        store = self._reading.open(found.store_path)
        if isinstance(store, Damage):
            raise CorruptionError(str(store), file=store.path, position=store.position)
        try:
            lost = give_up(store, index, whole=whole, end=end, check=self._check)
        finally:
            store.close()
        return [_told(found.store_path, each) for each in lost]

    def _whole_index(self, found: Found) -> Index | None:
        if not found.unreadable:
            return None
        path = self._folder / index_name(found.first_index)
        data = self._reading.read_whole(path, INDEX_BYTES_MAX)
        return None if isinstance(data, Damage) else Index.parse(data, path, keep_entries=True)

    def _check(self, lost: Lost) -> None:
        """Nobody may forget who the servers are."""
        snapshot = self._plan.snapshot
        known = lost.before.index + 1 <= (snapshot.tip.index if snapshot is not None else 0)
        if not known and (lost.kind == Kind.CONFIGURATION or lost.before.index == 0):
            raise CorruptionError(
                f"batch {lost.before.index + 1} says who the servers are, and no snapshot holds "
                "it: it cannot be given up. Start this server anew with an empty directory",
                file=self._folder,
                position=lost.position,
            )

    # --- cutting ---------------------------------------------------------------------------------

    def cut(self) -> list[str]:
        """Ends the log before the first batch that is damaged."""
        plan = self._plan
        damaged = (found for found, end in self._ends() if self._is_damaged(found, end))
        # With none, the log ends before its newest snapshot: that goes.
        found = next(damaged, plan.segments[-1] if plan.segments else None)
        if found is None:
            raise _remains(next(iter(plan.of(Verdict.REFUSED))), "It cannot be repaired")
        index = _empty_index(found)
        store = self._reading.open(found.store_path)
        if isinstance(store, Damage):
            raise CorruptionError(str(store), file=store.path, position=store.position)
        try:
            walk_store(store, index)
            begun = self._check_cut(index)
            aside = self._copy_aside(store, index)
        finally:
            store.close()
        self._begin_cut(begun)
        done = [f"{aside} keeps what followed batch {index.last.index}"]
        done += _start(self._files, self._folder)
        return [*done, f"the log ends at offset {index.last.next_offset} now"]

    def _check_cut(self, index: Index) -> Manifest:
        """What the manifest is to say, if a log that ends here can be started."""
        begun = self._plan.manifest._replace(
            change=Change.CUT_ASIDE, tip=index.last, position=index.end_position
        )
        left = analyse_thoroughly(self._files, self._folder, begun)
        for entry in left.of(Verdict.UNREADABLE, Verdict.REFUSED):
            raise _remains(entry, "A cut does not help; nothing was changed")
        if not index.last.index:
            raise CorruptionError(
                "A cut would leave no batch, not even the first, which says who the servers are; "
                "nothing was changed. Start this server anew with an empty directory",
                file=self._folder,
                position=index.end_position,
            )
        return begun

    def _begin_cut(self, begun: Manifest) -> None:
        plan = self._plan
        manifest = ManifestFile(self._files, self._folder, plan.manifest, plan.manifest_state)
        try:
            manifest.save(begun)
        finally:
            manifest.close()

    def _copy_aside(self, store: CheckedFile, index: Index) -> str:
        """Keeps what follows the last batch of `index`, in pieces, since it may be large."""
        name = f"{ASIDE}repair-{index.last.index + 1:020d}"
        start, stop, window = index.end_position, store.file.size(), limits.walk_window_bytes
        pieces = (
            read_leniently(store, min(window, stop - at), at) for at in range(start, stop, window)
        )
        write_parts(self._files, self._folder / name, pieces)
        return name


def _empty_index(found: Found) -> Index:
    return Index(found.index.place, found.index.before)


def _told(path: Path, lost: Lost) -> str:
    first, last = lost.before.index + 1, lost.next_index - 1
    batches = f"batch {first}" if first == last else f"batches {first} to {last}"
    if lost.next_offset == lost.before.next_offset:
        return f"{path.name}: a gap stands for {batches}, which held no records"
    offsets = f"offsets {lost.before.next_offset} to {lost.next_offset - 1}"
    return f"{path.name}: a gap stands for {batches}: {offsets} are lost"
