"""Which crash states of a disk are worth opening.

`SimDisk.unsynced` lists what a power cut may lose; a *plan* gives each of these changes its fate.
The systematic plans find what a single lost change breaks, the random ones what several together
do (Pillai et al., "All File Systems Are Not Created Equal", OSDI 2014).
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from proglog.simulation.disk import Fate, Kind, Operation, Torn

SECTOR_BYTES = 512
_ZERO = b"\0"


class Plan(NamedTuple):
    """The fates of all unsynced changes, and their description."""

    label: str
    fates: list[Fate]


def extremes(changes: Sequence[Operation]) -> Iterator[Plan]:
    """Nothing unsynced survives, and all of it does."""
    yield Plan("nothing", [False] * len(changes))
    if changes:
        yield Plan("everything", [True] * len(changes))


def singles(changes: Sequence[Operation]) -> Iterator[Plan]:
    """Each change alone is lost, and each alone survives; of one change the extremes say it."""
    if len(changes) < 2:
        return
    for number, change in enumerate(changes):
        yield Plan(f"all but {_name(change)}", _one(len(changes), number, True, False))
        yield Plan(f"only {_name(change)}", _one(len(changes), number, False, True))


def tears(
    changes: Sequence[Operation], unit: int, chance: random.Random | None = None, cuts_max: int = 0
) -> Iterator[Plan]:
    """Each write is cut at each multiple of `unit` bytes of the file within it: its front survives,
    its back does, or its front before garbage; the other changes survive.

    With `chance`, each write is cut at `cuts_max` random ones of these places at most.
    """
    for number, change in enumerate(changes):
        if change.kind is not Kind.WRITE:
            continue
        start, stop = change.position, change.position + len(change.data)
        cuts: Sequence[int] = range(start - start % unit + unit, stop, unit)
        if chance is not None:
            cuts = chance.sample(cuts, min(cuts_max, len(cuts)))
        for cut in cuts:
            front, back = Torn(((start, cut),)), Torn(((cut, stop),))
            for fate in (front, back, front._replace(filler=b"\xa5")):
                label = f"{_name(change)} torn: {fate}"
                yield Plan(label, _one(len(changes), number, True, fate))


def subset(changes: Sequence[Operation], chance: random.Random) -> Plan:
    """A random subset of the changes, some of its writes torn at random."""
    keep_rate = chance.choice((0.1, 0.5, 0.9))
    tear_rate = chance.choice((0.0, 0.3))
    fates: list[Fate] = []
    for change in changes:
        if change.kind is Kind.WRITE and change.data and chance.random() < tear_rate:
            fates.append(_random_tear(change, chance))
        else:
            fates.append(chance.random() < keep_rate)
    return Plan("random subset", fates)


def _one(count: int, number: int, others: Fate, fate: Fate) -> list[Fate]:
    fates = [others] * count
    fates[number] = fate
    return fates


def _name(change: Operation) -> str:
    target = f" to {change.target.name}" if change.target is not None else ""
    place = f" at {change.position}" if change.position else ""
    size = f" of {len(change.data)}" if change.data else ""
    return f"{change.kind.value} {change.path.name}{target}{size}{place}"


def _random_tear(write: Operation, chance: random.Random) -> Torn:
    unit = chance.choice((1, SECTOR_BYTES))
    start, stop = write.position, write.position + len(write.data)
    filler = chance.choice((None, _ZERO, chance.randbytes(16)))
    if unit == 1:
        cut = chance.randint(start, stop)
        return Torn((chance.choice(((start, cut), (cut, stop))),), filler)
    first = start - start % unit
    sectors = [(at, at + unit) for at in range(first, stop, unit) if chance.random() < 0.5]
    return Torn(tuple(sectors), filler)
