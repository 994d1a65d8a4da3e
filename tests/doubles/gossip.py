"""A network in memory: the double of `NetworkTransport`, for tests and simulations in one loop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from proglog.membership.address import Address
from proglog.membership.codec.keyring import Keyring
from proglog.membership.codec.messages import RemoteError
from proglog.membership.codec.streams import StreamDecoder, StreamMessage, encode_stream
from proglog.membership.driver.transport import Handler, TransportStatistics
from proglog.membership.errors import BindFailed, ExchangeFailed, MalformedMessage


class MemoryNetwork:
    """Joins transports of one event loop.

    `delay` gives the seconds that a message takes from one address to another, or None to lose it:
    faults are injected there. `names` are what `resolve` knows besides literal addresses.
    """

    def __init__(
        self, delay: Callable[[Address, Address], float | None] = lambda _from, _to: 0.0
    ) -> None:
        self.delay = delay
        self.names: dict[str, list[str]] = {}
        self._transports: dict[Address, MemoryTransport] = {}

    def transport(self, address: Address, keyring: Keyring) -> MemoryTransport:
        return MemoryTransport(self, address, keyring)

    def at(self, address: Address) -> MemoryTransport | None:
        return self._transports.get(address)

    def add(self, transport: MemoryTransport) -> None:
        if transport.address in self._transports:
            raise BindFailed(f"{transport.address} is in use", address=transport.address)
        self._transports[transport.address] = transport

    def remove(self, transport: MemoryTransport) -> None:
        self._transports.pop(transport.address, None)


class MemoryTransport:
    """One node's end of a `MemoryNetwork`. Everything passes through the real wire format."""

    def __init__(self, network: MemoryNetwork, address: Address, keyring: Keyring) -> None:
        self.address = address
        self._network = network
        self._keyring = keyring
        self._handler: Handler | None = None
        self._received = self._sent = self._served = self._streams_failed = 0

    async def start(self, handler: Handler) -> Address:
        self._handler = handler
        self._network.add(self)
        return self.address

    async def close(self) -> None:
        self._network.remove(self)
        self._handler = None

    async def resolve(self, host: str, port: int) -> list[Address]:
        return [Address(literal, port) for literal in self._network.names.get(host, [host])]

    def send(self, address: Address, data: bytes) -> None:
        if self._handler is None:
            return
        self._sent += 1
        delay = self._network.delay(self.address, address)
        if delay is not None:
            asyncio.get_running_loop().call_later(delay, self._deliver, address, data)

    def _deliver(self, address: Address, data: bytes) -> None:
        receiver = self._network.at(address)
        if receiver is not None and receiver._handler is not None:
            receiver._received += 1
            receiver._handler.on_packet(data, self.address)

    async def exchange(
        self, address: Address, message: StreamMessage, timeout_s: float
    ) -> StreamMessage:
        try:
            async with asyncio.timeout(timeout_s):
                await self._travel(self.address, address)
                peer = self._network.at(address)
                if peer is None:
                    raise ExchangeFailed(f"nobody listens at {address}")
                answer = peer._serve(encode_stream(message, self._keyring))
                await self._travel(address, self.address)
                reply = StreamDecoder(self._keyring).feed(answer)
        except TimeoutError as error:
            raise ExchangeFailed(f"no answer from {address} in {timeout_s:g} s") from error
        except MalformedMessage as error:
            raise ExchangeFailed(f"{address}: {error}") from error
        if reply is None:
            raise ExchangeFailed(f"{address} closed the connection")
        return reply

    async def _travel(self, source: Address, target: Address) -> None:
        delay = self._network.delay(source, target)
        # What is lost on a connection is repeated until the connection times out.
        await asyncio.sleep(3600.0 if delay is None else delay)

    def _serve(self, data: bytes) -> bytes:
        assert self._handler is not None
        try:
            message = StreamDecoder(self._keyring).feed(data)
            answer = None if message is None else self._handler.on_stream(message)
        except MalformedMessage as error:
            self._streams_failed += 1
            answer = RemoteError(reason=str(error))
        self._served += 1
        return b"" if answer is None else encode_stream(answer, self._keyring)

    def statistics(self) -> TransportStatistics:
        return TransportStatistics(
            packets_received=self._received,
            packets_sent=self._sent,
            packets_failed=0,
            streams_served=self._served,
            streams_refused=0,
            streams_failed=self._streams_failed,
        )
