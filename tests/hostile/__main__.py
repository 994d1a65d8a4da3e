"""Three real nodes whose gossip ports are attacked for minutes, without keys and with them.

Prints a table; ends with 1 where a node ended, a server was added or removed, the leader was not
kept, or memory went on growing. How long a record took is told, and judged by nobody.

Run it by `make hostile`.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
from pathlib import Path

import uvloop

from tests.hostile.siege import Outcome, besiege

MIB = 1 << 20
GROWTH_MAX = 16 * MIB
"""In the second half, when all tables are full."""


def faults(outcome: Outcome) -> list[str]:
    found = []
    if outcome.voters != ["n0", "n1", "n2"] or outcome.changes:
        found.append(f"the voters are {outcome.voters}, after {outcome.changes} changes")
    if len(set(outcome.terms)) > 1 or len(set(outcome.leaders)) > 1:
        found.append(f"led by {outcome.leaders} in the terms {outcome.terms}")
    for name, (before, after) in outcome.memory.items():
        if after - before > GROWTH_MAX:
            found.append(f"{name} grew from {before // MIB} to {after // MIB} MiB")
    return found


async def run(minutes: float, seed: int) -> int:
    failed = False
    print("keys  packets  produced    p50 ms    p99 ms    max ms  memory MiB  faults", flush=True)
    for sealed in (False, True):
        with tempfile.TemporaryDirectory() as folder:
            outcome = await besiege(Path(folder), minutes * 30, sealed=sealed, seed=seed)
        wrong = faults(outcome)
        failed = failed or bool(wrong)
        times = [1000 * outcome.percentile(share) for share in (0.5, 0.99, 1.0)]
        memory = "/".join(str(after // MIB) for _, after in outcome.memory.values())
        print(
            f"{'yes' if sealed else 'no':<4} {outcome.packets:>8} {len(outcome.latencies):>9} "
            f"{times[0]:>9.2f} {times[1]:>9.2f} {times[2]:>9.2f} {memory:>11}  "
            f"{'; '.join(wrong) or 'none'}",
            flush=True,
        )
    return int(failed)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m tests.hostile")
    parser.add_argument("--minutes", type=float, default=4.0, help="both halves together")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().getrandbits(32))
    arguments = parser.parse_args()
    print(f"seed {arguments.seed}")
    sys.exit(uvloop.run(run(arguments.minutes, arguments.seed)))
