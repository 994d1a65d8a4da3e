"""Damage of the disk: found by reading, mended from a peer.

A checksum tells that bytes are wrong, never what they were. But every committed batch is on a
majority of disks, and the chain says which bytes belong: so a damaged range is fetched again, and
taken only if it fits what stands on both sides of it. Until then this server does not lead.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine

import structlog

from proglog import limits
from proglog.errors import CorruptionError, Overloaded, ProglogError, RangeCorrupt, Unavailable
from proglog.log.damage import find_damage, mend
from proglog.log.log import Log
from proglog.raft.driver import ReceivedBatch
from proglog.replica.applier import Applier
from proglog.replica.exchange import Exchange
from proglog.replica.fitness import Fitness
from proglog.replica.leadership import Leadership

_logger = structlog.get_logger("repair")


class Repair:
    """Belongs to a replica, which runs `run` and `scrub` as tasks."""

    def __init__(
        self,
        *,
        applier: Applier,
        fitness: Fitness,
        log: Log,
        exchange: Exchange,
        leadership: Leadership,
        own_uuid: str,
        hand_over: Callable[[], Awaitable[None]],
        resign: Callable[[], None],
        spawn: Callable[[Coroutine[None, None, None]], None],
    ) -> None:
        self._applier = applier
        self._fitness = fitness
        self._log = log
        self._exchange = exchange
        self._leadership = leadership
        self._own_uuid = own_uuid
        self._hand_over = hand_over
        self._resign = resign
        self._spawn = spawn
        self._answering: set[str] = set()
        """The peers for which a range is being read."""
        self._found = asyncio.Event()
        self._suspects: set[int] = set()
        self._answer: asyncio.Future[list[ReceivedBatch]] | None = None

    def report(self, error: RangeCorrupt) -> None:
        """A read failed: the segment around it is looked at."""
        index = error.number("index")
        if index is not None:
            self._suspects.add(index)
            self._found.set()

    def cannot_apply(self, error: RangeCorrupt) -> None:
        """What is committed cannot be read. Another server has it, or CorruptionError is raised."""
        self.report(error)
        if len(self._leadership.servers) == 1:
            raise CorruptionError(
                f"{error}. No snapshot holds what it built, and no other server has it: "
                "proglog repair --give-up-damaged gives it up",
                **error.facts,
            )

    async def scrub(self) -> None:
        """Reads sealed segments one after the other, for ever, to find damage before users do."""
        while True:
            for tip in self._log.sealed_tips():
                await asyncio.sleep(limits.scrub_pause_seconds)
                if self._log.first_index <= tip.index <= self._applier.commit_index:
                    await self._scrub(tip.index)
            await asyncio.sleep(limits.scrub_pause_seconds)

    async def _scrub(self, index: int) -> None:
        try:
            damaged = await find_damage(self._log, index)
        except Overloaded:
            return  # In the next round.
        for first, _last in damaged:
            self._suspects.add(first)
            self._found.set()

    async def run(self) -> None:
        """Mends what is reported, for ever."""
        while True:
            await self._found.wait()
            self._fitness.is_damaged = True
            await self._hand_over()
            if self._is_stuck():
                self._resign()
            try:
                await self._mend_all()
            except ProglogError as error:
                _logger.warning("damage not mended yet", error=str(error))
                await asyncio.sleep(limits.repair_retry_seconds)
                continue
            self._found.clear()
            self._fitness.is_damaged = False

    def _is_stuck(self) -> bool:
        """Whether, as leader, it cannot send what is not committed yet: nobody could take over from
        it, and nothing be committed ever again. The others can do without: should that have been
        acknowledged, another one of the majority that has it is elected; else it is cut."""
        return len(self._leadership.configuration.voters) > 1 and any(
            index > self._applier.commit_index for index in self._suspects
        )

    async def _mend_all(self) -> None:
        while self._suspects:
            index = min(self._suspects)
            if not self._log.first_index <= index <= self._log.tip.index:
                self._suspects.discard(index)
                continue
            for first, last in await find_damage(self._log, index):
                if last > self._applier.commit_index:
                    # It may be cut yet, and something else be written there.
                    raise Unavailable(f"batch {last} is damaged and not known to be committed")
                await self._mend(first, last)
            self._suspects.discard(index)

    async def _mend(self, first: int, last: int) -> None:
        """Fetches a range from one peer after the other until one has what fits."""
        failure: ProglogError = RangeCorrupt(
            f"batches {first} to {last} are damaged and no other server has them"
        )
        for server in self._leadership.servers:
            if server.uuid == self._own_uuid:
                continue
            try:
                batches = await self._fetch(server.uuid, first, last)
                await mend(self._log, [(each.header, each.data) for each in batches])
            except TimeoutError:
                continue
            except ProglogError as error:
                failure = error
            else:
                _logger.warning("damage mended", first=first, last=last, source=server.name)
                return
        raise failure

    async def _fetch(self, uuid: str, first: int, last: int) -> list[ReceivedBatch]:
        """Raises TimeoutError, or RangeCorrupt if it is not the range asked for."""
        batches: list[ReceivedBatch] = []
        async with asyncio.timeout(limits.fetch_seconds_max * (1 + (last - first) // 100)):
            while first <= last:
                self._answer = asyncio.get_running_loop().create_future()
                self._exchange.fetch(uuid, first, last)
                try:
                    async with asyncio.timeout(limits.fetch_seconds_max / 4):
                        received = await self._answer
                except TimeoutError:
                    # Perhaps the connection was only just being made: until the outer time is over.
                    continue
                if not received or received[0].header.index != first:
                    raise RangeCorrupt(f"a peer answered another range than {first} to {last}")
                batches += received
                first = received[-1].header.index + 1
        return batches

    def received(self, batches: list[ReceivedBatch]) -> None:
        """A peer's answer; one that is late or not asked for is dropped."""
        if self._answer is not None and not self._answer.done():
            self._answer.set_result(batches)

    # --- for others ------------------------------------------------------------------------------

    def wanted(self, peer: str, first: int, last: int) -> None:
        """A peer asks for a range. One at a time; who got no answer asks again."""
        if peer not in self._answering:
            self._answering.add(peer)
            self._spawn(self._give(peer, first, last))

    async def _give(self, peer: str, first: int, last: int) -> None:
        last = min(last, self._applier.applied_index)
        try:
            if not self._log.first_index <= first <= last:
                return
            run = await self._log.read(first, last, limits.read_bytes_max)
        except RangeCorrupt as error:
            self.report(error)
        except (Unavailable, Overloaded):
            # As where a snapshot replaced the log: the peer asks somebody else.
            return
        else:
            self._exchange.answer_fetch(peer, run.data)
        finally:
            self._answering.discard(peer)
