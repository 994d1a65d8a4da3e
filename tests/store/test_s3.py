"""Backups in an object store: a server that speaks S3, in a process of its own."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import judges
from tests.ports import free_port
from tests.waiting import until

PACKAGES = judges.FOLDER / "store"

FLIP = """
import sys
import fsspec
files, path = fsspec.url_to_fs(sys.argv[1])
part = path + "/parts/00000000000000000002.batches"
data = bytearray(files.cat_file(part))
data[-1] ^= 1
files.pipe_file(part, bytes(data))
"""


@pytest.fixture
def environment() -> Iterator[dict[str, str]]:
    """Of commands that reach the store; it has one bucket."""
    if not PACKAGES.exists():
        why = judges.FOLDER / "store.why"
        judges.leave_out(
            "no object store", why.read_text() if why.exists() else "make store", always=False
        )
    port = free_port()
    keys = {
        "AWS_ACCESS_KEY_ID": "a",
        "AWS_SECRET_ACCESS_KEY": "b",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
        "PYTHONPATH": os.pathsep.join([str(PACKAGES), os.environ.get("PYTHONPATH", "")]),
    }
    server = subprocess.Popen(
        [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)],
        env={**os.environ, **keys},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        yield {**os.environ, **keys}
    finally:
        server.kill()
        server.wait()


def makes_bucket(address: str) -> bool:
    request = urllib.request.Request(address, method="PUT")
    request.add_header("Authorization", "AWS4-HMAC-SHA256 Credential=a/1/us-east-1/s3/aws4_request")
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            return bool(answer.status == 200)
    except (OSError, urllib.error.URLError):
        return False


def proglog(environment: dict[str, str], *words: str, given: str = "") -> tuple[int, str]:
    done = subprocess.run(
        [sys.executable, "-m", "proglog.cli", *words],
        input=given,
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
    )
    return done.returncode, done.stdout + done.stderr


async def test_a_backup_in_a_bucket(environment: dict[str, str], tmp_path: Path) -> None:
    endpoint, dest = environment["AWS_ENDPOINT_URL"], "s3://bucket/proglog"
    await until(lambda: makes_bucket(f"{endpoint}/bucket"), "the store is there")
    port = free_port()
    node = subprocess.Popen(
        [sys.executable, "-m", "proglog.cli", "serve", f"--data-dir={tmp_path / 'data'}",
         f"--rpc-port={port}", "--bind-addr=127.0.0.1:0", "--http-addr=none", "--quiet"],
        stderr=subprocess.DEVNULL,
    )  # fmt: skip
    server = f"--server=127.0.0.1:{port}"
    try:

        def produced(text: str) -> bool:
            return proglog(environment, "produce", server, given=text)[0] == 0

        await until(lambda: produced("one\ntwo\n"), "the node is there")
        status, said = proglog(environment, "backup", dest, server)
        assert status == 0, said
        assert produced("three\n")
        status, said = proglog(environment, "backup", dest, server)
        assert status == 0, said
        assert re.search(r"^3 records, offsets 0 to 2,", said, re.MULTILINE)
    finally:
        node.terminate()
        node.wait(60)
    assert proglog(environment, "backup", dest, "--check")[0] == 0
    new = tmp_path / "new"
    status, said = proglog(environment, "restore", dest, f"--data-dir={new}")
    assert status == 0, said
    assert proglog(environment, "verify", str(new))[0] == 0
    # Another byte in one object.
    subprocess.run([sys.executable, "-c", FLIP, dest], env=environment, check=True, timeout=60)
    status, said = proglog(environment, "backup", dest, "--check")
    assert status == 6
    assert "00000000000000000002.batches: at byte 0, offset 2: body checksum" in said
