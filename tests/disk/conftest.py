from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.disk.device import Disk, NoDevice


@pytest.fixture(scope="session", autouse=True)
def _possible(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Where such disks cannot be had, these tests fail, unless somebody says that it must be so."""
    try:
        with Disk(tmp_path_factory.mktemp("probe")):
            pass
    except NoDevice as error:
        why = f"no ext4 on a loop device on a FUSE file, which needs root: {error}"
        if os.environ.get("PROGLOG_NO_LOOP_DEVICES"):
            pytest.skip(why)
        pytest.fail(f"{why}\nPROGLOG_NO_LOOP_DEVICES=1 leaves these tests out", pytrace=False)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    with Disk(tmp_path) as made:
        yield made
