"""What a log answers: plain values that server, client and API share."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from proglog.batch import Buffer, ProposedBatch, parse_header
from proglog.errors import OffsetOutOfRange, RecordLost


class Appended(NamedTuple):
    """Where a batch went: the offset of its first record, and the time, in ms since the epoch.

    The time is 0 where a retry found that its batch has been deleted by retention meanwhile.
    """

    offset: int
    timestamp: int


class Chunk(NamedTuple):
    """Committed data batches, whole and back to back, and the offset after the last of them.

    The first may begin before the offset that was asked for. Empty at the end of the log.
    """

    data: Buffer
    next_offset: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerInfo:
    """One server of the cluster's configuration."""

    name: str
    uuid: str
    rpc_addr: str
    is_leader: bool
    suffrage: str
    """"voter" or "learner"."""
    match_index: int | None = None
    """How far its log is the leader's; only the leader knows."""
    active: bool | None = None
    """Whether it answered the leader lately; only the leader knows."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterStatus:
    """What a node knows of its cluster."""

    servers: tuple[ServerInfo, ...]
    term: int
    commit_index: int
    applied_index: int
    cluster_id: str
    """Empty while the node belongs to none."""
    node: str
    """Name of the node that tells."""
    role: str
    """"leader", "follower", "candidate" or "pre-candidate"."""
    notes: tuple[str, ...] = ()
    """What operators should know, in sentences."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Description:
    """What a log holds, as this node knows it. Committed things only."""

    log: str
    cluster_id: str
    node: str
    node_uuid: str
    earliest: int
    """Oldest offset retained."""
    next: int
    """Offset that the next committed record gets."""
    bytes: int
    leader: str
    """Name of the leader, empty if none is known."""
    leader_addr: str
    term: int
    commit_index: int
    cluster_name: str = ""
    """What the node calls its cluster: it joins no other."""


def check_holds(chunk: Chunk, offset: int, describe: Callable[[], Description]) -> None:
    """That a chunk, as it was read from an offset on, begins with the batch of the record there.

    Raises OffsetOutOfRange where the log ends before it, RecordLost where a repair gave it up.
    """
    following = parse_header(chunk.data).base_offset if chunk.data else chunk.next_offset
    if following > offset:
        raise RecordLost.of(offset, following)
    if not chunk.data:
        bounds = describe()
        raise OffsetOutOfRange.of(offset, bounds.earliest, bounds.next)


class Log(Protocol):
    """What a served log does; `proglog.replica.Replica` says it in full."""

    async def propose(
        self, batch: ProposedBatch, after: asyncio.Future[Appended] | None = None
    ) -> asyncio.Future[Appended]: ...
    async def read(self, offset: int, bytes_max: int) -> Chunk: ...
    async def wait_past(self, offset: int) -> None: ...
    async def seek(self, timestamp: int) -> int: ...
    async def barrier(self) -> None: ...
    def describe(self) -> Description: ...


class Logs(Protocol):
    """The logs of a node, by name; "" is the default one. `get` raises UnknownLog."""

    def get(self, name: str) -> Log: ...
