"""Looks at a log's directory and says what is to become of it; changes nothing.

The decision table in DESIGN.md is this module. A start looks at what it relies on; a *thorough*
analysis, for `verify` and `repair`, reads every byte, and comes to the same verdicts.
"""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from proglog import limits
from proglog.batch import HEADER_BYTES, BatchHeader, Kind
from proglog.log import format as fmt
from proglog.log import names as naming
from proglog.log import snapshot as snapshots
from proglog.log.envelope import HARD_STATE, MANIFEST
from proglog.log.format import Mark, Place, SegmentHeader, Tip
from proglog.log.index import Index
from proglog.log.manifest import Change, Manifest
from proglog.log.names import index_name, snapshot_path, store_name
from proglog.log.plan import Found, Plan, Verdict
from proglog.log.reading import CheckedFile, Damage, Reading
from proglog.log.snapshot import Snapshot
from proglog.log.survey import damaged_batch, survey
from proglog.log.twin import TwinState, read_twin
from proglog.log.walking import walk_store
from proglog.ports import Files

_INTERRUPTED = "a repair was interrupted: run proglog repair --give-up-damaged again"
INDEX_BYTES_MAX = fmt.index_bytes_max(limits.segment_batches_max)


class Replay(Protocol):
    """Who takes in the batches of the active segment while they are being verified, so that nobody
    reads them a second time. The analysis may still end in a refusal."""

    def begin(self, snapshot: Snapshot | None, commit: int) -> None:
        """The newest snapshot; batches up to `commit` are committed."""

    def batch(self, header: BatchHeader, data: memoryview) -> None:
        """A batch that is whole and follows the one before, and its bytes, valid meanwhile."""


class NoReplay:
    """Nobody does."""

    def begin(self, snapshot: Snapshot | None, commit: int) -> None: ...

    def batch(self, header: BatchHeader, data: memoryview) -> None: ...


def analyse(
    files: Files,
    folder: Path,
    *,
    group: int,
    thorough: bool = False,
    with_hard_state: bool = True,
    replay: Replay | None = None,
    begun: Manifest | None = None,
) -> Plan:
    """The plan for a directory. May wait for the disk, and takes memory only for one index, one
    snapshot and one window of a store at a time.

    `group` is the log that is expected there; `with_hard_state` is false for a log without a
    server; `begun` is what the manifest would say once a change is begun. Raises UnknownFormat, and
    OSError only where there are no descriptors.
    """
    reading = Reading(files, writable=False)
    analysis = _Analysis(
        files,
        folder,
        reading,
        thorough=thorough,
        with_hard_state=with_hard_state,
        replay=replay or NoReplay(),
    )
    plan = analysis.run(group, begun)
    plan.unforgotten = reading.unforgotten
    return plan


class _Analysis:
    def __init__(
        self,
        files: Files,
        folder: Path,
        reading: Reading,
        *,
        thorough: bool,
        with_hard_state: bool,
        replay: Replay,
    ) -> None:
        self._files = files
        self._folder = folder
        self._reading = reading
        self._thorough = thorough
        self._with_hard_state = with_hard_state
        self._replay = replay
        self._names = files.listdir(folder)
        self._plan: Plan

    def run(self, group: int, begun: Manifest | None) -> Plan:
        firsts = naming.stores(self._names)
        manifest, state = self._manifest_state(group, firsts)
        manifest = begun or manifest
        plan = self._plan = Plan(folder=self._folder, manifest=manifest, manifest_state=state)
        self._look_at_manifest(group)
        self._look_at_worthless(firsts)
        live = [first for first in firsts if first > manifest.base.index]
        self._leave_behind(firsts, live)
        self._look_at_snapshots()
        is_reset = self._is_reset()
        if is_reset:
            self._look_at_reset()
        elif live:
            self._look_at_segments(live)
        is_new = not live and self._may_be_new()
        self._look_at_hard_state(is_new=is_new)
        if not live and not is_new and not is_reset:
            plan.add(Verdict.REFUSED, self._folder, "the log's segments are lost")
        self._look_at_end()
        return plan

    def _may_be_new(self) -> bool:
        """Whether the directory is that of a first start, perhaps an interrupted one."""
        unused = not self._with_hard_state or naming.HARD_STATE not in self._names
        return unused and not naming.snapshots(self._names) and not self._plan.manifest.base.index

    # --- manifest --------------------------------------------------------------------------------

    def _manifest_state(self, group: int, firsts: list[int]) -> tuple[Manifest, TwinState]:
        path = self._folder / naming.MANIFEST
        if naming.MANIFEST not in self._names:
            state = TwinState(0, None, [Damage(path, 0, "the file is missing")], [])
        else:
            state = read_twin(self._reading, path, MANIFEST)
        if state.payload is not None:
            return Manifest.parse(state.payload), state
        return self._inferred(group, firsts), state

    def _inferred(self, group: int, firsts: list[int]) -> Manifest:
        """What the manifest must have said of where the log begins. A change that was under way is
        forgotten: the log is as if it had not begun, which nobody was told of yet."""
        header = self._any_header(firsts[0]) if firsts else None
        if header is None:
            return Manifest(group)
        return Manifest(header.place.group, header.place.generation, header.before)

    def _any_header(self, first_index: int) -> SegmentHeader | None:
        index = self._read_index(first_index)
        if isinstance(index, Index):
            return SegmentHeader(index.place, index.before)
        store = self._reading.open(self._folder / store_name(first_index))
        if isinstance(store, Damage):
            return None
        try:
            return next(iter(self._read_headers(store).values()), None)
        finally:
            store.close()

    def _look_at_manifest(self, group: int) -> None:
        plan, path = self._plan, self._folder / naming.MANIFEST
        if plan.manifest.group != group:
            what = f"it belongs to log {plan.manifest.group}, not to {group}"
            plan.add(Verdict.REFUSED, path, what)
        if plan.manifest_state.payload is None and not naming.stores(self._names):
            return
        for damage in plan.manifest_state.damages:
            plan.add_damage(Verdict.REWRITTEN, damage, "it is made again from what is there")

    # --- what nobody needs -----------------------------------------------------------------------

    def _look_at_worthless(self, firsts: list[int]) -> None:
        orphans = {index_name(at) for at in set(naming.indexes(self._names)) - set(firsts)}
        for name in self._names:
            if naming.is_worthless(name) or name in orphans:
                self._plan.worthless.append(self._folder / name)

    def _leave_behind(self, firsts: list[int], live: list[int]) -> None:
        """What is before the base: deleting it was begun, or is about to be."""
        base, garbage = self._plan.manifest.base.index, self._plan.garbage
        for first_index in sorted(set(firsts) - set(live)):
            garbage.append(self._folder / store_name(first_index))
            if index_name(first_index) in self._names:
                garbage.append(self._folder / index_name(first_index))
        old = [at for at in naming.snapshots(self._names) if at < base]
        garbage += [snapshot_path(self._folder, at) for at in old]

    def _look_at_hard_state(self, *, is_new: bool) -> None:
        path = self._folder / naming.HARD_STATE
        if not self._with_hard_state or is_new:
            return
        if naming.HARD_STATE not in self._names:
            # An empty log without it is a first start that was interrupted. Anything more has voted
            # and acknowledged under a name that is lost.
            if self._plan.tip.index:
                self._plan.add(
                    Verdict.REFUSED,
                    path,
                    "the file is missing, though there is a log: this server does not know what "
                    "it promised. Restore the file, or remove the server from its cluster and "
                    "start it anew with an empty directory",
                )
            return
        state = read_twin(self._reading, path, HARD_STATE)
        for damage in state.damages:
            if state.payload is not None:
                self._plan.add_damage(Verdict.REWRITTEN, damage, "the other copy is whole")
            else:
                self._plan.add_damage(
                    Verdict.REFUSED,
                    damage,
                    "no copy is whole, so this server does not know what it promised. Remove it "
                    "from its cluster and start it anew with an empty directory",
                )

    # --- snapshots -------------------------------------------------------------------------------

    def _look_at_snapshots(self) -> None:
        plan, base = self._plan, self._plan.manifest.base.index
        damages: list[Damage] = []
        kept: list[int] = []
        # Those of what a repair cuts off are put aside with it.
        aside = plan.manifest.change is Change.CUT_ASIDE
        for at in reversed(naming.snapshots(self._names)):
            if at < base or (aside and at > plan.manifest.tip.index):
                continue
            # Those that are not read may stand in for the newest, should that be damaged one day.
            if plan.snapshot is not None and not self._thorough:
                kept.append(at)
                continue
            snapshot = snapshots.read(self._reading, snapshot_path(self._folder, at))
            if isinstance(snapshot, Damage):
                damages.append(snapshot)
                continue
            kept.append(at)
            plan.snapshot = plan.snapshot or snapshot
        obsolete = snapshots.obsolete(set(kept))
        plan.garbage += [snapshot_path(self._folder, at) for at in sorted(obsolete)]
        plan.snapshot_indexes = sorted(set(kept) - obsolete)
        usable = plan.snapshot is not None or base == 0
        for damage in damages:
            if usable:
                plan.add_damage(Verdict.HARMLESS, damage, "the log or another one stands in for it")
            else:
                plan.add_damage(Verdict.REFUSED, damage, "and no other snapshot will do")
        if not usable and not damages:
            path = snapshot_path(self._folder, base)
            plan.add(Verdict.REFUSED, path, "the snapshot that the log begins with is lost")

    def _arrived(self) -> Tip | None:
        """The tip of the snapshot that was being installed, or of a newer one that was to be
        installed in its stead; None if it is not there, or not whole."""
        snapshot = self._plan.snapshot
        if snapshot is None or snapshot.tip.index < self._plan.manifest.tip.index:
            return None
        return snapshot.tip

    def _is_reset(self) -> bool:
        change = self._plan.manifest.change
        arrived = change is Change.INSTALL and self._arrived() is not None
        return change is Change.RESET or arrived

    def _look_at_reset(self) -> None:
        """A snapshot was being installed: whatever log there was is void."""
        plan, tip = self._plan, self._arrived()
        if tip is None:
            path = snapshot_path(self._folder, plan.manifest.tip.index)
            plan.add(Verdict.REFUSED, path, "it was being installed, and is not whole")
            return
        plan.reset_to = tip
        what = f"the snapshot of batch {tip.index} was being installed; that is finished"
        plan.add(Verdict.HARMLESS, self._folder, what)
        plan.snapshot_indexes = [tip.index]
        # Whatever else there is goes with the log.
        plan.garbage.clear()

    # --- segments --------------------------------------------------------------------------------

    def _look_at_segments(self, live: list[int]) -> None:
        plan, manifest = self._plan, self._plan.manifest
        if manifest.is_cutting:
            # An empty segment that begins with the cut is kept, as the writer keeps it.
            plan.later = [first for first in live if first > max(manifest.tip.index + 1, live[0])]
            live = [first for first in live if first not in plan.later]
        place = Place(manifest.group, manifest.generation)
        before: Tip | None = manifest.base
        if live[0] != manifest.base.index + 1:
            what = f"the log begins at batch {manifest.base.index + 1}, whose segment is lost"
            plan.add(Verdict.REFUSED, self._folder / store_name(live[0]), what)
            before = None
        for slot, first_index in enumerate(live):
            if slot + 1 < len(live):
                before = self._look_at_sealed(first_index, place, before, live[slot + 1] - 1)
            else:
                self._look_at_active(first_index, place, before)

    def _expect(self, found: SegmentHeader, first: int, place: Place, before: Tip | None) -> str:
        """Why a segment does not belong where it stands; empty if it does."""
        if found.place != place:
            return f"the segment is of log {found.place}, not of {place}"
        if found.before.index != first - 1 or (before is not None and found.before != before):
            return "the segment does not follow what precedes it"
        return ""

    def _read_index(self, first_index: int, *, keep_entries: bool = False) -> Index | Damage:
        path = self._folder / index_name(first_index)
        data = self._reading.read_whole(path, INDEX_BYTES_MAX)
        if isinstance(data, Damage):
            return data
        index = Index.parse(data, path, keep_entries=keep_entries)
        return index or Damage(path, 0, "the checksum of the index is wrong")

    def _look_at_sealed(
        self, first_index: int, place: Place, before: Tip | None, last_index: int
    ) -> Tip | None:
        """One segment that has a successor; the tip after it, None where that is not known."""
        path = self._folder / store_name(first_index)
        manifest = self._plan.manifest
        given_up = manifest.change is Change.GIVE_UP and manifest.tip.index == first_index - 1
        index = self._read_index(first_index)
        if given_up:
            index = Damage(self._folder / index_name(first_index), 0, _INTERRUPTED)
        if isinstance(index, Index):
            header = SegmentHeader(index.place, index.before)
            if why := self._expect(header, first_index, place, before):
                self._plan.add(Verdict.REFUSED, path, why)
                return None
            size = self._files.size(path)
            found = Found(folder=self._folder, index=index, store_bytes=size)
            self._plan.segments.append(found)
            if index.last.index != last_index:
                what = f"the segment ends at batch {index.last.index}, not {last_index}"
                self._plan.add(Verdict.REFUSED, path, what, size)
                return None
            if size < index.end_position:
                what = "the store is shorter than its index says"
                self._plan.add(Verdict.REFUSED, path, what, size)
            if self._thorough:
                self._look_into(found, header)
            return index.last
        return self._rebuild(path, index, place, before, last_index)

    def _rebuild(
        self, path: Path, lost: Damage, place: Place, before: Tip | None, last_index: int
    ) -> Tip | None:
        """A sealed segment whose index is lost: its store says the same, if it is whole."""
        plan = self._plan
        store = self._reading.open(path)
        if isinstance(store, Damage):
            plan.add_damage(Verdict.REFUSED, store)
            return None
        try:
            found = self._begin_segment(store, place, before)
            if found is None:
                return None
            failure = walk_store(store, found.index, last_index=last_index)
        finally:
            store.close()
        plan.segments.append(found)
        if failure is None:
            found.is_index_lost = True
            plan.add_damage(Verdict.REWRITTEN, lost, "the index is built anew from its store")
            return found.index.last
        then = f"and {lost.path.name}, which would say what follows, is lost: {lost.why}"
        plan.add_damage(Verdict.REFUSED, failure, then)
        return None

    def _look_into(self, found: Found, header: SegmentHeader) -> None:
        """Every byte of a sealed segment. Its index says where the batches are, so what is damaged
        is told from what is not; and nobody needs its header and marks."""
        plan = self._plan
        store = self._reading.open(found.store_path)
        if isinstance(store, Damage):
            plan.add_damage(Verdict.UNREADABLE, store)
            return
        try:
            headers = self._read_headers(store)
            found.headers_lost = [p for p in fmt.HEADER_POSITIONS if headers.get(p) != header]
            for position in found.headers_lost:
                what = "the segment header is damaged; the index says the same"
                plan.add(Verdict.HARMLESS, store.path, what, position)
            # Read again and let go after, since all indexes together may be large.
            index = self._read_index(found.first_index, keep_entries=True)
            if isinstance(index, Damage):
                plan.add_damage(Verdict.UNREADABLE, index)
                return
            for slot, damage in survey(store, index):
                found.unreadable.append(slot)
                verdict = self._without(found, index.kind(slot), slot)
                plan.entries.append(damaged_batch(index, slot, damage, verdict))
        finally:
            store.close()

    def _without(self, found: Found, kind: int, slot: int) -> Verdict:
        """What becomes of a log without a batch. Nobody starts who does not know the servers."""
        snapshot = self._plan.snapshot
        known = snapshot is not None and found.first_index + slot <= snapshot.tip.index
        is_needed = self._with_hard_state and kind == Kind.CONFIGURATION and not known
        return Verdict.REFUSED if is_needed else Verdict.UNREADABLE

    # --- a store's first blocks ------------------------------------------------------------------

    def _read_headers(self, store: CheckedFile) -> dict[int, SegmentHeader]:
        """The copies of the segment header that are whole, by their positions."""
        found = {}
        for position in fmt.HEADER_POSITIONS:
            data = store.read_upto(fmt.BLOCK_BYTES, position)
            if not isinstance(data, Damage):
                header = fmt.parse_segment_header(data, store.path)
                if header is not None:
                    found[position] = header
        return found

    def _begin_segment(self, store: CheckedFile, place: Place, before: Tip | None) -> Found | None:
        """A segment whose batches are to be walked, once its header, its name and what precedes it
        agree."""
        plan, first_index = self._plan, int(store.path.name[:20])
        headers = self._read_headers(store)
        known = next(iter(headers.values()), None)
        if known is None and before is not None and before.index == first_index - 1:
            known = SegmentHeader(place, before)
        if known is None:
            plan.add(Verdict.REFUSED, store.path, "both copies of the segment header are damaged")
            return None
        if why := self._expect(known, first_index, place, before):
            plan.add(Verdict.REFUSED, store.path, why)
            return None
        lost = [position for position in fmt.HEADER_POSITIONS if headers.get(position) != known]
        for position in lost:
            what = "the segment header is damaged; it is written anew"
            plan.add(Verdict.REWRITTEN, store.path, what, position)
        index = Index(known.place, known.before)
        return Found(
            folder=self._folder, index=index, store_bytes=store.file.size(), headers_lost=lost
        )

    def _read_marks(self, store: CheckedFile) -> list[Mark]:
        """The whole marks, newest first."""
        marks = []
        for position in fmt.MARK_POSITIONS:
            data = store.read_upto(fmt.BLOCK_BYTES, position)
            mark = None if isinstance(data, Damage) else fmt.parse_mark(data, store.path)
            if mark is None:
                why = data.why if isinstance(data, Damage) else "the checksum of the mark is wrong"
                self._plan.add(Verdict.REWRITTEN, store.path, why, position)
            else:
                marks.append(mark)
        return sorted(marks, reverse=True)

    # --- the active segment ----------------------------------------------------------------------

    def _look_at_active(self, first_index: int, place: Place, before: Tip | None) -> None:
        plan = self._plan
        store = self._reading.open(self._folder / store_name(first_index))
        if isinstance(store, Damage):
            plan.add_damage(Verdict.REFUSED, store)
            return
        try:
            found = self._begin_segment(store, place, before)
            if found is None:
                return
            plan.segments.append(found)
            marks = self._read_marks(store)
            plan.mark = marks[0] if marks else None
            self._replay.begin(plan.snapshot, plan.commit)
            if plan.manifest.is_cutting:
                self._walk_to_cut(store, found)
            elif plan.mark is not None:
                self._walk_marked(store, found, plan.mark)
            else:
                self._walk_unmarked(store, found)
        finally:
            store.close()

    def _walk_marked(self, store: CheckedFile, found: Found, mark: Mark) -> None:
        plan, index = self._plan, found.index
        failure = walk_store(store, index, last_index=mark.tip.index, on_batch=self._replay.batch)
        offset = index.last.next_offset
        if failure is not None:
            what = f"{failure.why}, in what was synced up to batch {mark.tip.index}"
            plan.add(Verdict.REFUSED, store.path, what, failure.position, offset=offset)
            return
        if (mark.tip, mark.position) != (index.last, index.end_position):
            what = f"the log is not what {mark} says"
            plan.add(Verdict.REFUSED, store.path, what, index.end_position, offset=offset)
            return
        failure = walk_store(store, index, on_batch=self._replay.batch)
        if failure is not None:
            found.is_torn = True
            what = f"{failure.why}, after what was synced: the log is cut after batch "
            what += str(index.last.index)
            plan.add(Verdict.CUT, store.path, what, failure.position)

    def _walk_unmarked(self, store: CheckedFile, found: Found) -> None:
        """Both marks are lost. Where the batches end as they should, so does the log."""
        failure = walk_store(store, found.index, on_batch=self._replay.batch)
        end = found.index.end_position
        if failure is None and found.store_bytes < end + HEADER_BYTES:
            # There is always room for the end of the log: what followed may have been cut off.
            failure = Damage(store.path, found.store_bytes, "the file ends here")
        if failure is not None:
            what = f"{failure.why}; both marks are lost, which would say whether it was synced"
            offset = found.index.last.next_offset
            self._plan.add(Verdict.REFUSED, store.path, what, failure.position, offset=offset)

    def _walk_to_cut(self, store: CheckedFile, found: Found) -> None:
        plan, manifest = self._plan, self._plan.manifest
        tip, index = manifest.tip, found.index
        failure = walk_store(store, index, last_index=tip.index, on_batch=self._replay.batch)
        if failure is None and (index.last, index.end_position) != (tip, manifest.position):
            failure = Damage(store.path, index.end_position, f"the log is not cut at {tip}")
        if failure is not None:
            plan.add_damage(Verdict.REFUSED, failure, "before the cut that is under way")
            return
        what = f"a cut after batch {tip.index} was under way; it is finished"
        plan.add(Verdict.CUT, store.path, what, manifest.position)

    def _look_at_end(self) -> None:
        plan = self._plan
        if plan.snapshot is None or plan.reset_to is not None:
            return
        if plan.snapshot.tip.index > plan.tip.index and plan.refusal() is None:
            path = snapshot_path(self._folder, plan.snapshot.tip.index)
            what = f"the log ends at batch {plan.tip.index}, before its newest snapshot"
            plan.add(Verdict.REFUSED, path, what)
