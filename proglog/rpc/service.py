"""The service log.v1.Log: the original's five calls, batches both ways, and a description.

Streams that append are pipelined: batches are proposed as they arrive and answered in their order,
while at most `stream_inflight_batches_max` are unanswered. Streams that read hold what they are
just sending, and wait for new records without asking for them.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from typing import NamedTuple, TypeAlias

from grpclib.const import Cardinality
from grpclib.const import Handler as Method
from grpclib.exceptions import GRPCError

from proglog import batch, limits
from proglog._generated.log import v1
from proglog.aio.turns import Gate, Turns
from proglog.auth import gate as access
from proglog.auth.access import ACCESS
from proglog.auth.principal import Principal
from proglog.batch import ProposedBatch, RecordBatch
from proglog.errors import InvalidRequest, ProglogError
from proglog.rpc.calls import Call
from proglog.rpc.quick import Answer
from proglog.rpc.together import Together
from proglog.types import Appended, Chunk, Log, Logs, ServerInfo, check_holds
from proglog.wire import (
    BadMessage,
    Codec,
    ProduceBatch,
    bare_record,
    consume_responses,
    decode,
    framed,
    produce_response,
)

_PRODUCE = "/log.v1.Log/Produce"


class LogService:
    """The handlers, for `Calls`."""

    def __init__(
        self,
        logs: Logs,
        servers: Callable[[], Sequence[ServerInfo]],
        turns: Turns,
        access: access.Gate,
    ) -> None:
        """`servers` are those that a client may be sent to; `access` decides who may what."""
        self._access = access
        self._logs = logs
        self._servers = servers
        self._turns = turns
        self._bulk = Gate()
        self._together = Together(self._opened, _body)
        self.quick = {_PRODUCE: self.produce_quickly}
        """Methods that take a unary call whole."""

    def __mapping__(self) -> Mapping[str, Method]:
        unary, reading, both = (
            Cardinality.UNARY_UNARY,
            Cardinality.UNARY_STREAM,
            Cardinality.STREAM_STREAM,
        )
        methods: Mapping[str, tuple[Handler, Cardinality, type, type]] = {
            "Produce": (self.produce, unary, v1.ProduceRequest, v1.ProduceResponse),
            "Consume": (self.consume, unary, v1.ConsumeRequest, v1.ConsumeResponse),
            "ConsumeStream": (self.consume_stream, reading, v1.ConsumeRequest, v1.ConsumeResponse),
            "ProduceStream": (self.produce_stream, both, v1.ProduceRequest, v1.ProduceResponse),
            "GetServers": (self.get_servers, unary, v1.GetServersRequest, v1.GetServersResponse),
            "ProduceBatches": (
                self.produce_batches,
                both,
                v1.ProduceBatchesRequest,
                v1.ProduceBatchesResponse,
            ),
            "ConsumeBatches": (
                self.consume_batches,
                reading,
                v1.ConsumeBatchesRequest,
                v1.ConsumeBatchesResponse,
            ),
            "Describe": (self.describe, unary, v1.DescribeRequest, v1.DescribeResponse),
        }
        return {f"/log.v1.Log/{name}": Method(*method) for name, method in methods.items()}

    # --- appending

    async def produce(self, call: Call) -> None:
        request: v1.ProduceRequest = await call.request()
        log = await call.log(request.log, self._logs)
        appended = await log.propose(ProposedBatch(_body([_record(request)])))
        await call.send_message(v1.ProduceResponse(offset=(await appended).offset))

    def produce_quickly(self, message: memoryview, answer: Answer) -> None:
        """The same for what has arrived whole, together with all others of this turn."""
        value = bare_record(message)
        if value is None:
            request: v1.ProduceRequest = decode(v1.ProduceRequest, message)
            record = _record(request)
            self._together.add(request.log, record, _size(record), answer)
        else:
            self._together.add("", _Bare(value), len(value), answer)

    async def _opened(self, principal: Principal, name: str) -> Log:
        needed = ACCESS[_PRODUCE]
        return await self._access.open(principal, _PRODUCE, needed, name, self._logs)

    async def produce_stream(self, call: Call) -> None:
        records = _Records(call, self._turns)
        log = await call.log(await records.log_name(), self._logs)

        async def propose(after: asyncio.Future[Appended] | None) -> Proposal | None:
            gathered = await records.gather()
            if not gathered:
                return None
            proposed = ProposedBatch(_body(gathered))
            return Proposal(await log.propose(proposed, after), len(gathered))

        await _Pipeline(call, _record_answers).run(propose)

    async def produce_batches(self, call: Call) -> None:
        first: ProduceBatch | None = await call.recv_message()
        log = await call.log(first.log if first is not None else "", self._logs)

        async def propose(after: asyncio.Future[Appended] | None) -> Proposal | None:
            nonlocal first
            message, first = first or await call.recv_message(), None
            if message is None:
                return None
            return Proposal(await log.propose(message.batch, after), message.batch.body.count)

        await _Pipeline(call, _batch_answer).run(propose)

    # --- reading

    async def consume(self, call: Call) -> None:
        request: v1.ConsumeRequest = await call.request()
        log = await call.log(request.log, self._logs)
        chunk = await log.read(request.offset, 1)
        check_holds(chunk, request.offset, log.describe)
        records = await _decode(*next(batch.walk(chunk.data)))
        found = records.between(request.offset, request.offset + 1)
        await call.send_encoded(consume_responses(found))

    async def consume_stream(self, call: Call) -> None:
        request: v1.ConsumeRequest = await call.request()
        log = await call.log(request.log, self._logs)
        offset = request.offset
        while True:
            # Also for one beyond the end, as the original: another node may have shown it already.
            await log.wait_past(offset)
            await self._bulk.enter()
            chunk = await log.read(offset, limits.read_bytes_max)
            async for some, count in _encoded(chunk, offset):
                await call.send_encoded(some)
                # Sending waits for nothing while there is room, and a window of small records takes
                # seconds to encode: long enough for a leader to be deposed.
                await self._turns.take(1 + count // _RECORDS_A_UNIT)
            offset = chunk.next_offset

    async def consume_batches(self, call: Call) -> None:
        request: v1.ConsumeBatchesRequest = await call.request()
        log = await call.log(request.log, self._logs)
        if request.linearizable:
            await log.barrier()
        offset = await _start(log, request)
        bytes_max = min(request.max_bytes or limits.read_bytes_max, limits.read_bytes_max)
        chunk = await log.read(offset, bytes_max)
        # Sent even if empty: it says where the stream begins.
        await call.send_message(chunk)
        while True:
            offset, at_end = chunk.next_offset, chunk.next_offset <= offset
            if at_end and not request.follow:
                return
            if at_end:
                await log.wait_past(offset)
            await self._bulk.enter()
            chunk = await log.read(offset, bytes_max)
            if chunk.next_offset > offset:
                await call.send_message(chunk)

    # --- inspecting

    async def get_servers(self, call: Call) -> None:
        await call.request()
        await call.log("", self._logs)
        servers = [
            v1.Server(
                id=server.name,
                rpc_addr=server.rpc_addr,
                is_leader=server.is_leader,
                uuid=server.uuid,
                suffrage=server.suffrage,
            )
            for server in self._servers()
        ]
        await call.send_message(v1.GetServersResponse(servers=servers))

    async def describe(self, call: Call) -> None:
        request: v1.DescribeRequest = await call.request()
        found = (await call.log(request.log, self._logs)).describe()
        await call.send_message(
            v1.DescribeResponse(
                log=found.log,
                cluster_id=found.cluster_id,
                earliest=found.earliest,
                next=found.next,
                bytes=found.bytes,
                node=found.node,
                node_uuid=found.node_uuid,
                leader=found.leader,
                leader_addr=found.leader_addr,
                term=found.term,
                commit_index=found.commit_index,
                cluster_name=found.cluster_name,
            )
        )


Handler: TypeAlias = Callable[[Call], Awaitable[None]]


# --- appending -----------------------------------------------------------------------------------


class Proposal(NamedTuple):
    """A batch that was proposed, and the number of its records."""

    appended: asyncio.Future[Appended]
    count: int  # type: ignore[assignment]  # the field, not tuple.count


Propose: TypeAlias = Callable[[asyncio.Future[Appended] | None], Awaitable[Proposal | None]]
"""Proposes the next batch of a stream, given the answer to the one before; None at the end."""


def _batch_answer(appended: Appended, _count: int) -> bytes:
    return framed(Codec().encode(appended, v1.ProduceBatchesResponse))


def _record_answers(appended: Appended, count: int) -> bytes:
    first = appended.offset
    return b"".join(framed(produce_response(offset)) for offset in range(first, first + count))


class _Pipeline:
    """Answers proposals in their order, while more are made.

    The first that is refused ends the call with its error once all before it are answered; nothing
    after it is proposed. `answers` makes the answers to one proposal.
    """

    def __init__(self, call: Call, answers: Callable[[Appended, int], bytes]) -> None:
        self._call = call
        self._answers = answers
        self._waiting: asyncio.Queue[Proposal | None] = asyncio.Queue(
            limits.stream_inflight_batches_max
        )
        self._unanswered: deque[asyncio.Future[Appended]] = deque()
        """Of all proposals, in their order: those outside of `_waiting` count as well."""

    async def run(self, propose: Propose) -> None:
        """Runs until `propose` gives None and everything is answered. Raises what was refused."""
        # No TaskGroup: what it raises holds itself, and so all that the call did, until collected.
        proposing = asyncio.get_running_loop().create_task(self._propose(propose))
        try:
            await self._answer()
        finally:
            proposing.cancel()
            try:
                await asyncio.wait([proposing])
            finally:
                self._let_go()

    async def _propose(self, propose: Propose) -> None:
        appended: asyncio.Future[Appended] | None = None
        try:
            while (proposal := await propose(appended)) is not None:
                appended = proposal.appended
                await self._put(proposal)
            await self._waiting.put(None)
        except Exception as refusal:  # noqa: BLE001  # it is raised where answers are sent
            refused: asyncio.Future[Appended] = asyncio.get_running_loop().create_future()
            refused.set_exception(refusal)
            await self._put(Proposal(refused, 0))

    async def _put(self, proposal: Proposal) -> None:
        self._unanswered.append(proposal.appended)
        await self._waiting.put(proposal)

    async def _answer(self) -> None:
        answers: list[bytes] = []
        while True:
            if answers and self._waiting.empty():
                await self._send(answers)
            proposal = await self._waiting.get()
            if answers and (proposal is None or not _succeeded(proposal.appended)):
                await self._send(answers)
            if proposal is None:
                return
            answers.append(self._answers(await proposal.appended, proposal.count))
            self._unanswered.popleft()

    async def _send(self, answers: list[bytes]) -> None:
        await self._call.send_encoded(*answers)
        answers.clear()

    def _let_go(self) -> None:
        for appended in self._unanswered:
            if not appended.cancel() and not appended.cancelled():
                appended.exception()  # seen, so that asyncio does not warn of it


def _succeeded(future: asyncio.Future[Appended]) -> bool:
    return future.done() and not future.cancelled() and future.exception() is None


_STEP_RECORDS = 32
"""Decoded at a time, each about 8 us: a window of records of a byte takes seconds."""
_BATCH_RECORDS_MAX = 1024
"""In one batch of a ProduceStream. Their answers are made together."""


class _Records:
    """The records of a ProduceStream; those that have arrived by the time of asking come together.

    A record that cannot be appended is held back, so that the ones before it are appended first.
    """

    def __init__(self, call: Call, turns: Turns) -> None:
        self._call = call
        self._turns = turns
        self._held: v1.Record | Exception | None = None
        self._ended = False

    async def log_name(self) -> str:
        """Waits for the first request, which names the log."""
        request: v1.ProduceRequest | None = await self._call.recv_message()
        self._ended = request is None
        if request is None:
            return ""
        try:
            self._held = _record(request)
        except ProglogError as refusal:
            self._held = refusal  # whether the caller may write there comes first
        return request.log

    async def gather(self) -> list[v1.Record]:
        """The next records for one batch, none at the end. Raises what makes a record invalid."""
        first = await self._next()
        records = [] if first is None else [first]
        size = 0 if first is None else _size(first)
        while records and (record := self._arrived()) is not None:
            size += _size(record)
            if size > limits.client_batch_bytes_target or len(records) == _BATCH_RECORDS_MAX:
                self._held = record
                break
            records.append(record)
            self._call.hold(size)
            if len(records) % _STEP_RECORDS == 0:
                await self._turns.take(_STEP_RECORDS)
        return records

    async def _next(self) -> v1.Record | None:
        held, self._held = self._held, None
        if isinstance(held, Exception):
            raise held
        if held is not None or self._ended:
            return held
        request = await self._call.recv_message()
        self._ended = request is None
        return None if request is None else _record(request)

    def _arrived(self) -> v1.Record | None:
        try:
            request = self._call.received_message()
            return None if request is None else _record(request)
        except (ProglogError, BadMessage, GRPCError) as refusal:
            self._held = refusal
            return None


class _Bare(NamedTuple):
    """A record that is nothing but a value, as `_body` looks at it."""

    value: bytes
    key: bytes | None = None
    timestamp: int = 0
    headers: Sequence[v1.Header] = ()


def _record(request: v1.ProduceRequest) -> v1.Record:
    if request.record is None:
        raise InvalidRequest("the request holds no record")
    batch.check_record_headers((header.name, header.value) for header in request.record.headers)
    return request.record


def _size(record: v1.Record) -> int:
    headers = sum(len(header.name) + len(header.value) for header in record.headers)
    return len(record.value) + len(record.key or b"") + headers


def _body(records: Sequence[v1.Record | _Bare]) -> batch.Body:
    """The records as one batch. Offset, term and type are not the client's to choose."""
    keys = [record.key for record in records]
    stamps = [record.timestamp or None for record in records]
    headers = [tuple((h.name, h.value) for h in record.headers) for record in records]
    return batch.encode(
        [record.value for record in records],
        keys if any(key is not None for key in keys) else None,
        stamps if any(stamps) else None,
        headers if any(headers) else None,
    )


# --- reading -------------------------------------------------------------------------------------


async def _start(log: Log, request: v1.ConsumeBatchesRequest) -> int:
    if request.offset is not None:
        return request.offset
    if request.timestamp is not None:
        return await log.seek(request.timestamp)
    if request.earliest:
        return log.describe().earliest
    if request.latest:
        return log.describe().next
    raise InvalidRequest("the request does not say where to start")


async def _decode(header: batch.BatchHeader, body: memoryview) -> RecordBatch:
    """The records of a batch. Decompression is not done on the loop."""
    if header.codec == batch.Codec.NONE:
        return batch.decode(header, body)
    return await asyncio.to_thread(batch.decode, header, body)


_SLICE_RECORDS_MAX = 256
"""Encoded and sent together: about half a millisecond,"""
_SLICE_BATCHES_MAX = 32
"""and no more, where each record is a batch."""
_RECORDS_A_UNIT = 4
"""Of the budget of a turn."""


async def _encoded(chunk: Chunk, offset: int) -> AsyncIterator[tuple[bytes, int]]:
    """The records of a chunk from an offset on, as messages of ConsumeStream: some at a time, and
    how many these are."""
    parts: list[bytes] = []
    records_count = 0
    for header, body in batch.walk(chunk.data):
        records = (await _decode(header, body)).between(offset)
        for start in range(records.base_offset, records.next_offset, _SLICE_RECORDS_MAX):
            some = records.between(start, start + _SLICE_RECORDS_MAX)
            parts.append(consume_responses(some))
            records_count += len(some)
            if records_count >= _SLICE_RECORDS_MAX or len(parts) == _SLICE_BATCHES_MAX:
                yield b"".join(parts), records_count
                parts, records_count = [], 0
    if parts:
        yield b"".join(parts), records_count
