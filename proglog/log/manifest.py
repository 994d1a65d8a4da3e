"""The manifest: where the log begins, and the one change under way that the next start finishes.

Everything that deletes goes through it: one durable record first, then the files, at leisure. So
whatever a crash leaves of the deleting, the record says what is valid.
"""

from __future__ import annotations

import enum
import struct
from typing import NamedTuple

from proglog.log.format import ORIGIN, Tip

_MANIFEST = struct.Struct("<QQQQQQII QQQQIQ")


class Change(enum.IntEnum):
    """What is under way."""

    NONE = 0
    CUT = 1
    """Everything after batch `tip` is void, `tip` ends at `position`; files go."""
    CUT_ASIDE = 2
    """The same by `repair`: files are renamed, and kept."""
    RESET = 3
    """Everything is void but the snapshot at `tip`, after which the log begins anew."""
    GIVE_UP = 4
    """By `repair`: batches of the segment after `tip` are being replaced by gaps; its index is to
    be built anew."""
    INSTALL = 5
    """The snapshot at `tip` is on its way: once it is whole, a RESET; until then nothing is void.
    Without this a start would take it for a sign that the log has lost its end."""


class Manifest(NamedTuple):
    """`base` is the tip before the oldest batch: segments and snapshots before it are void."""

    group: int
    generation: int = 0
    base: Tip = ORIGIN
    change: Change = Change.NONE
    tip: Tip = ORIGIN
    position: int = 0

    @property
    def is_cutting(self) -> bool:
        """Whether what follows `tip` is void."""
        return self.change in {Change.CUT, Change.CUT_ASIDE}

    def end(self) -> Manifest:
        """With the change done."""
        return self._replace(change=Change.NONE, tip=ORIGIN, position=0)

    def pack(self) -> bytes:
        return _MANIFEST.pack(
            self.group, self.generation, *self.base, self.change, *self.tip, self.position
        )

    @classmethod
    def parse(cls, payload: bytes) -> Manifest:
        """The inverse of `pack`; raises ValueError or struct.error for anything else."""
        group, generation, *numbers = _MANIFEST.unpack(payload)
        base, change, tip = Tip._make(numbers[:5]), Change(numbers[5]), Tip._make(numbers[6:11])
        return cls(group, generation, base, change, tip, numbers[11])
