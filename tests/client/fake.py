"""A log in memory behind the client's port, which fails in the ways that a test tells it to."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator
from typing import NamedTuple

from proglog import batch
from proglog.batch import Kind, ProposedBatch, Record
from proglog.client.backend import At, Start
from proglog.errors import EarlierRefused, OffsetMismatch, OffsetOutOfRange, ProglogError
from proglog.replica.producers import Producers
from proglog.types import Appended, Chunk, Description


class Lost(NamedTuple):
    """A fault by which a batch is appended, but not answered as such."""

    error: ProglogError


class FakeLog:
    """Stored batches, each once: which retry is a duplicate decides the code of the server."""

    def __init__(self) -> None:
        self.producers = Producers()
        self.batches: list[tuple[batch.BatchHeader, bytes]] = []
        self.earliest = 0
        self.next = 0
        self.appended = asyncio.Event()

    def append(self, proposed: ProposedBatch, timestamp: int = 1000) -> Appended:
        known = self.producers.find(proposed) if proposed.producer_id else None
        if known is not None:
            return Appended(known.offset, timestamp)
        if proposed.expected_offset not in (None, self.next):
            raise OffsetMismatch("no", expected=proposed.expected_offset, next=self.next)
        header, packed = batch.build(
            proposed.body,
            kind=Kind.DATA,
            index=len(self.batches) + 1,
            term=1,
            base_offset=self.next,
            timestamp=timestamp,
            chain_crc=0,
            producer_id=proposed.producer_id,
            sequence=proposed.sequence,
        )
        if proposed.producer_id:
            self.producers.apply(header)
        self.batches.append((header, packed + bytes(proposed.body.data)))
        self.next = header.next_offset
        self.appended.set()
        return Appended(header.base_offset, timestamp)

    def extend(self, values: list[bytes], timestamp: int = 1000) -> None:
        self.append(ProposedBatch(batch.encode(values)), timestamp)

    def records(self) -> list[Record]:
        data = b"".join(stored for _, stored in self.batches)
        return [record for records in batch.decode_all(data) for record in records]

    def values(self) -> list[bytes]:
        return [record.value for record in self.records()]


class FakeStream:
    def __init__(self, backend: FakeBackend) -> None:
        self.backend = backend
        self.refused = False
        self.waiting: deque[tuple[ProposedBatch, asyncio.Future[Appended]]] = deque()
        self.closed = False

    async def submit(self, proposed: ProposedBatch) -> asyncio.Future[Appended]:
        answer = asyncio.get_running_loop().create_future()
        self.backend.submitted.append(proposed)
        self.waiting.append((proposed, answer))
        if not self.backend.held:
            asyncio.get_running_loop().call_soon(self.answer_one)
        return answer

    def answer_one(self) -> None:
        if not self.waiting:
            return
        proposed, answer = self.waiting.popleft()
        try:
            appended = self.backend.append(proposed, refused=self.refused)
        except ProglogError as error:
            self.refused = True
            if not answer.done():
                answer.set_exception(error)
        else:
            if not answer.done():
                answer.set_result(appended)

    async def close(self) -> None:
        self.closed = True


class FakeBackend:
    """`held`: answers come only by `answer`. `faults` and `open_faults` are used up one by one: an
    error is raised in place of appending, None appends, `Lost` does both."""

    def __init__(self, log: FakeLog | None = None) -> None:
        self.log = log or FakeLog()
        self.leader_addr = "127.0.0.1:1"
        self.faults: deque[ProglogError | Lost | None] = deque()
        self.open_faults: deque[ProglogError | None] = deque()
        self.consume_faults: deque[tuple[int, ProglogError]] = deque()
        self.held = False
        self.submitted: list[ProposedBatch] = []
        self.streams: list[FakeStream] = []
        self.consumed: list[Start] = []
        self.linearizable: list[bool] = []
        self.thrown: list[ProglogError] = []
        self.open_consumers = 0
        self.closed = False
        self.opened = 0

    def append(self, proposed: ProposedBatch, *, refused: bool = False) -> Appended:
        if refused:
            raise EarlierRefused("an earlier batch was refused")
        fault = self.faults.popleft() if self.faults else None
        if isinstance(fault, ProglogError):
            raise fault
        appended = self.log.append(proposed)
        if fault is not None:
            raise fault.error
        return appended

    def answer(self, count: int = 1) -> None:
        for _ in range(count):
            self.streams[-1].answer_one()

    async def open(self) -> None:
        self.opened += 1

    def abort(self) -> None:
        self.closed = True

    async def open_produce(self) -> FakeStream:
        fault = self.open_faults.popleft() if self.open_faults else None
        if fault is not None:
            raise fault
        self.streams.append(FakeStream(self))
        return self.streams[-1]

    async def consume(
        self,
        start: Start,
        *,
        follow: bool,
        linearizable: bool = False,
        leader: bool = False,
        bytes_max: int = 0,
    ) -> AsyncGenerator[Chunk, None]:
        self.consumed.append(start)
        self.linearizable.append(linearizable)
        self.open_consumers += 1
        try:
            fault_at, fault = (
                self.consume_faults.popleft() if self.consume_faults else (2**64, None)
            )
            position = self._position(start)
            told = False
            while True:
                if fault is not None and position >= fault_at:
                    raise fault
                if not self.log.earliest <= position <= self.log.next:
                    raise OffsetOutOfRange.of(position, self.log.earliest, self.log.next)
                chunk = self._chunk(position, bytes_max or 1)
                if chunk.data or not told:
                    told = True
                    position = chunk.next_offset
                    yield chunk
                elif follow:
                    self.log.appended.clear()
                    await self.log.appended.wait()
                else:
                    return
        except ProglogError as error:
            self.thrown.append(error)
            raise
        finally:
            self.open_consumers -= 1

    def _chunk(self, position: int, bytes_max: int) -> Chunk:
        parts, size = [], 0
        for header, stored in self.log.batches:
            if header.next_offset > position and size < bytes_max:
                parts.append(stored)
                size += len(stored)
                position = header.next_offset
        return Chunk(b"".join(parts), position)

    def _position(self, start: Start) -> int:
        if isinstance(start, int):
            return start
        if isinstance(start, At):
            found = [h.base_offset for h, _ in self.log.batches if h.timestamp >= start.timestamp]
            return found[0] if found else self.log.next
        return self.log.earliest if start == "earliest" else self.log.next

    async def read(self, offset: int, *, leader: bool = False) -> Record:
        for record in self.log.records():
            if record.offset == offset >= self.log.earliest:
                return record
        raise OffsetOutOfRange.of(offset, self.log.earliest, self.log.next)

    async def describe(self, *, leader: bool = False) -> Description:
        return Description(
            log="default",
            cluster_id="c",
            node="n",
            node_uuid="u",
            earliest=self.log.earliest,
            next=self.log.next,
            bytes=0,
            leader="n",
            leader_addr=self.leader_addr,
            term=1,
            commit_index=len(self.log.batches),
        )

    async def close(self) -> None:
        self.closed = True
