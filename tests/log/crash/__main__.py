"""Explores workloads and prints what was met: see `runs`."""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter

from tests.log.crash.adversity import Tally
from tests.log.crash.runs import HOW, explored, workload


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.log.crash")
    parser.add_argument("--first", type=int, default=0, help="first seed")
    parser.add_argument("--seeds", type=int, default=1, help="how many")
    parser.add_argument("--seconds", type=float, default=1e9, help="of CPU, at most")
    parser.add_argument("--stop", action="store_true", help="at the first failure")
    parser.add_argument("how", nargs="*", help=f"of {', '.join(HOW)}; default: all")
    options = parser.parse_args()
    tally, counts, failures = Tally(), Counter[str](), 0
    for seed in range(options.first, options.first + options.seeds):
        for how in options.how or HOW:
            if time.process_time() > options.seconds:
                break
            result = explored(how, seed)
            tally.update(result.tally)
            counts.update(result.counts)
            failures += len(result.failures)
            for failure in result.failures:
                print(f"seed {seed}, {how}: {failure}", flush=True)
            if failures and options.stop:
                return 1
        explored.cache_clear()
        workload.cache_clear()
    print(f"{dict(counts)} in {time.process_time():.0f} s of CPU")
    print(tally)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
