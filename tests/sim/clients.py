"""The load: producers that retry, appends that compare, consumers, and reads behind a barrier."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from functools import partial
from typing import TYPE_CHECKING, NamedTuple, TypeVar

from proglog import batch as batches
from proglog.batch import ProposedBatch
from proglog.errors import (
    EarlierRefused,
    OffsetMismatch,
    OffsetOutOfRange,
    OutcomeUnknown,
    ProglogError,
    RangeCorrupt,
    UnknownProducer,
)
from proglog.replica.replica import Replica
from proglog.types import Appended
from tests.sim.history import Append
from tests.sim.oracle import require
from tests.sim.processes import Gone

if TYPE_CHECKING:
    from tests.sim.node import SimNode
    from tests.sim.world import World

T = TypeVar("T")

READ_BYTES_MAX = 4_000


class Lost(Exception):
    """A request or its answer got lost: it may have been served."""


class _Sent(NamedTuple):
    """A batch on its way, with the records in it."""

    proposed: ProposedBatch
    appends: list[Append]
    tried: float


class Client:
    """Talks to nodes over a network that loses requests and answers."""

    def __init__(self, world: World, name: str) -> None:
        self.world = world
        self.name = name
        self.chance = world.loop.chance(f"client {name}")
        self.node = self.chance.choice(world.nodes)

    async def run(self) -> None:
        """The client's life."""
        raise NotImplementedError

    @property
    def now(self) -> float:
        return self.world.loop.now

    async def call(self, node: SimNode, serve: Callable[[Replica], Awaitable[T]]) -> T:
        """What `serve` says on a node. Raises ProglogError as it does, and Lost."""
        await self._travel()
        process = node.process
        if process is None or not node.is_open:
            raise EarlierRefused("nothing listens")
        try:
            async with asyncio.timeout(self.world.settings.call_seconds):
                result = await process.call(lambda: serve(node.replica))
        except (Gone, TimeoutError) as error:
            raise Lost from error
        await self._travel()
        return result

    async def _travel(self) -> None:
        await asyncio.sleep(self.chance.expovariate(1 / self.world.settings.latency_seconds))
        if self.chance.random() < self.world.client_loss_rate:
            await asyncio.sleep(self.chance.uniform(0, self.world.settings.call_seconds))
            raise Lost

    async def pause(self, seconds: float) -> None:
        await asyncio.sleep(self.chance.expovariate(1 / seconds))

    async def _produce(
        self, replica: Replica, proposed: list[ProposedBatch], only: Append | None = None
    ) -> list[Appended | BaseException]:
        """One stream, at the server: the first refused batch fails all later ones unappended. What
        it answers must be true, whether the client hears it or not; `only` is tried only once."""
        futures: list[asyncio.Future[Appended]] = []
        refusal: list[Appended | BaseException] = []
        for each in proposed:
            try:
                before = futures[-1] if futures else None
                futures.append(await replica.propose(each, before))
            except ProglogError as error:
                self._check_mismatch(error)
                refusal = [error]
                break
            futures[-1].add_done_callback(partial(self._answered, each, only))
        answers = await asyncio.gather(*futures, return_exceptions=True)
        return [*answers, *refusal]

    def _check_mismatch(self, error: ProglogError) -> None:
        """Compare-and-append is refused by what is committed, and tells nothing else."""
        if isinstance(error, OffsetMismatch):
            following, expected = error.number("next"), error.number("expected")
            end = self.world.oracle.next_offset
            require(
                following is not None and following <= end and following != expected,
                "a mismatch is decided",
                f"expected {expected}, told {following}, committed {end}",
            )

    def _answered(
        self, proposed: ProposedBatch, only: Append | None, answer: asyncio.Future[Appended]
    ) -> None:
        if answer.cancelled():
            return
        error = answer.exception()
        if error is None:
            body, offset = proposed.body, answer.result().offset
            self.world.oracle.acknowledged(offset, body.count, body.crc)
        elif only is not None and not isinstance(error, OutcomeUnknown):
            self.world.history.refuse(only)

    def look_elsewhere(self) -> None:
        """The leader, as far as this client hears, or anybody."""
        leaders = [node for node in self.world.nodes if node.leads]
        if leaders and self.chance.random() < 0.7:
            self.node = self.chance.choice(leaders)
        else:
            self.node = self.chance.choice(self.world.nodes)


class Producer(Client):
    """Idempotent: what is not known to be appended is sent again, byte for byte."""

    def __init__(self, world: World, name: str) -> None:
        super().__init__(world, name)
        self._records = 0
        self._backlog: deque[_Sent] = deque()
        self._told_index = 0
        self._renew()

    def _renew(self) -> None:
        """Begins anew under another id; what was under way stays unknown for ever."""
        self._id = self.chance.getrandbits(62) + 1
        self._seen_index = self._told_index
        self._sequence = 0
        self._backlog.clear()

    async def run(self) -> None:
        while not self.world.is_quiet or self._backlog:
            if not self.world.is_quiet:
                for _ in range(self.chance.randint(1, self.world.settings.window)):
                    if len(self._backlog) < self.world.settings.window:
                        self._backlog.append(self._make())
            await self._send_all()
            await self.pause(self.world.settings.pause_seconds)

    def _make(self) -> _Sent:
        settings = self.world.settings
        appends = []
        for _ in range(self.chance.randint(1, settings.records_max)):
            self._records += 1
            value = b"%s-%d." % (self.name.encode(), self._records)
            value = value.ljust(self.chance.randint(1, settings.values_max), b"x")
            appends.append(self.world.history.invoke(value, self._id, self._sequence, self.now))
            self._sequence += 1
        body = batches.encode([append.value for append in appends])
        proposed = ProposedBatch(body, self._id, appends[0].sequence, seen_index=self._seen_index)
        return _Sent(proposed, appends, self.now)

    async def _send_all(self) -> None:
        sent = list(self._backlog)
        answers: list[Appended | BaseException] = []
        try:
            answers = await self.call(
                self.node,
                lambda replica: self._produce(replica, [each.proposed for each in sent]),
            )
        except (Lost, ProglogError):
            self.look_elsewhere()
        for each, answer in zip(sent, answers, strict=False):
            if isinstance(answer, Appended):
                self._acknowledged(each, answer)
            else:
                self._failed(answer)
                break
        if self._backlog and self.now - self._backlog[0].tried > self.world.give_up_seconds:
            self._renew()

    def _acknowledged(self, sent: _Sent, answer: Appended) -> None:
        self.world.acknowledged(sent.proposed, answer)
        for number, append in enumerate(sent.appends, answer.offset):
            self.world.history.acknowledge(append, number, self.now)
        self._backlog.remove(sent)

    def _failed(self, answer: BaseException) -> None:
        if isinstance(answer, UnknownProducer):
            self.world.oracle.counts["forgotten"] += 1
            self._told_index = max(self._told_index, answer.number("seen_index") or 0)
            self._renew()
        self.look_elsewhere()


class Comparer(Client):
    """Appends only at the offset that it expects; each attempt is another record."""

    async def run(self) -> None:
        number = 0
        while not self.world.is_quiet:
            number += 1
            value = b"%s-%d" % (self.name.encode(), number)
            try:
                await self._try(value)
            except (Lost, ProglogError):
                self.look_elsewhere()
            await self.pause(self.world.settings.pause_seconds)

    async def _try(self, value: bytes) -> None:
        expected = await self.call(self.node, _next)
        if self.chance.random() < 0.2:
            expected += self.chance.choice((-1, 1))
        append = self.world.history.invoke(value, 0, 0, self.now)
        plain = self.chance.random() < 0.5
        proposed = ProposedBatch(batches.encode([value]), 0, 0, None if plain else expected)
        try:
            (answer,) = await self.call(
                self.node, lambda replica: self._produce(replica, [proposed], append)
            )
        except EarlierRefused:
            self.world.history.refuse(append)
            raise
        if isinstance(answer, Appended):
            require(
                plain or answer.offset == expected,
                "compare-and-append",
                f"{value!r} was appended at {answer.offset}, expected {expected}",
            )
            self.world.acknowledged(proposed, answer)
            self.world.history.acknowledge(append, answer.offset, self.now)
        elif not isinstance(answer, OutcomeUnknown):
            self.world.history.refuse(append)
            if not isinstance(answer, OffsetMismatch):
                self.look_elsewhere()


async def _next(replica: Replica) -> int:
    return replica.next_offset


class Consumer(Client):
    """Reads everything, from one node after the other, in order."""

    def __init__(self, world: World, name: str, restart_rate: float) -> None:
        super().__init__(world, name)
        self.position = 0
        self._restart_rate = restart_rate
        """How often it begins again: the oldest segments are those that go."""

    async def run(self) -> None:
        while not self.world.is_over:
            try:
                await self._read()
            except (Lost, ProglogError) as error:
                if isinstance(error, RangeCorrupt):
                    require(self.node.is_rotten, "no damage", f"{self.node.name}: {error}")
                self.look_elsewhere()
            await self.pause(self.world.settings.pause_seconds)
            if self.chance.random() < 0.02:
                self.node = self.chance.choice(self.world.nodes)
            if self.chance.random() < self._restart_rate:
                self.position = 0

    async def _read(self) -> None:
        position = self.position
        try:
            chunk = await self.call(
                self.node, lambda replica: replica.read(position, READ_BYTES_MAX)
            )
        except OffsetOutOfRange as error:
            earliest = error.number("earliest")
            if earliest is not None and earliest > position:
                self.world.history.counts["overtaken"] += 1
                self.position = earliest
            return
        for records in batches.decode_all(chunk.data):
            wanted = records.between(position)
            require(
                not len(wanted) or wanted.base_offset == position,
                "poll skips",
                f"{self.name} asked for {position} and got {records.base_offset}",
            )
            self.world.history.read(wanted.base_offset, wanted.values, self.now)
            position = max(position, records.next_offset)
        self.position = position


class Linearizer(Client):
    """Asks for the end of the log, as it is at this moment or later."""

    async def run(self) -> None:
        while not self.world.is_over:
            asked = self.now
            acknowledged = self.world.next_acknowledged
            try:
                end = await self.call(self.node, _end)
            except (Lost, ProglogError):
                self.look_elsewhere()
            else:
                require(
                    end >= acknowledged,
                    "read your writes",
                    f"{self.node.name} says {end} is next, {acknowledged - 1} was acknowledged",
                )
                self.world.history.found_end(end, asked)
            await self.pause(self.world.settings.pause_seconds * 3)


async def _end(replica: Replica) -> int:
    await replica.barrier()
    return replica.next_offset
