"""Reading every batch of a sealed segment, by its index: damage in one hides none of the others."""

from __future__ import annotations

from collections.abc import Iterator

from proglog.batch import HEADER_BYTES, BadBatch, BatchHeader, check_stored_body, parse_header
from proglog.log.format import Tip
from proglog.log.index import Index
from proglog.log.plan import Entry, Verdict
from proglog.log.reading import CheckedFile, Damage
from proglog.log.walking import Window


def survey(store: CheckedFile, index: Index) -> Iterator[tuple[int, Damage]]:
    """The batches that are not what they should be: their slots, and why."""
    window = Window(store)
    chain: int | None = index.before.chain
    for slot in range(len(index)):
        position = index.position(slot)
        found = _read(window, store, position, index.position(slot + 1) - position)
        why = found if isinstance(found, Damage) else _mismatch(found, index, slot, chain)
        if isinstance(why, str) and why:
            why = Damage(store.path, position, f"batch {index.before.index + 1 + slot} {why}")
        if isinstance(why, Damage):
            yield slot, why
            chain = None
        else:
            assert not isinstance(found, Damage)
            chain = Tip.after(found).chain


def _read(window: Window, store: CheckedFile, position: int, size: int) -> BatchHeader | Damage:
    data = window.at_least(size, position)
    if isinstance(data, Damage):
        return data
    try:
        header = parse_header(data)
        check_stored_body(header, data[HEADER_BYTES : header.size])
    except BadBatch as bad:
        return Damage(store.path, position, f"the batch is damaged: {bad}")
    return header


def _mismatch(header: BatchHeader, index: Index, slot: int, chain: int | None) -> str:
    """What a batch that is whole says differently from the index; empty if nothing."""
    number = index.before.index + 1 + slot
    said = (
        number,
        index.base_offset(slot),
        index.base_offset(slot + 1),
        index.timestamp(slot),
        index.term(number),
        index.position(slot + 1),
    )
    says = (
        header.index,
        header.base_offset,
        header.next_offset,
        header.timestamp,
        header.term,
        index.position(slot) + header.size,
    )
    if says != said:
        return "is not the one that the index describes"
    if chain is not None and header.chain != chain:
        return "does not follow the batch before"
    last = slot == len(index) - 1
    return "is not the last one of the index" if last and Tip.after(header) != index.last else ""


def damaged_batch(index: Index, slot: int, damage: Damage, verdict: Verdict) -> Entry:
    """The entry of a plan for a batch of a sealed segment."""
    first, following = index.base_offset(slot), index.base_offset(slot + 1)
    return Entry(
        file=damage.path,
        position=index.position(slot),
        what=damage.why,
        verdict=verdict,
        first_offset=first if following > first else None,
        last_offset=following - 1 if following > first else None,
    )
