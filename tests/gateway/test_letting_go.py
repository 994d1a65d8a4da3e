"""What a request held is free when it ends, without the garbage collector."""

from __future__ import annotations

import asyncio
import gc
import weakref
from collections.abc import Iterator

import pytest

from proglog.errors import OutcomeUnknown
from tests.gateway.conftest import Node


@pytest.fixture(autouse=True)
def _no_collector() -> Iterator[None]:
    gc.collect()
    gc.disable()
    yield
    gc.enable()


async def let_go(held: list[weakref.ref[object]]) -> None:
    assert held
    for _ in range(50):
        await asyncio.sleep(0.001)
    assert not [ref() for ref in held if ref() is not None]


async def test_a_record_that_is_refused_late(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    held: list[weakref.ref[object]] = []

    async def propose(*_: object) -> asyncio.Future[object]:
        future: asyncio.Future[object] = asyncio.get_running_loop().create_future()
        held.append(weakref.ref(future))
        asyncio.get_running_loop().call_later(
            0.01, future.set_exception, OutcomeUnknown("the node may have it")
        )
        return future

    monkeypatch.setattr(node.replica, "propose", propose)
    async with node.http.post("/v1/records", data=b"x") as response:
        assert response.status == 504
    await let_go(held)
