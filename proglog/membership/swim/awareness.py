"""Lifeguard's local health: how far this node trusts its own view of the others."""

from __future__ import annotations


class Awareness:
    """A score from 0 (healthy) to `score_max`: failed probes and accusations raise it, successful
    probes lower it, and it stretches the time that a probe may take.

    A node that is itself slow or half cut off sees everybody else fail. With a high score it takes
    longer to accuse (Dadgar et al., "Lifeguard: Local Health Awareness for More Accurate Failure
    Detection", 2018).
    """

    def __init__(self, score_max: int) -> None:
        self._score_max = score_max
        self._score = 0

    @property
    def score(self) -> int:
        return self._score

    def adjust(self, delta: int) -> None:
        self._score = min(max(self._score + delta, 0), self._score_max)

    def stretch(self, seconds: float) -> float:
        return seconds * (self._score + 1)
