"""A place in a log that moves as records are taken."""

from __future__ import annotations

import asyncio
import copy
from collections.abc import Iterator
from datetime import datetime
from itertools import islice
from types import TracebackType
from typing import TYPE_CHECKING, Literal, NamedTuple, Self, TypeAlias

from proglog import limits
from proglog.batch import Record, RecordBatch
from proglog.client.backend import At, Start, log_closed, to_milliseconds, to_offset, to_timeout
from proglog.client.reading import Contract
from proglog.errors import ConsumerGap, InvalidRequest, OffsetOutOfRange, UsageError

if TYPE_CHECKING:
    from proglog.client.readers import Node, Reader, Readers

OnGap: TypeAlias = Literal["raise", "skip"]


class Last(NamedTuple):
    """The last so many records, as a place to start."""

    count: int  # type: ignore[assignment]  # the field, not tuple.count


UserStart: TypeAlias = int | Literal["earliest", "latest"] | Last | datetime
ConsumerStart: TypeAlias = Start | Last


class Consumer:
    """Hands out records in order, and knows where it is. `Log.consume` makes it.

    Its place changes only as records are handed out, and in no step that could be cancelled: so
    `asyncio.wait_for`, `asyncio.timeout` and a cancelled task take nothing from it, and the next
    call goes on where the last one ended. An error does not end it either: a call after a
    ConsumerGap goes on behind the gap, and one after Unavailable tries again.

    Iterate it, or use `getone`, `getmany` and `batches`, from one task at a time. As an async
    context manager it knows where it starts once it is entered, and lets go of its stream at the
    end; otherwise it does so when nobody holds it any more.
    """

    def __init__(
        self,
        owner: object,
        readers: Readers,
        start: ConsumerStart,
        contract: Contract,
        *,
        on_gap: OnGap,
        floor: int = 0,
    ) -> None:
        """`owner` lives as long as this. The end of the log is not before the offset `floor`,
        whatever a node says of it."""
        self._owner = owner
        self._readers = readers
        self._contract = contract
        self._on_gap = on_gap
        self._floor = max(floor, 0 if contract.after is None else contract.after + 1)
        self._loop = asyncio.get_running_loop()
        self._reader: Reader | None = None
        self._is_busy = False
        self._is_closed = False
        self._go_to(start)

    def _go_to(self, start: ConsumerStart) -> None:
        self._start = start
        self._position = start if isinstance(start, int) else None
        self._is_known = False
        """Whether a node has shown that the log holds, or held, this place."""
        self._node: Node | None = None
        self._batches: Iterator[RecordBatch] = iter(())
        """Of the node, those that follow."""
        self._batch: RecordBatch | None = None
        self._records: Iterator[Record] = iter(())
        """Of the batch, from the position on."""
        self._slice: Iterator[Record] = iter(())
        """The next of them: after so many, others have their turn on the loop."""
        self._slice_end = 0
        self._leave()

    # --- where it is -----------------------------------------------------------------------------

    @property
    def position(self) -> int | None:
        """Offset of the next record; None until it is known where this consumer starts."""
        return self._position

    def seek(self, start: UserStart) -> None:
        """Goes on somewhere else: at an offset, or at a place as for `Log.consume`."""
        if self._is_busy:
            raise UsageError("a consumer is used by one task at a time")
        self._go_to(checked_start(start))

    async def lag(self) -> int:
        """How many records there are from here to the end of the log, as of now.

        Raises ProglogError.
        """
        await self._locate()
        end = await self._readers.end(self._contract)
        return max(end - (self._position or 0), 0)

    # --- records ---------------------------------------------------------------------------------

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Record:
        for record in self._slice:
            self._position = record.offset + 1
            return record
        if not await self._fill():
            raise StopAsyncIteration
        return self._take()

    async def getone(self, timeout_seconds: float | None = None) -> Record | None:
        """The next record. None if there is none within `timeout_seconds`, or, without `follow`,
        at the end. Raises ProglogError."""
        return self._take() if await self._fill_within(timeout_seconds) else None

    async def getmany(self, count_max: int, timeout_seconds: float | None = None) -> list[Record]:
        """The next records that are there, at most so many: at least one, or none if there is none
        within `timeout_seconds`, or, without `follow`, at the end. Raises ProglogError."""
        if not isinstance(count_max, int) or count_max < 1:
            raise InvalidRequest(f"getmany takes at least 1 record, not {count_max!r}")
        if not await self._fill_within(timeout_seconds):
            return []
        taken: list[Record] = []
        while len(taken) < count_max and (self._has_slice or self._next_slice()):
            taken += islice(self._slice, count_max - len(taken))
            self._position = taken[-1].offset + 1
        return taken

    def batches(self) -> Batches:
        """What is left, as whole batches as they were appended: several times quicker."""
        return Batches(self)

    async def next_batch(self) -> RecordBatch | None:
        """The rest of the next batch; without `follow`, None at the end. Raises ProglogError."""
        if not self._has_slice and not await self._fill():
            return None
        assert self._batch is not None, "it was filled"
        assert self._position is not None, "it was filled"
        rest = self._batch.between(self._position)
        self._records = self._slice = iter(())
        self._position = rest.next_offset
        return rest

    # --- closing ---------------------------------------------------------------------------------

    async def aclose(self) -> None:
        """Lets go of its stream."""
        self._is_closed = True
        reader = self._reader
        self._go_to(self._start if self._position is None else self._position)
        if reader is not None and reader.users == 0:
            await asyncio.wait([reader.task])

    async def __aenter__(self) -> Self:
        await self._locate()
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.aclose()

    def __del__(self) -> None:
        # `__init__` may have raised before it set anything. The collector may run in any thread.
        reader: Reader | None = getattr(self, "_reader", None)
        if reader is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(reader.leave)

    # --- what is handed out next -----------------------------------------------------------------

    @property
    def _has_slice(self) -> bool:
        return self._position is not None and self._position < self._slice_end

    def _take(self) -> Record:
        """Hands out the next record, which is there."""
        record = next(self._slice)
        self._position = record.offset + 1
        return record

    async def _fill_within(self, timeout_seconds: float | None) -> bool:
        if self._has_slice:
            return True
        if timeout_seconds is None:
            return await self._fill()
        try:
            async with asyncio.timeout(to_timeout(timeout_seconds, InvalidRequest)) as limit:
                return await self._fill()
        except TimeoutError:
            if not limit.expired():
                raise
            return False

    async def _fill(self) -> bool:
        """Waits until there are records to hand out; False at the end. Wherever it is cancelled, it
        has handed out none."""
        if self._is_closed:
            raise log_closed("the consumer is closed")
        if self._is_busy:
            raise UsageError("a consumer is used by one task at a time")
        self._is_busy = True
        try:
            if self._next_slice():
                await asyncio.sleep(0)  # A program that is slower than the log starves nobody.
                return True
            return await self._wait()
        finally:
            self._is_busy = False

    def _next_slice(self) -> bool:
        """Goes on to the next records that are there; False if none are."""
        if not self._has_rest and not self._next_batch():
            return False
        assert self._batch is not None, "there is one"
        assert self._position is not None, "a batch has offsets"
        self._slice = islice(self._records, limits.client_slice_records_max)
        self._slice_end = min(
            self._position + limits.client_slice_records_max, self._batch.next_offset
        )
        return True

    @property
    def _has_rest(self) -> bool:
        return (
            self._batch is not None
            and self._position is not None
            and self._position < self._batch.next_offset
        )

    def _next_batch(self) -> bool:
        while True:
            for batch in self._batches:
                assert self._position is not None, "its node told it"
                if batch.next_offset > self._position:
                    self._batch = batch.between(self._position)
                    self._records = iter(self._batch)
                    return True
            if not self._next_node():
                return False

    def _next_node(self) -> bool:
        if self._node is None or self._node.next is None:
            return False
        assert self._reader is not None, "the node is of its stream"
        self._node = self._node.next
        self._batches = iter(self._node.batches)
        self._reader.take(self._node)
        if self._position is None:
            self._position = self._node.begins
        self._is_known = True
        return True

    # --- streams ---------------------------------------------------------------------------------

    async def _wait(self) -> bool:
        """Waits for records to hand out; False at the end."""
        while not self._next_slice():
            if self._reader is None:
                await self._join()
            elif self._reader.is_over or (self._node is not None and self._node.is_dropped):
                if self._has_ended():
                    return False
            elif not self._meet():
                await self._reader.arrival()
        return True

    async def _locate(self) -> None:
        """Waits until it is known where this consumer starts."""
        while self._position is None:
            if self._is_closed:
                raise log_closed("the consumer is closed")
            if self._reader is None:
                await self._join()
            elif self._reader.is_over:
                self._has_ended()
            elif not self._next_node():
                await self._reader.arrival()

    async def _join(self) -> None:
        """Finds a stream for where it is, or opens one."""
        if self._start == "latest" or isinstance(self._start, Last):
            await self._find_end()
        found = None
        start = self._start if self._position is None else self._position
        assert not isinstance(start, Last), "its place was found from the end"
        if self._contract == SHARED:
            found = (
                self._readers.find(start)
                if isinstance(start, int)
                else self._readers.find_start(start)
            )
        if found is None:
            reader = await self._readers.open(start, self._contract, is_resumed=self._is_known)
            found = reader, reader.newest
        self._attach(*found)

    async def _find_end(self) -> None:
        if self._position is not None:
            return
        end = max(await self._readers.end(self._contract), self._floor)
        self._position = max(end - self._start.count, 0) if isinstance(self._start, Last) else end
        self._is_known = self._start == "latest"

    def _meet(self) -> bool:
        """Moves to another stream that has more, or where others of this log wait already."""
        if self._contract != SHARED or self._position is None:
            return False
        found = self._readers.find(self._position)
        if found is None or found[0] is self._reader:
            return False
        self._attach(*found)
        return True

    def _attach(self, reader: Reader, node: Node) -> None:
        self._leave()
        reader.users += 1
        self._reader, self._node = reader, node
        self._batches = iter(())

    def _leave(self) -> None:
        reader, self._reader = self._reader, None
        if reader is not None:
            reader.leave()

    def _has_ended(self) -> bool:
        """Whether this is the end. Its stream is over, or is too far ahead: another one follows,
        unless this raises why not."""
        reader, node = self._reader, self._node
        assert reader is not None, "it has one"
        self._leave()
        self._node = None
        if not reader.is_over or (node is not None and node.is_dropped):
            return False
        if reader.error is not None:
            self._failed(copy.copy(reader.error))
        return reader.has_ended

    # --- errors ----------------------------------------------------------------------------------

    def _failed(self, error: BaseException) -> None:
        """Raises it, unless it is a gap that is to be skipped."""
        if isinstance(error, OffsetOutOfRange):
            earliest = error.number("earliest") or 0
            lost_from = self._position or 0
            if earliest > lost_from and isinstance(self._start, Last) and not self._is_known:
                self._position = earliest  # There are fewer than that.
                return
            if earliest > lost_from and (self._is_known or self._on_gap == "skip"):
                error = ConsumerGap(
                    f"retention deleted the records [{lost_from}, {earliest}) before they were"
                    " read",
                    lost_from=lost_from,
                    lost_until=earliest,
                )
        if isinstance(error, ConsumerGap):
            self._position = max(error.number("lost_until") or 0, self._position or 0)
            self._is_known = True
            if self._on_gap == "skip":
                return
        raise error


SHARED = Contract(follow=True)
"""Who asks for nothing else shares streams with others."""


class Batches:
    """Iterates over batches; see `Consumer.batches`."""

    def __init__(self, consumer: Consumer) -> None:
        self._consumer = consumer

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> RecordBatch:
        batch = await self._consumer.next_batch()
        if batch is None:
            raise StopAsyncIteration
        return batch

    async def aclose(self) -> None:
        """Lets go of the consumer's stream."""
        await self._consumer.aclose()


def checked_start(start: object) -> ConsumerStart:
    """Where a user wants to begin. Raises InvalidRequest."""
    match start:
        case "earliest" | "latest":
            return start
        case Last(count):
            return Last(to_offset(count))
        case datetime():
            return At(to_milliseconds(start))
        case At():
            return start
    return to_offset(start)
