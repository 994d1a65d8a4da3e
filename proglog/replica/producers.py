"""Idempotent producers: a retried batch is found, not appended again.

An appended duplicate could not be taken back, so this is decided *before* a batch is appended. The
table is what committed batches built, the same on every node, plus an overlay of what this leader
appended behind them. The overlay needs neither rebuilding nor rollback: a leader takes no batch
before it has applied everything from before its leadership, and forgets the overlay when it ends.

The table holds `producers_max`. A newcomer that is applied to a full one takes the place of the
producer whose last batch is the oldest, so nobody is locked out, and no clock has a say. Of one
that was forgotten nothing may be appended again, though its first batch looks like that of a
newcomer. They are told apart by `seen_index`, a commit index that the producer was told *before* it
made up its id, so that all of its batches come after it:

1. Had this producer been forgotten, its last batch would be older than the last one of everybody in
   the table, for the oldest is forgotten first.
2. So where seen_index is not less than the oldest of those, it was not forgotten; and since it is
   not in the table either, it never appended anything.
3. A table that is not full has forgotten nobody, since it has the size that it has.

Who does not pass, as he who was told nothing yet, is unknown, and learns an index with the refusal.
"""

from __future__ import annotations

import struct
from itertools import starmap
from typing import NamedTuple

from proglog.batch import BatchHeader, ProposedBatch
from proglog.errors import (
    InvalidBatch,
    PartialDuplicate,
    SequenceGap,
    UnknownProducer,
)
from proglog.replica.settings import Settings

_PRODUCER = struct.Struct("<QQI")
_BATCH = struct.Struct("<QIIQQ")
_COUNT = struct.Struct("<I")


class KnownBatch(NamedTuple):
    """A batch of a producer. `index` is where it stands in the log."""

    sequence: int
    count: int  # type: ignore[assignment]  # the field, not tuple.count
    body_crc: int
    index: int  # type: ignore[assignment]  # the field, not tuple.index
    offset: int

    @property
    def next_sequence(self) -> int:
        return self.sequence + self.count


class _Producer(NamedTuple):
    """The last batches of one producer, oldest first; immutable, so that a copy is a moment's."""

    last_timestamp: int
    window: tuple[KnownBatch, ...]

    @property
    def last_index(self) -> int:
        return self.window[-1].index


class Producers:
    """The table, ordered by the index of each producer's last batch."""

    def __init__(self, settings: Settings | None = None) -> None:
        self.settings = settings or Settings.first()
        self._committed: dict[int, _Producer] = {}
        self._overlay: dict[int, list[KnownBatch]] = {}

    def __len__(self) -> int:
        return len(self._committed)

    # --- deciding (leader, before append) --------------------------------------------------------

    def find(self, batch: ProposedBatch) -> KnownBatch | None:
        """The batch itself if it was appended before; None if it is the next and may be appended.

        Raises UnknownProducer, SequenceGap, PartialDuplicate or InvalidBatch.
        """
        sequence, count, crc = batch.sequence, batch.body.count, batch.body.crc
        if sequence + count > 2**64:
            raise InvalidBatch(f"sequence {sequence} with {count} records exceeds 64 bits")
        known = self._known(batch.producer_id)
        if not known:
            self._check_first(batch)
            return None
        for each in reversed(known):
            if each.sequence == sequence:
                if (each.count, each.body_crc) == (count, crc):
                    return each
                break
        expected = known[-1].next_sequence
        if sequence == expected:
            return None
        if sequence > expected:
            raise SequenceGap(
                f"producer {batch.producer_id} sent sequence {sequence} before {expected}",
                expected=expected,
                sequence=sequence,
            )
        raise PartialDuplicate(
            f"producer {batch.producer_id} sent sequence {sequence} again, but not the batch that "
            "it was; a retry must repeat the same bytes",
            expected=expected,
            sequence=sequence,
        )

    def _known(self, producer_id: int) -> list[KnownBatch]:
        committed = self._committed.get(producer_id)
        return [*(committed.window if committed else ()), *self._overlay.get(producer_id, ())]

    def _check_first(self, batch: ProposedBatch) -> None:
        if batch.sequence == 0 and batch.seen_index >= self._forgotten_before:
            return
        newest = next(reversed(self._committed.values()), None)
        raise UnknownProducer(
            f"producer {batch.producer_id} is not known (any more); a new one starts at 0",
            producer_id=batch.producer_id,
            seen_index=max(newest.last_index if newest else 0, self.settings.since),
        )

    @property
    def _forgotten_before(self) -> int:
        """All that was ever forgotten had its last batch before this index."""
        since = self.settings.since
        if len(self._committed) < self.settings.producers_max:
            return since
        return max(since, next(iter(self._committed.values())).last_index)

    def appended(self, batch: ProposedBatch, index: int, offset: int) -> None:
        """The leader appended a batch for which `find` gave None."""
        known = KnownBatch(batch.sequence, batch.body.count, batch.body.crc, index, offset)
        self._overlay.setdefault(batch.producer_id, []).append(known)

    def forget_overlay(self) -> None:
        """Leadership is over: only what is committed is known."""
        self._overlay.clear()

    # --- applying (every node) -------------------------------------------------------------------

    def apply(self, header: BatchHeader) -> None:
        """A committed batch with a producer id. Nothing here may depend on the node."""
        producer_id = header.producer_id
        known = self._committed.pop(producer_id, None)
        window = known.window if known else ()
        batch = KnownBatch(
            header.sequence, header.count, header.body_crc, header.index, header.base_offset
        )
        # The leader saw to it; what comes twice would be appended twice. (One that was forgotten
        # while it had something under way begins a new window.)
        assert not window or window[-1].next_sequence <= header.sequence
        if window and window[-1].next_sequence < header.sequence:
            window = ()  # A repair gave up what was between.
        while known is None and len(self._committed) >= self.settings.producers_max:
            del self._committed[next(iter(self._committed))]
        kept = window[-(self.settings.producer_window_batches - 1) :]
        self._committed[producer_id] = _Producer(header.timestamp, (*kept, batch))
        overlay = self._overlay.get(producer_id)
        if overlay:
            assert overlay[0] == batch, "what was committed is not what this leader appended"
            del overlay[0]
            if not overlay:
                del self._overlay[producer_id]

    # --- snapshots -------------------------------------------------------------------------------

    def copy(self) -> Producers:
        """The committed table as it is now; cheap, since its values are immutable."""
        copied = Producers(self.settings)
        copied._committed = self._committed.copy()
        return copied

    def encode(self) -> bytes:
        parts = [_COUNT.pack(len(self._committed))]
        for producer_id, (last_timestamp, window) in self._committed.items():
            parts.append(_PRODUCER.pack(producer_id, last_timestamp, len(window)))
            parts.extend(starmap(_BATCH.pack, window))
        return b"".join(parts)

    @classmethod
    def decode(cls, data: bytes, settings: Settings | None = None) -> Producers:
        """The inverse of `encode`. Raises struct.error on anything else."""
        producers = cls(settings)
        (count,) = _COUNT.unpack_from(data)
        at = _COUNT.size
        for _ in range(count):
            producer_id, last_timestamp, size = _PRODUCER.unpack_from(data, at)
            at += _PRODUCER.size
            end = at + size * _BATCH.size
            window = tuple(map(KnownBatch._make, _BATCH.iter_unpack(data[at:end])))
            if len(window) != size:
                raise struct.error("cut short")
            producers._committed[producer_id] = _Producer(last_timestamp, window)
            at = end
        if at != len(data):
            raise struct.error("trailing bytes")
        return producers
