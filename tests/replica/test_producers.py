"""Idempotent producers: a retry is found, never appended again."""

from __future__ import annotations

import asyncio
import struct
from pathlib import Path

import pytest

from proglog import limits
from proglog.batch import ProposedBatch
from proglog.errors import (
    InvalidBatch,
    PartialDuplicate,
    ProducersFull,
    SequenceGap,
    UnknownProducer,
)
from proglog.log.format import ORIGIN, Tip
from proglog.replica.producers import Producers
from tests.log.support import build
from tests.replica.support import Node, outcomes, proposed

DAY_MS = limits.producer_expiry_ms


def of(producer_id: int, sequence: int, *values: bytes) -> ProposedBatch:
    return proposed(*(values or (b"x",)), producer_id=producer_id, sequence=sequence)


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


async def test_producers_expire_by_the_time_of_the_log(node: Node) -> None:
    await produce(node, of(1, 0))
    node.clock.ms += DAY_MS
    await produce(node, of(2, 0))
    await produce(node, of(1, 1))
    node.clock.ms += DAY_MS + 1
    await produce(node, of(3, 0))
    for producer_id in (1, 2):
        with pytest.raises(UnknownProducer):
            await node.replica.propose(of(producer_id, 1))
    # A new life of the same id.
    assert await produce(node, of(1, 0)) == 4
    await node.restart()
    assert await produce(node, of(1, 1)) == 5


async def test_a_full_table_refuses_new_ones_only(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "producers_max", 3)
    for producer_id in (1, 2, 3):
        await node.replica.propose(of(producer_id, 0))
    for producer_id in (4, 5):
        with pytest.raises(ProducersFull):
            await node.replica.propose(of(producer_id, 0))
    assert await produce(node, of(1, 1)) == 3
    assert await node.produce(b"of no producer") == 4


async def test_a_full_table_empties_itself(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    """Though all that comes is from new producers, which are the ones that are refused."""
    monkeypatch.setattr(limits, "producers_max", 3)
    for producer_id in (1, 2, 3):
        await produce(node, of(producer_id, 0))
    node.clock.ms += DAY_MS
    with pytest.raises(ProducersFull):
        await node.replica.propose(of(4, 0))
    node.clock.ms += 1
    assert await produce(node, of(4, 0)) == 3
    with pytest.raises(UnknownProducer):
        await node.replica.propose(of(1, 1))


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


async def test_two_nodes_that_apply_the_same_forget_alike(folder: Path) -> None:
    batches = [(1, 0, 0), (2, 0, DAY_MS // 2), (3, 0, DAY_MS + 1), (2, 1, DAY_MS + 2)]
    one = applied(*batches)
    # The other restarted from a snapshot in the middle.
    other = Producers.decode(applied(*batches[:2]).encode())
    tip = ORIGIN
    for number, (producer_id, sequence, ms) in enumerate(batches):
        header, _ = build(tip, [b"x"], timestamp=ms, producer_id=producer_id, sequence=sequence)
        tip = Tip.after(header)
        if number >= 2:
            other.apply(header)
    assert one.encode() == other.encode()
    assert list(one._committed) == [3, 2]
    await asyncio.sleep(0)
