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
from proglog.client.client import Log
from proglog.client.sender import Series
from proglog.errors import (
    ConfigurationError,
    DiskFull,
    EarlierRefused,
    Internal,
    InvalidBatch,
    InvalidRequest,
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
async def test_columns_are_iterables_too(log, backend):
    await log.produce_many(
        iter(THREE),
        (key for key in (None, b"k", b"")),
        map(dict, [[], [("h", b"1")], []]),
        iter([1, None, 3]),
    )
    assert [record[1:] for record in backend.log.records()] == [
        (b"a", None, (), 1),
        (b"b", b"k", (("h", b"1"),), 1000),
        (b"c", b"", (), 3),
    ]


async def arriving():
    yield b"a"


@virtual_time
@pytest.mark.parametrize(
    ("values", "hint"),
    [
        ("text", "not str"),
        (b"bytes", "not bytes"),
        (bytearray(b"bytes"), "not bytearray"),
        (memoryview(b"bytes"), "not memoryview"),
        ({b"a": b"b"}, "not dict"),
        (arriving(), "not async_generator"),
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


@virtual_time
@pytest.mark.parametrize("wrong", ["text", b"bytes", {b"a": b"b"}, 5, [5], ["text"]], ids=repr)
@pytest.mark.parametrize("name", ["keys", "headers", "timestamps"])
async def test_what_is_no_column(log, backend, name, wrong):
    if wrong == [5] and name == "timestamps":
        wrong = [5.5]
    with pytest.raises((TypeError, InvalidRequest)):
        await log.produce_many([b"a"], **{name: wrong})
    assert backend.submitted == []


@virtual_time
@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("kind", [list, iter])
async def test_columns_of_another_length(log, backend, count, kind):
    for name, entry in (("keys", b"k"), ("headers", {}), ("timestamps", 5)):
        with pytest.raises(InvalidRequest, match=f"{name}|each column"):
            await log.produce_many(kind([b"a", b"b"]), **{name: kind([entry] * count)})
    assert backend.submitted == []


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
    assert log._producer._budget.taken == 0


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
    assert log._producer._budget.taken == 0


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
    assert log._producer._budget.taken == 0


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
    series = Series()
    calls = [
        log.produce_many([b"a"], series=series),
        log.produce_many([b"b", wrong], series=series),
        log.produce_many([b"c"], series=series),
        log.produce_many([b"d"]),
    ]
    results = await asyncio.gather(*calls, return_exceptions=True)
    assert results[0] == range(1)
    assert isinstance(results[1], TypeError | TooLarge)
    assert isinstance(results[2], EarlierRefused)
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


def column(name: str) -> tuple[list, list, list, list]:
    given = arguments(name)
    return tuple([given.get(each)] for each in ("value", "key", "headers", "timestamp"))


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
        log.produce_many(*column(name)),
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
    assert log._producer._budget.taken == 0


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
            log.produce(**arguments(name)) if number % 3 else log.produce_many(*column(name))
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
        assert log._producer._budget.taken == 0


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
    assert log._producer._budget.taken == 0


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
