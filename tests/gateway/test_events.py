"""Parameters of /v1 and the document that tells them; a tail as server-sent events."""

from __future__ import annotations

import json

import pytest

from proglog import limits
from proglog.gateway import api
from tests.gateway.conftest import TIME, Node

EVENTS = {"Accept": "text/event-stream"}


async def code_of(node: Node, path: str, status: int, **options: object) -> str:
    async with node.http.get(path, **options) as response:
        assert response.status == status, await response.text()
        return (await response.json())["code"]


# --- parameters ----------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/v1/records", "/v1/records/0", "/v1/tail", "/v1/log"])
async def test_what_a_call_does_not_know_is_refused(node: Node, path: str) -> None:
    node.replica.append(b"x")
    assert await code_of(node, f"{path}?ofset=5", 400) == "INVALID_REQUEST"
    assert await code_of(node, f"{path}?log=default&log=default", 400) == "INVALID_REQUEST"
    async with node.http.post("/v1/records?key=a", data=b"y") as response:
        assert response.status == 400
        assert "known are log, expected_offset" in (await response.json())["message"]
    assert node.replica.next == 1


@pytest.mark.parametrize(
    ("query", "values"),
    [
        ("last=2", [3, 4]),
        ("last=0", []),
        ("last=100", [0, 1, 2, 3, 4]),
        ("time=2023-11-14T22:13:20Z", [0, 1, 2, 3, 4]),
        ("time=2023-11-14T23:13:20%2B01:00", [0, 1, 2, 3, 4]),
        ("time=2023-11-14T23:13:20+01:00", [0, 1, 2, 3, 4]),
        ("time=2024-01-01T00:00:00Z", []),
    ],
)
async def test_starts(node: Node, query: str, values: list[int]) -> None:
    assert TIME == 1_700_000_000_000
    for number in range(5):
        node.replica.append(b"%d" % number)
    async with node.http.get(f"/v1/records?format=text&{query}") as response:
        assert [int(each["value"]) for each in await response.json()] == values


@pytest.mark.parametrize(
    "query", ["offset=1&last=1", "time=yesterday", "time=2026-01-01T00:00:00", "last=-1"]
)
async def test_what_is_no_start(node: Node, query: str) -> None:
    assert await code_of(node, f"/v1/records?{query}", 400) == "INVALID_REQUEST"
    assert await code_of(node, f"/v1/tail?{query}", 400, headers=EVENTS) == "INVALID_REQUEST"


async def test_compare_and_append(node: Node) -> None:
    async with node.http.post("/v1/records?expected_offset=0", data=b"a") as response:
        assert await response.json() == {"offset": 0}
    async with node.http.post("/v1/records?expected_offset=0", data=b"b") as response:
        assert response.status == 409
        assert (await response.json())["details"]["next"] == "1"


async def test_a_record_with_all_it_has(node: Node) -> None:
    headers = [
        ("X-Proglog-Key", "aw=="),
        ("X-Proglog-Header", "a=Yg=="),
        ("X-Proglog-Header", "a="),
    ]
    async with node.http.post("/v1/records", data=b"value", headers=headers) as response:
        assert response.status == 200
    async with node.http.get("/v1/records/0") as response:
        assert response.headers["X-Proglog-Key"] == "aw=="
        assert response.headers.getall("X-Proglog-Header") == ["a=Yg==", "a="]
        assert await response.read() == b"value"
    async with node.http.get("/v1/records/0", headers={"Accept": "application/json"}) as response:
        told = await response.json()
        assert (told["key"], told["headers"]) == ("aw==", [["a", "Yg=="], ["a", ""]])


async def test_the_document_tells_every_call(node: Node) -> None:
    async with node.http.get("/v1/openapi.json") as response:
        document = await response.json()
    assert document["openapi"].startswith("3.1")
    for route in api.ROUTES:
        told = document["paths"][route.path][route.method]
        assert [each["name"] for each in told["parameters"]] == [p.name for p in route.parameters]
    served = {
        (route.method.lower(), route.resource.canonical)
        for route in node.gateway._runner.app.router.routes()
        if route.resource is not None
    }
    assert {(route.method, route.path) for route in api.ROUTES} <= served


# --- events --------------------------------------------------------------------------------------


async def event(response) -> dict[str, str]:
    found: dict[str, str] = {}
    while (line := (await response.content.readline()).decode().rstrip("\n")) or not found:
        assert line or not response.content.at_eof(), "the stream ended"
        name, _, value = line.partition(":")
        found[name] = value.strip()
    return found


async def test_events_carry_offsets_and_are_taken_up_again(node: Node) -> None:
    node.replica.append(b"0")
    async with node.http.get("/v1/tail?format=text", headers=EVENTS) as response:
        assert response.content_type == "text/event-stream"
        assert await event(response) == {"id": "0"}
        node.replica.append(b"1", b"2")
        for number in (1, 2):
            told = await event(response)
            assert told["id"] == str(number)
            assert json.loads(told["data"])["value"] == str(number)
    resumed = EVENTS | {"Last-Event-ID": "1"}
    async with node.http.get("/v1/tail?offset=latest", headers=resumed) as response:
        assert [(await event(response))["id"] for _ in range(2)] == ["1", "2"]
    resumed = EVENTS | {"Last-Event-ID": "-1"}
    async with node.http.get("/v1/tail", headers=resumed) as response:
        assert [(await event(response))["id"] for _ in range(4)] == ["-1", "0", "1", "2"]


async def test_a_gap_is_an_event_and_it_goes_on(node: Node) -> None:
    node.replica.append(b"0")
    async with node.http.get("/v1/tail?offset=0", headers=EVENTS) as response:
        assert [(await event(response))["id"] for _ in range(2)] == ["-1", "0"]
        node.replica.earliest = node.replica.next = 5
        node.replica.wake()
        told = await event(response)
        assert (told["event"], told["id"]) == ("gap", "4")
        assert json.loads(told["data"]) == {"lost_from": 1, "lost_until": 5}
        node.replica.append(b"5")
        assert (await event(response))["id"] == "5"


async def test_one_that_comes_back_late_is_told_of_the_gap_and_not_refused(node: Node) -> None:
    node.replica.earliest = node.replica.next = 5
    resumed = EVENTS | {"Last-Event-ID": "1"}
    async with node.http.get("/v1/tail", headers=resumed) as response:
        assert response.status == 200
        assert [(await event(response)).get("event") for _ in range(2)] == [None, "gap"]
    assert await code_of(node, "/v1/tail?offset=2", 404, headers=EVENTS) == "OFFSET_OUT_OF_RANGE"
    wrong = EVENTS | {"Last-Event-ID": "x"}
    assert await code_of(node, "/v1/tail", 400, headers=wrong) == "INVALID_REQUEST"


async def test_a_comment_now_and_then(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "http_event_comment_seconds", 0.01)
    async with node.http.get("/v1/tail", headers=EVENTS) as response:
        await event(response)
        assert await response.content.readline() == b":\n"


async def test_a_node_that_stops_ends_the_stream_well(node: Node) -> None:
    async with node.http.get("/v1/tail", headers=EVENTS) as response:
        await event(response)
        await node.gateway.drain(5)
        assert await response.content.read() == b""
