"""Mutants of the Raft core: what the simulator must catch, or it proves nothing.

    python tests/mutants/raft_core.py [--seconds 60] [name ...]

Each is one plausible fault, written as replacements of source text that must occur exactly once.
The runner applies it to a copy of the package and runs the core simulator until a check fails.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
RAFT = "proglog/raft"


class Edit(NamedTuple):
    file: str
    old: str
    new: str


class Mutant(NamedTuple):
    name: str
    edits: tuple[Edit, ...]


def mutant(name: str, *edits: tuple[str, str, str]) -> Mutant:
    return Mutant(name, tuple(Edit(f"{RAFT}/{file}", old, new) for file, old, new in edits))


MUTANTS = [
    # --- durability ---
    mutant(
        "ack before fsync",
        (
            "follower.py",
            "self._acknowledged = min(self.verified, state.writes.durable)",
            "self._acknowledged = self.verified",
        ),
        ("follower.py", "if state.writes.durable >= self.verified:", "if True:"),
    ),
    mutant(
        "commit counts the leader's unsynced write",
        ("leader.py", "own = state.writes.durable", "own = state.log.last_index"),
    ),
    mutant(
        "write under way proves what was cut since (ABA)",
        (
            "writes.py",
            "deque((n, min(last, first - 1)) for n, last in self._under_way)",
            "deque(self._under_way)",
        ),
    ),
    # --- elections ---
    mutant(
        "vote not persisted",
        (
            "core.py",
            "if seen.term == state.term and seen.voted_for == state.voted_for:",
            "if seen.term == state.term:",
        ),
    ),
    mutant(
        "vote persisted after the reply",
        (
            "core.py",
            "        state.messages_after_persist.append(\n            VoteResponse(",
            "        state.messages.append(\n            VoteResponse(",
        ),
        ("core.py", "if hard_state is not None and messages:", "if False:"),
    ),
    mutant(
        "vote requested before the own vote is persisted",
        (
            "core.py",
            "outbox = state.messages if pre_vote else state.messages_after_persist",
            "outbox = state.messages",
        ),
        ("core.py", "if hard_state is not None and messages:", "if False:"),
    ),
    mutant(
        "a leader alone sends before its term is persisted",
        ("core.py", "if hard_state is not None and messages:", "if False:"),
    ),
    mutant(
        "term set without resetting the vote",
        ("core.py", "state.term, state.voted_for = term, None", "state.term = term"),
    ),
    mutant(
        "> instead of >= in the up-to-date check",
        (
            "log_view.py",
            "(last_term, last_index) >= (self.last_term, self.last_index)",
            "(last_term, last_index) > (self.last_term, self.last_index)",
        ),
    ),
    mutant(
        "up-to-date check compares the length first",
        (
            "log_view.py",
            "(last_term, last_index) >= (self.last_term, self.last_index)",
            "(last_index, last_term) >= (self.last_index, self.last_term)",
        ),
    ),
    mutant(
        "pre-vote bumps the term",
        (
            "core.py",
            "            if message.pre_vote:\n                return True",
            "            if False:\n                return True",
        ),
    ),
    mutant(
        "no no-op on election",
        ("leader.py", "        state.append([Entry(start, state.term, 0)])\n", ""),
    ),
    mutant(
        "votes of non-voters counted",
        (
            "core.py",
            "answers = [self._votes[v] for v in voters if v in self._votes]",
            "answers = list(self._votes.values())",
        ),
    ),
    mutant(
        "a server that removes itself stops to run at once",
        (
            "core.py",
            "self._state.configurations.may_be_voter(self._state.id)",
            "self._state.configurations.latest.is_voter(self._state.id)",
        ),
    ),
    # --- replication ---
    mutant(
        "prior-term commit by counting",
        ("commitment.py", "reached >= self.start and reached > commit", "reached > commit"),
    ),
    mutant(
        "truncate on any append",
        ("follower.py", "self._take(self._unknown(entries))", "self._take(entries)"),
        ("follower.py", "            assert first > self.verified", "            assert True"),
    ),
    mutant(
        "commit without min(last new)",
        (
            "follower.py",
            "(commit := min(commit, last_index))",
            "(commit := min(commit, log.last_index))",
        ),
    ),
    mutant(
        "heartbeat commit without min(match, commit)",
        ("leader.py", "commit = min(peer.match, state.commit)", "commit = state.commit"),
        (
            "follower.py",
            "            state.commit_to(heartbeat.commit)",
            (
                "            if state.log.last_index > state.commit:\n                "
                "state.commit_to(min(heartbeat.commit, state.log.last_index))"
            ),
        ),
    ),
    mutant(
        "append accepted without comparing the previous term",
        (
            "follower.py",
            "elif log.term_at(prev_index) != prev_term:",
            "elif log.term_at(prev_index) is None:",
        ),
    ),
    mutant(
        "snapshot over a conflicting suffix keeps it",
        (
            "follower.py",
            "state.log.term_at(index) != term",
            "state.log.last_index < index",
        ),
    ),
    mutant(
        "learner counted in the quorum",
        (
            "leader.py",
            "self.peers[v].match for v in state.configurations.voter_ids]",
            "self.peers[v].match for v in [s.uuid for s in state.configurations.latest.servers]]",
        ),
    ),
    mutant(
        "nothing is sent again after a lost append",
        (
            "progress.py",
            "self.probe_sent = False\n        self.nudge = ",
            "self.nudge = False and ",
        ),
    ),
    # --- reads ---
    mutant(
        "read index without a commit of the term",
        (
            "leader.py",
            "self._reads.start_round(self._state.commit if self.committed_own_term else None)",
            "self._reads.start_round(self._state.commit)",
        ),
    ),
    mutant(
        "a read is confirmed by an earlier round",
        (
            "read_index.py",
            "self._rounds.append((self.round, commit, self._waiting))",
            "self._rounds.append((self.round - 1, commit, self._waiting))",
        ),
    ),
    # --- membership ---
    mutant(
        "change before a commit of the term",
        ("leader.py", "if not self.committed_own_term:", "if False:"),
    ),
    mutant(
        "configuration not rolled back on truncation",
        ("state.py", "        self.configurations.truncate(first)\n", ""),
        ("configuration.py", "        assert index > self.latest_index\n", ""),
    ),
    mutant(
        "two pending changes",
        ("leader.py", "if state.configurations.latest_index > state.commit:", "if False:"),
    ),
    mutant(
        "a leader that removes itself counts itself",
        (
            "leader.py",
            "for v in state.configurations.voter_ids],",
            "for v in {*state.configurations.voter_ids, state.id}],",
        ),
    ),
]


def apply(mutant: Mutant, package_parent: Path) -> None:
    for edit in mutant.edits:
        path = package_parent / edit.file
        text = path.read_text()
        found = text.count(edit.old)
        if found != 1:
            raise SystemExit(f"mutant {mutant.name!r}: {edit.file} has {found} x {edit.old!r}")
        path.write_text(text.replace(edit.old, edit.new))


class Verdict(NamedTuple):
    killed_by: str | None
    seconds: float
    line: str


def run(mutant: Mutant | None, seconds: float) -> Verdict:
    """Run the simulator on the mutant (None: on the code as it is) until a check fails."""
    with tempfile.TemporaryDirectory() as folder:
        shutil.copytree(ROOT / "proglog", Path(folder) / "proglog")
        if mutant is not None:
            apply(mutant, Path(folder))
        began = time.monotonic()
        simulator = subprocess.run(
            [sys.executable, ROOT / "tests/raft/core_sim.py", "--seconds", str(seconds)],
            env={**os.environ, "PYTHONPATH": folder},
            capture_output=True,
            text=True,
            check=False,
        )
        spent = time.monotonic() - began
    lines = (simulator.stdout.strip() or simulator.stderr.strip() or "no output").splitlines()
    if simulator.returncode == 0:
        return Verdict(None, spent, lines[0])
    failed = re.search(r"FAILED \[([^\]]*)\]", simulator.stdout)
    return Verdict(failed[1] if failed else "crash", spent, lines[0] if failed else lines[-1])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=60.0, help="of CPU, for each")
    parser.add_argument("names", nargs="*", help="part of a name; default: all")
    options = parser.parse_args()
    survivors = 0
    for mutant in MUTANTS:
        if options.names and not any(name in mutant.name for name in options.names):
            continue
        verdict = run(mutant, options.seconds)
        survivors += verdict.killed_by is None
        print(
            f"{mutant.name:58} {verdict.killed_by or 'SURVIVED':32} {verdict.seconds:6.1f} s",
            flush=True,
        )
        print(f"    {verdict.line[:180]}", flush=True)
    print(f"{survivors} survived")
    return 1 if survivors else 0


if __name__ == "__main__":
    sys.exit(main())
