"""What one node gives to all who come from outside: limits by name, and one pool of memory.

Each limit that an outsider can reach is a row here. The rows make the table in docs/limits.md and a
metric each, and whoever is stopped by one is counted under its name.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable
from typing import Final, NamedTuple, Protocol

from proglog import limits

_log = logging.getLogger("proglog.edge")


class Limit(NamedTuple):
    """One bound of the edge."""

    name: str
    value: float
    unit: str
    answer: str
    """What happens to whoever reaches it."""


_CALM: Final = "The connection ends: GOAWAY, ENHANCE_YOUR_CALM."

LIMITS: Final = (
    Limit(
        "connections",
        limits.connections_max,
        "connections of a port",
        "The source with most of them loses its oldest; where that is the newcomer's own, the "
        "newcomer is closed. Fewer where the process may have fewer descriptors.",
    ),
    Limit(
        "peer_connections_reserved",
        limits.peer_connections_reserved,
        "connections",
        "Kept for other nodes: clients get none of them.",
    ),
    Limit(
        "undecided_connections",
        limits.undecided_connections_max,
        "connections that have not said what they speak",
        "The source with most of them loses its oldest.",
    ),
    Limit(
        "preface_seconds",
        limits.sniff_seconds_max,
        "s until a connection says what it speaks, and HTTP/2 its SETTINGS",
        "The connection is closed.",
    ),
    Limit(
        "idle_seconds",
        limits.http2_idle_seconds_max,
        "s without a call",
        "GOAWAY, NO_ERROR: clients dial again for their next call.",
    ),
    Limit(
        "unread_seconds",
        limits.http2_unread_seconds_max,
        "s in which a client takes nothing of what waits for it",
        "The connection is closed.",
    ),
    Limit(
        "streams",
        limits.streams_per_connection_max,
        "calls of one connection",
        "Clients wait: it is in our SETTINGS. One that does not ends its connection by it.",
    ),
    Limit(
        "unary_seconds",
        limits.unary_seconds_max,
        "s for a unary call that names no deadline",
        "DEADLINE_EXCEEDED.",
    ),
    Limit(
        "message_bytes",
        limits.message_bytes_max,
        "bytes of one message",
        "RESOURCE_EXHAUSTED; over HTTP 413.",
    ),
    Limit(
        "message_bytes_per_second",
        limits.message_bytes_per_second_min,
        f"bytes/s of a message that has begun, at least, after {limits.message_grace_seconds:g} s",
        "DEADLINE_EXCEEDED.",
    ),
    Limit(
        "held_bytes",
        limits.edge_bytes_max,
        "bytes received and not handled, or answered and not taken, of all clients",
        "The connection that holds most ends: GOAWAY, ENHANCE_YOUR_CALM.",
    ),
    Limit(
        "idle_frames",
        limits.http2_idle_frames_per_second_max,
        "frames/s of one connection that carry nothing",
        _CALM,
    ),
    Limit("resets", limits.resets_per_second_max, "streams/s of one connection reset", _CALM),
    Limit("headers", limits.http2_header_list_bytes_max, "bytes of the headers of a call", _CALM),
    Limit(
        "turn_units",
        limits.turn_units_max,
        "units (about 8 us) of one turn of the loop, for all clients",
        "They are not read until their turn comes.",
    ),
)


class Budgets:
    """The budgets of one node: what is held, and how often each limit was reached."""

    def __init__(self) -> None:
        self.reached: Counter[str] = Counter({limit.name: 0 for limit in LIMITS})
        self.pool = Pool(limits.edge_bytes_max, self)

    def count(self, name: str) -> None:
        """Somebody has reached a limit."""
        assert name in self.reached, f"{name} is no limit of the edge"
        self.reached[name] += 1


class Holder(Protocol):
    """A connection, as the pool sees it."""

    held_bytes: int

    def give_way(self) -> None:
        """Ends it: the pool is full, and it holds most."""


class Pool:
    """Memory that outsiders make the node hold, of all of them together.

    A stream's window bounds what it may send, but a client may have many streams, and open many
    connections. Where it is full, whoever holds most gives way: no modest client does.
    """

    def __init__(self, bytes_max: int, budgets: Budgets) -> None:
        self.bytes_max = bytes_max
        self.used = 0
        self._budgets = budgets
        self._holders: dict[Holder, None] = {}

    def hold(self, holder: Holder, size: int) -> None:
        """So many bytes more are held."""
        self.used += size
        holder.held_bytes += size
        self._holders[holder] = None
        if self.used > self.bytes_max:
            greediest = max(self._holders, key=lambda each: each.held_bytes)
            self._budgets.count("held_bytes")
            self.leave(greediest)
            greediest.give_way()

    def release(self, holder: Holder, size: int) -> None:
        """So many bytes less. Of one that has left nothing is held any more."""
        if holder in self._holders:
            self.used -= size
            holder.held_bytes -= size

    def leave(self, holder: Holder) -> None:
        """The connection is over."""
        if holder in self._holders:
            del self._holders[holder]
            self.used -= holder.held_bytes
            holder.held_bytes = 0


class Seldom:
    """Lines of a log that outsiders cause: the first at once, then one in a while with a count.

    Otherwise whoever is refused fills the disk, or hides what matters.
    """

    def __init__(
        self, clock: Callable[[], float], seconds: float = limits.outsiders_line_seconds
    ) -> None:
        self._clock = clock
        self._seconds = seconds
        self._told: dict[str, float] = {}
        self._untold: Counter[str] = Counter()

    def tell(self, level: int, event: str, text: str) -> None:
        """`event` is one of few; `text` says what happened this time."""
        now = self._clock()
        if event in self._told and now - self._told[event] < self._seconds:
            self._untold[event] += 1
            return
        self._told[event] = now
        more = self._untold.pop(event, 0)
        suffix = f" (and {more:,} more since the last line)" if more else ""
        _log.log(level, "%s: %s%s", event, text, suffix)


def limits_document() -> str:
    """docs/limits.md."""
    rows = "\n".join(
        f"| `{limit.name}` | {limit.value:,g} | {limit.unit} | {limit.answer} |" for limit in LIMITS
    )
    return f"{_HEAD}\n| name | limit | of what | what happens |\n|---|---|---|---|\n{rows}\n"


_HEAD: Final = """# Limits of the edge

What clients, and anybody who can reach a port, may make a node do. Each is counted when it is
reached: `proglog_limit_reached_total{limit="NAME"}`, beside `proglog_limit_max{limit="NAME"}`.
Lines in the log about outsiders come once a minute for each kind, with their number.

This page is made from `proglog/grpc/budgets.py`; a test compares them.
"""
