"""How much of the space of crash states is looked at: the one place that says so."""

from __future__ import annotations

import os

SUBSETS_DEFAULT = 10_000

SUBSETS = int(os.environ.get("PROGLOG_CRASH_STATES", SUBSETS_DEFAULT))
"""Random subsets of unsynced changes in all."""
SCALE = max(SUBSETS // SUBSETS_DEFAULT, 1)
"""Beyond 1: so many more workloads, and every byte of the files that are damaged."""
