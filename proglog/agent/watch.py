"""Looks at the node once a second, for those who watch it."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from pathlib import Path

import proglog
from proglog.gateway.console.feed import Feed
from proglog.membership import Membership
from proglog.observability.history import History
from proglog.observability.view import ServerView, View, changes
from proglog.ports import Ports
from proglog.replica.replica import Replica

_SECOND = 1.0
_DISK_LOOKS_EVERY = 10
"""Seconds between looks at the disk, which may keep one waiting: on a thread."""


class Watch:
    """One a node. `run` it."""

    def __init__(
        self,
        replica: Replica,
        membership: Membership,
        ports: Ports,
        *,
        cluster_name: str,
        data_dir: Path,
        answers: Callable[[str], bool],
        not_ready: Callable[[], str],
        not_live: Callable[[], str],
        history: History,
        feed: Feed,
    ) -> None:
        self._replica = replica
        self._membership = membership
        self._clock = ports.clock
        self._cluster_name = cluster_name
        self._data_dir = data_dir
        self._answers = answers
        self._not_ready = not_ready
        self._not_live = not_live
        self._history = history
        self._feed = feed
        self._started_at = self._clock.now_ms()
        self._disk = (0, 0)
        self._led_by: tuple[str, int] | None = None
        self._leader_changes = 0
        self._leaderless_seconds = 0.0

    async def run(self) -> None:
        """Never ends."""
        loop = asyncio.get_running_loop()
        self._feed.view = before = self._look()
        at, seconds = loop.time(), 0
        while True:
            if seconds % _DISK_LOOKS_EVERY == 0:
                self._disk = await asyncio.to_thread(_disk_space, self._data_dir)
            seconds += 1
            due = loop.time() + _SECOND
            await asyncio.sleep(_SECOND)
            now = loop.time()
            view = self._look()
            self._count(view, now - at)
            for event in changes(before, view):
                self._history.add(event)
            sample = self._history.sample(now - at, max(0.0, now - due))
            self._feed.publish(view, sample)
            self._feed.view = before = view
            at = now

    def _count(self, view: View, elapsed: float) -> None:
        if not view.leader:
            self._leaderless_seconds += elapsed
        elif self._led_by != (view.leader, view.term):
            self._leader_changes += self._led_by is not None
            self._led_by = view.leader, view.term

    def _look(self) -> View:
        replica, status = self._replica, self._replica.cluster_status()
        leader = replica.leadership.leader
        return View(
            at=self._clock.now_ms(),
            node=status.node,
            version=proglog.__version__,
            started_at=self._started_at,
            cluster=self._cluster_name,
            cluster_id=status.cluster_id,
            role=status.role,
            term=status.term,
            leader=leader.name if leader else "",
            leader_address=leader.rpc_addr if leader else "",
            servers=self._servers(),
            commit_index=status.commit_index,
            applied_index=status.applied_index,
            earliest=replica.earliest,
            next=replica.next_offset,
            bytes=replica.log.bytes_upto(replica.applied_index),
            disk_free=self._disk[0],
            disk_total=self._disk[1],
            leader_changes=self._leader_changes,
            leaderless_seconds=self._leaderless_seconds,
            not_ready=self._not_ready(),
            not_live=self._not_live(),
        )

    def _servers(self) -> tuple[ServerView, ...]:
        status = self._replica.cluster_status()
        gossip = {member.name: member.status for member in self._membership.members()}
        last = self._replica.status().last_index
        return tuple(
            ServerView(
                name=server.name,
                address=server.rpc_addr,
                leads=server.is_leader,
                votes=server.suffrage == "voter",
                here=server.name == status.node,
                gossip=str(gossip.get(server.name, "unknown")),
                behind=None if server.match_index is None else last - server.match_index,
                answers=server.name == status.node or self._answers(server.uuid),
            )
            for server in sorted(status.servers, key=lambda server: server.name)
        )


def _disk_space(folder: Path) -> tuple[int, int]:
    """Bytes that are free for this process, and all. Nothing of a disk that cannot be asked."""
    try:
        found = os.statvfs(folder)
    except OSError:
        return 0, 0
    return found.f_bavail * found.f_frsize, found.f_blocks * found.f_frsize
