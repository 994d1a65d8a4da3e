"""Committed records as they are stored, for whoever reads on at an offset."""

from __future__ import annotations

from collections.abc import Callable

from proglog.batch import data_only
from proglog.errors import OffsetOutOfRange, Unavailable
from proglog.log.log import Log
from proglog.replica.applier import Applier
from proglog.types import Chunk


async def read_data(
    log: Log, applier: Applier, offset: int, bytes_max: int, check_open: Callable[[], None]
) -> Chunk:
    """See `Replica.read`."""
    _check_offset(applier, offset)
    while offset < applier.next_offset:
        index = log.index_of_offset(offset)
        try:
            run = await log.read(index, applier.applied_index, bytes_max)
        except Unavailable:
            pass  # A snapshot replaced the log: is the offset still in it?
        else:
            next_offset = run.headers[-1].next_offset
            if data := data_only(run.data, run.headers):
                return Chunk(data, next_offset)
            offset = max(next_offset, offset)
        check_open()
        _check_offset(applier, offset)
    return Chunk(b"", offset)


def _check_offset(applier: Applier, offset: int) -> None:
    if not applier.earliest <= offset <= applier.next_offset:
        raise OffsetOutOfRange.of(offset, applier.earliest, applier.next_offset)
