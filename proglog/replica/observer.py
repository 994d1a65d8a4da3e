"""What a replica tells who runs it."""

from __future__ import annotations

from typing import Protocol


class Observer(Protocol):
    """What a replica reports for metrics and supervision."""

    def group_written(self, batches: int, size: int, seconds: float) -> None: ...

    def appended(self, records: int, size: int, seconds: float) -> None:
        """A batch was committed, so long after it was proposed."""

    def consumed(self, size: int) -> None:
        """Stored bytes were handed to a reader, whatever it speaks."""

    def failed(self, error: BaseException) -> None:
        """The replica cannot go on; the node must stop."""
