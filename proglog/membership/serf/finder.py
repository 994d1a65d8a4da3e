"""Who is not there is looked for: members that failed, and peers of former lives. It never ends.

After a partition nobody gossips across it any more, and the two halves would stay apart for ever.
One connection between them is enough: each then hears of itself what it objects to.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from typing import Protocol

from proglog.membership import limits
from proglog.membership.address import Address
from proglog.membership.config import Timing
from proglog.membership.events import Status
from proglog.membership.serf.members import MemberRecord
from proglog.membership.swim.timers import Timers


class Owner(Protocol):
    """What a finder needs of the node."""

    @property
    def name(self) -> str: ...

    @property
    def address(self) -> Address: ...

    @property
    def is_running(self) -> bool: ...

    def records(self) -> Iterable[MemberRecord]: ...

    def rejoined(self) -> None:
        """A peer of a former life has answered."""


class Synchroniser(Protocol):
    """What it needs of SWIM."""

    def synchronise_with(
        self,
        address: Address,
        *,
        join: bool,
        joining: bool,
        on_merged: Callable[[], None] = ...,
    ) -> int: ...


class Finder:
    """Belongs to a node."""

    def __init__(
        self, owner: Owner, swim: Synchroniser, timing: Timing, timers: Timers, rng: random.Random
    ) -> None:
        self._owner = owner
        self._swim = swim
        self._timing = timing
        self._timers = timers
        self._rng = rng
        self._pause_s = timing.rejoin_first_s
        self._eager_until = 0.0
        self._share = rng.random()
        """Of a try to reconnect that is due to this node."""
        self.former: tuple[Address, ...] = ()
        """Where peers were, of whom nothing else may be known any more."""

    def start(self) -> None:
        self._timers.after(self._timing.reconnect_interval_s, self._reconnect)
        self._timers.after(0.0, self._rejoin)

    def remember(self) -> None:
        """Before members are forgotten: a whole other half of the cluster may come back."""
        self.former = self.known()

    def known(self) -> tuple[Address, ...]:
        """Where another life may look for the cluster: those who are there, who were, of old."""
        others = [each for each in self._owner.records() if each.name != self._owner.name]
        # Who has answered us, before who is only spoken of.
        others.sort(key=lambda record: record.gone)
        left = {record.address for record in others if record.status is Status.LEFT}
        heard = [record.address for record in others if record.heard]
        spoken_of = [record.address for record in others if not record.heard]
        known = dict.fromkeys([*heard, *self.former, *spoken_of])
        wanted = [each for each in known if each not in {self._owner.address, *left}]
        return tuple(wanted[: limits.snapshot_peers_max])

    def _reconnect(self) -> None:
        self._timers.after(self._timing.reconnect_interval_s, self._reconnect)
        records = list(self._owner.records())
        failed = [record for record in records if record.status is Status.FAILED]
        # Who was there, before whoever was only spoken of.
        failed = [record for record in failed if record.heard] or failed
        if not self._owner.is_running or not failed:
            return
        if self._timers.now < self._eager_until:
            count = min(limits.rejoins_max, len(failed))
        else:
            # So that all who are alive together try each failed member about once an interval. By
            # turns rather than by chance: one who has missed the gossip must not miss its luck too.
            alive = sum(not record.gone for record in records)
            self._share = min(self._share + len(failed) / max(1, alive), 1.0 + self._rng.random())
            count = int(self._share >= 1.0)
            self._share -= count
        for chosen in self._rng.sample(failed, count):
            self._swim.synchronise_with(chosen.address, join=True, joining=False)

    def returned(self) -> None:
        """A failed member is back. Others may be as well, with the end of what kept them away, and
        perhaps we alone have missed the gossip of it: nobody else would look for them then."""
        self._eager_until = self._timers.now + self._timing.reconnect_eager_s

    def _rejoin(self) -> None:
        """Tries peers at whose addresses no member is: the cluster may be there, or part of it,
        and know as little of us as we of it."""
        timing, records = self._timing, list(self._owner.records())
        is_alone = all(record.gone for record in records if record.name != self._owner.name)
        pause = self._pause_s if is_alone else timing.rejoin_longest_s
        self._pause_s = (
            min(2 * pause, timing.rejoin_longest_s) if is_alone else timing.rejoin_first_s
        )
        self._timers.after(pause * self._rng.uniform(0.5, 1.0), self._rejoin)
        listed = {record.address for record in records}
        lost = [address for address in self.former if address not in listed]
        if self._owner.is_running and lost:
            count = min(limits.rejoins_max if is_alone else 1, len(lost))
            for address in self._rng.sample(lost, count):
                self._swim.synchronise_with(
                    address, join=True, joining=True, on_merged=self._owner.rejoined
                )
