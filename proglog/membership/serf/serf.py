"""Serf on top of SWIM: the whole core, seen from outside.

Sans-io: time, packets and replies are given to it, and what it wants done comes out of `take` as a
list of effects (`outbox.py`). Every method that takes `now` may produce some. Nothing here waits.
"""

from __future__ import annotations

import enum
import math
import random
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from proglog.membership import limits
from proglog.membership.address import Address
from proglog.membership.codec import packets
from proglog.membership.codec.keyring import Keyring
from proglog.membership.codec.serf_messages import (
    SERF_BODIES,
    JoinIntent,
    LeaveIntent,
    QueryMessage,
    QueryResponse,
    SerfState,
    SerfType,
    UserEventMessage,
    decode_serf,
    encode_serf,
    encode_tags,
)
from proglog.membership.codec.snapshot import Snapshot
from proglog.membership.codec.streams import StreamMessage
from proglog.membership.codec.wire import decode
from proglog.membership.config import CLUSTER_TAG, Timing
from proglog.membership.errors import MalformedMessage, NotRunning, TagsTooLarge
from proglog.membership.events import (
    Member,
    NameConflict,
    NodeRefused,
    Query,
    QueryResult,
    Status,
)
from proglog.membership.serf.finder import Finder
from proglog.membership.serf.members import MemberRecord, MemberTable, readable_tags
from proglog.membership.serf.queries import Queries
from proglog.membership.serf.reported import Reported
from proglog.membership.serf.user_events import UserEvents
from proglog.membership.swim.broadcast import BroadcastQueue
from proglog.membership.swim.nodes import Node
from proglog.membership.swim.outbox import Effect, Outbox
from proglog.membership.swim.swim import Swim
from proglog.membership.swim.timers import Timers

_CONFLICT_SILENCE_S = 10.0


class Phase(enum.Enum):
    """Where this node stands in its own life."""

    RUNNING = "running"
    LEAVING = "leaving"
    LEFT = "left"


@dataclass(frozen=True, slots=True, kw_only=True)
class CoreStatistics:
    """Counters and depths of the core; see `Membership.statistics`."""

    members: dict[Status, int]
    nodes: int
    health: int
    """Lifeguard's score of this node: 0 is healthy."""
    member_time: int
    event_time: int
    query_time: int
    broadcasts: int
    """Messages waiting to be gossiped, over all queues."""
    broadcasts_dropped: int
    exchanges: int
    probes_failed: int
    conflicts: int
    ignored: dict[str, int]
    """Messages that were not acted upon, by reason."""
    encrypted: bool


class Serf:
    """One node of a Serf cluster."""

    def __init__(
        self,
        *,
        name: str,
        address: Address,
        tags: dict[str, str],
        timing: Timing,
        keyring: Keyring,
        rng: random.Random,
        now: float,
        past: Snapshot | None = None,
    ) -> None:
        self.name = name
        self.address = address
        self.tags = dict(tags)
        self.phase = Phase.RUNNING
        self._timing = timing
        self._keyring = keyring
        self._rng = rng
        self._timers = Timers(now)
        self._outbox = Outbox()
        self._intents = BroadcastQueue(limits.broadcasts_max)
        self._table = MemberTable(name, timing, self._timers, self._outbox)
        self._events = UserEvents(self._outbox)
        self._queries = Queries(self, keyring, self._timers, self._outbox, rng)
        self._conflicts = 0
        self._conflict_said: Reported[Address] = Reported(_CONFLICT_SILENCE_S)
        self._refused_said: Reported[tuple[str, Address]] = Reported(math.inf)
        self._on_left: list[Callable[[], None]] = []
        self._swim = Swim(
            name=name,
            address=address,
            meta=encode_tags(tags),
            timing=timing,
            keyring=keyring,
            timers=self._timers,
            outbox=self._outbox,
            rng=rng,
            delegate=self,
            incarnation=1 if past is None else past.incarnation,
        )
        self._finder = Finder(self, self._swim, timing, self._timers, rng)
        if past is not None:
            self._recall(past)
        self._table.node_joined(self._swim.local)

    def _recall(self, past: Snapshot) -> None:
        """Goes on from the Lamport times of a former life: what was told then is not told again."""
        self._table.clock.witness(past.member_time)
        self._events.clock.witness(past.event_time)
        self._queries.clock.witness(past.query_time)
        self._events.ignore_before(past.event_time)
        self._queries.ignore_before(past.query_time)
        self._finder.former = past.peers

    # --- driving ---------------------------------------------------------------------------------

    @property
    def next_deadline(self) -> float | None:
        """When `tick` has something to do."""
        return self._timers.next_deadline

    @property
    def incarnation(self) -> int:
        """Of this node, as it stands: what is saved must be past it."""
        return self._swim.local.incarnation

    def take(self) -> list[Effect]:
        """What is to be done, in this order; each effect is given out once."""
        return self._outbox.take()

    def start(self, now: float) -> None:
        self._timers.observe(now)
        self._swim.start()
        timing = self._timing
        self._timers.after(timing.reap_interval_s, self._reap)
        self._finder.start()

    def tick(self, now: float) -> None:
        self._timers.fire(now)

    def receive_packet(self, data: bytes, source: Address, now: float) -> None:
        """One datagram. What is malformed or unknown is counted, and otherwise ignored."""
        self._timers.observe(now)
        try:
            messages = packets.open_packet(data, self._keyring)
        except MalformedMessage:
            self._swim.ignored["malformed packet"] += 1
            return
        for message in messages:
            try:
                self._swim.receive(message, source)
            except MalformedMessage:
                self._swim.ignored["malformed message"] += 1

    def serve(self, message: StreamMessage, now: float) -> StreamMessage | None:
        """The answer to a message on a connection that a peer opened. Raises MalformedMessage."""
        self._timers.observe(now)
        return self._swim.serve(message)

    def finish_exchange(self, number: int, reply: StreamMessage | None, now: float) -> str | None:
        """What came of an exchange that was asked for. Returns why it failed, or None."""
        self._timers.observe(now)
        try:
            return self._outbox.finish(number, reply)
        except MalformedMessage as error:
            self._swim.ignored["malformed reply"] += 1
            return str(error)

    # --- what users do ---------------------------------------------------------------------------

    def members(self) -> list[Member]:
        return self._table.members()

    def join(self, address: Address, now: float) -> int:
        """Begins to join by way of the node at this address; returns the exchange's id. The past
        user events of that cluster are not told here."""
        self._require_running()
        self._timers.observe(now)
        return self._swim.synchronise_with(address, join=True, joining=True)

    def announce_join(self, now: float) -> None:
        """After a join: says at which Lamport time this node is a member, so that intents to leave
        from an earlier life are known to be old."""
        self._timers.observe(now)
        self._announce()

    def set_tags(self, tags: dict[str, str], now: float) -> None:
        """Raises TagsTooLarge."""
        self._require_running()
        meta = encode_tags(tags)
        if len(meta) > limits.meta_bytes_max:
            raise TagsTooLarge(
                f"tags take {len(meta)} bytes, more than {limits.meta_bytes_max}",
                bytes=len(meta),
                bytes_max=limits.meta_bytes_max,
            )
        self._timers.observe(now)
        self.tags = dict(tags)
        self._swim.update_meta(meta)

    def user_event(self, name: str, payload: bytes, now: float) -> None:
        """Raises EventTooLarge."""
        self._require_running()
        self._timers.observe(now)
        self._events.fire(name, payload)

    def query(
        self,
        name: str,
        payload: bytes,
        timeout_s: float | None,
        on_done: Callable[[QueryResult], None],
        now: float,
    ) -> None:
        """Raises EventTooLarge."""
        self._require_running()
        self._timers.observe(now)
        self._queries.ask(name, payload, timeout_s or self._query_timeout_s(), on_done)

    def _query_timeout_s(self) -> float:
        scale = math.ceil(math.log10(len(self._swim.nodes) + 1))
        return self._timing.gossip_interval_s * self._timing.query_timeout_multiplier * scale

    def respond(self, query: Query, payload: bytes, now: float) -> None:
        """Raises EventTooLarge."""
        self._timers.observe(now)
        self._queries.respond(query, payload)

    def force_leave(self, name: str, now: float, *, prune: bool) -> None:
        """Declares a failed member to have left; `prune` takes it off the list as well. One that is
        alive objects."""
        self._require_running()
        self._timers.observe(now)
        clock = self._table.clock
        # One later than need be: a peer that has heard from us of an earlier leave of this member
        # has made up a time for it, one past ours (`_merge_intents`), which this one must beat.
        clock.advance()
        intent = LeaveIntent(ltime=clock.time, node=name, prune=prune)
        clock.advance()
        self._on_leave_intent(intent, encode_serf(intent))

    def _require_running(self) -> None:
        if self.phase is not Phase.RUNNING:
            raise NotRunning(f"node {self.name} is {self.phase.value}")

    # --- leaving ---------------------------------------------------------------------------------
    #
    # Three steps, each when the one before is done or has taken too long: gossip the intent, so
    # that everybody expects us to go; gossip that we are gone; stay a little, to answer the probes
    # of those whom the news has not reached. Without the first it would look like a failure.

    def leave(self, on_left: Callable[[], None], now: float) -> None:
        """Leaves; `on_left` is called when that is done."""
        self._timers.observe(now)
        if self.phase is Phase.LEFT:
            on_left()
            return
        self._on_left.append(on_left)
        if self.phase is Phase.LEAVING:
            return
        self.phase = Phase.LEAVING
        clock = self._table.clock
        intent = LeaveIntent(ltime=clock.time, node=self.name)
        clock.advance()
        self._table.on_leave_intent(intent)
        step = self._once(self._declare_left)
        if any(not record.gone for record in self._table if record.name != self.name):
            self._intents.add(encode_serf(intent), on_done=step)
            self._timers.after(self._timing.broadcast_timeout_s, step)
        else:
            step()

    def _declare_left(self) -> None:
        step = self._once(self._linger)
        if self._swim.leave(step):
            self._timers.after(self._timing.broadcast_timeout_s, step)
        else:
            self._finish_leave()

    def _linger(self) -> None:
        self._timers.after(self._timing.leave_propagate_s, self._finish_leave)

    def _finish_leave(self) -> None:
        self.phase = Phase.LEFT
        waiting, self._on_left = self._on_left, []
        for on_left in waiting:
            on_left()

    def _once(self, action: Callable[[], None]) -> Callable[[], None]:
        """`action` by whichever comes first, and never again."""
        done = False

        def step() -> None:
            nonlocal done
            if not done:
                done = True
                action()

        return step

    # --- periodic duties -------------------------------------------------------------------------

    def _reap(self) -> None:
        self._timers.after(self._timing.reap_interval_s, self._reap)
        self._finder.remember()
        self._table.reap()

    # --- called by SWIM --------------------------------------------------------------------------

    def node_joined(self, node: Node) -> None:
        record = self._table.get(node.name)
        if record is not None and record.heard and record.status is Status.FAILED:
            self._finder.returned()
        self._table.node_joined(node)

    def node_updated(self, node: Node) -> None:
        self._table.node_updated(node)

    def node_gone(self, node: Node) -> None:
        self._table.node_gone(node)

    def node_heard(self, node: Node) -> None:
        self._table.node_heard(node)

    def node_dropped(self, node: Node) -> None:
        self._table.node_dropped(node)

    def node_conflict(self, node: Node, other: Address) -> None:
        """Reported, and nothing more: who is right is decided elsewhere, by identity."""
        self._conflicts += 1
        record = self._table.get(node.name)
        # The claim is repeated with every gossip; once in a while is enough.
        if record is not None and self._conflict_said.is_due(other, self._timers.now):
            self._outbox.report(NameConflict(record.view(), other.host, other.port))

    def why_refused(self, meta: bytes) -> str:
        ours, theirs = self.tags.get(CLUSTER_TAG), readable_tags(meta).get(CLUSTER_TAG)
        if None in {ours, theirs} or ours == theirs:
            return ""
        return f"it is of cluster {theirs!r}, not {ours!r}"

    def node_refused(self, name: str, address: Address, why: str) -> None:
        if self._refused_said.is_due((name, address), self._timers.now):
            self._outbox.report(NodeRefused(name, address, why))

    def user_broadcasts(self, space: int, overhead: int, limit: int) -> list[bytes]:
        """Intents first, then queries, then events."""
        taken: list[bytes] = []
        for queue in (self._intents, self._queries.queue, self._events.queue):
            messages = queue.take(space, overhead, limit)
            space -= sum(len(message) + overhead for message in messages)
            taken += messages
        return taken

    def user_message(self, payload: bytes) -> None:
        if payload[:1] == bytes([SerfType.RELAY]):
            self._queries.on_relay(payload[1:])
            return
        body = SERF_BODIES.get(payload[0]) if payload else None  # type: ignore[call-overload]  # an int finds its IntEnum
        if body is None:
            self._swim.ignored["unknown Serf message type"] += 1
            return
        message = decode(body, payload[1:])
        if not self._believes(message):
            self._swim.ignored["Lamport time far ahead"] += 1
            return
        match message:
            case LeaveIntent() as leave:
                self._on_leave_intent(leave, payload)
            case JoinIntent() as join:
                if self._table.on_join_intent(join):
                    self._intents.add(payload)
            case UserEventMessage() as event:
                self._events.on_event(event, payload)
            case QueryMessage() as query:
                self._queries.on_query(query, payload)
            case QueryResponse() as response:
                self._queries.on_response(response)
            case _:
                self._swim.ignored["Serf message out of place"] += 1

    def _believes(self, message: object) -> bool:
        """Whether a message comes from a time that can be."""
        match message:
            case JoinIntent() | LeaveIntent():
                return self._table.clock.believes(message.ltime)
            case UserEventMessage():
                return self._events.clock.believes(message.ltime)
            case QueryMessage():
                return self._queries.clock.believes(message.ltime)
        return True

    def _on_leave_intent(self, intent: LeaveIntent, payload: bytes) -> None:
        if intent.node == self.name and self.phase is Phase.RUNNING:
            self._deny_leave(intent)
        elif self._table.on_leave_intent(intent):
            self._intents.add(payload)

    def _deny_leave(self, intent: LeaveIntent) -> None:
        """We do not mean to leave: the intent is of a former life, or somebody else's idea."""
        # At equal times as well: to some the intent has come first, and stands.
        if intent.ltime >= self._own_record.status_ltime:
            self._outbid(intent.ltime)

    def _outbid(self, ltime: int) -> None:
        """Says that we are a member, later than this time."""
        self._table.clock.witness(ltime)
        self._announce()

    @property
    def _own_record(self) -> MemberRecord:
        record = self._table.get(self.name)
        assert record is not None, "a node always lists itself"
        return record

    def _announce(self) -> None:
        intent = JoinIntent(ltime=self._table.clock.time, node=self.name)
        self._table.on_join_intent(intent)
        self._intents.add(encode_serf(intent))

    def local_state(self) -> bytes:
        """Serf's half of a push/pull."""
        state = SerfState(
            ltime=self._table.clock.time,
            status_ltimes={record.name: record.status_ltime for record in self._table},
            left=tuple(record.name for record in self._table if record.status is Status.LEFT),
            event_ltime=self._events.clock.time,
            events=self._events.state(),
            query_ltime=self._queries.clock.time,
        )
        return encode_serf(state)

    def merge_state(self, state: bytes, *, asked: bool, joining: bool) -> None:
        remote = decode_serf(SerfType.PUSH_PULL, state)
        assert isinstance(remote, SerfState)
        events = [group.ltime for group in remote.events if group is not None]
        newest = (
            (self._table.clock, max(remote.ltime, *remote.status_ltimes.values(), 0)),
            (self._events.clock, max(remote.event_ltime, *events, 0)),
            (self._queries.clock, remote.query_ltime),
        )
        ahead_max = limits.lamport_ahead_asked_max if asked else limits.lamport_ahead_max
        if not all(clock.believes(ltime, ahead_max) for clock, ltime in newest):
            # SWIM's half counts all the same: who is there is known without any of this.
            self._swim.ignored["Lamport time far ahead"] += 1
            return
        for clock, ltime in (
            (self._table.clock, remote.ltime),
            (self._events.clock, remote.event_ltime),
            (self._queries.clock, remote.query_ltime),
        ):
            # A time that no message has carried yet.
            clock.witness(max(0, ltime - 1))
        self._merge_intents(remote)
        if joining:
            self._events.ignore_before(remote.event_ltime)
        self._events.merge(remote.events)

    def _merge_intents(self, remote: SerfState) -> None:
        """What the peer knows of members, as the intents that it does not have any more. Not passed
        on: others synchronise too."""
        left = set(remote.left)
        for name in remote.left:
            # The time of the leave itself is not told. It came after the status time of the member
            # before, or it would not have counted.
            ltime = min(remote.status_ltimes.get(name, 0) + 1, limits.lamport_time_max)
            intent = LeaveIntent(ltime=ltime, node=name)
            record = self._table.get(name)
            if name == self.name and self.phase is Phase.RUNNING:
                self._deny_leave(intent)
            elif record is not None and record.gone:
                self._table.on_leave_intent(intent)
            # SWIM's half of the same push/pull has been merged before. If the member lives for us
            # all the same, it has returned since, and the peer does not know yet; a made-up time
            # might even equal that of its return, and then neither would override the other.
        for name, ltime in remote.status_ltimes.items():
            if name == self.name and self.phase is Phase.RUNNING:
                # 1. We announce to leave, at time 9, which reaches B alone, and are killed. 2. We
                # start again, join by way of C, who knows of time 5, and announce that, at 6.
                # 3. To B we are leaving for ever, unless we say so again, at 10.
                if ltime > self._own_record.status_ltime:
                    self._outbid(ltime)
            elif name not in left:
                self._table.on_join_intent(JoinIntent(ltime=ltime, node=name))

    # --- called by the finder and by queries ------------------------------------------------------

    def rejoined(self) -> None:
        if self.phase is Phase.RUNNING:
            self._announce()

    @property
    def is_running(self) -> bool:
        return self.phase is Phase.RUNNING

    def member(self, name: str) -> MemberRecord | None:
        return self._table.get(name)

    def records(self) -> Iterable[MemberRecord]:
        return self._table

    def send_to(self, address: Address, payload: bytes) -> None:
        self._swim.send_user(address, payload)

    # --- introspection ---------------------------------------------------------------------------

    def snapshot(self) -> Snapshot:
        """What a later life of this node should remember."""
        incarnation = self._swim.local.incarnation + limits.incarnation_reserved
        return Snapshot(
            member_time=self._table.clock.time,
            event_time=self._events.clock.time,
            query_time=self._queries.clock.time,
            incarnation=min(incarnation, limits.incarnation_max),
            peers=() if self.phase is Phase.LEFT else self._finder.known(),
        )

    def statistics(self) -> CoreStatistics:
        queues = (self._swim.broadcasts, self._intents, self._queries.queue, self._events.queue)
        statuses = Counter(record.status for record in self._table)
        return CoreStatistics(
            members={status: statuses[status] for status in Status},
            nodes=len(self._swim.nodes),
            health=self._swim.health,
            member_time=self._table.clock.time,
            event_time=self._events.clock.time,
            query_time=self._queries.clock.time,
            broadcasts=sum(map(len, queues)),
            broadcasts_dropped=sum(queue.dropped for queue in queues),
            exchanges=self._outbox.exchanges,
            probes_failed=self._swim.probes_failed,
            conflicts=self._conflicts,
            ignored=dict(self._swim.ignored),
            encrypted=bool(self._keyring),
        )
