"""The unit for systemd, and what a service manager is told."""

from __future__ import annotations

import asyncio
import configparser
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from proglog.net.notify import ServiceManager
from tests import judges

UNIT = Path(__file__).parents[2] / "scripts/systemd/proglog.service"

ENDED_EARLY = """
import os, signal, sys

class Finder:
    def find_spec(self, name, path, target=None):
        if name == "proglog.cli.app":  # all that a node needs is behind it
            os.kill(os.getpid(), signal.SIGTERM)

sys.meta_path.insert(0, Finder())
from proglog.cli import main
main()
"""


@pytest.fixture
def told(tmp_path: Path) -> socket.socket:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        manager.settimeout(60)
        yield manager


async def test_a_node_says_when_it_serves_and_when_it_stops(
    told: socket.socket, tmp_path: Path
) -> None:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "proglog.cli", "serve", f"--data-dir={tmp_path / 'data'}"),
        *("--rpc-port=0", "--bind-addr=127.0.0.1:0", "--http-addr=none", "--log-format=json"),
        env={**os.environ, "NOTIFY_SOCKET": told.getsockname()},
        stderr=subprocess.PIPE,
    )
    try:
        said = [await asyncio.to_thread(told.recv, 1024) for _ in range(2)]
        assert said[0].startswith(b"EXTEND_TIMEOUT_USEC=20000000\n")
        assert said[1] == b"READY=1\nSTATUS=serves"
        process.terminate()
        assert await asyncio.to_thread(told.recv, 1024) == b"STOPPING=1\nSTATUS=stops"
        _, errors = await asyncio.wait_for(process.communicate(), 60)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert process.returncode == 0
    (started,) = [line for line in errors.splitlines() if b'"started"' in line]
    assert b'"version"' in started
    assert str(tmp_path).encode() in started


def test_nobody_to_tell_and_a_manager_that_is_gone_are_no_trouble(tmp_path: Path) -> None:
    ServiceManager({}).ready()
    ServiceManager({"NOTIFY_SOCKET": str(tmp_path / "none")}).ready()


def test_an_abstract_socket_is_told() -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        name = f"proglog-test-{os.getpid()}"
        manager.bind(f"\0{name}")
        ServiceManager({"NOTIFY_SOCKET": f"@{name}"}).stopping()
        assert manager.recv(100).startswith(b"STOPPING=1")


def test_systemd_understands_every_line_of_the_unit(tmp_path: Path) -> None:
    if shutil.which("systemd-analyze") is None:
        judges.leave_out("systemd-analyze is missing", "", always=False)
    program = tmp_path / "proglog"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    unit = tmp_path / "proglog.service"
    # Only the program's place differs, which it need not be at on this machine.
    unit.write_text(UNIT.read_text().replace("/opt/proglog/bin/proglog", str(program)))
    done = subprocess.run(
        ["systemd-analyze", "verify", "--recursive-errors=no", unit],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_the_unit_starts_nothing_again_that_cannot_help() -> None:
    unit = configparser.ConfigParser(strict=False, interpolation=None)
    unit.optionxform = str
    unit.read(UNIT)
    service = unit["Service"]
    assert (service["Type"], service["KillMode"]) == ("notify", "mixed")
    assert service["RestartPreventExitStatus"] == "2 3"
    assert re.fullmatch(r"/opt/proglog/bin/proglog serve .*", service["ExecStart"])
    # Its exit status is news, and no reason not to stop.
    assert service["ExecStop"].startswith("-/opt/proglog/bin/proglog drain --leave never ")


def test_sigterm_ends_a_first_process_that_has_not_begun() -> None:
    """As in a container, where the kernel drops it unless there is a handler."""
    first = ["unshare", "--user", "--map-root-user", "--pid", "--fork", "--kill-child"]
    if subprocess.run([*first, "true"], capture_output=True).returncode:
        judges.leave_out("no namespaces of processes can be made", "", always=False)
    done = subprocess.run(
        [*first, sys.executable, "-c", ENDED_EARLY], capture_output=True, timeout=60
    )
    assert done.returncode == 128 + signal.SIGTERM, done.stderr
