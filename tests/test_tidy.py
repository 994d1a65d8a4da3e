"""The house rules, as a test: what a linter does not know about this project."""

from __future__ import annotations

import ast
import re
import tomllib
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = sorted(
    path for path in (ROOT / "proglog").rglob("*.py") if "_generated" not in path.parts
)
SOURCES = (
    PACKAGE + sorted((ROOT / "tests").rglob("*.py")) + sorted((ROOT / "scripts").rglob("*.py"))
)
FUNCTION_LINES_MAX = 70
MODULE_LINES_MAX = 600

# The doors to the world.
PORTS = ("proglog/ports.py",)
# A command's own process: it reads files the user names.
CLI = ("proglog/cli/",)

BANNED_CALLS = {
    "open": ((*PORTS, *CLI), "use proglog.ports.Files, or aiofiles for what is not hot"),
    "time.time": (PORTS, "use proglog.ports.Clock"),
    "time.time_ns": (PORTS, "use proglog.ports.Clock"),
    "time.monotonic": ((*PORTS, *CLI), "use the running loop's time()"),
    "time.sleep": (PORTS, "await asyncio.sleep"),
    "datetime.now": (PORTS, "use proglog.ports.Clock"),
    "datetime.datetime.now": (PORTS, "use proglog.ports.Clock"),
    "os.fsync": (PORTS, "use proglog.ports.File"),
    "os.fdatasync": (PORTS, "use proglog.ports.File"),
    "uuid.uuid4": (PORTS, "use Ports.random"),
    "os.urandom": (PORTS, "use Ports.random"),
}
TASK_MAKERS = {"asyncio.create_task", "asyncio.ensure_future", "loop.create_task"}


def _name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@cache
def _tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(), str(path))


def _nodes(paths: list[Path]) -> Iterator[tuple[str, ast.AST]]:
    for path in paths:
        for node in ast.walk(_tree(path)):
            yield _name(path), node


def _dotted(node: ast.AST) -> str:
    if isinstance(node, ast.Attribute):
        return f"{_dotted(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else "?"


def _code_lines(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Lines of a function without its docstring."""
    lines = function.end_lineno - function.lineno + 1
    docstring = function.body[0] if ast.get_docstring(function) else None
    return lines - (docstring.end_lineno - docstring.lineno + 1 if docstring else 0)


def test_functions_are_at_most_70_lines() -> None:
    assert [
        f"{name}:{node.lineno} {node.name}: {_code_lines(node)} lines"
        for name, node in _nodes(SOURCES)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and _code_lines(node) > FUNCTION_LINES_MAX
    ] == []


def test_modules_are_at_most_600_lines() -> None:
    assert [
        _name(path) for path in PACKAGE if len(path.read_text().splitlines()) > MODULE_LINES_MAX
    ] == []


def test_every_module_says_what_it_is() -> None:
    assert [_name(path) for path in PACKAGE if not ast.get_docstring(_tree(path))] == []


def _is_banned(name: str, call: str) -> bool:
    return call in BANNED_CALLS and not name.startswith(BANNED_CALLS[call][0])


def test_the_world_is_reached_through_its_doors() -> None:
    assert [
        f"{name}:{node.lineno} {_dotted(node.func)}(): {BANNED_CALLS[_dotted(node.func)][1]}"
        for name, node in _nodes(PACKAGE)
        if isinstance(node, ast.Call) and _is_banned(name, _dotted(node.func))
    ] == []


def test_chance_is_injected() -> None:
    """`random.Random` is a type to inject; the module's functions are hidden global state."""
    assert [
        f"{name}:{node.lineno} {_dotted(node)}: inject a random.Random"
        for name, node in _nodes(PACKAGE)
        if isinstance(node, ast.Attribute)
        and isinstance(node.value, ast.Name)
        and node.value.id == "random"
        and node.attr != "Random"
        and not name.startswith(PORTS)
    ] == []


def test_every_task_has_an_owner() -> None:
    """A task nobody holds is collected half way through, and its error is lost."""
    assert [
        f"{name}:{node.lineno} the task is dropped: use a TaskGroup, or keep and await it"
        for name, node in _nodes(PACKAGE)
        if isinstance(node, ast.Expr)
        and isinstance(node.value, ast.Call)
        and _dotted(node.value.func) in TASK_MAKERS
    ] == []


def test_nothing_is_swallowed() -> None:
    assert [
        f"{name}:{node.lineno} catches everything and does nothing"
        for name, node in _nodes(PACKAGE)
        if isinstance(node, ast.ExceptHandler)
        and (node.type is None or _dotted(node.type) in {"Exception", "BaseException"})
        and all(isinstance(step, ast.Pass | ast.Continue) for step in node.body)
    ] == []


def test_suppressions_give_a_reason() -> None:
    """`# noqa` and `# type: ignore` name their rule and say why, on the same line."""
    reasoned = re.compile(r"#\s*(?:noqa: [A-Z]+\d+(?:, ?[A-Z]+\d+)*|type: ignore\[[\w, -]+\])\s+\S")
    assert [
        f"{_name(path)}:{number}"
        for path in PACKAGE
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if re.search(r"#\s*(noqa|type: ignore)", line) and not reasoned.search(line)
    ] == []


def _imports(path: Path) -> Iterator[str]:
    for node in ast.walk(_tree(path)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            package = path.relative_to(ROOT).with_suffix("").parts[: -node.level or None]
            base = ".".join([*(package if node.level else ()), *filter(None, [node.module])])
            yield base
            yield from (f"{base}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            # Commands are loaded lazily, by name: "proglog.cli.serve:serve".
            if re.fullmatch(r"proglog(\.\w+)+:\w+", node.value):
                yield node.value.partition(":")[0]


FOR_USERS = {"proglog.sync"}
"""What programs import and nothing here does."""


def test_every_module_is_used() -> None:
    """Each is imported by another, or is an entry point or a door for tests to use."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    entries = {target.partition(":")[0] for target in project["scripts"].values()}
    entries |= {target for group in project["entry-points"].values() for target in group.values()}
    entries |= FOR_USERS
    used = entries | {name for path in PACKAGE for name in _imports(path)}
    modules = {_name(path)[:-3].replace("/", ".") for path in PACKAGE if path.stem != "__init__"}
    unused = {
        module
        for module in modules - used
        if not module.startswith("tests.doubles.") and not module.endswith(".__main__")
    }
    assert unused == set()


@pytest.mark.parametrize(
    "path", [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))], ids=_name
)
def test_links_lead_somewhere(path: Path) -> None:
    """Each document has one title, and each relative link a file."""
    text = re.sub(r"```.*?```", "", path.read_text(), flags=re.DOTALL)
    assert len(re.findall(r"^# ", text, re.MULTILINE)) == 1
    targets = re.findall(r"\]\((?!https?:|#)([^)#]+)", text)
    assert [target for target in targets if not (path.parent / target).exists()] == []


def test_every_module_of_the_core_of_consensus_is_held_to_be_pure() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())
    contracts = settings["tool"]["importlinter"]["contracts"]
    (pure,) = (c["source_modules"] for c in contracts if c["name"].startswith("The core of"))
    modules = {path.stem for path in (ROOT / "proglog" / "raft").glob("*.py")}
    assert modules - {"__init__", "driver", "hard_state"} == {m.split(".")[-1] for m in pure}
