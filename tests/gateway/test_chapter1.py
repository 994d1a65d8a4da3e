"""The first chapter's server: its curl lines, statuses and bodies (LetsGo/ of the original)."""

from __future__ import annotations

import asyncio
import base64
import io

import pytest

from proglog import limits
from proglog.errors import DiskFull, NotLeader
from tests import judges
from tests.gateway.conftest import Node


async def curl(node: Node, *arguments: str) -> str:
    line = [argument.replace("localhost:8080", f"localhost:{node.port}") for argument in arguments]
    process = await asyncio.create_subprocess_exec(
        judges.program("curl"), "-s", "-4", *line, stdout=asyncio.subprocess.PIPE
    )
    output, _ = await process.communicate()
    assert process.returncode == 0
    return output.decode()


async def test_the_books_curl_lines(node: Node) -> None:
    """Verbatim from the book, and what it says they answer."""
    for offset, value in enumerate(["TGV0J3MgR28gIzEK", "TGV0J3MgR28gIzIK", "TGV0J3MgR28gIzMK"]):
        record = '{"record": {"value": "' + value + '"}}'
        answer = await curl(node, "-X", "POST", "localhost:8080", "-d", record)
        assert answer == f'{{"offset":{offset}}}\n'
    for offset, value in enumerate(["TGV0J3MgR28gIzEK", "TGV0J3MgR28gIzIK", "TGV0J3MgR28gIzMK"]):
        answer = await curl(node, "-X", "GET", "localhost:8080", "-d", f'{{"offset": {offset}}}')
        assert answer == f'{{"record":{{"value":"{value}","offset":{offset}}}}}\n'


@pytest.mark.parametrize(
    ("body", "value"),
    [
        (b"{}", b""),
        (b"null", b""),
        (b'{"record": null}', b""),
        (b'{"record": {}}', b""),
        (b'{"record": {"value": null, "offset": 7}}', b""),
        (b'{"Record": {"VALUE": "aGk="}}', b"hi"),
        (b'{"record": {"value": "aG\\nk="}, "more": [1]}', b"hi"),
    ],
)
async def test_what_goes_decoder_takes_is_taken(node: Node, body: bytes, value: bytes) -> None:
    async with node.http.post("/", data=body) as response:
        assert response.status == 200
        assert response.content_type == "application/json"
        assert await response.read() == b'{"offset":0}\n'
    async with node.http.get("/", params={"offset": "0"}) as response:
        record = {"value": base64.b64encode(value).decode(), "offset": 0}
        assert await response.json() == {"record": record}


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b"\xff",
        b'{"record": 1}',
        b'{"record": {"value": 1}}',
        b'{"record": {"value": "?"}}',
        b'{"record": {"value": "aGk"}}',
        b"[" * 100_000,
        b'{"a": [' + b"1," * 100_000 + b"1]}",
    ],
)
async def test_what_it_does_not_take_is_400(node: Node, body: bytes) -> None:
    async with node.http.post("/", data=body) as response:
        assert response.status == 400
        assert (await response.json())["code"] == "INVALID_REQUEST"
    assert node.replica.next == 0


async def test_a_body_of_another_kind_is_told_what_it_must_be(node: Node) -> None:
    async with node.http.post("/", data=b"[]") as response:
        assert (await response.json())["message"] == "the body must be a JSON object"


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b'{"offset": 0}', 200),
        (b"{}", 200),
        (b'{"offset": 1}', 404),
        (b'{"offset": 18446744073709551615}', 404),
        (b'{"offset": 18446744073709551616}', 400),
        (b'{"offset": -1}', 400),
        (b'{"offset": "0"}', 400),
        (b'{"offset": true}', 400),
        (b'{"offset": 0.0}', 400),
        (b"", 400),
        (b"zero", 400),
    ],
)
async def test_get_with_a_body(node: Node, body: bytes, status: int) -> None:
    node.replica.append(b"hi")
    async with node.http.get("/", data=body) as response:
        assert response.status == status
        assert response.content_type == "application/json"
        await response.json()


async def test_an_offset_out_of_range_says_what_is_in_range(node: Node) -> None:
    node.replica.append(b"hi")
    for offset in (1, 2):
        async with node.http.get(f"/?offset={offset}") as response:
            assert response.status == 404
            assert await response.json() == {
                "code": "OFFSET_OUT_OF_RANGE",
                "message": f"offset {offset} is out of range: the log holds [0, 1)",
                "details": {"offset": str(offset), "earliest": "0", "next": "1"},
            }


async def test_large_values_come_back_whole(node: Node) -> None:
    value = bytes(range(256)) * 11_000 + b"!"
    body = b'{"record":{"value":"' + base64.b64encode(value) + b'"}}'
    assert len(body) < limits.http_body_bytes_max
    async with node.http.post("/", data=io.BytesIO(body)) as response:
        assert response.status == 200
    async with node.http.get("/?offset=0") as response:
        assert base64.b64decode((await response.json())["record"]["value"]) == value


async def test_other_paths_and_methods(node: Node) -> None:
    for method, path, status, code in (
        ("GET", "/nothing", 404, "NOT_FOUND"),
        ("PUT", "/", 405, "METHOD_NOT_ALLOWED"),
        ("DELETE", "/", 405, "METHOD_NOT_ALLOWED"),
    ):
        async with node.http.request(method, path) as response:
            assert response.status == status
            assert (await response.json())["code"] == code
    assert response.headers["Allow"] == "GET,POST"


async def test_refusals_of_the_log_keep_their_meaning(node: Node) -> None:
    node.replica.refusal = DiskFull("no space is left")
    async with node.http.post("/", data=b"{}") as response:
        assert response.status == 507
        assert (await response.json())["code"] == "DISK_FULL"
    node.replica.refusal = NotLeader("b leads", leader="b", leader_addr="10.0.0.2:8400", term=3)
    async with node.http.post("/", data=b"{}") as response:
        assert response.status == 421
        assert response.headers["Location"] == "http://10.0.0.2:8400/"
        assert (await response.json())["details"] == {
            "leader": "b",
            "leader_addr": "10.0.0.2:8400",
            "term": "3",
        }
