"""What a server remembers of the others over its own restarts: the file `floors` beside its log.

Written now and then, and at a stop. Whoever has lost it, or has an old one, refuses fewer of those
that should be refused, and nobody wrongly: so it is read leniently, and a disk without room for it
is no fault.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple

from proglog.errors import UnknownFormat
from proglog.log.envelope import FLOORS, seal, unseal
from proglog.log.reading import Damage, Reading
from proglog.peers.hello import Life
from proglog.ports import Files, write_whole

FILE_NAME = "floors"
_BYTES_MAX = 64 * 1024


class Floor(NamedTuple):
    """What a server is known to have had on its disk."""

    sequence: int
    """How often its hard state was saved,"""
    term: int
    """and the term in it."""
    index: int  # type: ignore[assignment]  # hides tuple.index
    """A committed batch that was durable there."""


class Memory(NamedTuple):
    """Both by uuid."""

    floors: dict[str, Floor]
    lives: dict[str, Life]


def save(files: Files, folder: Path, memory: Memory) -> None:
    """Durably, in place of what was there. Raises OSError."""
    document = {"floors": memory.floors, "lives": memory.lives}
    payload = json.dumps(document, separators=(",", ":"), sort_keys=True).encode("ascii")
    write_whole(files, folder / FILE_NAME, seal(FLOORS, payload))


def load(files: Files, folder: Path) -> Memory:
    """What was saved last; nothing where that cannot be read. Raises OSError."""
    path = folder / FILE_NAME
    nothing = Memory({}, {})
    if not files.exists(path):
        return nothing
    opened = Reading(files, writable=False).open(path)
    if isinstance(opened, Damage):
        return nothing
    try:
        data = opened.read_upto(_BYTES_MAX, 0)
        payload = None if isinstance(data, Damage) else unseal(data, FLOORS, path)
        document = json.loads(payload) if payload is not None else {}
        return Memory(
            {uuid: Floor(*map(int, floor)) for uuid, floor in document["floors"].items()},
            {uuid: Life(*life) for uuid, life in document["lives"].items()},
        )
    except (UnknownFormat, ValueError, TypeError, LookupError):
        return nothing
    finally:
        opened.close()
