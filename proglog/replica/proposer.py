"""How a batch gets into the log: waits for its turn, then is checked and appended in one step."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from proglog import limits
from proglog.aio.news import News
from proglog.batch import HEADER_BYTES, Codec, ProposedBatch, check_body, check_frame
from proglog.errors import EarlierRefused, NotLeader, OffsetMismatch
from proglog.log.log import Log
from proglog.ports import Clock, Offload
from proglog.raft.driver import Driver
from proglog.replica.applier import Applier
from proglog.replica.budgets import Budget
from proglog.replica.leadership import Leadership
from proglog.replica.waiters import CommitWaiters
from proglog.types import Appended

Observe = Callable[[int, int, float], None]
"""(records, bytes, seconds): a batch was committed, so long after it was proposed."""


class Proposer:
    """Belongs to a replica. See `Replica.propose` for what it promises."""

    def __init__(
        self,
        *,
        log: Log,
        driver: Driver,
        leadership: Leadership,
        applier: Applier,
        waiters: CommitWaiters,
        offload: Offload,
        clock: Clock,
        check_open: Callable[[], None],
        observe: Observe,
        budget: Budget,
    ) -> None:
        self._log = log
        self._driver = driver
        self._leadership = leadership
        self._applier = applier
        self._waiters = waiters
        self._offload = offload
        self._clock = clock
        self._check_open = check_open
        self._observe = observe
        self._loop = asyncio.get_running_loop()
        self._budget = budget
        self._inflight_bytes = 0
        self.room = News()
        """Told when less is in flight on this node, or somebody else leads."""
        budget.watch(self.room.tell)

    async def propose(
        self, batch: ProposedBatch, after: asyncio.Future[Appended] | None
    ) -> asyncio.Future[Appended]:
        self._check_open()
        check_body(batch.body)
        if batch.body.codec != Codec.NONE:
            await self._offload.run(lambda: check_frame(batch.body))
        size = HEADER_BYTES + len(batch.body.data)
        await self._admit(size)
        while (undecided := self._undecided(batch)) is not None:
            await self._applied(undecided)
            await self._admit(size)
        if after is not None and after.done() and (after.cancelled() or after.exception()):
            raise EarlierRefused("an earlier batch was not appended, so this one was not either")
        return self._append(batch, size)

    def _undecided(self, batch: ProposedBatch) -> int | None:
        """Compare-and-append against a suffix that may still be cut: the index at which it is
        known whether the expected offset was taken. Offsets below those that are committed are
        taken, and those beyond the suffix are not the next whatever becomes of it."""
        expected = batch.expected_offset
        if expected is None:
            return None
        if not self._applier.next_offset <= expected < self._driver.next_offset:
            return None
        return self._driver.raft.status().last_index

    async def _applied(self, index: int) -> None:
        """Until this leader has applied a batch. Raises what a caller is told if it ends."""
        while self._applier.applied_index < index:
            if not self._leadership.is_mine:
                raise self._leadership.refusal()
            await self._applier.applied.wait()

    def _leads(self) -> bool:
        """Whether this server leads, and what is known of producers is of this leadership: the core
        may be in a later term already, and lead in it, before anybody is told."""
        return self._leadership.is_mine and self._driver.term == self._leadership.state.term

    async def _admit(self, size: int) -> None:
        """Returns when a batch of `size` bytes may be appended in this very step."""
        while True:
            self._check_open()
            if not self._leads():
                raise self._leadership.refusal()
            room = self._driver.pending_bytes + size + limits.control_bytes_reserved
            count = self._driver.pending_batches + 1 + limits.control_batches_reserved
            if self._applier.applied_index < self._leadership.led_from:
                # What came before this leadership is not known to be committed or not: until it
                # is, a retried batch cannot be told from a new one.
                await self._applier.applied.wait()
            elif not self._budget.has_room(size, self._inflight_bytes):
                await self.room.wait()
            elif self._log.has_room(room, count):
                return
            elif self._driver.pending_batches:
                await self._driver.taken.wait()
            else:
                await self._log.make_room(room, count)

    def _append(self, batch: ProposedBatch, size: int) -> asyncio.Future[Appended]:
        producers = self._applier.state.producers
        known = producers.find(batch) if batch.producer_id else None
        deadline = self._loop.time() + limits.answer_seconds_max
        if known is not None:
            return self._answer_of_known(known.index, known.offset, deadline)
        offset = self._driver.next_offset
        if batch.expected_offset is not None and batch.expected_offset != offset:
            # Only what is committed is told: see `_undecided`.
            following = self._applier.next_offset
            raise OffsetMismatch(
                f"the next offset is {following}, not {batch.expected_offset}",
                expected=batch.expected_offset,
                next=following,
            )
        try:
            index, term = self._driver.propose(batch)
        except NotLeader:
            raise self._leadership.refusal() from None
        if batch.producer_id:
            producers.appended(batch, index, offset)
        self._inflight_bytes += size
        self._budget.take(size)
        future = self._waiters.add(index, term, deadline)
        began = self._clock.stopwatch()
        future.add_done_callback(lambda done: self._answered(done, batch.body.count, size, began))
        return future

    def _answered(
        self, answer: asyncio.Future[Appended], records: int, size: int, began: float
    ) -> None:
        self._inflight_bytes -= size
        self._budget.give(size)
        if not answer.cancelled() and answer.exception() is None:
            self._observe(records, size, self._clock.stopwatch() - began)

    def _answer_of_known(
        self, index: int, offset: int, deadline: float
    ) -> asyncio.Future[Appended]:
        """The answer to a batch that was appended before: its own, once that is committed."""
        if index > self._applier.applied_index:
            return self._waiters.add(index, self._leadership.state.term, deadline)
        future: asyncio.Future[Appended] = self._loop.create_future()
        timestamp = 0
        if index >= self._log.first_index:
            segment = self._log.segment_of(index)
            timestamp = segment.index.timestamp(index - segment.first_index)
        future.set_result(Appended(offset, timestamp))
        return future

    def close(self) -> None:
        """Nobody waits here any more."""
        self._budget.unwatch(self.room.tell)
