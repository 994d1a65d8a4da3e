"""The client for programs without an event loop."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import proglog
import proglog.sync
from proglog.client.client import Log
from tests.client.fake import FakeBackend


@pytest.fixture
def backend() -> FakeBackend:
    return FakeBackend()


@pytest.fixture
def log(backend: FakeBackend) -> Iterator[proglog.sync.Log]:
    with proglog.sync.Log(Log(backend, timeout_seconds=5)) as log:
        yield log


def test_everything_in_this_process(tmp_path: Path) -> None:
    with proglog.sync.open(tmp_path, segment_bytes=65_536) as log:
        assert log.produce(b"a", key=b"k") == 0
        assert log.produce_many(b"%d" % number for number in range(3000)) == range(1, 3001)
        with pytest.raises(proglog.OffsetMismatch):
            log.produce(b"x", expected_offset=5)
        assert log.read(0).key == b"k"
        assert log.describe().next == 3001
        assert [r.offset for r in log.consume(follow=False)] == list(range(3001))
        consumer = log.consume(0)
        assert next(consumer).offset == 0
        assert consumer.position == 1
        assert consumer.lag() == 3000
        assert [r.offset for r in consumer.getmany(5)] == [1, 2, 3, 4, 5]
        assert next(consumer.batches()).base_offset == 6
        consumer.seek(proglog.Last(1))
        assert consumer.getone().offset == 3000
        assert consumer.getone(timeout_seconds=0.01) is None
        consumer.close()
    with pytest.raises(proglog.LogClosed):
        log.produce(b"b")
    log.close()
    assert not any(each.name == "proglog-sync" for each in threading.enumerate())


def test_threads_share_batches(log: proglog.sync.Log, backend: FakeBackend) -> None:
    with ThreadPoolExecutor(20) as threads:
        offsets = list(threads.map(log.produce, [b"%d" % number for number in range(500)]))
    assert sorted(offsets) == list(range(500))
    assert len(backend.submitted) < 500
    values = backend.log.values()
    assert all(values[offset] == b"%d" % number for number, offset in enumerate(offsets))


def test_one_waits_while_others_work(log: proglog.sync.Log) -> None:
    with ThreadPoolExecutor(1) as threads:
        waiting = threads.submit(next, log.consume("earliest"))
        assert log.produce(b"a") == 0
        assert waiting.result(60).value == b"a"


def test_closing_ends_who_waits(backend: FakeBackend) -> None:
    log = proglog.sync.Log(Log(backend))
    consumer = log.consume(0)
    with ThreadPoolExecutor(1) as threads:
        waiting = threads.submit(next, consumer)
        log.close()
        with pytest.raises(proglog.LogClosed):
            waiting.result(60)
        consumer.close()


def test_an_error_comes_as_it_is(log: proglog.sync.Log, backend: FakeBackend) -> None:
    backend.faults.append(proglog.DiskFull("full"))
    with pytest.raises(proglog.DiskFull):
        log.produce(b"a")
    with pytest.raises(TypeError, match="a value is bytes"):
        log.produce("text")  # type: ignore[arg-type]
    with pytest.raises(proglog.OffsetOutOfRange):
        next(log.consume(50))
    assert log.produce(b"b") == 0


def test_what_cannot_be_opened_says_so(tmp_path: Path) -> None:
    with proglog.sync.open(tmp_path / "a", segment_bytes=65_536):
        again = proglog.sync.open(tmp_path / "a")
        with pytest.raises(proglog.ProglogError):
            again.produce(b"x")
        with pytest.raises(proglog.LogClosed):
            again.produce(b"x")


async def test_within_an_event_loop_it_would_hang(backend: FakeBackend) -> None:
    log = await asyncio.to_thread(proglog.sync.Log(Log(backend)).__enter__)
    with pytest.raises(proglog.UsageError, match="an event loop runs in this thread"):
        log.produce(b"a")
    with pytest.raises(proglog.UsageError, match="an event loop runs in this thread"):
        log.consume(0)
    await asyncio.to_thread(log.close)


def test_a_forked_process_is_told(log: proglog.sync.Log) -> None:
    assert log.produce(b"a") == 0
    child = os.fork()
    if child == 0:
        try:
            log.produce(b"b")
        except proglog.UsageError:
            os._exit(0)
        except BaseException:
            os._exit(2)
        os._exit(1)
    assert os.waitpid(child, 0)[1] == 0
    assert log.produce(b"c") == 1
