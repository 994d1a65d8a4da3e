"""The page of promises: each line names a test, and the test is there."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import get_args

from proglog.client.reading import Consistency

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "guarantees.md").read_text()


def rows() -> list[list[str]]:
    """The cells of the tables, without heads and rules."""
    found = []
    for line in PAGE.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if line.startswith("|") and not set(cells[0]) <= set("-"):
            found.append(cells)
    return [cells for cells in found if cells[-1] != "Shown by"]


def test_each_promise_names_a_test_that_is_there():
    assert len(rows()) > 15
    for *promise, shown in rows():
        named = re.fullmatch(r"`(tests/[\w/]+\.py)(?:::(\w+))?`", shown)
        assert named, f"{promise}: {shown}"
        path = ROOT / named[1]
        assert path.exists(), shown
        tree = ast.parse(path.read_text())
        tests = {
            node.name
            for node in ast.walk(tree)
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
            and node.name.startswith("test")
        }
        assert tests if named[2] is None else named[2] in tests, f"{promise}: {shown}"


def test_each_consistency_has_its_line():
    told = [cells[0] for cells in rows()]
    for name in get_args(Consistency):
        assert any(cell.startswith(f'`"{name}"`') for cell in told), name
