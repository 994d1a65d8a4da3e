"""What happens to a log while something else is under way with it."""

from __future__ import annotations

from pathlib import Path

import pytest

from proglog import limits
from proglog.log.format import Tip
from proglog.log.names import snapshot_path
from tests.log.support import Engine, flip


async def snapshot_after(engine: Engine, segment: int) -> Tip:
    """Writes one at the end of a sealed segment."""
    await engine.settled()
    tip = engine.log.sealed_tips()[segment]
    await engine.log.write_snapshot(tip, lambda: b"state")
    return tip


# --- garbage -------------------------------------------------------------------------------------


async def test_a_snapshot_that_replaces_a_damaged_one_stays(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A start deletes the damaged one; and at leisure, perhaps much later, what was dropped."""
    async with Engine(folder) as engine:
        await engine.fill(30)
        await engine.all_durable()
        await snapshot_after(engine, 1)
        dropped = {path: path.read_bytes() for path in folder.iterdir() if "01" in path.name}
        assert engine.log.drop_prefix(16) == 1
        await engine.tidied()
        tip = await snapshot_after(engine, 1)
    for path, data in dropped.items():
        path.write_bytes(data)
    flip(snapshot_path(folder, tip.index), 60)
    monkeypatch.setattr(limits, "unlink_pause_seconds", 0.02)
    async with Engine(folder) as engine:
        assert engine.log.snapshot_indexes == [16]
        assert await snapshot_after(engine, 1) == tip
        await engine.tidied()
        assert engine.log.drop_prefix(100) == 2
        await engine.tidied()
    async with Engine(folder) as engine:
        assert engine.log.before == tip
