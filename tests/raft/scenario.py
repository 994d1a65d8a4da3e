"""Runs scenario scripts: commands, `----`, what must come of them (as etcd/raft's testdata).

    REWRITE=1 pytest tests/raft/test_scenarios.py      writes what comes instead of comparing

Servers are single letters. Time stands still, messages wait and disks are instant unless a command
says otherwise. `status` shows a log as the terms of its entries; `c` marks a configuration.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from pathlib import Path

from proglog.errors import ProglogError
from proglog.raft import (
    AddLearner,
    AppendRequest,
    AppendResponse,
    Configuration,
    Entry,
    HardState,
    Heartbeat,
    HeartbeatResponse,
    InstallSnapshot,
    LogView,
    Message,
    Promote,
    Raft,
    RaftConfig,
    Ready,
    Remove,
    Server,
    TimeoutNow,
    VoteRequest,
    VoteResponse,
)


def show(m: Message) -> str:
    match m:
        case AppendRequest():
            what = f"Append prev={m.prev_index}/{m.prev_term} to={m.last_index} commit={m.commit}"
        case AppendResponse(rejected=True):
            what = f"AppendReject at={m.index} hint={m.hint_index}/{m.hint_term}"
        case AppendResponse():
            what = f"AppendAck {m.index}"
        case Heartbeat():
            what = f"Heartbeat round={m.round} commit={m.commit}"
        case HeartbeatResponse():
            what = f"HeartbeatAck round={m.round}"
        case VoteRequest():
            kind = "PreVote" if m.pre_vote else "Vote"
            what = f"{kind} last={m.last_index}/{m.last_term}{' transfer' if m.transfer else ''}"
        case VoteResponse():
            kind = "PreVote" if m.pre_vote else "Vote"
            what = f"{kind}{'Granted' if m.granted else 'Refused'}"
        case InstallSnapshot():
            what = f"Snapshot {m.index}/{m.snapshot_term}"
        case TimeoutNow():
            what = "TimeoutNow"
    return f"{m.sender}->{m.to} t{m.term} {what}"


class Node:
    def __init__(self, name: str, first: Configuration) -> None:
        self.name, self.first = name, first
        self.base, self.base_term = 0, 0
        self.log: list[Entry] = []
        self.disk: list[Entry] = []
        self.hard = HardState()
        self.commit_hint = 0
        self.disk_held = False
        self.writes: list[Ready] = []
        self.raft: Raft | None = None

    def start(self) -> None:
        self.log, self.writes = list(self.disk), []
        runs: list[tuple[int, int]] = []
        for e in self.log:
            if not runs or runs[-1][1] != e.term:
                runs.append((e.index, e.term))
        self.raft = Raft(
            id=self.name,
            config=RaftConfig(heartbeat_ticks=1, election_ticks=10, append_entries_max=100),
            hard_state=self.hard,
            log=LogView(
                base_index=self.base,
                base_term=self.base_term,
                runs=runs,
                last_index=self.base + len(self.log),
                size_of=lambda _: 1,
            ),
            configurations=[(self.base, self.first)]
            + [(e.index, e.configuration) for e in self.log if e.configuration is not None],
            commit=self.commit_hint,
            rng=random.Random(self.name),
        )

    def status(self) -> str:
        if self.raft is None:
            return f"{self.name} down"
        s = self.raft.status()
        base = f"({self.base}/{self.base_term}) " if self.base else ""
        log = " ".join(f"{e.term}{'c' if e.configuration else ''}" for e in self.log)
        voters = "".join(s.configuration.voter_ids)
        learners = "".join(x.uuid for x in s.configuration.learners)
        members = voters + (f"+{learners}" if learners else "")
        return (
            f"{self.name} {s.role.value} term {s.term} commit {s.commit} of {members}: {base}{log}"
        )


class Scenario:
    """The servers of one script and the messages between them."""

    def __init__(self) -> None:
        self.nodes: dict[str, Node] = {}
        self.network: list[Message] = []
        self.cut: set[frozenset[str]] = set()
        self.out: list[str] = []

    def run(self, line: str) -> None:
        command, *words = line.split()
        method = getattr(self, "do_" + command.replace("-", "_"))
        try:
            method(*words)
        except ProglogError as error:
            self.out.append(f"refused: {error}")
        self._pump()

    # --- making a cluster ------------------------------------------------------------------------

    def do_cluster(self, voters: str, *others: str) -> None:
        """cluster abc [d]: voters a, b, c; d runs, but knows nobody yet."""
        self.nodes, self.network, self.cut = {}, [], set()
        first = Configuration(tuple(Server(v, v) for v in voters))
        for name in voters:
            self.nodes[name] = Node(name, first)
        for name in others:
            self.nodes[name] = Node(name, Configuration())
        for node in self.nodes.values():
            node.start()

    def do_log(self, name: str, *words: str) -> None:
        """log a 1 1 2 [term=3] [commit=1]: what recovery finds on the disk."""
        node = self.nodes[name]
        given = dict(w.split("=") for w in words if "=" in w)
        terms = [int(w) for w in words if "=" not in w]
        node.disk = [Entry(i, t, 1) for i, t in enumerate(terms, 1)]
        node.hard = HardState(int(given.get("term", terms[-1] if terms else 0)))
        node.commit_hint = int(given.get("commit", 0))
        node.start()

    # --- what happens to a server ----------------------------------------------------------------

    def _raft(self, name: str) -> Raft:
        raft = self.nodes[name].raft
        assert raft is not None, f"{name} is down"
        return raft

    def do_timeout(self, name: str) -> None:
        """Its election timeout passes in silence."""
        raft = self._raft(name)
        raft._timer.elapsed = raft._timer.timeout
        raft.tick()

    def do_disconnected(self, name: str, peer: str) -> None:
        """The connection that its peer dialled has ended."""
        self._raft(name).disconnected(peer)

    def do_silence(self, *names: str) -> None:
        """They have not heard a leader for the shortest election timeout: they protect none."""
        for name in names:
            self._raft(name)._timer.elapsed = 10

    def do_tick(self, name: str, ticks: str = "1") -> None:
        for _ in range(int(ticks)):
            self._raft(name).tick()
            self._pump()

    def do_propose(self, name: str, count: str = "1") -> None:
        self._raft(name).propose([1] * int(count))

    def do_read(self, name: str, ticket: str) -> None:
        self._raft(name).request_read(ticket)

    def do_transfer(self, name: str, to: str) -> None:
        self._raft(name).transfer(to)

    def do_add_learner(self, name: str, which: str) -> None:
        self._raft(name).propose_change(AddLearner(Server(which, which)))

    def do_promote(self, name: str, which: str) -> None:
        self._raft(name).propose_change(Promote(which))

    def do_remove(self, name: str, which: str) -> None:
        self._raft(name).propose_change(Remove(which))

    def do_compact(self, name: str, index: str) -> None:
        node, at = self.nodes[name], int(index)
        self._raft(name).compacted(at)
        entries = node.log[: at - node.base]
        found = [e.configuration for e in entries if e.configuration is not None]
        node.first = found[-1] if found else node.first
        node.base_term = entries[-1].term
        node.log = node.disk = node.log[at - node.base :]
        node.base = at

    def do_hold_disk(self, name: str) -> None:
        self.nodes[name].disk_held = True

    def do_release_disk(self, name: str) -> None:
        self.nodes[name].disk_held = False

    def do_crash(self, name: str) -> None:
        self.nodes[name].raft = None
        self.network = [m for m in self.network if m.sender != name]

    def do_restart(self, name: str) -> None:
        self.nodes[name].start()

    # --- the network -----------------------------------------------------------------------------

    def do_isolate(self, names: str) -> None:
        """Nothing passes between these servers and the others any more."""
        outside = set(self.nodes) - set(names)
        self.cut |= {frozenset((a, b)) for a in names for b in outside}

    def do_cut(self, a: str, b: str) -> None:
        self.cut.add(frozenset((a, b)))

    def do_heal(self) -> None:
        self.cut = set()

    def do_drop(self, *pattern: str) -> None:
        """drop [a->b] [Kind]: waiting messages are lost."""
        self.network = [m for m in self.network if not _matches(m, pattern)]

    def do_deliver(self, *pattern: str) -> None:
        """deliver [a->b] [Kind]: waiting messages arrive, but not what they lead to."""
        waiting, self.network = self.network, []
        for m in waiting:
            if _matches(m, pattern):
                self._arrive(m)
            else:
                self.network.append(m)
        self._pump()

    def do_stabilize(self) -> None:
        """Everything arrives until nothing is said any more."""
        for _ in range(1000):
            self._pump()
            if not self.network:
                return
            self._arrive(self.network.pop(0))
        raise AssertionError("no end of messages")

    def do_show_messages(self) -> None:
        self.out += [show(m) for m in self.network]

    def do_status(self, *names: str) -> None:
        self.out += [self.nodes[n].status() for n in names or self.nodes]

    def _arrive(self, m: Message) -> None:
        node = self.nodes.get(m.to)
        if node is None or node.raft is None or frozenset((m.sender, m.to)) in self.cut:
            return
        self.out.append(show(m))
        node.raft.step(m)
        self._pump()

    # --- the driver ------------------------------------------------------------------------------

    def _pump(self) -> None:
        for node in self.nodes.values():
            while node.raft is not None and (ready := node.raft.ready()) is not None:
                self._do(node, ready)
            while node.writes and not node.disk_held and node.raft is not None:
                ready = node.writes.pop(0)
                _apply(node.disk, node.base, ready)
                node.raft.persisted(ready.write)
                self._pump()

    def _do(self, node: Node, ready: Ready) -> None:
        assert node.raft is not None
        _apply(node.log, node.base, ready)
        if ready.hard_state is not None:
            node.hard = ready.hard_state
        for m in ready.messages + ready.messages_after_persist:
            if isinstance(m, AppendRequest):
                entries = node.log[m.prev_index - node.base : m.last_index - node.base]
                m = m._replace(entries=tuple(entries))
            elif isinstance(m, InstallSnapshot):
                m = m._replace(configuration=node.first)
            self.network.append(m)
        if ready.write:
            node.writes.append(ready)
        if ready.soft_state is not None:
            soft = ready.soft_state
            follows = f" of {soft.leader}" if soft.leader not in (None, node.name) else ""
            self.out.append(f"  {node.name} is {soft.role.value}{follows} in term {soft.term}")
        if ready.configuration is not None:
            members = "".join(ready.configuration[1].voter_ids)
            self.out.append(f"  {node.name} has voters {members}")
        if ready.commit is not None:
            self.out.append(f"  {node.name} commits {ready.commit}")
        for ticket, index in ready.reads:
            self.out.append(f"  {node.name} read {ticket}: {'lost' if index is None else index}")
        if ready.snapshot is not None:
            node.base, node.base_term, node.first = ready.snapshot
            node.log, node.disk, node.writes = [], [], []
            self.out.append(f"  {node.name} installs {node.base}/{node.base_term}")
            node.raft.snapshot_installed(node.base, node.base_term)


def _apply(log: list[Entry], base: int, ready: Ready) -> None:
    if ready.truncate_from is not None:
        del log[ready.truncate_from - base - 1 :]
    log += ready.entries


def _matches(m: Message, pattern: tuple[str, ...]) -> bool:
    return all(p in show(m).split()[:3:2] or show(m).split()[2].startswith(p) for p in pattern)


# --- files ---------------------------------------------------------------------------------------


def blocks(text: str) -> Iterator[tuple[list[str], list[str]]]:
    """(lines up to `----`, lines after it) for each block; blocks are set apart by empty lines."""
    for block in text.strip().split("\n\n"):
        head, _, tail = block.partition("\n----")
        yield head.splitlines(), tail.strip("\n").splitlines()


def run_file(path: Path, *, rewrite: bool, check: Callable[[str, str], None]) -> None:
    scenario = Scenario()
    written: list[str] = []
    for head, _ in blocks(path.read_text()):
        scenario.out = []
        commands = [line for line in head if not line.startswith("#")]
        for command in commands:
            scenario.run(command)
        answer = ["----", *(scenario.out or ["ok"])] if commands else []
        written.append("\n".join([*head, *answer]))
    result = "\n\n".join(written) + "\n"
    if rewrite:
        path.write_text(result)
    check(result, path.read_text())
