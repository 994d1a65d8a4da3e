"""Ports for servers that are processes of their own, which cannot tell which one they got."""

from __future__ import annotations

import contextlib
import os
import random
import socket
from collections.abc import Iterable

_PORTS = range(15_000, 30_000)
"""Below those that the kernel gives to outgoing connections: none of ours is taken by one."""


def _share(ports: range) -> range:
    """Those of this process, where the tests are shared among several (pytest-xdist): a port that
    is promised to a server of another one, which has yet to start, looks free."""
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    size = len(ports) // int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    return ports[worker * size : (worker + 1) * size]


_unused = list(_share(_PORTS))
"""In a random order, so that two runs of the tests at a time seldom want the same. Each is given
once a run, for the same reason."""
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
    return free_base([0])


def free_base(offsets: Iterable[int]) -> int:
    """One from which ports at all these distances are free, and were given to nobody else."""
    distances, unused = list(offsets), set(_unused)
    for base in _unused:
        ports = [base + distance for distance in distances]
        if unused.issuperset(ports) and all(map(is_free, ports)):
            for port in ports:
                _unused.remove(port)
            return base
    raise AssertionError("no port is left")
