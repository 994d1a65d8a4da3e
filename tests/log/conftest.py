from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.log.support import Engine


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where a log may be made."""
    return tmp_path / "log"


@pytest.fixture
async def engine(folder: Path) -> AsyncIterator[Engine]:
    """An empty log, open."""
    async with Engine(folder) as opened:
        yield opened
