"""What clients saw, and whether one log could have told them so: exact, and linear in its length.

A log that gives out offsets is easier to check than a register: the offsets *are* the order. So
there must be times t0 < t1 < ..., one for the moment at which each offset came into being, with

    low(k) = the latest of: its append's invocation, the invocation of every read that found that
             there was no offset k yet
    up(k)  = the earliest of: its append's completion, the completion of every read that returned it

and t(k) within. Sweep t = max(t, low(k)) upwards: the history is wrong if ever t >= up(k). Appends
of unknown outcome have no completion; those never observed may fill holes, earliest invoked first.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, field
from itertools import pairwise

from tests.sim.oracle import Violation, require


@dataclass(slots=True)
class Append:
    """One record that a client asked to be appended."""

    value: bytes
    producer: int
    sequence: int
    invoked: float
    completed: float = math.inf
    offset: int | None = None
    refused: bool = False
    """Certainly not in the log."""


@dataclass(slots=True)
class History:
    """Of all clients of one world."""

    appends: dict[bytes, Append] = field(default_factory=dict)
    values: dict[int, bytes] = field(default_factory=dict)
    """What was read, or acknowledged, at each offset."""
    low: dict[int, float] = field(default_factory=dict)
    up: dict[int, float] = field(default_factory=dict)
    counts: Counter[str] = field(default_factory=Counter)

    # --- while it happens ------------------------------------------------------------------------

    def invoke(self, value: bytes, producer: int, sequence: int, now: float) -> Append:
        append = self.appends[value] = Append(value, producer, sequence, now)
        self.counts["appends"] += 1
        return append

    def acknowledge(self, append: Append, offset: int, now: float) -> None:
        require(
            append.offset in {None, offset},
            "no duplicates",
            f"{append.value!r} was acknowledged at {append.offset} and at {offset}",
        )
        self.counts["acknowledged"] += 1
        append.offset, append.completed = offset, min(now, append.completed)
        self._observe(offset, append.value)
        self.up[offset] = min(self.up.get(offset, math.inf), now)

    def refuse(self, append: Append) -> None:
        append.refused = True
        self.counts["refused"] += 1

    def read(self, offset: int, values: list[bytes], now: float) -> None:
        """A read returned these values from `offset` on."""
        self.counts["reads"] += len(values)
        for number, value in enumerate(values, offset):
            self._observe(number, value)
            if now < self.up.get(number, math.inf):
                self.up[number] = now

    def found_end(self, offset: int, invoked: float) -> None:
        """A linearizable read, asked for at `invoked`, found that `offset` was the next."""
        self.counts["ends"] += 1
        self.low[offset] = max(self.low.get(offset, -math.inf), invoked)

    def _observe(self, offset: int, value: bytes) -> None:
        before = self.values.setdefault(offset, value)
        require(
            before == value,
            "one value an offset",
            f"offset {offset} holds {value!r}, and before it held {before!r}",
        )

    # --- in the end ------------------------------------------------------------------------------

    def check(self) -> None:
        """Raises Violation if no log can have told all this."""
        self._check_values()
        self._fill_holes()
        t = -math.inf
        for offset in range(max(self.values, default=-1) + 1):
            append = self.appends[self.values[offset]]
            t = max(t, append.invoked, self.low.get(offset, -math.inf))
            up = self.up.get(offset, math.inf)
            require(
                t < up,
                "real-time order",
                f"offset {offset} ({append.value!r}) existed by {up:.6f}, but something before it, "
                f"or a read that did not see it, was only asked for at {t:.6f}",
            )
        self.counts["checked"] += len(self.values)

    def _check_values(self) -> None:
        places: dict[bytes, int] = {}
        for offset, value in self.values.items():
            append = self.appends.get(value)
            require(append is not None, "no phantom", f"{value!r} at {offset} was never submitted")
            assert append is not None
            require(
                not append.refused, "no phantom", f"{value!r} at {offset} was definitely refused"
            )
            require(
                places.setdefault(value, offset) == offset,
                "no duplicates",
                f"{value!r} stands at {places[value]} and at {offset}",
            )
        self._check_sequences(places)

    def _check_sequences(self, places: dict[bytes, int]) -> None:
        """One producer's records stand in the order in which it numbered them."""
        found = sorted(
            (self.appends[value].producer, self.appends[value].sequence, offset)
            for value, offset in places.items()
            if self.appends[value].producer
        )
        for (a, sequence_a, offset_a), (b, sequence_b, offset_b) in pairwise(found):
            if a == b and (sequence_b == sequence_a or offset_b <= offset_a):
                raise Violation(
                    "producer order",
                    f"producer {a}: {sequence_a} at {offset_a}, {sequence_b} at {offset_b}",
                )

    def _fill_holes(self) -> None:
        seen = set(self.values.values())
        spare = iter(
            sorted(
                (a for a in self.appends.values() if a.value not in seen and not a.refused),
                key=lambda append: append.invoked,
            )
        )
        for offset in range(max(self.values, default=-1) + 1):
            if offset not in self.values:
                filler = next(spare, None)
                if filler is None:
                    raise Violation("no gaps", f"nothing that was submitted can be at {offset}")
                self.values[offset] = filler.value
