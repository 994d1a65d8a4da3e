"""Which node to ask: the resolver's list, and the choice from it.

What writes goes to the leader, as last heard of: from a node that named it, or from the list of
servers. Streams and reads go round the followers, so that the leader has the writes to itself; to
the leader where there are none. One that failed is left alone for a while, unless all have.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import NamedTuple

from proglog import limits
from proglog.config import Address
from proglog.errors import ConfigurationError


class Known(NamedTuple):
    """A server of the cluster, as a node tells it."""

    address: Address
    is_leader: bool


class _Failure(NamedTuple):
    until: float
    pause: float


class Servers:
    """What is known of the servers of one log. Times are the loop's, in seconds."""

    def __init__(self, seeds: Sequence[Address], chance: random.Random) -> None:
        assert seeds, "a log has at least one address"
        self.seeds = tuple(dict.fromkeys(seeds))
        self._known: tuple[Known, ...] = ()
        self._leader: Address | None = None
        self._turn = 0
        self._reads = chance.randrange(1000)
        """So that not all clients begin with the same follower."""
        self._failures: dict[Address, _Failure] = {}
        self._asked_at: float | None = None

    # --- the choice ------------------------------------------------------------------------------

    @property
    def to_write(self) -> Address:
        """The leader; where none is known, each address in its turn."""
        if self._leader is not None:
            return self._leader
        everybody = self._everybody
        return everybody[self._turn % len(everybody)]

    def to_read(self, now: float) -> Address:
        """The next follower; the leader where there is none."""
        followers = [each.address for each in self._known if each.address != self._leader]
        sound = [each for each in followers if not self._has_failed(each, now)]
        if not sound:
            return self.to_write
        self._reads += 1
        return sound[self._reads % len(sound)]

    def others(self, asked: Address) -> list[Address]:
        """All known addresses but one."""
        return [address for address in self._everybody if address != asked]

    @property
    def _everybody(self) -> Sequence[Address]:
        leader = () if self._leader is None else (self._leader,)
        return tuple(dict.fromkeys((*self.seeds, *(each.address for each in self._known), *leader)))

    # --- what is heard ---------------------------------------------------------------------------

    def is_due(self, now: float) -> bool:
        """Whether to ask for the list of servers."""
        if self._asked_at is None:
            return True
        is_lost = self._leader is None and len(self._everybody) > 1
        wait = limits.client_servers_seconds_min if is_lost else limits.client_servers_seconds
        return now - self._asked_at >= wait

    def asked(self, now: float) -> None:
        """The list is asked for."""
        self._asked_at = now

    def told(self, servers: Sequence[Known]) -> None:
        """The list. A leader that was heard of meanwhile is newer."""
        self._known = tuple(servers[: limits.client_servers_max])
        if self._leader is None:
            self._leader = next((each.address for each in servers if each.is_leader), None)
        self._failures = {
            address: failure
            for address, failure in self._failures.items()
            if address in self._everybody
        }

    def redirect(self, asked: Address, leader: str) -> None:
        """`asked` said who leads, or with "" that it does not know."""
        try:
            leader_address = Address.parse(leader)
        except ConfigurationError:
            self._left(asked)
            return
        if leader_address == asked:
            self._left(asked)  # It cannot be itself: it does not know yet that it leads no more.
        else:
            self._leader = leader_address

    def failed(self, asked: Address, now: float) -> None:
        """`asked` was of no use: it is left alone for a while, twice as long as the last time."""
        before = self._failures.get(asked)
        if before is None or now >= before.until:
            pause = limits.client_failed_seconds_first
            if before is not None:
                pause = min(2 * before.pause, limits.client_failed_seconds_max)
            self._failures[asked] = _Failure(now + pause, pause)
        self._left(asked)

    def worked(self, asked: Address) -> None:
        """`asked` answered."""
        self._failures.pop(asked, None)

    def _left(self, asked: Address) -> None:
        """Others that failed with it change nothing more."""
        if asked != self.to_write:
            return
        if self._leader is None:
            self._turn += 1
        self._leader = None

    def _has_failed(self, address: Address, now: float) -> bool:
        failure = self._failures.get(address)
        return failure is not None and now < failure.until
