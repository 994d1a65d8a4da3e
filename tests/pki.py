"""Authorities and certificates for tests, as files."""

from __future__ import annotations

import ssl
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from proglog.auth import tls
from proglog.auth.certificates import Pair, Use, issue, make_authority
from proglog.auth.tls import Contexts, Material

LOOPBACK = ("127.0.0.1", "localhost", "::1")


def now() -> datetime:
    return datetime.now(UTC)


@dataclass(frozen=True)
class Files:
    """A certificate, its key, and whom its owner trusts."""

    cert: Path
    key: Path
    ca: Path

    @property
    def material(self) -> Material:
        return Material(
            certificate=self.cert.read_bytes(),
            key=self.key.read_bytes(),
            authority=self.ca.read_bytes(),
        )

    def context(self, *alpn: str) -> ssl.SSLContext:
        """Of a client that shows this certificate."""
        context = tls.client(self.ca.read_bytes(), self.cert.read_bytes(), self.key.read_bytes())
        context.set_alpn_protocols(list(alpn))
        return context


class Authority:
    """One that signs what it is asked to."""

    def __init__(self, folder: Path, name: str = "ca") -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self.name = name
        self.pair = make_authority(name, 10, now())
        self.ca = folder / f"{name}.pem"
        self.ca.write_bytes(self.pair.certificate)

    def issue(
        self,
        use: Use,
        name: str,
        names: Sequence[str] = (),
        *,
        begins_in: timedelta = timedelta(),
        days: int = 5,
        trusts: Authority | None = None,
    ) -> Files:
        made = issue(self.pair, use, name, names, days, now() + begins_in)
        return self.write(f"{self.name}-{name}-{use.value}", made, trusts)

    def write(self, stem: str, pair: Pair, trusts: Authority | None = None) -> Files:
        files = Files(
            self._folder / f"{stem}.pem",
            self._folder / f"{stem}-key.pem",
            (trusts or self).ca,
        )
        files.cert.write_bytes(pair.certificate)
        files.key.write_bytes(pair.key)
        return files

    def server(self, name: str = "node") -> Files:
        return self.issue(Use.SERVER, name, LOOPBACK)

    def peer(self, name: str = "n0") -> Files:
        return self.issue(Use.PEER, name, (f"proglog:peer:{name}", *LOOPBACK))

    def client(self, name: str = "root", *, trusts: Authority | None = None) -> Files:
        return self.issue(Use.CLIENT, name, trusts=trusts)


def contexts_of(server: Files, peer: Files) -> Contexts:
    return tls.contexts(
        server.material, peer.material, min_version=ssl.TLSVersion.TLSv1_3, now=now()
    )
