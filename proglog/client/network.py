"""The backend that reaches a log over gRPC: which node, which connection, which call."""

from __future__ import annotations

import asyncio
import copy
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any

from proglog import limits
from proglog._generated.log import v1
from proglog.batch import ProposedBatch, Record
from proglog.client.address import Picker
from proglog.client.backend import At, Start, log_closed
from proglog.client.call import Call, CallEnded, Method
from proglog.client.channel import Channel
from proglog.client.silence import another_leader
from proglog.config import Address
from proglog.errors import (
    Action,
    EarlierRefused,
    NotLeader,
    Outcome,
    OutcomeUnknown,
    ProglogError,
    Unavailable,
    let_go,
)
from proglog.net.dialling import Plain, Way
from proglog.types import Appended, Chunk, Description
from proglog.wire import ProduceBatch

_PRODUCE = Method("ProduceBatches", v1.ProduceBatchesRequest, v1.ProduceBatchesResponse)
_CONSUME = Method("ConsumeBatches", v1.ConsumeBatchesRequest, v1.ConsumeBatchesResponse)
_READ = Method("Consume", v1.ConsumeRequest, v1.ConsumeResponse)
_DESCRIBE = Method("Describe", v1.DescribeRequest, v1.DescribeResponse)


class NetworkBackend:
    """One log of a node or a cluster. Follows the leader; goes round the addresses otherwise.

    What is produced has a connection of its own, so that no number of readers, nor any that read
    nothing, can keep it waiting for a stream, a window or a socket.
    """

    def __init__(self, addresses: Sequence[Address], log: str, way: Way | None = None) -> None:
        """Without `way`: plaintext."""
        self._log = log
        self._way: Way = way or Plain()
        self._picker = Picker(addresses)
        self._writing: dict[Address, Channel] = {}
        self._reading: dict[Address, Channel] = {}
        self._asking: asyncio.Task[None] | None = None
        self._closed = False

    async def open(self) -> None:
        """Connections are made when a call needs one."""

    async def open_produce(self) -> NetworkStream:
        channel = self._channel(self._writing, 1)
        try:
            call = await self._start(channel, _PRODUCE)
        except ProglogError as error:
            self.note(channel, error)
            raise
        return NetworkStream(self, channel, call, self._log)

    async def consume(
        self,
        start: Start,
        *,
        follow: bool,
        linearizable: bool = False,
        leader: bool = False,
        bytes_max: int = 0,
    ) -> AsyncGenerator[Chunk, None]:
        del leader  # Whoever is asked is the leader, as far as that is known.
        request = v1.ConsumeBatchesRequest(
            **_start_fields(start),
            follow=follow,
            max_bytes=bytes_max,
            log=self._log,
            linearizable=linearizable,
        )
        async with self._call(_CONSUME, request) as call:
            while (reply := await call.receive()) is not None:
                yield Chunk(reply.batches, reply.next_offset)

    async def read(self, offset: int, *, leader: bool = False) -> Record:
        del leader
        reply = await self.ask(_READ, v1.ConsumeRequest(offset=offset, log=self._log))
        record = reply.record
        headers = tuple((header.name, header.value) for header in record.headers)
        return Record(record.offset, record.value, record.key, headers, record.timestamp)

    async def describe(self, *, leader: bool = False) -> Description:
        del leader
        reply = await self.ask(_DESCRIBE, v1.DescribeRequest(log=self._log))
        return Description(
            **{name: getattr(reply, name) for name in Description.__dataclass_fields__}
        )

    async def close(self) -> None:
        self.abort()

    def abort(self) -> None:
        self._closed = True
        if self._asking is not None:
            self._asking.cancel()
        for channels in (self._writing, self._reading):
            for channel in channels.values():
                channel.close()
            channels.clear()

    def note(self, channel: Channel, error: ProglogError) -> None:
        """Learns from an error whom to ask next."""
        if isinstance(error, NotLeader):
            self._picker.redirect(channel.address, error.facts.get("leader_addr", ""))
        elif error.action is Action.RETRY_ELSEWHERE or error.outcome is Outcome.UNKNOWN:
            self._picker.failed(channel.address)

    def _channel(self, channels: dict[Address, Channel], connections_max: int) -> Channel:
        if self._closed:
            raise log_closed()
        address = self._picker.current
        if address not in channels:
            channels[address] = Channel(
                address,
                self._way,
                connections_max=connections_max,
                silent=self._is_silent if self._picker.others(address) else None,
            )
        return channels[address]

    # --- a node that says nothing ----------------------------------------------------------------

    def _is_silent(self, address: Address) -> None:
        if self._asking is None and not self._closed:
            self._asking = asyncio.get_running_loop().create_task(
                self._ask_others(address), name="proglog-leader"
            )

    async def _ask_others(self, silent: Address) -> None:
        """See `proglog.client.silence`."""
        try:
            others = self._picker.others(silent)
            if leader := await another_leader(others, silent, self._leader_by):
                if self._picker.current == silent:
                    self._picker.redirect(silent, leader)
                for channels in (self._writing, self._reading):
                    if silent in channels:
                        channels[silent].abandon()
        finally:
            self._asking = None

    async def _leader_by(self, address: Address) -> str:
        """Where the leader is, by the word of one node. Raises ProglogError."""
        channel = Channel(address, self._way, connections_max=1)
        try:
            call = await self._start(channel, _DESCRIBE)
            try:
                with suppress(CallEnded):
                    await call.send(v1.DescribeRequest(log=self._log), end=True)
                reply = await call.receive()
            finally:
                call.close()
        finally:
            channel.close()
        return str(reply.leader_addr) if reply is not None else ""

    async def _start(self, channel: Channel, method: Method) -> Call:
        call = Call(await channel.connection(), method)
        try:
            await call.start(self._way.scheme, str(channel.address))
        except BaseException:  # cancelled too: its stream would stay open
            call.close()
            raise
        return call

    @asynccontextmanager
    async def _call(self, method: Method, request: Any) -> AsyncIterator[Call]:
        channel = self._channel(self._reading, limits.client_read_connections_max)
        try:
            call = await self._start(channel, method)
            try:
                with suppress(CallEnded):
                    await call.send(request, end=True)
                yield call
            finally:
                call.close()
        except ProglogError as error:
            self.note(channel, error)
            raise

    async def ask(self, method: Method, request: Any) -> Any:
        """One call with one answer, tried once. Raises ProglogError."""
        async with self._call(method, request) as call:
            reply = await call.receive()
            if reply is None or await call.receive() is not None:
                raise OutcomeUnknown("the server did not answer with one message")
            return reply


class NetworkStream:
    """Batches on one call. A task reads the answers, and in the end why there are no more."""

    def __init__(self, backend: NetworkBackend, channel: Channel, call: Call, log: str) -> None:
        self._backend = backend
        self._channel = channel
        self._call = call
        self._log = log
        self._unanswered: deque[asyncio.Future[Appended]] = deque()
        self._end: ProglogError | None = None
        self._loop = asyncio.get_running_loop()
        self._reader = self._loop.create_task(self._read(), name="proglog-answers")

    async def submit(self, batch: ProposedBatch) -> asyncio.Future[Appended]:
        if self._end is not None:
            raise copy.copy(self._end) if _definite(self._end) else Unavailable(str(self._end))
        answer: asyncio.Future[Appended] = self._loop.create_future()
        # Waits for its answer before it is sent: the server may refuse it while it is on its way.
        self._unanswered.append(answer)
        with suppress(CallEnded):
            await self._call.send(ProduceBatch(batch, self._log))
        return answer

    async def close(self) -> None:
        if self._unanswered:
            self._call.distrust()
            self._backend.note(self._channel, OutcomeUnknown("answers are missing"))
        elif self._end is None:
            with suppress(TimeoutError):
                async with asyncio.timeout(limits.client_close_seconds_max):
                    await self._call.end()
                    await asyncio.wait([self._reader])
        self._reader.cancel()
        await asyncio.wait([self._reader])
        self._call.close()

    async def _read(self) -> None:
        try:
            while (produced := await self._call.receive()) is not None:
                if not self._unanswered:
                    raise OutcomeUnknown("the server answered what was not asked")
                answer = self._unanswered.popleft()
                if not answer.done():
                    answer.set_result(Appended(produced.offset, produced.timestamp))
            self._ended(OutcomeUnknown("the server ended the stream without an answer"))
        except ProglogError as error:
            self._backend.note(self._channel, error)
            self._ended(error)

    def _ended(self, error: ProglogError) -> None:
        """A refusal is that of the first batch without an answer; the server took none behind it,
        and will take none. Without a refusal, each of them may be in the log or not."""
        for answer in self._unanswered:
            if not answer.done():
                answer.set_exception(copy.copy(error))
            if _definite(error):
                error = EarlierRefused("an earlier batch was refused")
        let_go(error)
        self._end = error
        self._unanswered.clear()


def _definite(error: ProglogError) -> bool:
    return error.outcome is Outcome.DEFINITE


def _start_fields(start: Start) -> dict[str, Any]:
    if isinstance(start, At):
        return {"timestamp": start.timestamp}
    return {"offset": start} if isinstance(start, int) else {start: True}
