"""A line on the terminal that says how far a command is."""

from __future__ import annotations

import sys
import time

from proglog.cli.units import counted, format_bytes

REDRAW_SECONDS = 0.1
BAR_COLUMNS = 24


class Progress:
    """Counts records and bytes; on a terminal it shows them on stderr, with the rate.

    `bytes_total` makes it a bar; None, where the end is not known, a counter.
    """

    def __init__(self, bytes_total: int | None) -> None:
        self.records = 0
        self.bytes = 0
        self._bytes_total = bytes_total
        self._started = time.monotonic()
        self._drawn = self._started
        self._shown = sys.stderr.isatty()

    def add(self, records: int, size: int) -> None:
        """Counts what is done. `size` is in bytes."""
        self.records += records
        self.bytes += size
        if self._shown and time.monotonic() - self._drawn >= REDRAW_SECONDS:
            self._draw()

    @property
    def seconds(self) -> float:
        """Time since the start."""
        return time.monotonic() - self._started

    def finish(self) -> None:
        """Says on stderr what was done in all, on a terminal or not."""
        if self._shown:
            self._draw()
            print(file=sys.stderr)
        else:
            print(self, file=sys.stderr)

    def __str__(self) -> str:
        seconds = max(self.seconds, 1e-6)
        return (
            f"{counted(self.records, 'record')}, {format_bytes(self.bytes)}, "
            f"{self.records / seconds:,.0f} records/s, {format_bytes(self.bytes / seconds)}/s"
        )

    def _draw(self) -> None:
        self._drawn = time.monotonic()
        # Erases to the end of the line, as a shorter text leaves the end of a longer one.
        print(f"\r{self._bar()}{self}\x1b[K", end="", file=sys.stderr, flush=True)

    def _bar(self) -> str:
        if not self._bytes_total:
            return ""
        done = min(1.0, self.bytes / self._bytes_total)
        filled = round(done * BAR_COLUMNS)
        return f"{done:4.0%} [{'#' * filled}{'.' * (BAR_COLUMNS - filled)}] "
