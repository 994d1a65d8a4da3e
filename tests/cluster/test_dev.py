"""`proglog dev`: a cluster of three on a terminal, as somebody meets it who tries Proglog."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster.harness import ROOT
from tests.ports import free_port, is_free
from tests.waiting import DEADLINE_SECONDS

PROGLOG = [sys.executable, "-m", "proglog.cli"]
HTTP_BELOW_RPC = 320


def run(*words: str, stdin: str = "") -> str:
    done = subprocess.run(
        [*PROGLOG, *words],
        cwd=ROOT,
        input=stdin,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture
def port_base() -> int:
    while True:
        base = free_port()
        ports = [base + 10 * node + more for node in range(3) for more in (0, 1, -HTTP_BELOW_RPC)]
        if all(map(is_free, ports)):
            return base


@contextlib.contextmanager
def dev(data_dir: Path, port_base: int) -> Iterator[subprocess.Popen[str]]:
    """A cluster that is up while the context lasts."""
    words = ["dev", "--nodes", "3", "--data-dir", str(data_dir), "--port-base", str(port_base)]
    with subprocess.Popen(
        [*PROGLOG, *words],
        cwd=ROOT,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    ) as process:
        nodes: dict[str, int] = {}
        shown = []
        try:
            assert process.stdout is not None
            for line in process.stdout:
                shown.append(line)
                if line.startswith("a cluster of 3 is up"):
                    break
            else:
                pytest.fail("".join(shown))
            nodes = node_pids(process.pid)
            assert sorted(nodes) == ["node-0", "node-1", "node-2"]
            yield process
        finally:
            process.kill()
            for pid in nodes.values():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)


def node_pids(dev_pid: int) -> dict[str, int]:
    """The processes that `dev` runs, by the names of their nodes."""
    found = {}
    for pid in Path(f"/proc/{dev_pid}/task/{dev_pid}/children").read_text().split():
        words = Path(f"/proc/{pid}/cmdline").read_text().split("\0")
        names = [word.partition("=")[2] for word in words if word.startswith("--node-name=")]
        found.update(dict.fromkeys(names, int(pid)))
    return found


def wait_for_lines(server: str, lines: list[str]) -> None:
    """One that follows may be a moment behind."""
    deadline = time.monotonic() + DEADLINE_SECONDS
    while (shown := run("consume", "--server", server)) != "".join(lines):
        assert "".join(lines).startswith(shown), "what a follower shows is a prefix"
        assert time.monotonic() < deadline, f"{server} still shows {len(shown)} bytes only"


def interrupt(process: subprocess.Popen[str]) -> None:
    """Ctrl-C: all of it ends, and well."""
    nodes = node_pids(process.pid)
    process.send_signal(signal.SIGINT)
    shown, _ = process.communicate(timeout=60)
    assert process.returncode == 0, shown
    for pid in nodes.values():
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


def test_a_local_cluster_survives_kill_9_and_a_restart(tmp_path: Path, port_base: int) -> None:
    servers = [f"127.0.0.1:{port_base + 10 * number}" for number in range(3)]
    lines = [f"line {number}\n" for number in range(1000)]
    with dev(tmp_path, port_base) as process:
        run("produce", "--server", servers[1], stdin="".join(lines[:500]))
        status = run("cluster", "status", "--server", servers[2])
        assert status.count("voter") + status.count("leader") >= 3
        assert run("members", "--server", servers[0]).count("alive") == 3
        os.kill(node_pids(process.pid)["node-0"], signal.SIGKILL)
        some = ",".join(servers)  # The first of them is not there.
        run("produce", "--server", some, stdin="".join(lines[500:]))
        assert "told by node-0" not in run("cluster", "status", "--server", some)
        assert run("members", "--server", some).count("proglog") >= 3
        wait_for_lines(servers[1], lines)
        interrupt(process)
    with dev(tmp_path, port_base) as process:
        for server in servers:
            wait_for_lines(server, lines)
        url = f"http://127.0.0.1:{port_base + 10 - HTTP_BELOW_RPC}/v1/records?offset=7&limit=1"
        with urllib.request.urlopen(f"{url}&format=text", timeout=30) as answer:
            (record,) = json.load(answer)
        assert (record["offset"], record["value"]) == (7, "line 7")
        interrupt(process)


def test_nothing_is_left_after_a_kill_9(tmp_path: Path, port_base: int) -> None:
    with dev(tmp_path, port_base) as process:
        nodes = node_pids(process.pid)
        process.kill()
        process.wait()
        deadline = time.monotonic() + DEADLINE_SECONDS
        while left := [name for name, pid in nodes.items() if is_running(pid)]:
            assert time.monotonic() < deadline, f"{left} outlived it"
            time.sleep(0.05)


def is_running(pid: int) -> bool:
    """Nobody may be left to wait for it: what has ended but is not gone is not running."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


STOPPED_AS_IT_STARTS = """
import asyncio, os, signal, sys
start = asyncio.create_subprocess_exec
async def interrupted(*words, **how):
    os.kill(os.getpid(), signal.SIGINT)
    await asyncio.sleep(0.05)  # the loop takes notice
    return await start(*words, **how)
asyncio.create_subprocess_exec = interrupted
from proglog.cli import main
sys.exit(main())
"""


def test_ctrl_c_before_its_nodes_are_there_ends_it_too(tmp_path: Path, port_base: int) -> None:
    words = ["dev", "--data-dir", str(tmp_path), "--port-base", str(port_base)]
    done = subprocess.run(
        [sys.executable, "-c", STOPPED_AS_IT_STARTS, *words], cwd=ROOT, check=False, timeout=60
    )
    assert done.returncode == 0


def test_a_cluster_that_cannot_start_says_why_and_ends(tmp_path: Path, port_base: int) -> None:
    with socket.create_server(("127.0.0.1", port_base + 20)):
        words = ["dev", "--data-dir", str(tmp_path), "--port-base", str(port_base)]
        done = subprocess.run(
            [*PROGLOG, *words], cwd=ROOT, capture_output=True, text=True, check=False, timeout=60
        )
    assert done.returncode == 1
    assert f"cannot listen on 127.0.0.1:{port_base + 20}" in done.stdout
