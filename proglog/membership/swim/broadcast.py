"""Messages on their way to everybody: each is sent a limited number of times, new ones first."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass


def retransmit_limit(multiplier: int, nodes: int) -> int:
    """How often a message is sent so that with high probability all of `nodes` get it:
    multiplier * ceil(log10(n + 1)) (SWIM, section 4.1)."""
    return multiplier * math.ceil(math.log10(nodes + 1))


@dataclass(frozen=True, slots=True)
class _Broadcast:
    message: bytes
    subject: str | None
    on_done: Callable[[], None] | None


class BroadcastQueue:
    """Broadcasts by the number of times they were sent so far.

    At most one broadcast about a subject is kept: news of a node replace older news of it, which
    nobody should learn any more.
    """

    def __init__(self, size_max: int) -> None:
        self._size_max = size_max
        self._tiers: list[dict[int, _Broadcast]] = []
        self._by_subject: dict[str, tuple[int, int]] = {}
        self._order = itertools.count()
        self.dropped = 0

    def __len__(self) -> int:
        return sum(map(len, self._tiers))

    def add(
        self,
        message: bytes,
        *,
        subject: str | None = None,
        on_done: Callable[[], None] | None = None,
    ) -> None:
        """`on_done` is called when the message was sent often enough, or is not going to be."""
        if subject is not None and subject in self._by_subject:
            tier, order = self._by_subject[subject]
            self._finish(tier, order)
        if len(self) >= self._size_max:
            self._drop_one()
        self._put(0, next(self._order), _Broadcast(message, subject, on_done))

    def take(self, space: int, overhead: int, limit: int) -> list[bytes]:
        """Messages that fit into `space` bytes, each with `overhead`: least sent first, and of the
        unsent the newest first. One that has now been sent `limit` times is done."""
        taken: list[tuple[int, int]] = []
        messages = []
        for tier, broadcasts in enumerate(self._tiers):
            for order, broadcast in reversed(broadcasts.items()):
                size = len(broadcast.message) + overhead
                if size <= space:
                    space -= size
                    taken.append((tier, order))
                    messages.append(broadcast.message)
        # Moved up only now, so that nothing is taken twice for one packet.
        for tier, order in taken:
            if tier + 1 >= limit:
                self._finish(tier, order)
            else:
                self._put(tier + 1, order, self._tiers[tier].pop(order))
        return messages

    def _put(self, tier: int, order: int, broadcast: _Broadcast) -> None:
        while len(self._tiers) <= tier:
            self._tiers.append({})
        self._tiers[tier][order] = broadcast
        if broadcast.subject is not None:
            self._by_subject[broadcast.subject] = (tier, order)

    def _finish(self, tier: int, order: int) -> None:
        broadcast = self._tiers[tier].pop(order)
        if broadcast.subject is not None:
            del self._by_subject[broadcast.subject]
        if broadcast.on_done is not None:
            broadcast.on_done()

    def _drop_one(self) -> None:
        """Makes room: what was sent most often is missed least, and of that the oldest."""
        tier = max(index for index, broadcasts in enumerate(self._tiers) if broadcasts)
        self._finish(tier, next(iter(self._tiers[tier])))
        self.dropped += 1
