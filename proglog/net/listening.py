"""Sockets that listen, on one address or on every address of the machine."""

from __future__ import annotations

import ipaddress
import socket
from typing import Any

_BACKLOG = 1024
EVERYWHERE = "::"
"""Every address of the machine, those of IPv4 too."""


def listen(host: str, port: int) -> socket.socket:
    """A listening socket; port 0 picks a free one. Raises OSError."""
    listener = _bound(host, port, socket.SOCK_STREAM)
    listener.listen(_BACKLOG)
    return listener


def receive(host: str, port: int) -> socket.socket:
    """A socket for datagrams. Raises OSError."""
    return _bound(host, port, socket.SOCK_DGRAM)


def _bound(host: str, port: int, kind: socket.SocketKind) -> socket.socket:
    family, place = _place(host, port, kind)
    bound = socket.socket(family, kind)
    try:
        bound.setblocking(False)
        if kind == socket.SOCK_STREAM:
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            bound.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, int(host != EVERYWHERE))
        bound.bind(place)
    except OSError:
        bound.close()
        raise
    return bound


def _place(
    host: str, port: int, kind: socket.SocketKind
) -> tuple[socket.AddressFamily, tuple[Any, ...]]:
    """Where a host is bound: a name at its first IPv4 address, or at its first one."""
    if host == EVERYWHERE and not _has_ipv6():
        host = "0.0.0.0"  # noqa: S104  # asked for, by the name that it has where there is IPv6  # nosec B104
    found = socket.getaddrinfo(host, port, socket.AF_UNSPEC, kind)
    family, _, _, _, place = min(found, key=lambda each: each[0] != socket.AF_INET)
    return family, place


def _has_ipv6() -> bool:
    """Whether the machine has not been told to do without."""
    try:
        with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as probe:
            probe.bind(("::", 0))
    except OSError:
        return False
    return True


def unmapped(host: str) -> str:
    """The address of a peer, as the system tells it to a socket of both families: one of IPv4 comes
    as ::ffff:192.0.2.1, and with a scope behind % where it is of a link."""
    host = host.partition("%")[0]
    return host.removeprefix("::ffff:") if "." in host else host


def mapped(host: str) -> str:
    """As a socket of both families takes an address of IPv4."""
    return f"::ffff:{host}" if ":" not in host else host


def outward_host(host: str) -> str:
    """The address that an unspecified one stands for towards others: that of the interface which
    leads out, of IPv4 if there is one, or loopback without any. Others are returned as they are.

    Sends nothing: to connect a datagram socket only picks a route (the targets are addresses for
    documentation).
    """
    if not ipaddress.ip_address(host).is_unspecified:
        return host
    routes = [(socket.AF_INET, "192.0.2.1")]
    if ":" in host:
        routes.append((socket.AF_INET6, "2001:db8::1"))
    for family, target in routes:
        try:
            with socket.socket(family, socket.SOCK_DGRAM) as probe:
                probe.setblocking(False)
                probe.connect((target, 9))
                return str(probe.getsockname()[0])
        except OSError:
            continue
    return "127.0.0.1"
