"""Files that change while they are used: whole sets, or what was there before."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Mapping
from pathlib import Path

import pytest

from proglog import limits
from proglog.auth.reload import Outcome, Watched, read_files
from proglog.errors import ConfigurationError

UNCHANGED, REPLACED, REFUSED = Outcome.UNCHANGED, Outcome.REPLACED, Outcome.REFUSED


def build(contents: Mapping[str, bytes]) -> bytes:
    """Two files that belong together say the same."""
    first, second = contents.values()
    if first != second:
        raise ConfigurationError("they do not belong together")
    return first


class Pair:
    """A set of two files."""

    def __init__(self, folder: Path) -> None:
        self.paths = {"cert": folder / "cert", "key": folder / "key"}
        self.watched = Watched("pair", self.paths, build)

    def write(self, cert: bytes, key: bytes) -> None:
        self.paths["cert"].write_bytes(cert)
        self.paths["key"].write_bytes(key)


@pytest.fixture
async def pair(tmp_path: Path) -> Pair:
    pair = Pair(tmp_path)
    pair.write(b"1", b"1")
    await pair.watched.load()
    return pair


async def test_a_change_is_taken_once_it_has_stood_still(pair: Pair) -> None:
    assert await pair.watched.poll() is UNCHANGED
    pair.write(b"2", b"1")  # certificate first, the key a moment later
    assert await pair.watched.poll() is UNCHANGED
    pair.write(b"2", b"2")
    assert await pair.watched.poll() is UNCHANGED
    assert pair.watched.value == b"1"
    assert await pair.watched.poll() is REPLACED
    assert (pair.watched.value, pair.watched.version) == (b"2", 2)
    assert await pair.watched.poll() is UNCHANGED
    pair.write(b"3", b"3")
    assert await pair.watched.poll(at_once=True) is REPLACED


async def test_what_is_broken_is_told_once_and_changes_nothing(pair: Pair) -> None:
    pair.write(b"2", b"1")
    outcomes = [await pair.watched.poll() for _ in range(4)]
    assert outcomes == [UNCHANGED, REFUSED, UNCHANGED, UNCHANGED]
    assert pair.watched.problem == "they do not belong together"
    pair.paths["key"].unlink()
    outcomes = [await pair.watched.poll() for _ in range(3)]
    assert outcomes == [UNCHANGED, REFUSED, UNCHANGED]
    assert "No such file" in pair.watched.problem
    assert (pair.watched.value, pair.watched.version) == (b"1", 1)
    pair.write(b"1", b"1")
    assert await pair.watched.poll() is UNCHANGED
    assert pair.watched.problem == ""


async def test_kubernetes_links_are_read_as_one(tmp_path: Path) -> None:
    """A Secret is replaced by renaming one link, behind the back of whoever watches the files."""
    for name in ("cert", "key"):
        (tmp_path / name).symlink_to(f"..data/{name}")
    numbers = itertools.count()

    def swap() -> None:
        number = str(next(numbers))
        folder = tmp_path / f"..{number}"
        folder.mkdir()
        for name in ("cert", "key"):
            (folder / name).write_text(number)
        (tmp_path / "..tmp").symlink_to(folder.name)
        (tmp_path / "..tmp").replace(tmp_path / "..data")

    swap()
    paths = {name: tmp_path / name for name in ("cert", "key")}
    watched = Watched("pair", paths, build)
    await watched.load()
    for _ in range(20):
        reading = asyncio.ensure_future(read_files(paths))
        await asyncio.to_thread(swap)
        assert len(set((await reading).values())) == 1
    assert await watched.poll(at_once=True) is REPLACED
    assert watched.value == b"20"


async def test_a_file_is_bounded(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "secret_file_bytes_max", 10)
    pair.write(b"x" * 11, b"x" * 11)
    assert await pair.watched.poll(at_once=True) is REFUSED
    assert "larger than 10 bytes" in pair.watched.problem
