"""The logs that are measured, each through its usual asyncio client, behind one interface."""

from __future__ import annotations

import asyncio
import importlib.util
import shutil
import sys
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from pathlib import Path
from typing import Any, Protocol, Self

import proglog
from proglog.batch import walk
from proglog.cli import bench
from proglog.cli.bench import CHECKED_TOGETHER, Check
from proglog.client.client import Log
from proglog.client.network import NetworkBackend
from proglog.config import Address, join_addresses

HOST = "127.0.0.1"
_READ_BYTES = 2**18


class System(Protocol):
    """A client of one log on this machine.

    Attributes:
        name: what the report calls it.
        calls_inflight: calls of `append_many` at a time that go quickest.
        call_records: records of each.
        log_bytes_max: larger logs are not read well.
    """

    name: str
    calls_inflight: int
    call_records: int
    log_bytes_max: int

    @staticmethod
    def command(folder: Path, port: int) -> list[str] | None:
        """What starts its server; None if it is not installed."""

    @classmethod
    async def connect(cls, port: int) -> Self:
        """Raises OSError or the client's own errors while the server is not there yet."""

    async def close(self) -> None: ...

    async def append(self, value: bytes, /) -> object:
        """Appends one record; returns once the server has acknowledged it."""

    async def append_many(self, values: Sequence[bytes], /) -> object:
        """Appends in order, the quickest way; returns once all are acknowledged."""

    async def read(self, check: Check) -> None:
        """Gives the check the log from its start, record by record as an application would."""

    async def read_lists(self, check: Check) -> None:
        """Gives the check the log from its start, the quickest way."""

    def follow(self) -> AsyncGenerator[bytes, None]:
        """Records from now on, each as it comes. The first is empty: it says that it follows."""

    async def read_raw(self) -> int:
        """Reads the log to its end with as little work as possible; returns bytes."""


class Proglog:
    """One node, or any node of a cluster."""

    name = "proglog"
    calls_inflight = bench.CALLS_INFLIGHT
    call_records = 10_000
    log_bytes_max = 2**40

    def __init__(self, log: Log, addresses: Sequence[Address]) -> None:
        self.log = log
        self._address = addresses[0]
        self._backend = NetworkBackend(addresses, "", None)
        self.append = log.produce
        self.append_many = log.produce_many

    @staticmethod
    def command(folder: Path, port: int) -> list[str] | None:
        return [
            *(sys.executable, "-m", "proglog.cli", "serve", "--quiet", "--log-level=warning"),
            *(f"--data-dir={folder / 'data'}", f"--bind-addr={HOST}:0", f"--rpc-port={port}"),
            "--http-addr=none",
        ]

    @classmethod
    async def connect(cls, port: int) -> Self:
        return await cls.at([Address(HOST, port)])

    @classmethod
    async def at(cls, addresses: Sequence[Address], *, idempotent: bool = True) -> Self:
        """A client of the nodes at some addresses."""
        url = f"proglog://{join_addresses(addresses)}"
        log = await proglog.connect(url, idempotent=idempotent)
        try:
            await log.describe()
        except BaseException:
            await log.close()
            raise
        return cls(log, addresses)

    async def close(self) -> None:
        await self.log.close()
        await self._backend.close()

    async def read(self, check: Check) -> None:
        await bench.consume(self.log, 0, check)

    async def read_lists(self, check: Check) -> None:
        await bench.consume_batches(self.log, 0, check)

    async def follow(self) -> AsyncGenerator[bytes, None]:
        start = (await self.log.describe()).next
        yield b""
        async for record in self.log.consume(start):
            yield record.value

    async def read_raw(self) -> int:
        """Half by batches, for which the client works harder than the server; half as text, for
        which it is the other way round, so that the server's core is the one that is full."""
        end = (await self.log.describe()).next
        async with asyncio.TaskGroup() as tasks:
            halves = tasks.create_task(self._read_chunks()), tasks.create_task(self._read_text(end))
        return sum(half.result() for half in halves)

    async def _read_chunks(self) -> int:
        total = 0
        async with aclosing(self._backend.consume(0, follow=False)) as chunks:
            async for chunk in chunks:
                total += sum(header.size for header, _ in walk(chunk.data))
        return total

    async def _read_text(self, records: int) -> int:
        total = 0
        reader, writer = await asyncio.open_connection(*self._address)
        try:
            writer.write(f"GET /v1/tail?offset=0 HTTP/1.1\r\nHost: {HOST}\r\n\r\n".encode())
            head = await reader.readuntil(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 200 "), head
            while records > 0:
                data = await reader.read(_READ_BYTES)
                assert data, "the stream ended before the log did"
                total += len(data)
                # A line ends with LF, what the transfer coding adds around lines with CR LF.
                records -= data.count(b"\n") - data.count(b"\r")
        finally:
            writer.close()
        return total


_SUBJECT = "log"


class JetStream:
    """A file-backed stream of one NATS server, which does not sync before it acknowledges."""

    name = "JetStream"
    calls_inflight = 4
    call_records = 1000
    # Its client is slower than its server, which cuts off who is 64 MB behind.
    log_bytes_max = 16_000_000

    def __init__(self, connection: Any) -> None:
        self._connection = connection
        self._stream = connection.jetstream(publish_async_max_pending=10_000)

    @staticmethod
    def command(folder: Path, port: int) -> list[str] | None:
        binary = Path(sys.executable).with_name("nats-server")
        if not binary.exists() or importlib.util.find_spec("nats") is None:
            return None
        return [str(binary), "-js", "-sd", str(folder), "-a", HOST, "-p", str(port)]

    @classmethod
    async def connect(cls, port: int) -> Self:
        import nats
        from nats.js.api import StorageType

        async def ignore(_error: Exception) -> None:
            """Of attempts while the server starts; what matters is raised as well."""

        connection = await nats.connect(
            f"nats://{HOST}:{port}", allow_reconnect=False, error_cb=ignore
        )
        system = cls(connection)
        await system._stream.add_stream(
            name=_SUBJECT, subjects=[_SUBJECT], storage=StorageType.FILE
        )
        return system

    async def close(self) -> None:
        await self._connection.close()

    async def append(self, value: bytes) -> object:
        return (await self._stream.publish(_SUBJECT, value)).seq

    async def append_many(self, values: Sequence[bytes]) -> None:
        publish = self._stream.publish_async
        await asyncio.gather(*[await publish(_SUBJECT, value) for value in values])

    async def _subscribe(self, *, new: bool = False, callback: Any = None) -> Any:
        from nats.js.api import AckPolicy, ConsumerConfig, DeliverPolicy

        policy = DeliverPolicy.NEW if new else DeliverPolicy.ALL
        return await self._stream.subscribe(
            _SUBJECT,
            cb=callback,
            config=ConsumerConfig(ack_policy=AckPolicy.NONE, deliver_policy=policy),
            pending_msgs_limit=-1,
            pending_bytes_limit=-1,
        )

    async def _count(self) -> int:
        return int((await self._stream.stream_info(_SUBJECT)).state.messages)

    async def read(self, check: Check) -> None:
        left = await self._count()
        subscription = await self._subscribe()
        taken: list[bytes] = []
        async for message in subscription.messages:
            taken.append(message.data)
            left -= 1
            if len(taken) == CHECKED_TOGETHER or not left:
                # Always to the end: its client hands out the first records after it has got most.
                check.take(taken)
                taken.clear()
            if not left:
                break
        await subscription.unsubscribe()

    async def read_lists(self, check: Check) -> None:
        left = await self._count()
        done = asyncio.get_running_loop().create_future()
        taken: list[bytes] = []

        async def received(message: Any) -> None:
            nonlocal left
            taken.append(message.data)
            left -= 1
            if (len(taken) == CHECKED_TOGETHER or not left) and not done.done():
                try:
                    check.take(taken)
                    if not left:
                        done.set_result(None)
                except Exception as error:
                    done.set_exception(error)
                taken.clear()

        subscription = await self._subscribe(callback=received)
        await done
        await subscription.unsubscribe()

    async def follow(self) -> AsyncGenerator[bytes, None]:
        messages: asyncio.Queue[bytes] = asyncio.Queue()

        async def received(message: Any) -> None:
            messages.put_nowait(message.data)

        await self._subscribe(new=True, callback=received)
        yield b""
        while True:
            yield await messages.get()

    async def read_raw(self) -> int:
        left = await self._count()
        done = asyncio.Event()
        total = 0

        async def received(message: Any) -> None:
            nonlocal left, total
            total += len(message.data)
            left -= 1
            if not left:
                done.set()

        subscription = await self._subscribe(callback=received)
        await done.wait()
        await subscription.unsubscribe()
        return total


_KEY, _FIELD = b"log", b"v"
_LIST_RECORDS = 1000
_CONNECTIONS = 256


class RedisStreams:
    """A stream of one Redis server that syncs its append-only file before it acknowledges."""

    name = "Redis"
    calls_inflight = 4
    call_records = 1000
    log_bytes_max = 2**30

    def __init__(self, client: Any) -> None:
        self._client = client

    @staticmethod
    def command(folder: Path, port: int) -> list[str] | None:
        binary = shutil.which("redis-server")
        if binary is None or importlib.util.find_spec("redis") is None:
            return None
        options = {
            "bind": HOST,
            "port": str(port),
            "dir": str(folder),
            "save": "",
            "appendonly": "yes",
            "appendfsync": "always",
            "auto-aof-rewrite-percentage": "0",
        }
        return [binary, *(word for name, value in options.items() for word in (f"--{name}", value))]

    @classmethod
    async def connect(cls, port: int) -> Self:
        import redis.asyncio

        pool = redis.asyncio.BlockingConnectionPool(
            host=HOST, port=port, max_connections=_CONNECTIONS, timeout=None
        )
        client = redis.asyncio.Redis.from_pool(pool)
        try:
            await client.ping()
        except redis.exceptions.RedisError as error:
            await client.aclose()
            raise OSError(str(error)) from None
        return cls(client)

    async def close(self) -> None:
        await self._client.aclose()

    async def append(self, value: bytes) -> object:
        return await self._client.xadd(_KEY, {_FIELD: value})

    async def append_many(self, values: Sequence[bytes]) -> None:
        pipeline = self._client.pipeline(transaction=False)
        for value in values:
            pipeline.xadd(_KEY, {_FIELD: value})
        await pipeline.execute()

    async def _lists(self) -> AsyncGenerator[list[bytes], None]:
        after = b"-"
        while entries := await self._client.xrange(_KEY, after, b"+", _LIST_RECORDS):
            yield [fields[_FIELD] for _, fields in entries]
            after = b"(" + entries[-1][0]

    async def read(self, check: Check) -> None:
        taken: list[bytes] = []
        async with aclosing(self._lists()) as lists:
            async for values in lists:
                for value in values:
                    taken.append(value)
                    if len(taken) == CHECKED_TOGETHER:
                        if check.take(taken):
                            return
                        taken.clear()
        check.take(taken)

    async def read_lists(self, check: Check) -> None:
        async with aclosing(self._lists()) as lists:
            async for values in lists:
                if check.take(values):
                    return

    async def follow(self) -> AsyncGenerator[bytes, None]:
        newest = await self._client.xrevrange(_KEY, count=1)
        after = newest[0][0] if newest else b"0-0"
        yield b""
        while True:
            for _, entries in await self._client.xread({_KEY: after}, block=1000) or ():
                for identity, fields in entries:
                    after = identity
                    yield fields[_FIELD]

    async def read_raw(self) -> int:
        total = 0
        async with aclosing(self._lists()) as lists:
            async for values in lists:
                total += sum(map(len, values))
        return total


SYSTEMS: dict[str, type[System]] = {
    system.name: system for system in (Proglog, JetStream, RedisStreams)
}
