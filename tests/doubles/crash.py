"""Which crash states of a disk are worth opening.

`SimDisk.unsynced` lists what a power cut may lose; a *plan* gives each of these changes its fate.
The systematic plans find what a single lost change breaks, the random ones what several together
do (Pillai et al., "All File Systems Are Not Created Equal", OSDI 2014).
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from tests.doubles.inode import PAGE_BYTES, Fate, Kind, Operation, Torn, written_pages

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


def blocks(changes: Sequence[Operation]) -> Iterator[Plan]:
    """Each block of each file is lost, to all unsynced writes that touch it, or cannot be read any
    more; and of each write of several blocks, each is lost alone and each alone survives. All else
    survives."""
    touched: dict[tuple[int, int], list[int]] = {}
    for number, change in enumerate(changes):
        if change.kind is not Kind.WRITE or not change.data:
            continue
        own = written_pages(change)
        for block in own:
            touched.setdefault((change.inode, block), []).append(number)
        for block in own if len(own) > 1 else ():
            for what, fate in (
                ("without", _without(change, block)),
                ("of", Torn((_range(block),))),
            ):
                label = f"{_name(change)}, {what} block {block}"
                yield Plan(label, _one(len(changes), number, True, fate))
    for (_, block), numbers in touched.items():
        fates: list[Fate] = [True] * len(changes)
        for number in numbers:
            fates[number] = _without(changes[number], block)
        name = changes[numbers[0]].path.name
        yield Plan(f"block {block} of {name} lost", fates)
        fates = list(fates)
        fates[numbers[-1]] = _without(changes[numbers[-1]], block)._replace(unreadable=(block,))
        yield Plan(f"block {block} of {name} unreadable", fates)


def subset(
    changes: Sequence[Operation], chance: random.Random, unreadable_rate: float = 0.0
) -> Plan:
    """A random subset of the changes, some of its writes torn at random. A torn one leaves a block
    that cannot be read with a probability of `unreadable_rate`: it may be one that also held what
    was synced, so it is for those who expect that."""
    keep_rate = chance.choice((0.1, 0.5, 0.9))
    tear_rate = chance.choice((0.0, 0.3))
    fates: list[Fate] = []
    for change in changes:
        if change.kind is Kind.WRITE and change.data and chance.random() < tear_rate:
            torn = _random_tear(change, chance)
            if unreadable_rate and chance.random() < unreadable_rate:
                torn = torn._replace(unreadable=(chance.choice(written_pages(change)),))
            fates.append(torn)
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
    unit = chance.choice((1, SECTOR_BYTES, PAGE_BYTES))
    start, stop = write.position, write.position + len(write.data)
    filler = chance.choice((None, _ZERO, chance.randbytes(16)))
    if unit == 1:
        cut = chance.randint(start, stop)
        return Torn((chance.choice(((start, cut), (cut, stop))),), filler)
    first = start - start % unit
    units = [(at, at + unit) for at in range(first, stop, unit) if chance.random() < 0.5]
    return Torn(tuple(units), filler)


def _range(block: int) -> tuple[int, int]:
    return block * PAGE_BYTES, (block + 1) * PAGE_BYTES


def _without(write: Operation, block: int) -> Torn:
    start, stop = _range(block)
    return Torn(((write.position, start), (stop, write.position + len(write.data))))
