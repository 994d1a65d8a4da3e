"""What was measured, beside what should be reached, as a table and as JSON."""

from __future__ import annotations

import json
import platform
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median


@dataclass(slots=True, kw_only=True)
class Row:
    """One load; `values` are the runs' medians by system.

    `target` is for Proglog: at least this, or at most where `less_is_better`.
    """

    load: str
    unit: str
    target: float | None = None
    less_is_better: bool = False
    values: dict[str, float] = field(default_factory=dict)

    def put(self, system: str, runs: Sequence[float]) -> None:
        self.values[system] = median(runs)

    def verdict(self, system: str) -> str:
        """Whether the target is reached, as a mark beside it."""
        if self.target is None or system not in self.values:
            return ""
        value = self.values[system]
        reached = value <= self.target if self.less_is_better else value >= self.target
        return "ok" if reached else "MISSED"


def show(number: float | None) -> str:
    """A number with about three digits, or a dash."""
    if number is None:
        return "-"
    return f"{number:,.0f}" if number >= 100 else f"{number:.3g}"


class Report:
    """Rows and notes, told as they come and shown together at the end."""

    def __init__(self, title: str, systems: Sequence[str]) -> None:
        self._title = title
        self._systems = systems
        self._rows: list[Row] = []
        self._notes: list[str] = []

    def add(self, row: Row) -> Row:
        self._rows.append(row)
        return row

    def note(self, text: str = "") -> None:
        """A line below the table."""
        self._notes.append(text)
        tell(text)

    def print(self) -> None:
        own, *peers = self._systems
        heads = f"{own:>12}{'target':>13}{'':8}" + "".join(f"{peer:>14}" for peer in peers)
        print(f"\n{self._title}\n\n{'':54}{heads}")
        for row in self._rows:
            sign = "" if row.target is None else "<= " if row.less_is_better else ">= "
            target = f"{sign}{show(row.target) if row.target is not None else ''}"
            line = f"{row.load:<44}{row.unit:<10}{show(row.values.get(own)):>12}{target:>13}"
            line += f" {row.verdict(own):<7}"
            line += "".join(f"{show(row.values.get(peer)):>14}" for peer in peers)
            print(line.rstrip())
        print("\n".join(["", *self._notes]))

    def save(self, path: Path) -> None:
        document = {
            "title": self._title,
            "python": platform.python_version(),
            "machine": platform.platform(),
            "rows": [asdict(row) for row in self._rows],
            "notes": self._notes,
        }
        path.write_text(json.dumps(document, indent=2) + "\n")


def tell(text: str) -> None:
    """Progress, for who waits."""
    print(text, file=sys.stderr, flush=True)
