"""The console's files, and what it is told."""

from __future__ import annotations

import asyncio
import json
import re
from pathlib import Path

import aiohttp
import pytest

import proglog.gateway.console
from proglog.gateway.console import feed
from tests.gateway.conftest import Node
from tests.observability.test_view import WELL
from tests.waiting import until

STATIC = Path(proglog.gateway.console.__file__).parent / "static"
BROWSER = {"Accept": "text/html,application/xhtml+xml,*/*;q=0.8"}


async def test_a_browser_gets_the_console_and_curl_chapter_1(node: Node) -> None:
    async with node.http.get("/", headers=BROWSER) as answer:
        assert answer.content_type == "text/html"
        assert "default-src 'none'" in answer.headers["Content-Security-Policy"]
        assert answer.headers["Vary"] == "Accept"
        page = await answer.text()
    node.replica.append(b"one")
    for query, headers in (("?offset=0", BROWSER), ("?offset=0", {})):
        async with node.http.get(f"/{query}", headers=headers) as answer:
            assert (await answer.json())["record"]["offset"] == 0
    async with node.http.get("/", headers=BROWSER, json={"offset": 0}) as answer:
        assert (await answer.json())["record"]["offset"] == 0
    # What the page names is there, and nothing from elsewhere.
    named = re.findall(r'(?:src|href)="([^"#]+)"', page)
    assert len(named) > 5
    for name in named:
        async with node.http.get(name) as answer:
            assert answer.status == 200, name
            assert answer.headers["X-Content-Type-Options"] == "nosniff"


async def test_a_file_is_answered_once(node: Node) -> None:
    async with node.http.get("/console/app.js") as answer:
        tag = answer.headers["ETag"]
        assert answer.content_type == "text/javascript"
    async with node.http.get("/console/app.js", headers={"If-None-Match": tag}) as answer:
        assert (answer.status, await answer.read()) == (304, b"")
    for name in ("nothing.js", "pages.py"):
        async with node.http.get(f"/console/{name}") as answer:
            assert answer.status == 404, name


async def events(answer: aiohttp.ClientResponse, count: int) -> list[tuple[str, dict]]:
    told = []
    while len(told) < count:
        name = (await answer.content.readline()).decode().strip().removeprefix("event: ")
        data = json.loads((await answer.content.readline()).removeprefix(b"data: "))
        assert await answer.content.readline() == b"\n"
        told.append((name, data))
    return told


async def test_who_watches_hears_everything_and_then_each_second(node: Node) -> None:
    async with node.http.get("/v1/watch") as answer:
        assert answer.status == 503
    node.feed.publish(WELL, {"loop_lag": 0.5})
    async with node.http.get("/v1/status") as answer:
        assert (await answer.json())["verdict"]["title"] == "All is well"
    async with node.http.get("/v1/watch") as answer:
        assert answer.content_type == "text/event-stream"
        [(name, hello)] = await events(answer, 1)
        assert (name, hello["view"]["leader"], hello["view"]["needed"]) == ("hello", "n0", 2)
        node.feed.publish(WELL, {"loop_lag": float("nan")})
        [(name, second)] = await events(answer, 1)
        assert (name, second["sample"]) == ("second", {"loop_lag": None})


async def test_who_does_not_take_what_it_is_sent_is_cut_off(node: Node) -> None:
    node.feed.publish(WELL, {})
    async with node.http.get("/v1/watch") as answer:
        await events(answer, 1)
        for _ in range(feed.UNTAKEN_MAX + 1):
            node.feed.publish(WELL, {})
        assert await answer.content.read() == b""


async def test_watchers_are_bounded_and_end_with_the_node(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feed, "WATCHERS_MAX", 1)
    node.feed.publish(WELL, {})
    async with node.http.get("/v1/watch") as answer:
        await events(answer, 1)
        async with node.http.get("/v1/watch") as second:
            assert second.status == 503
        await node.gateway.drain(5)
    assert not node.feed._watchers


async def test_who_goes_is_forgotten(node: Node) -> None:
    node.feed.publish(WELL, {})
    async with node.http.get("/v1/watch") as answer:
        await events(answer, 1)
        assert len(node.feed._watchers) == 1
        answer.close()

    async def forgotten() -> bool:
        node.feed.publish(WELL, {})
        await asyncio.sleep(0)
        return not node.feed._watchers

    await until(forgotten, "the watcher is forgotten")


def test_nothing_gets_into_the_page_but_as_text() -> None:
    """The browser's policy would refuse it; here it does not even stand."""
    banned = re.compile(r"innerHTML|outerHTML|insertAdjacent|document\.write|eval\(|\son\w+=")
    names = [path for path in STATIC.iterdir() if path.suffix in {".js", ".html"}]
    assert len(names) > 5
    for path in names:
        assert not banned.search(path.read_text()), path.name
        assert "style=" not in path.read_text(), path.name


def test_it_is_small() -> None:
    files = list(STATIC.iterdir())
    assert sum(path.stat().st_size for path in files) < 80 * 1024
    assert all(path.read_text().count("\n") < 500 for path in files)
