"""A client on a host of its own: produces one record after the other, and prints a line of JSON for
each that is acknowledged: offset, value, and when by the clock that all hosts share."""

from __future__ import annotations

import asyncio
import json
import sys
from time import monotonic

import uvloop

import proglog
from proglog.errors import ProglogError

PAUSE_SECONDS = 0.01


async def main(url: str) -> None:
    number = 0
    async with proglog.connect(url, timeout_seconds=5.0) as log:
        while True:
            number += 1
            try:
                offset = await log.produce(b"%d" % number)
            except ProglogError:
                continue  # It may be in the log or not: nobody counts on it.
            line = json.dumps([offset, number, monotonic()])
            sys.stdout.write(line + "\n")
            sys.stdout.flush()
            await asyncio.sleep(PAUSE_SECONDS)


if __name__ == "__main__":
    uvloop.run(main(sys.argv[1]))
