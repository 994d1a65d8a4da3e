"""Consumers in a process of their own: `python -m scripts.bench.reader SYSTEM PORT WHAT COUNT`.

`follow` waits for COUNT stamped records and prints how long after their stamps they came. `load`
reads the log from its start with COUNT streams, again and again, until stdin ends.
"""

from __future__ import annotations

import asyncio
import json
import struct
import sys
from contextlib import aclosing
from time import perf_counter

import uvloop

from scripts.bench.systems import SYSTEMS, System

_STAMP = struct.Struct("<dI")
READY = "ready"


def stamped(size: int, number: int) -> bytes:
    """A record that says when it was made, and which it is."""
    return _STAMP.pack(perf_counter(), number).ljust(size, b".")


async def follow(client: System, count: int) -> list[float]:
    """Seconds from stamp to arrival of each record. Each number from 0 on must come once."""
    latencies: list[float] = []
    missing = set(range(count))
    async with aclosing(client.follow()) as records:
        async for value in records:
            if not value:
                print(READY, flush=True)
                continue
            stamp, number = _STAMP.unpack_from(value)
            latencies.append(perf_counter() - stamp)
            missing.remove(number)
            if not missing:
                break
    return latencies


async def load(client: System, count: int) -> int:
    """Bytes read until stdin ended."""
    total = 0

    async def read() -> None:
        nonlocal total
        while True:
            total += await client.read_raw()

    async with asyncio.TaskGroup() as tasks:
        readers = [tasks.create_task(read()) for _ in range(count)]
        print(READY, flush=True)
        await asyncio.to_thread(sys.stdin.read)
        for reader in readers:
            reader.cancel()
    return total


async def _main(name: str, port: str, what: str, count: str) -> None:
    client = await SYSTEMS[name].connect(int(port))
    try:
        result = await {"follow": follow, "load": load}[what](client, int(count))
        print(json.dumps(result))
    finally:
        await client.close()


if __name__ == "__main__":
    uvloop.run(_main(*sys.argv[1:]))
