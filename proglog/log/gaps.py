"""Giving up batches that are lost: each is replaced, where it stands, by a gap.

A gap has the index, the offsets and the size of what was lost, so that nothing that follows moves.
It says what the batch after it is chained to, so that the rest stays verifiable. Of what was lost,
as much is known as an index, a header that is whole, the next batch or the mark says.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

from proglog import batch as batches
from proglog import limits
from proglog.batch import HEADER_BYTES, BadBatch, BatchHeader, Body, Codec, Kind, parse_header
from proglog.errors import CorruptionError
from proglog.log import format as fmt
from proglog.log.format import Tip
from proglog.log.index import Index
from proglog.log.reading import CheckedFile, Damage
from proglog.log.walking import check_follows, walk_store

TERMS_MAX = 1000
"""Of so many terms a next batch is looked for after one whose header is lost."""


class Lost(NamedTuple):
    """A range of lost batches: after `before`, up to `position_end` and to what follows there."""

    before: Tip
    position: int
    position_end: int
    next_index: int
    next_offset: int
    next_chain: int
    term: int
    timestamp: int
    kind: int | None = None
    """Of the one batch, where that is known."""

    @property
    def batches(self) -> int:
        """How many."""
        return self.next_index - 1 - self.before.index

    @property
    def is_possible(self) -> bool:
        """Whether so many batches can have stood there."""
        size = self.position_end - self.position
        size_max = self.batches * (HEADER_BYTES + limits.batch_bytes_max)
        return self.batches > 0 and self.batches * HEADER_BYTES <= size <= size_max

    def gaps(self) -> Iterator[tuple[BatchHeader, bytes, bytes]]:
        """What takes their place: headers, parsed and as bytes, and bodies, of zeros.

        Where only their sum is known the first gap takes all offsets.
        """
        size, tip = self.position_end - self.position, self.before
        for left in reversed(range(self.batches)):
            length = min(size - left * HEADER_BYTES, HEADER_BYTES + limits.batch_bytes_max)
            length -= HEADER_BYTES
            zeros = bytes(length)
            lost = self.next_offset - tip.next_offset
            plain = batches.plain_body(zeros)
            header, packed = batches.build(
                Body(Codec.NONE, 0, lost, plain.crc, zeros),
                kind=Kind.GAP,
                index=tip.index + 1,
                term=self.term,
                base_offset=tip.next_offset,
                timestamp=self.timestamp,
                chain_crc=tip.chain,
                sequence=0 if left else self.next_chain,
            )
            yield header, packed, zeros
            tip, size = Tip.after(header), size - header.size


def give_up(
    store: CheckedFile,
    walked: Index,
    *,
    whole: Index | None,
    end: tuple[Tip, int] | None,
    check: Callable[[Lost], None],
) -> list[Lost]:
    """Replaces whatever is damaged in a store from `walked` on, durably; what that was.

    `whole` is the index of the segment, if there is one; `end` the tip and the position up to which
    batches are to be had, if that is known. Each range is replaced on its own: a repair that is
    killed may be begun again. `check` raises where a range must not be given up.

    Raises CorruptionError where it cannot be told what was lost, OSError.
    """
    done: list[Lost] = []
    while True:
        last_index = None if end is None else end[0].index
        failure = walk_store(store, walked, last_index=last_index)
        if failure is None:
            return done
        lost = _lost(store, walked, whole, end)
        again = done and lost is not None and lost.position == done[-1].position
        if lost is None or again or not lost.is_possible:
            why = "the disk does not take it" if again else "it cannot be told what was lost"
            raise CorruptionError(
                f"{failure}; {why}, so that nothing can be put in its place",
                file=failure.path,
                position=failure.position,
            )
        check(lost)
        _put(store, lost)
        done.append(lost)


def _put(store: CheckedFile, lost: Lost) -> None:
    position = lost.position
    for header, packed, zeros in lost.gaps():
        rest = _rest_of_block(store, position + header.size)
        store.file.pwritev([packed, zeros, rest], position)
        position += header.size
    assert position == lost.position_end
    store.file.fdatasync()


def _rest_of_block(store: CheckedFile, position: int) -> bytes:
    """Zeros up to the end of a block that cannot be read: the disk takes no part of it."""
    upto = min(-(-position // fmt.BLOCK_BYTES) * fmt.BLOCK_BYTES, store.file.size())
    if upto <= position or not isinstance(store.read(upto - position, position), Damage):
        return b""
    return bytes(upto - position)


def _lost(
    store: CheckedFile, walked: Index, whole: Index | None, end: tuple[Tip, int] | None
) -> Lost | None:
    if whole is not None:
        return _by_index(store, walked, whole)
    return _by_header(store, walked) or _by_what_follows(store, walked, end)


def _by_index(store: CheckedFile, walked: Index, whole: Index) -> Lost:
    index = walked.last.index + 1
    slot = index - whole.before.index - 1
    end = whole.position(slot + 1)
    following = _header_at(store, end) if slot + 1 < len(whole) else None
    chain = whole.last.chain if slot + 1 == len(whole) else 0
    if following is not None and following.index == index + 1:
        chain = following.chain
    return Lost(
        before=walked.last,
        position=walked.end_position,
        position_end=end,
        next_index=index + 1,
        next_offset=whole.base_offset(slot + 1),
        next_chain=chain,
        term=whole.term(index),
        timestamp=whole.timestamp(slot),
        kind=whole.kind(slot),
    )


def _by_header(store: CheckedFile, walked: Index) -> Lost | None:
    """Only the body is damaged."""
    header = _header_at(store, walked.end_position)
    try:
        if header is None:
            return None
        check_follows(header, walked.last, begins=len(walked) == 0)
    except BadBatch:
        return None
    return Lost(
        before=walked.last,
        position=walked.end_position,
        position_end=walked.end_position + header.size,
        next_index=header.index + 1,
        next_offset=header.next_offset,
        next_chain=Tip.after(header).chain,
        term=header.term,
        timestamp=header.timestamp,
        kind=header.kind,
    )


def _by_what_follows(store: CheckedFile, walked: Index, end: tuple[Tip, int] | None) -> Lost | None:
    tip, position = walked.last, walked.end_position
    term = max(tip.term, 1)
    stop = store.file.size() if end is None else end[1]
    newest = term if end is None else end[0].term
    for each in range(term, min(newest, term + TERMS_MAX) + 1):
        found = _find(store, position, stop, tip, each)
        if found is not None:
            at, header = found
            # Its time is that of what follows: a segment's times are close to its first one.
            return Lost(
                tip,
                position,
                at,
                header.index,
                header.base_offset,
                header.chain,
                term,
                header.timestamp,
            )
    if end is None:
        return None
    last, end_position = end
    return Lost(
        tip,
        position,
        end_position,
        last.index + 1,
        last.next_offset,
        last.chain,
        last.term,
        last.timestamp,
    )


def _find(
    store: CheckedFile, position: int, stop: int, tip: Tip, term: int
) -> tuple[int, BatchHeader] | None:
    """The next batch of a term that may follow `tip`, and its place, before `stop`."""
    # Five bytes of its index, which are those of ours, are followed by those of its term.
    pattern = (tip.index + 1).to_bytes(8, "little")[3:] + term.to_bytes(8, "little")
    window_bytes = limits.walk_window_bytes
    for start in range(position + HEADER_BYTES, stop, window_bytes):
        data = read_leniently(store, min(window_bytes + HEADER_BYTES, stop - start), start)
        at = data.find(pattern)
        while at >= 0:
            place = start + at - 19
            header = _header_at(store, place) if place > position else None
            if header is not None and _may_follow(store, header, place, position, tip):
                return place, header
            at = data.find(pattern, at + 1)
    return None


def _may_follow(
    store: CheckedFile, header: BatchHeader, place: int, position: int, tip: Tip
) -> bool:
    lost = header.index - 1 - tip.index
    body = store.read(header.length, place + HEADER_BYTES)
    return (
        0 < lost <= (place - position) // HEADER_BYTES
        and header.base_offset >= tip.next_offset
        and header.timestamp >= tip.timestamp
        and not isinstance(body, Damage)
        and batches.plain_body(body).crc == header.body_crc
    )


def _header_at(store: CheckedFile, position: int) -> BatchHeader | None:
    data = store.read(HEADER_BYTES, position)
    try:
        return None if isinstance(data, Damage) else parse_header(data)
    except BadBatch:
        return None


def read_leniently(store: CheckedFile, size: int, position: int) -> bytes:
    """What can be read; zeros for the blocks that cannot, and after the end of the file."""
    data = store.read(size, position)
    if not isinstance(data, Damage):
        return data
    parts = []
    at = position
    while at < position + size:
        upto = min((at // fmt.BLOCK_BYTES + 1) * fmt.BLOCK_BYTES, position + size)
        part = store.read_upto(upto - at, at)
        parts.append((b"" if isinstance(part, Damage) else part).ljust(upto - at, b"\0"))
        at = upto
    return b"".join(parts)
