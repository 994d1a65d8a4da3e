"""When a leader may call an entry committed."""

from __future__ import annotations

from collections.abc import Iterable

from proglog.raft.quorum import reached_by_majority


class Commitment:
    """Raft thesis section 3.6.2: a leader commits by counting replicas only entries of its own
    term, which begin at `start`; everything before is committed with them.

    Why not count older entries too (figure 8 of the paper)?

        S1  1 2 4      (c) S1, leader in term 4, has copied its old entry 2 to S3: it is on a
        S2  1 2            majority. If S1 called it committed and died, S5 (last term 3 beats
        S3  1 2            2) could win with S2, S3 and S4 and overwrite it.
        S4  1          (e) If instead S1's entry of term 4 is on a majority, S5 cannot win any
        S5  1 3            more: 4 beats 3. So 2 is committed when 4 is.
    """

    __slots__ = ("start",)

    def __init__(self, start: int) -> None:
        self.start = start

    def advance(self, commit: int, durable: Iterable[int]) -> int:
        """The new commit index, given the durable and matching index of each *voter*."""
        reached = reached_by_majority(durable)
        return reached if reached >= self.start and reached > commit else commit
