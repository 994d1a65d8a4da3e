"""Connecting to an address by name."""

from __future__ import annotations

import asyncio
import copy
import socket
import ssl
from collections.abc import Awaitable, Callable
from typing import Any, Protocol, TypeVar

from proglog import limits
from proglog.config import Address
from proglog.errors import let_go

P = TypeVar("P", bound=asyncio.BaseProtocol)


class Names:
    """Where names are, looked up beside whoever dials: the last good answer serves until there is
    a better one. A network that is lost takes its name servers along, and a look-up of the system
    then waits for seconds."""

    def __init__(self) -> None:
        self._found: dict[Address, list[str]] = {}
        self._looking: dict[Address, asyncio.Task[None]] = {}

    async def find(self, address: Address) -> list[str]:
        """The addresses of a name. Raises OSError."""
        looking = self._looking.get(address)
        if looking is None:
            looking = asyncio.get_running_loop().create_task(self._look(address))
            looking.add_done_callback(forget_failure)
            self._looking[address] = looking
        if address not in self._found:
            # Not cancelled with whoever waits: the answer is of use the next time.
            await asyncio.shield(looking)
        return self._found[address]

    async def _look(self, address: Address) -> None:
        try:
            self._keep(address, await _look_up(address))
        except OSError:
            if address not in self._found:
                raise
        finally:
            del self._looking[address]

    def _keep(self, address: Address, places: list[str]) -> None:
        if len(self._found) >= limits.names_max:
            self._found.pop(next(iter(self._found)))
        self._found[address] = places


def forget_failure(task: asyncio.Task[Any]) -> None:
    """It is told to whoever waits, if anybody still does; asyncio need not speak of it."""
    if not task.cancelled():
        task.exception()


async def _look_up(address: Address) -> list[str]:
    loop = asyncio.get_running_loop()
    found = await loop.getaddrinfo(*address, type=socket.SOCK_STREAM)
    if not found:
        raise OSError(f"{address.host} has no address")
    return [str(place[0]) for *_, place in found]


async def dial(
    factory: Callable[[], P],
    address: Address,
    tls: ssl.SSLContext | None = None,
    find: Callable[[Address], Awaitable[list[str]]] = _look_up,
) -> tuple[asyncio.BaseTransport, P]:
    """A connection to the first of the addresses of a name that accepts one. Raises OSError.

    The name is not left to `create_connection`: uvloop's, cancelled while it looks one up, forgets
    the look-up, whose failure asyncio then reports as one that nobody has heard of.
    """
    loop = asyncio.get_running_loop()
    failure = OSError(f"{address.host} has no address")
    for place in await find(address):
        try:
            return await loop.create_connection(
                factory,
                place,
                address.port,
                ssl=tls,
                server_hostname=address.host if tls else None,
            )
        except ssl.SSLError:
            raise
        except OSError as error:
            failure = error
            let_go(error)
    raise copy.copy(failure)


class Way(Protocol):
    """How connections to nodes are made."""

    @property
    def scheme(self) -> str:
        """Of the requests on them: http or https."""

    @property
    def version(self) -> int:
        """Grows when connections should be made anew; those that are there may end their calls."""

    async def refresh(self) -> None:
        """Finds out whether that is so. Raises ConfigurationError."""

    async def dial(
        self, factory: Callable[[], P], address: Address
    ) -> tuple[asyncio.BaseTransport, P]:
        """Raises OSError, ConfigurationError."""


class Plain:
    """Without TLS."""

    scheme = "http"
    version = 0

    async def refresh(self) -> None:
        """There is nothing to read."""

    async def dial(
        self, factory: Callable[[], P], address: Address
    ) -> tuple[asyncio.BaseTransport, P]:
        return await dial(factory, address)


class Encrypted:
    """By a context of the user's own."""

    scheme = "https"
    version = 0

    def __init__(self, context: ssl.SSLContext) -> None:
        self._context = context

    async def refresh(self) -> None:
        """It is the user's."""

    async def dial(
        self, factory: Callable[[], P], address: Address
    ) -> tuple[asyncio.BaseTransport, P]:
        return await dial(factory, address, self._context)
