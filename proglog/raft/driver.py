"""The driver: does what the core decides, with the log, the disk and the peers.

Every method that changes anything runs to its end on the loop without waiting. Inputs only mark
that there is something to do; `_pump`, once for each turn of the loop, takes the core's effects one
`Ready` after the other and does them in the order that DESIGN.md gives.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import NamedTuple, Protocol

from proglog import batch as batches
from proglog import limits
from proglog.aio.news import News
from proglog.batch import HEADER_BYTES, BatchHeader, Body, Buffer, Kind, ProposedBatch
from proglog.errors import DiskFull, Overloaded
from proglog.log.format import Tip
from proglog.log.log import Log
from proglog.log.snapshot import Snapshot as LogSnapshot
from proglog.ports import Clock
from proglog.raft.configuration import Change, Configuration
from proglog.raft.core import Raft
from proglog.raft.hard_state import HardStateFile
from proglog.raft.messages import (
    AppendRequest,
    Entry,
    HardState,
    Heartbeat,
    InstallSnapshot,
    Message,
    ReadResult,
    Ready,
    SoftState,
)

_EMPTY = Body(0, 0, 0, 0, b"")


class ReceivedBatch(NamedTuple):
    """A batch from a peer, its header and checksums checked."""

    header: BatchHeader
    data: Buffer
    """The whole batch, header included."""


class DriverEvents(Protocol):
    """What the driver tells the replica, on the loop, in the order in which it happens."""

    def committed(self, index: int) -> None:
        """Batches up to `index` are committed and in the log."""

    def reads_confirmed(self, reads: Sequence[ReadResult]) -> None: ...

    def leadership_changed(self, state: SoftState) -> None: ...

    def configured(self, configuration: Configuration) -> None: ...

    def installed(self, snapshot: LogSnapshot) -> None:
        """A snapshot has replaced the log."""

    def is_missed(self, sender: str, index: int) -> None:
        """A leader counts on this server for batches up to `index`, which it does not hold."""

    def failed(self, error: BaseException) -> None: ...


class Driver:
    """Owns the core. The replica owns this."""

    def __init__(
        self,
        *,
        raft: Raft,
        log: Log,
        hard_state: HardStateFile,
        clock: Clock,
        events: DriverEvents,
        send: Callable[[Message], None],
        tick_soon: Callable[[], None],
    ) -> None:
        """`tick_soon` is called where the next `tick` must not be one that is left out."""
        self.raft = raft
        self._log = log
        self._hard_state = hard_state
        self._clock = clock
        self._events = events
        self._send = send
        self._tick_soon = tick_soon
        self._loop = asyncio.get_running_loop()
        self._pumping = False
        self._waiting_for_disk: asyncio.Task[None] | None = None
        self._is_starved = False
        """It waits for space, perhaps for hours. Until there is some nothing that the core says can
        leave; so it is told nothing either, as if the network were down, and no time passes for it:
        else answers and campaigns would pile up."""
        self._closed = False
        # Batches whose entries the core has and the log does not yet, by index.
        self._proposed: dict[int, ProposedBatch | Body] = {}
        self._received: dict[tuple[int, int], ReceivedBatch] = {}
        self._snapshots: dict[int, LogSnapshot] = {}
        self._stamps: dict[int, int] = {}
        """The times of those among them that were given one."""
        self.pending_bytes = 0
        """Size of the proposed batches that are not in the log yet."""
        self._pending_records = 0
        self.taken = News()
        """Told when all that was proposed or received is in the log."""
        self._writes: deque[tuple[int, int]] = deque()
        """(write number, last index) of each log write whose durability the core waits for."""

    @property
    def term(self) -> int:
        """The newest term that this server knows of."""
        return self.raft.term

    @property
    def pending_batches(self) -> int:
        """How many batches were proposed and are not in the log yet."""
        return len(self._proposed)

    @property
    def next_offset(self) -> int:
        """Offset that the next proposed record gets, if this server leads."""
        return self._log.tip.next_offset + self._pending_records

    # --- in --------------------------------------------------------------------------------------

    def tick(self, ticks: int) -> int:
        """So many ticks have passed; after how many more it must be called again."""
        if self._is_starved:
            return 1
        self.raft.tick(ticks)
        # At once: nothing else came before it in this turn of the loop, which it would wait for.
        self._pump()
        return self.raft.quiet_ticks() + 1

    def propose(self, proposed: ProposedBatch) -> tuple[int, int]:
        """Appends a client's batch, for which there must be room: (index, term) it gets.

        Raises what `Raft.propose` does; then nothing was appended.
        """
        size = HEADER_BYTES + len(proposed.body.data)
        index, term = self.raft.propose([size])
        self._pending_records += proposed.body.count
        self._hold(index, proposed, size)
        return index, term

    def propose_command(self, data: bytes, *, stamp: int | None = None) -> tuple[int, int]:
        """Appends a command batch, for which there must be room: (index, term) it gets.

        `stamp` is its time, in ms since the epoch, where that is not to be the usual one. If it is
        less than that of the batch before there must be room to begin a segment.
        """
        size = HEADER_BYTES + len(data)
        index, term = self.raft.propose([size])
        if stamp is not None:
            self._stamps[index] = stamp
        self._hold(index, batches.plain_body(data), size)
        return index, term

    def propose_change(self, change: Change) -> tuple[int, int]:
        """Appends a change of members, for which there must be room: (index, term) it gets. Raises
        as `Raft` does."""
        index, term = self.raft.propose_change(change)
        data = self.raft.configuration.encode()
        self._hold(index, batches.plain_body(data), HEADER_BYTES + len(data))
        return index, term

    def _hold(self, index: int, proposed: ProposedBatch | Body, size: int) -> None:
        """Keeps a batch until the core gives its entry back."""
        self._proposed[index] = proposed
        self.pending_bytes += size
        self.pump_soon()

    def transfer(self, uuid: str | None) -> None:
        """Begins to hand leadership over. Raises as `Raft.transfer`."""
        self.raft.transfer(uuid)
        self.pump_soon()

    def resign(self) -> None:
        """Leads no more, if it did."""
        self.raft.resign()
        self.pump_soon()

    def unreachable(self, uuid: str) -> None:
        """What was sent to a peer in bulk may be lost."""
        self.raft.unreachable(uuid)
        self.pump_soon()

    def disconnected(self, uuid: str) -> None:
        """The connection on which a peer's heartbeats came has ended."""
        self.raft.disconnected(uuid)
        self._tick_soon()

    def reconnected(self, uuid: str) -> None:
        """A peer can be told small things again."""
        self.raft.reconnected(uuid)
        self.pump_soon()

    def request_read(self, ticket: object) -> None:
        """Asks for a linearizable read; the ticket comes back by `reads_confirmed`."""
        self.raft.request_read(ticket)
        self.pump_soon()

    def compacted(self, index: int) -> None:
        """The log begins behind `index` now."""
        self.raft.compacted(index)

    def receive(self, message: Message) -> None:
        """Steps a message without batches."""
        if self._is_starved:
            return
        if isinstance(message, Heartbeat) and self.raft.is_missed_by_us(message):
            self._events.is_missed(message.sender, message.commit)
            return
        self.raft.step(message)
        self.pump_soon()

    def has_room_for(self, received: Sequence[ReceivedBatch]) -> bool:
        """Whether a leader's batches could be taken now. Control room is theirs too."""
        return not self._is_behind and self._log.has_room_for([each.header for each in received])

    @property
    def _is_behind(self) -> bool:
        """Whether effects of what came before are still to be done, which may take or give room."""
        return bool(self._received) or self._waiting_for_disk is not None

    async def make_room_for(self, received: Sequence[ReceivedBatch]) -> None:
        """Until `has_room_for`. Raises DiskFull."""
        while not self.has_room_for(received):
            if self._is_behind:
                await self.taken.wait()
            else:
                await self._log.make_room_for([each.header for each in received])

    def receive_append(self, request: AppendRequest, received: Sequence[ReceivedBatch]) -> None:
        """Steps an append with its batches. The log must have room for them."""
        if self._is_starved:
            return
        for each in received:
            self._received[each.header.index, each.header.term] = each
        self.raft.step(request._replace(entries=tuple(map(_entry, received))))
        # At once, not soon: the room that was checked is taken before anyone else asks for it.
        self._pump()

    def receive_snapshot(self, request: InstallSnapshot, snapshot: LogSnapshot) -> None:
        """Steps an offer of a snapshot, with the configuration in it already filled in."""
        if self._is_starved:
            return
        self._snapshots[snapshot.tip.index] = snapshot
        self.raft.step(request)
        self.pump_soon()

    def durable(self, index: int) -> None:
        """The log is durable up to `index`."""
        self._report_durable(index)
        self._pump()

    def _report_durable(self, index: int) -> None:
        number = 0
        while self._writes and self._writes[0][1] <= index:
            number = self._writes.popleft()[0]
        if number:
            self.raft.persisted(number)

    # --- effects ---------------------------------------------------------------------------------

    def pump_soon(self) -> None:
        """Takes the core's effects in this turn of the loop, after everything that came before."""
        if not self._pumping:
            self._pumping = True
            self._loop.call_soon(self._pump)

    def _pump(self) -> None:
        self._pumping = False
        try:
            self._take_effects()
        except BaseException as error:
            # A broken promise: the node must end, whatever else it does.
            self._closed = True
            self._events.failed(error)
            raise

    def _take_effects(self) -> None:
        while self._waiting_for_disk is None and not self._closed:
            ready = self.raft.ready()
            if ready is None:
                self._forget_unwanted()
                return
            self._do(ready)

    def _forget_unwanted(self) -> None:
        """The core has nothing more to say: what it did not take of the batches it never will.

        A message brings batches that are known already; a leadership that ends in the turn in which
        it proposed leaves its proposals behind.
        """
        self._snapshots.clear()
        self._received.clear()
        self._proposed.clear()
        self._stamps.clear()
        self.pending_bytes = self._pending_records = 0
        self.taken.tell()

    def _do(self, ready: Ready) -> None:
        may_do = self._has_room(ready) and self._may_cut(ready)
        if ready.hard_state is None and ready.snapshot is None and may_do:
            self._do_durable(ready, ready.messages + ready.messages_after_persist)
        else:
            for message in ready.messages:
                self._send(message)
            # Nothing that follows from a term, a vote or a snapshot may leave before it is durable;
            # the core is not asked for more until then. Rare: elections and installations, and cuts
            # further back than memory reaches.
            self._waiting_for_disk = self._loop.create_task(self._persist_first(ready))

    def _has_room(self, ready: Ready) -> bool:
        """Room for the batches of clients and of a leader was there before the core took them. But
        a new leader's no-op comes unasked: its server was fit to lead when it last looked, and may
        have taken batches since, before it was elected."""
        return not ready.entries or self._log.has_room(HEADER_BYTES)

    def _may_cut(self, ready: Ready) -> bool:
        first = ready.truncate_from
        return first is None or first > self._log.tip.index or self._log.may_cut(first - 1)

    async def _make_room(self, ready: Ready) -> None:
        """Meanwhile nobody hears of this leader, and another one may be elected."""
        while not self._has_room(ready) and not self._closed:
            await self._with_space(lambda: self._log.make_room(HEADER_BYTES))

    async def _with_space(self, work: Callable[[], Awaitable[None]]) -> bool:
        """Does it once there are space on the disk and descriptors. False: this closes, and it is
        not done."""
        while not self._closed:
            try:
                await work()
            except (DiskFull, Overloaded):
                self._is_starved = True
                await asyncio.sleep(limits.reserve_retry_seconds)
            else:
                return True
        return False

    async def _persist_first(self, ready: Ready) -> None:
        try:
            if ready.hard_state is not None:
                await self._save(ready.hard_state)
            await self._make_room(ready)
            if ready.truncate_from is not None and not self._may_cut(ready):
                last = ready.truncate_from - 1
                await self._with_space(lambda: self._log.prepare_cut(last))
            if self._closed:
                return
            self._do_durable(ready, ready.messages_after_persist)
            if ready.snapshot is not None:
                await self._install(ready.snapshot.index)
        except BaseException as error:  # noqa: BLE001  # the node ends, whatever it is
            self._closed = True
            self._events.failed(error)
        finally:
            self._waiting_for_disk = None
            self._is_starved = False
            self.pump_soon()

    async def _save(self, hard_state: HardState) -> None:
        await self._log.run_job(lambda: self._hard_state.save(hard_state), urgent=True)

    def _do_durable(self, ready: Ready, messages: list[Message]) -> None:
        if ready.truncate_from is not None:
            self._cut(ready.truncate_from)
        for entry in ready.entries:
            self._append(entry)
        # Behind the batches, which the transport attaches: they are in memory now, and both this
        # disk and the others have yet to begin.
        for message in messages:
            self._send(message)
        if ready.write:
            self._writes.append((ready.write, self._log.tip.index))
            self._report_durable(self._log.durable_index)
        if ready.configuration is not None:
            self._events.configured(ready.configuration[1])
        if ready.soft_state is not None:
            self._events.leadership_changed(ready.soft_state)
        if ready.commit is not None:
            self._log.set_commit(ready.commit)
            self._events.committed(ready.commit)
            # The followers are told by the next tick, if no append does so before.
            self._tick_soon()
        if ready.reads:
            self._events.reads_confirmed(ready.reads)

    def _cut(self, first: int) -> None:
        if first <= self._log.tip.index:
            self._log.cut_suffix(first - 1)
        # What was to be written behind the cut will never be reported durable under its old index.
        self._writes = deque((number, min(last, first - 1)) for number, last in self._writes)

    def _append(self, entry: Entry) -> None:
        received = self._received.pop((entry.index, entry.term), None)
        if received is not None:
            assert received.header.index == entry.index
            self._log.append(received.header, (received.data,))
            return
        header, packed, body = self._build(entry, self._log.tip)
        self._log.append(header, (packed, body.data))

    def _build(self, entry: Entry, tip: Tip) -> tuple[BatchHeader, bytes, Body]:
        """The batch of an entry that this server, as leader, made."""
        proposed = self._proposed.pop(entry.index, None)
        producer_id = sequence = 0
        if proposed is None:
            assert entry.size_bytes == 0, "an entry came back without the batch proposed for it"
            kind, body = Kind.NOOP, _EMPTY
        elif isinstance(proposed, ProposedBatch):
            kind, body = Kind.DATA, proposed.body
            self._pending_records -= body.count
            producer_id, sequence = proposed.producer_id, proposed.sequence
        else:
            kind = Kind.COMMAND if entry.configuration is None else Kind.CONFIGURATION
            body = proposed
        if proposed is not None:
            self.pending_bytes -= HEADER_BYTES + len(body.data)
        header, packed = batches.build(
            body,
            kind=kind,
            index=entry.index,
            term=entry.term,
            base_offset=tip.next_offset,
            timestamp=self._stamps.pop(entry.index, max(self._clock.now_ms(), tip.timestamp)),
            chain_crc=tip.chain,
            producer_id=producer_id,
            sequence=sequence,
        )
        return header, packed, body

    async def _install(self, index: int) -> None:
        snapshot = self._snapshots.pop(index)
        # Until it is done this server takes part in nothing: without the snapshot it is of no use,
        # and a vote can wait.
        if not await self._with_space(lambda: self._log.reset(snapshot)):
            return
        self._writes.clear()
        self._events.installed(snapshot)
        self.raft.snapshot_installed(index, snapshot.tip.term)

    # --- end -------------------------------------------------------------------------------------

    async def close(self) -> None:
        """Stops doing anything. What was handed to the log's writer is still written."""
        self._closed = True
        if self._waiting_for_disk is not None:
            await asyncio.wait([self._waiting_for_disk])


def _entry(received: ReceivedBatch) -> Entry:
    header, data = received
    configuration = None
    if header.kind == Kind.CONFIGURATION:
        configuration = Configuration.decode(bytes(memoryview(data)[HEADER_BYTES:]))
    return Entry(header.index, header.term, header.size, configuration)
