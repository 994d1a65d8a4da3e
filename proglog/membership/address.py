"""Where a node is reached: an IP address and a port."""

from __future__ import annotations

import ipaddress
from typing import NamedTuple

from proglog.membership.errors import MalformedMessage

_BROADCAST = ipaddress.ip_address("255.255.255.255")


class Address(NamedTuple):
    """A literal IP address in its shortest form and a port, for both UDP and TCP."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def packed(self) -> bytes:
        """The host as 4 or 16 bytes, as it travels."""
        return ipaddress.ip_address(self.host).packed

    def can_reach(self, other: Address) -> bool:
        """Whether a socket at this address can send to one node there: the family is the same, and
        it is the address of one interface."""
        ours, theirs = ipaddress.ip_address(self.host), ipaddress.ip_address(other.host)
        return (
            ours.version == theirs.version
            and not theirs.is_unspecified
            and not theirs.is_multicast
            and theirs != _BROADCAST
        )

    @classmethod
    def unpack(cls, host: bytes, port: int) -> Address:
        """From the wire. Raises MalformedMessage.

        Go keeps IPv4 addresses now as 4 bytes, now as 16 (::ffff:a.b.c.d); here they are one.
        """
        if len(host) not in {4, 16}:
            raise MalformedMessage(f"an IP address of {len(host)} bytes")
        if not 0 < port < 65536:
            raise MalformedMessage(f"port {port}")
        address = ipaddress.ip_address(host)
        mapped = getattr(address, "ipv4_mapped", None)
        return cls(str(mapped or address), port)


def split_host_port(text: str, default_port: int) -> tuple[str, int]:
    """`host`, `host:port`, `[v6]:port` or a bare IPv6 address as host and port.

    Raises ValueError where the port is no port.
    """
    if text.startswith("["):
        host, _, rest = text[1:].partition("]")
        port = rest.removeprefix(":")
    elif text.count(":") == 1:
        host, _, port = text.partition(":")
    else:
        host, port = text, ""
    number = int(port) if port else default_port
    if not host or not 0 < number < 65536:
        raise ValueError(f"{text!r} is no address: expected host:port")
    return host, number
