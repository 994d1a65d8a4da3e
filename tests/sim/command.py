"""The command line of the simulator: seeds until time is over or one of them fails."""

from __future__ import annotations

import argparse
import time
import traceback
from collections import Counter
from dataclasses import dataclass, field

from tests.sim.events import Events
from tests.sim.oracle import Violation
from tests.sim.settings import Settings
from tests.sim.world import World, silence


@dataclass(slots=True)
class Totals:
    """Of all worlds together."""

    seeds: int = 0
    simulated_seconds: float = 0.0
    cpu_seconds: float = 0.0
    counts: Counter[str] = field(default_factory=Counter)

    def add(self, world: World) -> None:
        self.seeds += 1
        self.simulated_seconds += world.loop.now
        self.counts.update(world.oracle.counts)
        self.counts.update(world.history.counts)

    def __str__(self) -> str:
        spent = self.cpu_seconds or 1e-9
        counts = ", ".join(f"{name} {count}" for name, count in sorted(self.counts.items()))
        return (
            f"{self.seeds} seeds, {self.simulated_seconds:.0f} simulated seconds in {spent:.1f} s "
            f"of CPU: {self.simulated_seconds / spent:.1f}x real time, "
            f"{self.counts['commits'] / spent:.0f} commits/s checked\n{counts}"
        )


def check_of(error: BaseException) -> str:
    """Which check found it."""
    if isinstance(error, Violation):
        return error.check
    return f"{type(error).__name__}"


def attempt(
    seed: int, nodes: int | None, kept: list[int] | None, events: Events | None = None
) -> tuple[World, BaseException | None]:
    """One world, and what was wrong with it."""
    world = World(Settings.draw(seed, nodes), kept, events)
    try:
        world.run()
    except Exception as error:  # whatever it is, it is a find
        return world, error
    return world, None


def shrink(seed: int, nodes: int | None, check: str, seconds: float = 60.0) -> list[int]:
    """A short list of faults with which the seed still fails the same check (delta debugging)."""
    world, _ = attempt(seed, nodes, None)
    kept = [fault.number for fault in world.faults]
    size = len(kept) // 2
    ends = time.process_time() + seconds
    while size >= 1 and time.process_time() < ends:
        at = 0
        while at < len(kept) and time.process_time() < ends:
            shorter = kept[:at] + kept[at + size :]
            _, error = attempt(seed, nodes, shorter)
            if error is not None and check_of(error) == check:
                kept = shorter
            else:
                at += size
        size //= 2
    return kept


def report(seed: int, nodes: int | None, world: World, error: BaseException) -> None:
    """What failed, and how to see it again."""
    check = check_of(error)
    traceback.print_exception(error)
    print(f"seed {seed} FAILED [{check}] at {world.loop.now:.3f} s: {error}")
    option = f" --nodes {nodes}" if nodes else ""
    print(f"replay: python -m tests.sim --seed {seed}{option}", flush=True)


def run_seeds(first: int, seconds: float, nodes: int | None) -> tuple[Totals, int | None]:
    """Seeds from `first` on; what they came to, and the one that failed."""
    totals = Totals()
    began = time.process_time()
    seed = first
    while True:
        world, error = attempt(seed, nodes, None)
        totals.cpu_seconds = time.process_time() - began
        if error is not None:
            report(seed, nodes, world, error)
            return totals, seed
        totals.add(world)
        if totals.cpu_seconds >= seconds:
            return totals, None
        seed += 1


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.sim", description=__doc__)
    parser.add_argument("--seconds", type=float, default=60.0, help="of CPU, for many seeds")
    parser.add_argument("--first", type=int, default=1, help="first of many seeds")
    parser.add_argument("--seed", type=int, help="run this one only")
    parser.add_argument("--keep", help="of its faults only these, by number: 1,5,7")
    parser.add_argument("--nodes", type=int, help="default: drawn for each seed")
    parser.add_argument("--events", action="store_true", help="of --seed: a line for each event")
    parser.add_argument("--no-shrink", action="store_true", help="do not look for fewer faults")
    options = parser.parse_args()
    silence()
    if options.seed is None:
        totals, failed = run_seeds(options.first, options.seconds, options.nodes)
        print(totals)
        if failed is None:
            return 0
        if not options.no_shrink:
            _, error = attempt(failed, options.nodes, None)
            if error is None:
                print("the seed does not fail again: the simulator is not deterministic")
                return 1
            kept = shrink(failed, options.nodes, check_of(error))
            option = f" --nodes {options.nodes}" if options.nodes else ""
            numbers = ",".join(map(str, kept))
            again = f"python -m tests.sim --seed {failed}{option} --keep {numbers}"
            print(f"with fewer faults: {again}")
            print(f"what happens then: {again} --events")
        return 1
    return _run_one(options)


def _run_one(options: argparse.Namespace) -> int:
    kept = None
    if options.keep is not None:
        kept = [int(number) for number in options.keep.split(",") if number]
    began = time.process_time()
    events = None
    if options.events:
        events = Events(print)
        events.log_here()
    world, error = attempt(options.seed, options.nodes, kept, events)
    for fault in world.faults:
        print(fault)
    if error is not None:
        report(options.seed, options.nodes, world, error)
        return 1
    totals = Totals(cpu_seconds=time.process_time() - began)
    totals.add(world)
    print(totals)
    print(f"trace {world.loop.trace.hexdigest()}")
    return 0
