"""When snapshots are written: at the end of each sealed segment, once that is applied."""

from __future__ import annotations

import structlog

from proglog.errors import DiskFull
from proglog.log.format import Tip
from proglog.log.log import Log
from proglog.replica.state import ReplicatedState

_logger = structlog.get_logger("replica")


class Snapshots:
    """Belongs to a replica."""

    def __init__(self, log: Log, applied_index: int) -> None:
        self._log = log
        self._due = {tip.index for tip in log.sealed_tips() if tip.index > applied_index}

    def sealed(self, last: Tip) -> None:
        """A segment ends with this batch."""
        self._due.add(last.index)

    def is_due(self, index: int) -> bool:
        """Whether the state after batch `index`, which was just applied, is to be written."""
        if index not in self._due:
            return False
        self._due.discard(index)
        return True

    def forget(self) -> None:
        """The log was replaced by a snapshot."""
        self._due.clear()

    async def write(self, tip: Tip, state: ReplicatedState) -> None:
        """Writes a copy of the state after batch `tip`."""
        try:
            await self._log.write_snapshot(tip, state.encode)
        except DiskFull as full:
            # Only space is lost: the segments below it stay until a later one is written.
            _logger.warning("no snapshot", index=tip.index, error=str(full))
