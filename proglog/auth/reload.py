"""A value that is made of files, and made anew when they change; while the new ones are not whole
or not good, the old value stays.

Files are polled. No inotify: Kubernetes changes a Secret by renaming the link `..data`, which
watches on files miss, and network file systems notify nobody. The directories are resolved once for
all files of a set, for those behind `..data` are replaced together; what vanishes meanwhile is read
again. Whoever writes certificate and key one after the other is not caught half way: what changed
must be the same in two polls before it is judged.
"""

from __future__ import annotations

import asyncio
import enum
import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Generic, TypeVar

from proglog import limits
from proglog.errors import ConfigurationError, reason_of

T = TypeVar("T")

_TRIES = 3
_KUBERNETES_LINK = "..data"


class Outcome(enum.Enum):
    """Of a poll."""

    UNCHANGED = "unchanged"
    REPLACED = "replaced"
    REFUSED = "refused"


class Watched(Generic[T]):
    """See the module. `load` it before anything else."""

    value: T

    def __init__(
        self, what: str, files: Mapping[str, Path], build: Callable[[Mapping[str, bytes]], T]
    ) -> None:
        """`files` by the names of their settings. `build` makes the value of what they hold, in a
        thread; it raises ConfigurationError."""
        self.what = what
        self.problem = ""
        """Why what the files hold now is not in force; empty if it is."""
        self.version = 0
        """Grows with each value."""
        self._files = dict(files)
        self._build = build
        self._digest = b""
        """Of what the value is made of."""
        self._seen = b""
        """Of what the last poll found."""
        self._judged = b""
        """Of what was refused last."""

    async def load(self) -> None:
        """The first value. Raises ConfigurationError."""
        contents = await read_files(self._files)
        self._replace(await asyncio.to_thread(self._build, contents), _digest_of(contents))

    async def poll(self, *, at_once: bool = False) -> Outcome:
        """Looks at the files. Somebody who says that they are whole need not wait: `at_once`."""
        try:
            contents = await read_files(self._files)
        except ConfigurationError as error:
            return self._judge(hashlib.sha256(str(error).encode()).digest(), error, at_once)
        digest = _digest_of(contents)
        if digest == self._digest:
            self.problem, self._seen, self._judged = "", digest, b""
            return Outcome.UNCHANGED
        if not at_once and digest != self._seen:
            self._seen = digest
            return Outcome.UNCHANGED
        if digest == self._judged:
            return Outcome.UNCHANGED
        try:
            value = await asyncio.to_thread(self._build, contents)
        except ConfigurationError as error:
            return self._judge(digest, error, True)
        self._replace(value, digest)
        return Outcome.REPLACED

    def _judge(self, digest: bytes, error: ConfigurationError, at_once: bool) -> Outcome:
        """Told once for each content."""
        if digest == self._judged or (digest != self._seen and not at_once):
            self._seen = digest
            return Outcome.UNCHANGED
        self._seen = self._judged = digest
        self.problem = str(error)
        return Outcome.REFUSED

    def _replace(self, value: T, digest: bytes) -> None:
        self.value = value
        self.version += 1
        self.problem, self._digest, self._seen, self._judged = "", digest, digest, b""


def _digest_of(contents: Mapping[str, bytes]) -> bytes:
    digest = hashlib.sha256()
    for name, content in contents.items():
        digest.update(f"{name}:{len(content)}:".encode() + content)
    return digest.digest()


async def read_files(files: Mapping[str, Path]) -> dict[str, bytes]:
    """What some files hold, all of the same moment where a directory is replaced as a whole. Raises
    ConfigurationError."""
    for left in reversed(range(_TRIES)):
        try:
            return await _read(files)
        except _Vanished as error:
            if not left:
                raise error.args[0] from None
    raise AssertionError("the last try returns or raises")


class _Vanished(Exception):
    pass


async def _read(files: Mapping[str, Path]) -> dict[str, bytes]:
    folders = await asyncio.to_thread(_resolve, {path.parent for path in files.values()})
    return {name: await _read_one(name, path, folders) for name, path in files.items()}


def _resolve(folders: set[Path]) -> dict[Path, Path]:
    """Where the files of each folder are now."""
    links = {folder: folder / _KUBERNETES_LINK for folder in folders}
    return {
        folder: link.resolve() if link.is_dir() else folder.resolve()
        for folder, link in links.items()
    }


async def _read_one(name: str, path: Path, folders: Mapping[Path, Path]) -> bytes:
    try:
        content = await asyncio.to_thread(_read_bytes, folders[path.parent] / path.name)
    except OSError as error:
        told = ConfigurationError(f"{name} {path}: {reason_of(error)}", setting=name)
        raise (_Vanished(told) if isinstance(error, FileNotFoundError) else told) from None
    if len(content) > limits.secret_file_bytes_max:
        raise ConfigurationError(
            f"{name} {path} is larger than {limits.secret_file_bytes_max} bytes", setting=name
        )
    return content


def _read_bytes(path: Path) -> bytes:
    # On a thread, and whole: cancelled between opening and closing, aiofiles would leak the file.
    with path.open("rb") as file:
        return file.read(limits.secret_file_bytes_max + 1)
