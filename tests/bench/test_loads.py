"""The benchmarks measure what they say, and notice what is not as it should be."""

from __future__ import annotations

import asyncio
import contextlib
import json
import subprocess
import sys
from collections.abc import AsyncIterator
from itertools import count
from pathlib import Path

import pytest

import proglog
from proglog.cli import bench
from proglog.cli.bench import Check, concurrently, one_at_a_time, percentile, values_of
from proglog.config import Address
from proglog.errors import ConfigurationError, CorruptionError
from scripts.bench import foreign, node, segments, workloads
from scripts.bench.cluster import Witness
from scripts.bench.opening import opening
from scripts.bench.report import Report, Row
from scripts.bench.servers import serving
from scripts.bench.stages import STAGES, stages
from scripts.bench.systems import SYSTEMS, Proglog, RedisStreams, System
from tests import judges

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
async def log(tmp_path: Path) -> AsyncIterator[proglog.Log]:
    async with proglog.open(tmp_path / "data") as opened:
        yield opened


# --- loads ---------------------------------------------------------------------------------------


def test_percentiles_are_of_the_nearest_rank() -> None:
    numbers = list(range(100, 0, -1))
    assert [percentile(numbers, percent) for percent in (50, 99, 100)] == [50, 99, 100]
    assert percentile([7], 50) == percentile([7], 99) == 7


@pytest.mark.parametrize("size", bench.SIZES)
def test_values_are_distinct_and_of_one_size(size: int) -> None:
    values = values_of(size)
    assert len(set(values)) == len(values) >= 1000
    assert {len(value) for value in values} == {size}


def test_a_check_takes_values_over_and_over_and_nothing_else() -> None:
    values = [b"a", b"b", b"c"]
    check = Check(values, seconds=60)
    for taken in ([b"a", b"b"], [b"c", b"a", b"b"], [b"c"], []):
        assert not check.take(taken)
    assert check.count == 6
    with pytest.raises(CorruptionError, match="record 6"):
        check.take([b"a", b"c"])


def test_a_check_says_when_it_is_time_to_stop() -> None:
    assert Check([b"a"], seconds=0).take([b"a"])


async def test_each_task_waits_for_its_record_before_the_next() -> None:
    under_way: set[bytes] = set()
    numbers = count()

    async def produce(value: bytes) -> int:
        assert value not in under_way
        under_way.add(value)
        await asyncio.sleep(0.001)
        under_way.remove(value)
        return next(numbers)

    rate, answers = await concurrently(produce, [b"a", b"b", b"c"], 0.05)
    assert rate > 0
    assert sorted(number for some in answers for number in some) == list(range(next(numbers)))


async def test_latencies_are_those_of_the_calls() -> None:
    async def produce(_value: bytes) -> None:
        await asyncio.sleep(0.01)

    latencies = await one_at_a_time(produce, b"", 0.05)
    assert latencies
    assert min(latencies) >= 0.009


async def test_what_produce_many_left_reads_back(log: proglog.Log) -> None:
    await log.produce(b"before")
    values = values_of(1024)
    _, first = await bench.produce_many(log, values, 0.02)
    assert first == 1
    for read in (bench.consume, bench.consume_batches):
        check = Check(values, 60)
        await read(log, first, check)
        assert check.count == (await log.describe()).next - first


async def test_records_of_others_are_noticed(log: proglog.Log) -> None:
    async def other() -> None:
        while True:
            await log.produce(b"x")

    task = asyncio.create_task(other())
    try:
        with pytest.raises(ConfigurationError, match="others append"):
            await bench.produce_many(log, values_of(1024), 0.2)
    finally:
        task.cancel()
        await asyncio.wait([task])


async def test_a_record_at_another_offset_is_noticed(log: proglog.Log) -> None:
    client = Proglog(log, [Address("127.0.0.1", 1)])
    values = [b"a", b"b"]
    answers = [[await log.produce(value)] for value in values]
    await workloads.check_appended(client, values, answers)
    with pytest.raises(AssertionError, match="another one"):
        await workloads.check_appended(client, values, answers[::-1])
    with pytest.raises(AssertionError, match="not in the log"):
        await workloads.check_appended(client, values, [[0], [1, 2]])


async def test_a_witness_notices_loss_and_repetition(log: proglog.Log) -> None:
    witness = Witness(log)
    running = asyncio.create_task(witness.run())
    while len(witness.acknowledged) < 3:
        await asyncio.sleep(0.001)
    running.cancel()
    await asyncio.wait([running])
    assert await witness.check(log, 0) >= 3
    missing = await log.produce(b"1000000")
    witness.acknowledged[missing + 1] = 1000001
    with pytest.raises(AssertionError, match="lost"):
        await witness.check(log, 0)
    del witness.acknowledged[missing + 1]
    await log.produce(b"1000000")
    with pytest.raises(AssertionError, match="twice"):
        await witness.check(log, 0)


# --- reports -------------------------------------------------------------------------------------


def test_a_row_says_whether_its_target_is_reached() -> None:
    rate = Row(load="rate", unit="records/s", target=100)
    latency = Row(load="latency", unit="ms", target=100, less_is_better=True)
    for row in (rate, latency):
        assert row.verdict("us") == ""
    for row, verdicts in ((rate, ("MISSED", "ok")), (latency, ("ok", "MISSED"))):
        for value, verdict in zip((99, 101), verdicts, strict=True):
            row.put("us", [1, value, 1000])
            assert row.verdict("us") == verdict


def test_a_report_shows_and_saves(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = Report("title", ["us", "them"])
    report.add(Row(load="load", unit="ms", target=2, less_is_better=True)).put("us", [1, 3, 2])
    report.note("a note")
    report.print()
    lines = capsys.readouterr().out.splitlines()
    assert any(line.split() == ["load", "ms", "2", "<=", "2", "ok", "-"] for line in lines)
    report.save(tmp_path / "report.json")
    saved = json.loads((tmp_path / "report.json").read_text())
    assert saved["rows"][0]["values"] == {"us": 2}
    assert saved["notes"] == ["a note"]


# --- real processes ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SYSTEMS)
async def test_each_system_gives_back_what_it_took(name: str, tmp_path: Path) -> None:
    system: type[System] = SYSTEMS[name]
    if system is RedisStreams:
        judges.program("redis-server")
    values = values_of(1024)
    async with serving(system, tmp_path) as (client, _, port):
        assert await workloads.fill(client, values, 2 * len(values), 60) == 2 * len(values)
        for lists in (False, True):
            check = Check(values, 60)
            await (client.read_lists if lists else client.read)(check)
            assert check.count == 2 * len(values)
        assert await client.read_raw() >= 2 * len(values) * 1024
        assert len(await workloads.end_to_end(client, port, 100, 0.1)) == 50
    assert list(tmp_path.iterdir()) == []


async def test_clients_that_are_not_ours_are_measured(tmp_path: Path) -> None:
    """By grpcio, which is always there; Go and h2load where they are."""
    async with serving(Proglog, tmp_path) as (client, _, port):
        found = await foreign.measured(foreign.grpcio_client(), port, "unary", 4, 0.1)
        assert found["rate"] > 0
        assert found["p50"] <= found["p99"]
        assert (await client.log.describe()).next > 4


async def test_a_slow_disk_is_slow_and_its_stages_are_seen(tmp_path: Path) -> None:
    def command(folder: Path, port: int) -> list[str]:
        return node.command(folder, port, delay_ms=20)

    async with serving(Proglog, tmp_path, command) as (client, _, _):
        assert min(await one_at_a_time(client.append, b"value", 0.1)) >= 0.02
    found = await stages(tmp_path, 4, 0.2)
    assert tuple(found.ms) == STAGES
    assert all(ms > 0 for ms in found.ms.values())
    assert 1 <= found.batch_records <= 4


async def test_a_log_is_whole_when_it_opens_after_kill_9(tmp_path: Path) -> None:
    opened = await opening(tmp_path, 1000, 10, 2)
    assert len(opened) == 2
    assert all(0 < each.node_seconds < each.process_seconds for each in opened)


def test_the_command_measures_a_node_of_its_own_and_leaves_nothing(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "proglog.cli", "bench", "--seconds", "50ms", "--json"]
    done = subprocess.run(
        [*command, "--tasks", "8"],
        cwd=ROOT,
        env={"TMPDIR": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert [(row["record_bytes"], row["load"]) for row in rows] == [
        (100, "produce, one at a time"),
        *(
            (size, load)
            for size in (100, 1024)
            for load in ("produce, 8 tasks", "produce_many", "consume", "consume_batches")
        ),
    ]
    assert list(tmp_path.iterdir()) == []
    with contextlib.suppress(subprocess.TimeoutExpired):
        wrong = subprocess.run([*command, "--tasks", "0"], cwd=ROOT, check=False, timeout=60)
        assert wrong.returncode == 2


async def test_many_segments_open_with_few_descriptors(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(segments, "SEGMENTS", 300)
    made = await asyncio.to_thread(segments.make_segments, tmp_path / "log", 300)
    opened = await asyncio.to_thread(segments.measure_opening, tmp_path / "log")
    assert made.index == 300 * 8
    assert opened["descriptors"] < 100


async def test_many_producers_leave_two_snapshots(tmp_path: Path) -> None:
    figures = await segments.many_producers(tmp_path)
    assert figures["segments"] > 50
    assert figures["memory_mb"] < 20
