"""Attacks on the RPC port of a real node: a short form of `make hostile`."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.hostile import edge


@pytest.mark.timeout(300)
async def test_no_attack_stops_a_node_or_makes_it_grow(tmp_path: Path) -> None:
    """Every call of the modest client beside the attacker succeeds; how long it takes is told."""
    outcomes = await edge.besiege_all(tmp_path, 0.15)
    print(edge.HEAD)
    for outcome in outcomes:
        print(outcome.row())
    assert {outcome.name: outcome.faults() for outcome in outcomes if outcome.faults()} == {}
