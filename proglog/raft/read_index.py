"""Linearizable reads without a log entry (Raft thesis section 6.4)."""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable

from proglog.raft.messages import ReadResult


class ReadIndexQueue:
    """Reads wait for a round of heartbeats that *starts after they came* and that a quorum answers.

    An answer to an earlier round proves leadership only at a time before the read:

        S1 (leader) sends round 7, S2 answers 7, S1 is stopped (SIGSTOP)
        S3 is elected and commits x
        S1 wakes up, gets a read of x, finds the answer 7 in its socket: "confirmed" -> stale

    Round numbers count up for the whole of one leadership and are never used again, and responses
    of another term never get here, so no answer can be taken for that of another round.
    """

    __slots__ = ("_rounds", "_waiting", "round")

    def __init__(self) -> None:
        self.round = 0
        self._waiting: list[Hashable] = []
        self._rounds: deque[tuple[int, int, list[Hashable]]] = deque()

    def __len__(self) -> int:
        return len(self._waiting) + sum(len(tickets) for _, _, tickets in self._rounds)

    @property
    def wants_round(self) -> bool:
        """Reads wait and no round is on its way. One at a time: all that come during a round trip
        share the next, so reads cost two messages a follower and round trip, however many."""
        return bool(self._waiting) and not self._rounds

    def add(self, ticket: Hashable) -> None:
        self._waiting.append(ticket)

    def start_round(self, commit: int | None) -> int:
        """A new round. `commit` is the index its reads must see, None while the leader has not yet
        committed an entry of its own term: until then its commit index may lag behind what its
        predecessor acknowledged, and the reads go on waiting."""
        self.round += 1
        if commit is not None and self._waiting:
            self._rounds.append((self.round, commit, self._waiting))
            self._waiting = []
        return self.round

    def confirm(self, round_: int) -> list[ReadResult]:
        """A quorum has answered this round or later ones."""
        results: list[ReadResult] = []
        while self._rounds and self._rounds[0][0] <= round_:
            _, index, tickets = self._rounds.popleft()
            results += [ReadResult(ticket, index) for ticket in tickets]
        return results

    def fail(self) -> list[ReadResult]:
        """Leadership is over: nothing was confirmed for these."""
        tickets = [t for _, _, waiting in self._rounds for t in waiting] + self._waiting
        return [ReadResult(ticket, None) for ticket in tickets]
