"""From a cluster to a backup: what is new since the last time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import aclosing
from dataclasses import dataclass

from proglog import limits
from proglog.backup.contents import (
    MANIFEST,
    Contents,
    Part,
    Refused,
    Status,
    load,
    read_part,
    whole_batches,
)
from proglog.backup.place import Place
from proglog.batch import BadBatch, BatchHeader
from proglog.client.network import NetworkBackend
from proglog.config import Address
from proglog.types import Description


@dataclass(slots=True)
class _Gathered:
    """Batches for the next part."""

    first: int
    data: bytearray
    following: int


class Taking:
    """One run: of the node at an address, or of whichever the client asks."""

    def __init__(
        self,
        place: Place,
        node: NetworkBackend,
        at: Address | None = None,
        *,
        now_ms: Callable[[], int],
        bytes_per_second: float | None = None,
    ) -> None:
        self._place = place
        self._node = node
        self._at = at
        self._now_ms = now_ms
        self._bytes_per_second = bytes_per_second
        self._loop = asyncio.get_running_loop()

    async def run(self) -> Contents:
        """Takes all that the node has committed. Raises Refused, ProglogError, OSError."""
        there = await self._node.describe(at=self._at)
        contents = await load(self._place)
        if contents is None:
            contents = Contents(
                log=there.log,
                cluster_id=there.cluster_id,
                first=there.earliest,
                next=there.earliest,
                node=there.node,
                time=self._now_ms(),
            )
        else:
            await self._check_same(contents, there)
        if there.next < contents.next:
            return contents
        began, taken = self._loop.time(), 0
        gathered = _Gathered(contents.next, bytearray(), contents.next)
        stream = self._node.consume(contents.next, follow=False, at=self._at)
        async with aclosing(stream):
            async for chunk in stream:
                self._gather(gathered, bytes(chunk.data))
                taken += len(chunk.data)
                if len(gathered.data) >= limits.backup_part_bytes:
                    contents = await self._write(contents, gathered, there.node)
                if self._bytes_per_second is not None:
                    due = began + taken / self._bytes_per_second
                    await asyncio.sleep(max(0.0, due - self._loop.time()))
        if gathered.data:
            return await self._write(contents, gathered, there.node)
        if not contents.parts:
            await self._place.write(MANIFEST, contents.pack())
        return contents

    async def _check_same(self, contents: Contents, there: Description) -> None:
        """That the node has the log of which this is the beginning."""
        if (contents.cluster_id, contents.log) != (there.cluster_id, there.log):
            raise Refused(
                f"{self._place} is of the log {contents.log} of cluster {contents.cluster_id}, and "
                f"{there.node} has {there.log} of {there.cluster_id}: choose another destination"
            )
        if there.earliest > contents.next:
            raise Refused(
                f"offsets {contents.next} to {there.earliest - 1} are gone by retention: begin in "
                "another destination, and take backups more often",
                Status.HOLE,
            )
        # A node that has not got the last batch yet has nothing new either.
        if contents.parts and there.next >= contents.next:
            await self._check_last(contents, there)

    async def _check_last(self, contents: Contents, there: Description) -> None:
        data = await read_part(self._place, contents.parts[-1])
        *_, (last, batch) = whole_batches(data)
        if last.base_offset < there.earliest:
            return  # Nothing is left of it to compare.
        stream = self._node.consume(
            last.base_offset, follow=False, bytes_max=last.size, at=self._at
        )
        async with aclosing(stream):
            async for chunk in stream:
                if bytes(chunk.data[: last.size]) != batch:
                    raise Refused(
                        f"{there.node} has another batch at offset {last.base_offset} than this "
                        "backup: its cluster was made anew; choose another destination"
                    )
                if chunk.data:
                    return

    def _gather(self, gathered: _Gathered, data: bytes) -> None:
        try:
            for header, batch in whole_batches(data):
                # The first may begin before the offset that was asked for.
                if header.next_offset <= gathered.following:
                    continue
                self._check_next(header, gathered.following)
                gathered.data += batch
                gathered.following = header.next_offset
        except BadBatch as error:
            raise Refused(f"what the node sent is damaged: {error}") from None

    @staticmethod
    def _check_next(header: BatchHeader, expected: int) -> None:
        if header.base_offset != expected:
            raise Refused(
                f"offsets {expected} to {header.base_offset - 1} are not there: gone by retention "
                "meanwhile, or given up by a repair",
                Status.HOLE,
            )

    async def _write(self, contents: Contents, gathered: _Gathered, node: str) -> Contents:
        """A part, and then what names it: killed in between, it is as if it were not there."""
        data = bytes(gathered.data)
        part = Part.of(gathered.first, gathered.following, data)
        await self._place.write(part.name, data)
        contents = contents.with_part(part, node=node, time=self._now_ms())
        await self._place.write(MANIFEST, contents.pack())
        gathered.first, gathered.data = gathered.following, bytearray()
        return contents
