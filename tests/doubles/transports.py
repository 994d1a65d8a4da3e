"""asyncio transports between simulated hosts, with the flow control of real ones."""

from __future__ import annotations

import asyncio
import enum
from asyncio.transports import _FlowControlMixin
from collections import deque
from collections.abc import Callable, Sequence
from contextvars import copy_context
from typing import TYPE_CHECKING, Any, TypeAlias
from zlib import crc32

if TYPE_CHECKING:
    from tests.doubles.network import Address, SimNetwork

RECEIVE_BYTES_MAX = 256 * 1024
"""Handed to a protocol at once, as by asyncio's own transports."""
AGAIN_SECONDS_FIRST, AGAIN_SECONDS_MAX = 0.2, 120.0
"""What is lost is sent again after this time, doubled each time up to the longest."""
AGAIN_SECONDS_TOTAL = 924.6
"""Then TCP gives up (its 15 retries)."""


class Signal(enum.Enum):
    """What may travel in a stream beside bytes."""

    EOF = "eof"
    RESET = "reset"


_Item: TypeAlias = bytes | Signal


class Pipe:
    """One direction of a stream: in order, without loss, and late.

    What the network does not let pass is sent again, as TCP does it: after 0.2 s, then each time
    after twice as long as before. Nobody tells it that the network is whole again.

    Attributes:
        bytes_waiting: written, but not delivered.
    """

    def __init__(self, network: SimNetwork, source: SimTransport, target: SimTransport) -> None:
        self.source = source
        self.target = target
        self.bytes_waiting = 0
        self._network = network
        self._items: deque[tuple[float, _Item]] = deque()
        self._due_last = 0.0
        self._again_at = 0.0
        self._again_seconds = AGAIN_SECONDS_FIRST
        self._lost_since = 0.0
        """When it was first sent in vain; 0 if it was not."""
        self._timer: asyncio.TimerHandle | None = None
        self._number = network.add_pipe(self)

    def stall(self, seconds: float) -> None:
        """Nothing arrives for this time, as where TCP waits to send a lost packet again."""
        until = self._network.loop.now + seconds
        self._due_last = max(self._due_last, until)
        self._items = deque((max(due, until), item) for due, item in self._items)

    def send(self, item: _Item) -> None:
        due = max(self._due_last, self._network.loop.now + self._network.latency())
        self._due_last = due
        chance = self._network.chance
        if isinstance(item, bytes):
            self.bytes_waiting += len(item)
            if len(item) > 1 and chance.random() < self._network.weather.split_rate:
                split = chance.randrange(1, len(item))
                self._items.append((due, item[:split]))
                due = self._due_last = due + self._network.latency()
                item = item[split:]
        self._items.append((due, item))
        self.wake()

    def send_reset(self) -> None:
        """Ends the stream at once; what is on its way is lost."""
        self._items.clear()
        self.bytes_waiting = 0
        self.send(Signal.RESET)

    def remove(self) -> None:
        """Nothing more travels here."""
        self._items.clear()
        self._network.remove_pipe(self._number)

    def wake(self) -> None:
        """Looks again whether something can be delivered."""
        if self._timer is None and self._items and self._is_wanted():
            loop = self._network.loop
            due = max(self._items[0][0], self._again_at, loop.now)
            self._timer = loop.call_at_moment(due, self._pump, context=self.target.context)

    def _is_wanted(self) -> bool:
        return self._items[0][1] is Signal.RESET or self.target.wants_data()

    def _pump(self) -> None:
        self._timer = None
        now = self._network.loop.now
        if self._items and not self._network.hears(self.source.host, self.target.host):
            self._send_again(now)
            return
        self._again_at, self._again_seconds, self._lost_since = 0.0, AGAIN_SECONDS_FIRST, 0.0
        while self._items and self._items[0][0] <= now and self._is_wanted():
            item = self._take()
            what = item.value if isinstance(item, Signal) else (len(item), crc32(item))
            self._network.trace(now, self.source.name, self.target.name, what)
            self.target.receive(item)
            if isinstance(item, Signal):
                self.remove()
        self.source.delivered()
        self.wake()

    def _send_again(self, now: float) -> None:
        """It was sent in vain: later, or never."""
        self._lost_since = self._lost_since or now
        if now - self._lost_since > AGAIN_SECONDS_TOTAL:
            self.source.time_out()
            return
        self._again_at = now + self._again_seconds
        self._again_seconds = min(2 * self._again_seconds, AGAIN_SECONDS_MAX)
        self.wake()

    def _take(self) -> _Item:
        """The next item, bytes with all that has arrived behind them."""
        _, item = self._items.popleft()
        if isinstance(item, Signal):
            return item
        now = self._network.loop.now
        parts, size = [item], len(item)
        while self._items and self._items[0][0] <= now:
            more = self._items[0][1]
            if isinstance(more, Signal) or size + len(more) > RECEIVE_BYTES_MAX:
                break
            self._items.popleft()
            parts.append(more)
            size += len(more)
        self.bytes_waiting -= size
        return b"".join(parts)


class SimTransport(_FlowControlMixin):
    """One end of a stream."""

    # Of asyncio's mixin, whose stubs leave them out.
    _loop: asyncio.AbstractEventLoop
    _maybe_pause_protocol: Callable[[], None]
    _protocol_paused: bool
    _maybe_resume_protocol: Callable[[], None]

    def __init__(self, network: SimNetwork, local: Address, remote: Address) -> None:
        super().__init__({"sockname": local, "peername": remote}, network.loop)
        self.host = local[0]
        self.name = f"{local[0]}:{local[1]}"
        self.context = copy_context()
        self._network = network
        self._out: Pipe
        self._in: Pipe
        self._protocol: Any = None
        self._paused = False
        self._eof = False
        self._closing = False
        self._lost = False

    @classmethod
    def pair(
        cls, network: SimNetwork, near: Address, far: Address
    ) -> tuple[SimTransport, SimTransport]:
        """Both ends of a new stream; each begins with its `start`."""
        a, b = cls(network, near, far), cls(network, far, near)
        a._out = b._in = Pipe(network, a, b)
        b._out = a._in = Pipe(network, b, a)
        for end in (a, b):
            end.set_write_buffer_limits(high=network.weather.buffer_bytes)
        return a, b

    def start(self, protocol: asyncio.BaseProtocol) -> None:
        self._protocol = protocol
        protocol.connection_made(self)
        self._in.wake()

    # --- asyncio.Transport -----------------------------------------------------------------------

    def get_protocol(self) -> asyncio.BaseProtocol:
        assert isinstance(self._protocol, asyncio.BaseProtocol)
        return self._protocol

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        self._protocol = protocol

    def is_closing(self) -> bool:
        return self._closing

    def is_reading(self) -> bool:
        return not self._paused and not self._closing

    def pause_reading(self) -> None:
        self._paused = True

    def resume_reading(self) -> None:
        self._paused = False
        self._in.wake()

    def write(self, data: Any) -> None:
        if self._eof:
            raise RuntimeError("Cannot call write() after write_eof()")
        if data and not self._closing:
            self._out.send(bytes(data))
            self._maybe_pause_protocol()

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        if not self._eof and not self._closing:
            self._eof = True
            self._out.send(Signal.EOF)

    def get_write_buffer_size(self) -> int:
        return max(self._out.bytes_waiting - self._network.weather.buffer_bytes, 0)

    def close(self) -> None:
        if not self._closing:
            if not self._eof:
                self._out.send(Signal.EOF)
            self._closing = True
            self._in.wake()
            self.delivered()

    def abort(self) -> None:
        if not self._lost:
            self._out.send_reset()
            self._lose(None)

    # --- the network's side ----------------------------------------------------------------------

    def wants_data(self) -> bool:
        """Whether what arrives is taken. A closed end takes it too, and answers with a reset."""
        return self._closing or (self._protocol is not None and not self._paused)

    def receive(self, item: _Item) -> None:
        if item is Signal.RESET:
            self.reset()
        elif self._closing:
            if item is not Signal.EOF:
                self._out.send_reset()
        elif item is Signal.EOF:
            if not self._call(self._protocol.eof_received):
                self.close()
        else:
            assert isinstance(item, bytes)
            self._call(self._feed, item)

    def _feed(self, data: bytes) -> None:
        if not isinstance(self._protocol, asyncio.BufferedProtocol):
            self._protocol.data_received(data)
            return
        rest = memoryview(data)
        while rest and not self._closing:
            buffer = memoryview(self._protocol.get_buffer(len(rest)))
            size = min(len(buffer), len(rest))
            buffer[:size] = rest[:size]
            self._protocol.buffer_updated(size)
            rest = rest[size:]

    def _call(self, callback: Callable[..., Any], *args: Any) -> Any:
        try:
            return callback(*args)
        except Exception as error:  # as asyncio does: reported, and the stream ends
            message = "Fatal error: a callback of the protocol failed"
            self._loop.call_exception_handler({"message": message, "exception": error})
            self.abort()
            return True

    def delivered(self) -> None:
        """Some of what was written has left."""
        if self._lost or not (self._closing or self._protocol_paused):
            return
        self._loop.call_soon(self._after_delivery, context=self.context)

    def _after_delivery(self) -> None:
        if self._lost or self._protocol is None:
            return
        self._maybe_resume_protocol()
        if self._closing and self.get_write_buffer_size() == 0:
            self._lose(None)

    def reset(self) -> None:
        """The other end is gone."""
        self._out.remove()
        self._lose(ConnectionResetError(104, "connection reset by peer"))

    def time_out(self) -> None:
        """Nothing of what was written arrives, and it is not tried any more."""
        self._out.remove()
        self._lose(TimeoutError(110, "connection timed out"))

    def vanish(self) -> None:
        """This end's process is gone: its protocol hears nothing of it."""
        self._closing = self._lost = True
        self._protocol = None

    def _lose(self, error: Exception | None) -> None:
        if self._lost:
            return
        self._closing = self._lost = True
        if self._protocol is not None:
            self._loop.call_soon(self._protocol.connection_lost, error, context=self.context)


class _Socket:
    """As much of a listening socket as servers show."""

    def __init__(self, address: Address) -> None:
        self._address = address

    def getsockname(self) -> Address:
        return self._address


class SimServer(asyncio.AbstractServer):
    """What `create_server` gives."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        protocol_factory: Callable[[], asyncio.BaseProtocol],
        address: Address,
        forget: Callable[[SimServer], None],
    ) -> None:
        self.address = address
        self._loop = loop
        self._protocol_factory = protocol_factory
        self._forget = forget
        self._context = copy_context()
        self._closed = loop.create_future()

    @property
    def sockets(self) -> Sequence[_Socket]:
        return () if self._closed.done() else (_Socket(self.address),)

    def accept(self, transport: SimTransport) -> None:
        transport.context = self._context.copy()
        self._loop.call_soon(self._accept, transport, context=transport.context)

    def _accept(self, transport: SimTransport) -> None:
        if not transport.is_closing():
            transport.start(self._protocol_factory())

    def get_loop(self) -> asyncio.AbstractEventLoop:
        return self._loop

    def is_serving(self) -> bool:
        return not self._closed.done()

    async def start_serving(self) -> None:
        """It serves from the start."""

    async def serve_forever(self) -> None:
        await self.wait_closed()

    def close(self) -> None:
        self._forget(self)
        if not self._closed.done():
            self._closed.set_result(None)

    async def wait_closed(self) -> None:
        await asyncio.shield(self._closed)


class SimDatagramTransport(asyncio.DatagramTransport):
    """One datagram socket."""

    def __init__(
        self,
        network: SimNetwork,
        protocol: asyncio.BaseProtocol,
        address: Address,
        remote: Address | None,
    ) -> None:
        super().__init__({"sockname": address, "peername": remote})
        self.context = copy_context()
        self._network = network
        self._protocol: Any = protocol
        self._address = address
        self._remote = remote
        self._closing = False

    def sendto(self, data: Any, addr: Any = None) -> None:
        target = addr or self._remote
        assert target is not None, "a datagram needs an address"
        if not self._closing:
            self._network.send_datagram(bytes(data), self._address, target[:2])

    def arrive(self, data: bytes, source: Address) -> None:
        if not self._closing:
            self._protocol.datagram_received(data, source)

    def get_protocol(self) -> asyncio.BaseProtocol:
        assert isinstance(self._protocol, asyncio.BaseProtocol)
        return self._protocol

    def is_closing(self) -> bool:
        return self._closing

    def close(self) -> None:
        if not self._closing:
            self._closing = True
            self._network.close_datagrams(self._address)
            self._network.loop.call_soon(self._protocol.connection_lost, None, context=self.context)

    def abort(self) -> None:
        self.close()
