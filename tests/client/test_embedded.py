"""A log in this process: `proglog.open`."""

from __future__ import annotations

import asyncio
import subprocess
import sys

import pytest

import proglog
from proglog.errors import InvalidRequest, OffsetMismatch, ProglogError
from tests.waiting import until


async def test_what_is_produced_is_there_after_opening_again(tmp_path):
    async with proglog.open(tmp_path / "data") as log:
        assert await log.produce(b"a", key=b"k") == 0
        assert await log.produce_many([b"b", b"c"]) == range(1, 3)
        assert await log.produce(b"d", expected_offset=3) == 3
        with pytest.raises(OffsetMismatch):
            await log.produce(b"e", expected_offset=3)
    async with proglog.open(tmp_path / "data") as log:
        found = [
            record.value async for record in log.consume(follow=False, consistency="linearizable")
        ]
        assert found == [b"a", b"b", b"c", b"d"]
        assert await log.produce(b"e") == 4
        assert (await log.read(4, after=4)).value == b"e"
        assert (await log.describe()).next == 5


async def test_a_consumer_follows(tmp_path):
    async with proglog.open(tmp_path / "data") as log:
        records = log.consume("latest")
        waiting = asyncio.ensure_future(anext(records))
        while not waiting.done():  # It may have to find the end first.
            await log.produce(b"a")
        assert (await waiting).value == b"a"
        await records.aclose()


async def test_what_waits_for_a_record_ends_when_the_log_is_closed(tmp_path):
    async with proglog.open(tmp_path / "data") as log:
        calls = [anext(log.consume("latest")), log.read(0, after=0)]
        waiting = [asyncio.ensure_future(call) for call in calls]
        await asyncio.sleep(0)
    for each in waiting:
        await until(each.done)
        with pytest.raises(InvalidRequest, match="the log is closed"):
            each.result()


async def test_a_directory_is_open_only_once(tmp_path):
    async with proglog.open(tmp_path / "data"):
        with pytest.raises(ProglogError):
            async with proglog.open(tmp_path / "data"):
                pass


@pytest.mark.parametrize("place", ["groups/0000000000000002", "groups"])
async def test_no_log_is_begun_inside_of_another(tmp_path, place):
    async with proglog.open(tmp_path) as log:
        await log.produce(b"a")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(ProglogError, match="is no data directory but part of one") as caught:
        async with proglog.open(tmp_path / place):
            pass
    assert str(tmp_path / "groups" / "0000000000000002") in str(caught.value)
    assert sorted(tmp_path.rglob("*")) == before


PROGRAM = """
import asyncio, logging, sys
import proglog, structlog
{setup}
async def main():
    async with proglog.open(sys.argv[1]) as log:
        await log.produce(b"a")
    structlog.get_logger().debug("not shown")
    try:
        raise ValueError("bad")
    except ValueError:
        structlog.get_logger().exception("a line", name="n", args=7, percent="%d")
asyncio.run(main())
"""


@pytest.mark.parametrize(
    ("setup", "stream", "line"),
    [
        ("", "stderr", "a line name='n' args=7 percent='%d'"),
        (
            "logging.basicConfig(format='%(name)s: %(message)s', stream=sys.stdout)",
            "stdout",
            "proglog: a line name='n' args=7 percent='%d'",
        ),
        ("structlog.configure(processors=[lambda *_: 'theirs'])", "stdout", "theirs"),
    ],
)
def test_it_logs_as_the_program_does_and_never_prints(tmp_path, setup, stream, line):
    shown = subprocess.run(
        [sys.executable, "-c", PROGRAM.format(setup=setup), str(tmp_path / "data")],
        capture_output=True,
        check=True,
        text=True,
    )
    texts = {"stdout": shown.stdout, "stderr": shown.stderr}
    assert line in texts.pop(stream).splitlines()
    assert "".join(texts.values()) == ""
    assert "not shown" not in shown.stdout + shown.stderr
    assert "theirs" in shown.stdout or "ValueError: bad" in shown.stdout + shown.stderr
