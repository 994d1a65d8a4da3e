"""Ports for servers that are processes of their own, which cannot tell which one they got."""

from __future__ import annotations

import contextlib
import random
import socket

_PORTS = range(15_000, 30_000)
"""Below those that the kernel gives to outgoing connections: none of ours is taken by one."""
_unused = list(_PORTS)
"""In a random order, so that two runs of the tests at a time seldom want the same. Each is given
once a run: a port that is promised to one server, which has yet to start, looks free."""
random.SystemRandom().shuffle(_unused)


def is_free(port: int) -> bool:
    """Whether a port of 127.0.0.1 is free for TCP and UDP."""
    with (
        contextlib.suppress(OSError),
        socket.socket() as tcp,
        socket.socket(type=socket.SOCK_DGRAM) as udp,
    ):
        tcp.bind(("127.0.0.1", port))
        udp.bind(("127.0.0.1", port))
        return True
    return False


def free_port() -> int:
    """One that is, and that nobody else in this process was given."""
    while not is_free(port := _unused.pop()):
        pass
    return port
