"""Files that a newer version wrote: named as such, with a status of their own, and left alone."""

from __future__ import annotations

import json
import shutil
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from crc32c import crc32c

from proglog.log.names import DEFAULT_GROUP, group_folder
from proglog.replica import commands
from tests.replica.support import Node

PROGLOG = [sys.executable, "-m", "proglog.cli"]
SERVE = ("--rpc-port", "0", "--bind-addr", "127.0.0.1:0", "--http-addr", "none")
BLOCK = 4096
UNKNOWN_FORMAT = 3


def run(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*PROGLOG, *words], capture_output=True, text=True, timeout=60, check=False
    )


async def filled(data_dir: Path) -> None:
    """The directory of a node that was stopped, with one of everything in it."""
    async with Node(group_folder(data_dir, DEFAULT_GROUP), name="") as node:
        await node.fill(60)
        await node.written()


@pytest.fixture
async def data_dir(tmp_path: Path) -> Path:
    await filled(tmp_path / "data")
    return tmp_path / "data"


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def newer(path: Path, *positions: int) -> None:
    """Makes the envelopes at these positions those of version 3, whole in every other way."""
    data = bytearray(path.read_bytes())
    for at in positions:
        magic, version, flags, length, zero, _crc = struct.unpack_from("<8sHHIII", data, at)
        assert (magic[:4], version) == (b"PROG", 2)
        payload = data[at + 24 : at + length]
        crc = crc32c(bytes(payload), crc32c(struct.pack("<8sHHIII", magic, 3, flags, length, 0, 0)))
        struct.pack_into("<8sHHIII", data, at, magic, 3, flags, length, zero, crc)
    path.write_bytes(data)


KINDS = {
    "node": ("../../node", 0, BLOCK),
    "hard state": ("hard-state", 0, BLOCK),
    "manifest": ("manifest", 0, BLOCK),
    "snapshot": ("snapshot-*", 0),
    "segment": ("0*.store", 0, BLOCK),
    "mark": ("0*.store", 2 * BLOCK, 3 * BLOCK),
    "index": ("0*.index", 0),
}


def _paths(data_dir: Path, pattern: str, kind: str) -> Iterator[Path]:
    if kind == "node":
        yield data_dir / "node"
        return
    *rest, last = sorted(group_folder(data_dir, DEFAULT_GROUP).glob(pattern))
    # That of the newest segment is not written yet.
    yield rest[0] if kind == "index" else last


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_of_a_newer_version(data_dir: Path, kind: str) -> None:
    pattern, *positions = KINDS[kind]
    assert isinstance(pattern, str)
    (path,) = _paths(data_dir, pattern, kind)
    newer(path, *map(int, positions))
    before = contents(data_dir)
    log = group_folder(data_dir, DEFAULT_GROUP)
    calls = [("serve", "--data-dir", str(data_dir), *SERVE), ("verify", str(data_dir))]
    if kind != "node":
        calls += [("verify", str(log)), ("repair", str(data_dir), "--cut-damaged")]
    for call in calls:
        done = run(*call)
        assert done.returncode == UNKNOWN_FORMAT, (call, done)
        *before_it, said = done.stderr.splitlines()
        assert all(json.loads(line)["event"] == "starting" for line in before_it)
        assert f"{path} has format version 3" in said
        assert "Nothing was changed" in said
        assert contents(data_dir) == before


async def _with_an_unknown_command(data_dir: Path) -> int:
    async with Node(group_folder(data_dir, DEFAULT_GROUP), name="") as node:
        await node.fill(3)
        index, _ = node.replica._driver.propose_command(commands.frame(40, 2, 0, b"a queue"))
        await node.failed_event.wait()
    return index


async def test_a_command_of_a_newer_version(tmp_path: Path) -> None:
    """A node in the middle of an upgrade, whose log an upgraded leader has gone on with."""
    index = await _with_an_unknown_command(tmp_path / "data")
    _serve_stays_before(tmp_path / "data", index)


def _serve_stays_before(data_dir: Path, index: int) -> None:
    for _ in range(2):
        done = run("serve", "--data-dir", str(data_dir), *SERVE, "--log-format", "json")
        assert done.returncode == UNKNOWN_FORMAT, done
        assert f"batch {index} holds command 40 in version 2" in done.stderr
        assert "Traceback" not in done.stderr


def test_what_is_no_log_of_ours_is_damage_and_no_version(data_dir: Path) -> None:
    path = data_dir / "node"
    path.write_bytes(b"not ours".ljust(2 * BLOCK, b"\0"))
    assert run("serve", "--data-dir", str(data_dir), *SERVE).returncode == 1
    verified = run("verify", str(data_dir))
    assert verified.returncode == 1
    assert f"{path} at 0: the checksum of this copy does not match; " in verified.stdout
    assert f"{path}: damaged\n" in verified.stdout
    (told, _of_log) = map(json.loads, run("verify", str(data_dir), "--json").stdout.splitlines())
    assert (told["file"], told["damaged"], len(told["entries"])) == (str(path), True, 2)
    shutil.rmtree(data_dir / "groups")
    assert run("verify", str(data_dir)).returncode == 1
