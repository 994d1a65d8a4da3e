"""Where a backup is: names with bytes, in a directory or in an object store."""

from __future__ import annotations

import asyncio
import posixpath
from pathlib import Path
from typing import Any

import fsspec
from fsspec.implementations.local import LocalFileSystem

from proglog.errors import ConfigurationError
from proglog.ports import RealFiles, write_whole


class Place:
    """All methods raise OSError: where a store answers so, FileNotFoundError for what is not there.

    A name gets its bytes as a whole or not at all.
    """

    def __init__(self, address: str) -> None:
        """A path, or an address that fsspec knows, as s3://bucket/folder. Raises
        ConfigurationError."""
        try:
            files, path = fsspec.url_to_fs(address)
        except (ImportError, ValueError) as error:
            raise ConfigurationError(f"{address}: {error}", setting="DEST") from None
        self._files: Any = files
        self._path = str(path)
        self._is_local = isinstance(files, LocalFileSystem)

    def __str__(self) -> str:
        return self._path

    def _at(self, name: str) -> str:
        return posixpath.join(self._path, name)

    async def read(self, name: str) -> bytes:
        return bytes(await asyncio.to_thread(self._files.cat_file, self._at(name)))

    async def write(self, name: str, data: bytes) -> None:
        await asyncio.to_thread(self._write, name, data)

    def _write(self, name: str, data: bytes) -> None:
        if not self._is_local:
            self._files.pipe_file(self._at(name), data)
            return
        path = Path(self._at(name))
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(RealFiles(), path, data)
