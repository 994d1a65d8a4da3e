"""The mutants fit the source they are made for. `python tests/mutants/raft_core.py` runs them."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.mutants.raft_core import MUTANTS, ROOT, Mutant, apply


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_mutant_applies(mutant: Mutant, tmp_path: Path) -> None:
    shutil.copytree(ROOT / "proglog" / "raft", tmp_path / "proglog" / "raft")
    apply(mutant, tmp_path)
    for edit in mutant.edits:
        compile((tmp_path / edit.file).read_text(), edit.file, "exec")
