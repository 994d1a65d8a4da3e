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
from textwrap import dedent, indent
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]


class Edit(NamedTuple):
    """One replacement in a file of the package. Texts of several lines are whole lines, without the
    indentation that they have there."""

    file: str
    old: str
    new: str

    def apply(self, text: str) -> str:
        """Raises SystemExit unless the old text is there exactly once."""
        for depth in range(24, -1, -4):
            old = indent(self.old, " " * depth)
            if (found := text.count(old)) == 1:
                return text.replace(old, indent(self.new, " " * depth))
            if found:
                break
        raise SystemExit(f"{self.file} does not have exactly once:\n{self.old}")


class Mutant(NamedTuple):
    """A fault."""

    name: str
    edits: tuple[Edit, ...]


def mutant(name: str, *edits: tuple[str, str, str]) -> Mutant:
    return Mutant(
        name, tuple(Edit(f"proglog/{file}", _plain(old), _plain(new)) for file, old, new in edits)
    )


def _plain(text: str) -> str:
    return dedent(text.removeprefix("\n")).rstrip(" ") if "\n" in text else text


MUTANTS = [
    # --- durability ---
    mutant(
        "ack before fsync",
        (
            "log/writer.py",
            """
            self._store.pwritev(parts, self._synced_end)
            self._store.fdatasync()
            """,
            """
            self._store.pwritev(parts, self._synced_end)
            """,
        ),
    ),
    mutant(
        "no fsync at the end of recovery",
        ("log/reading.py", "file.fdatasync()", "pass"),
        (
            "log/recovery.py",
            """
            # no single lost block makes the log shorter.
            store.fdatasync()
            """,
            "",
        ),
        (
            "log/recovery.py",
            """
            store.pwritev([fmt.pack_mark(mark)], fmt.mark_position(sequence))
            store.fdatasync()
            """,
            """
            store.pwritev([fmt.pack_mark(mark)], fmt.mark_position(sequence))
            """,
        ),
    ),
    mutant(
        "recovery trusts the page cache after a failed fsync",
        ("log/reading.py", "forgotten = file.forget_cache()", "forgotten = True"),
    ),
    mutant(
        "sealed before synced",
        (
            "log/writer.py",
            """
            self._store.pwritev(parts, self._synced_end)
            self._store.fdatasync()
            """,
            """
            self._store.pwritev(parts, self._synced_end)
            if not (self._queue and isinstance(self._queue[0], Roll)):
                self._store.fdatasync()
            """,
        ),
        (
            "log/writer.py",
            """
            # its name: a segment that has a successor is sealed.
            self._mark_if_due()
            """,
            """
            # its name: a segment that has a successor is sealed.
            """,
        ),
    ),
    mutant(
        "directory not synced at a roll",
        (
            "log/segment.py",
            """
            files.sync_directory(folder)
            """,
            """
            if not header.before.index:
                files.sync_directory(folder)
            """,
        ),
    ),
    mutant(
        "new segment not synced before its rename",
        (
            "log/segment.py",
            """
            store.pwritev([fmt.pack_preamble(header)], 0)
            store.fdatasync()
            """,
            """
            store.pwritev([fmt.pack_preamble(header)], 0)
            """,
        ),
    ),
    mutant(
        "a mark speaks of what is not synced yet",
        (
            "log/writer.py",
            """
            if not self._marked:
                self._write_mark()
            self._store.pwritev(parts, self._synced_end)
            """,
            """
            end = self._synced_end
            self._synced, self._synced_end = last.tip, last.end
            self._write_mark()
            self._synced_end = end
            self._store.pwritev(parts, self._synced_end)
            """,
        ),
    ),
    mutant(
        "an append resurrects a cut suffix",
        ("log/writer.py", "parts.append(fmt.END_OF_LOG)", "pass"),
        (
            "log/writer.py",
            """
            self._manifest.begin(Change.CUT, cut.tip, cut.position)
            """,
            "",
        ),
        (
            "log/writer.py",
            """
            sequence = changes.end_store(
                store, cut.tip, cut.position, sequence=self._sequence, commit=self.commit_hint
            )
            self._manifest.end()
            """,
            """
            sequence = self._sequence
            """,
        ),
    ),
    mutant(
        "later segments outlive a cut",
        (
            "log/changes.py",
            """
            unlink_if_there(files, folder / store_name(first_index))
            """,
            """
            pass
            """,
        ),
    ),
    mutant(
        "recovery truncates at the first bad checksum",
        (
            "log/analysis.py",
            """
            plan.add(Verdict.REFUSED, store.path, what, failure.position, offset=offset)
            return
            """,
            """
            found.is_torn = True
            return
            """,
        ),
        (
            "log/analysis.py",
            """
            plan.add(Verdict.REFUSED, store.path, what, index.end_position, offset=offset)
            return
            """,
            """
            pass
            """,
        ),
    ),
    mutant(
        "index trusted over the store",
        (
            "log/format.py",
            "if len(entries) != count * ENTRY_BYTES or crc32c(entries) != crc:",
            "if len(entries) != count * ENTRY_BYTES:",
        ),
    ),
    mutant(
        "suffix cut from the front",
        (
            "raft/driver.py",
            """
            self._log.cut_suffix(first - 1)
            """,
            """
            self._log.drop_prefix(first)
            """,
        ),
    ),
    mutant(
        "index of an entry not asserted",
        (
            "raft/driver.py",
            """
            self._log.cut_suffix(first - 1)
            """,
            """
            pass
            """,
        ),
        (
            "log/walking.py",
            """
            header.index != tip.index + 1
            or header.chain != tip.chain
            or header.base_offset != tip.next_offset
            """,
            """
            False
            """,
        ),
        (
            "log/tail.py",
            """
            assert entry.header.index == self.next_index
            """,
            "",
        ),
    ),
    mutant(
        "commit counts the leader's unsynced write",
        (
            "raft/driver.py",
            """
            self._report_durable(self._log.durable_index)
            """,
            """
            self._report_durable(self._log.tip.index)
            """,
        ),
    ),
    mutant(
        "apply before persist on a single node",
        (
            "raft/driver.py",
            """
            self._report_durable(self._log.durable_index)
            """,
            """
            alone = len(self.raft.status().configuration.voters) == 1
            self._report_durable(
                self._log.tip.index if alone else self._log.durable_index
            )
            """,
        ),
    ),
    mutant(
        "hard-state copies written alternately",
        (
            "raft/hard_state.py",
            """
            self._sequence = self._file.save(pack_members(members))
            """,
            """
            self._file._sequence += 1
            self._file._write(self._file._sequence % 2 * 4096, pack_members(members))
            self._sequence = self._file._sequence
            """,
        ),
    ),
    mutant(
        "both hard-state copies in one write",
        (
            "raft/hard_state.py",
            "from proglog.log.twin import TwinFile, pack_members, parse_members, read_twin",
            (
                "from proglog.log import twin\n"
                "from proglog.log.twin import TwinFile, pack_members, parse_members, read_twin"
            ),
        ),
        (
            "raft/hard_state.py",
            """
            self._sequence = self._file.save(pack_members(members))
            """,
            """
            self._sequence = self._file._sequence = self._file._sequence + 1
            copy = twin._pack(HARD_STATE, self._file._sequence, pack_members(members))
            self._file._file.pwritev([copy + copy], 0)
            self._file._file.fdatasync()
            """,
        ),
    ),
    mutant(
        "vote not persisted",
        (
            "raft/driver.py",
            """
            await self._log.run_job(lambda: self._hard_state.save(hard_state), urgent=True)
            """,
            """
            self._hard_state._members.update(hard_state._asdict())
            """,
        ),
    ),
    mutant(
        "vote persisted after the reply",
        (
            "raft/driver.py",
            """
            if ready.hard_state is not None:
                await self._save(ready.hard_state)
            await self._make_room(ready)
            """,
            """
            await self._make_room(ready)
            """,
        ),
        (
            "raft/driver.py",
            """
            self._do_durable(ready, ready.messages_after_persist)
            """,
            """
            self._do_durable(ready, ready.messages_after_persist)
            if ready.hard_state is not None:
                await self._save(ready.hard_state)
            """,
        ),
    ),
    mutant(
        "a snapshot is named before it is synced",
        (
            "ports.py",
            """
            for part in parts:
                file.pwritev([part], position)
                position += len(part)
            file.fdatasync()
            """,
            """
            for part in parts:
                file.pwritev([part], position)
                position += len(part)
            if not path.name.startswith("snapshot-"):
                file.fdatasync()
            """,
        ),
    ),
    mutant(
        "a read through a reused file descriptor",
        (
            "log/log.py",
            """
            segment.pin()
            try:
            """,
            """
            file = segment.open()
            try:
            """,
        ),
        (
            "log/log.py",
            """
            lambda: segment.read(size, position), after=lambda: self.unpin(segment)
            """,
            # The simulated disk knows that a file is closed; a number would be of another file.
            """
            lambda: bytes(size) if file._closed else read_exactly(
                file, segment.store_path, size, position
            )
            """,
        ),
        (
            "log/log.py",
            "from proglog.log.reading import Damage, Reading",
            "from proglog.log.reading import Damage, Reading, read_exactly",
        ),
    ),
    # --- clients ---
    mutant(
        "waiter keyed by index only",
        (
            "replica/waiters.py",
            "if waiter.term == header.term:",
            "if waiter.term:",
        ),
    ),
    mutant(
        "truncation fails a waiter definitely",
        (
            "raft/driver.py",
            """
            self._log.cut_suffix(first - 1)
            """,
            """
            self._log.cut_suffix(first - 1)
            for number in range(first, first + 10_000):
                for waiter in self._events._waiters._waiters.pop(number, ()):
                    if not waiter.future.done():
                        from proglog.errors import Unavailable
                        waiter.future.set_exception(Unavailable('cut'))
            """,
        ),
    ),
    mutant(
        "leadership lost fails a waiter definitely",
        (
            "replica/replica.py",
            """
            self._applier.state.producers.forget_overlay()
            """,
            """
            self._applier.state.producers.forget_overlay()
            for waiters in self._waiters._waiters.values():
                for waiter in waiters:
                    if not waiter.future.done():
                        waiter.future.set_exception(Unavailable('not the leader'))
            self._waiters._waiters.clear()
            """,
        ),
    ),
    mutant(
        "dedupe against committed state only",
        ("replica/producers.py", "*self._overlay.get(producer_id, ())]", "*()]"),
    ),
    mutant(
        "the first batch of a forgotten producer is taken for a newcomer's",
        (
            "replica/producers.py",
            "if batch.sequence == 0 and batch.seen_index >= self._forgotten_before:",
            "if batch.sequence == 0:",
        ),
    ),
    mutant(
        "who gives way to a newcomer depends on the node",
        (
            "replica/producers.py",
            "del self._committed[next(iter(self._committed))]",
            "del self._committed[min(self._committed, key=lambda each: each ^ id(self))]",
        ),
    ),
    mutant(
        "dedupe overlay not rolled back",
        (
            "replica/replica.py",
            """
            self._applier.state.producers.forget_overlay()
            """,
            """
            pass
            """,
        ),
    ),
    mutant(
        "a new leader takes batches before it has applied what came before",
        (
            "replica/proposer.py",
            "if self._applier.applied_index < self._leadership.led_from:",
            "if False:",
        ),
    ),
    mutant(
        "compare-and-append with the committed end",
        (
            "replica/proposer.py",
            "if not self._applier.next_offset <= expected < self._driver.next_offset:",
            "if True:",
        ),
        (
            "replica/proposer.py",
            "batch.expected_offset != offset:",
            "batch.expected_offset != self._applier.next_offset:",
        ),
    ),
    mutant(
        "compare-and-append refused by what may be cut",
        (
            "replica/proposer.py",
            "if not self._applier.next_offset <= expected < self._driver.next_offset:",
            "if True:",
        ),
        (
            "replica/proposer.py",
            "following = self._applier.next_offset",
            "following = self._driver.next_offset",
        ),
    ),
    mutant(
        "the producer that came first gives way, not the one that is idle longest",
        (
            "replica/producers.py",
            "known = self._committed.pop(producer_id, None)",
            "known = self._committed.get(producer_id)",
        ),
    ),
    mutant(
        "reads are confirmed by learners",
        (
            "raft/leader.py",
            """
                for v in self._state.configurations.voter_ids
            )
            self._state.reads += self._reads.confirm(answered)
            """,
            """
                for v in [s.uuid for s in self._state.configurations.latest.servers]
            )
            self._state.reads += self._reads.confirm(answered)
            """,
        ),
    ),
    mutant(
        "an acknowledgement of an earlier term counts",
        (
            "raft/core.py",
            "if message.term < state.term:",
            "if message.term < state.term and not isinstance(message, AppendResponse):",
        ),
    ),
    mutant(
        "stamps by the leader's wall clock",
        (
            "replica/replica.py",
            """
            clock=self.stamps,
            events=self,
            """,
            """
            clock=self._ports.clock,
            events=self,
            """,
        ),
    ),
    mutant(
        "agreed time is the latest of all clocks",
        (
            "replica/timekeeper.py",
            "return reached_by_majority(self.voters) if self.voters else -math.inf",
            "return max(self.voters, default=-math.inf)",
        ),
    ),
    mutant(
        "agreed time is the leader's",
        (
            "replica/timekeeper.py",
            "own if uuid == self._own_uuid else self._offset_of(uuid) for uuid in self._voters()",
            "own for uuid in self._voters()",
        ),
    ),
    mutant(
        "uncommitted records are served",
        (
            "replica/reading.py",
            "run = await log.read(index, applier.applied_index, bytes_max)",
            "run = await log.read(index, log.tip.index, bytes_max)",
        ),
    ),
    mutant(
        "a linearizable read without a round",
        (
            "replica/replica.py",
            """
            index = await self._barriers.index()
            """,
            """
            index = self.applied_index
            """,
        ),
    ),
    # --- membership ---
    mutant(
        "node uuid ignored",
        (
            "replica/identity.py",
            '"uuid": new_id(ports.random),',
            '"uuid": str(__import__("uuid").uuid5(__import__("uuid").NAMESPACE_DNS, node_name)),',
        ),
    ),
]


FIRST_SEEDS = {"recovery trusts the page cache after a failed fsync": 100}
"""Of faults that show themselves in one world of a hundred: where to begin."""


def check_edits(mutants: list[Mutant]) -> None:
    """Raises SystemExit unless each text to be replaced is found exactly once."""
    for each in mutants:
        apply(each, ROOT)


def apply(mutant: Mutant, package_parent: Path) -> dict[Path, str]:
    """The changed files."""
    changed: dict[Path, str] = {}
    for edit in mutant.edits:
        path = package_parent / edit.file
        changed[path] = edit.apply(changed.get(path) or path.read_text())
    return changed


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
            for path, text in apply(mutant, Path(folder)).items():
                path.write_text(text)
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
    parser.add_argument("--first", type=int, help="first seed")
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
        first = options.first or FIRST_SEEDS.get(each.name, 1)
        verdict = run(each, options.seconds, first)
        survivors += verdict.killed_by is None
        print(
            f"{each.name:66} {verdict.killed_by or 'SURVIVED':26} "
            f"{verdict.seeds:4} seeds {verdict.cpu_seconds:6.1f} s",
            flush=True,
        )
        print(f"    {verdict.line[:200]}", flush=True)
    print(f"{survivors} of {len(chosen)} survived")
    verdict = run(None, options.seconds, options.first or 1)
    print(f"unpatched: {verdict.killed_by or 'passes'} ({verdict.seeds} seeds) {verdict.line}")
    return 1 if survivors or verdict.killed_by else 0


if __name__ == "__main__":
    sys.exit(main())
