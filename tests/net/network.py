"""Hosts of their own, each a network namespace, around a router that this process is in.

The router drops what it forwards, or a part of it, without a word: nobody's TCP is told, as it
would be by a filter on its own host. Whoever runs here, next to the router, reaches all hosts.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
_FORWARDING = Path("/proc/sys/net/ipv4/ip_forward")
_WORLD = ("unshare", "--user", "--map-root-user", "--net", "--mount", "--kill-child")


def why_not() -> str:
    """Why there can be no such network here; empty if there can."""
    probe = [*_WORLD, "sh", "-c", "mount -t tmpfs tmpfs /run && ip netns add probe"]
    try:
        done = subprocess.run(probe, capture_output=True, text=True, check=False)
    except OSError as error:
        return str(error)
    return done.stderr.strip() if done.returncode else ""


def within(*arguments: str) -> list[str]:
    """A command that runs this package in a world of its own, which ends with it."""
    return [*_WORLD, sys.executable, "-m", "tests.net", *arguments]


class Network:
    """Hosts n0, n1, ... of which `address(i)` is the i-th."""

    def __init__(self, count: int) -> None:
        _run("mount", "-t", "tmpfs", "tmpfs", "/run")
        _run("ip", "link", "set", "lo", "up")
        self.heal()
        self._last = [2] * count
        for i in range(count):
            name, router = f"n{i}", f"10.77.{i}.1"
            _run("ip", "netns", "add", name)
            _run(
                "ip", "link", "add", f"r{i}", "type", "veth", "peer", "name", "eth0", "netns", name
            )
            _run("ip", "addr", "add", f"{router}/24", "dev", f"r{i}")
            _run("ip", "link", "set", f"r{i}", "up")
            _run("ip", "-n", name, "addr", "add", f"{self.address(i)}/24", "dev", "eth0")
            _run("ip", "-n", name, "link", "set", "eth0", "up")
            _run("ip", "-n", name, "link", "set", "lo", "up")
            _run("ip", "-n", name, "route", "add", "default", "via", router)

    def address(self, i: int) -> str:
        return f"10.77.{i}.{self._last[i]}"

    def lose_everything(self) -> None:
        """Nothing gets from one host to another."""
        _FORWARDING.write_text("0")

    def slow_down(self, i: int, kilobits: int = 400) -> None:
        """What goes to a host takes its time, up to a third of a second in a queue."""
        rate = ("rate", f"{kilobits}kbit", "burst", "4kb", "latency", "300ms")
        _run("tc", "qdisc", "add", "dev", f"r{i}", "root", "tbf", *rate)

    def speed_up(self, i: int) -> None:
        _run("tc", "qdisc", "del", "dev", f"r{i}", "root")

    def move(self, i: int, last: int) -> None:
        """A host gets another address, 10.77.i.LAST, and loses the one that it had."""
        old, self._last[i] = self.address(i), last
        _run("ip", "-n", f"n{i}", "addr", "del", f"{old}/24", "dev", "eth0")
        _run("ip", "-n", f"n{i}", "addr", "add", f"{self.address(i)}/24", "dev", "eth0")
        _run("ip", "-n", f"n{i}", "route", "replace", "default", "via", f"10.77.{i}.1")

    def lose(self, pairs: Iterable[tuple[int, int]]) -> None:
        """Nothing gets from the one to the other of each pair, in this direction."""
        for a, b in pairs:
            _run("ip", "rule", "add", "from", self.address(a), "to", self.address(b), "blackhole")

    def heal(self) -> None:
        _FORWARDING.write_text("1")
        while b"blackhole" in _run("ip", "rule", "list"):
            _run("ip", "rule", "del", "type", "blackhole")

    async def start(
        self, i: int, command: Iterable[str], output: Path, stdout: int | None = None
    ) -> asyncio.subprocess.Process:
        """Runs a program on a host."""
        with output.open("ab") as file:
            return await asyncio.create_subprocess_exec(
                *("ip", "netns", "exec", f"n{i}", *command),
                cwd=ROOT,
                stdout=stdout or file,
                stderr=file,
                env={**os.environ, "PYTHONPATH": str(ROOT)},
            )


def _run(*command: str) -> bytes:
    return subprocess.run(command, check=True, capture_output=True).stdout
