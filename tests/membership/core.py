"""One core under the microscope: what it says and does when it is told something."""

from __future__ import annotations

import random
from typing import Any

from proglog.membership.address import Address
from proglog.membership.codec import packets
from proglog.membership.codec.keyring import Keyring
from proglog.membership.codec.messages import (
    OURS,
    Alive,
    Type,
    encode_message,
)
from proglog.membership.codec.serf_messages import (
    encode_serf,
    encode_tags,
)
from proglog.membership.config import Timing
from proglog.membership.events import (
    Event,
    Status,
)
from proglog.membership.serf.serf import Serf
from proglog.membership.swim.outbox import OpenExchange, Report, SendPacket
from tests.membership.test_messages import parse

PLAIN = Keyring((), bytes)
US = Address("10.0.0.1", 7)


class Core:
    """One node under the microscope."""

    def __init__(self, **timing: Any) -> None:
        self.now = 100.0
        self.timing = Timing.lan(**timing)
        self.serf = Serf(
            name="us",
            address=US,
            tags={"role": "proglog"},
            timing=self.timing,
            keyring=PLAIN,
            rng=random.Random(1),
            now=self.now,
        )
        self.sent: list[tuple[Address, Any]] = []
        self.exchanges: list[OpenExchange] = []
        self.events: list[Event] = []
        self.serf.start(self.now)
        self.collect()

    def collect(self) -> None:
        for effect in self.serf.take():
            match effect:
                case SendPacket(address, data):
                    parts = packets.open_packet(data, PLAIN)
                    self.sent += [(address, parse(part)) for part in parts]
                case OpenExchange():
                    self.exchanges.append(effect)
                case Report(event):
                    self.events.append(event)

    def tell(self, *messages: Any, source: Address = Address("10.0.0.9", 7)) -> None:
        for message in messages:
            if type(message).__module__.endswith("serf_messages"):
                data = bytes([Type.USER]) + encode_serf(message)
            else:
                data = encode_message(message)
            self.serf.receive_packet(data, source, self.now)
        self.collect()

    def wait(self, seconds: float) -> None:
        end = self.now + seconds
        while True:
            deadline = self.serf.next_deadline
            assert deadline is not None
            if deadline > end:
                break
            self.now = deadline
            self.serf.tick(self.now)
            self.collect()
        self.now = end

    def said(self, kind: type) -> list[Any]:
        return [message for _, message in self.sent if isinstance(message, kind)]

    def told(self, kind: type) -> list[Any]:
        return [event for event in self.events if isinstance(event, kind)]

    def status(self, name: str) -> Status | None:
        return {m.name: m.status for m in self.serf.members()}.get(name)


def alive(name: str, incarnation: int = 1, host: str = "", port: int = 7, **tags: str) -> Alive:
    address = Address(host or f"10.0.1.{sum(name.encode()) % 250}", port)
    return Alive(
        incarnation=incarnation,
        node=name,
        host=address.packed,
        port=address.port,
        meta=encode_tags(tags),
        versions=OURS,
    )
