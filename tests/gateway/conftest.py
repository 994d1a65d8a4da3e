"""A gateway on a free port, over a log in memory."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

import aiohttp
import pytest

from proglog import batch
from proglog.batch import Kind, ProposedBatch
from proglog.errors import OffsetMismatch, OffsetOutOfRange, ProglogError, UnknownLog
from proglog.gateway import Gateway, Probes
from proglog.gateway.browsers import Browsers
from proglog.gateway.console.feed import Feed
from proglog.net.listening import listen
from proglog.observability.history import History
from proglog.observability.metrics import Metrics
from proglog.rpc.mux import Mux
from proglog.rpc.routes import Routes
from proglog.types import Appended, Chunk, Description

TIME = 1_700_000_000_000


class FakeReplica:
    """The interface of a replica, over a list. `refusal` is raised in place of an append."""

    name = "default"

    def __init__(self) -> None:
        self.batches: list[tuple[int, int, bytes]] = []
        self.earliest = 0
        self.next = 0
        self.refusal: ProglogError | None = None
        self.reads = 0
        self._appended = asyncio.Event()

    def append(self, *values: bytes, compress: bool = False) -> None:
        self._append(batch.encode(values, compress=compress))

    def _append(self, body: batch.Body) -> Appended:
        header, packed = batch.build(
            body,
            kind=Kind.DATA,
            index=len(self.batches) + 1,
            term=1,
            base_offset=self.next,
            timestamp=TIME,
            chain_crc=0,
        )
        self.batches.append((self.next, header.next_offset, packed + bytes(body.data)))
        self.next = header.next_offset
        self.wake()
        return Appended(header.base_offset, TIME)

    def wake(self) -> None:
        self._appended.set()
        self._appended = asyncio.Event()

    async def propose(
        self, proposed: ProposedBatch, after: asyncio.Future[Appended] | None = None
    ) -> asyncio.Future[Appended]:
        await asyncio.sleep(0)
        if self.refusal is not None:
            raise self.refusal
        batch.check_body(proposed.body)
        if proposed.expected_offset not in (None, self.next):
            raise OffsetMismatch("no", expected=proposed.expected_offset, next=self.next)
        future = asyncio.get_running_loop().create_future()
        future.set_result(self._append(proposed.body))
        return future

    async def read(self, offset: int, bytes_max: int) -> Chunk:
        await asyncio.sleep(0)
        self.reads += 1
        if not self.earliest <= offset <= self.next:
            raise OffsetOutOfRange.of(offset, self.earliest, self.next)
        data = b""
        for _, stop, stored in self.batches:
            if stop > offset and (not data or len(data) + len(stored) <= bytes_max):
                data += stored
                next_offset = stop
        return Chunk(data, next_offset) if data else Chunk(b"", self.next)

    async def seek(self, timestamp: int) -> int:
        return 0 if timestamp <= TIME else self.next

    async def wait_past(self, offset: int) -> None:
        while self.next <= offset and self.earliest <= offset:
            await self._appended.wait()

    def describe(self) -> Description:
        return Description(
            log="default",
            cluster_id="c",
            node="n",
            node_uuid="0",
            earliest=self.earliest,
            next=self.next,
            bytes=0,
            leader="n",
            leader_addr="127.0.0.1:8400",
            term=1,
            commit_index=len(self.batches),
        )


class FakeLogs:
    """One log, the default one."""

    def __init__(self, replica: FakeReplica) -> None:
        self._replica = replica

    def get(self, name: str) -> FakeReplica:
        if name not in {"", "default"}:
            raise UnknownLog(f"there is no log {name!r}", log=name)
        return self._replica


@dataclass
class Node:
    """What a test talks to."""

    replica: FakeReplica
    metrics: Metrics
    gateway: Gateway
    probes: dict[str, str]
    feed: Feed
    host: str = ""
    port: int = 0
    http: aiohttp.ClientSession = field(init=False)

    @property
    def url(self) -> str:
        return f"http://{self.host}:{self.port}"

    async def raw(self, request: bytes) -> bytes:
        """What a connection answers to these bytes until it closes."""
        reader, writer = await asyncio.open_connection(self.host, self.port)
        writer.write(request)
        try:
            return await reader.read()
        finally:
            writer.close()
            await writer.wait_closed()


@pytest.fixture
async def node() -> AsyncIterator[Node]:
    replica, metrics = FakeReplica(), Metrics()
    answers = {"live": "", "ready": "", "started": ""}
    probes = Probes(
        live=lambda: answers["live"],
        ready=lambda: answers["ready"],
        started=lambda: answers["started"],
    )
    feed = Feed(History(metrics, lambda: replica.next))
    gateway = Gateway(
        FakeLogs(replica),
        metrics,
        browsers=Browsers(
            ["log.example", "Other.Example:80"],
            ["https://app.example", "https://in.example+credentials"],
        ),
        probes=probes,
        feed=feed,
    )
    node = Node(replica, metrics, gateway, answers, feed)
    await gateway.start()
    mux = Mux(listen("127.0.0.1", 0), Routes(http=gateway.factory))
    serving = asyncio.get_running_loop().create_task(mux.serve())
    node.host, node.port = mux.address
    try:
        async with aiohttp.ClientSession(node.url) as node.http:
            yield node
    finally:
        await mux.close()
        await serving
        await gateway.close()
