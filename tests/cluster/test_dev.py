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

from proglog.membership.address import Address
from proglog.membership.codec.snapshot import Snapshot, encode_snapshot
from tests.cluster.harness import ROOT
from tests.ports import free_base
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
    return free_port_base()


@pytest.fixture
def other_port_base() -> int:
    return free_port_base()


def free_port_base() -> int:
    return free_base(10 * node + more for node in range(3) for more in (0, 1, -HTTP_BELOW_RPC))


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
    """One that follows may be a moment behind, or about to start."""
    deadline = time.monotonic() + DEADLINE_SECONDS
    while (shown := consumed(server)) != "".join(lines):
        assert "".join(lines).startswith(shown), "what a follower shows is a prefix"
        assert time.monotonic() < deadline, f"{server} still shows {len(shown)} bytes only"


def consumed(server: str) -> str:
    words = ["consume", "--server", server]
    done = subprocess.run(
        [*PROGLOG, *words], cwd=ROOT, capture_output=True, text=True, check=False, timeout=60
    )
    return done.stdout


def wait_for_line(process: subprocess.Popen[str], wanted: str) -> None:
    assert process.stdout is not None
    shown = []
    for line in process.stdout:
        shown.append(line)
        if wanted in line:
            return
    pytest.fail("".join(shown))


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
        killed = node_pids(process.pid)["node-0"]
        os.kill(killed, signal.SIGKILL)
        some = ",".join(servers)  # The first of them is not there, for a while.
        run("produce", "--server", some, stdin="".join(lines[500:]))
        assert run("members", "--server", some).count("proglog") >= 3
        wait_for_lines(servers[1], lines)
        # It starts again by itself, and `dev` says so.
        wait_for_line(process, "node-0 was killed by SIGKILL: it starts again in 2 s")
        wait_for_lines(servers[0], lines)
        assert node_pids(process.pid)["node-0"] != killed
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


# --- beside other nodes --------------------------------------------------------------------------


def refused_dev(tmp_path: Path, port_base: int) -> str:
    """What `dev` says that does not start."""
    words = ["dev", "--data-dir", str(tmp_path / "dev"), "--port-base", str(port_base)]
    done = subprocess.run(
        [*PROGLOG, *words], cwd=ROOT, capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 2, done.stdout + done.stderr
    assert "--port-base" in done.stderr
    assert not (tmp_path / "dev").exists(), "no node was started"
    return done.stderr


@pytest.mark.parametrize("node", range(3))
@pytest.mark.parametrize("port", ["RPC", "gossip", "gossip by UDP", "HTTP"])
def test_a_port_that_is_taken_is_told_before_any_node_starts(
    tmp_path: Path, port_base: int, node: int, port: str
) -> None:
    number = port_base + 10 * node
    number += {"RPC": 0, "HTTP": -HTTP_BELOW_RPC}.get(port, 1)
    kind = socket.SOCK_DGRAM if port == "gossip by UDP" else socket.SOCK_STREAM
    with socket.socket(type=kind) as taken:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        taken.bind(("127.0.0.1", number))
        if kind == socket.SOCK_STREAM:
            taken.listen()
        said = refused_dev(tmp_path, port_base)
    assert f"127.0.0.1:{number}" in said
    assert f"node-{node}" in said


@contextlib.contextmanager
def alone(data_dir: Path, port_base: int) -> Iterator[str]:
    """A node as of `make run`, on the ports of the first of a local cluster; its address."""
    words = ["serve", "--data-dir", str(data_dir), "--rpc-port", str(port_base)]
    words += ["--bind-addr", f"127.0.0.1:{port_base + 1}"]
    words += ["--http-addr", f"127.0.0.1:{port_base - HTTP_BELOW_RPC}"]
    with subprocess.Popen(
        [*PROGLOG, *words],
        cwd=ROOT,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    ) as process:
        assert process.stdout is not None
        shown = []
        for line in process.stdout:
            shown.append(line)
            if "Ctrl-C stops" in line:
                break
        else:
            pytest.fail("".join(shown))
        try:
            yield f"127.0.0.1:{port_base}"
            assert process.poll() is None, "it went on to the end"
        finally:
            process.terminate()
            process.communicate(timeout=60)


def names(server: str) -> set[str]:
    status = json.loads(run("cluster", "status", "--json", "--server", server))
    return {each["id"] for each in status["servers"]}


def test_a_node_that_runs_already_is_left_alone(tmp_path: Path, port_base: int) -> None:
    with alone(tmp_path / "node", port_base) as server:
        run("produce", "--server", server, stdin="before\n")
        assert f"127.0.0.1:{port_base}" in refused_dev(tmp_path, port_base)
        run("produce", "--server", server, stdin="after\n")
        assert len(names(server)) == 1


def test_a_node_that_comes_later_says_that_its_port_is_taken(
    tmp_path: Path, port_base: int
) -> None:
    with dev(tmp_path / "dev", port_base):
        words = ["serve", "--data-dir", str(tmp_path / "node"), "--rpc-port", str(port_base)]
        done = subprocess.run(
            [*PROGLOG, *words], cwd=ROOT, capture_output=True, text=True, check=False, timeout=60
        )
        assert done.returncode == 2
        assert f"cannot listen on 127.0.0.1:{port_base}" in done.stderr
        run("produce", "--server", f"127.0.0.1:{port_base}", stdin="goes on\n")


@pytest.mark.parametrize("first", ["node", "dev"])
def test_a_local_cluster_and_a_node_meet_and_stay_apart(
    tmp_path: Path, port_base: int, other_port_base: int, first: str
) -> None:
    """The cluster was at the ports where the node is now, and remembers them."""
    for number in range(3):
        folder = tmp_path / "dev" / f"node-{number}"
        folder.mkdir(parents=True)
        peers = (Address("127.0.0.1", port_base + 1),)
        remembered = Snapshot(member_time=1, event_time=1, query_time=1, peers=peers)
        (folder / "peers").write_bytes(encode_snapshot(remembered))
    both = {
        "node": lambda: alone(tmp_path / "node", port_base),
        "dev": lambda: dev(tmp_path / "dev", other_port_base),
    }
    others = [f"127.0.0.1:{other_port_base + 10 * number}" for number in range(3)]
    with contextlib.ExitStack() as running:
        for name in sorted(both, key=lambda name: name != first):
            running.enter_context(both[name]())
        time.sleep(3)  # so many times could each make a change
        (node,) = names(f"127.0.0.1:{port_base}")
        for server in others:
            assert names(server) == {"node-0", "node-1", "node-2"}
        members = run("members", "--server", f"127.0.0.1:{port_base}")
        assert "node-" not in members.replace(node, "")
        run("produce", "--server", f"127.0.0.1:{port_base}", stdin="the node's\n")
        run("produce", "--server", others[0], stdin="the cluster's\n")
