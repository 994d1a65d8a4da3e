"""Every call is cancelled at each of its awaits in turn; then the log works, and nothing leaks.

A call is run again and again: the n-th time it is cancelled at its n-th suspension, once while it
waits there and once in the very turn in which what it waits for is done.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Generator
from contextlib import suppress
from typing import Any

import pytest

import proglog
from proglog.client.client import Log
from tests.client.fake import FakeBackend

SUSPENSIONS_MAX = 300
VALUES = [b"%0100000d" % number for number in range(8)]


class Cancelled:
    """Runs a coroutine and cancels its task at one of its suspensions."""

    def __init__(self, coroutine: Coroutine[Any, Any, Any], at: int, *, when_done: bool) -> None:
        self._coroutine = coroutine
        self._at = at
        self._when_done = when_done
        self.count = 0

    def __await__(self) -> Generator[Any, Any, Any]:
        sent: Any = None
        failure: BaseException | None = None
        while True:
            try:
                if failure is not None:
                    waited_for = self._coroutine.throw(failure)
                else:
                    waited_for = self._coroutine.send(sent)
            except StopIteration as stop:
                return stop.value
            if self.count == self._at:
                self._cancel(waited_for)
            self.count += 1
            failure = None
            try:
                sent = yield waited_for
            except BaseException as error:
                failure = error

    def _cancel(self, waited_for: Any) -> None:
        task = asyncio.current_task()
        assert task is not None
        if self._when_done and waited_for is not None:
            # Called before the task itself hears of it.
            waited_for.add_done_callback(lambda _: task.cancel())
        else:
            asyncio.get_running_loop().call_soon(task.cancel)


async def run(coroutine: Coroutine[Any, Any, Any], at: int, *, when_done: bool) -> bool:
    """Whether the call had so many suspensions."""
    cancelled = Cancelled(coroutine, at, when_done=when_done)

    async def main() -> Any:
        return await cancelled

    task = asyncio.ensure_future(main())
    await asyncio.wait([task])
    if not task.cancelled() and (error := task.exception()) is not None:
        assert isinstance(error, proglog.ProglogError), error
    return cancelled.count > at


# --- the calls -----------------------------------------------------------------------------------

Call = Callable[[Log, list[int]], Awaitable[Any]]


async def arriving() -> Any:
    for value in VALUES:
        yield value
        await asyncio.sleep(0)


async def send(log: Log, taken: list[int]) -> None:
    async with log.producer() as out:
        for value in VALUES:
            await out.send(value)
        await out.flush()


PRODUCING: dict[str, Call] = {
    "produce": lambda log, taken: log.produce(VALUES[0]),
    "produce, with a key": lambda log, taken: log.produce(VALUES[0], key=b"k"),
    "produce, in time": lambda log, taken: log.produce(VALUES[0], timeout_seconds=5),
    "produce, at an offset": lambda log, taken: log.produce(VALUES[0], expected_offset=10),
    "produce_many": lambda log, taken: log.produce_many(VALUES),
    "produce_many, async": lambda log, taken: log.produce_many(arriving()),
    "produce_many, in time": lambda log, taken: log.produce_many(VALUES, timeout_seconds=5),
    "producer": send,
}


async def take_one(consumer: proglog.Consumer, taken: list[int]) -> None:
    for _ in range(4):
        record = await consumer.getone(5)
        assert record is not None
        taken.append(record.offset)


async def take_many(consumer: proglog.Consumer, taken: list[int]) -> None:
    for _ in range(3):
        taken += [record.offset for record in await consumer.getmany(3, 5)]


async def iterate(consumer: proglog.Consumer, taken: list[int]) -> None:
    async for record in consumer:
        taken.append(record.offset)
        if len(taken) >= 6:
            return


async def iterate_batches(consumer: proglog.Consumer, taken: list[int]) -> None:
    async for batch in consumer.batches():
        taken += [record.offset for record in batch]
        if len(taken) >= 6:
            return


async def lag(consumer: proglog.Consumer, taken: list[int]) -> None:
    await consumer.lag()
    await take_one(consumer, taken)


CONSUMING = {
    "getone": take_one,
    "getmany": take_many,
    "iteration": iterate,
    "batches": iterate_batches,
    "lag": lag,
}


# --- what holds afterwards -----------------------------------------------------------------------


def slow_backend() -> FakeBackend:
    """Ten records, and an answer takes a while: so that there is something to wait for."""
    backend = FakeBackend()
    for number in range(5):
        backend.log.extend([b"%d" % (2 * number), b"%d" % (2 * number + 1)])
    consume, open_produce = backend.consume, backend.open_produce

    async def slowly(start: Any, **options: Any) -> Any:
        await asyncio.sleep(0.01)
        async for chunk in consume(start, **options):
            yield chunk
            await asyncio.sleep(0.001)

    async def opened() -> Any:
        await asyncio.sleep(0.01)
        return await open_produce()

    backend.consume, backend.open_produce = slowly, opened  # type: ignore[method-assign]
    return backend


def check_prefix(values: list[bytes]) -> None:
    """What is in the log of one call is a prefix of its records, each once."""
    assert values == VALUES[: len(values)]


@pytest.mark.virtual_time
@pytest.mark.parametrize("when_done", [False, True], ids=["waiting", "done"])
@pytest.mark.parametrize("name", PRODUCING)
async def test_producing(name: str, when_done: bool) -> None:
    for at in range(SUSPENSIONS_MAX):
        backend = slow_backend()
        async with Log(backend, timeout_seconds=10) as log:
            was_reached = await run(PRODUCING[name](log, []), at, when_done=when_done)
            offset = await log.produce(b"after")
            values = [record.value for record in backend.log.records()][10:]
            assert offset == 10 + len(values) - 1
            assert values.pop() == b"after"
            check_prefix(values)
            assert log._batcher is not None
            assert log._batcher._budget.taken == 0
            assert len(asyncio.all_tasks()) == 2, "this one, and that of the sender"
        assert all(stream.closed for stream in backend.streams)
        assert len(asyncio.all_tasks()) == 1
        if not was_reached:
            assert at > 0, "it never waited"
            return
    raise AssertionError("it never ends")


@pytest.mark.virtual_time
@pytest.mark.parametrize("when_done", [False, True], ids=["waiting", "done"])
@pytest.mark.parametrize("start", [0, "earliest", proglog.Last(10)], ids=str)
@pytest.mark.parametrize("name", CONSUMING)
async def test_consuming(name: str, start: Any, when_done: bool) -> None:
    for at in range(SUSPENSIONS_MAX):
        backend = slow_backend()
        async with Log(backend, timeout_seconds=10) as log:
            consumer = log.consume(start)
            taken: list[int] = []
            was_reached = await run(CONSUMING[name](consumer, taken), at, when_done=when_done)
            if taken:
                assert consumer.position == taken[-1] + 1
            while rest := await consumer.getmany(100, 5):
                taken += [record.offset for record in rest]
            assert taken == list(range(10)), "nothing is lost, and nothing comes twice"
            await consumer.aclose()
            assert backend.open_consumers == 0
            assert log._readers is not None
            assert log._readers._granted == 0
        assert len(asyncio.all_tasks()) == 1
        if not was_reached:
            assert at > 0, "it never waited"
            return
    raise AssertionError("it never ends")


@pytest.mark.virtual_time
@pytest.mark.parametrize("when_done", [False, True], ids=["waiting", "done"])
async def test_closing(when_done: bool) -> None:
    for at in range(SUSPENSIONS_MAX):
        backend = slow_backend()
        log = await Log(backend, timeout_seconds=10)
        call = asyncio.ensure_future(log.produce(b"a"))
        reading = asyncio.ensure_future(log.consume("latest").getone())
        await asyncio.sleep(0.005)
        was_reached = await run(log.close(), at, when_done=when_done)
        await log.close()
        results = await asyncio.gather(call, reading, return_exceptions=True)
        assert results[0] == 10 or isinstance(results[0], proglog.ProglogError)
        assert isinstance(results[1], proglog.LogClosed) or results[1].value == b"a"
        assert backend.closed
        assert backend.open_consumers == 0
        assert len(asyncio.all_tasks()) == 1
        if not was_reached:
            return
    raise AssertionError("it never ends")


async def test_on_the_real_engine(tmp_path: Any) -> None:
    async with proglog.open(tmp_path, segment_bytes=2**20) as log:
        for name, call in PRODUCING.items():
            if name == "produce, at an offset":
                continue
            for at in range(SUSPENSIONS_MAX):
                first = (await log.describe()).next
                was_reached = await run(call(log, []), at, when_done=False)
                offset = await log.produce(b"after")
                records = await log.consume(first, follow=False).getmany(100)
                values = [record.value for record in records]
                while values[-1] != b"after":
                    values += [r.value for r in await log.consume(first + len(values)).getmany(100)]
                assert offset == first + len(values) - 1
                check_prefix(values[:-1])
                if not was_reached:
                    break
        with suppress(proglog.ProglogError):
            await log.close()
    assert len(asyncio.all_tasks()) == 1
