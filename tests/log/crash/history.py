"""What a log was told and what it promised, moment by moment.

After a crash the recovered log must hold everything that had been promised and nothing that was
never asked for. `History` notes both against the number of disk operations that had been done.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from proglog.log.format import Tip
from proglog.raft.messages import HardState


class Outcome(NamedTuple):
    """What opening a directory gave, as far as anyone could see it."""

    base: int
    crcs: tuple[int, ...]
    """Header checksum, thus identity, of each batch after the base."""
    snapshots: frozenset[int]
    hard_state: HardState
    commit_hint: int
    error: str = ""

    @property
    def last(self) -> int:
        return self.base + len(self.crcs)


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """What one recovered log may be."""

    must: Mapping[int, int]
    """Index -> header checksum of batches that were acknowledged."""
    may: Mapping[int, frozenset[int]]
    """Of batches that were appended and not certainly cut."""
    base_min: int = 0
    base_max: int = 0
    snapshot_must: int = 0
    """The newest that was acknowledged; a newer one will do."""
    snapshots_may: frozenset[int] = frozenset()
    commit_max: int = 1

    def violation(self, outcome: Outcome) -> str:
        """What is wrong with an outcome; empty if nothing is."""
        if not self.base_min <= outcome.base <= self.base_max:
            return f"base {outcome.base} not in {self.base_min}..{self.base_max}"
        for index, crc in self.must.items():
            if index > outcome.last:
                return f"acknowledged batch {index} is lost: the log ends at {outcome.last}"
            if index > outcome.base and outcome.crcs[index - outcome.base - 1] != crc:
                return f"another batch stands where acknowledged batch {index} was"
        for index, crc in enumerate(outcome.crcs, outcome.base + 1):
            # Before the first start has ended, nobody knows the batch that it writes.
            if crc not in self.may.get(index, ()) and (index > 1 or 1 in self.may):
                return f"invented or resurrected batch {index}"
        if max(outcome.snapshots, default=0) < self.snapshot_must:
            return f"snapshot {self.snapshot_must} is lost: there are {sorted(outcome.snapshots)}"
        if outcome.base and not any(at >= outcome.base for at in outcome.snapshots):
            return f"no snapshot holds what was before base {outcome.base}"
        if invented := outcome.snapshots - self.snapshots_may:
            return f"snapshots {sorted(invented)} were never written"
        if outcome.commit_hint > outcome.last:
            return f"batch {outcome.commit_hint} is said to be committed, and is not there"
        if not outcome.commit_hint <= max(self.commit_max, *self.snapshots_may, 0):
            return f"batch {outcome.commit_hint} is said to be committed, which nobody said"
        return ""


class Expectation(NamedTuple):
    """Claims of which one must hold, and the hard states that may be found."""

    claims: tuple[Claim, ...]
    hard_states: frozenset[HardState]

    def violation(self, outcome: Outcome) -> str:
        if outcome.error:
            return outcome.error
        if outcome.hard_state not in self.hard_states:
            return f"hard state {outcome.hard_state} is none of {sorted(self.hard_states)}"
        violations = [claim.violation(outcome) for claim in self.claims]
        return "" if "" in violations else " and ".join(violations)


NOTHING = Claim(must={}, may={})
FIRST_HARD_STATE = HardState(1)


def exactly(outcome: Outcome, commit_max: int | None = None) -> Claim:
    """That what has been shown once stays. What was said to be committed may be known again that
    one start did not know: the mark of another segment says so."""
    crcs = dict(enumerate(outcome.crcs, outcome.base + 1))
    return Claim(
        must=crcs,
        may={index: frozenset({crc}) for index, crc in crcs.items()},
        base_min=outcome.base,
        base_max=outcome.base,
        snapshot_must=max(outcome.snapshots, default=0),
        snapshots_may=outcome.snapshots,
        commit_max=outcome.last if commit_max is None else commit_max,
    )


class History:
    """Notes expectations at `position`, the number of operations done when they begin to hold."""

    def __init__(self) -> None:
        self.position = 0
        self._timeline = [(0, Expectation((NOTHING,), frozenset({FIRST_HARD_STATE})))]

    @property
    def now(self) -> Expectation:
        return self._timeline[-1][1]

    @property
    def claim(self) -> Claim:
        (claim,) = self.now.claims
        return claim

    def at(self, position: int) -> list[Expectation]:
        """All that held at some time between this operation and the next."""
        last = max(slot for slot, (at, _) in enumerate(self._timeline) if at <= position)
        first = last
        while first > 0 and self._timeline[first][0] == position:
            first -= 1
        return [expectation for _, expectation in self._timeline[first : last + 1]]

    def _note(self, claims: Sequence[Claim], hard_states: frozenset[HardState]) -> None:
        position = max(self.position, self._timeline[-1][0])
        self._timeline.append((position, Expectation(tuple(claims), hard_states)))

    def _claim(self, claim: Claim) -> None:
        self._note([claim], self.now.hard_states)

    def opened(self, outcome: Outcome) -> None:
        """A log was opened and has shown what it holds."""
        assert not self.now.violation(outcome), self.now.violation(outcome)
        said = max(claim.commit_max for claim in self.now.claims)
        self._note([exactly(outcome, said)], frozenset({outcome.hard_state}))

    def appended(self, index: int, crc: int) -> None:
        may = {**self.claim.may, index: self.claim.may.get(index, frozenset()) | {crc}}
        self._claim(replace(self.claim, may=may))

    def acknowledged(self, crcs: Mapping[int, int]) -> None:
        self._claim(replace(self.claim, must={**self.claim.must, **crcs}))

    def committed(self, index: int) -> None:
        self._claim(replace(self.claim, commit_max=max(self.claim.commit_max, index)))

    def cut(self, last: int) -> None:
        """Everything after `last` was given up, but the disk may not know it yet."""
        must = {index: crc for index, crc in self.claim.must.items() if index <= last}
        self._claim(replace(self.claim, must=must))

    def cut_done(self, held: Mapping[int, int]) -> None:
        """What was cut must never come back: these batches are all there are."""
        may = {index: frozenset({crc}) for index, crc in held.items()}
        self._claim(replace(self.claim, may=may))

    def dropped(self, base: int) -> None:
        self._claim(replace(self.claim, base_max=base))

    def drop_done(self, base: int) -> None:
        self._claim(replace(self.claim, base_min=base))

    def snapshot_begun(self, index: int) -> None:
        """One that is refused may stand all the same: it is a whole snapshot."""
        self._claim(replace(self.claim, snapshots_may=self.claim.snapshots_may | {index}))

    def snapshot_done(self, index: int) -> None:
        self._claim(replace(self.claim, snapshot_must=index))

    def reset_begun(self, tip: Tip) -> None:
        only = frozenset({tip.index})
        empty = Claim(
            must={},
            may={},
            base_min=tip.index,
            base_max=tip.index,
            snapshot_must=tip.index,
            snapshots_may=only,
            commit_max=tip.index,
        )
        self._note([self.claim, empty], self.now.hard_states)

    def reset_done(self) -> None:
        self._claim(self.now.claims[1])

    def hard_state_begun(self, hard_state: HardState) -> None:
        self._note(self.now.claims, self.now.hard_states | {hard_state})

    def hard_state_done(self, hard_state: HardState) -> None:
        self._note(self.now.claims, frozenset({hard_state}))
