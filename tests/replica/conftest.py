from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.replica.support import Node, log_in


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where a log may be made."""
    return log_in(tmp_path)


@pytest.fixture
async def node(folder: Path) -> AsyncIterator[Node]:
    """A cluster of one, open and ready."""
    async with Node(folder) as opened:
        yield opened
