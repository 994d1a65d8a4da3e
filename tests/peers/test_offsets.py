"""What is believed of another node's clock."""

from __future__ import annotations

import pytest

from proglog import limits
from proglog.peers.offsets import Offsets

WALL = 1_700_000_000_000


def test_the_answer_that_came_soonest_counts() -> None:
    offsets = Offsets()
    assert offsets.best(0.0) is None
    for sent, trip, error in ((1.0, 0.5, 250), (2.0, 0.1, 50), (3.0, 0.2, -100)):
        offsets.add(sent, sent + trip, round(WALL + 1000 * (sent + trip / 2) + error))
    assert offsets.best(3.2) == pytest.approx(WALL + 50)
    # A newer one that is as good takes its place.
    offsets.add(4.0, 4.1, round(WALL + 1000 * 4.05) + 7)
    assert offsets.best(4.1) == pytest.approx(WALL + 7)


def test_what_was_told_long_ago_counts_no_more() -> None:
    offsets = Offsets()
    offsets.add(0.0, 0.1, WALL)
    offsets.add(5.0, 5.4, WALL + 5200)
    assert offsets.best(limits.clock_sample_seconds_max) == pytest.approx(WALL - 50)
    assert offsets.best(limits.clock_sample_seconds_max + 0.2) == pytest.approx(WALL)
    assert offsets.best(limits.clock_sample_seconds_max + 5.5) is None


def test_an_answer_that_took_very_long_says_nothing() -> None:
    offsets = Offsets()
    offsets.add(0.0, 1.1, WALL)
    assert offsets.best(1.1) is None


def test_memory_is_bounded() -> None:
    offsets = Offsets()
    for n in range(1000):
        offsets.add(0.0, 0.001 * n, WALL)
    assert len(offsets._samples) == limits.clock_samples_max
