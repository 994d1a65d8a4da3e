"""`proglog top`: a node at a glance."""

from __future__ import annotations

import dataclasses
import io
import json
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from proglog.agent.node import Node
from proglog.cli import top
from proglog.config import Address, NodeConfig
from proglog.errors import Unavailable
from proglog.observability.history import SERIES
from proglog.observability.view import Event, Mood, View, explain
from tests.observability.test_view import WELL, server, without
from tests.ports import free_port


def shown(view: View, events: list[Event]) -> str:
    state = top._State()
    state.take(
        {
            "view": dataclasses.asdict(view) | {"answering": view.answering, "needed": view.needed},
            "verdict": dataclasses.asdict(explain(view)),
            "sample": dict.fromkeys(SERIES, 0.004) | {"commit_p99": None},
            "events": [dataclasses.asdict(event) for event in events],
        }
    )
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(top.render(state))
    return console.export_text()


def test_five_servers_fit_a_small_terminal() -> None:
    five = replace(WELL, servers=(*WELL.servers, server("n3"), server("n4", votes=False)))
    events = [Event(1000 * i, Mood.INFO, f"event {i}", "why") for i in range(20)]
    text = shown(without(five, "n2"), events)
    assert len(text.rstrip().splitlines()) <= 24
    assert all(len(line) <= 80 for line in text.splitlines())
    assert "n2 does not answer" in text
    assert "silent" in text
    assert "commit p99 -" in text
    assert "event 19" in text
    assert "event 13" not in text


async def test_a_real_node_tells_it(tmp_path: Path, capfdbinary) -> None:
    node = Node(replace(NodeConfig.for_tests(tmp_path), node_name="here"))
    await node.start()
    try:
        assert await top._top([node.rpc_addr], None, once=True, as_json=True) == 0
    finally:
        await node.stop()
    told = json.loads(capfdbinary.readouterr().out.splitlines()[-1])
    assert told["view"]["node"] == told["view"]["leader"] == "here"
    assert told["verdict"]["title"] == "All is well"


async def test_nobody_there_is_said() -> None:
    address = Address("127.0.0.1", free_port())
    with pytest.raises(Unavailable, match=f"{address} does not answer: Connect"):
        await top._top([address], None, once=False, as_json=False)
