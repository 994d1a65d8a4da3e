"""Idempotent producers: a retry is found, never appended again."""

from __future__ import annotations

import asyncio
import struct
from pathlib import Path

import pytest

from proglog import limits
from proglog.batch import ProposedBatch
from proglog.config import LogConfig
from proglog.errors import (
    InvalidBatch,
    PartialDuplicate,
    SequenceGap,
    UnknownProducer,
)
from proglog.log.format import ORIGIN, Tip
from proglog.replica.producers import Producers
from tests.log.support import build
from tests.replica.support import Node, outcomes, proposed


def of(producer_id: int, sequence: int, *values: bytes, seen_index: int = 0) -> ProposedBatch:
    batch = proposed(*(values or (b"x",)), producer_id=producer_id, sequence=sequence)
    return batch._replace(seen_index=seen_index)


def applied_index(node: Node) -> int:
    return node.replica.applied_index


async def produce(node: Node, batch: ProposedBatch) -> int:
    return (await (await node.replica.propose(batch))).offset


async def test_an_exact_retry_gets_the_first_answer(node: Node) -> None:
    batch = of(7, 0, b"a", b"b")
    first = await (await node.replica.propose(batch))
    assert first.offset == 0 and first.timestamp > 0
    assert await produce(node, of(7, 2, b"c")) == 2
    await asyncio.sleep(0.01)
    assert await (await node.replica.propose(batch)) == first
    assert await node.consume() == [b"a", b"b", b"c"]


async def test_a_retry_of_what_is_in_flight_waits_for_it(node: Node) -> None:
    batch = of(7, 0)
    futures = [await node.replica.propose(batch) for _ in range(3)]
    assert await outcomes(futures) == [0, 0, 0]
    assert node.replica.next_offset == 1


async def test_what_is_not_the_same_batch_is_refused(node: Node) -> None:
    await produce(node, of(7, 0, b"a", b"b"))
    for batch in (of(7, 0, b"a"), of(7, 0, b"a", b"c"), of(7, 1, b"b")):
        with pytest.raises(PartialDuplicate):
            await node.replica.propose(batch)
    with pytest.raises(SequenceGap) as caught:
        await node.replica.propose(of(7, 3))
    assert (caught.value.number("expected"), caught.value.number("sequence")) == (2, 3)
    with pytest.raises(UnknownProducer):
        await node.replica.propose(of(8, 1))
    with pytest.raises(InvalidBatch):
        await node.replica.propose(of(7, 2**64 - 1, b"a", b"b"))
    assert node.replica.next_offset == 2


async def test_a_gap_behind_what_is_in_flight(node: Node) -> None:
    first = await node.replica.propose(of(7, 0))
    with pytest.raises(SequenceGap):
        await node.replica.propose(of(7, 2))
    assert await outcomes([first, await node.replica.propose(of(7, 1))]) == [0, 1]


async def test_the_window_is_what_may_be_in_flight(node: Node) -> None:
    for sequence in range(20):
        await produce(node, of(7, sequence))
    window = limits.producer_window_batches
    for sequence in range(20 - window, 20):
        assert await produce(node, of(7, sequence)) == sequence
    with pytest.raises(PartialDuplicate):
        await node.replica.propose(of(7, 20 - window - 1))


async def test_a_retry_is_known_after_a_restart(node: Node) -> None:
    """From the snapshot and from what follows it."""
    for sequence in range(40):
        await produce(node, of(sequence % 3 + 1, sequence // 3))
    await node.written()
    assert node.snapshots()
    await node.restart()
    assert await produce(node, of(40 % 3, 13)) == 39
    assert await produce(node, of(3, 12)) == 38
    assert await produce(node, of(2, 13)) == 40
    assert node.replica.next_offset == 41
    with pytest.raises(SequenceGap):
        await node.replica.propose(of(3, 14))


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """The log begins with settings by which three producers are known at a time."""
    monkeypatch.setattr(limits, "producers_max", 3)


@pytest.mark.usefixtures("few")
async def test_the_producer_idle_longest_gives_way(node: Node) -> None:
    for producer_id in (1, 2, 3):
        assert await produce(node, of(producer_id, 0)) == producer_id - 1
    assert await produce(node, of(1, 1)) == 3  # not idle any more
    assert await produce(node, of(4, 0, seen_index=applied_index(node))) == 4
    assert list(node.replica._applier.state.producers._committed) == [3, 1, 4]
    # What goes on does so, whoever came meanwhile; time does nothing.
    node.clock.ms += 10**12
    assert await produce(node, of(3, 1)) == 5
    assert await produce(node, of(1, 1)) == 3
    assert await node.produce(b"of no producer") == 6


@pytest.mark.usefixtures("few")
async def test_what_was_forgotten_is_never_appended_again(node: Node) -> None:
    told = applied_index(node)
    for producer_id in (1, 2, 3):
        await produce(node, of(producer_id, 0, seen_index=told))
    await produce(node, of(4, 0, seen_index=applied_index(node)))
    newest, end = applied_index(node), node.replica.next_offset
    for _ in range(2):
        for batch in (of(1, 0), of(1, 0, seen_index=told), of(1, 1), of(1, 1, seen_index=2**63)):
            with pytest.raises(UnknownProducer) as caught:
                await node.replica.propose(batch)
        assert node.replica.next_offset == end
        await node.restart()
    # The refusal says by what a new one may begin.
    index = caught.value.number("seen_index")
    assert index == newest, "the last batch of a producer: a restart appends one of none"
    assert await produce(node, of(5, 0, seen_index=index)) == end
    # One that was refused once, before it had appended anything, may not come back either.
    with pytest.raises(UnknownProducer):
        await node.replica.propose(of(1, 0, seen_index=told))


@pytest.mark.usefixtures("few")
async def test_more_at_a_time_than_are_known(node: Node) -> None:
    """All are appended before the first is applied."""
    batches = [of(producer_id, sequence) for producer_id in range(1, 9) for sequence in (0, 1)]
    futures = [await node.replica.propose(batch) for batch in batches]
    assert await outcomes(futures) == list(range(16))
    assert list(node.replica._applier.state.producers._committed) == [6, 7, 8]


ONE_SHOTS = 30_000


async def test_many_more_producers_than_are_known(folder: Path) -> None:
    """As of a job that runs every few seconds, for days: each is new, produces once, and goes."""
    config = LogConfig(segment_bytes=limits.MiB, segment_batches=4_000)
    refused = 0
    async with Node(folder, config=config) as node:
        for first in range(0, ONE_SHOTS, 1_000):
            seen_index = 0
            futures = []
            for number in range(first, first + 1_000):
                try:
                    future = await node.replica.propose(of(number + 1, 0, seen_index=seen_index))
                except UnknownProducer as error:
                    # As a client does: nothing was appended, so it begins anew.
                    refused += 1
                    seen_index = error.number("seen_index") or 0
                    batch = of(ONE_SHOTS + number, 0, seen_index=seen_index)
                    future = await node.replica.propose(batch)
                futures.append(future)
            assert await outcomes(futures) == list(range(first, first + 1_000))
            if first in {9_000, 12_000, 25_000}:
                await node.written()
                await node.restart()
        assert node.snapshots()
        producers = node.replica._applier.state.producers
        assert len(producers) == limits.producers_max
        assert refused == (ONE_SHOTS - limits.producers_max) // 1_000
        # The state is the same, from whatever snapshot it was built.
        built = producers.encode()
        await node.restart()
        assert node.replica._applier.state.producers.encode() == built


async def test_the_overlay_ends_with_what_it_stood_for(node: Node) -> None:
    futures = [await node.replica.propose(of(7, sequence)) for sequence in range(50)]
    assert await outcomes(futures) == list(range(50))
    assert node.replica._applier.state.producers._overlay == {}


def applied(*batches: tuple[int, int, int]) -> Producers:
    """(producer, sequence, ms) applied in order."""
    producers, tip = Producers(), ORIGIN
    for producer_id, sequence, ms in batches:
        header, _ = build(tip, [b"x"], timestamp=ms, producer_id=producer_id, sequence=sequence)
        producers.apply(header)
        tip = Tip.after(header)
    return producers


def test_the_table_round_trips() -> None:
    producers = applied((1, 0, 5), (2, 0, 6), (1, 1, 7))
    encoded = producers.encode()
    decoded = Producers.decode(encoded)
    assert decoded.encode() == encoded
    assert decoded._committed == producers._committed
    assert list(decoded._committed) == [2, 1]
    for size in range(len(encoded)):
        with pytest.raises(struct.error):
            Producers.decode(encoded[:size])
    with pytest.raises(struct.error):
        Producers.decode(encoded + b"\0")


def test_a_copy_is_a_moments() -> None:
    producers = applied((1, 0, 5))
    copy = producers.copy()
    header, _ = build(ORIGIN, [b"x"], timestamp=6, producer_id=1, sequence=1)
    producers.apply(header)
    assert copy.encode() == applied((1, 0, 5)).encode()


def test_two_nodes_that_apply_the_same_forget_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "producers_max", 2)
    batches = [(1, 0, 9), (2, 0, 8), (1, 1, 7), (3, 0, 6), (1, 2, 5), (4, 0, 4)]
    whole = applied(*batches)
    assert list(whole._committed) == [1, 4]
    for restart in range(len(batches)):
        # The other restarted from a snapshot in the middle.
        other = Producers.decode(applied(*batches[:restart]).encode())
        tip = ORIGIN
        for number, (producer_id, sequence, ms) in enumerate(batches):
            header, _ = build(tip, [b"x"], timestamp=ms, producer_id=producer_id, sequence=sequence)
            tip = Tip.after(header)
            if number >= restart:
                other.apply(header)
        assert other.encode() == whole.encode()
