"""How packets and streams reach other nodes: a port, and its real implementation on asyncio."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import socket
from dataclasses import dataclass
from typing import Protocol

from proglog.errors import why_not_bound
from proglog.membership import limits
from proglog.membership.address import Address
from proglog.membership.codec.keyring import Keyring
from proglog.membership.codec.messages import RemoteError
from proglog.membership.codec.streams import StreamDecoder, StreamMessage, encode_stream
from proglog.membership.errors import BindFailed, ExchangeFailed, MalformedMessage
from proglog.net.listening import EVERYWHERE, listen, mapped, outward_host, receive, unmapped

_BIND_ATTEMPTS = 8
_READ_BYTES = 64 * limits.KiB


class Handler(Protocol):
    """Who is told what arrives. Called on the loop, never concurrently."""

    def on_packet(self, data: bytes, source: Address) -> None: ...

    def on_stream(self, message: StreamMessage) -> StreamMessage | None:
        """The answer to a peer's message. Raises MalformedMessage."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TransportStatistics:
    packets_received: int
    packets_sent: int
    packets_failed: int
    """Refused by the kernel on the way out."""
    streams_served: int
    streams_refused: int
    """Connections that gave way to others because too many were open."""
    streams_failed: int
    """Connections that brought no valid message in time."""


class Transport(Protocol):
    """Datagrams and one-message connections, at one address for both."""

    async def start(self, handler: Handler) -> Address:
        """Listens; returns an address at which peers can reach it. Raises BindFailed."""

    async def resolve(self, host: str, port: int) -> list[Address]:
        """All addresses of a name, now. Raises ExchangeFailed."""

    def send(self, address: Address, data: bytes) -> None:
        """Sends a datagram, or loses it."""

    async def exchange(
        self, address: Address, message: StreamMessage, timeout_s: float
    ) -> StreamMessage:
        """Connects, sends one message and returns the answer. Raises ExchangeFailed."""

    def statistics(self) -> TransportStatistics: ...

    async def close(self) -> None:
        """Stops at once: nothing is sent or received after it."""


class NetworkTransport:
    """UDP and TCP on one port."""

    def __init__(self, host: str, port: int, keyring: Keyring, timeout_s: float) -> None:
        """`timeout_s` bounds each connection that a peer opens."""
        self._host = host
        self._port = port
        self._keyring = keyring
        self._timeout_s = timeout_s
        self._handler: Handler | None = None
        self._server: asyncio.Server | None = None
        self._datagrams: asyncio.DatagramTransport | None = None
        self._serving: dict[asyncio.Task[None], asyncio.StreamWriter] = {}
        self._silent: dict[asyncio.Task[None], asyncio.StreamWriter] = {}
        """Those of them that have not brought a message yet, which shows that they have the key."""
        self._maps = False
        """Whether the datagrams' socket is of both families, and takes addresses of the newer."""
        self._dialling = asyncio.Semaphore(limits.streams_max)
        self._received = self._sent = self._failed = 0
        self._served = self._refused = self._streams_failed = 0

    # --- starting and stopping -------------------------------------------------------------------

    async def start(self, handler: Handler) -> Address:
        self._handler = handler
        for attempt in range(_BIND_ATTEMPTS):
            try:
                bound = await self._bind(handler)
                break
            except OSError as error:
                await self.close()
                # Any free TCP port may be taken for UDP; a port that was asked for is or is not.
                if self._port or attempt + 1 == _BIND_ATTEMPTS:
                    wanted, why = f"{self._host}:{self._port}", why_not_bound(error)
                    raise BindFailed(
                        f"cannot gossip at {wanted}: {why} another address to bind", address=wanted
                    ) from error
        address = ipaddress.ip_address(outward_host(unmapped(bound[0])))
        return Address.unpack(address.packed, bound[1])

    async def _bind(self, handler: Handler) -> tuple[str, int]:
        loop = asyncio.get_running_loop()
        # One address: a node advertises one, and port 0 must be the same port for both protocols.
        listener = listen(self._host, self._port)
        self._server = await asyncio.start_server(self._serve, sock=listener)
        bound_host, port = listener.getsockname()[:2]
        datagrams = receive(self._host, port)
        self._maps = datagrams.family == socket.AF_INET6 and bound_host == EVERYWHERE
        self._datagrams, _ = await loop.create_datagram_endpoint(
            lambda: _Datagrams(self, handler), sock=datagrams
        )
        return bound_host, port

    async def close(self) -> None:
        if self._datagrams is not None:
            self._datagrams.abort()
        if self._server is not None:
            self._server.close()
        serving = list(self._serving)
        for task in serving:
            task.cancel()
        await asyncio.gather(*serving, return_exceptions=True)
        if self._server is not None:
            await self._server.wait_closed()
        self._server = self._datagrams = None

    async def resolve(self, host: str, port: int) -> list[Address]:
        loop = asyncio.get_running_loop()
        try:
            infos = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError) as error:
            raise ExchangeFailed(f"cannot resolve {host}: {error}") from error
        found = {Address(str(info[4][0]).partition("%")[0], port): None for info in infos}
        return list(found)[: limits.join_addresses_max]

    # --- datagrams -------------------------------------------------------------------------------

    def send(self, address: Address, data: bytes) -> None:
        if self._datagrams is None or self._datagrams.is_closing():
            return
        self._sent += 1
        try:
            host = mapped(address.host) if self._maps else address.host
            self._datagrams.sendto(data, (host, address.port))
        except (OSError, ValueError):
            # Others say where answers go. What cannot be sent there (uvloop raises ValueError for
            # an address of another family) is lost, like any datagram, and nothing else is.
            self._failed += 1

    def count_received(self) -> None:
        self._received += 1

    def count_failed(self) -> None:
        self._failed += 1

    # --- streams ---------------------------------------------------------------------------------

    async def exchange(
        self, address: Address, message: StreamMessage, timeout_s: float
    ) -> StreamMessage:
        try:
            async with asyncio.timeout(timeout_s), self._dialling:
                reader, writer = await asyncio.open_connection(*address)
                with contextlib.closing(writer):
                    writer.write(encode_stream(message, self._keyring))
                    await writer.drain()
                    return await self._read(reader)
        except TimeoutError as error:
            raise ExchangeFailed(f"no answer from {address} in {timeout_s:g} s") from error
        except (OSError, ValueError, MalformedMessage) as error:
            raise ExchangeFailed(f"{address}: {error}") from error

    async def _read(self, reader: asyncio.StreamReader) -> StreamMessage:
        """The one message of a connection. Raises MalformedMessage."""
        decoder = StreamDecoder(self._keyring)
        while True:
            data = await reader.read(_READ_BYTES)
            if not data:
                raise MalformedMessage("connection closed before the end of a message")
            if decoder.size + len(data) <= limits.stream_inline_bytes_max:
                message = decoder.feed(data)
            else:
                # Decompression in Python takes 0.1 s a MiB.
                message = await asyncio.to_thread(decoder.feed, data)
            if message is not None:
                return message

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._give_way()
        self._serving[task] = self._silent[task] = writer
        try:
            async with asyncio.timeout(self._timeout_s):
                await self._answer(reader, writer)
            self._served += 1
        except (OSError, MalformedMessage):
            # TimeoutError is an OSError. The peer's fault or the network's: it will ask again.
            self._streams_failed += 1
        finally:
            self._serving.pop(task, None)
            self._silent.pop(task, None)
            writer.close()

    def _give_way(self) -> None:
        """Ends the connection that can best be spared if there are as many as there may be: whoever
        opens some and says nothing must not keep out those who have something to say."""
        while len(self._serving) >= limits.streams_max:
            self._refused += 1
            task, writer = next(iter((self._silent or self._serving).items()))
            del self._serving[task]
            self._silent.pop(task, None)
            # What it waits for comes to an end by this, and with it the task.
            writer.transport.abort()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        assert self._handler is not None
        task = asyncio.current_task()
        assert task is not None
        try:
            message = await self._read(reader)
            self._silent.pop(task, None)
            answer = self._handler.on_stream(message)
        except MalformedMessage as error:
            answer = RemoteError(reason=str(error))
            self._streams_failed += 1
        # Closed by us where it had to give way: uvloop raises for what is written then.
        if answer is not None and not writer.is_closing():
            writer.write(encode_stream(answer, self._keyring))
            await writer.drain()

    def statistics(self) -> TransportStatistics:
        return TransportStatistics(
            packets_received=self._received,
            packets_sent=self._sent,
            packets_failed=self._failed,
            streams_served=self._served,
            streams_refused=self._refused,
            streams_failed=self._streams_failed,
        )


class _Datagrams(asyncio.DatagramProtocol):
    def __init__(self, transport: NetworkTransport, handler: Handler) -> None:
        self._transport = transport
        self._handler = handler

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        self._transport.count_received()
        self._handler.on_packet(data, Address(unmapped(addr[0]), addr[1]))

    def error_received(self, exc: Exception) -> None:  # noqa: ARG002  # asyncio calls it by position
        self._transport.count_failed()
