"""What was reported, so that it is not said again and again."""

from __future__ import annotations

from collections import deque
from typing import Generic, TypeVar

from proglog.membership import limits

T = TypeVar("T")


class Reported(Generic[T]):
    """Each thing once in a while, and not many at a time: anybody can make up others without end,
    and each is a line in a log."""

    def __init__(self, again_s: float) -> None:
        self._again_s = again_s
        self._when: dict[T, float] = {}
        self._lately: deque[float] = deque()

    def is_due(self, what: T, now: float) -> bool:
        """Whether to report it now; then it counts as reported."""
        when = self._when.get(what)
        if when is not None and now - when < self._again_s:
            return False
        while self._lately and now - self._lately[0] >= limits.reports_s:
            self._lately.popleft()
        if len(self._lately) >= limits.reports_max:
            return False
        self._lately.append(now)
        self._when.pop(what, None)
        if len(self._when) >= limits.nodes_max:
            self._when.pop(next(iter(self._when)))  # the oldest
        self._when[what] = now
        return True
