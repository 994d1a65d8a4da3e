"""Many followers of one `Log` on a node that is a process of its own."""

from __future__ import annotations

import asyncio
from pathlib import Path

import proglog
from tests.cluster.harness import Server
from tests.waiting import until

FOLLOWERS = 300


def connections(port: int) -> int:
    """Established ones to a port of this machine, counted at the server's end."""
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return sum(row[1].endswith(f":{port:04X}") and row[3] == "01" for row in rows)


async def next_of_all(records):
    return await asyncio.gather(*(anext(each) for each in records))


async def test_hundreds_of_followers_and_what_is_produced_meanwhile(tmp_path):
    server = Server(tmp_path, "n0", ["--bootstrap"])
    await server.start()
    port = server.address.port
    try:
        async with proglog.connect(f"proglog://127.0.0.1:{port}") as log:
            assert await log.produce(b"0") == 0
            records = [log.consume(0) for _ in range(FOLLOWERS)]
            assert {record.value for record in await next_of_all(records)} == {b"0"}
            for number in range(1, 10):
                following = asyncio.ensure_future(next_of_all(records))
                assert await log.produce(b"%d" % number) == number
                assert (await log.read(number)).value == b"%d" % number
                assert {record.offset for record in await following} == {number}
            assert 3 < connections(port) <= 5
            await asyncio.gather(*(each.aclose() for each in records))
            await until(lambda: connections(port) <= 2)
            assert await log.produce(b"last") == 10
        await until(lambda: connections(port) == 0)
    finally:
        await server.stop()
