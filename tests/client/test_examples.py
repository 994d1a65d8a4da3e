"""The examples run, and are well typed as a user's own program would be."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
from aiohttp.test_utils import TestClient, TestServer

import proglog
from proglog import testing

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "examples"


def load(name: str):
    spec = importlib.util.spec_from_file_location(f"example_{name}", EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def service():
    return load("service")


@pytest.fixture
def worker():
    return load("worker")


@pytest.fixture
def small_log():
    with testing.small_log() as log:
        yield log


async def test_the_service(service, small_log):
    async with TestClient(TestServer(service.make_app(small_log))) as client:
        for amount, balance in ((5, 5), (-2, 3), (10, 13)):
            answer = await client.post("/accounts/ann", json={"amount": amount})
            assert await answer.json() == {"balance": balance}
        assert await (await client.get("/accounts/ann")).json() == {"balance": 13}


async def test_the_worker_counts_each_record_once_whenever_it_is_stopped(
    worker, small_log, tmp_path
):
    database = worker.open_database(str(tmp_path / "words.db"))
    async with small_log as log:
        await log.produce_many([b"a b", b"b c", b"c c"] * 100)
        records = await log.consume(0).getmany(10)
        worker.handle(database, records)
        with pytest.raises(RuntimeError, match="another worker"):
            worker.handle(database, records)
        await worker.work(log, database, follow=False)
        await worker.work(log, database, follow=False)
    counts = dict(database.execute("SELECT word, count FROM words"))
    assert counts == {"a": 100, "b": 200, "c": 300}
    assert worker.place_of(database) == 300
    database.close()


def test_with_the_kit(tmp_path):
    shown = subprocess.run(
        [
            *(sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"),
            *("-p", "proglog.pytest_plugin", "--override-ini=addopts=", "-c", os.devnull),
            str(EXAMPLES / "test_with_the_kit.py"),
        ],
        capture_output=True,
        check=False,
        text=True,
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
    )
    assert shown.returncode == 0, shown.stdout + shown.stderr


def test_a_users_program_is_checked_strictly(tmp_path):
    """All of `examples/`, and what a user may get wrong."""
    wrong = tmp_path / "wrong.py"
    wrong.write_text(
        "import proglog\n"
        "async def main() -> None:\n"
        "    async with proglog.connect('proglog://a') as log:\n"
        "        offset: int = await log.produce(b'a')\n"
        "        await log.produce('text')\n"
        "        record: str = await log.read(offset)\n"
        "        log.consume(0, consistency='strong')\n"
        "        log.conzume(0)\n"
        "        async for found in log.consume(proglog.Last(5)):\n"
        "            print(found.value + b'', found.key)\n"
        "        found.value.nothing\n"
        "    proglog.Unavailabel\n"
    )
    examples = sorted(str(path) for path in EXAMPLES.glob("*.py"))
    shown = subprocess.run(
        [
            *(sys.executable, "-m", "mypy", "--strict", "--config-file=", "--no-error-summary"),
            *("--follow-imports=silent", f"--cache-dir={tmp_path / 'cache'}"),
            *("--ignore-missing-imports", *examples, str(wrong)),
        ],
        capture_output=True,
        check=False,
        text=True,
        cwd=ROOT,
    )
    lines = shown.stdout.splitlines()
    assert [line for line in lines if "examples/" in line and "error" in line] == []
    told = {int(line.split(":")[1]) for line in lines if "wrong.py" in line and "error" in line}
    assert told == {5, 6, 7, 8, 11, 12}, shown.stdout + shown.stderr


def test_every_example_is_run():
    assert {path.stem for path in EXAMPLES.glob("*.py")} == {
        "service",
        "test_with_the_kit",
        "worker",
    }
    assert proglog.__all__
