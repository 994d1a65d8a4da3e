"""The program as a user meets it: real processes, a real directory, real signals."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import sysconfig
import textwrap
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from tests.ports import free_port

PROGLOG = [sys.executable, "-m", "proglog.cli"]
ROOT = Path(__file__).resolve().parent.parent.parent
STARTS_WITHIN_SECONDS = 60

Serve = Callable[[], AbstractContextManager[subprocess.Popen[str]]]


def run(*words: str, stdin: bytes = b"", **how: object) -> subprocess.CompletedProcess[bytes]:
    how = {"input": stdin, "capture_output": True, "timeout": 60} | how
    return subprocess.run([*PROGLOG, *words], cwd=ROOT, check=False, **how)


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    return tmp_path / "data"


@pytest.fixture
def server() -> str:
    return f"127.0.0.1:{free_port()}"


@pytest.fixture
def serve(data_dir: Path, server: str) -> Serve:
    """Runs a node while the context lasts; it is killed if it is still there at the end."""

    @contextlib.contextmanager
    def run_node() -> Iterator[subprocess.Popen[str]]:
        port = server.rpartition(":")[2]
        words = ["serve", "--data-dir", str(data_dir), "--rpc-port", port, "--http-addr", "none"]
        words += ["--bind-addr", f"127.0.0.1:{free_port()}"]
        with subprocess.Popen(
            [*PROGLOG, *words],
            cwd=ROOT,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        ) as node:
            try:
                assert node.stdout is not None
                for line in node.stdout:
                    if line.startswith("Ctrl-C"):
                        break
                else:
                    assert node.stderr is not None
                    pytest.fail(f"the node did not start: {node.stderr.read()}")
                yield node
            finally:
                node.kill()
                node.communicate()

    return run_node


def stop(node: subprocess.Popen[str], with_signal: signal.Signals = signal.SIGTERM) -> str:
    """Stops a node; what it wrote to stderr."""
    node.send_signal(with_signal)
    _, errors = node.communicate(timeout=60)
    assert node.returncode == 0, errors
    return errors


def test_the_standard_librarys_lines_come_back_also_after_kill_9(
    serve: Serve, server: str, tmp_path: Path
) -> None:
    files = sorted(Path(sysconfig.get_path("stdlib")).rglob("*.py"))
    text = tmp_path / "stdlib.txt"
    text.write_bytes(b"".join(file.read_bytes().rstrip(b"\n") + b"\n" for file in files))
    lines = text.read_bytes().count(b"\n")
    assert lines > 200_000
    with serve() as node:
        produced = run("produce", str(text), "--server", server, "--json")
        assert produced.returncode == 0, produced.stderr
        assert json.loads(produced.stdout)["records"] == lines
        node.kill()
    with serve() as node:
        consumed = run("consume", "--server", server)
        assert consumed.stderr == b""
        assert consumed.stdout == text.read_bytes()
        stop(node)


def test_all_bytes_come_back(serve: Serve, server: str) -> None:
    data = bytes(range(256)) * 300
    with serve():
        assert run("produce", "--server", server, stdin=data).returncode == 0
        assert run("consume", "--server", server).stdout == data + b"\n"
        assert run("consume", "--server", server, "--raw").stdout == data.replace(b"\n", b"")


def test_the_readmes_example_runs(serve: Serve, server: str, tmp_path: Path) -> None:
    example = (ROOT / "README.md").read_text().partition("```python\n")[2].partition("```")[0]
    assert example.count("\n") == 5
    program = tmp_path / "example.py"
    program.write_text(
        "import asyncio, proglog\n"
        "async def main():\n"
        f"{textwrap.indent(example.replace('127.0.0.1:8400', server), '    ')}"
        "asyncio.run(main())\n"
    )
    with serve():
        shown = subprocess.run(
            [sys.executable, program],
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
    assert (shown.stdout, shown.stderr) == ("0 b'hello'\n", "")


def test_a_follower_sees_what_comes_and_ends_by_ctrl_c(serve: Serve, server: str) -> None:
    with serve():
        words = ["consume", "--follow", "--server", server]
        with subprocess.Popen(
            [*PROGLOG, *words], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        ) as follower:
            assert follower.stdout is not None
            for value in (b"first", b"second"):
                assert run("produce", "--server", server, stdin=value).returncode == 0
                assert follower.stdout.readline() == value + b"\n"
            follower.send_signal(signal.SIGINT)
            _, errors = follower.communicate(timeout=60)
        assert (follower.returncode, errors) == (130, b"")


def test_a_reader_that_goes_away_ends_it_quietly(serve: Serve, server: str) -> None:
    with serve():
        many = b"\n".join(b"%0100d" % number for number in range(20_000))
        assert run("produce", "--server", server, stdin=many).returncode == 0
        reading, writing = os.pipe()
        with subprocess.Popen(
            [*PROGLOG, "consume", "--server", server],
            cwd=ROOT,
            stdout=writing,
            stderr=subprocess.PIPE,
        ) as consumer:
            os.close(writing)
            assert os.read(reading, 10) == b"0" * 10
            os.close(reading)
            _, errors = consumer.communicate(timeout=60)
        assert (consumer.returncode, errors) == (141, b"")


def test_errors_of_a_node_are_one_line(serve: Serve, server: str, data_dir: Path) -> None:
    with serve():
        refused = run("consume", "--server", server, "--offset", "5")
        assert refused.returncode == 1
        assert refused.stderr == b"proglog: offset 5 is out of range: the log holds [0, 0)\n"
        elsewhere = ("--rpc-port", "0", "--bind-addr", "127.0.0.1:0", "--http-addr", "none")
        second = run("serve", "--data-dir", str(data_dir), *elsewhere)
        assert second.returncode != 0
        assert second.stderr.count(b"\n") == 1
        assert f"{data_dir} is in use".encode() in second.stderr
        verified = run("verify", str(data_dir))
        assert verified.returncode == 2
        assert b"in use" in verified.stderr
        port = server.rpartition(":")[2]
        other = run("serve", "--data-dir", f"{data_dir}-2", "--rpc-port", port)
        assert other.returncode == 2
        assert (
            f"cannot listen on 127.0.0.1:{port}: Address already in use. ".encode() in other.stderr
        )
        assert other.stderr.count(b"\n") == 1


def test_a_setting_that_is_wrong_on_this_machine_is_told_as_such(data_dir: Path) -> None:
    elsewhere = ["serve", "--data-dir", str(data_dir), "--rpc-port", "0", "--http-addr", "none"]
    with socket.create_server(("127.0.0.1", 0)) as taken:
        gossip = f"127.0.0.1:{taken.getsockname()[1]}"
        refused = run(*elsewhere, "--bind-addr", gossip)
    assert refused.returncode == 2
    assert refused.stderr.startswith(
        f"proglog: cannot gossip at {gossip}: Address already in use. ".encode()
    )
    assert refused.stderr.count(b"\n") == 1
    for key in ("c2VjcmV0", "sécret"):
        # Not as a flag: `ps` would show it.
        keys = {**os.environ, "PROGLOG_GOSSIP_KEYS": key}
        refused = run(*elsewhere, "--bind-addr", "127.0.0.1:0", env=keys)
        assert refused.returncode == 2
        assert refused.stderr == (
            b"proglog: gossip-keys: a gossip key is base64 of 16, 24 or 32 bytes\n"
        )


def test_verify_and_repair(serve: Serve, server: str, data_dir: Path) -> None:
    with serve() as node:
        for value in (b"one", b"two", b"three"):
            assert run("produce", "--server", server, stdin=value).returncode == 0
        stop(node, signal.SIGINT)
    whole = run("verify", str(data_dir), "--json")
    assert whole.returncode == 0
    report = json.loads(whole.stdout)
    assert (report["records"], report["damaged"], report["entries"]) == (3, False, [])

    folder = data_dir / "groups" / f"{2:016x}"
    (store,) = folder.glob("0*.store")
    damaged = store.read_bytes().replace(b"two", b"twO")
    store.write_bytes(damaged)

    (folder / "groups" / "x").mkdir(parents=True)  # nobody's, and no reason not to look here
    verified = run("verify", str(folder))
    assert verified.returncode == 1
    assert str(store).encode() in verified.stdout
    assert b"damaged" in verified.stdout
    started = run("serve", "--data-dir", str(data_dir), "--rpc-port", "0", "--http-addr", "none")
    assert started.returncode == 1
    assert started.stderr.count(b"\n") == 1
    assert str(store).encode() in started.stderr
    refused = run("repair", str(data_dir))
    assert refused.returncode == 1
    assert b"--cut-damaged" in refused.stderr
    assert store.read_bytes() == damaged

    assert run("repair", str(data_dir), "--cut-damaged").returncode == 0
    assert run("verify", str(data_dir)).returncode == 0
    (aside,) = folder.glob("aside-*")
    assert b"twO" in aside.read_bytes()
    with serve() as node:
        assert run("consume", "--server", server).stdout == b"one\n"
        stop(node)
