"""Mutants of engine, driver and replica: what the simulator must catch, or it proves nothing.

    python tests/mutants/replica.py [--seconds 60] [name ...]

Each is one plausible fault, written as replacements of source text that must occur exactly once.
The runner applies it to a copy of the package, runs the simulator on the copy until a check fails,
and then the same seeds on the code as it is, which must pass.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]


class Edit(NamedTuple):
    """One replacement in a file of the package."""

    file: str
    old: str
    new: str


class Mutant(NamedTuple):
    """A fault."""

    name: str
    edits: tuple[Edit, ...]


def mutant(name: str, *edits: tuple[str, str, str]) -> Mutant:
    return Mutant(name, tuple(Edit(f"proglog/{file}", old, new) for file, old, new in edits))


MUTANTS = [
    # --- durability ---
    mutant(
        "ack before fsync",
        (
            "log/writer.py",
            "        self._store.pwritev(parts, self._synced_end)\n        self._store.fdatasync()\n",
            "        self._store.pwritev(parts, self._synced_end)\n",
        ),
    ),
    mutant(
        "no fsync at the end of recovery",
        (
            "log/recovery.py",
            "        # First what the mark will speak of, then the mark: never the other way round. Both "
            "marks,\n        # since a cut flag must not come back if the newer one rots.\n"
            "        store.fdatasync()\n",
            "",
        ),
        (
            "log/recovery.py",
            "        store.fdatasync()\n        store.forget_cache(mark.position)\n",
            "",
        ),
        (
            "log/recovery.py",
            "            store.pwritev([fmt.pack_mark(fresh)], fmt.mark_position(sequence))\n"
            "            store.fdatasync()\n",
            "            store.pwritev([fmt.pack_mark(fresh)], fmt.mark_position(sequence))\n",
        ),
    ),
    mutant(
        "recovery trusts the page cache after a failed fsync",
        ("log/recovery.py", "        store.forget_cache(mark.position)\n", ""),
    ),
    mutant(
        "sealed before synced",
        (
            "log/writer.py",
            "        self._store.pwritev(parts, self._synced_end)\n        self._store.fdatasync()\n",
            "        self._store.pwritev(parts, self._synced_end)\n"
            "        if not (self._queue and isinstance(self._queue[0], Roll)):\n"
            "            self._store.fdatasync()\n",
        ),
        (
            "log/writer.py",
            "        # its name: a segment that has a successor is sealed.\n        self._mark_if_due()\n",
            "        # its name: a segment that has a successor is sealed.\n",
        ),
    ),
    mutant(
        "directory not synced at a roll",
        (
            "log/writer.py",
            "        self._files.sync_directory(self._folder)\n        self._store = store\n",
            "        self._store = store\n",
        ),
    ),
    mutant(
        "new segment not synced before its rename",
        (
            "log/writer.py",
            "        store.fdatasync()\n        first_index = before.index + 1\n",
            "        first_index = before.index + 1\n",
        ),
    ),
    mutant(
        "a mark speaks of what is not synced yet",
        (
            "log/writer.py",
            "            self._write_mark(self._synced, self._synced_end)\n"
            "        self._store.pwritev(parts",
            "            self._write_mark(last.tip, last.end)\n        self._store.pwritev(parts",
        ),
    ),
    mutant(
        "a cut suffix is resurrected",
        (
            "log/writer.py",
            "        self._write_mark(cut.tip, cut.position, cut=True)\n        self._store.fdatasync()\n",
            "",
        ),
        ("log/writer.py", "        finish_cut(self._store, cut.position)\n", ""),
        (
            "log/writer.py",
            "            self._write_mark(cut.tip, cut.position)\n            self._store.fdatasync()\n",
            "            pass\n",
        ),
    ),
    mutant(
        "later segments outlive a cut",
        ("log/writer.py", "            self._delete_later_segments(cut)\n", "            pass\n"),
    ),
    mutant(
        "recovery truncates at the first bad checksum",
        (
            "log/recovery.py",
            "            raise self._refuse(path, index.end_position, f\"{failure}, in what was synced\")\n",
            "            pass\n",
        ),
        (
            "log/recovery.py",
            "            raise self._refuse(path, index.end_position, f\"the log is not what {mark} says\")\n",
            "            pass\n",
        ),
    ),
    mutant(
        "index trusted over the store",
        (
            "log/format.py",
            "    if len(view) < _TRAILER.size or not _is_sealed(view):\n        return None\n"
            "    magic, count, run_count",
            "    if len(view) < _TRAILER.size:\n        return None\n    magic, count, run_count",
        ),
    ),
    mutant(
        "suffix cut from the front",
        (
            "raft/driver.py",
            "            self._log.cut_suffix(first - 1)\n",
            "            self._log.drop_prefix(first)\n",
        ),
    ),
    mutant(
        "index of an entry not asserted",
        (
            "raft/driver.py",
            "            self._log.cut_suffix(first - 1)\n",
            "            pass\n",
        ),
        (
            "log/recovery.py",
            "        header.index != tip.index + 1\n        or header.chain != tip.chain\n",
            "        False\n",
        ),
        (
            "log/tail.py",
            "        assert entry.header.index == self.next_index\n",
            "",
        ),
    ),
    mutant(
        "commit counts the leader's unsynced write",
        (
            "raft/driver.py",
            "            self._report_durable(self._log.durable_index)\n",
            "            self._report_durable(self._log.tip.index)\n",
        ),
    ),
    mutant(
        "apply before persist on a single node",
        (
            "raft/driver.py",
            "            self._report_durable(self._log.durable_index)\n",
            "            alone = len(self.raft.status().configuration.voters) == 1\n"
            "            self._report_durable(\n"
            "                self._log.tip.index if alone else self._log.durable_index\n"
            "            )\n",
        ),
    ),
    mutant(
        "hard-state copies written alternately",
        (
            "raft/hard_state.py",
            "        for place in (0, 1):\n            self._write(place)\n\n    def _write",
            "        self._write(self._sequence % 2)\n\n    def _write",
        ),
    ),
    mutant(
        "both hard-state copies in one write",
        (
            "raft/hard_state.py",
            "        self._file.pwritev([packed], place * _BLOCK_BYTES)\n        self._file.fdatasync()\n",
            "        self._file.pwritev([packed], place * _BLOCK_BYTES)\n"
            "        if place:\n            self._file.fdatasync()\n",
        ),
    ),
    mutant(
        "vote not persisted",
        (
            "raft/driver.py",
            "        await self._log.run_job(lambda: self._hard_state.save(hard_state), urgent=True)\n",
            "        self._hard_state.hard_state = hard_state\n",
        ),
    ),
    mutant(
        "vote persisted after the reply",
        (
            "raft/driver.py",
            "            if ready.hard_state is not None:\n"
            "                await self._save(ready.hard_state)\n            self._do_durable(ready)\n",
            "            self._do_durable(ready)\n            if ready.hard_state is not None:\n"
            "                await self._save(ready.hard_state)\n",
        ),
    ),
    mutant(
        "a snapshot is named before it is synced",
        (
            "log/snapshot.py",
            "        file.pwritev([data], 0)\n        file.fdatasync()\n",
            "        file.pwritev([data], 0)\n",
        ),
    ),
    mutant(
        "segments deleted without a snapshot at their end",
        (
            "log/log.py",
            "        while count and self._segments[count - 1].last_index not in self._snapshots:\n",
            "        while False:\n",
        ),
    ),
    mutant(
        "a read through a reused file descriptor",
        ("log/log.py", "        segment.pin()\n", "        segment._pins += 0\n"),
        (
            "log/log.py",
            "lambda: segment.file.pread(size, position), after=segment.unpin\n",
            "lambda: segment.file.pread(size, position)\n",
        ),
    ),
    # --- clients ---
    mutant(
        "waiter keyed by index only",
        ("replica/waiters.py", "if waiter.term == header.term:", "if waiter.term:"),
    ),
    mutant(
        "truncation fails a waiter definitely",
        (
            "raft/driver.py",
            "            self._log.cut_suffix(first - 1)\n",
            "            self._log.cut_suffix(first - 1)\n"
            "            for number in range(first, first + 10_000):\n"
            "                for waiter in self._events._waiters._waiters.pop(number, ()):\n"
            "                    if not waiter.future.done():\n"
            "                        from proglog.errors import Unavailable\n"
            "                        waiter.future.set_exception(Unavailable('cut'))\n",
        ),
    ),
    mutant(
        "leadership lost fails a waiter definitely",
        (
            "replica/replica.py",
            "            self._applier.state.producers.forget_overlay()\n",
            "            self._applier.state.producers.forget_overlay()\n"
            "            for waiters in self._waiters._waiters.values():\n"
            "                for waiter in waiters:\n"
            "                    if not waiter.future.done():\n"
            "                        waiter.future.set_exception(Unavailable('not the leader'))\n"
            "            self._waiters._waiters.clear()\n",
        ),
    ),
    mutant(
        "dedupe against committed state only",
        (
            "replica/producers.py",
            "*self._overlay.get(producer_id, ())]",
            "*()]",
        ),
        (
            "replica/producers.py",
            "        assert not window or window[-1].next_sequence == header.sequence\n",
            "",
        ),
        (
            "replica/producers.py",
            "            assert overlay[0] == batch, \"what was committed is not what this leader "
            "appended\"\n",
            "",
        ),
    ),
    mutant(
        "dedupe overlay not rolled back",
        (
            "replica/replica.py",
            "            self._applier.state.producers.forget_overlay()\n",
            "            pass\n",
        ),
        (
            "replica/producers.py",
            "            assert overlay[0] == batch, \"what was committed is not what this leader "
            "appended\"\n",
            "",
        ),
    ),
    mutant(
        "a new leader takes batches before it has applied what came before",
        (
            "replica/replica.py",
            "            if self.applied_index < self.leadership.led_from:",
            "            if False:",
        ),
        (
            "replica/producers.py",
            "        assert not window or window[-1].next_sequence == header.sequence\n",
            "",
        ),
    ),
    mutant(
        "compare-and-append with the committed end",
        (
            "replica/replica.py",
            "        offset = self._driver.next_offset\n",
            "        offset = self.next_offset\n",
        ),
    ),
    mutant(
        "uncommitted records are served",
        (
            "replica/replica.py",
            "run = await self.log.read(index, self.applied_index, bytes_max)",
            "run = await self.log.read(index, self.log.tip.index, bytes_max)",
        ),
    ),
    mutant(
        "a linearizable read without a round",
        (
            "replica/replica.py",
            "        index = await self._barriers.index()\n",
            "        index = self.applied_index\n",
        ),
    ),
    # --- membership ---
    mutant(
        "node uuid ignored",
        (
            "replica/opening.py",
            "identity = Identity(\"\", new_id(ports.random), ",
            "identity = Identity(\"\", str(uuid.uuid5(uuid.NAMESPACE_DNS, node_name)), ",
        ),
    ),
]


def check_edits(mutants: list[Mutant]) -> None:
    """Raises SystemExit unless each text to be replaced is found exactly once."""
    for each in mutants:
        for edit in each.edits:
            found = (ROOT / edit.file).read_text().count(edit.old)
            if found != 1:
                raise SystemExit(f"mutant {each.name!r}: {edit.file} has {found} x {edit.old!r}")


def apply(mutant: Mutant, package_parent: Path) -> None:
    for edit in mutant.edits:
        path = package_parent / edit.file
        path.write_text(path.read_text().replace(edit.old, edit.new))


class Verdict(NamedTuple):
    """`killed_by` names the check; None if the mutant lives."""

    killed_by: str | None
    cpu_seconds: float
    seeds: int
    line: str


def run(mutant: Mutant | None, seconds: float, first: int = 1) -> Verdict:
    """Runs the simulator on the mutant (None: on the code as it is) until a check fails."""
    with tempfile.TemporaryDirectory() as folder:
        shutil.copytree(ROOT / "proglog", Path(folder) / "proglog")
        shutil.copytree(ROOT / "tests" / "sim", Path(folder) / "tests" / "sim")
        if mutant is not None:
            apply(mutant, Path(folder))
        simulator = subprocess.run(
            [
                sys.executable,
                *("-m", "tests.sim", "--no-shrink"),
                *("--first", str(first), "--seconds", str(seconds)),
            ],
            cwd=folder,
            env={**os.environ, "PYTHONPATH": folder},
            capture_output=True,
            text=True,
            check=False,
        )
    output = simulator.stdout
    numbers = re.search(r"(\d+) seeds, \d+ simulated seconds in ([\d.]+) s", output)
    seeds, spent = (int(numbers[1]), float(numbers[2])) if numbers else (0, 0.0)
    failed = re.search(r"seed \d+ FAILED \[([^\]]*)\].*", output)
    if failed:
        return Verdict(failed[1], spent, seeds + 1, failed[0])
    if simulator.returncode:
        lines = (simulator.stderr or output).strip().splitlines() or ["no output"]
        raise SystemExit(f"the simulator did not run: {lines[-1]}")
    return Verdict(None, spent, seeds, "")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=60.0, help="of CPU, for each")
    parser.add_argument("--first", type=int, default=1, help="first seed")
    parser.add_argument("names", nargs="*", help="part of a name; default: all")
    options = parser.parse_args()
    chosen = [
        each
        for each in MUTANTS
        if not options.names or any(name in each.name for name in options.names)
    ]
    check_edits(chosen)
    survivors = 0
    for each in chosen:
        verdict = run(each, options.seconds, options.first)
        survivors += verdict.killed_by is None
        print(
            f"{each.name:66} {verdict.killed_by or 'SURVIVED':26} "
            f"{verdict.seeds:4} seeds {verdict.cpu_seconds:6.1f} s",
            flush=True,
        )
        print(f"    {verdict.line[:200]}", flush=True)
    print(f"{survivors} of {len(chosen)} survived")
    verdict = run(None, options.seconds, options.first)
    print(f"unpatched: {verdict.killed_by or 'passes'} ({verdict.seeds} seeds) {verdict.line}")
    return 1 if survivors or verdict.killed_by else 0


if __name__ == "__main__":
    sys.exit(main())
