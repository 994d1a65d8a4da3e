"""What a running server is to others: who it is, the cluster that it belongs to, and whether it is
believed. What it writes of that is decided at once, and written in its turn.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Coroutine
from typing import Any

import structlog

from proglog import limits
from proglog.errors import DiskFull, Overloaded, StorageFailed, Unavailable
from proglog.log.log import Log
from proglog.peers.hello import Refusal
from proglog.ports import Ports
from proglog.raft.configuration import Configuration
from proglog.raft.core import Raft
from proglog.raft.hard_state import Identity
from proglog.raft.messages import HardState
from proglog.replica import floors
from proglog.replica.floors import Memory
from proglog.replica.identity import Begin
from proglog.replica.opening import FIRST_TERM, Opened
from proglog.replica.standing import Standing

_logger = structlog.get_logger("replica")


class Home:
    """Of one replica, which is the node's only one for now: its end of `proglog.peers`."""

    def __init__(
        self,
        opened: Opened,
        *,
        log: Log,
        ports: Ports,
        raft: Callable[[], Raft],
        retire: Callable[[], None],
        spawn: Callable[[Coroutine[Any, Any, None]], object],
        failed: Callable[[BaseException], None],
    ) -> None:
        """`retire` is called when this server is to take part in nothing any more."""
        self._node, self._file, self._log = opened.node, opened.hard_state, log
        self._ports, self._folder = ports, opened.folder
        self.standing = Standing(
            log=log, hard_state=self._file, raft=raft, node=self._node, memory=opened.memory
        )
        self._retire, self._spawn, self._failed = retire, spawn, failed
        self._adopted = self._node.identity.cluster_id
        self._saved = Memory({}, {})

    @property
    def identity(self) -> Identity:
        return self._node.identity

    def failed(self, error: BaseException) -> None:
        self._failed(error)

    # --- its cluster -----------------------------------------------------------------------------

    async def adopt_cluster(self, cluster_id: str) -> None:
        """Joins the cluster of a leader that called, durably. Raises Unavailable."""
        # Decided here, at once: who calls may be gone, and another call come, before it is written.
        if self._adopted not in {"", cluster_id}:
            raise Unavailable(f"this server joined cluster {self._adopted}")
        self._adopted = cluster_id
        file, node = self._file, self._node

        def adopt() -> None:
            # Read when it is written, on the thread that writes: a vote may come in between.
            file.save(file.hard_state, cluster_id)
            node.adopt(cluster_id)

        await self._log.run_job(adopt)

    async def release_cluster(self, cluster_id: str) -> None:
        """Takes a promise back, durably: to belong to a cluster that does not exist and never will,
        with what was promised (see `agent.forming`)."""
        assert self._log.tip.index == 0, "this server belongs to a cluster"
        if self._adopted == cluster_id:
            self._adopted = ""
            file, node = self._file, self._node

            def release() -> None:
                # The other way round: in between it has promised still, as the next start finds.
                node.release()
                file.save(file.hard_state, "")

            await self._log.run_job(release)

    async def begin(self, configuration: Configuration) -> Begin:
        """Begins the cluster that all these servers have promised to belong to: that it does so,
        then its first term, durably. The first batch is to follow."""
        file, node = self._file, self._node
        begin = Begin(
            file.seal.group,
            self.identity.cluster_id,
            configuration.encode().decode(),
            self._ports.clock.now_ms(),
        )

        def intend() -> None:
            node.intend(begin)
            file.save(HardState(FIRST_TERM), begin.cluster_id)

        await self._log.run_job(intend)
        return begin

    # --- what it remembers -----------------------------------------------------------------------

    async def keep_memory(self) -> None:
        """Writes down now and then what is known of the others."""
        while True:
            await asyncio.sleep(limits.floors_seconds)
            await self.save_memory()

    async def save_memory(self) -> None:
        """At once, if there is news. A disk that does not take it is told of by what needs it."""
        self.standing.look()
        memory = self.standing.memory
        memory = Memory(dict(memory.floors), dict(memory.lives))
        if memory != self._saved:
            with contextlib.suppress(OSError, StorageFailed, DiskFull, Overloaded):
                await self._log.run_job(
                    lambda: floors.save(self._ports.files, self._folder, memory)
                )
                self._saved = memory

    # --- whether it is believed ------------------------------------------------------------------

    def doubted(self, refusal: Refusal, by: str) -> None:
        """Another node has refused this one. If it says that this one has forgotten something, it
        takes part in nothing from now on, whoever is right."""
        if self.standing.doubt or not (why := self._doubt_of(refusal, by)):
            return
        self.standing.doubt = why
        _logger.error("this server is doubted", code=refusal.code, why=why)
        self._retire()
        if refusal.code != "TWIN":
            # Of two processes one may be the right one: the next start tries again.
            self._spawn(self._log.run_job(lambda: self._node.doubt(why)))

    def _doubt_of(self, refusal: Refusal, by: str) -> str:
        """What an operator is to know; empty if that is no reason to take part in nothing."""
        if refusal.code == "TWIN":
            return f"{refusal.why} (told by {by}): stop one of them, then start this node again"
        if refusal.code in {"OLD_LIFE", "ROLLED_BACK"}:
            return (
                f"{refusal.why} (told by {by}). It takes part in nothing, since others count on "
                f"what it has forgotten. Stop it; proglog renew {self._node.path} makes it a new "
                "server, which copies only what it lacks"
            )
        return ""

    def is_missed(self, leader: str, index: int) -> None:
        """A leader counts on this server for batches up to `index`, which it does not hold."""
        held = f"batch {index} was acknowledged, and its log ends at {self._log.tip.index}"
        name = self._node.identity.name
        why = f"the directory of {name} is older than what {leader} knew of it: {held}"
        self.doubted(Refusal("ROLLED_BACK", why), leader)
