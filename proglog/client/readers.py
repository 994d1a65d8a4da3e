"""What the consumers of one log share: streams of the server, and the newest of what came on them.

A consumer takes its records from whatever stream has them. So all who follow the end of a log share
one stream, whose batches are decoded once, and one that has fallen behind reads on its own until it
has caught up. A stream goes on as its quickest consumer takes; a slow one falls out of the window
and delays nobody.
"""

from __future__ import annotations

import asyncio
import random
from collections import deque
from collections.abc import Sequence
from contextlib import aclosing

from proglog import limits
from proglog.batch import RecordBatch
from proglog.client.backend import Backend, Start, log_closed
from proglog.client.reading import Contract, Piece, Reading
from proglog.client.session import Session
from proglog.errors import Overloaded
from proglog.net.dialling import forget_failure


class Node:
    """A piece of a stream. Who holds one gets at all that came after it."""

    __slots__ = ("batches", "begins", "is_dropped", "is_taken", "next", "size")

    def __init__(self, piece: Piece) -> None:
        self.begins = piece.begins
        self.batches: Sequence[RecordBatch] = piece.batches
        self.size = piece.size + limits.client_piece_bytes
        self.next: Node | None = None
        self.is_taken = False
        self.is_dropped = False
        """Whether what came after it is not to be had here any more."""


class Reader:
    """One stream, and a window of what came on it.

    `start` is where it began, and `beginning` what stands there, if it is still in the window.
    `next_offset` is where the stream is, None until that is known. Once it `is_over`, `error` says
    why, or `has_ended` that this is the end; where neither does, it may go on elsewhere.
    """

    def __init__(
        self, readers: Readers, reading: Reading, start: Start, *, is_shared: bool
    ) -> None:
        self.start = start
        self.is_shared = is_shared
        self.is_over = False
        self.has_ended = False
        self.error: BaseException | None = None
        self.users = 0
        self._readers = readers
        self._reading = reading
        self._head = self.newest = Node(Piece(0, [], 0))
        self.beginning: Node | None = self._head
        self._oldest: int | None = None
        """Offset of the first record after the head, None until that is known."""
        self._behind = 0
        """Bytes from the head on that somebody has taken."""
        self._ahead = 0
        """And those that nobody has taken yet."""
        self._loop = asyncio.get_running_loop()
        self.taken_at = self._loop.time()
        self._room = asyncio.Event()
        self._waiters: dict[asyncio.Future[None], None] = {}
        self._waking: deque[asyncio.Future[None]] = deque()
        self.task = self._loop.create_task(self._run(), name="proglog-reader")
        self.task.add_done_callback(self._ended)

    @property
    def next_offset(self) -> int | None:
        """Where the stream is."""
        return self._reading.position

    @property
    def is_stalled(self) -> bool:
        """Whether nobody takes what is there."""
        return self._ahead > 0

    def node_before(self, position: int) -> Node | None:
        """What is followed by the record at `position`, or will be; None if that is not here."""
        if self.next_offset is None or self.is_over:
            return None
        if position == self.next_offset:
            return self.newest
        if self._oldest is None or not self._oldest <= position < self.next_offset:
            return None
        node = self._head
        while (following := node.next) is not None:
            if following.batches and following.batches[-1].next_offset > position:
                return node if following.batches[0].base_offset <= position else None
            node = following
        return None

    def take(self, node: Node) -> None:
        """Somebody takes what is in a node."""
        self.taken_at = self._loop.time()
        if node.is_taken:
            return
        node.is_taken = True
        self._ahead -= node.size
        self._behind += node.size
        while self._behind > limits.client_window_bytes_max:
            self._drop()
        self._room.set()

    def _drop(self) -> None:
        """Forgets the oldest node: who has not taken it by now reads it elsewhere."""
        oldest = self._head.next
        assert oldest is not None, "it is counted"
        self._head.is_dropped, self._head.next = True, None
        self._head = oldest
        self.beginning = None
        self._behind -= oldest.size
        if oldest.batches:
            self._oldest = oldest.batches[-1].next_offset

    async def arrival(self) -> None:
        """Waits until something comes, or the stream is over."""
        waiter: asyncio.Future[None] = self._loop.create_future()
        self._waiters[waiter] = None
        try:
            await waiter
        finally:
            self._waiters.pop(waiter, None)

    def leave(self) -> None:
        """Somebody reads here no more."""
        self.users -= 1
        if self.users == 0:
            self.evict()

    def evict(self) -> None:
        """Ends it; who reads here finds another."""
        self.is_over = True
        self.task.cancel()

    async def _run(self) -> None:
        async with aclosing(self._reading.pieces()) as pieces:
            async for piece in pieces:
                node = Node(piece)
                if self._oldest is None:
                    self._oldest = piece.begins
                self.newest.next = node
                self.newest = node
                self._ahead += node.size
                self._wake()
                while self._ahead >= limits.client_prefetch_bytes_max:
                    self._room.clear()
                    await self._room.wait()
            self.has_ended = True

    def _ended(self, task: asyncio.Task[None]) -> None:
        self.is_over = True
        if not task.cancelled() and (error := task.exception()) is not None:
            self.error = error
        self._wake()
        self._readers.over(self)

    def _wake(self) -> None:
        """Wakes all who wait by now: some at once and the others in later turns of the loop, so
        that none takes long."""
        is_under_way = bool(self._waking)
        self._waking.extend(self._waiters)
        self._waiters.clear()
        if not is_under_way:
            self._wake_some()

    def _wake_some(self) -> None:
        for _ in range(min(len(self._waking), limits.client_wake_consumers_max)):
            waiter = self._waking.popleft()
            if not waiter.done():
                waiter.set_result(None)
        if self._waking:
            self._loop.call_soon(self._wake_some)


class Readers:
    """The streams of one log, at most `client_readers_max`."""

    def __init__(
        self,
        backend: Backend,
        *,
        timeout_seconds: float,
        chance: random.Random,
        session: Session,
    ) -> None:
        self._session = session
        self._backend = backend
        self._timeout = timeout_seconds
        self._chance = chance
        self._loop = asyncio.get_running_loop()
        self._open: dict[Reader, None] = {}
        self._granted = 0
        self._turns: deque[asyncio.Future[None]] = deque()
        self._evicting: asyncio.TimerHandle | None = None
        self._end: asyncio.Task[int] | None = None
        self._end_next: asyncio.Task[int] | None = None
        self._closed = False

    def find(self, position: int) -> tuple[Reader, Node] | None:
        """A shared stream on which the record at `position` is or will come: the one that is
        farthest, of those the oldest, so that all who follow the end meet on one."""
        found: tuple[Reader, Node] | None = None
        farthest = -1
        for reader in self._open:
            node = reader.node_before(position) if reader.is_shared else None
            if node is not None and (reader.next_offset or 0) > farthest:
                found, farthest = (reader, node), reader.next_offset or 0
        return found

    def find_start(self, start: Start) -> tuple[Reader, Node] | None:
        """A shared stream that began at `start`, where its beginning is still there."""
        for reader in self._open:
            beginning = reader.beginning
            if reader.is_shared and reader.start == start and beginning and not reader.is_over:
                return reader, beginning
        return None

    async def open(self, start: Start, contract: Contract, *, is_resumed: bool) -> Reader:
        """A stream of its own, in its turn. Raises Overloaded if that does not come in time."""
        try:
            async with asyncio.timeout(self._timeout):
                await self._turn()
        except TimeoutError:
            raise Overloaded(
                f"{limits.client_readers_max} consumers of this log read at as many places: end"
                " some, or read in several processes"
            ) from None
        if self._closed:
            self._release()
            raise log_closed()
        reading = self._reading(start, contract, is_resumed=is_resumed)
        reader = Reader(self, reading, start, is_shared=contract == Contract(follow=True))
        self._open[reader] = None
        return reader

    def _reading(self, start: Start, contract: Contract, *, is_resumed: bool) -> Reading:
        return Reading(
            self._backend,
            start,
            contract,
            is_resumed=is_resumed,
            timeout_seconds=self._timeout,
            chance=self._chance,
        )

    async def end(self, contract: Contract) -> int:
        """The offset after the last record, as of now. Raises ProglogError.

        Whoever asks meanwhile shares the next answer, to a question that is asked after theirs.
        """
        self._check_open()
        if contract.linearizable or contract.after is not None:
            return await self._ask_for_end(contract)
        if self._end is None or self._end.done():
            asking = self._end = self._loop.create_task(self._ask_for_end(contract))
            asking.add_done_callback(forget_failure)
        else:
            if self._end_next is None or self._end_next.done():
                self._end_next = self._loop.create_task(self._end_after(self._end, contract))
                self._end_next.add_done_callback(forget_failure)
            asking = self._end_next
        try:
            return await asyncio.shield(asking)
        except asyncio.CancelledError:
            if asking.cancelled():
                raise log_closed() from None
            raise

    async def _end_after(self, other: asyncio.Task[int], contract: Contract) -> int:
        await asyncio.wait([other])
        self._end, self._end_next = self._end_next, None
        return await self._ask_for_end(contract)

    async def _ask_for_end(self, contract: Contract) -> int:
        reading = self._reading("latest", contract._replace(follow=False), is_resumed=False)
        async with aclosing(reading.pieces()) as pieces:
            async for _ in pieces:
                break
        assert reading.position is not None, "the first answer tells it"
        self._session.reaches(reading.position)
        return reading.position

    def over(self, reader: Reader) -> None:
        """A stream has ended, and somebody else may open one."""
        self._open.pop(reader, None)
        self._release()

    async def close(self) -> None:
        """Ends all streams; who waits for a record hears that the log is closed."""
        tasks = self.abort()
        if tasks:
            await asyncio.wait(tasks)

    def abort(self) -> list[asyncio.Task[object]]:
        """As `close`, where nobody can wait for it."""
        self._closed = True
        if self._evicting is not None:
            self._evicting.cancel()
        tasks: list[asyncio.Task[object]] = [reader.task for reader in self._open]
        tasks += [task for task in (self._end, self._end_next) if task is not None]
        for task in tasks:
            task.cancel()
        while self._turns:
            turn = self._turns.popleft()
            if not turn.done():
                self._granted += 1
                turn.set_result(None)
        return tasks

    def _check_open(self) -> None:
        if self._closed:
            raise log_closed()

    async def _turn(self) -> None:
        """Waits for the right to open one stream, in the order of asking."""
        if self._granted < limits.client_readers_max and not self._turns:
            self._granted += 1
            return
        turn: asyncio.Future[None] = self._loop.create_future()
        self._turns.append(turn)
        self._evict_soon()
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self._release()  # Granted and cancelled in the same turn of the loop.
            raise

    def _release(self) -> None:
        self._granted -= 1
        while self._turns and self._granted < limits.client_readers_max:
            turn = self._turns.popleft()
            if not turn.done():
                self._granted += 1
                turn.set_result(None)

    def _evict_soon(self) -> None:
        if self._evicting is None and self._turns and not self._closed:
            self._evicting = self._loop.call_later(limits.client_stalled_seconds_max, self._evict)

    def _evict(self) -> None:
        """Drops what nobody takes, while others wait: its consumers know where they are."""
        self._evicting = None
        before = self._loop.time() - limits.client_stalled_seconds_max
        stalled = [each for each in self._open if each.is_stalled and each.taken_at <= before]
        for reader in sorted(stalled, key=lambda each: each.taken_at)[: len(self._turns)]:
            reader.evict()
        self._evict_soon()
