"""The test kit, as somebody's own tests use it."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from pathlib import Path

import pytest

import proglog
from proglog import testing

TESTS = """
import asyncio
import proglog

async def begin(log):
    async with log:
        return await log.produce(b"a"), (await log.describe()).next

def test_each_log_is_its_own(proglog_log):
    assert asyncio.run(begin(proglog_log)) == (0, 1)

async def test_with_a_plugin_for_async_tests(proglog_log):
    async with proglog_log as log:
        assert await log.produce(b"a") == 0

def test_a_leader_is_killed(proglog_cluster):
    async def produce():
        async with proglog.connect(proglog_cluster.url) as log:
            return await log.produce(b"a")

    first = asyncio.run(produce())
    leader = proglog_cluster.leader()
    proglog_cluster.kill(leader)
    assert asyncio.run(produce()) == first + 1
    assert proglog_cluster.leader() != leader

def test_all_are_there_again(proglog_cluster):
    assert all(node.is_running for node in proglog_cluster.nodes)
    leader = proglog_cluster.leader()
    proglog_cluster.pause(leader)
    proglog_cluster.resume(leader)

async def test_from_within_a_loop(proglog_cluster):
    assert proglog_cluster.leader() in (0, 1, 2)
"""


PLUGIN = "proglog.pytest_plugin"


def theirs() -> dict[str, str]:
    """Where the plugin is named and not found by itself: this environment may not know it yet."""
    root = str(Path(__file__).resolve().parents[2])
    return os.environ | {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "PYTHONPATH": root}


@pytest.mark.timeout(300)
def test_fixtures(tmp_path: Path) -> None:
    (tmp_path / "test_theirs.py").write_text(TESTS)
    (tmp_path / "pytest.ini").write_text("[pytest]\nasyncio_mode = auto\n")
    plugins = ["-p", "no:cacheprovider", "-p", "pytest_asyncio.plugin", "-p", PLUGIN]
    shown = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", *plugins, "--override-ini=addopts=", "."],
        capture_output=True,
        check=False,
        text=True,
        cwd=tmp_path,
        env=theirs(),
    )
    assert shown.returncode == 0, shown.stdout + shown.stderr
    assert "5 passed" in shown.stdout


def test_the_plugin_loads_nothing_that_it_does_not_need() -> None:
    program = "import pytest, proglog.pytest_plugin, sys; print(*sys.modules)"
    shown = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, check=True, text=True
    )
    ours = {name for name in shown.stdout.split() if name.startswith("proglog")}
    assert ours <= {"proglog", "proglog.pytest_plugin"}


def test_a_log_is_small_and_goes_away() -> None:
    async def use(log: proglog.Log) -> None:
        async with log:
            await log.produce(b"a")

    with testing.small_log() as log:
        folder = Path(log._backend._data_dir)
        asyncio.run(use(log))
        size = sum(path.stat().st_blocks * 512 for path in folder.rglob("*"))
        assert 0 < size < 1_000_000
    assert not folder.parent.exists()


def test_what_does_not_come_true_is_told_with_the_logs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(testing, "READY_SECONDS_MAX", 0.05)
    node = testing.Node(tmp_path)
    with pytest.raises(TimeoutError, match="node-0 knows a leader"):
        node.wait()
    assert "never started" in node.log()
    flags = testing.Node(tmp_path, options=["--segment-bytes=5MiB", "--bootstrap"])._flags()
    assert [flag for flag in flags if "segment" in flag] == ["--segment-bytes=5MiB"]
    assert f"--rpc-port={node.address.port}" in node._flags()
    assert node.url.startswith("proglog://127.0.0.1:")
    assert proglog.connect(node.url) is not None
