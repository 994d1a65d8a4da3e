"""How long a suspect has to defend itself before it is declared dead."""

from __future__ import annotations

import math

from proglog.membership.config import Timing


def suspicion_timeout(multiplier: int, nodes: int, probe_interval_s: float) -> float:
    """The shortest suspicion, in seconds: grows with log10 of the cluster, as gossip does."""
    return multiplier * max(1.0, math.log10(max(1, nodes))) * probe_interval_s


class Suspicion:
    """Lifeguard's suspicion timer: starts long, and gets shorter with every further node that
    suspects the same, down to the minimum after `wanted` confirmations.

        timeout = max - (max - min) * log(confirmations + 1) / log(wanted + 1)

    A suspicion that nobody shares is most likely the fault of the one who has it.
    """

    def __init__(
        self, source: str, *, wanted: int, min_s: float, max_s: float, started: float
    ) -> None:
        assert 0 < min_s <= max_s
        self._sources = {source}
        self._wanted = wanted
        self._min_s = min_s
        self._max_s = max_s
        self._started = started

    @property
    def confirmations(self) -> int:
        # The first source made the suspicion: it does not also confirm it.
        return len(self._sources) - 1

    @property
    def deadline(self) -> float:
        """When the suspect is dead, in the time that `started` was given in."""
        if self._wanted < 1:
            return self._started + self._min_s
        share = math.log(self.confirmations + 1) / math.log(self._wanted + 1)
        timeout = self._max_s - share * (self._max_s - self._min_s)
        return self._started + max(self._min_s, timeout)

    def confirm(self, source: str) -> bool:
        """Another node suspects the same. True if that was news that still counts."""
        if self.confirmations >= self._wanted or source in self._sources:
            return False
        self._sources.add(source)
        return True


def begun(source: str, timing: Timing, count: int, now: float) -> Suspicion:
    """One that somebody begins now, among so many nodes."""
    minimum = suspicion_timeout(timing.suspicion_multiplier, count, timing.probe_interval_s)
    # Confirmations enough to reach the minimum two probe intervals before it is over. The suspect
    # and we do not confirm; with too few others nobody is waited for.
    wanted = timing.suspicion_multiplier - 2
    if count - 2 < wanted:
        wanted = 0
    return Suspicion(
        source,
        wanted=max(0, wanted),
        min_s=minimum,
        max_s=minimum * timing.suspicion_max_multiplier,
        started=now,
    )
