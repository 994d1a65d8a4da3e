"""What one log object was told, by which its reads never go back."""

from __future__ import annotations


class Session:
    """`end`: the log is known to reach at least so far, the offset after its last known record."""

    def __init__(self) -> None:
        self.end = 0

    def reaches(self, end: int) -> None:
        """A record was acknowledged, or an end was shown."""
        self.end = max(self.end, end)
