"""Many followers of one `Log`: in memory, and on a node that is a process of its own."""

from __future__ import annotations

import asyncio
import gc
from pathlib import Path

import proglog
from tests.cluster.harness import Server
from tests.waiting import until

FOLLOWERS = 10_000
FOLLOWERS_OF_A_NODE = 300


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
            records = [log.consume(0) for _ in range(FOLLOWERS_OF_A_NODE)]
            assert {record.value for record in await next_of_all(records)} == {b"0"}
            for number in range(1, 10):
                following = asyncio.ensure_future(next_of_all(records))
                assert await log.produce(b"%d" % number) == number
                assert (await log.read(number)).value == b"%d" % number
                assert {record.offset for record in await following} == {number}
            assert connections(port) <= 3, "they share one stream"
            await asyncio.gather(*(each.aclose() for each in records))
            await until(lambda: connections(port) <= 2)
            assert await log.produce(b"last") == 10
        await until(lambda: connections(port) == 0)
    finally:
        await server.stop()


def _waiting(log):
    return sum(len(reader._waiters) for reader in log._readers._open)


async def test_ten_thousand_followers_share_one_stream(log, backend):
    await log.produce(b"0")
    consumers = [log.consume("latest" if n % 2 else 0) for n in range(FOLLOWERS)]
    first = [asyncio.ensure_future(anext(each)) for each in consumers]
    await until(lambda: len(log._readers._open) == 1 and _waiting(log) == FOLLOWERS // 2)
    assert backend.open_consumers == 1
    assert len(backend.consumed) < 10
    await log.produce(b"1")
    assert {record.offset for record in await asyncio.gather(*first)} == {0, 1}
    rest = await asyncio.gather(*(each.getone() for each in consumers[::2]))
    assert {record.offset for record in rest} == {1}
    records = await asyncio.gather(*first)
    assert len({id(record.value) for record in [*records[1::2], *rest]}) == 1, "decoded once"
    assert backend.open_consumers == 1
    del consumers, first, records, rest
    gc.collect()
    await until(lambda: backend.open_consumers == 0)
