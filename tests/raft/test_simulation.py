"""The core under seeded faults, and that the same seed is the same run."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.raft.core_sim import run_seed

SIMULATOR = Path(__file__).parent / "core_sim.py"


@pytest.mark.parametrize("block", range(4))
def test_safety_then_liveness(block: int) -> None:
    began, seed = time.process_time(), 1000 * block
    while time.process_time() - began < 2:
        run_seed(seed)
        seed += 1


@pytest.mark.parametrize("seed", [3, 8])
def test_a_seed_is_one_run_under_any_hash_seed(seed: int) -> None:
    traces = set()
    for hash_seed in ("0", "1", "12345"):
        simulator = subprocess.run(
            [sys.executable, SIMULATOR, "--seed", str(seed)],
            env={**os.environ, "PYTHONHASHSEED": hash_seed},
            capture_output=True,
            text=True,
            check=True,
        )
        traces.add(simulator.stdout.split("trace ")[1].split()[0])
    assert len(traces) == 1
