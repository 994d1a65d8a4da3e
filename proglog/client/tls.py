"""Certificates of a client, read from files and read again when they change."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable, Mapping
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING

from proglog import limits
from proglog.config import Address
from proglog.errors import ConfigurationError
from proglog.net.dialling import Encrypted, P, dial

if TYPE_CHECKING:
    from proglog.auth.reload import Watched


class Tls:
    """TLS for `proglog.connect`: whom to trust, and who we are.

    Args:
        ca: file of the certificate authorities that sign nodes' certificates; the system's unless
            given.
        cert: file of our certificate, and of what leads from it to an authority that nodes trust.
        key: file of its key.

    The files are read before a connection is made, at most every two seconds; new ones are used for
    new connections. What is not whole or not good is not used: the old stays.
    """

    scheme = "https"

    def __init__(
        self,
        *,
        ca: str | PathLike[str] | None = None,
        cert: str | PathLike[str] | None = None,
        key: str | PathLike[str] | None = None,
    ) -> None:
        """Raises ConfigurationError where a certificate has no key, or a key no certificate."""
        if (cert is None) != (key is None):
            raise ConfigurationError("a client's certificate needs its key: give both files")
        given = {"tls-ca-file": ca, "tls-cert-file": cert, "tls-key-file": key}
        self._files = {name: Path(path) for name, path in given.items() if path is not None}
        self._watched: Watched[ssl.SSLContext] | None = None
        self._checked_at = 0.0
        self._lock = asyncio.Lock()

    @property
    def version(self) -> int:
        """Grows when the files have changed."""
        return 0 if self._watched is None else self._watched.version

    async def refresh(self) -> None:
        """Reads the files if that was not done just now. Raises ConfigurationError the first
        time."""
        now = asyncio.get_running_loop().time()
        if self._watched is not None and now - self._checked_at < limits.reload_seconds:
            return
        async with self._lock:
            self._checked_at = now
            if self._watched is not None:
                await self._watched.poll(at_once=True)
                return
            from proglog.auth.reload import Watched

            watched = Watched("tls", self._files, _context)
            await watched.load()
            self._watched = watched

    async def http_context(self) -> ssl.SSLContext:
        """For what speaks HTTP/1.1. Raises ConfigurationError."""
        from proglog.auth.reload import read_files

        context = await asyncio.to_thread(_context, await read_files(self._files))
        context.set_alpn_protocols(["http/1.1"])
        return context

    async def dial(
        self, factory: Callable[[], P], address: Address
    ) -> tuple[asyncio.BaseTransport, P]:
        """Raises OSError, ConfigurationError."""
        await self.refresh()
        assert self._watched is not None
        return await dial(factory, address, self._watched.value)


def _context(contents: Mapping[str, bytes]) -> ssl.SSLContext:
    from proglog.auth.tls import client

    ca, cert, key = (contents.get(f"tls-{name}-file", b"") for name in ("ca", "cert", "key"))
    return client(ca, cert, key)


def way_of(tls: Tls | ssl.SSLContext | None) -> Tls | Encrypted | None:
    """How to dial, of what a user gives; None is plaintext."""
    return Encrypted(tls) if isinstance(tls, ssl.SSLContext) else tls
