"""Changes that take several files. The manifest says durably what is under way, so each step here
may be done any number of times: by the writer, by a start that finds it unfinished, by repair."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path

from proglog.log import format as fmt
from proglog.log import names as naming
from proglog.log.envelope import MANIFEST
from proglog.log.format import Mark, Place, SegmentHeader, Tip
from proglog.log.manifest import Change, Manifest
from proglog.log.names import ASIDE, index_name, snapshot_name, store_name
from proglog.log.segment import Segment, create_segment
from proglog.log.twin import TwinFile, TwinState
from proglog.ports import File, Files


class ManifestFile:
    """The manifest of one log, open for changes. All methods may wait for the disk."""

    def __init__(self, files: Files, folder: Path, manifest: Manifest, state: TwinState) -> None:
        """Opens what was read as `state`; makes it anew where nothing of it is whole."""
        self.manifest = manifest
        path = folder / naming.MANIFEST
        if state.payload is None:
            self._file = TwinFile.create(files, path, MANIFEST, manifest.pack())
        else:
            self._file = TwinFile(files, path, MANIFEST, state)

    def save(self, manifest: Manifest) -> None:
        """Makes it durable. Raises OSError."""
        self._file.save(manifest.pack())
        self.manifest = manifest

    def begin(self, change: Change, tip: Tip, position: int = 0) -> None:
        """Makes a change durable before anything of it is done. One that was begun and could not be
        ended, for want of space, may be begun again."""
        may_follow = {Change.NONE, Change.INSTALL if change is Change.RESET else change, change}
        assert self.manifest.change in may_follow, "one change at a time"
        begun = self.manifest._replace(change=change, tip=tip, position=position)
        if self.manifest != begun:
            self.save(begun)

    def end(self) -> None:
        """Once everything that belongs to the change is durable."""
        self.save(self.manifest.end())

    def close(self) -> None:
        self._file.close()


def unlink_if_there(files: Files, path: Path) -> None:
    """Writer and `Garbage` may delete the same file at the same time."""
    with contextlib.suppress(FileNotFoundError):
        files.unlink(path)


def remove_later(files: Files, folder: Path, kept: int, later: Sequence[int]) -> None:
    """Deletes the segments `later`, by their first indexes, ascending; `kept` is active again.

    The newest segment's index is allocated and empty: just what the kept one needs now. Its own is
    sealed, perhaps mapped, and must not be written.
    """
    for first_index in reversed(later):
        unlink_if_there(files, folder / store_name(first_index))
        index_path = folder / index_name(first_index)
        if first_index == later[-1] and files.exists(index_path):
            files.rename(index_path, folder / index_name(kept))
        else:
            unlink_if_there(files, index_path)
    files.sync_directory(folder)


def keep_aside(files: Files, folder: Path, kept: int, later: Sequence[int], last: int) -> list[str]:
    """As `remove_later`, but stores, and snapshots after batch `last`, get another name; says
    which."""
    names = files.listdir(folder)
    going = [
        store_name(first_index) for first_index in naming.stores(names) if first_index in later
    ]
    going += [snapshot_name(index) for index in naming.snapshots(names) if index > last]
    for name in going:
        files.rename(folder / name, folder / (ASIDE + name))
    remove_later(files, folder, kept, later)
    return [ASIDE + name for name in going]


def end_log(store: File, position: int) -> None:
    """Writes zeros, which end the log, up to the end of a block: of one that cannot be read, the
    disk takes no part."""
    end = position + len(fmt.END_OF_LOG)
    upto = min(-(-end // fmt.BLOCK_BYTES) * fmt.BLOCK_BYTES, store.size())
    store.pwritev([bytes(max(end, upto) - position)], position)


def end_store(store: File, tip: Tip, position: int, *, sequence: int, commit: int) -> int:
    """Ends a store after batch `tip`, at `position`, durably; the sequence of the newest mark.

    Both marks at once, since while a change is under way nobody asks them; and both, so that no
    single lost block can bring back what was cut.
    """
    end_log(store, position)
    for _ in fmt.MARK_POSITIONS:
        sequence += 1
        mark = Mark(sequence, tip, position, min(commit, tip.index))
        store.pwritev([fmt.pack_mark(mark)], fmt.mark_position(sequence))
    store.fdatasync()
    return sequence


def replace_all(
    files: Files, folder: Path, manifest: ManifestFile, *, capacity: int, index_bytes: int
) -> Segment:
    """Does what a RESET that was begun asks for: deletes everything but its snapshot, and begins
    the log anew after that. Raises OSError, also where there is no space: then it stays begun."""
    tip = manifest.manifest.tip
    names = files.listdir(folder)
    going = [store_name(first_index) for first_index in naming.stores(names)]
    going += [index_name(first_index) for first_index in naming.indexes(names)]
    going += [snapshot_name(at) for at in naming.snapshots(names) if at != tip.index]
    for name in going:
        unlink_if_there(files, folder / name)
    files.sync_directory(folder)
    place = Place(manifest.manifest.group, manifest.manifest.generation + 1)
    header = SegmentHeader(place, tip)
    segment = create_segment(files, folder, header, capacity=capacity, index_bytes=index_bytes)
    try:
        manifest.save(manifest.manifest.end()._replace(generation=place.generation, base=tip))
    except OSError:
        segment.retire()
        raise
    return segment
