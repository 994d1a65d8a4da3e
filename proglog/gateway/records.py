"""What the handlers ask of a log: append one record, read forward, read one."""

from __future__ import annotations

import asyncio

from proglog import batch, limits
from proglog.batch import Codec, ProposedBatch, Record, RecordBatch, RecordHeaders
from proglog.errors import OutcomeUnknown, Overloaded
from proglog.types import Log, check_holds

_INLINE_RECORDS_MAX = 4096
_INLINE_BYTES_MAX = 256 * limits.KiB


async def append(
    replica: Log,
    value: bytes,
    key: bytes | None = None,
    headers: RecordHeaders = (),
    timestamp: int | None = None,
    expected_offset: int | None = None,
) -> int:
    """Appends one record and returns its offset once it is committed. Raises ProglogError."""
    body = batch.encode(
        [value],
        None if key is None else [key],
        None if timestamp is None else [timestamp],
        [headers] if headers else None,
    )
    committed = None
    try:
        async with asyncio.timeout(limits.produce_timeout_seconds_default):
            committed = await replica.propose(ProposedBatch(body, expected_offset=expected_offset))
            return (await committed).offset
    except TimeoutError:
        if committed is None:
            raise Overloaded("the log did not take the record in time") from None
        raise OutcomeUnknown("the record was taken, but not committed in time") from None


class Cursor:
    """Reads a log forward in small steps, decoded."""

    def __init__(self, replica: Log, offset: int) -> None:
        self.offset = offset
        self.bytes_read = 0
        self._replica = replica

    async def step(self) -> list[RecordBatch]:
        """The next records, none at the end of the log. Raises OffsetOutOfRange and others."""
        start = self.offset
        chunk = await self._replica.read(start, limits.http_read_bytes_max)
        self.bytes_read += len(chunk.data)
        self.offset = chunk.next_offset
        return [
            (await _decode(header, body)).between(start) for header, body in batch.walk(chunk.data)
        ]


async def _decode(header: batch.BatchHeader, body: batch.Buffer) -> RecordBatch:
    """Decodes on the loop only what is quick."""
    if (
        header.count <= _INLINE_RECORDS_MAX
        and header.length <= _INLINE_BYTES_MAX
        and header.codec == Codec.NONE
    ):
        return batch.decode(header, body)
    return await asyncio.to_thread(batch.decode, header, body)


async def read_one(replica: Log, offset: int) -> Record:
    """The record at `offset`. Raises OffsetOutOfRange and others."""
    chunk = await replica.read(offset, 1)
    check_holds(chunk, offset, replica.describe)
    header, body = next(iter(batch.walk(chunk.data)))
    return (await _decode(header, body))[offset - header.base_offset]
