"""Where the time of a produce goes, from the times at which each batch passed the stations between
a client and the disk. One batch is under way at a time, so that the stages add up to the whole."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any, NamedTuple

from proglog.batch import ProposedBatch
from proglog.cli.bench import concurrently, values_of
from proglog.client.backend import ProduceStream
from proglog.client.client import Log
from proglog.client.network import NetworkBackend
from proglog.config import Address
from proglog.types import Appended
from scripts.bench import node
from scripts.bench.servers import serving
from scripts.bench.systems import HOST, Proglog

STAGES = (
    "client: take answers, gather, encode",
    "wire: send, receive, decode",
    "server: check, append",
    "wait for the writer",
    "write",
    "fdatasync",
    "server: hear of it, commit",
    "wire: answer",
)


class Stages(NamedTuple):
    """Medians in ms of each stage; and how many records a batch holds."""

    ms: dict[str, float]
    batch_records: float


class _Stream:
    def __init__(self, stream: ProduceStream, backend: _WatchedBackend) -> None:
        self._stream = stream
        self._backend = backend
        self.close = stream.close

    async def submit(self, batch: ProposedBatch) -> asyncio.Future[Appended]:
        self._backend.submitted.append(perf_counter())
        self._backend.records.append(batch.body.count)
        answer = await self._stream.submit(batch)
        answer.add_done_callback(lambda _: self._backend.answered.append(perf_counter()))
        return answer


class _WatchedBackend(NetworkBackend):
    def __init__(self, port: int) -> None:
        super().__init__([Address(HOST, port)], "", None)
        self.submitted: list[float] = []
        self.answered: list[float] = []
        self.records: list[int] = []

    async def open_produce(self) -> Any:
        return _Stream(await super().open_produce(), self)


async def stages(folder: Path, tasks: int, seconds: float) -> Stages:
    """Measures a produce from so many tasks at a time."""
    path = folder / f"trace-{tasks}.json"

    def command(data: Path, port: int) -> list[str]:
        return node.command(data, port, trace=path)

    async with serving(Proglog, folder, command) as (_, server, port):
        await server.said(node.STARTED)
        backend = _WatchedBackend(port)
        log = Log(backend, chance=random.Random())
        async with log:
            await concurrently(log.produce, values_of(100)[:tasks], seconds)
        server.stop()
    trace = json.loads(path.read_text())
    spans = list(zip(*_spans(backend, trace), strict=True))
    return Stages(
        {name: median(times) * 1e3 for name, times in zip(STAGES, spans, strict=True)},
        sum(backend.records) / len(backend.records),
    )


def _spans(client: _WatchedBackend, server: dict[str, Any]) -> Iterator[list[float]]:
    """The seconds that each batch but the first spent in each stage."""
    writes = [
        write
        for write, batches in zip(server["writes"], server["group_batches"], strict=True)
        for _ in range(batches)
    ]
    stations = zip(
        [client.submitted[0], *client.answered[:-1]],
        client.submitted,
        server["proposed"],
        server["accepted"],
        *zip(*writes, strict=True),
        server["answered"],
        client.answered,
        strict=True,
    )
    for times in list(stations)[1:]:
        yield [end - start for start, end in pairwise(times)]
