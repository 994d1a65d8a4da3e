"""Whether a node should get requests, and if not, why: one sentence for probes, console and logs.

A learner that catches up would answer with what is long past; a node without a leader can promise
nothing; one that is stopped, drained or doubted sends its clients elsewhere.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import NamedTuple

from proglog.agent.catching_up import CatchingUp, has_its_place
from proglog.agent.drain import Drain
from proglog.agent.forming import Forming
from proglog.replica.replica import Replica
from proglog.replica.views import why_no_leader


class Facts(NamedTuple):
    """What decides it."""

    stopping: bool = False
    draining: bool = False
    doubt: str = ""
    """Why this server may take part in nothing; empty if it may."""
    forming: str = ""
    """What it waits for before it has a cluster."""
    has_servers: bool = True
    """Some configuration is known."""
    is_server: bool = True
    """It is in that configuration."""
    has_its_place: bool = True
    """It votes, or is to stay without a vote."""
    behind: bool = False
    """It has not caught up yet in this life."""
    has_leader: bool = True
    leaderless_seconds: float = 0.0
    no_leader: str = ""
    """Why there is none."""
    leads_unapplied: bool = False
    """It has been elected and has not applied all that came before."""


def why_not_ready(facts: Facts) -> str:
    """Empty where requests are welcome."""
    if facts.stopping:
        return "it is stopping"
    if facts.draining:
        return "it is drained, to be stopped"
    if facts.doubt:
        return facts.doubt
    if not facts.has_servers:
        return facts.forming or "it belongs to no cluster yet"
    if not facts.is_server:
        return "it is no server of its cluster: it waits to be added, or was removed"
    if not facts.has_leader:
        why = f": {facts.no_leader}" if facts.no_leader else ""
        return f"it has known no leader for {facts.leaderless_seconds:.0f} s{why}"
    if not facts.has_its_place:
        return "it is a learner that catches up"
    if facts.behind:
        return "it catches up with the leader"
    if facts.leads_unapplied:
        return "it is about to lead"
    return ""


class Readiness:
    """That of one node, which is asked often: it remembers since when nobody leads."""

    def __init__(
        self,
        replica: Replica,
        drain: Drain,
        catching_up: CatchingUp,
        stopping: Callable[[], bool],
    ) -> None:
        self._replica = replica
        self._drain = drain
        self._catching_up = catching_up
        self._stopping = stopping
        self._loop = asyncio.get_running_loop()
        self._led_at = self._loop.time()
        self.forming: Forming | None = None

    def why_not(self) -> str:
        """See `why_not_ready`."""
        replica = self._replica
        configuration, own = replica.leadership.configuration, replica.identity.uuid
        has_leader = replica.leadership.state.leader is not None
        if has_leader:
            self._led_at = self._loop.time()
        return why_not_ready(
            Facts(
                stopping=self._stopping(),
                draining=bool(self._drain.began),
                doubt=replica.standing.doubt,
                forming=self.forming.why if self.forming is not None else "",
                has_servers=bool(configuration.servers),
                is_server=configuration.find(own) is not None,
                has_its_place=has_its_place(configuration, own),
                behind=not self._catching_up.is_done,
                has_leader=has_leader,
                leaderless_seconds=self._loop.time() - self._led_at,
                no_leader=why_no_leader(replica),
                leads_unapplied=not replica.is_ready,
            )
        )
