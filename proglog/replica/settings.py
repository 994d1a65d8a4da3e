"""Numbers that decide what the replicated state becomes, and so are part of it.

A *level* names what all servers of a log can compute: which commands there are, and which numbers
hold. A log begins at level 1. Once every server says that it can do more, the leader raises it by a
committed command that brings the new numbers (`upgrade`), so that all go by them from the same
batch on. Until then nothing is appended that belongs to a later level, and the way back to the
older version is open.
"""

from __future__ import annotations

import json
from typing import NamedTuple

from proglog import limits
from proglog.errors import CorruptionError, UnknownFormat

LEVEL = 1
"""The latest that this version can compute. Whoever adds a command or a section, or wants other
numbers, makes another one."""


class Settings(NamedTuple):
    """A log begins with those of `limits`, which therefore never change: two versions that began
    with numbers of their own would forget different producers."""

    producers_max: int
    """Idempotent producers known at a time; beyond it the one that is idle longest is forgotten."""
    producer_window_batches: int
    """Batches of each that a retry may repeat."""
    level: int = 1
    since: int = 0
    """The batch by which they came to hold."""

    @classmethod
    def first(cls) -> Settings:
        """Those that a log begins with."""
        return cls(limits.producers_max, limits.producer_window_batches)

    @classmethod
    def of(cls, level: int) -> Settings:
        """Those of a level, which never change either."""
        assert 1 <= level <= LEVEL
        return cls.first()._replace(level=level)

    def encode(self) -> bytes:
        """Canonical JSON. Those of level 1 do not say so."""
        members = self._asdict()
        if self.level == 1:
            del members["level"], members["since"]
        return json.dumps(members, separators=(",", ":"), sort_keys=True).encode()

    @classmethod
    def decode(cls, data: bytes, source: object, level_max: int = LEVEL) -> Settings:
        """The inverse of `encode`. Raises UnknownFormat: what this version does not know it cannot
        go by; and CorruptionError."""
        try:
            members = json.loads(data)
            level = members.get("level", 1)
            names = set(members)
        except (ValueError, AttributeError, TypeError):
            raise CorruptionError(f"{source} has malformed settings", file=source) from None
        if names != set(cls._fields[: 2 if level == 1 else None]) or not level <= level_max:
            raise UnknownFormat(
                f"{source} has the settings {', '.join(sorted(names))} of level {level}, of which "
                "this version of Proglog does not know all. Nothing was changed; use the version "
                "that wrote it, or a newer one",
                file=source,
            )
        if not all(type(number) is int and number >= 0 for number in members.values()):
            raise CorruptionError(f"{source} has malformed settings", file=source)
        return cls(**members)
