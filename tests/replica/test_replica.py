"""A replica alone: propose, read, wait, describe."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest
from crc32c import crc32c

from proglog import limits
from proglog.aio.tasks import Tasks
from proglog.batch import Kind, decode_all
from proglog.errors import (
    InvalidBatch,
    OffsetMismatch,
    OffsetOutOfRange,
    OutcomeUnknown,
    Unavailable,
)
from proglog.log.snapshot import Snapshot
from proglog.replica import commands
from proglog.replica.commands import SetStart
from tests.replica.support import START_MS, Node, outcomes, proposed
from tests.waiting import DEADLINE_SECONDS, until


async def test_an_empty_log_serves(node: Node) -> None:
    replica = node.replica
    assert (replica.earliest, replica.next_offset) == (0, 0)
    assert (await replica.read(0, 100)).data == b""
    assert await replica.seek(0) == 0
    await replica.barrier()
    description = replica.describe()
    assert (description.node, description.leader, description.next) == ("n1", "n1", 0)
    assert description.cluster_id
    assert [s.suffrage for s in replica.servers()] == ["voter"]
    assert replica.cluster_status().role == "leader"


async def test_what_is_committed_is_read_in_order(node: Node) -> None:
    assert await node.produce(b"a", b"b") == 0
    assert await node.produce(b"c") == 2
    assert await node.consume() == [b"a", b"b", b"c"]
    assert await node.consume(1) == [b"b", b"c"]
    assert node.replica.describe().next == 3
    chunk = await node.replica.read(1, 1)
    assert chunk.next_offset == 2
    assert [batch.base_offset for batch in decode_all(chunk.data)] == [0]


async def test_many_at_once_keep_their_order(node: Node) -> None:
    batches = [proposed(b"%d" % n) for n in range(500)]
    futures = [await node.replica.propose(batch) for batch in batches]
    assert await outcomes(futures) == list(range(500))
    assert await node.consume() == [b"%d" % n for n in range(500)]
    await node.restart()
    assert await node.consume() == [b"%d" % n for n in range(500)]


async def test_compressed_batches_come_back(node: Node) -> None:
    future = await node.replica.propose(proposed(bytes(10_000), compress=True))
    assert (await future).offset == 0
    assert await node.consume() == [bytes(10_000)]


async def test_only_batches_with_records_leave(node: Node) -> None:
    await node.produce(b"a")
    await node.restart()
    await node.produce(b"b")
    await node.restart()
    chunk = await node.replica.read(0, 2**20)
    assert [b.base_offset for b in decode_all(chunk.data)] == [0, 1]
    log = node.replica.log
    index = log.segment_of(1).index
    kinds = [index.kind(slot) for slot in range(log.tip.index) if index.kind(slot) != Kind.DATA]
    assert kinds == [Kind.CONFIGURATION, Kind.NOOP, Kind.NOOP, Kind.NOOP]


async def test_out_of_range(node: Node) -> None:
    await node.produce(b"a")
    assert (await node.replica.read(1, 100)).data == b""
    for offset in (-1, 2, 2**63):
        with pytest.raises(OffsetOutOfRange) as caught:
            await node.replica.read(offset, 100)
        assert (caught.value.number("earliest"), caught.value.number("next")) == (0, 1)


async def test_a_bad_body_never_enters(node: Node) -> None:
    good = proposed(b"a")
    with pytest.raises(InvalidBatch):
        await node.replica.propose(good._replace(body=good.body._replace(crc=1)))
    poisoned = proposed(bytes(10_000), compress=True)
    data = bytearray(poisoned.body.data)
    data[-3] ^= 0xFF
    body = poisoned.body._replace(data=bytes(data), crc=crc32c(data))
    with pytest.raises(InvalidBatch):
        await node.replica.propose(poisoned._replace(body=body))
    assert node.replica.next_offset == 0


async def test_waiting_for_a_record(node: Node) -> None:
    waiting = asyncio.ensure_future(node.replica.wait_past(1))
    await node.produce(b"0")
    await asyncio.sleep(0)
    assert not waiting.done()
    await node.produce(b"1")
    await asyncio.wait_for(waiting, DEADLINE_SECONDS)
    await node.replica.wait_past(0)


async def test_a_consumer_is_not_woken_by_batches_without_records(node: Node) -> None:
    woken = asyncio.ensure_future(node.replica._applier.news.wait())
    node.replica._driver.propose_command(commands.encode([SetStart(0)]))
    await node.replica.barrier()
    assert not woken.done()
    await node.produce(b"a")
    await asyncio.wait_for(woken, DEADLINE_SECONDS)


async def test_seek_by_time(node: Node) -> None:
    for second in range(5):
        node.clock.ms = START_MS + 1000 * second
        await node.produce(b"a", b"b")
    seek = node.replica.seek
    assert [await seek(START_MS + 1000 * second) for second in range(5)] == [0, 2, 4, 6, 8]
    assert await seek(0) == 0
    assert await seek(START_MS + 1001) == 4
    assert await seek(START_MS + 9999) == 10


async def test_time_never_goes_back(node: Node) -> None:
    node.clock.ms = START_MS + 5000
    await node.produce(b"a")
    node.clock.ms = START_MS
    future = await node.replica.propose(proposed(b"b"))
    assert (await future).timestamp == START_MS + 5000


async def test_compare_and_append(node: Node) -> None:
    replica = node.replica
    assert await outcomes([await replica.propose(proposed(b"a", expected_offset=0))]) == [0]
    with pytest.raises(OffsetMismatch) as caught:
        await replica.propose(proposed(b"b", expected_offset=0))
    assert (caught.value.number("expected"), caught.value.number("next")) == (0, 1)
    # What is in flight counts: of two that expect the same offset only one is appended.
    first = await replica.propose(proposed(b"b", expected_offset=1))
    with pytest.raises(OffsetMismatch):
        await replica.propose(proposed(b"c", expected_offset=1))
    assert (await first).offset == 1
    assert await node.consume() == [b"a", b"b"]


async def test_a_mismatch_tells_only_what_is_committed(node: Node) -> None:
    """The suffix may still be cut: whoever expects an offset in it waits, and one beyond it is
    refused at once, whatever becomes of it."""
    replica = node.replica
    await node.produce(b"a")
    replica._applier._replaying = True  # nothing is applied
    futures = [await replica.propose(proposed(b"b")) for _ in range(3)]
    with pytest.raises(OffsetMismatch) as caught:
        await replica.propose(proposed(b"c", expected_offset=9))
    assert caught.value.number("next") == 1
    with pytest.raises(OffsetMismatch):
        await replica.propose(proposed(b"c", expected_offset=0))
    waiting = asyncio.ensure_future(replica.propose(proposed(b"c", expected_offset=2)))
    await asyncio.sleep(0.05)
    assert not waiting.done()
    replica._applier._replaying = False
    replica._applier.committed(replica._driver.raft.status().commit)
    assert await outcomes(futures) == [1, 2, 3]
    with pytest.raises(OffsetMismatch) as caught:
        await waiting
    assert caught.value.number("next") == 4


async def test_after_a_wait_everything_is_checked_again(node: Node) -> None:
    """Meanwhile the node may have begun to stop, say, or the room have gone."""
    undecided = iter([1, None])
    node.replica._proposer._undecided = lambda _batch: next(undecided)  # type: ignore[method-assign]

    async def stops(_index: int) -> None:
        node.replica._closing = True

    node.replica._proposer._applied = stops  # type: ignore[method-assign]
    tip = node.replica.log.tip
    with pytest.raises(Unavailable, match="stopping"):
        await node.replica.propose(proposed(b"x", expected_offset=0))
    assert node.replica.log.tip == tip
    node.replica._closing = False


async def test_what_is_in_flight_is_bounded(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "inflight_bytes_max", 3000)
    first = [await node.replica.propose(proposed(bytes(900))) for _ in range(3)]
    waiting = asyncio.ensure_future(node.replica.propose(proposed(bytes(900))))
    await asyncio.sleep(0)
    assert not waiting.done()
    assert await outcomes([*first, await waiting]) == [0, 1, 2, 3]
    # One that is larger than the bound goes alone.
    assert await node.produce(bytes(5000)) == 4


async def test_a_batch_larger_than_a_segment(node: Node) -> None:
    await node.produce(bytes(200_000))
    await node.produce(b"small")
    await node.restart()
    assert [len(value) for value in await node.consume()] == [200_000, 5]


async def test_the_cluster_that_calls_first_is_joined(folder: Path) -> None:
    """Also where the caller is gone before that is written."""
    ours, theirs = "a" * 36, "b" * 36
    node = Node(folder, bootstrap=False)
    for _ in range(2):
        replica = await node.open()
        calling = asyncio.ensure_future(replica.home.adopt_cluster(ours))
        await asyncio.sleep(0)
        calling.cancel()
        with pytest.raises(Unavailable, match=ours):
            await replica.home.adopt_cluster(theirs)
        await node.written()
        assert replica.identity.cluster_id == ours
        await node.close()


async def test_a_task_that_ends_may_begin_another() -> None:
    ended: list[str] = []
    tasks = Tasks(lambda _error: None)

    async def last(name: str) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.append(name)

    async def first() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            tasks.spawn(last("begun before"))
            await asyncio.sleep(0)
            tasks.spawn(last("begun while it ended"))
            await asyncio.sleep(0)

    tasks.spawn(first())
    await asyncio.sleep(0)
    await tasks.end()
    assert ended == ["begun before", "begun while it ended"]
    assert asyncio.all_tasks() == {asyncio.current_task()}


async def test_a_leadership_that_follows_another_at_once_is_a_new_one(node: Node) -> None:
    """A server alone leads again before anybody is told that it did not for a moment."""
    replica = node.replica
    raft, term = replica._driver.raft, replica.leadership.state.term
    led_from = replica.leadership.led_from
    answer = await replica.propose(proposed(b"of the first", producer_id=7))
    overlay = replica._applier.state.producers._overlay
    assert 7 in overlay
    raft.may_campaign = True  # Space is still being allocated, perhaps.
    raft.resign()
    raft.tick()
    assert (raft.term, replica.leadership.state.term) == (term + 1, term)
    # What is known of producers is of the leadership before.
    with pytest.raises(Unavailable):
        await replica.propose(proposed(b"too soon"))
    await until(lambda: replica.leadership.state.term > term, "it is told that it leads")
    assert replica.leadership.is_mine
    assert replica.leadership.led_from > led_from + 1
    assert overlay == {}
    assert (await answer).offset == 0
    assert await node.produce(b"of the second") == 1


async def test_who_waits_for_what_a_snapshot_skipped_is_told_at_once(node: Node) -> None:
    """Which batches it stands for is not told; they would have waited for 30 s."""
    replica = node.replica
    await node.produce(b"x")
    waiters, loop = replica._waiters, asyncio.get_running_loop()
    tip = replica.log.tip
    skipped, left = (waiters.add(tip.index + n, 99, loop.time() + 30) for n in (3, 4))
    replica._applier.installed(
        Snapshot(tip._replace(index=tip.index + 3), replica._applier.state.encode())
    )
    assert skipped.done()
    assert not left.done()
    with pytest.raises(OutcomeUnknown, match="snapshot"):
        await skipped
    waiters.give_up()


async def test_closing_with_proposals_in_flight(folder: Path) -> None:
    async with Node(folder) as node:
        futures = [await node.replica.propose(proposed(b"%d" % n)) for n in range(20)]
        waiting = asyncio.ensure_future(node.replica.wait_past(1000))
        await asyncio.sleep(0)
        await node.replica.close()
        for number, outcome in enumerate(await outcomes(futures)):
            assert outcome == number or isinstance(outcome, OutcomeUnknown)
        with pytest.raises(Unavailable):
            await waiting
    async with Node(folder) as node:
        # What was appended when the node was asked to stop is durable, whatever was answered.
        assert await node.consume() == [b"%d" % n for n in range(20)]


async def test_a_barrier_ends_with_the_replica(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with Node(folder) as node:
        monkeypatch.setattr(node.replica._driver, "request_read", lambda ticket: None)
        waiting = asyncio.ensure_future(node.replica.barrier())
        await asyncio.sleep(0)
        await node.replica.close()
        with pytest.raises(Unavailable):
            await asyncio.wait_for(waiting, DEADLINE_SECONDS)


@pytest.mark.parametrize("compress", [False, True])
async def test_after_the_end_everything_is_refused(folder: Path, compress: bool) -> None:
    async with Node(folder) as node:
        await node.fill(40)
        await node.restart()
    replica = node.replica
    calls: list[Callable[[], Coroutine[Any, Any, object]]] = [
        lambda: replica.propose(proposed(bytes(1000), compress=compress)),
        lambda: replica.read(0, 2**20),
        lambda: replica.wait_past(40),
        lambda: replica.barrier(),
        lambda: replica.wait_ready(),
    ]
    for call in calls:
        with pytest.raises(Unavailable):
            await asyncio.wait_for(call(), DEADLINE_SECONDS)
    await replica.close()
