"""Records in and out through `/v1`."""

from __future__ import annotations

import asyncio
import base64
import io
import json
from typing import Any

import pytest

from proglog import limits
from proglog.errors import Unavailable
from tests.gateway.conftest import TIME, Node
from tests.waiting import until


def plain(offset: int, value: bytes) -> dict[str, Any]:
    encoded = base64.b64encode(value).decode()
    return {"offset": offset, "timestamp": TIME, "key": None, "headers": [], "value": encoded}


async def read_page(node: Node, query: str = "") -> list[dict[str, Any]]:
    async with node.http.get(f"/v1/records{query}") as response:
        assert response.status == 200
        assert response.content_type == "application/json"
        return json.loads(await response.read())


async def code_of(node: Node, path: str, status: int) -> str:
    async with node.http.get(path) as response:
        assert response.status == status
        return (await response.json())["code"]


async def test_any_bytes_with_key_headers_and_time(node: Node) -> None:
    value = bytes(range(256)) * 3
    headers = [
        ("X-Proglog-Key", base64.b64encode(b"\x00k").decode()),
        ("X-Proglog-Header", "Trace=" + base64.b64encode(b"\xff").decode()),
        ("X-Proglog-Header", "trace="),
        ("X-Proglog-Timestamp", "42"),
    ]
    async with node.http.post("/v1/records", data=value, headers=headers) as response:
        assert response.status == 200
        assert await response.json() == {"offset": 0}
    assert await read_page(node) == [
        {
            "offset": 0,
            "timestamp": 42,
            "key": "AGs=",
            "headers": [["Trace", "/w=="], ["trace", ""]],
            "value": base64.b64encode(value).decode(),
        }
    ]
    async with node.http.get("/v1/records/0") as response:
        assert await response.read() == value
        assert response.content_type == "application/octet-stream"
        assert response.headers["X-Content-Type-Options"] == "nosniff"
        assert response.headers["X-Proglog-Timestamp"] == "42"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("X-Proglog-Key", "?"),
        ("X-Proglog-Header", "no separator"),
        ("X-Proglog-Header", "=aGk="),
        ("X-Proglog-Header", "n=?"),
        ("X-Proglog-Timestamp", "now"),
    ],
)
async def test_bad_request_headers(node: Node, name: str, value: str) -> None:
    async with node.http.post("/v1/records", data=b"x", headers={name: value}) as response:
        assert response.status == 400
    assert node.replica.next == 0


async def test_pages(node: Node) -> None:
    assert await read_page(node) == []
    for start in range(0, 1000, 50):
        node.replica.append(*(b"%d" % n for n in range(start, start + 50)))
    everything = [plain(n, b"%d" % n) for n in range(1000)]
    assert await read_page(node) == everything[:100]
    assert await read_page(node, "?limit=1000") == everything
    assert await read_page(node, "?offset=77&limit=300") == everything[77:377]
    assert await read_page(node, "?limit=0") == []
    assert await read_page(node, "?offset=990") == everything[990:]
    assert await read_page(node, "?offset=latest") == []
    assert (await read_page(node, "?offset=3&limit=1&format=text"))[0]["value"] == "3"
    assert await code_of(node, "/v1/records?offset=1001", 404) == "OFFSET_OUT_OF_RANGE"
    assert await code_of(node, "/v1/records/1000", 404) == "OFFSET_OUT_OF_RANGE"
    assert await code_of(node, "/v1/records?log=other", 404) == "UNKNOWN_LOG"
    for bad in ("?offset=-1", "?offset=", "?offset=½", "?limit=x", "?format=xml"):
        assert await code_of(node, f"/v1/records{bad}", 400) == "INVALID_REQUEST"
    assert await code_of(node, "/v1/records/x", 400) == "INVALID_REQUEST"


async def test_a_record_that_a_repair_gave_up_is_gone(node: Node) -> None:
    for values in ((b"0", b"1"), (b"4", b"5")):
        node.replica.append(*values)
        node.replica.next += 2
    for offset in (2, 3, 6, 7):
        assert await code_of(node, f"/v1/records/{offset}", 410) == "RECORD_LOST"
    page = await read_page(node, "?offset=1&format=text")
    assert [record["offset"] for record in page] == [1, 4, 5]
    assert await read_page(node, "?offset=7") == []


async def test_a_page_of_many_steps_ends_at_its_limit(node: Node) -> None:
    for start in range(0, 200, 10):
        node.replica.append(*(b"%01000d" % n for n in range(start, start + 10)))
    page = await read_page(node, "?offset=5&limit=95&format=text")
    assert [int(record["value"]) for record in page] == list(range(5, 100))


async def test_a_page_is_bounded_in_bytes(node: Node) -> None:
    value = bytes(limits.MiB)
    for _ in range(8):
        node.replica.append(value)
    page = await read_page(node, "?limit=8")
    assert [record["offset"] for record in page] == [0, 1, 2, 3]


async def test_values_of_every_size_come_back(node: Node) -> None:
    sizes = [0, 1, 2, 49_151, 49_152, 49_153, 98_304, 300_000, 3_000_000]
    values = [(b"\xe2\x82\xac" * (size // 3 + 1))[:size] for size in sizes]
    for value in values:
        async with node.http.post("/v1/records", data=io.BytesIO(value)) as response:
            assert response.status == 200
    page = await read_page(node)
    page += await read_page(node, f"?offset={len(page)}")
    assert [base64.b64decode(record["value"]) for record in page] == values
    page = await read_page(node, "?format=text")
    page += await read_page(node, f"?format=text&offset={len(page)}")
    assert [record["value"] for record in page] == [v.decode("utf-8", "replace") for v in values]


async def test_batches_too_large_for_the_loop_are_decoded_too(node: Node) -> None:
    node.replica.append(*(b"%d" % n for n in range(20_000)))
    node.replica.append(b"a" * 1000, b"b" * 1000, compress=True)
    assert await read_page(node, "?offset=19999") == [
        plain(19_999, b"19999"),
        plain(20_000, b"a" * 1000),
        plain(20_001, b"b" * 1000),
    ]


async def test_describe(node: Node) -> None:
    node.replica.append(b"x", b"y")
    async with node.http.get("/v1/log") as response:
        description = await response.json()
    assert (description["earliest"], description["next"]) == (0, 2)
    assert description["leader_addr"] == "127.0.0.1:8400"


async def test_a_tail_gets_each_record_at_once(node: Node) -> None:
    node.replica.append(b"before")
    async with node.http.get("/v1/tail") as response:
        assert response.status == 200
        assert response.content_type == "application/x-ndjson"
        for n in range(1, 4):
            node.replica.append(b"%d" % n)
            assert json.loads(await response.content.readline()) == plain(n, b"%d" % n)
    async with node.http.get("/v1/tail?offset=0&format=text") as response:
        texts = [json.loads(await response.content.readline())["value"] for _ in range(4)]
        assert texts == ["before", "1", "2", "3"]
    assert await code_of(node, "/v1/tail?offset=9", 404) == "OFFSET_OUT_OF_RANGE"


async def test_a_tail_ends_with_its_client(node: Node) -> None:
    async with node.http.get("/v1/tail"):
        while "proglog_http_tails_waiting 1.0" not in await metrics_text(node):
            await asyncio.sleep(0)
    while "proglog_http_tails_waiting 0.0" not in await metrics_text(node):
        await asyncio.sleep(0)


async def metrics_text(node: Node) -> str:
    async with node.http.get("/metrics") as response:
        assert response.status == 200
        return await response.text()


async def test_an_overtaken_tail_is_told_what_it_lost(node: Node) -> None:
    node.replica.append(b"x")
    async with node.http.get("/v1/tail") as response:
        node.replica.earliest = node.replica.next = 5
        node.replica.wake()
        last = json.loads(await response.content.readline())
        assert last["code"] == "OFFSET_OUT_OF_RANGE"
        assert last["details"] == {"offset": "1", "earliest": "5", "next": "5"}
        assert await response.content.read() == b""


async def test_a_tail_that_is_not_read_holds_little(node: Node) -> None:
    """The gateway reads on only as the client does."""
    for _ in range(64):
        node.replica.append(bytes(limits.MiB))
    _, writer = await asyncio.open_connection(node.host, node.port, limit=1024)
    writer.write(b"GET /v1/tail?offset=0 HTTP/1.1\r\nHost: localhost\r\n\r\n")
    reads = -1
    while reads != node.replica.reads:
        reads = node.replica.reads
        await asyncio.sleep(0.1)
    # What fits into both socket buffers, and one record more.
    assert 1 <= reads < 16
    writer.transport.abort()
    while "proglog_http_connections 1.0" not in await metrics_text(node):
        await asyncio.sleep(0)


async def test_a_busy_tail_leaves_the_loop_to_others(node: Node) -> None:
    longest = 0.0
    loop = asyncio.get_running_loop()
    for _ in range(100):
        node.replica.append(*[b"%064d" % 0] * 100)
    async with node.http.get("/v1/tail?offset=0") as response:
        count = 0
        while count < 10_000:
            began = loop.time()
            await asyncio.sleep(0)
            longest = max(longest, loop.time() - began)
            count += (await response.content.readany()).count(b"\n")
    assert count == 10_000
    assert longest < 1.0


async def test_drain_ends_tails_and_refuses_what_is_new(node: Node) -> None:
    async with node.http.get("/v1/tail") as tail:
        await node.gateway.drain(10)
        last = json.loads(await tail.content.readline())
        assert last["code"] == Unavailable.reason
        assert await tail.content.read() == b""
    for path, status in (("/v1/log", 503), ("/readyz", 503), ("/livez", 200), ("/metrics", 200)):
        async with node.http.get(path) as response:
            assert response.status == status
    await node.gateway.close()
    assert not node.gateway._connections()


async def test_drain_ends_a_tail_that_has_much_left(node: Node) -> None:
    for _ in range(64):
        node.replica.append(bytes(limits.MiB))
    async with node.http.get("/v1/tail?offset=0") as response:
        drain = asyncio.create_task(node.gateway.drain(10))
        await asyncio.sleep(0)
        lines = (await response.content.read()).splitlines()
        await drain
    assert len(lines) < 64
    assert json.loads(lines[-1])["code"] == Unavailable.reason


async def test_drain_waits_for_answers_under_way(node: Node) -> None:
    asked, proceed = asyncio.Event(), asyncio.Event()
    propose = node.replica.propose

    async def slow(proposed: Any) -> Any:
        asked.set()
        await proceed.wait()
        return await propose(proposed)

    node.replica.propose = slow  # type: ignore[method-assign]
    async with asyncio.TaskGroup() as tasks:
        post = tasks.create_task(node.http.post("/v1/records", data=b"x"))
        await asked.wait()
        drain = tasks.create_task(node.gateway.drain(10))
        await asyncio.sleep(0.05)
        assert not drain.done()
        proceed.set()
        response = await post
    assert await response.json() == {"offset": 0}


async def test_drain_has_an_end(node: Node) -> None:
    """A client that does not read its tail cannot hold the node up."""
    for _ in range(64):
        node.replica.append(bytes(limits.MiB))
    _, writer = await asyncio.open_connection(node.host, node.port, limit=1024)
    writer.write(b"GET /v1/tail?offset=0 HTTP/1.1\r\nHost: localhost\r\n\r\n")
    await until(lambda: node.replica.reads)
    [connection] = node.gateway._connections()
    transport = connection.transport
    assert transport is not None
    await until(lambda: transport.get_write_buffer_size() > 0)
    await node.gateway.drain(0.1)
    await node.gateway.close()
    assert "closed=True" in repr(transport)
    writer.transport.abort()
