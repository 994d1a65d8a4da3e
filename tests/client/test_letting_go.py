"""What the client sent is free once it is answered, without the garbage collector."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Iterator

import pytest

import proglog
from proglog import errors
from proglog.client.call import Call
from proglog.client.network import NetworkStream
from proglog.client.sender import Batch
from proglog.config import Address
from tests.rpc.fakes import Node


@pytest.fixture(autouse=True)
def _no_collector() -> Iterator[None]:
    gc.collect()
    gc.disable()
    yield
    gc.enable()


async def nothing_is_kept(*kinds: type) -> None:
    for _ in range(20):
        await asyncio.sleep(0.001)
    assert [each for each in gc.get_objects() if isinstance(each, kinds)] == []


@pytest.mark.parametrize("refusal", [errors.DiskFull, errors.Unavailable, errors.OutcomeUnknown])
async def test_batches_and_streams_that_were_refused(refusal: type[errors.ProglogError]) -> None:
    async with Node() as node:
        url = f"proglog://{Address(node.host, node.port)}"
        node.log.refusals = [refusal("not now") for _ in range(3)]
        async with proglog.connect(url, timeout_seconds=2) as log:
            for _ in range(3):
                try:
                    await log.produce(b"x" * 1000)
                except errors.ProglogError as error:
                    errors.let_go(error)
            await log.produce(b"x")
            await nothing_is_kept(Batch)
        await nothing_is_kept(Batch, NetworkStream, Call)
