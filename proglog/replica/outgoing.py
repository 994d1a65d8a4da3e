"""What goes to one peer in bulk: appends, with their batches, and snapshots."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Protocol

import structlog

from proglog import limits
from proglog.batch import Buffer
from proglog.errors import ProglogError, RangeCorrupt, Unavailable
from proglog.log.log import Log
from proglog.peers.peer import Peer
from proglog.raft.messages import AppendRequest, InstallSnapshot
from proglog.replica import messages

_logger = structlog.get_logger("replica")


class Source(Protocol):
    """Whose batches they are."""

    group: int
    log: Log

    @property
    def term(self) -> int:
        """The newest term that this server knows of."""

    def unreachable(self, peer: str) -> None:
        """What was sent may be lost."""

    def damaged(self, error: RangeCorrupt) -> None:
        """A batch that a follower needs cannot be read."""

    def failed(self, error: BaseException) -> None: ...


class Outgoing:
    """Sending never waits: what cannot be sent is dropped, and the core is told."""

    def __init__(self, source: Source, peer: Peer) -> None:
        self._source = source
        self.peer = peer
        self._queue: deque[AppendRequest | InstallSnapshot] = deque()
        self._feeding: asyncio.Task[None] | None = None

    def send(self, message: AppendRequest | InstallSnapshot) -> None:
        if not self.peer.bulk.is_open:
            self.peer.dial_soon()
            self._lost()
            return
        if self._feeding is not None and _is_empty(message):
            return  # It only asks for an answer, which those before it bring as well.
        # The core's window bounds what is queued here, in messages and in bytes.
        if self._feeding is None and self._is_sent_at_once(message):
            return
        self._queue.append(message)
        if self._feeding is None:
            self._feeding = asyncio.get_running_loop().create_task(self._feed())

    def _is_sent_at_once(self, message: AppendRequest | InstallSnapshot) -> bool:
        """What is in memory, as all is for a follower that keeps up, needs no task."""
        if not isinstance(message, AppendRequest) or self.peer.bulk.is_blocked:
            return False
        if not self._is_of_this_term(message):
            return False
        run = self._source.log.read_newest(
            message.prev_index + 1, message.last_index, limits.batch_bytes_max
        )
        if run is None or len(run.headers) < message.last_index - message.prev_index:
            return False
        self.peer.bulk.write(messages.encode_append(self._source.group, message, [run.data]))
        return True

    async def _feed(self) -> None:
        """Attaches the batches and writes, as fast as the connection takes them."""
        group, bulk = self._source.group, self.peer.bulk
        try:
            while self._queue:
                await bulk.writable()
                message = self._queue.popleft()
                if isinstance(message, AppendRequest):
                    parts = await self._batches_of(message)
                    if not self._is_of_this_term(message):
                        raise Unavailable("the term it was meant for is over")
                    bulk.write(messages.encode_append(group, message, parts))
                else:
                    bulk.write(await self._snapshot_for(message))
        except ProglogError as error:
            if isinstance(error, RangeCorrupt):
                self._source.damaged(error)
            # Cut, compacted or corrupt meanwhile, or the connection is gone: the core probes again.
            _logger.info("append not sent", peer=self.peer.name, error=str(error))
            self._lost()
        except asyncio.CancelledError:
            raise  # The peer is no member any more, or this node stops.
        except BaseException as error:
            self._source.failed(error)
            raise
        finally:
            self._feeding = None

    async def _snapshot_for(self, message: InstallSnapshot) -> list[Buffer]:
        """The newest snapshot is sent, whichever was the base when the core asked for one: it is
        committed too, and what follows it is all in the log."""
        snapshot = await self._source.log.read_snapshot()
        tip = snapshot.tip
        assert tip.index >= message.index, "a snapshot at the base is kept until there is a newer"
        newest = message._replace(index=tip.index, snapshot_term=tip.term)
        return messages.encode_install(self._source.group, newest, snapshot)

    async def _batches_of(self, request: AppendRequest) -> list[Buffer]:
        log = self._source.log
        parts: list[Buffer] = []
        index = request.prev_index + 1
        while index <= request.last_index:
            if not log.first_index <= index or request.last_index > log.tip.index:
                raise Unavailable("the log was cut or compacted since")
            run = await log.read(index, request.last_index, limits.batch_bytes_max)
            parts.append(run.data)
            index = run.headers[-1].index + 1
        return parts

    def _is_of_this_term(self, request: AppendRequest) -> bool:
        """Within a term the log of its leader only grows, so what is read from it are the batches
        that were meant. In a later one others may stand there, which do not follow `prev_term`."""
        return self._source.term == request.term

    def _lost(self) -> None:
        self._queue.clear()
        self._source.unreachable(self.peer.uuid)

    def close(self) -> None:
        if self._feeding is not None:
            self._feeding.cancel()


def _is_empty(message: AppendRequest | InstallSnapshot) -> bool:
    return isinstance(message, AppendRequest) and message.prev_index == message.last_index
