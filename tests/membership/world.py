"""A cluster of cores in virtual time: one heap of events, a network with faults, no asyncio."""

from __future__ import annotations

import hashlib
import heapq
import itertools
import random
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from proglog.membership import limits
from proglog.membership.address import Address
from proglog.membership.codec.keyring import Keyring
from proglog.membership.codec.streams import StreamDecoder, StreamMessage, encode_stream
from proglog.membership.config import Timing
from proglog.membership.errors import MalformedMessage
from proglog.membership.events import Event, MemberFailed, MemberReaped, Status
from proglog.membership.serf.serf import Phase, Serf
from proglog.membership.swim.outbox import OpenExchange, Report, SendPacket
from proglog.membership.swim.timers import PauseClock

KEY = bytes(range(32))


@dataclass
class Faults:
    """What the network does to packets. `blocked` says which node cannot reach which."""

    loss: float = 0.0
    duplicate: float = 0.0
    delay_s: float = 0.002
    jitter_s: float = 0.0
    blocked: Callable[[str, str], bool] = field(default=lambda _a, _b: False)


class SimNode:
    """One life of one node."""

    def __init__(self, world: World, name: str, address: Address, timing: Timing) -> None:
        self.world = world
        self.name = name
        self.address = address
        rng = world.stream(f"{name}@{address}#{next(world.lives)}")
        self.keyring = Keyring((KEY,), rng.randbytes)
        self.clock = PauseClock(lambda: world.now, limits.pause_seconds_max)
        self.core = Serf(
            name=name,
            address=address,
            tags={"rpc_addr": f"{name}:8400"},
            timing=timing,
            keyring=self.keyring,
            rng=rng,
            now=self.clock.now(),
        )
        self.events: list[tuple[float, Event]] = []
        self.up = True
        self.paused = False
        self.times: tuple[int, ...] = (0, 0, 0)
        self.waiting: list[Callable[[], None]] = []
        self.wake_at = float("inf")

    def statuses(self) -> dict[str, Status]:
        return {member.name: member.status for member in self.core.members()}

    def act(self, action: Callable[[], object]) -> None:
        """Lets the node do something, now or when it is not paused any more."""
        if not self.up:
            return
        if self.paused:
            self.waiting.append(lambda: self.act(action))
            return
        action()
        self.check()
        for effect in self.core.take():
            match effect:
                case SendPacket(address, data):
                    self.world.send(self, address, data)
                case OpenExchange():
                    self.world.exchange(self, effect)
                case Report(event):
                    self.events.append((self.world.now, event))
                    self.world.note("event", self.name, repr(event))
                    self.world.on_event(self, event)
        self.sleep()

    def sleep(self) -> None:
        deadline = self.core.next_deadline
        assert deadline is not None
        at = self.world.now + max(0.001, deadline - self.clock.now())
        if at < self.wake_at:
            self.wake_at = at
            self.world.at(at, lambda: self.act(lambda: self.wake(at)))

    def wake(self, at: float) -> None:
        if self.wake_at == at:
            self.wake_at = float("inf")
        self.core.tick(self.clock.now())

    def check(self) -> None:
        core = self.core
        clocks = (core._table.clock, core._events.clock, core._queries.clock)
        times = tuple(clock.time for clock in clocks)
        assert all(new >= old for new, old in zip(times, self.times, strict=True)), "time went back"
        self.times = times


class World:
    def __init__(self, seed: int, timing: Timing | None = None) -> None:
        self.seed = seed
        self.timing = timing or Timing.lan()
        self.now = 1000.0
        self.faults = Faults()
        self.nodes: dict[str, SimNode] = {}
        self.lives = itertools.count()
        self.false_positives = 0
        self.doubted: Callable[[SimNode, str], bool] = lambda _node, _name: False
        self.counts: Counter[str] = Counter()
        self._network = self.stream("network")
        self._heap: list[tuple[float, int, Callable[[], None]]] = []
        self._order = itertools.count()
        self._hash = hashlib.sha256()
        self._ports = itertools.count(1)

    def stream(self, name: str) -> random.Random:
        """Randomness of its own, so that a draw more here shifts nothing there."""
        return random.Random(f"{self.seed}/{name}")

    def note(self, *facts: object) -> None:
        self._hash.update(repr((round(self.now, 9), *facts)).encode())

    @property
    def trace(self) -> str:
        return self._hash.hexdigest()

    # --- time ------------------------------------------------------------------------------------

    def at(self, time: float, action: Callable[[], None]) -> None:
        heapq.heappush(self._heap, (time, next(self._order), action))

    def run(self, seconds: float) -> None:
        self.run_until(lambda: False, seconds)

    def run_until(self, condition: Callable[[], bool], seconds: float) -> float | None:
        """Runs until the condition holds; how long that took, or None after that many seconds."""
        start = self.now
        while True:
            # Looked at now and then: it is dearer than an event.
            if condition():
                return self.now - start
            slice_end = min(self.now + 0.05, start + seconds)
            while self._heap and self._heap[0][0] <= slice_end:
                self.now, _, action = heapq.heappop(self._heap)
                action()
            self.now = slice_end
            if self.now >= start + seconds:
                return None

    # --- nodes -----------------------------------------------------------------------------------

    def start(self, name: str, address: Address | None = None) -> SimNode:
        address = address or Address(f"10.0.{next(self._ports) >> 8}.{next(self._ports) & 255}", 7)
        node = self.nodes[name] = SimNode(self, name, address, self.timing)
        node.act(lambda: node.core.start(node.clock.now()))
        return node

    def join(self, node: SimNode, peer: SimNode) -> None:
        node.act(lambda: node.core.join(peer.address, node.clock.now()))

    def start_many(self, count: int) -> list[SimNode]:
        """All at once, and all join the first."""
        nodes = [self.start(f"n{number:02}") for number in range(count)]
        for node in nodes[1:]:
            self.join(node, nodes[0])
        return nodes

    def pause(self, node: SimNode) -> None:
        node.paused = True

    def resume(self, node: SimNode) -> None:
        node.paused = False
        waiting, node.waiting = node.waiting, []
        for action in waiting:
            action()

    def live(self) -> list[SimNode]:
        return [n for n in self.nodes.values() if n.up and n.core.phase is Phase.RUNNING]

    def agreed(self) -> bool:
        """All live nodes see each other alive, as they are, and the same of those that are gone. (A
        newcomer is not told of those who went before it came.)"""
        live = self.live()
        truth = {
            node.name: (Status.ALIVE, node.core.tags, node.address.port, node.address.host)
            for node in live
        }
        gone: dict[str, Status] = {}
        for node in live:
            view = {m.name: (m.status, m.tags, m.port, m.address) for m in node.core.members()}
            if any(view.get(name) != true for name, true in truth.items()):
                return False
            for name in view.keys() - truth.keys():
                if gone.setdefault(name, view[name][0]) is not view[name][0]:
                    return False
        return not {Status.ALIVE, Status.LEAVING} & set(gone.values())

    def on_event(self, node: SimNode, event: Event) -> None:
        self.counts[type(event).__name__] += 1
        if isinstance(event, MemberFailed) and not self.doubted(node, event.member.name):
            failed = self.nodes.get(event.member.name)
            if failed is not None and failed.up and not failed.paused:
                self.false_positives += 1
        assert not isinstance(event, MemberReaped) or event.member.name != node.name

    # --- network ---------------------------------------------------------------------------------

    def owner(self, address: Address) -> SimNode | None:
        return next((n for n in self.nodes.values() if n.up and n.address == address), None)

    def delay(self) -> float:
        return self.faults.delay_s + self._network.random() * self.faults.jitter_s

    def reaches(self, source: SimNode, address: Address) -> bool:
        target = self.owner(address)
        return target is not None and not self.faults.blocked(source.name, target.name)

    def send(self, source: SimNode, address: Address, data: bytes) -> None:
        self.counts["packets"] += 1
        for _ in range(1 + (self._network.random() < self.faults.duplicate)):
            if self._network.random() >= self.faults.loss and self.reaches(source, address):
                self.at(self.now + self.delay(), self._deliver(source.address, address, data))

    def _deliver(self, source: Address, address: Address, data: bytes) -> Callable[[], None]:
        def deliver() -> None:
            target = self.owner(address)
            if target is not None:
                self.note("packet", source, address, data)
                target.act(lambda: target.core.receive_packet(data, source, target.clock.now()))

        return deliver

    def exchange(self, source: SimNode, effect: OpenExchange) -> None:
        """A connection: loss only delays it, a partition times it out, a dead host refuses it."""
        request = encode_stream(effect.message, source.keyring)
        deadline = self.now + effect.timeout_s
        done = False

        def finish(reply: StreamMessage | None) -> None:
            nonlocal done
            if not done:
                done = True
                source.act(lambda: self._finish(source, effect, reply))

        def arrive() -> None:
            target = self.owner(effect.address)
            if target is None:
                finish(None)
            elif self.reaches(source, effect.address):
                target.act(lambda: answer(target))

        def answer(target: SimNode) -> None:
            message = StreamDecoder(target.keyring).feed(request)
            assert message is not None
            try:
                reply = target.core.serve(message, target.clock.now())
            except MalformedMessage:
                reply = None
            if reply is not None and not self.faults.blocked(target.name, source.name):
                data = encode_stream(reply, target.keyring)
                decoded = StreamDecoder(source.keyring).feed(data)
                self.at(self.now + self.delay(), lambda: finish(decoded))

        self.at(self.now + self.delay(), arrive)
        self.at(deadline, lambda: finish(None))

    def _finish(self, node: SimNode, effect: OpenExchange, reply: StreamMessage | None) -> None:
        now = node.clock.now()
        failed = node.core.finish_exchange(effect.id, reply, now)
        if failed is None and getattr(effect.message, "join", False):
            node.core.announce_join(now)


def halves(names: Iterable[str]) -> Callable[[str, str], bool]:
    """A partition: those named, and the others."""
    inside = frozenset(names)
    return lambda a, b: (a in inside) != (b in inside)
