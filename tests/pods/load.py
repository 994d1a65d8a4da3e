"""Runs in a container beside the pods: numbered records by several callers, and an exact check.

Each acknowledged number must be at the offset that was told, no number may be there twice, and no
call may fail. What was not acknowledged in the end may be there or not.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from pathlib import Path

import proglog

CALLERS = 8
PAUSE_SECONDS = 0.005


async def main(url: str, folder: Path) -> None:
    told: dict[int, int] = {}
    failed: list[str] = []
    numbers = iter(range(10**9))
    stop = folder / "stop"

    async def call(log: proglog.Log, file: object) -> None:
        while not stop.exists():
            number = next(numbers)
            try:
                offset = await log.produce(b"n%d" % number)
            except proglog.ProglogError as error:
                failed.append(f"{number}: {error}")
            else:
                told[number] = offset
                print(number, offset, time.time(), file=file)
            await asyncio.sleep(PAUSE_SECONDS)

    with (folder / "told").open("w", buffering=1) as file:
        async with proglog.connect(url) as log:
            await asyncio.gather(*(call(log, file) for _ in range(CALLERS)))
    at: dict[int, int] = {}
    doubled = []
    async with proglog.connect(url) as log:
        async for record in log.consume(follow=False, after=max(told.values())):
            if not record.value.startswith(b"n"):
                continue  # somebody else's
            number = int(record.value[1:])
            if number in at:
                doubled.append(number)
            at[number] = record.offset
    lost = [number for number, offset in told.items() if at.get(number) != offset]
    (folder / "found").write_text(
        json.dumps({"told": len(told), "lost": lost, "doubled": doubled, "failed": failed})
    )


asyncio.run(main(sys.argv[1], Path(sys.argv[2])))
