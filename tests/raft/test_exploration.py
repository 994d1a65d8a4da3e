"""Every order of events within small bounds; PROGLOG_EXPLORE=1 takes larger ones (minutes)."""

from __future__ import annotations

import os

import pytest

from tests.raft.explore import Bounds, Explorer

COMPLETE = [
    (Bounds(terms=1, proposals=1), 3),
    (Bounds(terms=1, proposals=0, changes=1), 3),
    (Bounds(terms=1, proposals=0, changes=2), 2),
    (Bounds(terms=1, proposals=0, changes=1, crashes=1), 2),
]
LARGER = [
    (Bounds(terms=2, proposals=0), 3),
    (Bounds(terms=2, proposals=0, crashes=1), 2),
    (Bounds(terms=2, proposals=1), 2),
    (Bounds(terms=2, proposals=0, changes=1), 2),
    (Bounds(terms=1, proposals=1, crashes=1), 3),
    (Bounds(terms=1, proposals=1, heartbeats=1, losses=1), 3),
]


@pytest.mark.parametrize(("bounds", "voters"), COMPLETE)
def test_every_world(bounds: Bounds, voters: int) -> None:
    explorer = Explorer(bounds, voters)
    explorer.run()
    assert explorer.complete


@pytest.mark.parametrize(("bounds", "voters"), LARGER)
@pytest.mark.timeout(600)
def test_worlds_of_larger_bounds(bounds: Bounds, voters: int) -> None:
    Explorer(bounds, voters).run(seconds=90 if os.environ.get("PROGLOG_EXPLORE") else 2)
