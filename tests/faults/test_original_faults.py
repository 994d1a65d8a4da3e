"""The faults of the original that a single server can have, each by its number: absent here, and
seen to be found by its check when it is brought back.

Each test runs its check twice: as things are, and with the fault patched in, which the check must
notice. `[brought back]` in a test's name is the second run.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import re
import shutil
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import structlog
from grpclib.client import Channel
from grpclib.const import Cardinality, Status
from grpclib.exceptions import GRPCError

import proglog
from proglog import limits
from proglog._generated.log import v1
from proglog.agent.node import Node as Daemon
from proglog.config import LogConfig, NodeConfig
from proglog.log import analysis, names
from proglog.log.format import PREAMBLE_BYTES
from proglog.log.index import Index
from proglog.log.log import Log
from proglog.log.segment import Segment
from proglog.log.writer import Append, Writer
from proglog.replica.replica import Replica
from proglog.replica.retention import Retention
from proglog.rpc import service
from proglog.rpc.server import RpcServer
from tests.doubles.disk import SimDisk
from tests.doubles.files import SimFile, SimFiles
from tests.doubles.worker import SimWorker
from tests.replica.support import CONFIG, Node, descriptors, log_in, outcomes, proposed
from tests.waiting import DEADLINE_SECONDS, meanwhile

Check = Callable[[Path], Awaitable[None]]
Fault = Callable[[pytest.MonkeyPatch], None]

NOTICED = (
    AssertionError,
    GRPCError,
    LookupError,
    OSError,
    TimeoutError,
    ValueError,
    proglog.ProglogError,
)
"""What a check raises when it notices its fault."""


def absent(fault: Fault) -> Callable[[Check], Callable[..., Awaitable[None]]]:
    """Makes a test of a check: it passes, and fails once the fault is brought back."""

    def decorate(check: Check) -> Callable[..., Awaitable[None]]:
        @pytest.mark.parametrize("back", [False, True], ids=["absent", "brought back"])
        async def test(back: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
            if not back:
                await check(tmp_path)
                return
            fault(monkeypatch)
            with pytest.raises(NOTICED):
                await check(tmp_path)

        test.__doc__ = check.__doc__
        return test

    return decorate


# --- durability and recovery ---------------------------------------------------------------------


def _acknowledge_without_fdatasync(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(SimFile, "fdatasync", lambda self: None)


@absent(_acknowledge_without_fdatasync)
async def test_w1_acknowledged_records_survive_a_power_cut(_: Path) -> None:
    """The original acknowledged what was in a buffer of its own process."""
    disk, folder = SimDisk(), log_in(Path("/data"))
    async with Node(folder, files=SimFiles(disk), worker=SimWorker) as node:
        values = await node.fill(40)
        after = disk.crash([False] * len(disk.unsynced()))
    async with Node(folder, files=SimFiles(after), worker=SimWorker) as node:
        assert await node.consume() == values


def _believe_the_size_of_the_file(patch: pytest.MonkeyPatch) -> None:
    walk = analysis.walk_store

    def walk_to_the_end(store: Any, index: Index, **how: Any) -> Any:
        failure = walk(store, index, **how)
        if how.get("last_index") is None:
            index.end_position = store.file.size()
        return failure

    patch.setattr(analysis, "walk_store", walk_to_the_end)


@absent(_believe_the_size_of_the_file)
async def test_w3_space_allocated_ahead_is_no_data_after_an_unclean_stop(tmp_path: Path) -> None:
    """The original took the preallocated zeros of its index for entries."""
    copy = log_in(tmp_path / "copy")
    async with Node(log_in(tmp_path / "node")) as node:
        values = await node.fill(10)
        await asyncio.to_thread(shutil.copytree, node.data_dir, tmp_path / "copy")
    async with Node(copy) as node:
        assert await node.consume() == values
        assert await node.produce(b"next") == 10
        assert node.replica.log._active.index.end_position < CONFIG.segment_bytes
    async with Node(copy) as node:
        assert await node.consume() == [*values, b"next"]


def _roll_too_late(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Segment, "has_room", lambda self, size: self.index.end_position < self.capacity)


@absent(_roll_too_late)
async def test_w4_a_segment_is_sealed_before_a_batch_does_not_fit(tmp_path: Path) -> None:
    """The original rolled only at its limit, which no number of entries reached exactly."""
    odd = LogConfig(segment_bytes=PREAMBLE_BYTES + 903, segment_batches=200)
    async with Node(log_in(tmp_path), config=odd) as node:
        for _ in range(100):
            await node.produce(b"")
        assert len(await node.consume()) == 100
        stores = list(node.folder.glob("0*.store"))
        assert len(stores) > 5
        assert max(store.stat().st_size for store in stores) <= odd.segment_bytes


def _any_name_is_a_segment(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(names, "_STORE", re.compile(r"(.*)\.store"))


@absent(_any_name_is_a_segment)
async def test_w13_stray_files_are_not_segments(tmp_path: Path) -> None:
    """The original took every name for an offset and paired files by their position."""
    async with Node(log_in(tmp_path)) as node:
        values = await node.fill(20)
    for name in ("notes.store", "5.store", "x.index"):
        (node.folder / name).write_bytes(b"stray")
    async with Node(log_in(tmp_path)) as node:
        assert await node.consume() == values


def _next_is_the_highest(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(
        Replica, "next_offset", property(lambda self: max(self._applier.next_offset - 1, 0))
    )


@absent(_next_is_the_highest)
async def test_w13_an_empty_log_is_not_one_with_a_record(tmp_path: Path) -> None:
    """The original's highest offset is 0 in both."""
    async with Node(log_in(tmp_path)) as node:
        assert node.replica.next_offset == 0
        await node.produce(b"one")
        assert node.replica.next_offset == 1


# --- resources and speed -------------------------------------------------------------------------


async def _descriptors_grow(folder: Path, config: LogConfig) -> int:
    async with Node(folder, config=config) as node:
        await node.fill(1)
        before = descriptors(folder)
        await outcomes([await node.replica.propose(proposed(bytes(100))) for _ in range(3000)])
        await node.written()
        assert len(await node.consume()) == 3001
        return descriptors(folder) - before


@pytest.mark.parametrize("back", [False, True], ids=["absent", "brought back"])
async def test_w14_descriptors_do_not_grow_with_records(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, back: bool
) -> None:
    """The original's segments of 1 KiB were 2 descriptors and a map each: 1,024 after 2,389
    records."""
    if back:
        monkeypatch.setattr(limits, "stores_open_max", 100_000)
    grown = await _descriptors_grow(
        log_in(tmp_path), LogConfig(segment_bytes=limits.MiB, segment_batches=8)
    )
    assert (grown > 300) if back else (grown <= limits.stores_open_max + 10)
    assert LogConfig().segment_bytes >= 64 * limits.MiB


@pytest.mark.parametrize("back", [False, True], ids=["absent", "brought back"])
async def test_w14_descriptors_are_released_with_what_retention_deletes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, back: bool
) -> None:
    if back:
        monkeypatch.setattr(Segment, "retire", lambda self: None)
    config = replace(CONFIG, retention_bytes=CONFIG.segment_bytes, retention_check_seconds=0.01)
    async with Node(log_in(tmp_path), config=config) as node:
        await node.fill(20, size=1000)
        before = descriptors(tmp_path)
        await node.fill(100, size=1000)
        async with asyncio.timeout(DEADLINE_SECONDS):
            while len(node.replica.log.segment_facts()) > 3:
                await asyncio.sleep(0.01)
        await node.written()
        grown = descriptors(tmp_path) - before
        assert (grown > 6) if back else (grown <= 4)


def _search_linearly(patch: pytest.MonkeyPatch) -> None:
    def slot(self: Log, index: int) -> int:
        return max(n for n, each in enumerate(self._segments) if each.first_index <= index)

    patch.setattr(Log, "_segment_slot", slot)


@absent(_search_linearly)
async def test_w15_a_read_does_not_look_at_every_segment(tmp_path: Path) -> None:
    """The original scanned its segments: reads grew slower with the log."""
    config = LogConfig(segment_bytes=20 * limits.KiB, segment_batches=4)
    async with Node(log_in(tmp_path), config=config) as node:
        await node.fill(400)
        looked = 0
        first_index = vars(Segment)["first_index"].__get__

        def counted(self: Segment) -> int:
            nonlocal looked
            looked += 1
            return int(first_index(self))

        await node.restart()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Segment, "first_index", property(counted))
            for offset in range(10):
                await node.replica.read(offset, 1)
        assert len(node.replica.log.segment_facts()) > 100
        assert looked < 10 * 40


def _one_batch_a_write(patch: pytest.MonkeyPatch) -> None:
    def alone(self: Writer, first: Append) -> list[Append]:
        return [first]

    patch.setattr(Writer, "_take_group", alone)


def _do_not_retain(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Retention, "_look", lambda *_: None)


@absent(_do_not_retain)
async def test_w19_old_records_go(tmp_path: Path) -> None:
    """In the original nothing but Raft ever truncated: it grew until the disk was full."""
    config = replace(CONFIG, retention_bytes=CONFIG.segment_bytes, retention_check_seconds=0.01)
    async with Node(log_in(tmp_path), config=config) as node:
        await node.fill(100, size=1000)
        async with asyncio.timeout(5):
            while len(list(node.folder.glob("0*.store"))) > 3:
                await asyncio.sleep(0.01)
        assert node.replica.earliest > 50


# --- a whole node --------------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def daemon(folder: Path) -> AsyncIterator[Daemon]:
    node = Daemon(NodeConfig.for_tests(folder / "data"))
    await node.start()
    try:
        yield node
    finally:
        await asyncio.wait_for(node.stop(), 20)


def url(node: Daemon) -> str:
    return f"proglog://{node.rpc_addr}"


def _take_a_request_without_a_record(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(service, "_record", lambda request: request.record)


@absent(_take_a_request_without_a_record)
async def test_w8_a_produce_request_without_a_record_is_refused(tmp_path: Path) -> None:
    """In the original it reached the state machine of every server, and killed them."""
    async with daemon(tmp_path) as node:
        channel = Channel(*node.rpc_addr)
        try:
            with pytest.raises(GRPCError) as caught:
                await _unary(channel, "Produce", v1.ProduceRequest(), v1.ProduceResponse)
            assert caught.value.status is Status.INVALID_ARGUMENT
            assert not node.failure.done()
            assert node.replica.next_offset == 0
            request = v1.ProduceRequest(record=v1.Record(value=b"fine"))
            answer = await _unary(channel, "Produce", request, v1.ProduceResponse)
            assert answer.offset == 0
        finally:
            channel.close()


async def _unary(channel: Channel, name: str, request: Any, answer: type[Any]) -> Any:
    stream = channel.request(f"/log.v1.Log/{name}", Cardinality.UNARY_UNARY, type(request), answer)
    async with stream as open_stream:
        await open_stream.send_message(request, end=True)
        return await open_stream.recv_message()


def _do_not_wait_at_the_end(patch: pytest.MonkeyPatch) -> None:
    async def at_once(self: Replica, offset: int) -> None:
        await asyncio.sleep(0)

    patch.setattr(Replica, "wait_past", at_once)


@contextlib.contextmanager
def counted(owner: type, name: str) -> Iterator[list[None]]:
    """Counts the calls of a coroutine method."""
    original = getattr(owner, name)
    calls: list[None] = []

    @functools.wraps(original)
    async def call(*arguments: Any, **named: Any) -> Any:
        calls.append(None)
        return await original(*arguments, **named)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(owner, name, call)
        yield calls


@absent(_do_not_wait_at_the_end)
async def test_w16_a_reader_at_the_end_costs_nothing(tmp_path: Path) -> None:
    """The original's ConsumeStream polled without a pause: a core for each idle reader."""
    async with daemon(tmp_path) as node, proglog.connect(url(node)) as log:
        await log.produce(b"first")
        reader = log.consume(0)
        assert (await anext(reader)).value == b"first"
        async with meanwhile(anext(reader)) as following:
            await asyncio.sleep(0.05)
            with counted(Replica, "read") as reads:
                await asyncio.sleep(0.2)
                assert len(reads) <= 1
            await log.produce(b"second")
            assert (await asyncio.wait_for(following, DEADLINE_SECONDS)).value == b"second"
        await reader.aclose()


def _log_each_request(patch: pytest.MonkeyPatch) -> None:
    propose = Replica.propose

    async def logged(self: Replica, *arguments: Any) -> Any:
        structlog.get_logger("rpc").info("request")
        return await propose(self, *arguments)

    patch.setattr(Replica, "propose", logged)


@absent(_log_each_request)
async def test_w17_a_request_writes_no_log(tmp_path: Path) -> None:
    """The original wrote a line for each call, sampled every trace, and compiled its policy anew
    for each record. No policy is looked at here, and no tracer is there to sample."""
    async with daemon(tmp_path) as node, proglog.connect(url(node)) as log:
        await log.produce(b"first")
        with structlog.testing.capture_logs() as lines:
            for _ in range(20):
                await log.produce(b"x")
            assert await log.read(5)
        assert lines == []


@absent(_one_batch_a_write)
async def test_w18_records_at_once_share_batches_and_writes(tmp_path: Path) -> None:
    """The original handled one record of a stream at a time, and had no other way."""
    async with daemon(tmp_path) as node, proglog.connect(url(node)) as log:
        await log.produce(b"first")
        first = node.replica.log.tip.index
        with pytest.MonkeyPatch.context() as patch:
            writes = 0
            written = Daemon.group_written

            def counted_write(self: Daemon, *arguments: Any) -> None:
                nonlocal writes
                writes += 1
                written(self, *arguments)

            patch.setattr(Daemon, "group_written", counted_write)
            offsets = await asyncio.gather(*(log.produce(b"%d" % n) for n in range(1000)))
            assert sorted(offsets) == list(range(1, 1001))
            # Many records a batch; and many batches a write, where many come.
            assert node.replica.log.tip.index - first < 100
            writes = 0
            futures = [await node.replica.propose(proposed(b"x")) for _ in range(200)]
            await outcomes(futures)
            assert writes < 100


def _wait_for_all_streams(patch: pytest.MonkeyPatch) -> None:
    async def graceful(self: RpcServer, seconds: float) -> None:
        await asyncio.gather(*(each.leave() for each in self._connections))

    patch.setattr(RpcServer, "drain", graceful)


@absent(_wait_for_all_streams)
async def test_w20_a_following_reader_does_not_hold_up_a_stop(tmp_path: Path) -> None:
    """The original waited for its streams to end, and these never do."""
    node = Daemon(replace(NodeConfig.for_tests(tmp_path / "data"), drain_seconds=60))
    await node.start()
    log = proglog.connect(url(node))
    async with log:
        await log.produce(b"first")
        reader = log.consume(0)
        await anext(reader)
        async with meanwhile(anext(reader)):
            await asyncio.sleep(0.05)
            stopping = asyncio.ensure_future(node.stop())
            done, _ = await asyncio.wait([stopping], timeout=5)
        await reader.aclose()
    if not done:
        await asyncio.wait_for(stopping, DEADLINE_SECONDS)
    assert done, "the node waits for the reader"


@pytest.mark.parametrize("back", [False, True], ids=["absent", "brought back"])
async def test_w21_a_silent_connection_is_closed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, back: bool
) -> None:
    """The original waited for ever for the first byte that tells a protocol."""
    assert limits.sniff_seconds_max <= 10
    monkeypatch.setattr(limits, "sniff_seconds_max", 1000.0 if back else 0.1)
    async with daemon(tmp_path) as node:
        reader, writer = await asyncio.open_connection(*node.rpc_addr)
        try:
            assert await asyncio.wait_for(reader.read(), 0.5 if back else 5) == b""
            assert not back
        except TimeoutError:
            assert back
        finally:
            writer.close()
