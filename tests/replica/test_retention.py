"""Retention by size and by age, and the snapshots that it needs."""

from __future__ import annotations

import asyncio
import math
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from proglog import limits
from proglog.config import LogConfig
from proglog.errors import ChangeRefused, OffsetOutOfRange
from proglog.log.format import Tip
from proglog.replica.retention import plan_start
from tests.doubles.disk import SimDisk
from tests.doubles.files import SimFiles
from tests.doubles.worker import SimWorker
from tests.replica.support import CONFIG, START_MS, Node, log_in, outcomes, proposed
from tests.waiting import DEADLINE_SECONDS, until

BY_SIZE = replace(CONFIG, retention_bytes=CONFIG.segment_bytes, retention_check_seconds=0.01)


def tip(index: int, ms: int = 0) -> Tip:
    return Tip(index, 1, index * 10, ms, 0)


SEGMENTS = [(tip(0), 100), (tip(10, 1000), 100), (tip(20, 2000), 100), (tip(30, 3000), 50)]


@pytest.mark.parametrize(
    ("bytes_max", "seconds", "committed", "now", "start"),
    [
        (None, None, 99, 10**9, 0),
        (400, None, 99, 0, 0),
        (350, None, 99, 0, 0),
        (349, None, 99, 0, 100),
        (250, None, 99, 0, 100),
        (249, None, 99, 0, 200),
        (1, None, 99, 0, 300),
        (1, None, 29, 0, 200),
        (1, None, 9, 0, 0),
        (None, 1.0, 99, 2000, 0),
        (None, 1.0, 99, 2001, 100),
        (None, 1.0, 99, 10**9, 300),
        (250, 1.0, 99, 10**9, 300),
    ],
)
def test_what_may_go(
    bytes_max: int | None, seconds: float | None, committed: int, now: int, start: int
) -> None:
    config = LogConfig(segment_bytes=16385, retention_seconds=seconds)
    object.__setattr__(config, "retention_bytes", bytes_max)
    total = sum(size for _, size in SEGMENTS)
    plan = plan_start(
        SEGMENTS,
        config,
        committed_index=committed,
        total=total,
        oldest=-math.inf if seconds is None else now - 1000 * seconds,
        aged_bytes_max=math.inf,
    )
    assert plan.start == start
    assert plan.held == 0


@pytest.mark.parametrize(
    ("bytes_max", "aged_max", "plan"),
    [
        # What is too much goes, whatever its age.
        (100, -1.0, (300, 0, 0)),
        (None, -1.0, (0, 0, 3)),
        (None, 0.0, (100, 100, 2)),
        (None, 199.0, (100, 100, 2)),
        (None, 200.0, (200, 200, 1)),
        (None, math.inf, (300, 300, 0)),
        (250, 0.0, (200, 100, 1)),
        (249, 100.0, (300, 100, 0)),
    ],
)
def test_no_more_goes_for_its_age_than_is_allowed(
    bytes_max: int | None, aged_max: float, plan: tuple[int, int, int]
) -> None:
    config = LogConfig(segment_bytes=16385)
    object.__setattr__(config, "retention_bytes", bytes_max)
    found = plan_start(
        SEGMENTS,
        config,
        committed_index=99,
        total=350,
        oldest=10**9,
        aged_bytes_max=aged_max,
    )
    assert found == plan


@pytest.mark.parametrize("at_once", [False, True], ids=["one by one", "all at once"])
async def test_a_snapshot_stands_at_the_end_of_each_sealed_segment(
    node: Node, at_once: bool
) -> None:
    """Also where the last batch was applied long before the segment was sealed. The first and the
    newest stay."""
    if at_once:
        await outcomes([await node.replica.propose(proposed(b"x")) for _ in range(100)])
    else:
        await node.fill(100)
    await node.written()
    ends = [sealed.index for sealed in node.replica.log.sealed_tips()]
    assert len(ends) >= 6
    assert node.replica.log.snapshot_indexes == [ends[0], ends[-1]]
    await until(lambda: node.snapshots() == [ends[0], ends[-1]])


async def until_earliest_moves(node: Node, beyond: int = 0) -> int:
    async with asyncio.timeout(DEADLINE_SECONDS):
        while node.replica.earliest <= beyond or node.replica.log.first_index == 1:
            await asyncio.sleep(0.005)
    return node.replica.earliest


async def test_the_oldest_go_by_size(folder: Path) -> None:
    async with Node(folder, config=BY_SIZE) as node:
        values = await node.fill(60, size=1000)
        await asyncio.sleep(0.05)
        earliest = await until_earliest_moves(node, 20)
        assert node.replica.describe().bytes <= 2 * BY_SIZE.segment_bytes
        assert node.replica.describe().earliest == earliest
        for offset in (0, earliest - 1):
            with pytest.raises(OffsetOutOfRange) as caught:
                await node.replica.read(offset, 1)
            assert caught.value.number("earliest") == earliest
        assert await node.consume(earliest) == values[earliest:]
        await node.replica.wait_past(earliest - 1)
        assert await node.replica.seek(0) == earliest
        await node.written()
        stores = [name for name in node.names() if name.endswith(".store") and name[0] == "0"]
        assert stores[0] == f"{node.replica.log.first_index:020d}.store"
        assert len(stores) <= 3
        # None is older than what the log begins with.
        assert node.snapshots()[0] >= node.replica.log.before.index
        earliest = node.replica.earliest
        await node.restart()
        assert node.replica.earliest >= earliest
        assert (await node.consume(node.replica.earliest))[-1] == values[-1]
        assert node.replica.next_offset == 60


@dataclass
class RunningClock:
    """A wall clock on the time of the loop."""

    wrong_ms: int = 0

    def now_ms(self) -> int:
        return START_MS + self.wrong_ms + round(1000 * asyncio.get_running_loop().time())

    def stopwatch(self) -> float:
        return asyncio.get_running_loop().time()


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Days are simulated: nothing need be looked at many times a second."""
    monkeypatch.setattr(limits, "tick_seconds", 60.0)
    monkeypatch.setattr(limits, "peer_beat_seconds", 600.0)


def aging(config: LogConfig) -> tuple[Node, RunningClock]:
    """A node whose records become old, in virtual time."""
    files = SimFiles(SimDisk(1))
    node = Node(log_in(Path("/data")), config=config, files=files, worker=SimWorker)
    node.clock = clock = RunningClock()  # type: ignore[assignment]
    return node, clock


DAY = 86_400
BY_DAYS = replace(CONFIG, retention_seconds=8 * DAY, retention_check_seconds=30.0)


@pytest.mark.usefixtures("slow")
@pytest.mark.virtual_time
async def test_the_oldest_go_by_age() -> None:
    """In pieces that were usual all the time."""
    node, clock = aging(BY_DAYS)
    async with node:
        values: list[bytes] = []
        for _ in range(10):
            values += await node.fill(30)
            await asyncio.sleep(DAY)
        began = clock.now_ms() - 10 * DAY * 1000
        await asyncio.sleep(60.0)
        earliest = node.replica.earliest
        assert 60 < earliest <= 90
        assert await node.consume(earliest) == values[earliest:]
        assert await node.replica.seek(began) == earliest
        assert node.replica.cluster_status().notes == ()


@pytest.mark.usefixtures("slow")
@pytest.mark.virtual_time
@pytest.mark.parametrize("wrong_days", [365, 9])
async def test_a_clock_that_jumps_deletes_little_before_it_has_stood(wrong_days: int) -> None:
    """A node alone cannot know better than its clock, but gives an hour to mend it."""
    node, clock = aging(BY_DAYS)
    async with node:
        for _ in range(60):
            await node.fill(10)
            await asyncio.sleep(3600.0)
        segments = len(node.replica.log.segment_facts())
        assert segments > 30
        clock.wrong_ms = wrong_days * DAY * 1000
        await asyncio.sleep(limits.retention_quiet_seconds_max - 60)
        assert node.replica.earliest == 0
        await asyncio.sleep(1800.0)
        assert segments - len(node.replica.log.segment_facts()) <= 3 * max(1, 0.05 * segments) + 3
        (note,) = node.replica.cluster_status().notes
        assert "retention-time would delete" in note
        clock.wrong_ms = 0
        await asyncio.sleep(2 * 3600.0)
        assert segments - len(node.replica.log.segment_facts()) <= 3 * max(1, 0.05 * segments) + 3
        clock.wrong_ms = wrong_days * DAY * 1000
        await asyncio.sleep(limits.retention_held_seconds_max + 120)
        assert len(node.replica.log.segment_facts()) <= 2


@pytest.mark.usefixtures("slow")
@pytest.mark.virtual_time
async def test_log_time_that_was_ahead_is_corrected_by_an_operator() -> None:
    node, clock = aging(BY_DAYS)
    clock.wrong_ms = 30 * DAY * 1000
    async with node:
        del node.replica.stamps.now_ms  # as it is in truth
        early = await node.fill(5)
        began = clock.now_ms() - clock.wrong_ms
        clock.wrong_ms = 0
        await asyncio.sleep(2 * DAY)
        late = await node.fill(5)
        assert node.replica.log.tip.timestamp > clock.now_ms() + 27 * DAY * 1000
        (note,) = node.replica.cluster_status().notes
        assert "cluster fix-time" in note
        back = await node.replica.fix_time()
        assert back == pytest.approx(28 * DAY * 1000, abs=5000)
        assert node.replica.cluster_status().notes == () or await later(node) == ()
        fixed_at = clock.now_ms()
        await asyncio.sleep(1.0)
        right = await node.fill(5)
        with pytest.raises(ChangeRefused, match="not ahead"):
            await node.replica.fix_time()
        for _ in range(2):
            assert await node.replica.seek(fixed_at + 1) == 10
            assert await node.replica.seek(clock.now_ms() + DAY) == 15
            assert await node.replica.seek(began) == 0
            assert await node.consume() == early + late + right
            await node.restart()
            del node.replica.stamps.now_ms
        # What was stamped ahead counts as appended when that was corrected.
        await asyncio.sleep(7 * DAY)
        await node.fill(1)
        assert node.replica.earliest == 0
        await asyncio.sleep(2 * DAY)
        assert node.replica.earliest > 0


async def later(node: Node) -> tuple[str, ...]:
    await asyncio.sleep(120.0)
    return node.replica.cluster_status().notes


@pytest.mark.usefixtures("slow")
@pytest.mark.virtual_time
async def test_half_a_second_of_a_wrong_clock_deletes_nothing() -> None:
    node, clock = aging(replace(BY_DAYS, retention_check_seconds=0.2))
    async with node:
        values = await node.fill(100)
        await asyncio.sleep(2 * 3600.0)
        clock.wrong_ms = 9 * DAY * 1000
        await asyncio.sleep(0.5)
        clock.wrong_ms = 0
        await asyncio.sleep(2 * 3600.0)
        assert await node.consume() == values
        assert await node.produce(b"x") == 100
        assert node.replica.log.tip.timestamp <= clock.now_ms()


async def test_nothing_goes_where_everything_is_kept(folder: Path) -> None:
    async with Node(folder, config=replace(CONFIG, retention_check_seconds=0.01)) as node:
        values = await node.fill(60)
        node.clock.ms += 10**12
        await asyncio.sleep(0.05)
        assert await node.consume() == values


async def test_the_start_moves_before_the_files_go(folder: Path) -> None:
    """And is the same after a restart in between."""
    async with Node(folder, config=BY_SIZE) as node:
        node.replica.log.drop_prefix = lambda first_index: 0  # type: ignore[method-assign]
        await node.fill(60, size=1000)
        async with asyncio.timeout(DEADLINE_SECONDS):
            while node.replica.earliest == 0:
                await asyncio.sleep(0.005)
        assert node.replica.log.first_index == 1
        earliest = node.replica.earliest
    async with Node(folder) as node:
        assert node.replica.earliest >= earliest
        with pytest.raises(OffsetOutOfRange):
            await node.replica.read(earliest - 1, 1)
