"""Clients that are not ours: in Go, by grpcio, and h2load, each a process of its own."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from scripts.bench.systems import HOST
from tests.rpc.raw import message

GOCODE = Path("/usr/share/gocode")
"""Where Debian's golang-google-grpc-dev is."""
_HERE = Path(__file__).parent
CALLERS = 256


def go_client(folder: Path) -> list[str] | None:
    """The client in Go, compiled; None where there is no compiler, or no gRPC for it."""
    go = shutil.which("go")
    if go is None or not (GOCODE / "src/google.golang.org/grpc").is_dir():
        return None
    binary = folder / "go-client"
    environment = {**os.environ, "GO111MODULE": "off", "GOPATH": str(GOCODE), "GOFLAGS": ""}
    subprocess.run(
        [go, "build", "-o", str(binary), "client.go"], cwd=_HERE, env=environment, check=True
    )
    return [str(binary)]


def grpcio_client() -> list[str]:
    return [sys.executable, "-m", "scripts.bench.foreign.grpcio_client"]


async def measured(client: list[str], port: int, *what: object) -> dict[str, float]:
    """What a client says of one load: `rate`, and of calls `p50` and `p99` in ms."""
    found = await _output(*client, f"{HOST}:{port}", *map(str, what))
    return dict(json.loads(found))


async def h2load(folder: Path, port: int, seconds: float) -> float | None:
    """Unary produces a second by h2load on one connection; None where it is not installed."""
    program = shutil.which("h2load")
    if program is None:
        return None
    body = folder / "body"
    body.write_bytes(message(b"\x0a\x66\x0a\x64" + bytes(100)))
    text = await _output(
        *(program, "-c1", f"-m{CALLERS}", "-t1", f"-D{max(1, round(seconds))}", f"--data={body}"),
        *("-H", "content-type: application/grpc", "-H", "te: trailers"),
        f"http://{HOST}:{port}/log.v1.Log/Produce",
    )
    rate = re.search(r"finished in [^,]+, ([\d.]+) req/s", text)
    assert rate is not None, text
    assert " 0 failed, 0 errored" in text, text
    return float(rate[1])


async def _output(*command: str) -> str:
    process = await asyncio.create_subprocess_exec(*command, stdout=subprocess.PIPE)
    said, _ = await process.communicate()
    if process.returncode:
        raise RuntimeError(f"{command[0]} ended with {process.returncode}")
    return said.decode()
