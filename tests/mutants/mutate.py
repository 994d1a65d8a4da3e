"""Mutants made by rule: one small change each, to find what no test sees.

    python tests/mutants/mutate.py proglog/raft/quorum.py [--sample 20] [--seed 1] [TEST ...]

Operators are exchanged, bounds moved by one, statements and awaited calls dropped, branches turned
round. Each mutant replaces the file in a copy of the project, where its tests run until one fails.
Survivors are listed: a test is missing, or the mutant is no fault (see README.md beside this file).
"""

from __future__ import annotations

import argparse
import ast
import copy
import os
import random
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
TIMEOUT_SECONDS = 300.0
"""A mutant that makes its tests run so long is killed: it hangs."""

RAFT = ["tests/raft/test_core.py", "tests/raft/test_nouns.py", "tests/raft/test_scenarios.py"]
GOSSIP = [f"tests/membership/test_{name}.py" for name in ("swim", "serf", "finder", "parts")]
TESTS = {
    "proglog/raft": [RAFT, ["tests/raft"]],
    "proglog/replica": [["tests/replica"]],
    "proglog/agent/policy.py": [["tests/agent/test_policy.py"]],
    "proglog/agent/forming.py": [["tests/agent/test_forming.py"]],
    "proglog/membership": [
        GOSSIP,
        ["tests/membership/test_hostile_news.py", "tests/membership/test_simulation.py"],
    ],
}
"""By what a file's name begins with: the quick tests, and those that see what these let pass."""

EXCHANGED: dict[type[ast.AST], type[ast.AST]] = {
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.FloorDiv,
    ast.And: ast.Or,
    ast.Or: ast.And,
}
EXCHANGED_NAMES = {"min": "max", "max": "min", "any": "all", "all": "any"}


class Mutant(NamedTuple):
    line: int
    was: str
    now: str
    source: str
    """The whole file with the change."""


def mutants(source: str) -> Iterator[Mutant]:
    """All of a file, in the order of their lines."""
    tree = ast.parse(source)
    skipped = _skipped(tree)
    found = [
        (node, changed)
        for node in ast.walk(tree)
        if id(node) not in skipped
        for changed in _changes(node)
    ]
    for node, changed in sorted(found, key=lambda each: (each[0].lineno, each[0].col_offset)):
        was, now = ast.unparse(node), ast.unparse(changed)
        if isinstance(node, ast.expr):
            now = f"({now})"
        yield Mutant(node.lineno, was, now, _replaced(source, node, now))


def _skipped(tree: ast.AST) -> set[int]:
    """What decides nothing at run time, or is there for people: annotations, assertions, docstrings
    and what errors say."""
    roots: list[ast.AST] = []
    for node in ast.walk(tree):
        match node:
            case ast.Assert() | ast.Raise() | ast.Import() | ast.ImportFrom() | ast.JoinedStr():
                roots.append(node)
            case ast.Expr(value=ast.Constant()):
                roots.append(node)
            case ast.arg(annotation=ast.expr() as annotation):
                roots.append(annotation)
            case ast.AnnAssign():
                roots.append(node.annotation)
            case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.ClassDef():
                roots += node.decorator_list
                if not isinstance(node, ast.ClassDef) and node.returns is not None:
                    roots.append(node.returns)
    return {id(node) for root in roots for node in ast.walk(root)}


def _changes(node: ast.AST) -> Iterator[ast.expr | ast.stmt]:
    match node:
        case ast.Compare(ops=[op]) if type(op) in EXCHANGED:
            yield _with(node, ops=[EXCHANGED[type(op)]()])
        case ast.BinOp(op=op) | ast.BoolOp(op=op) if type(op) in EXCHANGED:
            yield _with(node, op=EXCHANGED[type(op)]())
        case ast.UnaryOp(op=ast.Not()):
            yield node.operand
        case ast.Constant(value=bool()):
            yield ast.Constant(not node.value)
        case ast.Constant(value=int()):
            yield ast.Constant(node.value + 1)
        case ast.Call(func=ast.Name(id=name)) if name in EXCHANGED_NAMES:
            yield _with(node, func=ast.Name(EXCHANGED_NAMES[name]))
        case ast.If() | ast.While():
            pass  # Their conditions are expressions of their own.
        case ast.Expr() | ast.AugAssign() | ast.Delete() | ast.Continue() | ast.Break():
            yield ast.Pass()
        case ast.Assign(targets=[ast.Attribute() | ast.Subscript()]):
            yield ast.Pass()
        case ast.IfExp():
            yield _with(node, body=node.orelse, orelse=node.body)


def _with(node: ast.expr, **changed: object) -> ast.expr:
    other = copy.copy(node)
    for name, value in changed.items():
        setattr(other, name, value)
    return other


def _replaced(source: str, node: ast.expr | ast.stmt, text: str) -> str:
    """`source` with other text where the node stands. Columns of the parser count bytes."""
    lines = source.encode().splitlines(keepends=True)
    assert node.end_lineno is not None
    assert node.end_col_offset is not None
    before = b"".join(lines[: node.lineno - 1]) + lines[node.lineno - 1][: node.col_offset]
    after = lines[node.end_lineno - 1][node.end_col_offset :] + b"".join(lines[node.end_lineno :])
    # Lines after it keep their numbers, which the list of survivors tells.
    return (before + text.encode() + after).decode()


def tests_of(file: str) -> list[list[str]]:
    """Raises SystemExit where none are known."""
    for prefix, tests in TESTS.items():
        if file.startswith(prefix):
            return tests
    raise SystemExit(f"say which tests are to see the mutants of {file}")


def survives(project: Path, file: str, mutant: Mutant, stages: list[list[str]]) -> bool:
    """Whether all tests pass with it."""
    path = project / file
    original = path.read_text()
    path.write_text(mutant.source)
    try:
        return all(_pass(project, tests) for tests in stages)
    finally:
        path.write_text(original)


def _pass(project: Path, tests: list[str]) -> bool:
    try:
        done = subprocess.run(
            [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *tests],
            cwd=project,
            env={**os.environ, "PYTHONPATH": str(project), "PYTHONDONTWRITEBYTECODE": "1"},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            timeout=TIMEOUT_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return False
    return done.returncode == 0


def run(file: str, sample: int, seed: int, stages: list[list[str]]) -> int:
    found = list(mutants((ROOT / file).read_text()))
    chosen = found
    if sample and sample < len(found):
        chosen = sorted(random.Random(seed).sample(found, sample), key=lambda each: each.line)
    left = []
    with tempfile.TemporaryDirectory() as folder:
        project = Path(folder)
        for name in ("proglog", "tests", "scripts", "pyproject.toml"):
            whole = ROOT / name
            copy_of = shutil.copytree if whole.is_dir() else shutil.copy
            copy_of(whole, project / name)
        untouched = Mutant(0, "", "", (ROOT / file).read_text())
        if not survives(project, file, untouched, stages):
            raise SystemExit(f"{stages} fail without any mutant")
        for number, mutant in enumerate(chosen, 1):
            alive = survives(project, file, mutant, stages)
            left += [mutant] if alive else []
            said = "SURVIVES" if alive else "killed"
            change = f"{mutant.was}  ->  {mutant.now}"
            print(f"{number:>4} {said:<8} {file}:{mutant.line}  {change}", flush=True)
    print(f"{len(chosen)} of {len(found)} mutants of {file}: {len(left)} survive")
    return len(left)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python tests/mutants/mutate.py")
    parser.add_argument("file", help="relative to the project")
    parser.add_argument("tests", nargs="*", help="which tests are to see them")
    parser.add_argument("--sample", type=int, default=0, help="so many, drawn by --seed; 0: all")
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    run(
        given.file, given.sample, given.seed, [given.tests] if given.tests else tests_of(given.file)
    )
