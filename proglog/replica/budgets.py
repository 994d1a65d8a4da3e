"""What all logs of a node may hold together."""

from __future__ import annotations

from collections.abc import Callable

from proglog import limits


class Budget:
    """Bytes that are out, of all logs of a node.

    A log that has nothing out is always given its next piece, however much the others have: one
    that cannot go on, since its majority is lost, must not stop them. So the bound is that of all,
    and one piece more for each log.
    """

    def __init__(self, bytes_max: Callable[[], int]) -> None:
        self._bytes_max = bytes_max
        self._taken = 0
        # In the order of their coming, unlike a set: so that a simulated run is always the same.
        self._waiting: dict[Callable[[], None], None] = {}

    @property
    def taken(self) -> int:
        """Bytes that are out now."""
        return self._taken

    def has_room(self, size: int, own: int) -> bool:
        """Whether one log that has `own` bytes out may take so many more."""
        return not own or self._taken + size <= self._bytes_max()

    def take(self, size: int) -> None:
        self._taken += size

    def give(self, size: int) -> None:
        self._taken -= size
        assert self._taken >= 0, "more is given back than was taken"
        for tell in self._waiting:
            tell()

    def watch(self, tell: Callable[[], None]) -> None:
        """`tell` is called whenever there is more room."""
        self._waiting[tell] = None

    def unwatch(self, tell: Callable[[], None]) -> None:
        self._waiting.pop(tell, None)


class Budgets:
    """Of one node, shared by its logs."""

    def __init__(self) -> None:
        self.inflight = Budget(lambda: limits.inflight_bytes_max)
        """Proposed and not yet answered."""
        self.held = Budget(lambda: limits.intake_bytes_max)
        """Appends of others that wait for room here."""
