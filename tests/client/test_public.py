"""The names of the package, and what importing them loads."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import proglog
from proglog import errors

SERVER = [
    "agent",
    "auth",
    "cli",
    "gateway",
    "log",
    "membership",
    "raft",
    "replica",
    "rpc",
    "simulation",
]


def loaded_by(program: str) -> set[str]:
    shown = subprocess.run(
        [sys.executable, "-c", f"{program}\nimport sys; print(*sys.modules)"],
        capture_output=True,
        check=True,
        text=True,
    )
    return set(shown.stdout.split())


def test_importing_the_package_loads_nothing_else():
    ours = {name for name in loaded_by("import proglog") if name.startswith("proglog")}
    assert ours == {"proglog"}


def test_the_client_loads_nothing_of_the_server():
    loaded = loaded_by(
        "import asyncio, proglog\n"
        "async def main():\n"
        "    async with proglog.connect('proglog://127.0.0.1:1') as log: log.consume(0)\n"
        "asyncio.run(main())"
    )
    assert "proglog.client.network" in loaded
    assert not {f"proglog.{name}" for name in SERVER} & loaded
    assert not {"aiohttp", "cyclopts", "structlog", "prometheus_client"} & loaded


def test_every_name_is_there():
    for name in proglog.__all__:
        assert getattr(proglog, name) is not None
    with pytest.raises(AttributeError):
        proglog.nothing


def test_every_error_is_a_name_of_the_package():
    ours = {
        name: error
        for name, error in vars(errors).items()
        if isinstance(error, type) and issubclass(error, BaseException) and name[0] != "_"
    }
    assert set(errors.ROWS) < set(ours.values())
    for name, error in ours.items():
        assert getattr(proglog, name) is error
        assert name in proglog.__all__


def test_a_type_checker_knows_the_names(tmp_path):
    program = tmp_path / "program.py"
    program.write_text("import proglog\nproglog.connect\nproglog.UnknownProducer\nproglog.conect\n")
    command = [sys.executable, "-m", "mypy", "--strict", "--config-file=", "--follow-imports=skip"]
    shown = subprocess.run(
        [*command, f"--cache-dir={os.devnull}", proglog.__file__, str(program)],
        capture_output=True,
        check=False,
        text=True,
    )
    told = [line for line in shown.stdout.splitlines() if "program.py" in line]
    assert [line.split(":")[1] for line in told] == ["4"], shown.stdout + shown.stderr


def test_a_progress_bar_of_the_same_name_is_noticed(tmp_path):
    """On PyPI `proglog` is somebody else's, with the same folder."""
    package = Path(proglog.__file__).parent
    for path in ("__init__.py", "cli/__init__.py"):
        (tmp_path / "proglog" / path).parent.mkdir(exist_ok=True, parents=True)
        (tmp_path / "proglog" / path).write_bytes((package / path).read_bytes())
    (tmp_path / "proglog" / "proglog.py").touch()
    shown = subprocess.run(
        [sys.executable, "-c", "import proglog.cli; raise SystemExit(proglog.cli.main())"],
        capture_output=True,
        check=False,
        text=True,
        cwd=tmp_path,
        env={"PATH": os.environ["PATH"]},
    )
    assert shown.returncode == 2, shown.stderr
    assert "pip uninstall proglog" in shown.stderr


def test_the_version_is_that_of_the_project():
    project = tomllib.loads(Path("pyproject.toml").read_text())["project"]
    assert proglog.__version__ == project["version"]


@pytest.mark.parametrize("url", ["localhost:8400", ["proglog://a", "proglog://b"], None])
def test_a_wrong_url_says_what_is_right(url):
    with pytest.raises(proglog.ConfigurationError, match="proglog://host:port"):
        proglog.connect(url)
