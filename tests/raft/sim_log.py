"""The logs of simulated servers and the checker that knows everything."""

from __future__ import annotations

from typing import NamedTuple

from proglog.raft.configuration import Configuration
from proglog.raft.quorum import majority


class SimEntry(NamedTuple):
    """A batch: what the core sees of it, and a value that makes it unique."""

    position: int
    term: int
    size_bytes: int
    configuration: Configuration | None
    value: int


class SimLog:
    """A log with a base snapshot; the memory's and the disk's are two of these."""

    def __init__(self, configuration: Configuration) -> None:
        self.base_index = self.base_term = 0
        self.base_configuration = configuration
        self.entries: list[SimEntry] = []

    @property
    def last_index(self) -> int:
        return self.base_index + len(self.entries)

    def __getitem__(self, index: int) -> SimEntry:
        assert self.base_index < index <= self.last_index
        return self.entries[index - self.base_index - 1]

    def term_at(self, index: int) -> int:
        return self.base_term if index == self.base_index else self[index].term

    def append(self, entry: SimEntry) -> None:
        assert entry.position == self.last_index + 1
        self.entries.append(entry)

    def truncate(self, first: int) -> None:
        assert first > self.base_index, "cut below the base"
        del self.entries[first - self.base_index - 1 :]

    def configurations(self, last: int | None = None) -> list[tuple[int, Configuration]]:
        last = self.last_index if last is None else last
        return [(self.base_index, self.base_configuration)] + [
            (e.position, e.configuration)
            for e in self.entries[: last - self.base_index]
            if e.configuration is not None
        ]

    def compact(self, index: int) -> None:
        if index <= self.base_index:
            return
        configuration = self.configurations(index)[-1][1]
        term = self.term_at(index)
        del self.entries[: index - self.base_index]
        self.base_index, self.base_term, self.base_configuration = index, term, configuration

    def reset(self, index: int, term: int, configuration: Configuration) -> None:
        self.base_index, self.base_term, self.base_configuration = index, term, configuration
        self.entries = []

    def runs(self) -> list[tuple[int, int]]:
        runs: list[tuple[int, int]] = []
        for e in self.entries:
            if not runs or runs[-1][1] != e.term:
                runs.append((e.position, e.term))
        return runs

    def copy(self) -> SimLog:
        log = SimLog(self.base_configuration)
        log.base_index, log.base_term, log.entries = (
            self.base_index,
            self.base_term,
            list(self.entries),
        )
        return log


class Violation(AssertionError):
    """A promise of Raft was broken. `check` names which."""

    def __init__(self, check: str, detail: str) -> None:
        super().__init__(f"{check}: {detail}")
        self.check = check


def require(condition: bool, check: str, detail: object = "") -> None:
    if not condition:
        raise Violation(check, str(detail))


class Oracle:
    """Sees all servers at once and holds what Raft promises about them (figure 3 of the paper)."""

    def __init__(self) -> None:
        self.leaders: dict[int, str] = {}
        self.votes: dict[tuple[str, int], str] = {}
        self.terms: set[int] = {0}
        self.chain: dict[tuple[int, int], tuple[int, int]] = {}
        self.committed: dict[int, tuple[int, int]] = {}
        self.committed_terms: set[int] = set()
        self.committed_in: dict[int, int] = {}
        self.committed_max = 0
        self.commits_checked = 0

    def appended(self, entry: SimEntry, previous_term: int) -> None:
        """Log matching, by induction: an (index, term) has one value and one predecessor."""
        before = (entry.value, previous_term)
        known = self.chain.setdefault((entry.position, entry.term), before)
        require(known == before, "log matching", (entry, known, before))

    def voted(self, voter: str, term: int, candidate: str) -> None:
        first = self.votes.setdefault((voter, term), candidate)
        require(first == candidate, "one vote a term", (voter, term, first, candidate))

    def entered(self, server: str, term: int, *, campaigns: bool) -> None:
        """Only a candidate makes a term; asking (pre-vote) makes none."""
        if campaigns:
            self.terms.add(term)
        require(term in self.terms, "term without a candidate", (server, term))

    def elected(self, server: str, term: int, log: SimLog) -> None:
        first = self.leaders.setdefault(term, server)
        require(first == server, "election safety", (term, first, server))
        # Leaders of later terms hold it. One of an earlier term may be elected late, without it.
        top = max((i for t, i in self.committed_in.items() if t < term), default=0)
        if top > log.base_index:
            complete = top <= log.last_index and log.term_at(top) == self.committed[top][0]
            require(complete, "leader completeness", (server, term, top, log.last_index))

    def configured(
        self, term: int, log: SimLog, before: int, old: Configuration, new: Configuration
    ) -> None:
        """A leader of `term` appends `new`; `old` stands at index `before`."""
        committed = before <= log.base_index or (
            before in self.committed and self.committed[before][0] == log.term_at(before)
        )
        require(before == 0 or committed, "one change at a time", (term, before))
        require(term in self.committed_terms, "change before a commit of the term", term)
        moved = set(old.voter_ids) ^ set(new.voter_ids)
        require(len(moved) <= 1, "one voter at a time", sorted(moved))

    def commits(self, server: str, term: int, log: SimLog, old: int, new: int) -> None:
        """State machine safety: an index has one committed entry, whoever commits it."""
        require(new > old, "commit goes back", (server, old, new))
        require(new <= log.last_index, "commit beyond the log", (server, new, log.last_index))
        for index in range(max(old, log.base_index) + 1, new + 1):
            entry = log[index]
            known = self.committed.setdefault(index, (entry.term, entry.value))
            require(
                known == (entry.term, entry.value), "state machine safety", (server, entry, known)
            )
            self.committed_terms.add(entry.term)
            self.commits_checked += 1
        if new > self.committed_max:
            self.committed_max = self.committed_in[term] = new

    def durable_on_majority(
        self,
        index: int,
        term: int,
        electorates: list[tuple[str, ...]],
        disks: dict[str, SimLog],
    ) -> None:
        """A leader calls `index` committed: the disks of a majority hold it."""

        def holds(voter: str) -> bool:
            disk = disks.get(voter)
            if disk is None or index > disk.last_index:
                return False
            return index <= disk.base_index or disk.term_at(index) == term

        committed = any(sum(map(holds, e)) >= majority(len(e)) for e in electorates if e)
        require(committed, "durable on a majority", (index, term, electorates))
