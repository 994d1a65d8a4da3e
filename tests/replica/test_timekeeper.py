"""The time of a log, by clocks of which some are wrong."""

from __future__ import annotations

import pytest

from proglog import limits
from proglog.replica.timekeeper import StampClock, Timekeeper

NOW = 1_700_000_000_000.0
YEAR = 365 * 86_400_000.0


class World:
    """A server and the others; `walls` are by how many ms their clocks are wrong. None: not heard
    of lately."""

    def __init__(self, *walls: float | None) -> None:
        self.walls: dict[str, float | None] = {f"n{n}": wall for n, wall in enumerate(walls)}
        self.seconds = 0.0
        self.last_stamp = 0
        self.monotonic_rate = 1.0
        self.stamps = StampClock(self, self.time)
        self.keeper = Timekeeper(
            stamps=self.stamps,
            clock=self,
            time=self.time,
            own_uuid="n0",
            voters=lambda: self.walls,
            offset_of=self.offset_of,
            last_stamp=lambda: self.last_stamp,
        )

    def time(self) -> float:
        return self.seconds * self.monotonic_rate

    def now_ms(self) -> int:
        return round(NOW + (self.walls["n0"] or 0.0) + 1000 * self.seconds)

    def stopwatch(self) -> float:
        return self.time()

    def offset_of(self, uuid: str) -> float | None:
        wall = self.walls[uuid]
        return None if wall is None else NOW + wall + 1000 * (self.seconds - self.time())

    def run(self, seconds: float, *, may_step: bool = True) -> None:
        for _ in range(round(seconds / 0.1)):
            self.seconds += 0.1
            self.keeper.look(may_step=may_step)

    @property
    def error(self) -> float:
        """Of stamps, in seconds."""
        return (self.stamps.now_ms() - NOW) / 1000 - self.seconds


@pytest.mark.parametrize(
    ("who", "wrong"),
    [("n0", YEAR), ("n0", -YEAR), ("n1", YEAR), ("n1", -YEAR), ("n1", None)],
)
def test_one_wrong_clock_of_three_decides_nothing(who: str, wrong: float | None) -> None:
    """Ours (n0) or another one, whenever it goes wrong and for however long."""
    world = World(0.0, 20.0, -30.0)
    world.run(5.0)
    world.walls[who] = wrong
    for _ in range(20):
        world.run(60.0)
        assert abs(world.error) < 0.2
        agreed = world.keeper.agreed_ms
        assert agreed is not None
        assert abs(agreed - NOW - 1000 * world.seconds) < 100
    assert world.keeper.steady_seconds > 1200
    world.walls[who] = 0.0
    world.run(60.0)
    assert abs(world.error) < 0.2
    assert world.keeper.steady_seconds > 1200


@pytest.mark.parametrize("rate", [0.7, 1.4])
def test_our_monotonic_clock_may_run_badly(rate: float) -> None:
    world = World(0.0, 0.0, YEAR)
    world.monotonic_rate = rate
    world.run(600.0)
    assert abs(world.error) < 1.0
    assert world.keeper.steady_seconds > 400


@pytest.mark.parametrize(
    ("walls", "agreed"),
    [
        ((0.0,), 0.0),
        ((YEAR,), YEAR),
        ((0.0, 50.0), 0.0),
        ((0.0, None), None),
        ((0.0, 50.0, None), 0.0),
        ((0.0, None, None), None),
        ((0.0, YEAR, -YEAR), 0.0),
        ((0.0, YEAR, YEAR), YEAR),
        ((0.0, 1.0, 2.0, YEAR, YEAR), 2.0),
        ((0.0, 1.0, 2.0, None, None), 0.0),
    ],
)
def test_what_a_majority_has_reached(walls: tuple[float | None, ...], agreed: float | None) -> None:
    told = World(*walls).keeper.agreed_ms
    assert told == (None if agreed is None else pytest.approx(NOW + agreed))


def test_of_two_the_earlier_counts_where_the_third_is_silent() -> None:
    """Nothing goes then: a majority must show about the same."""
    world = World(0.0, -YEAR, None)
    world.run(60.0)
    assert world.keeper.steady_seconds < 1.0


def test_stamps_follow_a_step_of_the_majority_once_it_has_stood() -> None:
    world = World(0.0, 0.0, 0.0)
    world.run(60.0)
    world.walls.update(n1=YEAR, n2=YEAR)
    world.run(limits.clock_step_seconds - 1)
    assert abs(world.error) < 0.2
    assert world.keeper.steady_seconds < limits.clock_step_seconds
    world.walls["n1"] = 0.0
    world.run(60.0)
    assert abs(world.error) < 0.2
    world.walls["n1"] = YEAR
    world.run(limits.clock_step_seconds + 1)
    assert world.error == pytest.approx(YEAR / 1000)


def test_a_step_waits_while_a_batch_is_on_its_way() -> None:
    """The room that was made for it is of about this time."""
    world = World(0.0)
    world.walls["n0"] = YEAR
    world.run(60.0, may_step=False)
    assert abs(world.error) < 0.2
    world.run(0.3)
    assert world.error == pytest.approx(YEAR / 1000)


def test_stamps_run_on_while_nobody_tells_the_time() -> None:
    world = World(0.0, 0.0, None)
    world.run(5.0)
    world.walls.update(n1=None)
    world.run(600.0)
    assert abs(world.error) < 0.2
    assert world.keeper.agreed_ms is None
    assert world.keeper.steady_seconds < 1.0


def test_before_anybody_has_told_the_time_there_is_none() -> None:
    world = World(0.0, None, None)
    world.run(5.0)
    assert world.stamps.now_ms() == 0


def test_who_begins_to_lead_waits_anew() -> None:
    world = World(0.0, 0.0, 0.0)
    world.run(100.0)
    world.keeper.begin()
    world.run(7.0)
    assert world.keeper.steady_seconds == pytest.approx(7.0)


def test_log_time_is_corrected_only_by_clocks_that_all_agree() -> None:
    """Set too low, records would be older than they are."""
    world = World(0.0, 50.0, -50.0)
    world.run(30.0)
    assert "nothing to correct" in (world.keeper.why_not_corrected() or "")
    world.last_stamp = round(NOW + 1000 * world.seconds + YEAR)
    assert world.keeper.why_not_corrected() is None
    for wrong in (YEAR, -YEAR, 3000.0, None):
        world.walls["n2"] = wrong
        world.run(30.0)
        assert "not all voters' clocks" in (world.keeper.why_not_corrected() or "")
    world.walls["n2"] = 0.0
    world.run(30.0)
    assert world.keeper.why_not_corrected() is None
    # A majority that has just moved is not believed yet.
    world.walls.update(n0=-YEAR, n1=-YEAR, n2=-YEAR)
    world.run(limits.clock_step_seconds - 1)
    assert world.keeper.why_not_corrected() is not None


def test_what_is_wrong_is_told() -> None:
    world = World(0.0, 0.0, 0.0)
    world.run(1.0)
    assert world.keeper.notes() == []
    world.walls["n0"] = -3 * 86_400_000.0
    world.last_stamp = round(NOW + 1000 * world.seconds + YEAR)
    world.run(1.0)
    assert world.keeper.notes() == [
        "the wall clock of this node differs from those of most voters: 3.0 d behind",
        "log time stands still until then, or `cluster fix-time`: 365.0 d ahead",
    ]
    world.walls["n0"] = 0.0
    world.last_stamp = 0
    world.run(1.0)
    assert world.keeper.notes() == []
