"""What users hand in: any iterable of records, and records that are none, among good ones."""

from __future__ import annotations

import asyncio
import io
import math
from collections import deque
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import proglog
from proglog import limits
from proglog.batch import Record
from proglog.client.client import Log
from proglog.client.columns import NewRecord
from proglog.errors import (
    ConfigurationError,
    DiskFull,
    EarlierRefused,
    Internal,
    InvalidBatch,
    InvalidRequest,
    OutcomeUnknown,
    TooLarge,
)
from tests.client.fake import FakeBackend
from tests.client.server import serving

virtual_time = pytest.mark.virtual_time


# --- any iterable --------------------------------------------------------------------------------

THREE = [b"a", b"b", b"c"]
KINDS = {
    "list": lambda: list(THREE),
    "tuple": lambda: tuple(THREE),
    "deque": lambda: deque(THREE),
    "generator": lambda: (value for value in THREE),
    "map": lambda: map(bytes, THREE),
    "iterator": lambda: iter(THREE),
    "keys": lambda: dict.fromkeys(THREE).keys(),
    "file": lambda: io.BytesIO(b"a\nb\nc\n"),
}
each_kind = pytest.mark.parametrize("kind", KINDS)


def wanted(kind: str) -> list[bytes]:
    return [value + b"\n" for value in THREE] if kind == "file" else THREE


async def check_any_iterable(log: Log, kind: str) -> None:
    assert await log.produce_many(KINDS[kind]()) == range(3)
    assert list(await log.produce_many(iter(()))) == []
    assert await log.produce_many(KINDS[kind](), expected_offset=3) == range(3, 6)
    found = [record.value async for record in log.consume(0, follow=False)]
    assert found == 2 * wanted(kind)


@each_kind
async def test_any_iterable_in_this_process(tmp_path, kind):
    async with proglog.open(tmp_path / "data") as log:
        await check_any_iterable(log, kind)


@each_kind
async def test_any_iterable_over_the_network(kind):
    async with serving() as server:
        async with proglog.connect(f"proglog://127.0.0.1:{server.port}") as log:
            await check_any_iterable(log, kind)


@virtual_time
async def test_a_file_that_was_opened_as_text(log, backend):
    with pytest.raises(TypeError, match="a value is bytes"):
        await log.produce_many(io.StringIO("a\nb\n"))
    assert backend.submitted == []


@virtual_time
async def test_records_with_all_they_have(log, backend):
    await log.produce_many(
        [
            NewRecord(b"a", timestamp=1),
            NewRecord(b"b", b"k", {"h": b"1"}),
            Record(7, b"c", b"", (("h", b""),), 3),
            b"d",
        ]
    )
    assert [record[1:] for record in backend.log.records()] == [
        (b"a", None, (), 1),
        (b"b", b"k", (("h", b"1"),), 1000),
        (b"c", b"", (("h", b""),), 3),
        (b"d", None, (), 1000),
    ]


@virtual_time
@pytest.mark.parametrize(
    ("values", "hint"),
    [
        ("text", "not str"),
        (b"bytes", "not bytes"),
        (bytearray(b"bytes"), "not bytearray"),
        (memoryview(b"bytes"), "not memoryview"),
        ({b"a": b"b"}, "not dict"),
        (None, "not NoneType"),
        (5, "not int"),
        (["text"], "a value is bytes"),
        ([5], "a value is bytes"),
        ([None], "a value is bytes"),
        ([[b"a"]], "a value is bytes"),
    ],
)
async def test_what_is_no_iterable_of_bytes(log, backend, values, hint):
    with pytest.raises(TypeError, match=hint):
        await log.produce_many(values)
    assert backend.submitted == []
    assert await log.produce(b"next") == 0


# --- async iterables -----------------------------------------------------------------------------


async def arriving(*items, pause=0.0, closed=None):
    try:
        for item in items:
            if isinstance(item, type):
                raise item
            yield item
            await asyncio.sleep(pause)
    finally:
        if closed is not None:
            closed.append(asyncio.current_task())


async def test_any_async_iterable(tmp_path):
    class Arriving:
        def __aiter__(self):
            return arriving(*THREE)

    async with proglog.open(tmp_path / "data") as log:
        assert await log.produce_many(arriving(*THREE)) == range(3)
        assert await log.produce_many(Arriving(), expected_offset=3) == range(3, 6)
        assert list(await log.produce_many(arriving())) == []
        copied = await log.produce_many(log.consume(0, follow=False))
        assert copied == range(6, 12)
        found = [record.value async for record in log.consume(0, follow=False)]
        assert found == 4 * THREE


@virtual_time
async def test_what_arrives_slowly_does_not_wait_for_more(log, backend):
    closed = []
    call = asyncio.ensure_future(
        log.produce_many(arriving(*THREE, pause=10, closed=closed), timeout_seconds=60)
    )
    for number in range(3):
        await asyncio.sleep(1)
        assert backend.log.values() == THREE[: number + 1]
        await asyncio.sleep(9)
    assert await call == range(3)
    assert len(closed) == 1


@virtual_time
async def test_what_arrives_quickly_shares_batches_and_waits_for_room(log, backend):
    async def endless():
        while True:
            yield bytes(1000)

    call = asyncio.ensure_future(log.produce_many(endless()))
    while backend.log.next < 2000:
        await asyncio.sleep(0)
    call.cancel()
    await asyncio.wait([call])
    assert all(len(batch.body.data) > 200_000 for batch in backend.submitted)
    assert log._batcher._budget.taken <= 1_000_000
    assert len(asyncio.all_tasks()) == 2, "this one, and that of the sender"


@virtual_time
async def test_an_async_iterable_that_appends_to_the_same_log(log, backend, monkeypatch):
    """Nothing is held while it runs."""
    monkeypatch.setattr(limits, "client_buffer_bytes_max", 1000)

    async def appending():
        for _ in range(5):
            yield bytes(900)
            await log.produce(bytes(900))

    assert list(await log.produce_many(appending())) == [0, 2, 4, 6, 8] or backend.log.next == 10
    assert backend.log.next == 10


@virtual_time
@pytest.mark.parametrize("atomic", [False, True])
@pytest.mark.parametrize("wrong", [ZeroDivisionError, "text"], ids=["raises", "str"])
async def test_an_error_of_an_async_iterable(log, backend, wrong, atomic):
    closed = []
    expected = 0 if atomic else None
    with pytest.raises((ZeroDivisionError, TypeError)) as caught:
        await log.produce_many(arriving(b"a", b"b", wrong, closed=closed), expected_offset=expected)
    appended = len(backend.log.values())
    assert appended == (0 if atomic else 2)
    assert caught.value.__notes__ == [f"records appended: {appended}"]
    assert len(closed) == 1
    assert await log.produce(b"next") == appended
    assert log._batcher._budget.taken == 0


@virtual_time
@pytest.mark.parametrize("how", ["cancelled", "refused", "too late", "too many"])
async def test_an_async_generator_is_closed_however_it_ends(log, backend, how):
    closed = []
    records = arriving(*[bytes(200_000)] * 100, pause=0.01, closed=closed)
    if how == "refused":
        backend.faults.extend([None, DiskFull("full")])
    seconds = 0.05 if how == "too late" else None
    expected = 0 if how == "too many" else None
    call = asyncio.ensure_future(
        log.produce_many(records, timeout_seconds=seconds, expected_offset=expected)
    )
    if how == "cancelled":
        await asyncio.sleep(0.05)
        call.cancel()
    (result,) = await asyncio.gather(call, return_exceptions=True)
    kinds = {
        "cancelled": asyncio.CancelledError,
        "refused": DiskFull,
        "too late": OutcomeUnknown,
        "too many": TooLarge,
    }
    assert isinstance(result, kinds[how]), result
    if how in ("refused", "too late"):
        assert result.number("appended") == backend.log.next
    assert len(closed) == 1
    assert log._batcher._budget.taken == 0


@virtual_time
async def test_an_iterable_is_taken_no_faster_than_there_is_room(log, backend, monkeypatch):
    monkeypatch.setattr(limits, "client_buffer_bytes_max", 1_000_000)
    backend.held = True
    taken = 0

    def endless():
        nonlocal taken
        while True:
            taken += 1
            yield bytes(10_000)

    call = asyncio.ensure_future(log.produce_many(endless()))
    await asyncio.sleep(1)
    assert 75 < taken < 150, "what is under way, and one batch that waits"
    backend.answer(2)
    await asyncio.sleep(1)
    assert 125 < taken < 200
    call.cancel()
    await asyncio.wait([call])
    backend.held = False
    backend.answer(len(backend.streams[-1].waiting))
    assert await log.produce(b"next") == backend.log.next - 1
    assert log._batcher._budget.taken == 0


async def test_other_tasks_run_while_an_iterable_is_taken(log, backend):
    turns = 0

    async def count():
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    counting = asyncio.ensure_future(count())
    await log.produce_many(bytes(10_000) for _ in range(1000))
    counting.cancel()
    assert len(backend.submitted) == 39
    assert turns >= 39


@virtual_time
async def test_a_refusal_ends_the_taking(log, backend):
    backend.faults.append(DiskFull("full"))

    def endless():
        while True:
            yield bytes(100_000)

    with pytest.raises(DiskFull) as caught:
        await log.produce_many(endless())
    assert caught.value.number("appended") == 0
    assert backend.log.values() == []
    assert log._batcher._budget.taken == 0


def failing(count, error):
    for number in range(count):
        yield b"%0100000d" % number
    raise error


@virtual_time
@pytest.mark.parametrize("error", [ZeroDivisionError, DiskFull])
@pytest.mark.parametrize("count", [0, 1, 5])
async def test_an_error_of_the_iterable_says_how_many_records_are_in(log, backend, error, count):
    raised = error("theirs")
    with pytest.raises(error) as caught:
        await log.produce_many(failing(count, raised))
    appended = len(backend.log.values())
    assert appended == count // 2 * 2, "whole batches"
    assert backend.log.values() == [b"%0100000d" % number for number in range(appended)]
    assert caught.value is raised
    assert caught.value.__notes__ == [f"records appended: {appended}"]
    if error is DiskFull:
        assert raised.number("appended") == appended
    with pytest.raises(error):
        await log.produce_many(failing(count, error("again")), expected_offset=backend.log.next)
    assert len(backend.log.values()) == appended
    assert await log.produce(b"next") == appended
    assert log._batcher._budget.taken == 0


@virtual_time
async def test_a_refusal_comes_before_an_error_of_the_iterable(log, backend):
    backend.faults.append(DiskFull("full"))
    with pytest.raises(DiskFull) as caught:
        await log.produce_many(failing(3, ZeroDivisionError("later")))
    assert isinstance(caught.value.__context__, ZeroDivisionError)
    assert backend.log.values() == []


@virtual_time
@pytest.mark.parametrize("wrong", ["text", bytes(limits.batch_bytes_max)], ids=["str", "large"])
async def test_nothing_of_a_series_is_appended_after_a_record_that_was_wrong(log, backend, wrong):
    out = log.producer()
    calls = [
        out.produce_many([b"a"]),
        out.produce_many([b"b", wrong]),
        out.produce_many([b"c"]),
        log.produce_many([b"d"]),
    ]
    results = await asyncio.gather(*calls, return_exceptions=True)
    assert results[0] == range(1)
    assert isinstance(results[1], TypeError | TooLarge)
    assert isinstance(results[2], EarlierRefused | TypeError | TooLarge)
    assert backend.log.values() == [b"a", b"d"]


# --- wrong records among good ones ---------------------------------------------------------------


class Shouting(str):  # noqa: SLOT000
    """Nothing that it says of itself is so."""

    def isascii(self):
        return True

    def encode(self, *_):
        return "ä".encode()

    def __len__(self):
        return 1


class Growing(bytes):
    def __len__(self):
        return 2**40

    def __bytes__(self):
        return b"another"


class Failing(dict):
    def items(self):
        raise ZeroDivisionError


def released() -> memoryview:
    view = memoryview(b"gone")
    view.release()
    return view


WRONG = {
    "value str": ({"value": "text"}, TypeError),
    "value int": ({"value": 5}, TypeError),
    "value None": ({"value": None}, TypeError),
    "value list": ({"value": [1, 2]}, TypeError),
    "value released": ({"value": released()}, ValueError),
    "value large": ({"value": bytes(limits.batch_bytes_max)}, TooLarge),
    "key str": ({"key": "text"}, TypeError),
    "key int": ({"key": 5}, TypeError),
    "key bool": ({"key": False}, TypeError),
    "key large": ({"key": bytes(limits.batch_bytes_max)}, TooLarge),
    "headers int": ({"headers": 5}, TypeError),
    "headers zero": ({"headers": 0}, TypeError),
    "headers str": ({"headers": "ab"}, TypeError),
    "headers bytes": ({"headers": b""}, TypeError),
    "headers names": ({"headers": ["a", "b"]}, TypeError),
    "headers triples": ({"headers": [("a", b"", b"")]}, TypeError),
    "headers fail": ({"headers": Failing(a=b"")}, ZeroDivisionError),
    "headers many": ({"headers": [("a", b"")] * 65}, InvalidBatch),
    "headers endless": ({"headers": iter(lambda: ("a", b""), None)}, InvalidBatch),
    "name bytes": ({"headers": {b"a": b"b"}}, TypeError),
    "name int": ({"headers": {1: b"b"}}, TypeError),
    "name None": ({"headers": {None: b"b"}}, TypeError),
    "name foreign": ({"headers": {"ä": b"b"}}, InvalidBatch),
    "name surrogate": ({"headers": {"\ud800": b"b"}}, InvalidBatch),
    "name empty": ({"headers": {"": b"b"}}, InvalidBatch),
    "name long": ({"headers": {"a" * 1025: b"b"}}, InvalidBatch),
    "name liar": ({"headers": {Shouting("ä"): b"b"}}, InvalidBatch),
    "header int": ({"headers": {"a": 5}}, TypeError),
    "header bool": ({"headers": {"a": True}}, TypeError),
    "header str": ({"headers": {"a": "b"}}, TypeError),
    "header None": ({"headers": {"a": None}}, TypeError),
    "header list": ({"headers": {"a": [1, 2]}}, TypeError),
    "header large": ({"headers": {"a": bytes(limits.batch_bytes_max)}}, TooLarge),
    "time negative": ({"timestamp": -1}, InvalidRequest),
    "time large": ({"timestamp": 2**64 - 1}, InvalidRequest),
    "time huge": ({"timestamp": 10**400}, InvalidRequest),
    "time bool": ({"timestamp": True}, InvalidRequest),
    "time float": ({"timestamp": 1.5}, InvalidRequest),
    "time nan": ({"timestamp": math.nan}, InvalidRequest),
    "time str": ({"timestamp": "now"}, InvalidRequest),
    "time naive": ({"timestamp": datetime(2026, 1, 1)}, InvalidRequest),
    "time before 1970": ({"timestamp": datetime(1969, 1, 1, tzinfo=UTC)}, InvalidRequest),
    "time delta": ({"timestamp": timedelta(1)}, InvalidRequest),
}
RIGHT = {
    "bytearray": {"value": bytearray(b"v")},
    "view": {"value": memoryview(b"abc")[::2]},
    "liar": {"value": Growing(b"v")},
    "key": {"key": memoryview(b"k")},
    "header": {"headers": {"a": b"1", "b": bytearray(b"2")}},
    "pairs": {"headers": [("a", b""), ("a", memoryview(b"x"))]},
    "no headers": {"headers": {}},
    "time": {"timestamp": 7},
    "datetime": {"timestamp": datetime(2026, 1, 1, tzinfo=timezone(timedelta(hours=9)))},
}


def arguments(name: str) -> dict:
    given = {"value": b"v"} | (WRONG[name][0] if name in WRONG else RIGHT[name])
    if name == "headers endless":
        given["headers"] = iter(lambda: ("a", b""), None)
    return given


def expectations(name: str) -> type[BaseException]:
    return WRONG[name][1]


def one(name: str) -> list[NewRecord]:
    return [NewRecord(**arguments(name))]


@virtual_time
@pytest.mark.parametrize("name", WRONG)
async def test_a_wrong_record_fails_its_own_call_only(log, backend, name):
    """One by one, in one call, at a place of its own, and over again: what gathers with it, and
    what comes after it, never hears of it."""
    wrong = arguments(name)
    calls = [
        log.produce(b"0", key=b"k"),
        log.produce(**wrong),
        log.produce(b"1", headers={"h": b""}),
        log.produce_many(one(name)),
        log.produce(b"2", timestamp=5),
        log.produce(**arguments(name), expected_offset=2),
        log.produce(b"3"),
    ]
    async with asyncio.timeout(1):
        results = await asyncio.gather(*calls, return_exceptions=True)
    for position in (1, 3, 5):
        assert type(results[position]) is expectations(name), results[position]
    assert results[::2] == [0, 1, 2, 3]
    assert backend.log.values() == [b"0", b"1", b"2", b"3"]
    assert await log.produce(b"next") == 4
    assert log._batcher._budget.taken == 0


@virtual_time
@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    names=st.lists(st.sampled_from([*WRONG, *RIGHT]), min_size=1, max_size=30), seed=st.booleans()
)
async def test_wrong_and_good_records_together(names, seed):
    backend = FakeBackend()
    async with Log(backend, timeout_seconds=1, compress=seed) as log:
        calls = [
            log.produce(**arguments(name)) if number % 3 else log.produce_many(one(name))
            for number, name in enumerate(names)
        ]
        results = await asyncio.gather(*calls, return_exceptions=True)
        good = 0
        for name, result in zip(names, results, strict=True):
            if name in WRONG:
                assert type(result) is expectations(name)
                continue
            assert isinstance(result, int | range)
            good += 1
        assert backend.log.next == good
        assert await log.produce(b"next") == good
        assert log._batcher._budget.taken == 0


@virtual_time
async def test_what_a_record_held_is_copied_when_it_is_accepted(log, backend):
    value, key, header = bytearray(b"v"), bytearray(b"k"), bytearray(b"h")
    call = log.produce(value, key, {"a": header})
    task = asyncio.ensure_future(call)
    await asyncio.sleep(0)
    value[:] = key[:] = header[:] = b"changed"
    await task
    assert backend.log.records()[0][1:4] == (b"v", b"k", (("a", b"h"),))


@virtual_time
async def test_a_batch_that_cannot_be_encoded_fails_alone(log, backend, monkeypatch):
    """However it came to be: a fault of ours, no memory."""
    from proglog.client import columns

    def no_memory(*_arguments, **_options):
        monkeypatch.undo()
        raise MemoryError

    monkeypatch.setattr(columns, "encode", no_memory)
    calls = [log.produce(b"a"), log.produce(b"b")]
    async with asyncio.timeout(1):
        results = await asyncio.gather(*calls, return_exceptions=True)
    assert list(map(type, results)) == [Internal, Internal]
    assert "MemoryError" in str(results[0])
    assert results[0] is not results[1]
    assert await log.produce(b"c") == 0
    assert log._batcher._budget.taken == 0


# --- timeouts ------------------------------------------------------------------------------------

WRONG_TIMES = [
    math.nan,
    math.inf,
    -math.inf,
    -1,
    0,
    1e300,
    10**400,
    "5",
    None,
    b"",
    True,
    timedelta(1),
]


@pytest.mark.parametrize("seconds", WRONG_TIMES, ids=repr)
async def test_a_timeout_is_seconds(seconds, tmp_path):
    wrong = pytest.raises(ConfigurationError, match="timeout_seconds is a number of seconds")
    with wrong:
        proglog.connect("proglog://127.0.0.1:1", timeout_seconds=seconds)
    with wrong:
        async with proglog.open(tmp_path / "data", timeout_seconds=seconds):
            pass
    assert not Path(tmp_path / "data").exists()
