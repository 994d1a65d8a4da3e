"""The scripts in scenarios/: the paper's figures and the traps of the field, as conversations."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.raft.scenario import run_file

SCRIPTS = sorted((Path(__file__).parent / "scenarios").glob("*.txt"))


def equal(found: str, expected: str) -> None:
    assert found.splitlines() == expected.splitlines()


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
def test_scenario(path: Path) -> None:
    run_file(path, rewrite=os.environ.get("REWRITE") == "1", check=equal)
