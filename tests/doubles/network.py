"""The network between simulated hosts: who hears whom, and how late.

Which host code runs on is a context variable, which tasks and protocol callbacks inherit: code that
runs `on_host("a")` listens on and connects from host `a`. A host's name is its address; a server
listens on all addresses of its host, and "localhost", "127.0.0.1" and "::1" are the host itself.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, TypeAlias

from proglog.limits import KiB
from tests.doubles.transports import Pipe, SimDatagramTransport, SimServer, SimTransport

Address: TypeAlias = tuple[str, int]

CONNECT_SECONDS_MAX = 60.0
"""A connection attempt to a host that never answers raises TimeoutError after this time."""
_SYN_SECONDS = 1.0
"""What asks for a connection is sent again after this time, doubled each time."""
_EPHEMERAL_PORT_FIRST = 49152
_LOOPBACK = {"localhost", "127.0.0.1", "::1", "0.0.0.0", "::"}  # binds nothing

_host: ContextVar[str] = ContextVar("host", default="localhost")


@contextmanager
def on_host(name: str) -> Iterator[None]:
    """What is called or started within runs on this host."""
    token = _host.set(name)
    try:
        yield
    finally:
        _host.reset(token)


@dataclass(slots=True, kw_only=True)
class Weather:
    """How the network treats what is sent. May be changed at any time."""

    latency_seconds_min: float = 0.0001
    latency_seconds_mean: float = 0.0005
    """Exponential above the minimum."""
    datagram_loss_rate: float = 0.0
    datagram_duplicate_rate: float = 0.0
    split_rate: float = 0.1
    """A write to a stream arrives in two parts."""
    buffer_bytes: int = 64 * KiB
    """How much of a stream is on its way in one direction. As much again waits in the sender's
    write buffer before it is told to pause (a stream that is there already keeps to its bound)."""


class SimNetwork:
    """All hosts are connected until told otherwise.

    Streams lose nothing: what cannot be delivered now is sent again later, and later each time, as
    by TCP, which does not hear that the network is whole again. Datagrams are lost.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        chance: random.Random,
        trace: Callable[..., None],
    ) -> None:
        self.loop = loop
        self.weather = Weather()
        self.chance = chance
        self.trace = trace
        self._servers: dict[Address, SimServer] = {}
        self._datagrams: dict[Address, SimDatagramTransport] = {}
        self._pipes: dict[int, Pipe] = {}
        self._pipe_last = 0
        self._blocked: set[tuple[str, str]] = set()
        self._down: set[str] = set()
        self._port_last = _EPHEMERAL_PORT_FIRST

    # --- faults ----------------------------------------------------------------------------------

    def block(self, source: str, target: str) -> None:
        """Nothing gets from `source` to `target` any more, in this direction."""
        self._blocked.add((source, target))

    def partition(self, *groups: list[str]) -> None:
        """Cuts every group off from every other one."""
        for group in groups:
            for other in groups:
                if group is not other:
                    self._blocked.update((a, b) for a in group for b in other)

    def heal(self, host: str | None = None) -> None:
        """Lifts all blocks, or those around one host; what is sent from now on arrives."""
        self._blocked = {pair for pair in self._blocked if host is not None and host not in pair}

    def cut(self, host: str, other: str) -> None:
        """Resets all streams between two hosts."""
        for pipe in list(self._pipes.values()):
            if {pipe.source.host, pipe.target.host} == {host, other}:
                pipe.target.reset()

    def stall(self, source: str, target: str, seconds: float) -> None:
        """Nothing arrives for this time on some of the streams, in this direction."""
        for pipe in list(self._pipes.values()):
            between = (pipe.source.host, pipe.target.host) == (source, target)
            if between and self.chance.random() < 0.5:
                pipe.stall(seconds)

    def crash(self, host: str) -> None:
        """All processes of the host are gone: its servers too, and its peers see resets."""
        for pipe in self._end_processes(host):
            pipe.send_reset()

    def power_off(self, host: str) -> None:
        """As `crash`, but nobody hears of it: the host answers nothing until `power_on`."""
        self._down.add(host)
        self._end_processes(host)

    def power_on(self, host: str) -> None:
        """The host's kernel answers again, with resets to what it does not know."""
        self._down.discard(host)

    def hears(self, source: str, target: str) -> bool:
        """Whether what `source` sends arrives at `target` now."""
        down = source in self._down or target in self._down
        return not down and (source == target or (source, target) not in self._blocked)

    def _end_processes(self, host: str) -> list[Pipe]:
        """Takes a host's servers and its ends of all streams away; the pipes that it wrote to."""
        for table in (self._servers, self._datagrams):
            for address in [address for address in table if address[0] == host]:
                del table[address]
        written = [pipe for pipe in self._pipes.values() if pipe.source.host == host]
        for pipe in written:
            pipe.source.vanish()
        return written

    # --- streams ---------------------------------------------------------------------------------

    async def connect(
        self,
        protocol_factory: Callable[[], asyncio.BaseProtocol],
        host: str,
        port: int,
        *,
        ssl: None = None,
        **_options: Any,
    ) -> tuple[SimTransport, asyncio.BaseProtocol]:
        """As `loop.create_connection`, from the current host. Raises OSError."""
        assert not ssl, "TLS is not simulated"
        source, target = _host.get(), _resolve(host)
        await self._round_trip(source, target)
        server = self._servers.get((target, port))
        if server is None:
            raise ConnectionRefusedError(f"nothing listens on {target}:{port}")
        near, far = SimTransport.pair(self, (source, self._free_port()), (target, port))
        server.accept(far)
        protocol = protocol_factory()
        near.start(protocol)
        return near, protocol

    async def _round_trip(self, source: str, target: str) -> None:
        deadline, again = self.loop.time() + CONNECT_SECONDS_MAX, _SYN_SECONDS
        await asyncio.sleep(self.latency())
        while not (self.hears(source, target) and self.hears(target, source)):
            if self.loop.time() > deadline:
                raise TimeoutError(f"{target} does not answer")
            await asyncio.sleep(again)
            again *= 2
        await asyncio.sleep(self.latency())

    def listen(
        self,
        protocol_factory: Callable[[], asyncio.BaseProtocol],
        port: int,
        *,
        ssl: None = None,
        **_options: Any,
    ) -> SimServer:
        """As `loop.create_server`, on the current host. Raises OSError."""
        assert not ssl, "TLS is not simulated"
        address = (_host.get(), port or self._free_port())
        if address in self._servers:
            raise OSError(98, f"address {address} is in use")
        server = SimServer(self.loop, protocol_factory, address, self._unlisten)
        self._servers[address] = server
        return server

    def _unlisten(self, server: SimServer) -> None:
        if self._servers.get(server.address) is server:
            del self._servers[server.address]

    def add_pipe(self, pipe: Pipe) -> int:
        """Takes note of one direction of a stream until `remove_pipe`."""
        self._pipe_last += 1
        self._pipes[self._pipe_last] = pipe
        return self._pipe_last

    def remove_pipe(self, number: int) -> None:
        self._pipes.pop(number, None)

    def latency(self) -> float:
        weather = self.weather
        extra = weather.latency_seconds_mean - weather.latency_seconds_min
        wait = self.chance.expovariate(1 / extra) if extra > 0 else 0.0
        return weather.latency_seconds_min + wait

    def _free_port(self) -> int:
        self._port_last += 1
        return self._port_last

    # --- datagrams -------------------------------------------------------------------------------

    def open_datagrams(
        self,
        protocol_factory: Callable[[], asyncio.BaseProtocol],
        port: int,
        *,
        remote_addr: Address | None = None,
        **_options: Any,
    ) -> tuple[SimDatagramTransport, asyncio.BaseProtocol]:
        """As `loop.create_datagram_endpoint`, on the current host. Raises OSError."""
        address = (_host.get(), port or self._free_port())
        if address in self._datagrams:
            raise OSError(98, f"address {address} is in use")
        protocol = protocol_factory()
        transport = SimDatagramTransport(self, protocol, address, remote_addr)
        self._datagrams[address] = transport
        self.loop.call_soon(protocol.connection_made, transport)
        return transport, protocol

    def send_datagram(self, data: bytes, source: Address, target: Address) -> None:
        """Sends it on its way: it arrives once, twice, out of order, or never."""
        weather = self.weather
        copies = 1 + (self.chance.random() < weather.datagram_duplicate_rate)
        for _ in range(copies):
            if self.chance.random() >= weather.datagram_loss_rate:
                self.loop.call_later(self.latency(), self._arrive, data, source, target)

    def _arrive(self, data: bytes, source: Address, target: Address) -> None:
        transport = self._datagrams.get(target)
        if transport is None or not self.hears(source[0], target[0]):
            return
        self.trace(self.loop.time(), "datagram", source, target, len(data))
        self.loop.call_soon(transport.arrive, data, source, context=transport.context)

    def close_datagrams(self, address: Address) -> None:
        self._datagrams.pop(address, None)


def _resolve(host: str) -> str:
    return _host.get() if host in _LOOPBACK else host
