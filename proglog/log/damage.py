"""Damaged ranges of a log: finding them, and putting back what belongs there."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from proglog import limits
from proglog.batch import BatchHeader, Buffer
from proglog.errors import Overloaded, RangeCorrupt, reason_of
from proglog.log.format import Tip
from proglog.log.log import Log
from proglog.log.reading import Damage
from proglog.log.segment import Segment


async def find_damage(log: Log, index: int) -> list[tuple[int, int]]:
    """Reads all of the segment that holds batch `index`, as far as it is durable, and says which
    ranges of batches (first, last) are damaged: none if the segment is dropped meanwhile, by
    retention, with a suffix that is cut or by a reset. Takes long; the loop does not wait. Raises
    Overloaded if there are no descriptors."""
    segment = log.segment_of(index)
    last = min(segment.last_index, log.durable_index)
    bad: list[int] = []
    first = segment.first_index
    while first <= last:
        upto = min(first + limits.scan_batches, last)
        # Unpinned when the thread is done, not when the waiting task is, which may be cancelled.
        segment.pin()
        places = [segment.extent(index, index, 1) for index in range(first, upto + 1)]
        part = partial(_damaged, segment, first, places)
        try:
            bad += await log.reader.run(part, after=partial(log.unpin, segment))
        except OSError as error:
            raise Overloaded(f"{segment.store_path}: {reason_of(error)}") from error
        if segment.retired or log.is_void:
            return []
        first = upto + 1
    ranges: list[tuple[int, int]] = []
    for number in bad:
        if ranges and ranges[-1][1] == number - 1:
            ranges[-1] = (ranges[-1][0], number)
        else:
            ranges.append((number, number))
    return ranges


def _damaged(segment: Segment, first: int, places: Sequence[tuple[int, int]]) -> list[int]:
    """Which batches, from `first` on, at these positions and of these sizes, are damaged. Runs on
    the reader's thread."""
    bad = []
    for index, (position, size) in enumerate(places, first):
        data = segment.read(size, position)
        try:
            if isinstance(data, Damage):
                raise segment.damaged(data, index)
            segment.check(data, position, index)
        except RangeCorrupt:
            bad.append(index)
    return bad


async def mend(log: Log, batches: Sequence[tuple[BatchHeader, Buffer]]) -> None:
    """Puts batches back where damaged ones stand, all of one segment.

    Only what fits is taken: the same places and sizes as the index says, and the chain on both
    sides. Since each header's checksum covers its chain, and the chain the header before, there is
    one sequence of bytes that fits. To write over damage is safe: a crash in between leaves damage
    again. Raises RangeCorrupt if they do not fit.
    """
    first, last = batches[0][0].index, batches[-1][0].index
    if first < log.first_index:
        return
    segment = log.segment_of(first)
    chains = await _chains_around(log, segment, first, last)
    if chains is None:
        return
    before, after = chains
    position = start = segment.index.position(first - segment.first_index)
    for header, _data in batches:
        slot = header.index - segment.first_index
        if header.chain != before or segment.index.position(slot) != position:
            raise RangeCorrupt(f"batch {header.index} does not fit where one is damaged")
        before, position = Tip.after(header).chain, position + header.size
    end = segment.index.position(last + 1 - segment.first_index)
    if before != after or position != end:
        raise RangeCorrupt(f"what follows batch {last} does not fit to it")
    # Retention may drop the segment meanwhile: then what is written goes with it.
    segment.pin()
    try:
        await log.run_job(partial(_rewrite, segment, start, [data for _, data in batches]))
    finally:
        log.unpin(segment)


async def _chains_around(
    log: Log, segment: Segment, first: int, last: int
) -> tuple[int, int] | None:
    """What the batch before a range hands to the chain, and what the one behind it was given; None
    if the segment is deleted meanwhile, or about to be."""
    before = await _chain_before(log, segment, first - 1)
    if first < log.first_index:
        return None
    after = await _chain_after(log, segment, last)
    return None if first < log.first_index or log.is_void else (before, after)


async def _chain_before(log: Log, segment: Segment, index: int) -> int:
    if index < segment.first_index:
        return segment.index.before.chain
    return Tip.after((await log.read(index, index, 1)).headers[0]).chain


async def _chain_after(log: Log, segment: Segment, index: int) -> int:
    """What the chain of the batch behind `index` says."""
    if index == segment.last_index:
        return segment.index.last.chain
    return (await log.read(index + 1, index + 1, 1)).headers[0].chain


def _rewrite(segment: Segment, position: int, parts: Sequence[Buffer]) -> None:
    """Runs on the writer's thread."""
    store = segment.open()
    store.pwritev(parts, position)
    store.fdatasync()
