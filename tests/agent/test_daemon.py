"""A node as a process whose disk fails: what it says, and how it exits."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import sys
from asyncio.subprocess import PIPE, Process
from pathlib import Path

import pytest

import proglog
from proglog.agent.node import Node, _listen
from proglog.config import Address, NodeConfig
from proglog.errors import ConfigurationError, DiskFull, OutcomeUnknown
from proglog.ports import RealFile
from tests.replica.support import log_in

PROGRAM = """
import errno, os, sys
from pathlib import Path
from proglog import limits, ports
from proglog.agent import daemon
from proglog.config import NodeConfig

folder = Path(sys.argv[1])

def fdatasync(file):
    if (folder / "broken").exists():
        raise OSError(errno.EIO, os.strerror(errno.EIO))
    os.fdatasync(file._descriptor)

ports.RealFile.fdatasync = fdatasync
limits.mark_idle_seconds = 3600.0  # what was produced is marked, with a sync, when it stops
config = NodeConfig.for_tests(folder / "data")
sys.exit(daemon.run(config, lambda node: print(node.rpc_addr, flush=True)))
"""


async def start(folder: Path) -> tuple[Process, str]:
    """A single node, and its address."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", PROGRAM, str(folder), stdout=PIPE, stderr=PIPE
    )
    assert process.stdout is not None
    return process, (await process.stdout.readline()).decode().strip()


@pytest.mark.parametrize("asked_to_stop", [False, True])
async def test_a_disk_that_fails_ends_the_node_and_is_told_once(
    tmp_path: Path, asked_to_stop: bool
) -> None:
    process, address = await start(tmp_path)
    try:
        async with proglog.connect(f"proglog://{address}", timeout_seconds=5) as log:
            await log.produce(b"kept")
            await asyncio.to_thread((tmp_path / "broken").touch)
            if asked_to_stop:
                process.terminate()
            else:
                with pytest.raises(OutcomeUnknown):
                    await log.produce(b"lost?")
        _, errors = await asyncio.wait_for(process.communicate(), 60)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert process.returncode == 1
    assert errors.count(b"stopped by a failure") == 1
    assert b"Traceback" not in errors
    assert (b"SIGTERM" in errors) is asked_to_stop


def test_a_name_that_cannot_be_resolved_is_said_to_be_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def getaddrinfo(*_: object) -> list[object]:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    said = r"nohost.invalid:1: the name cannot be resolved \(Name or .* known\)\. Choose another --"
    with pytest.raises(ConfigurationError, match=said):
        _listen(Address("nohost.invalid", 1))


async def test_a_disk_too_small_for_a_log_is_named_with_what_it_takes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def reserve(file: RealFile, size: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(RealFile, "reserve", reserve)
    with pytest.raises(DiskFull) as caught:
        await Node(NodeConfig.for_tests(tmp_path)).start()
    for word in (str(log_in(tmp_path)), f"{28 * 1024} bytes", "--segment-bytes"):
        assert word in str(caught.value)
