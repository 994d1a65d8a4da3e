"""Every kind of damage of every file of a log: start, verify and repair agree, and what is served
is what was written.

Of what is not data each bit is flipped, of data some; each block is lost or reads as zeros; each
file is cut short at, before and within each structure, and taken away. By default a part of it is
drawn with a seed; PROGLOG_CRASH_STATES asks for more, up to everything.
"""

from __future__ import annotations

import os
import random
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from proglog.log import format as fmt
from proglog.log.envelope import HEAD_BYTES
from proglog.log.names import store_name
from proglog.log.repair import Allow
from proglog.log.twin import PLACES
from tests.doubles.disk import SimDisk
from tests.log.crash.budget import SCALE
from tests.log.damaged import BLOCK_BYTES, Blocks, Outcome, Served, agree, start
from tests.log.damaged import FilesWithBadBlocks as Files
from tests.log.small import CONFIG, FOLDER, small
from tests.log.support import length_of

ACTIVE = store_name(9)
MARKED_BYTES = fmt.MARK_POSITIONS[0] + 96
SHARE = min(SCALE * 0.06, 1.0)
"""Of the flipped bits."""
SEED = int(os.environ.get("PROGLOG_SEED", "20"))


class Log(NamedTuple):
    """A directory before the damage, and what it serves."""

    disk: SimDisk
    written: Served


@pytest.fixture(scope="module", params=["from the first batch", "from a snapshot"])
def log(request: pytest.FixtureRequest) -> Log:
    disk = small(based=request.param == "from a snapshot")
    written = start(Files(disk.copy()), FOLDER, CONFIG)
    assert not written.unreadable
    assert written.last == 11
    return Log(disk, written)


Damage = tuple[str, Callable[[SimDisk], Blocks]]


def files(log: Log) -> Iterator[tuple[Path, bytes]]:
    """Each file that somebody may rely on."""
    for path, data in log.disk.files().items():
        if path.parent == FOLDER and data and not path.name.startswith("reserved."):
            yield path, data


def structures(log: Log, path: Path, data: bytes) -> list[range]:
    """The bytes of a file that say something, structure by structure."""
    if path.suffix == ".store":
        starts = [*fmt.HEADER_POSITIONS, *fmt.MARK_POSITIONS]
        found = [range(at, at + length_of(data[at:])) for at in starts]
        for index, (store, at) in log.written.places.items():
            if store == path:
                found += [range(at, at + fmt.HEADER_BYTES)]
                found += [range(at + fmt.HEADER_BYTES, at + len(log.written.batches[index]))]
        return found
    if path.name in {"manifest", "hard-state"}:
        return [range(at, at + length_of(data[at:])) for at in PLACES]
    head = length_of(data)
    return (
        [range(head), range(head, len(data))]
        if path.suffix != ".index" or data[:1] != b"\0"
        else []
    )


def flips(log: Log) -> Iterator[Damage]:
    chance = random.Random(SEED)
    for path, data in files(log):
        for structure in structures(log, path, data):
            for bit in range(structure.start * 8, structure.stop * 8):
                if chance.random() < SHARE:
                    yield f"{path.name}: bit {bit % 8} of byte {bit // 8}", _flip(path, bit)


def _flip(path: Path, bit: int) -> Callable[[SimDisk], Blocks]:
    def act(disk: SimDisk) -> Blocks:
        disk.flip_bit(path, bit)
        return Blocks()

    return act


def blocks(log: Log) -> Iterator[Damage]:
    for path, data in files(log):
        for block in range(-(-len(data) // BLOCK_BYTES)):
            yield f"{path.name}: block {block} cannot be read", _lose_block(path, block)
            yield f"{path.name}: block {block} is of zeros", _zero(path, block)


def _lose_block(path: Path, block: int) -> Callable[[SimDisk], Blocks]:
    return lambda _disk: Blocks.of(path, [block])


def _zero(path: Path, block: int) -> Callable[[SimDisk], Blocks]:
    def act(disk: SimDisk) -> Blocks:
        data = bytearray(disk.files()[path])
        size = len(data[block * BLOCK_BYTES : (block + 1) * BLOCK_BYTES])
        data[block * BLOCK_BYTES : block * BLOCK_BYTES + size] = bytes(size)
        disk.put(path, bytes(data))
        return Blocks()

    return act


def truncations(log: Log) -> Iterator[Damage]:
    for path, data in files(log):
        sizes = {0, 1, len(data) - 1}
        for structure in structures(log, path, data):
            middle = (structure.start + structure.stop) // 2
            sizes |= {structure.start, structure.start + HEAD_BYTES, middle}
            sizes |= {structure.stop - 1, structure.stop, structure.stop + 1}
        sizes |= set(range(0, len(data), BLOCK_BYTES))
        for size in sorted(size for size in sizes if 0 <= size < len(data)):
            yield f"{path.name}: cut to {size} bytes", _truncate(path, data[:size])
        yield f"{path.name}: missing", _lose(path)


def _truncate(path: Path, data: bytes) -> Callable[[SimDisk], Blocks]:
    def act(disk: SimDisk) -> Blocks:
        disk.put(path, data)
        return Blocks()

    return act


def _lose(path: Path) -> Callable[[SimDisk], Blocks]:
    def act(disk: SimDisk) -> Blocks:
        disk.lose(path)
        return Blocks()

    return act


def judge(log: Log, label: str, damage: Callable[[SimDisk], Blocks]) -> Outcome:
    disk = log.disk.copy()
    outcome = agree(disk, FOLDER, damage(disk), written=log.written, config=CONFIG)
    if outcome.started is not None:
        ends = outcome.started.base, outcome.started.last
        # Nothing tells a log without its newest segment from one that had none yet.
        assert label == f"{ACTIVE}: missing" or ends == (log.written.base, log.written.last)
    # All but what cannot be told: what a whole store held, and what followed where no mark is left.
    unknown = [f"{ACTIVE}: cut to {size} bytes" for size in range(MARKED_BYTES)]
    if not label.endswith("missing") and "hard-state" not in label and label not in unknown:
        what = outcome.repaired[Allow.GIVE_UP]
        assert what is not None, "the damaged batches cannot be given up"
        assert what.last == log.written.last
    return outcome


def several(log: Log) -> Iterator[Damage]:
    """Two or three at once."""
    chance = random.Random(SEED)
    kinds = [list(flips(log)), [*blocks(log), *truncations(log)]]
    for _ in range(100 * SCALE):
        drawn = [chance.choice(chance.choice(kinds)) for _ in range(chance.choice((2, 2, 3)))]
        label = " and ".join(label for label, _ in drawn)
        yield label, _all([act for _, act in drawn])


def _all(acts: list[Callable[[SimDisk], Blocks]]) -> Callable[[SimDisk], Blocks]:
    def act(disk: SimDisk) -> Blocks:
        bad: set[tuple[str, int]] = set()
        for each in acts:
            try:
                bad |= each(disk).bad
            except OSError:  # An earlier one took the file away.
                continue
        sizes = {str(path): len(data) for path, data in disk.files().items()}
        return Blocks(
            frozenset(each for each in bad if each[1] * BLOCK_BYTES < sizes.get(each[0], 0))
        )

    return act


@pytest.mark.timeout(600)
def test_several_at_once(log: Log) -> None:
    for label, damage in several(log):
        disk = log.disk.copy()
        blocks = damage(disk)
        try:
            agree(disk, FOLDER, blocks, written=log.written, config=CONFIG)
        except Exception as error:
            raise AssertionError(label) from error


@pytest.mark.timeout(600)
@pytest.mark.parametrize("kind", [flips, blocks, truncations])
def test_matrix(log: Log, kind: Callable[[Log], Iterator[Damage]]) -> None:
    outcomes: Counter[str] = Counter()
    failures: list[str] = []
    for label, damage in kind(log):
        try:
            outcomes[judge(log, label, damage).kind] += 1
        except Exception as error:  # whatever it is, it is not one that is expected
            failures.append(f"{label}: {type(error).__name__}: {error}"[:600])
    print(f"{sum(outcomes.values())} cases:", dict(outcomes))
    assert not failures, f"{len(failures)}: " + "\n".join(failures[:30])
