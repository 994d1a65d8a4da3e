"""Names with several addresses, and none."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import ssl
from typing import Any

import pytest

from proglog import limits
from proglog.config import Address
from proglog.net import dialling

ADDRESS = Address("node", 8400)


class Loop:
    """Knows the addresses of one name, and which of them accept."""

    def __init__(self, found: list[str], accepting: dict[str, OSError | None]) -> None:
        self._found = found
        self._accepting = accepting
        self.tried: list[tuple[str, str | None]] = []

    async def getaddrinfo(self, host: str, port: int, **_options: object) -> list[Any]:
        assert (host, port) == ADDRESS
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (ip, port)) for ip in self._found]

    async def create_connection(
        self,
        factory: Any,
        host: str,
        _port: int,
        *,
        server_hostname: str | None,
        **_options: object,
    ) -> tuple[str, Any]:
        self.tried.append((host, server_hostname))
        if (error := self._accepting[host]) is not None:
            raise error
        return "transport", factory()


@pytest.fixture
def use(monkeypatch: pytest.MonkeyPatch) -> Any:
    def use(loop: Loop) -> Loop:
        monkeypatch.setattr(dialling.asyncio, "get_running_loop", lambda: loop)
        return loop

    return use


REFUSED = ConnectionRefusedError(errno.ECONNREFUSED, os.strerror(errno.ECONNREFUSED))


async def test_the_first_address_that_accepts_is_taken(use: Any) -> None:
    loop = use(Loop(["10.0.0.1", "10.0.0.2"], {"10.0.0.1": REFUSED, "10.0.0.2": None}))
    made = asyncio.Protocol()
    assert await dialling.dial(lambda: made, ADDRESS) == ("transport", made)
    assert loop.tried == [("10.0.0.1", None), ("10.0.0.2", None)]


async def test_the_certificate_is_that_of_the_name(use: Any) -> None:
    loop = use(Loop(["10.0.0.1"], {"10.0.0.1": None}))
    await dialling.dial(asyncio.Protocol, ADDRESS, ssl.create_default_context())
    assert loop.tried == [("10.0.0.1", "node")]


async def test_a_wrong_certificate_is_not_got_around(use: Any) -> None:
    wrong = ssl.SSLCertVerificationError("another name")
    loop = use(Loop(["10.0.0.1", "10.0.0.2"], {"10.0.0.1": wrong, "10.0.0.2": None}))
    with pytest.raises(ssl.SSLCertVerificationError):
        await dialling.dial(asyncio.Protocol, ADDRESS, ssl.create_default_context())
    assert loop.tried == [("10.0.0.1", "node")]


@pytest.mark.parametrize(("found", "why"), [(["10.0.0.1"], "refused"), ([], "no address")])
async def test_where_none_accepts_it_says_why(use: Any, found: list[str], why: str) -> None:
    use(Loop(found, {"10.0.0.1": REFUSED}))
    with pytest.raises(OSError, match=why):
        await dialling.dial(asyncio.Protocol, ADDRESS)


class NameServer:
    """In the place of a loop's look-up."""

    def __init__(self) -> None:
        self.found: list[str] | OSError = ["10.0.0.1"]
        self.seconds = 0.0
        self.asked = 0

    async def getaddrinfo(self, host: str, port: int, **_options: object) -> list[Any]:
        self.asked += 1
        found = self.found
        await asyncio.sleep(self.seconds)
        if isinstance(found, OSError):
            raise found
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (ip, port)) for ip in found]


@pytest.fixture
async def name_server(monkeypatch: pytest.MonkeyPatch) -> NameServer:
    server = NameServer()
    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", server.getaddrinfo)
    return server


@pytest.mark.virtual_time
async def test_the_last_good_answer_serves_while_there_is_no_better_one(
    name_server: NameServer,
) -> None:
    names, loop = dialling.Names(), asyncio.get_running_loop()
    assert await names.find(ADDRESS) == ["10.0.0.1"]
    # A partition takes the name server along.
    name_server.found, name_server.seconds = socket.gaierror(-3, "try again"), 5.0
    began = loop.time()
    for _ in range(10):
        assert await names.find(ADDRESS) == ["10.0.0.1"]
    assert loop.time() == began
    await asyncio.sleep(6)
    assert name_server.asked == 2, "one look-up at a time"
    # It is back, and the host has moved.
    name_server.found, name_server.seconds = ["10.0.0.2"], 0.01
    assert await names.find(ADDRESS) == ["10.0.0.1"]
    await asyncio.sleep(0.02)
    assert await names.find(ADDRESS) == ["10.0.0.2"]


@pytest.mark.virtual_time
async def test_a_look_up_goes_on_without_who_began_it(name_server: NameServer) -> None:
    names = dialling.Names()
    name_server.seconds = 1.0
    for _ in range(2):
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.4):
                await names.find(ADDRESS)
    async with asyncio.timeout(0.4):
        assert await names.find(ADDRESS) == ["10.0.0.1"]
    assert name_server.asked == 1


@pytest.mark.virtual_time
async def test_a_name_that_nobody_knows_is_asked_for_again(name_server: NameServer) -> None:
    names = dialling.Names()
    name_server.found = socket.gaierror(-2, "unknown")
    for _ in range(2):
        with pytest.raises(OSError, match="unknown"):
            await names.find(ADDRESS)
    name_server.found = []
    with pytest.raises(OSError, match="no address"):
        await names.find(ADDRESS)
    name_server.found = ["10.0.0.1"]
    for number in range(2 * limits.names_max):
        await names.find(Address(f"name-{number}", 1))
    assert len(names._found) <= limits.names_max
