"""What `make hostile` does for minutes, for a few seconds."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.hostile.siege import besiege

SECONDS = 4.0
MEMORY_GROWTH_MAX = 64 << 20
"""Far more than tables take that are full, far less than what each packet would leave behind."""


@pytest.mark.parametrize("sealed", [False, True], ids=["open", "sealed"])
async def test_gossip_of_others_changes_nothing(tmp_path: Path, *, sealed: bool) -> None:
    outcome = await besiege(tmp_path, SECONDS, sealed=sealed, seed=1)
    assert outcome.packets > 0
    assert outcome.voters == ["n0", "n1", "n2"]
    assert outcome.changes == 0
    for before, after in outcome.memory.values():
        assert after - before < MEMORY_GROWTH_MAX
