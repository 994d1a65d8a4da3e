"""Whole clusters in simulated worlds: nothing that was promised is broken, whatever fails."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.sim import command
from tests.sim.events import Events
from tests.sim.world import silence

ROOT = Path(__file__).resolve().parents[2]
CPU_SECONDS = 10.0


@pytest.mark.timeout(600)
@pytest.mark.parametrize("first", [1, 10_001, 20_001, 30_001])
def test_nothing_promised_is_broken(first: int, capsys: pytest.CaptureFixture[str]) -> None:
    """`make sim SECONDS=3600` does this for longer, and prints what it did."""
    silence()
    totals, failed = command.run_seeds(first, CPU_SECONDS, None)
    with capsys.disabled():
        print(f"\n{totals}")
    assert failed is None, capsys.readouterr().out
    assert totals.counts["commits"] > 0
    assert totals.counts["probes"] > 0


@pytest.mark.parametrize("seed", [7, 16])
def test_a_seed_is_one_run(seed: int) -> None:
    silence()
    first, error = command.attempt(seed, None, None)
    second, _ = command.attempt(seed, None, None)
    assert error is None
    assert first.loop.trace.events > 1000
    assert first.loop.trace.hexdigest() == second.loop.trace.hexdigest()


def test_a_seed_is_the_same_run_in_every_process() -> None:
    """Strings hash differently in each: no order may come from a set of them."""
    traces = set()
    for hash_seed in ("1", "2"):
        run = subprocess.run(
            [sys.executable, "-m", "tests.sim", "--seed", "13"],
            cwd=ROOT,
            env={**os.environ, "PYTHONHASHSEED": hash_seed},
            capture_output=True,
            text=True,
            check=True,
        )
        traces.add(run.stdout.splitlines()[-1])
    assert len(traces) == 1
    assert traces.pop().startswith("trace ")


def test_faults_may_be_left_out() -> None:
    """A failing seed is shrunk by leaving out faults: what is left must still be a run."""
    silence()
    whole, error = command.attempt(3, None, None)
    assert error is None
    numbers = [fault.number for fault in whole.faults]
    half, error = command.attempt(3, None, numbers[::2])
    assert error is None
    assert [fault.number for fault in half.faults] == numbers[::2]


def test_what_happens_is_told_in_its_order() -> None:
    """A line an event; and being watched changes nothing."""
    silence()
    lines: list[str] = []
    told, error = command.attempt(13, None, None, Events(lines.append))
    assert error is None
    moments = [float(line[:9]) for line in lines]
    assert moments == sorted(moments)
    for what in ("starts (life 1)", "LEADS term 2", "commits batch ", "FAULT 0: ", "-> n"):
        assert any(what in line for line in lines), what
    uuids = {node.uuid for node in told.nodes}
    assert not any(uuid in line for line in lines[-1000:] for uuid in uuids)
    unwatched, _ = command.attempt(13, None, None)
    assert told.loop.trace.hexdigest() == unwatched.loop.trace.hexdigest()
