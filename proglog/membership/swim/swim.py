"""SWIM: who is there, agreed by gossip. All that changes a node's state is in this file.

Four states, ALIVE -> SUSPECT -> DEAD and ALIVE -> LEFT, and one rule that makes every node reach
the same one in whatever order the news arrive: news about a node carry its *incarnation*, which
only the node itself raises. Of two messages about one node the higher incarnation wins; of equal
ones dead beats suspect beats alive. A node that hears ill of itself raises its incarnation above
the accusation and says that it is alive: that, and nothing else, overrides the accusation.

Sources: Das, Gupta, Motivala, "SWIM", 2002; Dadgar et al., "Lifeguard", 2018; the behaviour of
HashiCorp's memberlist 0.5.
"""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Callable

from proglog.membership import limits
from proglog.membership.address import Address
from proglog.membership.codec import packets
from proglog.membership.codec.keyring import Keyring
from proglog.membership.codec.messages import (
    BODIES,
    OURS,
    Ack,
    Alive,
    Dead,
    IndirectPing,
    Nack,
    NodeState,
    Ping,
    RemoteError,
    State,
    Suspect,
    Type,
    encode_message,
)
from proglog.membership.codec.streams import PushPull, StreamMessage, UserMessage
from proglog.membership.codec.wire import decode
from proglog.membership.config import Timing
from proglog.membership.errors import MalformedMessage
from proglog.membership.swim.broadcast import BroadcastQueue, retransmit_limit
from proglog.membership.swim.delegate import Delegate
from proglog.membership.swim.nodes import Node, NodeTable
from proglog.membership.swim.outbox import Outbox
from proglog.membership.swim.probe import Prober
from proglog.membership.swim.suspicion import Suspicion, begun
from proglog.membership.swim.timers import Timer, Timers

_USER = bytes([Type.USER])
_PUSH_PULL_SCALE_NODES = 32
_SMALLEST_BROADCAST_BYTES = 16


class Swim:
    """One node's view of the cluster, and its duties towards the others."""

    def __init__(
        self,
        *,
        name: str,
        address: Address,
        meta: bytes,
        timing: Timing,
        keyring: Keyring,
        timers: Timers,
        outbox: Outbox,
        rng: random.Random,
        delegate: Delegate,
        incarnation: int = 1,
    ) -> None:
        self._timing = timing
        self._keyring = keyring
        self._timers = timers
        self._outbox = outbox
        self._rng = rng
        self._delegate = delegate
        self._leaving = False
        self._syncing = False
        self._asked: dict[str, float] = {}
        """When a node was asked for its incarnation, by name."""
        self._suspicions: dict[str, tuple[Suspicion, Timer]] = {}
        self.broadcasts = BroadcastQueue(limits.broadcasts_max)
        self.ignored: Counter[str] = Counter()
        self.nodes = NodeTable(rng)
        self.local = Node(
            name=name,
            address=address,
            meta=meta,
            versions=OURS,
            incarnation=incarnation,
            state=State.ALIVE,
            changed=timers.now,
        )
        self.nodes.add(self.local)
        self._prober = Prober(self, self.nodes, timing, timers, outbox, rng)

    @property
    def health(self) -> int:
        """Lifeguard's score: 0 is healthy."""
        return self._prober.awareness.score

    @property
    def probes_failed(self) -> int:
        return self._prober.probes_failed

    # --- periodic duties -------------------------------------------------------------------------

    def start(self) -> None:
        """Begins to probe, gossip and synchronise, each at a random moment of its first interval:
        nodes started together must not act together for ever."""
        timing = self._timing
        self._timers.after(self._rng.random() * timing.probe_interval_s, self._probe)
        self._timers.after(self._rng.random() * timing.gossip_interval_s, self._gossip)
        self._timers.after(self._rng.random() * timing.push_pull_interval_s, self._synchronise)
        self._broadcast_alive()

    def _probe(self) -> None:
        self._timers.after(self._timing.probe_interval_s, self._probe)
        if self._prober.probe_next():
            now = self._timers.now
            self.nodes.forget(
                lambda node: node.gone and now - node.changed > self._timing.gossip_to_dead_s
            )

    def _gossip(self) -> None:
        self._timers.after(self._timing.gossip_interval_s, self._gossip)
        self._prober.greet()
        chosen = self.nodes.sample(self._timing.gossip_nodes, self._gossips_with)
        # The living first: each message is sent only so often, in a small cluster twice or four
        # times, and must not be spent on the dead.
        for node in sorted(chosen, key=lambda node: node.state):
            messages = self._take_broadcasts(packets.room(self._keyring))
            if not messages:
                return
            self.send_plain(node, messages)

    def _gossips_with(self, node: Node) -> bool:
        if node is self.local:
            return False
        if node.state is State.DEAD:
            # So that one who is wrongly held dead hears of it, and objects.
            return self._timers.now - node.changed <= self._timing.gossip_to_dead_s
        return node.state is not State.LEFT

    def _synchronise(self) -> None:
        # In large clusters everybody synchronises more rarely, so that all together do not do it
        # more often.
        count = len(self.nodes)
        scale = 1
        if count > _PUSH_PULL_SCALE_NODES:
            scale = math.ceil(math.log2(count / _PUSH_PULL_SCALE_NODES)) + 1
        self._timers.after(self._timing.push_pull_interval_s * scale, self._synchronise)
        if self._syncing:
            return
        for node in self.nodes.sample(
            1, lambda node: node.state is State.ALIVE and node is not self.local
        ):
            self._syncing = True
            self.synchronise_with(node.address, join=False, joining=False)

    # --- sending ---------------------------------------------------------------------------------

    def send(self, address: Address, message: bytes, node: Node | None = None) -> None:
        """Sends a message, with gossip added where there is room."""
        space = packets.room(self._keyring) - len(message) - packets.PART_BYTES
        messages = [message, *self._take_broadcasts(space)]
        checksum = node is not None and node.checksums
        self._outbox.send(address, packets.seal(messages, self._keyring, checksum=checksum))

    def send_plain(self, node: Node, messages: list[bytes]) -> None:
        """Sends exactly these messages."""
        data = packets.seal(messages, self._keyring, checksum=node.checksums)
        self._outbox.send(node.address, data)

    def send_alone(self, address: Address, message: bytes) -> None:
        """Sends a message to one who may well be dead: gossip would be lost on it."""
        self._outbox.send(address, packets.seal([message], self._keyring, checksum=False))

    def send_user(self, address: Address, payload: bytes) -> None:
        """Sends a message of the protocol above to one node."""
        self.send_alone(address, _USER + payload)

    def retransmits(self) -> int:
        return retransmit_limit(self._timing.retransmit_multiplier, len(self.nodes))

    def _take_broadcasts(self, space: int) -> list[bytes]:
        """Gossip for one packet: news of nodes first, then of the protocol above."""
        if space < _SMALLEST_BROADCAST_BYTES:
            return []
        limit = self.retransmits()
        messages = self.broadcasts.take(space, packets.PART_BYTES, limit)
        space -= sum(len(message) + packets.PART_BYTES for message in messages)
        overhead = packets.PART_BYTES + len(_USER)
        users = self._delegate.user_broadcasts(space, overhead, limit)
        return messages + [_USER + user for user in users]

    # --- receiving -------------------------------------------------------------------------------

    def receive(self, message: bytes, source: Address) -> None:
        """One message of a packet. Raises MalformedMessage."""
        kind = message[0]
        if kind == Type.USER:
            self._delegate.user_message(message[1:])
            return
        body = BODIES.get(kind)  # type: ignore[call-overload]  # an int finds its IntEnum
        if body is None:
            self.ignored["unknown packet type"] += 1
            return
        match decode(body, message[1:]):
            case Ping() as ping:
                self._on_ping(ping, source)
            case IndirectPing() as request:
                reply_to = self._reply_to(request, source)
                self._prober.on_indirect_ping(request, reply_to)
            case Ack() as ack:
                self._prober.on_ack(ack, source)
            case Nack() as nack:
                self._prober.on_nack(nack)
            case Alive() as alive:
                if self._believes(alive.node, alive.address, alive.incarnation):
                    self.alive(alive)
            case Suspect() as suspect:
                if not self._is_far_ahead(suspect.node, suspect.incarnation):
                    self.suspect(suspect)
            case Dead() as dead:
                if not self._is_far_ahead(dead.node, dead.incarnation):
                    self.dead(dead)
            case _:
                self.ignored["packet type for streams only"] += 1

    def _is_far_ahead(self, name: str, incarnation: int) -> bool:
        """Whether ill news of a node carry an incarnation that it cannot have come to meanwhile."""
        node = self.nodes.get(name)
        known = 0 if node is None else node.incarnation
        if incarnation - known <= limits.incarnation_ahead_max:
            return False
        self.ignored["incarnation far ahead"] += 1
        return True

    def _believes(self, name: str, address: Address, incarnation: int) -> bool:
        """Whether a node may be alive there, at this incarnation. Where that is too far ahead, it
        is asked itself: we may have missed its objections, one accusation after the other."""
        node = self.nodes.get(name)
        # At another address it is another life, whose incarnation starts again.
        if node is None or node.address != address:
            believed = incarnation <= limits.incarnation_saved_max
        else:
            believed = incarnation - node.incarnation <= limits.incarnation_ahead_max
            if not believed and node is not self.local:
                self._ask_itself(node)
        if not believed:
            self.ignored["incarnation far ahead"] += 1
        return believed

    def _ask_itself(self, node: Node) -> None:
        """At its known address, few at a time: nobody shall make us connect without end."""
        now, wait_s = self._timers.now, self._timing.stream_timeout_s
        self._asked = {name: when for name, when in self._asked.items() if now - when < wait_s}
        if node.name not in self._asked and len(self._asked) < limits.asked_max:
            self._asked[node.name] = now
            self.synchronise_with(node.address, join=True, joining=False)

    def _on_ping(self, ping: Ping, source: Address) -> None:
        if not self._is_for_me(ping):
            self.ignored["ping for another node"] += 1
            return
        # An empty payload: we keep no network coordinates, and say so by silence.
        self.send(self._reply_to(ping, source), encode_message(Ack(sequence=ping.sequence)))

    def _is_for_me(self, ping: Ping) -> bool:
        # A restarted neighbour may have got our address under another name.
        return ping.node in {"", self.local.name}

    def _reply_to(self, request: Ping | IndirectPing, source: Address) -> Address:
        """Where the sender wants the answer, if that is where its name is known to be: else whoever
        forges a packet could aim our answer, with gossip in it, at anybody."""
        node = self.nodes.get(request.source_name)
        if node is None or node.address.packed != request.source_host:
            return source
        return node.address if node.address.port == request.source_port else source

    def serve(self, message: StreamMessage) -> StreamMessage | None:
        """The answer to a message on a connection that a peer opened. Raises MalformedMessage."""
        match message:
            case PushPull():
                # The answer first: it must not already hold what the question tells.
                answer = self._push_pull(join=message.join)
                self._merge(message)
                return answer
            case Ping() if self._is_for_me(message):
                return Ack(sequence=message.sequence)
            case UserMessage():
                self._delegate.user_message(message.payload)
        return None

    # --- push/pull -------------------------------------------------------------------------------

    def synchronise_with(
        self,
        address: Address,
        *,
        join: bool,
        joining: bool,
        on_merged: Callable[[], None] = lambda: None,
    ) -> int:
        """Exchanges the whole state with the node at this address.

        `joining` says that this node joins anew, so that the past of the cluster is none of its
        business; `join` alone that the peer may not know us. Returns the exchange's id.
        """

        def on_reply(reply: StreamMessage | None) -> str | None:
            self._syncing = False
            match reply:
                case PushPull():
                    self._merge(reply, asked=address, joining=joining)
                    on_merged()
                    return None
                case RemoteError():
                    return f"the peer says: {reply.reason}"
                case None:
                    return "no answer"
            return "an answer of the wrong type"

        message = self._push_pull(join=join)
        return self._outbox.exchange(address, message, self._timing.stream_timeout_s, on_reply)

    def _push_pull(self, *, join: bool) -> PushPull:
        nodes = tuple(node.snapshot() for node in self.nodes)
        return PushPull(join=join, nodes=nodes, user_state=self._delegate.local_state())

    def _merge(
        self, remote: PushPull, *, asked: Address | None = None, joining: bool = False
    ) -> None:
        """`asked`: where we asked for it; what stands there of the node itself is its own word."""
        for state in remote.nodes:
            if state.state == State.ALIVE and not self.local.versions.speaks_with(state.versions):
                raise MalformedMessage(
                    f"node {state.node} speaks protocol versions {tuple(state.versions)}, "
                    f"we {tuple(self.local.versions)}"
                )
            if state.state == State.ALIVE and (why := self._delegate.why_refused(state.meta)):
                address = Address.unpack(state.host, state.port)
                self._delegate.node_refused(state.node, address, why)
                raise MalformedMessage(f"node {state.node}: {why}")
        for state in remote.nodes:
            if self._believes_state(state, asked):
                self._merge_node(state)
                if (node := self.nodes.get(state.node)) and node.address == asked:
                    self.heard(node)
        if remote.user_state:
            self._delegate.merge_state(remote.user_state, asked=asked is not None, joining=joining)

    def _believes_state(self, state: NodeState, asked: Address | None) -> bool:
        if state.state == State.ALIVE:
            address = Address.unpack(state.host, state.port)
            return address == asked or self._believes(state.node, address, state.incarnation)
        return not self._is_far_ahead(state.node, state.incarnation)

    def _merge_node(self, remote: NodeState) -> None:
        match remote.state:
            case State.ALIVE:
                self.alive(
                    Alive(
                        incarnation=remote.incarnation,
                        node=remote.node,
                        host=remote.host,
                        port=remote.port,
                        meta=remote.meta,
                        versions=remote.versions,
                    )
                )
            case State.LEFT:
                self.dead(
                    Dead(incarnation=remote.incarnation, node=remote.node, source=remote.node)
                )
            case State.SUSPECT | State.DEAD:
                # Second-hand news of a death may be old: the node is suspected, and if it lives it
                # objects.
                self.suspect(
                    Suspect(
                        incarnation=remote.incarnation,
                        node=remote.node,
                        source=self.local.name,
                    )
                )
            case _:
                self.ignored["node in an unknown state"] += 1

    # --- transitions -----------------------------------------------------------------------------

    def alive(self, message: Alive) -> None:
        """A node says it is alive, itself or through others. Raises MalformedMessage."""
        if message.node == self.local.name:
            self._alive_about_us(message)
            return
        address = message.address
        if why := self._why_refused(message):
            self.ignored["node that is refused"] += 1
            self._delegate.node_refused(message.node, address, why)
            return
        node = self.nodes.get(message.node)
        if node is None:
            if self.nodes.full and not self._make_room():
                self.ignored["node beyond the limit"] += 1
                return
            node = self._admit(message, address)
        elif node.address != address and not self._may_move(node):
            self._delegate.node_conflict(node, address)
            return
        elif node.address == address and message.incarnation <= node.incarnation:
            return
        # A name at a new address is a new life of the node: its incarnation starts again.
        was_gone, before = node.gone, (node.address, node.meta)
        if node.address != address:
            node.heard, node.greetings, node.since = False, 0, self._timers.now
        node.address, node.meta = address, message.meta
        node.versions, node.incarnation = message.versions, message.incarnation
        self._end_suspicion(node)
        self._become(node, State.ALIVE)
        self._broadcast(message)
        if was_gone:
            self._delegate.node_joined(node)
        elif before != (node.address, node.meta):
            self._delegate.node_updated(node)

    def _why_refused(self, message: Alive) -> str:
        """Why this node is none of ours; empty if nothing stands against it."""
        if not self.local.address.can_reach(message.address):
            # We could not probe it, so we would call it dead, to others who reach it as well.
            return "from our address nothing can be sent there"
        return self._delegate.why_refused(message.meta)

    def _admit(self, message: Alive, address: Address) -> Node:
        node = Node(
            name=message.node,
            address=address,
            meta=message.meta,
            versions=message.versions,
            incarnation=message.incarnation,
            state=State.DEAD,
            changed=self._timers.now,
            since=self._timers.now,
        )
        self.nodes.add(node)
        return node

    def _make_room(self) -> bool:
        dropped = self.nodes.make_room(self.local)
        if dropped is None:
            return False
        self.ignored["node dropped to make room"] += 1
        self._end_suspicion(dropped)
        self._delegate.node_dropped(dropped)
        return True

    def _may_move(self, node: Node) -> bool:
        """Whether the name may be taken by a node at another address: it belongs to who has
        answered, while he is there. Anybody may say that he is somewhere else."""
        if node.state is State.LEFT:
            return True
        since = node.changed if node.heard else node.since
        absent = node.state is State.DEAD or not node.heard
        return absent and self._timers.now - since >= self._timing.reclaim_after_s

    def _alive_about_us(self, message: Alive) -> None:
        us = self.local
        if self._leaving:
            # An echo of our own past must not bring us back.
            return
        if message.address != us.address:
            self._delegate.node_conflict(us, message.address)
        elif message.incarnation > us.incarnation or (
            # 1. We start, join, and are killed. 2. We start again with other tags, at incarnation 1
            # as before. 3. A peer still gossips our former life, at the same incarnation: neither
            # message would ever override the other, so we must raise ours.
            message.incarnation == us.incarnation
            and (message.meta, message.versions) != (us.meta, us.versions)
        ):
            self._refute(message.incarnation)

    def heard(self, node: Node) -> None:
        """It has answered us."""
        if not node.heard:
            node.heard = True
            self._delegate.node_heard(node)

    def suspect(self, message: Suspect) -> None:
        """A node is suspected to have failed, by us or by another."""
        node = self.nodes.get(message.node)
        if node is None or message.incarnation < node.incarnation:
            return
        if node.name in self._suspicions:
            suspicion, timer = self._suspicions[node.name]
            if suspicion.confirm(message.source):
                timer.cancel()
                self._watch(node, suspicion)
                # Passed on, so that everybody's timer counts it.
                self._broadcast(message)
            return
        if node.state is not State.ALIVE:
            return
        if node is self.local:
            self._refute(message.incarnation)
            return
        node.incarnation = message.incarnation
        self._become(node, State.SUSPECT)
        suspicion = begun(message.source, self._timing, len(self.nodes), self._timers.now)
        self._watch(node, suspicion)
        self._broadcast(message)

    def _watch(self, node: Node, suspicion: Suspicion) -> None:
        def expire() -> None:
            self.dead(Dead(incarnation=node.incarnation, node=node.name, source=self.local.name))

        delay = max(0.0, suspicion.deadline - self._timers.now)
        self._suspicions[node.name] = (suspicion, self._timers.after(delay, expire))

    def _end_suspicion(self, node: Node) -> None:
        if node.name in self._suspicions:
            _, timer = self._suspicions.pop(node.name)
            timer.cancel()

    def dead(self, message: Dead) -> None:
        """A node is dead, or (said by itself) has left."""
        node = self.nodes.get(message.node)
        if node is None or message.incarnation < node.incarnation or node.gone:
            return
        if node is self.local:
            self._refute(message.incarnation)
            return
        node.incarnation = message.incarnation
        self._bury(node, State.LEFT if message.source == message.node else State.DEAD)
        self._broadcast(message)

    def _bury(self, node: Node, state: State) -> None:
        self._end_suspicion(node)
        self._become(node, state)
        self._delegate.node_gone(node)

    def _become(self, node: Node, state: State) -> None:
        if node.state is not state:
            node.state, node.changed = state, self._timers.now

    def _refute(self, accused: int) -> None:
        """Answers news about us that are not, or no longer, true."""
        if self._leaving:
            return
        # An accusation at the last incarnation cannot be topped; it is honest nobody's.
        incarnation = max(self.local.incarnation, accused) + 1
        self.local.incarnation = min(incarnation, limits.incarnation_max)
        # We were too slow for somebody's probe: trust ourselves a little less.
        self._prober.awareness.adjust(1)
        self._broadcast_alive()

    # --- our own changes -------------------------------------------------------------------------

    def update_meta(self, meta: bytes) -> None:
        assert len(meta) <= limits.meta_bytes_max
        assert not self._leaving
        self.local.meta = meta
        self.local.incarnation = min(self.local.incarnation + 1, limits.incarnation_max)
        self._broadcast_alive()
        self._delegate.node_updated(self.local)

    def leave(self, on_done: Callable[[], None]) -> bool:
        """Declares this node to have left, and from now on defends it no more. `on_done` is called
        when that has been gossiped. Returns False if there is nobody to tell."""
        assert not self._leaving
        self._leaving = True
        us = self.local
        self._bury(us, State.LEFT)
        message = Dead(incarnation=us.incarnation, node=us.name, source=us.name)
        others = any(not node.gone for node in self.nodes)
        if others:
            self.broadcasts.add(encode_message(message), subject=us.name, on_done=on_done)
        return others

    def _broadcast_alive(self) -> None:
        self._broadcast(self.local.alive())

    def _broadcast(self, message: Alive | Suspect | Dead) -> None:
        self.broadcasts.add(encode_message(message), subject=message.node)
