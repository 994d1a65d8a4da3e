"""Connecting to an address by name."""

from __future__ import annotations

import asyncio
import copy
import socket
import ssl
from collections.abc import Callable
from typing import TypeVar

from proglog.config import Address
from proglog.errors import let_go

P = TypeVar("P", bound=asyncio.BaseProtocol)


async def dial(
    factory: Callable[[], P], address: Address, tls: ssl.SSLContext | None = None
) -> tuple[asyncio.BaseTransport, P]:
    """A connection to the first of the addresses of a name that accepts one. Raises OSError.

    The name is not left to `create_connection`: uvloop's, cancelled while it looks one up, forgets
    the look-up, whose failure asyncio then reports as one that nobody has heard of.
    """
    loop = asyncio.get_running_loop()
    found = await loop.getaddrinfo(*address, type=socket.SOCK_STREAM)
    failure = OSError(f"{address.host} has no address")
    for *_, place in found:
        try:
            return await loop.create_connection(
                factory,
                str(place[0]),
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
