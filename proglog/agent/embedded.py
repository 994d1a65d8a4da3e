"""A log in this process: the client's interface straight on a replica, without a network."""

from __future__ import annotations

import asyncio
import logging
import os
import random
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import structlog
from structlog.typing import EventDict

from proglog import limits
from proglog.batch import ProposedBatch, Record, decode_all
from proglog.client.backend import At, Start, log_closed, to_timeout
from proglog.client.client import Log
from proglog.config import LogConfig
from proglog.errors import EarlierRefused, ProglogError
from proglog.peers.peers import Peers
from proglog.ports import Ports
from proglog.raft.config import RaftConfig
from proglog.replica.identity import NodeDirectory, open_node
from proglog.replica.logs import DEFAULT
from proglog.replica.replica import Replica, open_replica
from proglog.types import Appended, Chunk, Description, check_holds


@asynccontextmanager
async def open(  # noqa: A001  # proglog.open, as in gzip.open
    data_dir: str | os.PathLike[str],
    *,
    timeout_seconds: float = limits.produce_timeout_seconds_default,
    compress: bool = False,
    idempotent: bool = True,
) -> AsyncIterator[Log]:
    """A log in this process, in a directory that is made if it is missing. No network is used.

    Use it as `async with proglog.open("data/") as log`. The arguments are those of `connect`. The
    directory is that of a node, and may become one.

    Raises ProglogError on entering: the directory is damaged, or in use by another process.
    """
    to_timeout(timeout_seconds)  # Before anything is made on disk.
    if not structlog.is_configured():
        _log_through_the_standard_library()
    ports = Ports()
    directory = await open_node(Path(data_dir), node_name="", ports=ports)
    try:
        peers = Peers(
            connect=_nobody,
            chance=random.Random(ports.random.getrandbits(64)),
            clock=ports.clock,
            rpc_addr="",
        )
        replica = await _open_replica(directory, ports, peers)
        try:
            await replica.wait_ready()
            async with Log(
                LocalBackend(replica),
                timeout_seconds=timeout_seconds,
                compress=compress,
                idempotent=idempotent,
            ) as log:
                yield log
        finally:
            await replica.close()
            peers.close()
    finally:
        directory.close()


async def _open_replica(directory: NodeDirectory, ports: Ports, peers: Peers) -> Replica:
    return await open_replica(
        DEFAULT,
        directory,
        rpc_addr="",
        config=LogConfig(),
        raft_config=RaftConfig(),
        ports=ports,
        observer=_Unobserved(),
        bootstrap=True,
        peers=peers,
    )


def _log_through_the_standard_library() -> None:
    """Unconfigured, structlog prints, which a library must not do in somebody else's program."""
    structlog.configure(
        processors=[structlog.stdlib.filter_by_level, _to_line],
        wrapper_class=structlog.stdlib.BoundLogger,
        logger_factory=lambda *_: logging.getLogger("proglog"),
    )


def _to_line(_logger: object, _method: str, event: EventDict) -> tuple[tuple[str], dict[str, Any]]:
    """An event as what a method of `logging.Logger` takes."""
    exc_info = event.pop("exc_info", None)
    message = str(event.pop("event"))
    return (" ".join([message, *(f"{name}={event[name]!r}" for name in event)]),), {
        "exc_info": exc_info
    }


async def _nobody(address: str, factory: object) -> None:
    del factory
    raise OSError(f"a log in a process dials nobody, not even {address}")


class _Unobserved:
    """A fault of the disk reaches the program by the calls that it fails."""

    def group_written(self, batches: int, size: int, seconds: float) -> None: ...

    def appended(self, records: int, size: int, seconds: float) -> None: ...

    def failed(self, error: BaseException) -> None: ...


class LocalBackend:
    """A replica as the client's backend."""

    def __init__(self, replica: Replica) -> None:
        self._replica = replica
        self._closed = False

    async def open_produce(self) -> LocalProduceStream:
        return LocalProduceStream(self._replica)

    async def consume(
        self, start: Start, *, follow: bool, linearizable: bool = False, bytes_max: int = 0
    ) -> AsyncGenerator[Chunk, None]:
        self._check_open()
        replica = self._replica
        if linearizable:
            await replica.barrier()
        offset = start if isinstance(start, int) else await self._locate(start)
        if not isinstance(start, int):
            yield Chunk(b"", offset)
        while True:
            chunk = await replica.read(offset, bytes_max or limits.read_bytes_max)
            if chunk.next_offset > offset:
                offset = chunk.next_offset
                yield chunk
            elif follow:
                await replica.wait_past(offset)
            else:
                return

    async def _locate(self, start: Start) -> int:
        match start:
            case "earliest":
                return self._replica.earliest
            case "latest":
                return self._replica.next_offset
            case At(timestamp):
                return await self._replica.seek(timestamp)
        raise AssertionError(f"{start!r} is no place to start")

    async def read(self, offset: int) -> Record:
        self._check_open()
        chunk = await self._replica.read(offset, 1)
        check_holds(chunk, offset, self._replica.describe)
        batch, *_ = decode_all(chunk.data)
        return batch[offset - batch.base_offset]

    async def describe(self) -> Description:
        return self._replica.describe()

    async def close(self) -> None:
        """The replica belongs to `open`."""
        self._closed = True

    def _check_open(self) -> None:
        # The replica would say that it stops, which is worth another try.
        if self._closed:
            raise log_closed()


class LocalProduceStream:
    """See `client.backend.ProduceStream`."""

    def __init__(self, replica: Replica) -> None:
        self._replica = replica
        self._refused = False

    async def submit(self, batch: ProposedBatch) -> asyncio.Future[Appended]:
        if self._refused:
            raise EarlierRefused("an earlier batch of this stream was refused")
        try:
            return await self._replica.propose(batch)
        except ProglogError:
            self._refused = True
            raise

    async def close(self) -> None:
        """Nothing is held."""
