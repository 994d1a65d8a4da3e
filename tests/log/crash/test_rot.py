"""Every flipped bit and every truncation of a small log's files, and the loss of a whole one.

Each must be harmless, repaired from what is redundant, or refused with file and position: at the
start or, in what a start does not read, when it is asked for. Never is a wrong record served.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from proglog.errors import CorruptionError, ProglogError, RangeCorrupt
from proglog.log.names import store_name
from proglog.raft.messages import HardState
from tests.doubles.disk import SimDisk
from tests.doubles.loop import run
from tests.log.crash import node
from tests.log.crash.budget import SCALE
from tests.log.crash.history import Outcome

FAR_FROM_DATA_STRIDE = 97
"""Of the zeros that fill a file up, only some bytes are tried by default."""


class Small:
    """A log whose first segment was dropped: three segments, two snapshots and a hard state.

    Attributes:
        found: what is in it.
        kept: the last batch that must survive any one fault.
        active: the newest store.
    """

    def __init__(self) -> None:
        self.disk = SimDisk()
        self.found: Outcome
        self.kept = 0
        self.active = node.FOLDER

    async def write(self, *, killed: bool) -> Small:
        process = node.open_log(self.disk)
        events = node.Events()
        log = process.start_log(events)
        for number in range(9):
            await log.make_room(2500)
            header, parts = node.build_batch(log.tip, [b"record %d" % number], timestamp=number)
            log.append(header, parts)
            while events.durable_index < header.index:
                await asyncio.sleep(0)
            if number < 8:
                await asyncio.sleep(0.1)
                self.kept = header.index
        for tip in log.sealed_tips()[:2]:
            state = node.snapshot_state(tip.index)
            await log.write_snapshot(tip, lambda state=state: state)  # type: ignore[misc]
        assert log.drop_prefix(log.sealed_tips()[0].index + 1) == 1
        await log.run_job(lambda: None)
        while len(log._garbage) or log._garbage._task is not None:
            await asyncio.sleep(0.01)
        process.opened.hard_state.save(HardState(7, "00000000-0000-4000-8000-000000000007"))
        if killed:
            process.files.kill()
        else:
            self.kept = log.tip.index
            await log.close()
        self.found = node.outcome(node.open_log(self.disk.copy()))
        assert len(log.segment_facts()) == 3
        self.active = node.FOLDER / store_name(log.sealed_tips()[-1].index + 1)
        return self


async def judge(disk: SimDisk, small: Small) -> str:
    """What a start on damaged files comes to; an AssertionError if that must not be."""
    try:
        process = node.open_log(disk)
    except CorruptionError as error:
        assert error.facts["file"].startswith("/data/")
        assert error.number("position") is not None
        return "refused"
    opened, found = process.opened, small.found
    assert opened.hard_state.hard_state == found.hard_state
    assert frozenset(opened.recovered.snapshot_indexes) <= found.snapshots
    log = process.start_log(node.Events())
    assert log.before.index == found.base
    assert small.kept <= log.tip.index <= found.last, f"the log ends at {log.tip.index}"
    repaired = "repaired" if opened.recovered.notes else "harmless"
    served = repaired
    for index in range(log.first_index, log.tip.index + 1):
        try:
            read = await log.read(index, index, 1)
        except RangeCorrupt as error:
            assert error.facts["file"].startswith("/data/")
            assert error.number("position") is not None
            assert error.number("index") == index
            served = "not served"
        else:
            assert read.headers[0].header_crc == found.crcs[index - found.base - 1]
            assert read.data == node.written[read.headers[0].header_crc]
    if repaired == "repaired":
        again = node.open_log(disk.crash([False] * len(disk.unsynced()))).opened.recovered
        assert (again.tip, again.notes) == (log.tip, []), "a repair is durable, and done once"
    return served


async def try_all(small: Small, damage: Iterator[tuple[str, Callable[[SimDisk], None]]]) -> None:
    outcomes: Counter[str] = Counter()
    failures: list[str] = []
    for label, act in damage:
        disk = small.disk.copy()
        act(disk)
        try:
            outcomes[await judge(disk, small)] += 1
        except (AssertionError, ProglogError, ArithmeticError, LookupError, ValueError) as error:
            failures.append(f"{label}: {type(error).__name__}: {error}"[:300])
    print(f"{sum(outcomes.values())} faults:", dict(outcomes))
    assert not failures, f"{len(failures)}: " + "\n".join(failures[:20])


def files(small: Small) -> Iterator[tuple[Path, bytes]]:
    """Of a killed process only what differs from that of a closed one: the active store."""
    for path, data in small.disk.files().items():
        if data and not (small.kept < small.found.last and path != small.active):
            yield path, data


def interesting_bytes(data: bytes) -> Iterator[int]:
    """Those near data, and a few of the zeros that are far from it."""
    stride = 1 if SCALE > 1 else FAR_FROM_DATA_STRIDE
    for position in range(len(data)):
        near = any(data[max(position - 8, 0) : position + 9])
        if near or position % stride == 0:
            yield position


def flips(small: Small) -> Iterator[tuple[str, Callable[[SimDisk], None]]]:
    for path, data in files(small):
        for position in interesting_bytes(data):
            first = position * 8
            for bit in range(first, first + 8, 1 if SCALE > 1 else 3):
                yield (
                    f"{path.name} bit {bit % 8} of byte {position}",
                    lambda disk, path=path, bit=bit: disk.flip_bit(path, bit),
                )


def truncations(small: Small) -> Iterator[tuple[str, Callable[[SimDisk], None]]]:
    for path, data in files(small):
        for size in {*interesting_bytes(data), *interesting_bytes(data[1:])}:
            yield (
                f"{path.name} truncated to {size}",
                lambda disk, path=path, data=data, size=size: disk.put(path, data[:size]),
            )


def losses(small: Small) -> Iterator[tuple[str, Callable[[SimDisk], None]]]:
    # Of the stores only the middle one: without the first or the last the log just looks shorter.
    stores = [path for path, _ in files(small) if path.suffix == ".store" and path.stem.isdigit()]
    for path, _ in files(small):
        if path not in (stores[0], stores[-1]):
            yield f"{path.name} lost", lambda disk, path=path: disk.lose(path)


@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("damage", "killed"),
    [(flips, False), (flips, True), (truncations, False), (truncations, True), (losses, False)],
)
def test_damage(
    monkeypatch: pytest.MonkeyPatch,
    killed: bool,
    damage: Callable[[Small], Iterator[tuple[str, Callable[[SimDisk], None]]]],
) -> None:
    monkeypatch.setattr(node, "CONFIG", node.SMALL)

    async def main() -> None:
        small = await Small().write(killed=killed)
        await try_all(small, damage(small))

    run(main())
