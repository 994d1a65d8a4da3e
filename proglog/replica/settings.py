"""Numbers that decide what the replicated state becomes, and so are part of it."""

from __future__ import annotations

import json
from typing import NamedTuple

from proglog import limits
from proglog.errors import UnknownFormat


class Settings(NamedTuple):
    """A log begins with those of `limits`, which therefore never change: two versions that went by
    numbers of their own would forget different producers. Others will come by a command."""

    producers_max: int
    """Idempotent producers known at a time; beyond it the one that is idle longest is forgotten."""
    producer_window_batches: int
    """Batches of each that a retry may repeat."""

    @classmethod
    def first(cls) -> Settings:
        """Those that a log begins with."""
        return cls(limits.producers_max, limits.producer_window_batches)

    def encode(self) -> bytes:
        """Canonical JSON."""
        return json.dumps(self._asdict(), separators=(",", ":"), sort_keys=True).encode()

    @classmethod
    def decode(cls, data: bytes, source: object) -> Settings:
        """The inverse of `encode`. Raises UnknownFormat: what this version does not know it cannot
        go by."""
        members = json.loads(data)
        if set(members) != set(cls._fields):
            raise UnknownFormat(
                f"the state in {source} has the settings {', '.join(sorted(members))}, of which "
                "this version of Proglog does not know all. Nothing was changed; use the version "
                "that wrote it, or a newer one",
                file=source,
            )
        return cls(**members)
