"""Waiting for news: who is woken, and who is not kept."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import weakref

import pytest

from proglog.aio.news import News
from proglog.errors import Unavailable


async def test_all_who_wait_are_woken_in_their_order():
    news = News()
    woken = []

    async def wait(name: int) -> None:
        await news.wait()
        woken.append(name)

    waiting = [asyncio.ensure_future(wait(name)) for name in range(5)]
    await asyncio.sleep(0)
    waiting.pop(2).cancel()
    await asyncio.sleep(0)
    news.tell()
    await asyncio.gather(*waiting)
    assert woken == [0, 1, 3, 4]


async def test_who_goes_away_is_not_kept():
    """On a log that stands still nothing is told for days, and readers come and go."""
    news = News()
    staying = asyncio.ensure_future(news.wait())
    for _ in range(10):
        going = asyncio.ensure_future(news.wait())
        await asyncio.sleep(0)
        going.cancel()
        await asyncio.wait([going])
    assert len(news._waiting) == 1
    news.tell()
    await staying
    assert not news._waiting


async def test_after_the_end_nobody_waits():
    news = News()
    waiting = asyncio.ensure_future(news.wait())
    await asyncio.sleep(0)
    news.close(Unavailable("closed"))
    for wait in (waiting, news.wait()):
        with pytest.raises(Unavailable, match="closed"):
            await wait


async def test_the_end_keeps_nothing_of_those_who_waited():
    class Held:
        pass

    async def wait() -> None:
        held = Held()
        kept.append(weakref.ref(held))
        with contextlib.suppress(Unavailable):
            await news.wait()

    news, kept = News(), []
    gc.collect()
    gc.disable()
    try:
        waiting = [asyncio.ensure_future(wait()) for _ in range(3)]
        await asyncio.sleep(0)
        news.close(Unavailable("closed"))
        await asyncio.gather(*waiting, wait())
        waiting.clear()
        await asyncio.sleep(0)
        assert len(kept) == 4
        assert all(ref() is None for ref in kept)
    finally:
        gc.enable()
