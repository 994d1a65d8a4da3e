"""Raises the level of the state, once every server can compute a later one."""

from __future__ import annotations

import contextlib

import structlog

from proglog.errors import NotLeader, Overloaded, Unavailable
from proglog.raft.driver import Driver
from proglog.replica import commands
from proglog.replica.applier import Applier
from proglog.replica.commands import SetLevel
from proglog.replica.exchange import Exchange
from proglog.replica.leadership import Leadership
from proglog.replica.members import Members
from proglog.replica.settings import Settings

_logger = structlog.get_logger("replica")


class Upgrade:
    """Belongs to a replica, which calls `look` with every tick.

    A server states in its greeting the latest level that it can compute. Those that are connected
    now count: one that is down may come back as an older version. Should one do so while the
    command is on its way, it ends before the first batch that it cannot compute.
    """

    def __init__(
        self,
        applier: Applier,
        leadership: Leadership,
        driver: Driver,
        members: Members,
        exchange: Exchange,
    ) -> None:
        self._applier = applier
        self._leadership = leadership
        self._driver = driver
        self._members = members
        self._exchange = exchange
        self._told = 0
        self._proposed_in = 0
        """The term in which this leader proposed one."""
        self.look()

    @property
    def _level(self) -> int:
        return self._applier.state.settings.level

    def look(self) -> None:
        """Tells others by which level all go; and raises it, if this server leads and all can."""
        if self._level != self._told:
            if self._told:
                _logger.info("the replicated state goes by a new level", state_level=self._level)
            self._told = self._level
            self._exchange.tell_level(self._level)
        if self._level == self._applier.state.level_max or not self._leadership.is_mine:
            return
        level, term = self._possible(), self._driver.term
        if level <= self._level or self._proposed_in == term or not self._members.has_room():
            return
        with contextlib.suppress(NotLeader, Unavailable, Overloaded):
            # The next look, or the next leader, tries again.
            self._driver.propose_command(commands.encode([SetLevel(Settings.of(level))]))
            self._proposed_in = term

    def _possible(self) -> int:
        servers = self._leadership.configuration.servers
        return min(self._exchange.level_of(each.uuid) for each in servers)

    def notes(self) -> list[str]:
        """Who lacks what the others can do, for operators."""
        servers = self._leadership.configuration.servers
        if self._level == self._applier.state.level_max or not self._leadership.is_mine:
            return []
        lacking = [
            each.name for each in servers if self._exchange.level_of(each.uuid) <= self._level
        ]
        if not lacking:
            return []
        names = ", ".join(lacking)
        return [f"what is new waits for {names}: not connected, or of an older version"]
