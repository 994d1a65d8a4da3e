"""The one way in which anything on disk is read before it is relied on.

**The rule.** What a start relies on was read from the disk, not from the page cache: each file is
synced, and then wholly forgotten by the cache, before its first byte is read. After kill -9 what
the process wrote may be in the cache only; after a failed fdatasync the kernel shows as clean what
it never wrote (Rebello et al., "Can Applications Recover from fsync Failures?", ATC 2020).
*Wholly*, since the kernel forgets only folios that are covered, and a folio may be larger than a
page.

**One kind of damage.** A read that fails, is short, or fails its check gives the same `Damage`.
What that means is for `analysis` to say: what is redundant is rewritten, what is needed refuses.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from proglog.errors import reason_of
from proglog.ports import NO_DESCRIPTORS, File, Files

SYNCS_MAX = 2
"""A sync that fails reports what was lost before; the one after it speaks of now."""


class Damage(NamedTuple):
    """Bytes that are not what was written, or not there."""

    path: Path
    position: int
    why: str

    def __str__(self) -> str:
        return f"{self.path} at {self.position}: {self.why}"


def read_exactly(file: File, path: Path, size: int, position: int) -> bytes | Damage:
    """`size` bytes, or why they cannot be had. May wait for the disk."""
    try:
        data = file.pread(size, position)
    except OSError as error:
        return Damage(path, position, f"cannot be read: {reason_of(error)}")
    if len(data) < size:
        return Damage(path, position + len(data), "the file ends here")
    return data


class CheckedFile:
    """An open file whose reads show what the disk has. Close it."""

    __slots__ = ("file", "path")

    def __init__(self, file: File, path: Path) -> None:
        self.file = file
        self.path = path

    def read(self, size: int, position: int) -> bytes | Damage:
        return read_exactly(self.file, self.path, size, position)

    def read_upto(self, size: int, position: int) -> bytes | Damage:
        """As `read`, but fewer bytes at the end of the file."""
        return self.read(min(size, max(self.file.size() - position, 0)), position)

    def close(self) -> None:
        self.file.close()


class Reading:
    """Opens files by the rule. `writable` is for who changes them afterwards.

    Attributes:
        unforgotten: the first file of which the cache kept something, so that the rule could not be
            had: on tmpfs, and on file systems that do not let go.
    """

    def __init__(self, files: Files, *, writable: bool) -> None:
        self._files = files
        self._writable = writable
        self.unforgotten: Path | None = None

    def open(self, path: Path) -> CheckedFile | Damage:
        """Raises OSError only where no descriptor is to be had."""
        try:
            file = self._files.open(path, writable=self._writable)
        except FileNotFoundError:
            return Damage(path, 0, "the file is missing")
        except OSError as error:
            if error.errno in NO_DESCRIPTORS:
                raise
            return Damage(path, 0, f"cannot be opened: {reason_of(error)}")
        failure = self._forget(file)
        if failure is not None:
            file.close()
            return Damage(path, 0, f"cannot be synced: {reason_of(failure)}")
        forgotten = file.forget_cache()
        if not forgotten and self.unforgotten is None:
            self.unforgotten = path
        return CheckedFile(file, path)

    def read_whole(self, path: Path, size_max: int) -> bytes | Damage:
        """A whole file."""
        opened = self.open(path)
        if isinstance(opened, Damage):
            return opened
        try:
            size = opened.file.size()
            if size > size_max:
                return Damage(path, size_max, f"the file has {size} bytes, more than any such file")
            return opened.read(size, 0)
        finally:
            opened.close()

    @staticmethod
    def _forget(file: File) -> OSError | None:
        """Why the file cannot be synced; None once it is, and the cache was told to forget it."""
        failure: OSError | None = None
        for _ in range(SYNCS_MAX):
            try:
                file.fdatasync()
            except OSError as error:
                failure = error
            else:
                return None
        return failure
