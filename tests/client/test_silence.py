"""A node that says nothing is left on the word of another one, and on nobody's word but that."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import pytest
from grpclib.config import Configuration

import proglog
from proglog import limits
from proglog.client import channel
from proglog.client.silence import Watch, another_leader
from proglog.config import Address
from proglog.errors import Unavailable
from tests.client.server import serving
from tests.waiting import until

A, B, C = (Address(name, 1) for name in "abc")


class Wire:
    """What a watch does, and when."""

    def __init__(self) -> None:
        self.waits = True
        self.pings = self.silences = 0
        self.watch = Watch(waits=lambda: self.waits, ping=self._ping, silent=self._silent)

    def _ping(self) -> None:
        self.pings += 1

    def _silent(self) -> None:
        self.silences += 1


@pytest.mark.virtual_time
async def test_who_answers_in_time_is_never_silent() -> None:
    wire = Wire()
    wire.watch.begin()
    for _ in range(100):
        await asyncio.sleep(limits.client_quiet_seconds + limits.client_pong_seconds / 2)
        wire.watch.heard()
    assert wire.silences == 0
    assert 40 <= wire.pings <= 100


@pytest.mark.virtual_time
async def test_who_says_nothing_is_asked_for_a_sign_of_life_first() -> None:
    wire = Wire()
    wire.watch.begin()
    await asyncio.sleep(limits.client_quiet_seconds + limits.client_pong_seconds / 2)
    assert (wire.pings, wire.silences) == (1, 0)
    await asyncio.sleep(limits.client_pong_seconds)
    assert (wire.pings, wire.silences) == (1, 1)
    await asyncio.sleep(3 * limits.client_pong_seconds)
    assert (wire.pings, wire.silences) == (1, 4)
    wire.watch.heard()
    await asyncio.sleep(limits.client_quiet_seconds / 2)
    assert (wire.pings, wire.silences) == (1, 4)


@pytest.mark.virtual_time
async def test_nobody_is_asked_while_no_call_waits() -> None:
    wire = Wire()
    wire.watch.begin()
    wire.waits = False
    await asyncio.sleep(100)
    assert (wire.pings, wire.silences) == (0, 0)
    wire.waits = True
    wire.watch.begin()
    await asyncio.sleep(limits.client_quiet_seconds * 0.9)
    assert (wire.pings, wire.silences) == (0, 0), "it was not silent: nothing was asked of it"
    wire.watch.end()
    await asyncio.sleep(100)
    assert (wire.pings, wire.silences) == (0, 0)


@pytest.mark.virtual_time
async def test_the_first_word_of_another_leader_counts() -> None:
    async def ask(address: Address) -> str:
        if address == A:
            raise Unavailable("no")
        if address == B:
            await asyncio.sleep(3600)
        await asyncio.sleep(0.01)
        return "c:1"

    assert await another_leader([A, B, C], A, ask) == "c:1"
    assert await another_leader([A, B], A, ask) == ""
    assert await another_leader([], A, ask) == ""
    assert await another_leader([C], C, ask) == "", "who is silent is its own leader still"


@asynccontextmanager
async def mute_server() -> AsyncIterator[int]:
    """A process that hangs: it accepts, and says nothing more. Its port."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError):
            await reader.read(-1)
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()


@pytest.fixture
def only_words(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither a keepalive nor the sender's patience ends anything."""
    never = Configuration(_keepalive_time=1000, _keepalive_timeout=1000).__for_client__()
    monkeypatch.setattr(channel, "_CONFIGURATION", never)
    monkeypatch.setattr(limits, "client_patience_seconds_first", 1000.0)
    monkeypatch.setattr(limits, "client_quiet_seconds", 0.1)


@pytest.mark.usefixtures("only_words")
async def test_producers_and_readers_leave_a_leader_that_hangs_for_the_new_one() -> None:
    async with mute_server() as mute, serving() as server:
        server.service.fake.leader_addr = f"127.0.0.1:{mute}"
        url = f"proglog://127.0.0.1:{mute},127.0.0.1:{server.port}"
        async with proglog.connect(url, timeout_seconds=60) as log:
            record, next_one = asyncio.ensure_future(log.produce(b"a")), log.consume(0)
            read = asyncio.ensure_future(anext(next_one))
            # For its followers it leads still: it is left alone, however long it says nothing.
            await until(lambda: server.service.calls.count("describe") >= 3)
            assert not record.done()
            assert not read.done()
            server.service.fake.leader_addr = f"127.0.0.1:{server.port}"
            assert await record == 0
            assert (await read).value == b"a"
            await next_one.aclose()
