"""Mutants of the storage engine: what the tests of `tests/log` must catch, or they prove nothing.

    python tests/mutants/engine.py [--seconds 60] [name ...]

As in `replica`. Each is run against the checks in order, cheapest first, until one fails or the
time is up; the table says which did.
"""

from __future__ import annotations

import argparse
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from tests.mutants.replica import Mutant, apply, check_edits, mutant  # noqa: E402

PYTEST = ("-m", "pytest", "-x", "-q", "-p", "no:cacheprovider")
SEED = ("--first", "5", "--stop")
CHECKS: dict[str, tuple[str, ...]] = {
    "found": (*PYTEST, "tests/log/crash/test_found.py"),
    "failing workloads": ("-m", "tests.log.crash", *SEED, "failing workloads"),
    "rot": ("-m", "tests.log.crash", *SEED, "rot"),
    "every single change": ("-m", "tests.log.crash", *SEED, "every single change"),
    "failing starts": ("-m", "tests.log.crash", *SEED, "failing starts"),
    "random subsets": ("-m", "tests.log.crash", *SEED, "random subsets"),
    "torn writes": ("-m", "tests.log.crash", *SEED, "torn writes"),
    "lost blocks": ("-m", "tests.log.crash", *SEED, "lost blocks"),
}
MATRIX: dict[str, tuple[str, ...]] = {"matrix": (*PYTEST, "tests/log/test_matrix.py")}
"""For what only `verify` and `repair` do, and for damage smaller than a block."""
RECOVERY: dict[str, tuple[str, ...]] = {"recovery": (*PYTEST, "tests/log/test_recovery.py")}
"""For what loses nothing, but lets a log grow and its starts take longer."""

MUTANTS = [
    # --- the survivors of the review ---
    mutant(
        "a mark's commit is not bounded by its index",
        ("log/writer.py", "commit = min(self.commit_hint, tip.index)", "commit = self.commit_hint"),
    ),
    mutant(
        "a dropped prefix is deleted before the new base is durable",
        (
            "log/log.py",
            """
            done.add_done_callback(lambda done: self._let_go(done, dropped, paths))
            """,
            """
            for path in paths[:2]:
                self._files.unlink(path)
            done.add_done_callback(lambda done: self._let_go(done, dropped, paths[2:]))
            """,
        ),
    ),
    # --- reading ---
    mutant(
        "the page cache is not let go of",
        ("log/reading.py", "forgotten = file.forget_cache()", "forgotten = True"),
    ),
    mutant(
        "a file that cannot be synced is read all the same",
        (
            "log/reading.py",
            """
            except OSError as error:
                failure = error
            else:
            """,
            """
            except OSError:
                return None
            else:
            """,
        ),
        ("log/reading.py", "forgotten = file.forget_cache()", "forgotten = True"),
    ),
    # --- twin ---
    mutant(
        "copies are saved in turn",
        (
            "log/twin.py",
            """
            self._sequence += 1
            for place in PLACES:
                self._write(place, payload)
            """,
            """
            self._sequence += 1
            self._write(PLACES[self._sequence % 2], payload)
            """,
        ),
    ),
    mutant(
        "both copies are synced at once",
        (
            "log/twin.py",
            """
            self._file.pwritev([_pack(self._magic, self._sequence, payload)], place)
            self._file.fdatasync()
            """,
            """
            self._file.pwritev([_pack(self._magic, self._sequence, payload)], place)
            if place:
                self._file.fdatasync()
            """,
        ),
    ),
    mutant(
        "an older copy is not rewritten",
        ("log/twin.py", "for place in state.stale:", "for place in ():"),
    ),
    mutant(
        "a file is renamed before it is synced",
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
            """,
        ),
    ),
    mutant(
        "a replaced file's name is not synced",
        (
            "ports.py",
            """
            files.rename(temporary, path)
            files.sync_directory(path.parent)
            """,
            """
            files.rename(temporary, path)
            """,
        ),
    ),
    # --- changes ---
    mutant(
        "a change is begun in memory only",
        (
            "log/changes.py",
            """
            if self.manifest != begun:
                self.save(begun)
            """,
            """
            self.manifest = begun
            """,
        ),
    ),
    mutant(
        "a cut ends before its deletions are durable",
        (
            "log/changes.py",
            """
                    unlink_if_there(files, index_path)
            files.sync_directory(folder)
            """,
            """
                    unlink_if_there(files, index_path)
            pass
            """,
        ),
    ),
    mutant(
        "a cut renews one mark",
        (
            "log/changes.py",
            """
            end_log(store, position)
            for _ in fmt.MARK_POSITIONS:
            """,
            """
            end_log(store, position)
            for _ in fmt.MARK_POSITIONS[:1]:
            """,
        ),
    ),
    mutant(
        "a cut does not end the store",
        (
            "log/changes.py",
            """
            end_log(store, position)
            for _ in fmt.MARK_POSITIONS:
            """,
            """
            for _ in fmt.MARK_POSITIONS:
            """,
        ),
    ),
    # --- writer ---
    mutant(
        "a group is acknowledged before it is synced",
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
        "a mark speaks of what is written with it",
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
        "the writer goes on after a failed write",
        ("log/writer.py", "self._failure = self._explain(error)", "self._explain(error)"),
        (
            "log/writer.py",
            "self._post(self._events.storage_failed, self._failure)",
            "return self._do_not_stop(operation)",
        ),
        (
            "log/writer.py",
            """
            def _run(self, operation: Operation) -> None:
            """,
            """
            def _do_not_stop(self, operation):
                if isinstance(operation, Append):
                    self._write_group([operation])

            def _run(self, operation: Operation) -> None:
            """,
        ),
    ),
    mutant(
        "a cut is said to be done before the store ends there",
        (
            "log/writer.py",
            """
            self._manifest.end()
            self._continue_in(store, cut.tip, cut.position, sequence=sequence)
            """,
            """
            self._continue_in(store, cut.tip, cut.position, sequence=sequence)
            """,
        ),
        (
            "log/writer.py",
            """
            sequence = changes.end_store(
                store, cut.tip, cut.position, sequence=self._sequence, commit=self.commit_hint
            )
            """,
            """
            self._manifest.end()
            sequence = changes.end_store(
                store, cut.tip, cut.position, sequence=self._sequence, commit=self.commit_hint
            )
            """,
        ),
    ),
    mutant(
        "a snapshot is installed unannounced",
        (
            "log/writer.py",
            """
            if self._manifest.manifest.change is Change.NONE:
                self._manifest.begin(Change.INSTALL, tip)
            """,
            "",
        ),
    ),
    # --- segments ---
    mutant(
        "a new segment's name is not synced",
        (
            "log/segment.py",
            """
            files.rename(folder / RESERVED_STORE, folder / store_name(first_index))
            files.sync_directory(folder)
            """,
            """
            files.rename(folder / RESERVED_STORE, folder / store_name(first_index))
            """,
        ),
    ),
    mutant(
        "a new segment is named before its preamble is synced",
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
    # --- recovery and analysis ---
    mutant(
        "a start does not sync the names that it relies on",
        (
            "log/recovery.py",
            """
            self._files.sync_directory(self._folder)
            for path in plan.worthless:
            """,
            """
            for path in plan.worthless:
            """,
        ),
        (
            "log/recovery.py",
            """
            segment.index_file = self._allocate_index(segment)
            self._files.sync_directory(self._folder)
            """,
            """
            segment.index_file = self._allocate_index(segment)
            """,
        ),
    ),
    mutant(
        "a start leaves the end of a torn log as it is",
        (
            "log/recovery.py",
            """
            changes.end_log(store, index.end_position)
            """,
            """
            pass
            """,
        ),
        (
            "log/writer.py",
            """
            parts.append(fmt.END_OF_LOG)
            """,
            "",
        ),
    ),
    mutant(
        "segments before the base count",
        (
            "log/analysis.py",
            "live = [first for first in firsts if first > manifest.base.index]",
            "live = list(firsts)",
        ),
    ),
    mutant(
        "what was synced is cut where it is damaged",
        (
            "log/analysis.py",
            """
            plan.add(Verdict.REFUSED, store.path, what, failure.position, offset=offset)
            return
            """,
            """
            plan.add(Verdict.CUT, store.path, what, failure.position, offset=offset)
            found.is_torn = True
            return
            """,
        ),
    ),
    mutant(
        "an index is believed whatever its checksum",
        (
            "log/format.py",
            "if len(entries) != count * ENTRY_BYTES or crc32c(entries) != crc:",
            "if len(entries) != count * ENTRY_BYTES:",
        ),
    ),
    # --- snapshots and space ---
    mutant(
        "a snapshot's state is believed whatever its checksum",
        (
            "log/snapshot.py",
            "if len(state) != size or crc32c(state) != crc:",
            "if len(state) != size:",
        ),
    ),
    mutant(
        "the newest snapshot is the obsolete one",
        ("log/snapshot.py", "set(sorted(indexes)[1:-1])", "set(sorted(indexes)[1:])"),
    ),
    mutant(
        "a prefix is dropped that no snapshot holds",
        (
            "log/log.py",
            "while count and self._segments[count - 1].last_index > newest:",
            "while False:",
        ),
    ),
    mutant(
        "the space for an index goes to whoever is active",
        (
            "log/space.py",
            "if path == active.index_path and active.index_file is None:",
            "if True:",
        ),
    ),
    # --- verify and repair ---
    mutant(
        "verify does not look into sealed segments",
        (
            "log/analysis.py",
            """
            if self._thorough:
                self._look_into(found, header)
            """,
            "",
        ),
    ),
    mutant(
        "a cut by repair is not recorded before it is begun",
        (
            "log/repair.py",
            """
            manifest.save(begun)
            """,
            """
            pass
            """,
        ),
    ),
]
BY_MATRIX = {
    "an index is believed whatever its checksum",
    "verify does not look into sealed segments",
    *(each.name for each in MUTANTS if any(edit.file.endswith("repair.py") for edit in each.edits)),
}
BY_RECOVERY = {"the newest snapshot is the obsolete one"}


class Verdict(NamedTuple):
    """`killed_by` names the check; None if the mutant lives."""

    killed_by: str | None
    cpu_seconds: float
    line: str


def run(each: Mutant | None, seconds: float) -> Verdict:
    """Runs the checks on the mutant (None: on the code as it is) until one of them fails."""
    began = _cpu()
    checks = CHECKS
    if each is None or each.name in BY_MATRIX:
        checks = {**MATRIX, **checks}
    if each is None or each.name in BY_RECOVERY:
        checks = {**RECOVERY, **checks}
    with tempfile.TemporaryDirectory() as folder:
        shutil.copytree(ROOT / "proglog", Path(folder) / "proglog")
        shutil.copytree(ROOT / "tests", Path(folder) / "tests")
        shutil.copy(ROOT / "pyproject.toml", folder)
        for path, text in apply(each, Path(folder)).items() if each is not None else ():
            path.write_text(text)
        for name, arguments in checks.items():
            left = seconds - (_cpu() - began)
            if left <= 1:
                break
            line = _failure(folder, arguments, left)
            if line is not None:
                return Verdict(name, _cpu() - began, line)
    return Verdict(None, _cpu() - began, "")


def _cpu() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def _failure(folder: str, arguments: tuple[str, ...], seconds: float) -> str | None:
    """Why a check fails; None if it passes, or does not end in time."""
    limit = max(int(seconds), 1)

    def bounded() -> None:
        resource.setrlimit(resource.RLIMIT_CPU, (limit, limit + 5))

    check = subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": folder, "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=bounded,  # nothing else runs in this process
    )
    if check.returncode <= 0:
        return None
    output = (check.stdout + check.stderr).strip().splitlines() or ["no output"]
    told = [line for line in output if "Failure(" in line or line.startswith("E  ")]
    return (told or output[-1:])[0].strip()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=60.0, help="of CPU, for each")
    parser.add_argument("names", nargs="*", help="part of a name; default: all")
    options = parser.parse_args()
    names = options.names
    chosen = [each for each in MUTANTS if not names or any(name in each.name for name in names)]
    check_edits(chosen)
    survivors, began = 0, time.monotonic()
    for each in chosen:
        verdict = run(each, options.seconds)
        survivors += verdict.killed_by is None
        told = f"{verdict.killed_by or 'SURVIVED':22} {verdict.cpu_seconds:5.1f} s"
        print(f"{each.name:60} {told}", flush=True)
        print(f"    {verdict.line[:160]}", flush=True)
    print(f"{survivors} of {len(chosen)} survived, {time.monotonic() - began:.0f} s")
    unpatched = run(None, options.seconds)
    print(f"unpatched: {unpatched.killed_by or 'passes'} {unpatched.line}")
    return 1 if survivors or unpatched.killed_by else 0


if __name__ == "__main__":
    sys.exit(main())
