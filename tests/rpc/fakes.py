"""A log in memory that keeps the promises of `proglog.replica`, and a node around it."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Self

from grpclib.client import Channel
from grpclib.config import Configuration

from proglog import batch, limits, wire
from proglog.auth import principal as principals
from proglog.auth.gate import Gate
from proglog.auth.principal import Principal
from proglog.batch import Kind, ProposedBatch
from proglog.errors import ChangeRefused, OffsetOutOfRange, ProglogError, UnknownLog
from proglog.membership import Member
from proglog.net.listening import listen
from proglog.rpc.handshake import Tls
from proglog.rpc.mux import Mux
from proglog.rpc.routes import Routes
from proglog.rpc.server import RpcServer
from proglog.types import Appended, Chunk, ClusterStatus, Description, ServerInfo


class MemoryLog:
    """Appends at once; answers when `sync` is called, or soon if `durable_at_once`."""

    def __init__(self, first: int = 0) -> None:
        self.batches: list[tuple[batch.BatchHeader, bytes]] = []
        self.earliest = self.next = first
        self.durable_at_once = True
        self.refusals: list[ProglogError | None] = []
        self.waiting: list[asyncio.Future[Appended]] = []
        self.readers = 0
        self.max_unanswered = 0
        self.barriers = 0
        self._grown: set[asyncio.Future[None]] = set()

    async def propose(
        self, proposed: ProposedBatch, after: asyncio.Future[Appended] | None = None
    ) -> asyncio.Future[Appended]:
        refusal = self.refusals.pop(0) if self.refusals else None
        if refusal is not None:
            raise refusal
        batch.check_body(proposed.body)
        header, packed = batch.build(
            proposed.body,
            kind=Kind.DATA,
            index=len(self.batches) + 1,
            term=3,
            base_offset=self.next,
            timestamp=1_000 + self.next,
            chain_crc=0,
        )
        self.batches.append((header, packed + bytes(proposed.body.data)))
        self.next = header.next_offset
        future = asyncio.get_running_loop().create_future()
        future.answer = Appended(header.base_offset, header.timestamp)
        self.waiting.append(future)
        self.max_unanswered = max(self.max_unanswered, len(self.waiting))
        if self.durable_at_once:
            asyncio.get_running_loop().call_soon(self.sync)
        return future

    def sync(self) -> None:
        waiting, self.waiting = self.waiting, []
        for future in waiting:
            if not future.cancelled():
                future.set_result(future.answer)
        grown, self._grown = self._grown, set()
        for waiter in grown:
            if not waiter.done():
                waiter.set_result(None)

    async def append(self, *values: bytes, **columns: object) -> int:
        body = batch.encode(values, **columns)
        appended = await (await self.propose(ProposedBatch(body)))
        return appended.offset

    async def read(self, offset: int, bytes_max: int) -> Chunk:
        if not self.earliest <= offset <= self.next:
            raise OffsetOutOfRange.of(offset, self.earliest, self.next)
        data, next_offset = b"", offset
        for header, whole in self.batches:
            if header.next_offset <= offset:
                continue
            if data and len(data) + len(whole) > bytes_max:
                break
            data += whole
            next_offset = header.next_offset
        return Chunk(data, next_offset if data else self.next)

    async def wait_past(self, offset: int) -> None:
        self.readers += 1
        try:
            while self.next <= offset:
                waiter = asyncio.get_running_loop().create_future()
                self._grown.add(waiter)
                await waiter
        finally:
            self.readers -= 1

    async def seek(self, timestamp: int) -> int:
        found = (h.base_offset for h, _ in self.batches if h.timestamp >= timestamp)
        return next(found, self.next)

    async def barrier(self) -> None:
        self.barriers += 1

    def describe(self) -> Description:
        return Description(
            log="default",
            cluster_id="c",
            node="n0",
            node_uuid="u0",
            earliest=self.earliest,
            next=self.next,
            bytes=sum(len(whole) for _, whole in self.batches),
            leader="n0",
            leader_addr="127.0.0.1:8400",
            term=3,
            commit_index=len(self.batches),
        )


class MemoryLogs:
    def __init__(self, log: MemoryLog) -> None:
        self.log = log

    def get(self, name: str) -> MemoryLog:
        if name not in ("", "default"):
            raise UnknownLog(f"there is no log {name!r}", log=name)
        return self.log


class MemoryCluster:
    """Keeps what it was asked for."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, str]] = []

    def servers(self) -> list[ServerInfo]:
        return [
            ServerInfo(
                name="n0", uuid="u0", rpc_addr="127.0.0.1:8400", is_leader=True, suffrage="voter"
            )
        ]

    def status(self) -> ClusterStatus:
        return ClusterStatus(
            servers=tuple(self.servers()),
            term=3,
            commit_index=8,
            applied_index=7,
            cluster_id="c",
            node="n0",
            role="leader",
        )

    async def add(self, rpc_addr: str) -> None:
        self.asked.append(("add", rpc_addr))

    async def remove(self, name: str) -> None:
        raise ChangeRefused(f"{name} is the last voter")

    def members(self) -> list[Member]:
        return []

    async def leave(self) -> None:
        self.asked.append(("leave", ""))

    async def promise(self, cluster_id: str, uuids: Sequence[str]) -> None:
        self.asked.append(("promise", cluster_id))

    def is_own(self, principal: Principal, name: str) -> bool:
        return principal.kind is principals.Kind.PEER and f"proglog:peer:{name}" in principal.names

    async def transfer(self, name: str) -> None:
        self.asked.append(("transfer", name))


class Recorder(asyncio.Protocol):
    """Answers `name:` and what it received, and keeps it."""

    def __init__(self, name: str, connections: list[Recorder], principal: Principal) -> None:
        self.name = name
        self.principal = principal
        self.received = b""
        connections.append(self)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.received += data
        self.transport.write(self.name.encode() + b":" + data)


class Node:
    """A server behind a mux, as an agent would make it."""

    def __init__(
        self, log: MemoryLog | None = None, tls: Tls | None = None, gate: Gate | None = None
    ) -> None:
        self.log = log or MemoryLog()
        logs = MemoryLogs(self.log)
        self.cluster = MemoryCluster()
        self.server = RpcServer(logs, self.cluster, gate)
        self.raft: list[Recorder] = []
        self.http: list[Recorder] = []
        routes = Routes(
            grpc=self.server.protocol_factory,
            http=lambda who: Recorder("http", self.http, who),
            raft=lambda who: Recorder("raft", self.raft, who),
        )
        self.mux = Mux(listen("127.0.0.1", 0), routes, tls=tls)
        self.host, self.port = self.mux.address

    async def __aenter__(self) -> Self:
        self.serving = asyncio.get_running_loop().create_task(self.mux.serve())
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.server.close()
        for recorder in self.raft + self.http:
            recorder.transport.abort()
        await self.mux.close()
        await self.serving

    @property
    def calls(self) -> int:
        return sum(len(c.calls) for c in self.server._connections)


def new_channel(node: Node) -> Channel:
    """grpclib's own client with our codec, and windows that let one stream stall."""
    return Channel(
        node.host,
        node.port,
        codec=wire.Codec(),
        status_details_codec=wire.ErrorDetails(),
        config=Configuration(
            http2_connection_window_size=64 << 20, http2_stream_window_size=1 << 20
        ),
    )


PRODUCE_BOUND = limits.stream_inflight_batches_max
