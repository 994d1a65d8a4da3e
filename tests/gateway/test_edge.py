"""Who may ask, how much, and how errors are told."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import io
import json
from typing import Any

import pytest
import structlog

from proglog import limits
from tests.gateway.conftest import Node
from tests.waiting import until


@pytest.mark.parametrize(
    "host",
    [
        "localhost",
        "LOCALHOST:8080",
        "localhost.",
        "a.localhost",
        "127.0.0.1",
        "127.8.9.1:1",
        "[::1]:8080",
        "log.example",
        "Log.Example:99",
        "other.example",
    ],
)
async def test_hosts_that_are_ours(node: Node, host: str) -> None:
    async with node.http.get("/v1/log", headers={"Host": host}) as response:
        assert response.status == 200


@pytest.mark.parametrize(
    "host",
    ["evil.example", "localhost.evil.example", "evillocalhost", "10.0.0.1", "0.0.0.0", "[", ""],
)
async def test_dns_rebinding_is_refused(node: Node, host: str) -> None:
    for path in ("/v1/log", "/metrics", "/nothing"):
        async with node.http.get(path, headers={"Host": host}) as response:
            assert response.status == 403
            assert (await response.json())["code"] == "PERMISSION_DENIED"


@pytest.mark.parametrize("character", ["n", "é", "\x01"])
async def test_an_error_repeats_no_more_than_the_beginning_of_what_was_asked(
    node: Node, character: str
) -> None:
    long = character * 1000
    for query in ({"log": long}, {"offset": long}, {"format": long}, {"limit": long}):
        async with node.http.get("/v1/records", params=query) as response:
            assert response.status in {400, 404}
            answer = await response.json()
        assert len(answer["message"].encode()) <= limits.error_text_bytes_max
        assert all(
            len(v.encode()) <= limits.error_fact_bytes_max for v in answer["details"].values()
        )


async def test_foreign_origins_are_refused(node: Node) -> None:
    own = f"http://{node.host}:{node.port}"
    foreign = ["http://evil.example", "null", f"http://{node.host}:1", "http://["]
    for origin, status in [(own, 200), *((origin, 403) for origin in foreign)]:
        headers = {"Origin": origin}
        async with node.http.post("/v1/records", data=b"x", headers=headers) as response:
            assert response.status == status, origin
    assert node.replica.next == 1


async def test_pages_of_listed_origins_may_read_answers(node: Node) -> None:
    for origin, credentials in (("https://app.example", None), ("https://in.example", "true")):
        headers = {"Origin": origin, "Sec-Fetch-Site": "cross-site"}
        async with node.http.get("/v1/log", headers=headers) as response:
            assert response.status == 200
            assert response.headers["Access-Control-Allow-Origin"] == origin
            assert response.headers["Vary"] == "Origin"
            assert response.headers.get("Access-Control-Allow-Credentials") == credentials
        asks = {**headers, "Access-Control-Request-Method": "POST"}
        async with node.http.options("/v1/records", headers=asks) as response:
            assert response.status == 204
            assert response.headers["Access-Control-Allow-Methods"] == "GET, POST"
            assert "X-Proglog-Key" in response.headers["Access-Control-Allow-Headers"]
    foreign = {"Origin": "https://evil.example", "Access-Control-Request-Method": "POST"}
    async with node.http.options("/v1/records", headers=foreign) as response:
        assert response.status == 403
        assert "Access-Control-Allow-Origin" not in response.headers


async def test_what_a_foreign_page_makes_a_browser_ask_is_refused(node: Node) -> None:
    """Requests of which browsers tell no origin: pictures, scripts, forms that are sent by GET."""
    for site, mode, path, status in (
        ("cross-site", "no-cors", "/v1/log", 403),
        ("same-site", "no-cors", "/v1/log", 403),
        ("cross-site", "navigate", "/v1/log", 403),
        ("cross-site", "navigate", "/", 200),
        ("cross-site", "no-cors", "/", 403),
        ("same-origin", "cors", "/v1/log", 200),
        ("none", "navigate", "/v1/log", 200),
        ("cross-site", "no-cors", "/livez", 200),
    ):
        headers = {"Sec-Fetch-Site": site, "Sec-Fetch-Mode": mode, "Accept": "text/html"}
        async with node.http.get(path, headers=headers) as response:
            assert response.status == status, (site, mode, path)


async def test_probes_answer_to_any_host(node: Node) -> None:
    for path in ("/livez", "/readyz", "/startupz"):
        async with node.http.get(path, headers={"Host": "10.1.2.3"}) as response:
            assert response.status == 200


@pytest.mark.parametrize("path", ["/v1%2flog", "//v1/log", "/v1/./log", "/v1/log;x", "/v1%5Clog"])
async def test_paths_are_written_in_one_way(node: Node, path: str) -> None:
    request = f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
    assert (await node.raw(request.encode())).startswith(b"HTTP/1.1 400 ")


async def test_bodies_are_bounded(node: Node) -> None:
    too_large = bytes(limits.http_body_bytes_max + 1)
    for path in ("/", "/v1/records"):
        async with node.http.post(path, data=io.BytesIO(too_large)) as response:
            assert response.status == 413
            assert (await response.json())["code"] == "TOO_LARGE"
        async with node.http.post(path, data=chunks(200)) as response:
            assert response.status == 413


async def chunks(count: int) -> Any:
    for _ in range(count):
        yield bytes(64 * 1024)


async def test_a_compressed_body_is_bounded_by_what_it_holds(node: Node) -> None:
    headers = {"Content-Encoding": "gzip"}
    async with node.http.post("/v1/records", data=gzip.compress(b"x"), headers=headers) as response:
        assert response.status == 200
    async with node.http.get("/v1/records/0") as response:
        assert await response.read() == b"x"
    bomb = gzip.compress(bytes(64 * limits.MiB))
    async with node.http.post("/v1/records", data=bomb, headers=headers) as response:
        assert response.status == 413


async def test_all_bodies_together_are_bounded(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "http_bodies_bytes_max", 100_000)
    reader, writer = await asyncio.open_connection(node.host, node.port)
    head = b"POST /v1/records HTTP/1.1\r\nHost: localhost\r\nContent-Length: 90001\r\n\r\n"
    writer.write(head + bytes(90_000))

    async def refused() -> bool:
        async with node.http.post("/v1/records", data=bytes(20_000)) as response:
            return response.status == 503 and (await response.json())["code"] == "OVERLOADED"

    await until(refused, "the first body is under way, and leaves no room")
    writer.write(b"!")
    assert await reader.readline() == b"HTTP/1.1 200 OK\r\n"
    writer.close()
    async with node.http.post("/v1/records", data=bytes(90_000)) as response:
        assert response.status == 200


async def test_a_body_that_never_ends_is_refused(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "http_body_seconds_max", 0.05)
    reader, writer = await asyncio.open_connection(node.host, node.port)
    writer.write(b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\n{")
    assert await reader.readline() == b"HTTP/1.1 400 Bad Request\r\n"
    writer.close()


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"\x00\x01\x02\r\n\r\n",
        b"GET / FTP/1.0\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: localhost\r\nContent-Length: x\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: localhost\r\nA: " + b"a" * 10_000 + b"\r\n\r\n",
        b"GET /" + b"a" * 10_000 + b" HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: localhost\r\n bad\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
    ],
)
async def test_what_is_not_http_gets_json_too(node: Node, request_bytes: bytes) -> None:
    with structlog.testing.capture_logs() as logs:
        answer = await node.raw(request_bytes)
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith((b"HTTP/1.1 400 ", b"HTTP/1.0 400 "))
    assert b"Content-Type: application/json" in head
    assert set(json.loads(body)) == {"code", "message", "details"}
    assert not logs


async def test_a_fault_is_logged_once_and_not_shown(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    def describe() -> None:
        raise KeyError("secret")

    monkeypatch.setattr(node.replica, "describe", describe)
    with structlog.testing.capture_logs() as logs:
        async with node.http.get("/v1/log") as response:
            assert response.status == 500
            assert "secret" not in await response.text()
            assert (await response.json())["code"] == "INTERNAL"
    assert [(entry["event"], entry["path"]) for entry in logs] == [("request failed", "/v1/log")]


async def test_a_broken_invariant_reaches_the_supervisor(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    def describe() -> None:
        raise AssertionError("offsets are not dense")

    faults: list[dict[str, Any]] = []
    loop = asyncio.get_running_loop()
    previous = loop.get_exception_handler()
    loop.set_exception_handler(lambda _, context: faults.append(context))
    monkeypatch.setattr(node.replica, "describe", describe)
    async with node.http.get("/v1/log") as response:
        assert response.status == 500
    loop.set_exception_handler(previous)
    assert [str(context["exception"]) for context in faults] == ["offsets are not dense"]


async def test_a_fault_in_the_midst_of_an_answer_cuts_it_off(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    node.replica.append(b"x")
    read = node.replica.read

    async def read_once(offset: int, bytes_max: int) -> Any:
        if offset:
            raise KeyError("broken")
        return await read(offset, bytes_max)

    monkeypatch.setattr(node.replica, "read", read_once)
    with structlog.testing.capture_logs() as logs:
        request = b"GET /v1/records HTTP/1.1\r\nHost: localhost\r\n\r\n"
        answer = await node.raw(request)
    assert answer.count(b"HTTP/1.1") == 1
    assert not answer.endswith(b"0\r\n\r\n")
    assert len(logs) == 1


async def test_connections_are_bounded(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "connections_max", 1)
    async with node.http.get("/livez") as response:
        assert response.status == 200
    with contextlib.suppress(ConnectionError):
        assert await node.raw(b"GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n") == b""
    async with node.http.get("/livez") as response:
        assert response.status == 200


async def test_probes(node: Node) -> None:
    for path, name in (("/livez", "live"), ("/readyz", "ready"), ("/startupz", "started")):
        async with node.http.get(path) as response:
            assert response.status == 200
            assert await response.json() == {"status": "ok"}
        node.probes[name] = "the disk does not answer"
        async with node.http.get(path) as response:
            assert response.status == 503
            assert (await response.json())["message"] == "the disk does not answer"


async def test_metrics_in_the_format_that_is_asked_for(node: Node) -> None:
    await node.http.post("/", data=b"")
    async with node.http.get("/metrics") as response:
        assert response.content_type == "text/plain"
        assert 'proglog_refused_total{reason="INVALID_REQUEST"} 1.0' in await response.text()
    accept = {"Accept": "application/openmetrics-text; version=1.0.0"}
    async with node.http.get("/metrics", headers=accept) as response:
        assert response.content_type == "application/openmetrics-text"
        assert (await response.text()).endswith("# EOF\n")


async def test_expect_continue(node: Node) -> None:
    reader, writer = await asyncio.open_connection(node.host, node.port)
    writer.write(
        b"POST /v1/records HTTP/1.1\r\nHost: localhost\r\n"
        b"Content-Length: 1\r\nExpect: 100-continue\r\n\r\n"
    )
    assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
    writer.write(b"x")
    assert await reader.readline() == b"HTTP/1.1 200 OK\r\n"
    writer.close()
