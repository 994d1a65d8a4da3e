"""A log in this process: the client's interface straight on a replica, without a network."""

from __future__ import annotations

import asyncio
import logging
import os
import random
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import structlog
from structlog.typing import EventDict

from proglog import limits
from proglog.batch import HEADER_BYTES, ProposedBatch, Record, decode_all
from proglog.client.backend import At, Start, log_closed
from proglog.client.client import Log
from proglog.config import LogConfig
from proglog.errors import ConfigurationError, EarlierRefused, ProglogError
from proglog.peers.peers import Peers
from proglog.ports import Ports
from proglog.raft.config import RaftConfig
from proglog.replica.identity import NodeDirectory, open_node
from proglog.replica.logs import DEFAULT
from proglog.replica.replica import Replica, open_replica
from proglog.types import Appended, Chunk, Description, check_holds


def open(  # noqa: A001  # proglog.open, as in gzip.open
    data_dir: str | os.PathLike[str],
    *,
    timeout_seconds: float = limits.produce_timeout_seconds_default,
    compress: bool = False,
    idempotent: bool = True,
    segment_bytes: int = limits.embedded_segment_bytes_default,
    retention_bytes: int | None = None,
    retention_seconds: float | None = None,
) -> Log:
    """A log in this process, in a directory that is made if it is missing. No network is used.

    Use it as `async with proglog.open("data/") as log`, or `log = await proglog.open("data/")` and
    `await log.close()` at the end. The directory is that of a node, and may become one.

    Args:
        data_dir: the directory.
        timeout_seconds: how long a call keeps trying before it raises.
        compress: as for `connect`.
        idempotent: as for `connect`.
        segment_bytes: size of the log's files. One is reserved in advance, so that even an empty
            log takes as much of the disk: for many small logs, as in tests, 64 KiB will do.
        retention_bytes: the oldest files go while the log is larger; None keeps everything.
        retention_seconds: files go once all in them is older; None keeps everything.

    Raises ConfigurationError at once, and ProglogError on entering: the directory is damaged, in
    use by another process, or that of one member of a cluster.
    """
    if not __debug__:
        raise ConfigurationError("python -O drops the assertions that keep the log safe; unset it")
    config = LogConfig(
        segment_bytes=segment_bytes,
        segment_batches=_batches_of(segment_bytes),
        retention_bytes=retention_bytes,
        retention_seconds=retention_seconds,
    )
    return Log(
        LocalBackend(Path(data_dir), config),
        timeout_seconds=timeout_seconds,
        compress=compress,
        idempotent=idempotent,
    )


def _batches_of(segment_bytes: object) -> int:
    """As many as a segment can hold and no more, for the index reserves room for each."""
    if not isinstance(segment_bytes, int):
        return limits.segment_batches_default  # LogConfig says what is wrong.
    most = max(segment_bytes // HEADER_BYTES, limits.segment_batches_min)
    return min(most, limits.segment_batches_default)


async def _open_replica(
    directory: NodeDirectory, config: LogConfig, ports: Ports, peers: Peers
) -> Replica:
    return await open_replica(
        DEFAULT,
        directory,
        rpc_addr="",
        config=config,
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

    def consumed(self, size: int) -> None: ...

    def appended(self, records: int, size: int, seconds: float) -> None: ...

    def failed(self, error: BaseException) -> None: ...


class LocalBackend:
    """The log of a data directory as the client's backend."""

    def __init__(self, data_dir: Path, config: LogConfig) -> None:
        self._data_dir = data_dir
        self._config = config
        self._opened: Replica | None = None
        self._held = AsyncExitStack()
        self._closing: asyncio.Task[None] | None = None

    async def open(self) -> None:
        if not structlog.is_configured():
            _log_through_the_standard_library()
        async with AsyncExitStack() as held:
            ports = Ports()
            directory = await open_node(self._data_dir, node_name="", ports=ports)
            held.callback(directory.close)
            peers = Peers(
                connect=_nobody,
                chance=random.Random(ports.random.getrandbits(64)),
                clock=ports.clock,
                rpc_addr="",
            )
            held.callback(peers.close)
            replica = await _open_replica(directory, self._config, ports, peers)
            held.push_async_callback(replica.close)
            _check_alone(replica, self._data_dir)
            await replica.wait_ready()
            self._held, self._opened = held.pop_all(), replica

    @property
    def _replica(self) -> Replica:
        # A closed replica would say that it stops, which is worth another try.
        if self._closing is not None or self._opened is None:
            raise log_closed()
        return self._opened

    async def open_produce(self) -> LocalProduceStream:
        return LocalProduceStream(self._replica)

    async def consume(
        self,
        start: Start,
        *,
        follow: bool,
        linearizable: bool = False,
        leader: bool = False,
        bytes_max: int = 0,
    ) -> AsyncGenerator[Chunk, None]:
        del leader  # The only node leads.
        replica = self._replica
        if linearizable:
            await replica.barrier()
        offset = start if isinstance(start, int) else await _locate(replica, start)
        chunk = await replica.read(offset, bytes_max or limits.read_bytes_max)
        yield chunk
        while chunk.next_offset > offset or follow:
            if chunk.next_offset == offset:
                await replica.wait_past(offset)
            offset = chunk.next_offset
            chunk = await replica.read(offset, bytes_max or limits.read_bytes_max)
            if chunk.next_offset > offset:
                yield chunk

    async def read(self, offset: int, *, leader: bool = False) -> Record:
        del leader
        replica = self._replica
        chunk = await replica.read(offset, 1)
        check_holds(chunk, offset, replica.describe)
        batch, *_ = decode_all(chunk.data)
        return batch[offset - batch.base_offset]

    async def describe(self, *, leader: bool = False) -> Description:
        del leader
        return self._replica.describe()

    async def close(self) -> None:
        self.abort()
        assert self._closing is not None, "it was just begun"
        # Whoever waits may be cancelled: what holds the directory still ends.
        await asyncio.shield(self._closing)

    def abort(self) -> None:
        if self._closing is None:
            self._closing = asyncio.get_running_loop().create_task(self._held.aclose())
            _closings.add(self._closing)
            self._closing.add_done_callback(_closings.discard)


_closings: set[asyncio.Task[None]] = set()
"""Of logs that are closed, maybe because nobody holds them any more."""


def _check_alone(replica: Replica, data_dir: Path) -> None:
    """Raises ConfigurationError for one member of a cluster, which would wait for the others."""
    others = len(replica.leadership.configuration.voters) - 1
    if others > 0:
        raise ConfigurationError(
            f"{data_dir} belongs to a member of a cluster, which can do nothing without its"
            f" {others} other voter{'s' * (others > 1)}: start it with `proglog serve` and use"
            " proglog.connect"
        )


async def _locate(replica: Replica, start: Start) -> int:
    match start:
        case "earliest":
            return replica.earliest
        case "latest":
            return replica.next_offset
        case At(timestamp):
            return await replica.seek(timestamp)
    raise AssertionError(f"{start!r} is no place to start")


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
