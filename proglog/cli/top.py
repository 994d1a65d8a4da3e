"""`proglog top`: what the console of a node shows, in a terminal."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from datetime import UTC, datetime
from typing import Any, Final, TypeAlias

import aiohttp
import orjson
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from proglog.cli.connection import run_on_loop
from proglog.cli.parameters import PLAINTEXT, SERVERS_DEFAULT, Json, Servers, TlsFiles
from proglog.cli.units import format_bytes
from proglog.client.tls import Tls
from proglog.config import Address
from proglog.errors import Unavailable

_EVENTS_SHOWN: Final = 6
_STYLES: Final = {"ok": "green", "info": "dim", "warn": "yellow", "bad": "bold red"}
_EVENT_BYTES_MAX: Final = 1024 * 1024
_AGAIN_SECONDS: Final = 1.0

Told: TypeAlias = dict[str, Any]


def top(
    *,
    server: Servers = SERVERS_DEFAULT,
    tls: TlsFiles = PLAINTEXT,
    once: bool = False,
    json: Json = False,
) -> int:
    """Show a cluster as a node sees it, each second. Ctrl-C ends it.

    Parameters
    ----------
    server
        The node to ask, or some: the next is asked where one does not answer.
    once
        Show it once, and end.
    json
        Print what the node tells as JSON, a line each second.
    """
    return run_on_loop(_top(server, tls.tls, once=once, as_json=json))


async def _top(servers: Sequence[Address], tls: Tls | None, *, once: bool, as_json: bool) -> int:
    state = _State()
    console = Console()
    live = not once and not as_json
    with Live(console=console, auto_refresh=False, screen=live and console.is_terminal) as shown:
        async with aclosing(_told(servers, tls, first_only=once)) as told:
            async for event in told:
                state.take(event)
                if not state.has_sample:
                    continue
                if as_json:
                    sys.stdout.buffer.write(orjson.dumps(event) + b"\n")
                    sys.stdout.buffer.flush()
                else:
                    shown.update(render(state), refresh=True)
                if once:
                    break
    return 0


async def _told(
    servers: Sequence[Address], tls: Tls | None, *, first_only: bool
) -> AsyncGenerator[Told, None]:
    """What nodes tell, of one at a time. Raises Unavailable where at first none answers."""
    heard = False
    while True:
        for address in servers:
            try:
                async with aclosing(_watch(address, tls)) as events:
                    async for event in events:
                        heard = True
                        yield event
            except (OSError, aiohttp.ClientError, TimeoutError) as error:
                why = f"{address} does not answer: {_why(error)}"
        if not heard or first_only:
            raise Unavailable(why)
        await asyncio.sleep(_AGAIN_SECONDS)


def _why(error: Exception) -> str:
    if isinstance(error, aiohttp.ClientConnectorError):
        return error.os_error.strerror or str(error.os_error)
    return str(error) or "it says nothing"


async def _watch(address: Address, tls: Tls | None) -> AsyncGenerator[Told, None]:
    context = None if tls is None else await tls.http_context()
    scheme = "http" if context is None else "https"
    timeout = aiohttp.ClientTimeout(total=None, sock_connect=2.0, sock_read=5.0)
    async with (
        aiohttp.ClientSession(timeout=timeout, read_bufsize=_EVENT_BYTES_MAX) as http,
        http.get(f"{scheme}://{address}/v1/watch", ssl=context or True) as answer,
    ):
        if answer.status != 200:
            raise Unavailable((await answer.json())["message"])
        async for line in answer.content:
            if line.startswith(b"data: "):
                yield orjson.loads(line.removeprefix(b"data: "))


class _State:
    """What has been told, put together."""

    def __init__(self) -> None:
        self.view: dict[str, Any] = {}
        self.verdict: dict[str, Any] = {}
        self.sample: dict[str, float | None] = {}
        self.events: list[dict[str, Any]] = []

    def take(self, event: dict[str, Any]) -> None:
        self.view, self.verdict = event["view"], event["verdict"]
        if "seconds" in event:
            self.events = event["events"]
            return
        self.sample = event["sample"]
        self.events = [*self.events, *event["events"]][-_EVENTS_SHOWN:]

    @property
    def has_sample(self) -> bool:
        return bool(self.sample)


def render(state: _State) -> Group:
    """The screen: 24 lines for a cluster of five."""
    return Group(_head(state), _rates(state), _servers(state.view), _events(state.events))


def _head(state: _State) -> Text:
    view, verdict = state.view, state.verdict
    voters = sum(server["votes"] for server in view["servers"])
    text = Text()
    text.append(f" {verdict['title']} ", f"reverse {_STYLES[verdict['mood']]}")
    text.append(f"  {view['answering']} of {voters} voters answer, {view['needed']} needed\n")
    text.append(f"{verdict['text']}\n", "dim")
    for reason in verdict["reasons"]:
        text.append(f"  {reason['what']}. ", _STYLES[reason["mood"]])
        text.append(f"{reason['why']}\n", "dim")
    return text


def _rates(state: _State) -> Table:
    view, sample = state.view, state.sample
    table = Table.grid(padding=(0, 3))
    for _ in range(4):
        table.add_column()
    table.add_row(
        f"produced {sample['produced_records'] or 0:,.0f} rec/s",
        f"{_size(sample['produced_bytes'])}/s",
        f"commit p99 {_seconds(sample['commit_p99'])}",
        f"fdatasync p99 {_seconds(sample['sync_p99'])}",
    )
    free = f"{format_bytes(view['disk_free'])} of disk left" if view["disk_total"] else ""
    table.add_row(
        f"offsets {view['earliest']} to {view['next']}",
        format_bytes(view["bytes"]),
        f"consumed here {_size(sample['consumed_bytes'])}/s",
        free,
    )
    return table


def _size(value: float | None) -> str:
    return format_bytes(round(value or 0))


def _seconds(value: float | None) -> str:
    return "-" if value is None else f"{1000 * value:.1f} ms"


def _servers(view: dict[str, Any]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim")
    for name in ("server", "address", "role", "raft", "gossip"):
        table.add_column(name)
    table.add_column("behind", justify="right")
    for server in view["servers"]:
        role = "leader" if server["leads"] else "voter" if server["votes"] else "learner"
        raft = ("this node", "green") if server["here"] else ("answers", "green")
        table.add_row(
            server["name"],
            server["address"],
            Text(role, "bold" if server["leads"] else ""),
            Text(*raft) if server["answers"] else Text("silent", "bold red"),
            Text(server["gossip"], "" if server["gossip"] == "alive" else "yellow"),
            "" if server["behind"] is None else str(server["behind"]),
        )
    return table


def _events(events: Sequence[dict[str, Any]]) -> Text:
    text = Text()
    for event in reversed(events[-_EVENTS_SHOWN:]):
        at = datetime.fromtimestamp(event["at"] / 1000, UTC)
        text.append(f"\n{at:%H:%M:%S} ", "dim")
        text.append(event["text"], _STYLES[event["mood"]])
        text.append(f"  {event['detail']}", "dim")
    text.append("\n")
    return text
