"""Tests of a program of yours, with the fixtures that come with the package.

pytest examples/test_with_the_kit.py
"""

from __future__ import annotations

import asyncio

import proglog


async def shout(log: proglog.Log) -> None:
    """The program: what comes in goes out in capitals."""
    async for record in log.consume(0, follow=False):
        if record.value.islower():
            await log.produce(record.value.upper(), key=b"loud")


def test_it_shouts(proglog_log: proglog.Log) -> None:
    async def main() -> list[bytes]:
        async with proglog_log as log:
            await log.produce_many([b"a", b"B", b"c"])
            await shout(log)
            return [record.value for record in await log.consume(proglog.Last(2)).getmany(2)]

    assert asyncio.run(main()) == [b"A", b"C"]
