"""The unary load of client.go by grpcio's asyncio client: ADDRESS unary CALLERS SECONDS."""

from __future__ import annotations

import asyncio
import json
import sys
import time

import grpc

from proglog.cli.bench import percentile

_REQUEST = b"\x0a\x66\x0a\x64" + bytes(100)


async def main(address: str, callers: int, seconds: float) -> None:
    latencies: list[float] = []
    async with grpc.aio.insecure_channel(address) as channel:
        call = channel.unary_unary("/log.v1.Log/Produce")
        await call(_REQUEST)
        begun = time.perf_counter()

        async def caller() -> None:
            while (at := time.perf_counter()) < begun + seconds:
                await call(_REQUEST)
                latencies.append(1000 * (time.perf_counter() - at))

        await asyncio.gather(*(caller() for _ in range(callers)))
        elapsed = time.perf_counter() - begun
    p50, p99 = (percentile(latencies, percent) for percent in (50, 99))
    print(json.dumps({"rate": len(latencies) / elapsed, "p50": p50, "p99": p99}))


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], int(sys.argv[3]), float(sys.argv[4])))
