"""Quorum: any two of them share a server. That is all Raft needs of it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeVar

N = TypeVar("N", int, float)


def majority(voters: int) -> int:
    """How many of `voters` servers are a quorum."""
    assert voters > 0
    return voters // 2 + 1


def reached_by_majority(values: Iterable[N]) -> N:
    """The greatest value that a majority has reached; one value a voter.

    Sorted ascending, the value at (n - 1) // 2 is reached by itself and all behind it, which are
    n - (n - 1) // 2 = n // 2 + 1:   n = 4: [3 5 7 9] -> 5 is reached by 5, 7, 9.
    """
    ascending = sorted(values)
    return ascending[(len(ascending) - 1) // 2]
