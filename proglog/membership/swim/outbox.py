"""What the core asks of its driver."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass

from proglog.membership.address import Address
from proglog.membership.codec.streams import StreamMessage
from proglog.membership.events import Event


@dataclass(frozen=True, slots=True)
class SendPacket:
    """Send this datagram; nobody waits for it."""

    address: Address
    data: bytes


@dataclass(frozen=True, slots=True)
class OpenExchange:
    """Connect, write the message, read one message; tell `Serf.finish_exchange` what came, or None
    where nothing came within `timeout_s` or the connection failed."""

    id: int
    address: Address
    message: StreamMessage
    timeout_s: float


@dataclass(frozen=True, slots=True)
class Report:
    """Tell the subscribers."""

    event: Event


Effect = SendPacket | OpenExchange | Report
OnReply = Callable[[StreamMessage | None], str | None]
"""Takes the peer's answer, or None, and says why the exchange failed, or None."""


class Outbox:
    """Effects in the order they were decided, and the exchanges that are still under way."""

    def __init__(self) -> None:
        self._effects: list[Effect] = []
        self._exchanges: dict[int, OnReply] = {}
        self._ids = itertools.count(1)

    @property
    def exchanges(self) -> int:
        return len(self._exchanges)

    def take(self) -> list[Effect]:
        effects, self._effects = self._effects, []
        return effects

    def send(self, address: Address, data: bytes) -> None:
        self._effects.append(SendPacket(address, data))

    def report(self, event: Event) -> None:
        self._effects.append(Report(event))

    def exchange(
        self, address: Address, message: StreamMessage, timeout_s: float, on_reply: OnReply
    ) -> int:
        number = next(self._ids)
        self._exchanges[number] = on_reply
        self._effects.append(OpenExchange(number, address, message, timeout_s))
        return number

    def finish(self, number: int, reply: StreamMessage | None) -> str | None:
        """Hands the reply to whoever opened the exchange."""
        return self._exchanges.pop(number)(reply)
