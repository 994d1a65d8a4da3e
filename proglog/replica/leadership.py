"""Who leads, who the servers are, and what a caller who came to the wrong one is told."""

from __future__ import annotations

from collections.abc import Callable

import structlog

from proglog.aio.news import News
from proglog.errors import NotLeader, ProglogError, Unavailable
from proglog.raft.configuration import Configuration
from proglog.raft.hard_state import Identity
from proglog.raft.messages import Role, SoftState
from proglog.replica.explained import transition
from proglog.types import ServerInfo

_logger = structlog.get_logger("replica")


class Leadership:
    """This server's view, kept up to date by the replica."""

    def __init__(
        self,
        own: Identity,
        term: int,
        configuration: Configuration,
        name_of: Callable[[str], str],
        address_of: Callable[[str], str],
    ) -> None:
        self._own = own
        self._name_of = name_of
        self._address_of = address_of
        self.configuration = configuration
        self.state = SoftState(Role.FOLLOWER, None, term)
        self.led_from = 0
        """Index of the first batch of the present leadership, if this server leads."""
        self.changed = News()

    def move_to(self, state: SoftState) -> None:
        """The core says otherwise. Told to operators: who leads is what they look for first."""
        before, self.state = self.state, state
        is_member = self.configuration.find(self._own.uuid) is not None
        if state != before and (
            told := transition(before, state, self._name_of, is_member=is_member)
        ):
            event, facts = told
            _logger.info(event, **facts)

    @property
    def is_mine(self) -> bool:
        """Whether this server leads, as far as it knows."""
        return self.state.role is Role.LEADER

    @property
    def servers(self) -> list[ServerInfo]:
        """The servers of the configuration."""
        return [
            ServerInfo(
                name=server.name,
                uuid=server.uuid,
                # Not that of the configuration: a server may be elsewhere since.
                rpc_addr=self._address_of(server.uuid),
                is_leader=server.uuid == self.state.leader,
                suffrage="voter" if self.configuration.is_voter(server.uuid) else "learner",
            )
            for server in self.configuration.servers
        ]

    @property
    def leader(self) -> ServerInfo | None:
        return next((server for server in self.servers if server.is_leader), None)

    def refusal(self) -> ProglogError:
        """What to answer to a request that only the leader can serve."""
        leader = self.leader
        if leader is None or self.is_mine:
            return Unavailable("the cluster has no leader at the moment")
        return NotLeader(
            f"{self._own.name} does not lead, {leader.name} at {leader.rpc_addr} does",
            leader=leader.name,
            leader_addr=leader.rpc_addr,
            term=self.state.term,
        )
