"""The backend that reaches a log over gRPC: which node, which connection, which call."""

from __future__ import annotations

import asyncio
import copy
import random
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any

from proglog import limits
from proglog._generated.log import v1
from proglog.batch import ProposedBatch, Record
from proglog.client.backend import At, Start, log_closed
from proglog.client.call import Call, CallEnded, Method
from proglog.client.channel import Channel
from proglog.client.servers import Known, Servers
from proglog.client.silence import another_leader
from proglog.config import Address
from proglog.errors import (
    Action,
    ConfigurationError,
    EarlierRefused,
    NotLeader,
    Outcome,
    OutcomeUnknown,
    ProglogError,
    Unavailable,
    let_go,
)
from proglog.net.dialling import Plain, Way, forget_failure
from proglog.types import Appended, Chunk, Description
from proglog.wire import ProduceBatch

_PRODUCE = Method("ProduceBatches", v1.ProduceBatchesRequest, v1.ProduceBatchesResponse)
_CONSUME = Method("ConsumeBatches", v1.ConsumeBatchesRequest, v1.ConsumeBatchesResponse)
_READ = Method("Consume", v1.ConsumeRequest, v1.ConsumeResponse)
_DESCRIBE = Method("Describe", v1.DescribeRequest, v1.DescribeResponse)
_SERVERS = Method("GetServers", v1.GetServersRequest, v1.GetServersResponse)


class NetworkBackend:
    """One log of a node or a cluster. `Servers` decides which node is asked; the list that it
    decides by is asked for when a call begins and the list is old, so that an idle log asks nobody.

    What is produced has a connection of its own, so that no number of readers, nor any that read
    nothing, can keep it waiting for a stream, a window or a socket.
    """

    def __init__(
        self,
        addresses: Sequence[Address],
        log: str,
        way: Way | None = None,
        chance: random.Random | None = None,
    ) -> None:
        """Without `way`: plaintext."""
        self._log = log
        self._way: Way = way or Plain()
        self._servers = Servers(addresses, chance or random.Random())
        self._learning: asyncio.Task[None] | None = None
        self._writing: dict[Address, Channel] = {}
        self._reading: dict[Address, Channel] = {}
        self._asking: asyncio.Task[None] | None = None
        self._closed = False

    async def open(self) -> None:
        """Connections are made when a call needs one."""

    async def open_produce(self) -> NetworkStream:
        if len(self._servers.seeds) > 1:
            await self._learn()
        channel = self._channel(self._writing, self._servers.to_write, 1)
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
        at: Address | None = None,
    ) -> AsyncGenerator[Chunk, None]:
        """`at`: of the node there, and of no other one."""
        request = v1.ConsumeBatchesRequest(
            **_start_fields(start),
            follow=follow,
            max_bytes=bytes_max,
            log=self._log,
            linearizable=linearizable,
        )
        # A linearizable read is the leader's business.
        address = at or await self._to_read(leader=leader or linearizable)
        async with self._call(_CONSUME, request, address) as call:
            while (reply := await call.receive()) is not None:
                yield Chunk(reply.batches, reply.next_offset)

    async def read(self, offset: int, *, leader: bool = False) -> Record:
        request = v1.ConsumeRequest(offset=offset, log=self._log)
        reply = await self.ask(_READ, request, await self._to_read(leader=leader))
        record = reply.record
        headers = tuple((header.name, header.value) for header in record.headers)
        return Record(record.offset, record.value, record.key, headers, record.timestamp)

    async def describe(self, *, leader: bool = False, at: Address | None = None) -> Description:
        """`at`: what the node there says, and no other one."""
        request = v1.DescribeRequest(log=self._log)
        address = at or await self._to_read(leader=leader)
        reply = await self.ask(_DESCRIBE, request, address)
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
            self._servers.redirect(channel.address, error.facts.get("leader_addr", ""))
        elif error.action is Action.RETRY_ELSEWHERE or error.outcome is Outcome.UNKNOWN:
            self._servers.failed(channel.address, asyncio.get_running_loop().time())

    async def _to_read(self, *, leader: bool) -> Address:
        await self._learn()
        if leader:
            return self._servers.to_write
        return self._servers.to_read(asyncio.get_running_loop().time())

    async def _learn(self) -> None:
        """Asks for the list of servers where it is due. Nothing depends on an answer: without one,
        those are asked that are known."""
        loop = asyncio.get_running_loop()
        if self._learning is None or self._learning.done():
            if self._closed or not self._servers.is_due(loop.time()):
                return
            self._servers.asked(loop.time())
            self._learning = loop.create_task(self._ask_for_servers(), name="proglog-servers")
            self._learning.add_done_callback(forget_failure)
        # Whoever is cancelled leaves it to the others.
        await asyncio.wait([self._learning])

    async def _ask_for_servers(self) -> None:
        """Of whoever answers first: the one that would be asked now, and soon all seeds beside."""
        first = self._servers.to_write
        others = [seed for seed in self._servers.seeds if seed != first]
        asking = {asyncio.ensure_future(self._servers_of(each)) for each in (first, *others)}
        try:
            async with asyncio.timeout(limits.client_servers_wait_seconds_max):
                while asking:
                    done, asking = await asyncio.wait(asking, return_when=asyncio.FIRST_COMPLETED)
                    told = [each.result() for each in done if each.exception() is None]
                    if any(told):
                        self._servers.told(next(filter(None, told)))
                        return
        except TimeoutError:
            return
        finally:
            for each in asking:
                each.cancel()
                each.add_done_callback(forget_failure)

    async def _servers_of(self, address: Address) -> list[Known]:
        reply = await self.ask(_SERVERS, v1.GetServersRequest(), address)
        known = []
        for server in reply.servers:
            with suppress(ConfigurationError):  # One that does not say where it is.
                if server.suffrage != "learner":
                    known.append(Known(Address.parse(server.rpc_addr), server.is_leader))
        return known

    def _channel(
        self, channels: dict[Address, Channel], address: Address, connections_max: int
    ) -> Channel:
        if self._closed:
            raise log_closed()
        if address not in channels:
            channels[address] = Channel(
                address,
                self._way,
                connections_max=connections_max,
                silent=self._is_silent if self._servers.others(address) else None,
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
            others = self._servers.others(silent)
            if leader := await another_leader(others, silent, self._leader_by):
                if self._servers.to_write == silent:
                    self._servers.redirect(silent, leader)
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
    async def _call(
        self, method: Method, request: Any, address: Address | None = None
    ) -> AsyncIterator[Call]:
        """A call of a node; of the leader, as far as it is known, where none is named."""
        asked = address or self._servers.to_write
        channel = self._channel(self._reading, asked, limits.client_read_connections_max)
        try:
            call = await self._start(channel, method)
            try:
                with suppress(CallEnded):
                    await call.send(request, end=True)
                yield call
                self._servers.worked(asked)
            finally:
                call.close()
        except ProglogError as error:
            self.note(channel, error)
            raise

    async def ask(self, method: Method, request: Any, address: Address | None = None) -> Any:
        """One call with one answer, tried once, of the leader as far as it is known unless an
        address is named. Raises ProglogError."""
        async with self._call(method, request, address) as call:
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
