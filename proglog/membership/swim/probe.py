"""Failure detection: is that node still there?

Every probe interval one node is pinged. If it does not answer within the probe timeout, a few
others are asked to ping it too and a TCP connection is tried; if the interval ends without an
answer by any way, the node is suspected. Those who were asked say so when they got no answer
either (a nack): when their nacks do not come, the fault is likely here, and the local health score
says so. Sources: SWIM, section 3; Lifeguard, section 3.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from proglog.membership import limits
from proglog.membership.address import Address
from proglog.membership.codec.messages import (
    Ack,
    IndirectPing,
    Nack,
    Ping,
    State,
    Suspect,
    encode_message,
)
from proglog.membership.codec.streams import StreamMessage
from proglog.membership.config import Timing
from proglog.membership.swim.awareness import Awareness
from proglog.membership.swim.nodes import Node, NodeTable
from proglog.membership.swim.outbox import Outbox
from proglog.membership.swim.timers import Timer, Timers


class Peers(Protocol):
    """What a prober needs of the protocol around it."""

    @property
    def local(self) -> Node: ...

    def send(self, address: Address, message: bytes, node: Node | None = None) -> None:
        """Sends a message, with gossip added where there is room."""

    def send_plain(self, node: Node, messages: list[bytes]) -> None:
        """Sends exactly these messages."""

    def send_alone(self, address: Address, message: bytes) -> None:
        """Sends a message to one who may well be dead: gossip would be lost on it."""

    def suspect(self, message: Suspect) -> None:
        """This node or another suspects a node."""

    def heard(self, node: Node) -> None:
        """A node has answered."""


@dataclass(slots=True, kw_only=True)
class _Probe:
    """One node being probed."""

    node: Node
    incarnation: int
    """The one probed: what the node proves by raising it meanwhile is not held against it."""
    ping: Ping
    timers: list[Timer] = field(default_factory=list)
    nacks_expected: int = 0
    nacks: int = 0
    answered_by_stream: bool = False


class Prober:
    """Probes one node at a time, and carries out the indirect probes of others."""

    def __init__(
        self,
        peers: Peers,
        nodes: NodeTable,
        timing: Timing,
        timers: Timers,
        outbox: Outbox,
        rng: random.Random,
    ) -> None:
        self._peers = peers
        self._nodes = nodes
        self._timing = timing
        self._timers = timers
        self._outbox = outbox
        # A random start: an answer to a previous life of this node fits no probe of this one.
        self._sequence = rng.getrandbits(31)
        self._probe: _Probe | None = None
        self._relays: dict[int, Callable[[], None]] = {}
        self._greeted: dict[int, Node] = {}
        self.awareness = Awareness(timing.awareness_max - 1)
        self.probes_failed = 0

    # --- probing others --------------------------------------------------------------------------

    def probe_next(self) -> bool:
        """Probes the next node, unless one is still being probed. Says if a new round began."""
        if self._probe is not None:
            return False
        node, started = self._nodes.next_to_probe(
            lambda node: not node.gone and node.name != self._peers.local.name
        )
        if node is not None:
            self._start(node)
        return started

    def greet(self) -> None:
        """Pings some of those who have only been spoken of, the newest first: a round of probes may
        take long, and until they answer they are worth little. Nothing follows from silence."""
        unheard = [
            node
            for node in self._nodes
            if not node.heard
            and not node.gone
            and node.greetings < limits.greetings_max
            and node is not self._peers.local
        ]
        for node in unheard[: -limits.greeted_at_once_max - 1 : -1]:
            node.greetings += 1
            ping = self._ping(node.name)
            while len(self._greeted) >= limits.greeted_max:
                self._greeted.pop(next(iter(self._greeted)))
            self._greeted[ping.sequence] = node
            self._peers.send_alone(node.address, encode_message(ping))

    def _ping(self, name: str) -> Ping:
        local = self._peers.local
        return Ping(
            sequence=self._next_sequence(),
            node=name,
            source_host=local.address.packed,
            source_port=local.address.port,
            source_name=local.name,
        )

    def _start(self, node: Node) -> None:
        ping = self._ping(node.name)
        probe = self._probe = _Probe(node=node, incarnation=node.incarnation, ping=ping)
        interval = self.awareness.stretch(self._timing.probe_interval_s)
        probe.timers = [
            self._timers.after(self._timing.probe_timeout_s, self._ask_others),
            self._timers.after(interval, self._conclude),
        ]
        if node.state is State.ALIVE:
            self._peers.send(node.address, encode_message(ping), node)
        else:
            # A suspect is told of the suspicion in the same packet, so that it objects at once.
            accusation = Suspect(
                incarnation=node.incarnation, node=node.name, source=self._peers.local.name
            )
            self._peers.send_plain(node, [encode_message(ping), encode_message(accusation)])

    def _ask_others(self) -> None:
        probe = self._probe
        assert probe is not None
        node, ping = probe.node, probe.ping
        helpers = self._nodes.sample(
            self._timing.indirect_probes,
            lambda other: (
                other.state is State.ALIVE and other.name not in {self._peers.local.name, node.name}
            ),
        )
        for helper in helpers:
            request = IndirectPing(
                sequence=ping.sequence,
                host=node.address.packed,
                port=node.address.port,
                node=node.name,
                nack=helper.nacks,
                source_host=ping.source_host,
                source_port=ping.source_port,
                source_name=ping.source_name,
            )
            probe.nacks_expected += helper.nacks
            self._peers.send(helper.address, encode_message(request), helper)
        if node.stream_pings:
            timeout = self._conclusion_due(probe) - self._timers.now
            self._outbox.exchange(node.address, ping, max(timeout, 0.001), self._on_stream_reply)

    def _conclusion_due(self, probe: _Probe) -> float:
        return probe.timers[-1].deadline

    def _on_stream_reply(self, reply: StreamMessage | None) -> str | None:
        probe = self._probe
        if probe is None or not isinstance(reply, Ack) or reply.sequence != probe.ping.sequence:
            return "no answer"
        # It counts only when the interval ends: an answer over UDP is the better news.
        probe.answered_by_stream = True
        return None

    def on_ack(self, message: Ack, source: Address) -> None:
        if self._probe is not None and message.sequence == self._probe.ping.sequence:
            if source == self._probe.node.address:
                self._peers.heard(self._probe.node)
            self._succeed(self._probe)
        elif message.sequence in self._relays:
            self._relays.pop(message.sequence)()
        elif message.sequence in self._greeted:
            node = self._greeted.pop(message.sequence)
            if source == node.address:
                self._peers.heard(node)

    def on_nack(self, message: Nack) -> None:
        if self._probe is not None and message.sequence == self._probe.ping.sequence:
            self._probe.nacks += 1

    def _conclude(self) -> None:
        probe = self._probe
        assert probe is not None
        if probe.answered_by_stream:
            self._peers.heard(probe.node)
            self._succeed(probe)
            return
        self._probe = None
        self.probes_failed += 1
        # Nacks that did not come are the measure of our own health; where none can be expected, the
        # failed probe itself has to do.
        missing = probe.nacks_expected - probe.nacks if probe.nacks_expected else 1
        self.awareness.adjust(max(0, missing))
        source = self._peers.local.name
        self._peers.suspect(
            Suspect(incarnation=probe.incarnation, node=probe.node.name, source=source)
        )

    def _succeed(self, probe: _Probe) -> None:
        for timer in probe.timers:
            timer.cancel()
        self._probe = None
        self.awareness.adjust(-1)

    # --- probing for others ----------------------------------------------------------------------

    def on_indirect_ping(self, message: IndirectPing, reply_to: Address) -> None:
        """Pings the target; passes its ack on, or sends a nack after the probe timeout."""
        if len(self._relays) >= limits.relays_max:
            return
        ping = self._ping(message.node)
        sequence = ping.sequence

        def pass_on() -> None:
            timer.cancel()
            self._peers.send(reply_to, encode_message(Ack(sequence=message.sequence)))

        def give_up() -> None:
            self._relays.pop(sequence, None)
            if message.nack:
                self._peers.send(reply_to, encode_message(Nack(sequence=message.sequence)))

        timer = self._timers.after(self._timing.probe_timeout_s, give_up)
        self._relays[sequence] = pass_on
        self._peers.send_alone(message.target, encode_message(ping))

    def _next_sequence(self) -> int:
        self._sequence = (self._sequence + 1) & 0xFFFF_FFFF
        return self._sequence
