"""Ready for the first time: once a node has caught up with its cluster.

Who updates a cluster node by node, and who evicts pods, takes the next one as soon as this one is
ready. A node that has still much to fetch, or no vote yet, bears none of the load of the one that
goes; so it is not ready before. Later it is ready as long as it knows a leader: nobody restarts the
cluster in circles because it is slow for a while.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from proglog import limits
from proglog.errors import ProglogError
from proglog.raft.configuration import Configuration
from proglog.replica.replica import Replica


def has_its_place(configuration: Configuration, own: str) -> bool:
    """Whether a server votes, or is to stay without a vote: as the second of two, or where as many
    vote as may."""
    voters = len(configuration.voters)
    return configuration.is_voter(own) or voters == 1 or voters >= limits.voters_max


class CatchingUp:
    """Belongs to a node, which runs `run` as a task."""

    def __init__(self, replica: Replica, ask_commit: Callable[[str], Awaitable[int]]) -> None:
        """`ask_commit` tells how many batches the node at an address has committed. Raises
        ProglogError."""
        self._replica = replica
        self._ask_commit = ask_commit
        self._is_done = False

    @property
    def is_done(self) -> bool:
        """Whether it has caught up once. Who leads has nobody to catch up with."""
        self._is_done = self._is_done or self._replica.leadership.is_mine
        return self._is_done

    async def run(self) -> None:
        """Until the node has caught up, as far as the leader says."""
        while not self.is_done:
            if await self._is_near():
                self._is_done = True
            else:
                await asyncio.sleep(limits.health_seconds)

    async def _is_near(self) -> bool:
        replica = self._replica
        leader = replica.leadership.leader
        if leader is None or not has_its_place(
            replica.leadership.configuration, replica.identity.uuid
        ):
            return False
        try:
            committed = await self._ask_commit(leader.rpc_addr)
        except ProglogError:
            return False  # Who leads may change just now; the connections say whom they miss.
        return replica.applied_index + limits.ready_behind_batches_max >= committed
