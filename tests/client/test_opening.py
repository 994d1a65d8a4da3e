"""Opening, entering, closing and dropping a log; and what is said where one is used otherwise."""

from __future__ import annotations

import asyncio
import gc
import inspect
import subprocess
import sys
import weakref

import pytest

import proglog
from proglog import limits
from proglog.client.client import Log
from proglog.raft.configuration import Configuration, Server
from tests.client.fake import FakeBackend
from tests.replica.support import Node, log_in
from tests.waiting import until

URL = "proglog://127.0.0.1:1"


# --- the two ways to a log -----------------------------------------------------------------------


def test_both_ways_are_alike(tmp_path):
    """Plain functions with the same settings, which check them at once and do nothing else yet."""
    ways = inspect.signature(proglog.open).parameters, inspect.signature(proglog.connect).parameters
    for name in ("timeout_seconds", "compress", "idempotent"):
        assert ways[0][name].default == ways[1][name].default
    logs = proglog.open(tmp_path / "data"), proglog.connect(URL)
    assert [type(log) for log in logs] == [Log, Log]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("way", ["open", "connect"])
async def test_a_log_may_be_awaited_in_place_of_a_block(way, tmp_path):
    log = await (proglog.open(tmp_path) if way == "open" else proglog.connect(URL))
    assert type(log) is Log
    await log.close()
    await log.close()
    with pytest.raises(proglog.LogClosed):
        await log.produce(b"a")


async def test_an_entered_log_is_entered_once(backend):
    async with Log(backend) as log:
        with pytest.raises(proglog.UsageError, match="entered before"):
            async with log:
                pass
        assert await log.produce(b"a") == 0
    with pytest.raises(proglog.LogClosed):
        await log
    assert backend.opened == 1


async def test_what_cannot_be_opened_is_closed(backend):
    async def refuse():
        raise proglog.StorageFailed("no disk")

    backend.open = refuse
    log = Log(backend)
    with pytest.raises(proglog.StorageFailed):
        await log
    with pytest.raises(proglog.LogClosed):
        await log.produce(b"a")


async def test_a_small_log_takes_little_of_the_disk(tmp_path):
    async with proglog.open(tmp_path, segment_bytes=64 * limits.KiB) as log:
        for number in range(20):
            assert await log.produce(bytes(10_000)) == number
        assert (await log.read(19)).value == bytes(10_000)
    usage = sum(path.stat().st_blocks * 512 for path in tmp_path.rglob("*"))
    assert 200_000 < usage < 700_000
    assert limits.embedded_segment_bytes_default * 4 < limits.segment_bytes_default


def test_settings_reach_the_log(tmp_path):
    settings = {"segment_bytes": 65_536, "retention_bytes": 131_072, "retention_seconds": 60.0}
    config = proglog.open(tmp_path, **settings)._backend._config
    assert {name: getattr(config, name) for name in settings} == settings


@pytest.mark.parametrize(
    "settings",
    [{"segment_bytes": 1}, {"retention_bytes": 1}, {"retention_seconds": 0}],
    ids=str,
)
def test_wrong_settings_are_told_before_anything_is_made(tmp_path, settings):
    with pytest.raises(proglog.ConfigurationError):
        proglog.open(tmp_path / "data", **settings)
    assert not (tmp_path / "data").exists()


def test_without_assertions_nothing_is_opened(tmp_path):
    program = "import sys, proglog\nproglog.open(sys.argv[1])"
    command = [sys.executable, "-O", "-c", program, str(tmp_path / "data")]
    shown = subprocess.run(command, capture_output=True, check=False, text=True)
    assert "python -O" in shown.stderr
    assert not (tmp_path / "data").exists()


async def test_the_directory_of_one_member_of_a_cluster_is_not_opened(tmp_path):
    """It would wait for the others for ever."""
    node = Node(log_in(tmp_path), bootstrap=False)
    replica = await node.open()
    await replica.home.adopt_cluster("c" * 36)
    await replica.begin(Configuration((Server(replica.identity.uuid, "n1"), Server("u", "n2"))))
    await node.written()
    await node.close()
    with pytest.raises(proglog.ConfigurationError, match="1 other voter: start it with"):
        await proglog.open(tmp_path)


# --- wrong use -----------------------------------------------------------------------------------


def calls(log):
    return [
        log.produce(b"a"),
        log.produce_many([b"a"]),
        log.read(0),
        log.describe(),
    ]


async def test_a_log_that_was_not_entered_says_so(backend):
    log = Log(backend)
    for call in calls(log):
        with pytest.raises(proglog.UsageError, match="was not entered"):
            await call
    with pytest.raises(proglog.UsageError, match="was not entered"):
        log.consume(0)


async def test_a_closed_log_says_so(backend):
    async with Log(backend) as log:
        await log.produce(b"a")
    for call in calls(log):
        with pytest.raises(proglog.LogClosed, match="is closed"):
            await call
    with pytest.raises(proglog.LogClosed):
        log.consume(0)


async def test_another_event_loop_is_told(backend):
    async with Log(backend) as log:
        assert await log.produce(b"a") == 0

        async def elsewhere():
            for call in calls(log):
                with pytest.raises(proglog.UsageError, match="event loop"):
                    await call
            with pytest.raises(proglog.UsageError, match="event loop"):
                log.consume(0)
            with pytest.raises(proglog.UsageError, match="event loop"):
                await log.close()

        await asyncio.to_thread(asyncio.run, elsewhere())
        with pytest.raises(proglog.UsageError, match="event loop"):
            await asyncio.to_thread(log.consume, 0)
        assert await log.produce(b"b") == 1


# --- dropped -------------------------------------------------------------------------------------


async def test_a_log_that_is_dropped_says_so_and_ends(backend):
    log = await Log(backend)
    backend.held = True
    call = asyncio.ensure_future(log.produce(b"a"))
    while not backend.submitted:
        await asyncio.sleep(0)
    call.cancel()
    await asyncio.wait([call])
    gone = weakref.ref(log)
    with pytest.warns(ResourceWarning, match="dropped without being closed"):
        del log, call
        gc.collect()
    assert gone() is None
    await until(lambda: backend.closed and backend.streams[0].closed)
    assert len(asyncio.all_tasks()) == 1


async def test_a_dropped_log_lets_its_directory_go(tmp_path):
    log = await proglog.open(tmp_path)
    await log.produce(b"a")
    with pytest.warns(ResourceWarning, match="dropped without being closed"):
        del log
        gc.collect()

    async def opened():
        try:
            async with proglog.open(tmp_path) as again:
                return (await again.read(0)).value == b"a"
        except proglog.ConfigurationError:  # still in use
            return False

    await until(opened)


async def test_a_log_that_was_closed_or_never_entered_is_dropped_in_silence(backend):
    Log(backend)
    with pytest.raises(proglog.ConfigurationError):
        Log(backend, timeout_seconds=0)
    async with Log(FakeBackend()) as log:
        await log.produce(b"a")
    del log
    gc.collect()
