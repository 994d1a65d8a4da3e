"""What retention by size and by age wants kept. The leader decides, every node follows."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from proglog.config import LogConfig
from proglog.log.format import Tip


def start_to_keep(
    segments: Sequence[tuple[Tip, int]],
    config: LogConfig,
    *,
    committed_index: int,
    total: int,
    now: int,
) -> int:
    """The offset below which nothing need be kept; 0 if everything is.

    Always where a segment begins, since only whole segments can be deleted, and never behind what
    is committed.

    Args:
        segments: (tip before it, bytes) of each, oldest first.
        total: bytes of all of them.
        now: ms since the epoch.
    """
    start = 0
    for (_before, size), (following, _size) in pairwise(segments):
        too_much = config.retention_bytes is not None and total > config.retention_bytes
        # The tip before a segment is the newest batch of the one that would go.
        too_old = (
            config.retention_seconds is not None
            and now - following.timestamp > config.retention_seconds * 1000
        )
        if not (too_much or too_old) or following.index > committed_index:
            break
        start = following.next_offset
        total -= size
    return start
