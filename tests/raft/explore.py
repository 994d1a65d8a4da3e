"""Explicit-state exploration of the core: every order of events within small bounds.

    python tests/raft/explore.py [--terms 2] [--proposals 1] [--crashes 1] ...

A world is three cores, their disks and the messages between them. From each world every possible
event leads to the next; worlds that differ in timers only are one. All of Raft's invariants are
checked in every world, so within the bounds this is a proof and not a sample.

Links are first in first out, and any message may be lost (the head of a link is dropped); elections
need no timer and no pre-vote (TimeoutNow), so a server may run at any moment. What Raft says must
hold under all of that.
"""

from __future__ import annotations

import argparse
import enum
import random
import sys
import time
from array import array
from collections import deque
from pathlib import Path
from typing import Any, NamedTuple

sys.path.append(str(Path(__file__).parents[2]))

from proglog.errors import ProglogError
from proglog.raft import (
    AddLearner,
    AppendRequest,
    AppendResponse,
    Configuration,
    Entry,
    HardState,
    LogView,
    Message,
    Promote,
    Raft,
    RaftConfig,
    Remove,
    Role,
    Server,
    TimeoutNow,
    VoteResponse,
)
from proglog.raft.quorum import majority

IDS = ("a", "b", "c")
CONFIG = RaftConfig(promotion_lag_entries_max=1000)


class Bounds(NamedTuple):
    """How much may happen. Each is used up by an event of its kind."""

    terms: int = 2
    proposals: int = 1
    crashes: int = 0
    heartbeats: int = 0
    changes: int = 0
    losses: int = 0


# --- copies and keys -----------------------------------------------------------------------------

TIMERS = {
    *("_timer", "_now", "_heartbeat_ticks", "_quorum_ticks"),
    *(
        "_transfer_ticks",
        "catch_up",
        "config",
        "_size_of",
        "_number",
        "heard",
        "silent_checks",
        "_ends",
    ),
}


def copy_of(value: Any, memo: dict[int, Any]) -> Any:
    """A deep copy that shares what cannot change (and knows this package's objects only)."""
    kind = type(value)
    if kind is list:
        return [copy_of(v, memo) for v in value]
    if kind is dict:
        return {k: copy_of(v, memo) for k, v in value.items()}
    if kind is deque:
        return deque(value)
    if kind is array:
        return value[:]
    if not hasattr(kind, "__slots__") or isinstance(value, tuple | enum.Enum):
        return value
    if not kind.__module__.startswith("proglog.raft") or hasattr(kind, "__dataclass_fields__"):
        return value
    if id(value) not in memo:
        memo[id(value)] = new = object.__new__(kind)
        for slot in kind.__slots__:
            setattr(new, slot, copy_of(getattr(value, slot), memo))
    return memo[id(value)]


def key_of(value: Any, seen: set[int]) -> Any:
    """All that decides what this server will ever do, as a hashable value."""
    kind = type(value)
    if kind is list or kind is deque:
        return tuple(key_of(v, seen) for v in value)
    if kind is dict:
        return tuple((k, key_of(v, seen)) for k, v in value.items())
    if kind is array:
        return value.tobytes()
    if (
        hasattr(kind, "__slots__")
        and kind.__module__.startswith("proglog.raft")
        and not isinstance(value, tuple | enum.Enum)
        and not hasattr(kind, "__dataclass_fields__")
    ):
        if id(value) in seen:
            return None
        seen.add(id(value))
        return tuple(key_of(getattr(value, s), seen) for s in kind.__slots__ if s not in TIMERS)
    return value


# --- worlds --------------------------------------------------------------------------------------


class Node:
    """A core, its log, and its disk: entries are (index, term, configuration)."""

    __slots__ = ("commit", "disk", "hard", "key", "log", "raft", "writes")

    def __init__(self, raft: Raft) -> None:
        self.raft = raft
        self.log: tuple[Entry, ...] = ()
        self.disk: tuple[Entry, ...] = ()
        self.hard = HardState()
        self.writes: tuple[tuple[int, int | None, tuple[Entry, ...]], ...] = ()
        self.commit = 0
        self.key: Any = None

    def copy(self) -> Node:
        node = object.__new__(Node)
        node.raft = copy_of(self.raft, {})
        node.log, node.disk, node.hard = self.log, self.disk, self.hard
        node.writes, node.commit, node.key = self.writes, self.commit, None
        return node


class World(NamedTuple):
    nodes: tuple[Node, ...]
    links: tuple[tuple[Message, ...], ...]  # sender * 3 + receiver
    left: Bounds
    leaders: tuple[tuple[int, str], ...]
    votes: tuple[tuple[str, int, str], ...]
    committed: tuple[Entry, ...]
    committed_in: tuple[int, ...]  # the term of the leader that committed it

    def key(self) -> Any:
        for node in self.nodes:
            if node.key is None:
                node.key = (
                    key_of(node.raft, set()),
                    node.disk,
                    node.hard,
                    tuple(w[1:] for w in node.writes),
                )
        return (
            tuple(n.key for n in self.nodes),
            self.links,
            self.left,
            self.leaders,
            self.votes,
            self.committed,
            self.committed_in,
        )


def new_raft(server: str, hard: HardState, disk: tuple[Entry, ...], first: Configuration) -> Raft:
    runs: list[tuple[int, int]] = []
    for e in disk:
        if not runs or runs[-1][1] != e.term:
            runs.append((e.index, e.term))
    return Raft(
        id=server,
        config=CONFIG,
        hard_state=hard,
        log=LogView(runs=runs, last_index=len(disk), size_of=lambda _: 1),
        configurations=[(0, first)]
        + [(e.index, e.configuration) for e in disk if e.configuration is not None],
        commit=0,
        rng=random.Random(0),
    )


class Explorer:
    """Breadth first over all worlds; the shortest way to a broken promise is the answer."""

    def __init__(self, bounds: Bounds, voters: int = 3) -> None:
        servers = tuple(Server(i, i) for i in IDS)
        self.first = Configuration(servers[:voters], ())
        self.spare = servers[voters:]
        nodes = tuple(Node(new_raft(i, HardState(), (), self.first)) for i in IDS)
        self.start = World(nodes, ((),) * 9, bounds, (), (), (), ())
        self.worlds = 0
        self.transitions = 0
        self.complete = False

    def run(self, seconds: float = 1e9, worlds_max: int = 10**9) -> None:
        began = time.process_time()
        seen = {hash(self.start.key())}
        frontier = deque([(self.start, None)])
        while frontier:
            world, path = frontier.popleft()
            self.worlds += 1
            if self.worlds >= worlds_max or (
                self.worlds % 256 == 0 and time.process_time() - began > seconds
            ):
                return
            for event in self._events(world):
                self.transitions += 1
                try:
                    after = self._after(world, event)
                except AssertionError as error:
                    raise AssertionError(f"{error}\n{_steps((path, event))}") from error
                key = hash(after.key())
                if key not in seen:
                    seen.add(key)
                    frontier.append((after, (path, event)))
        self.complete = True

    def _events(self, world: World) -> list[tuple[Any, ...]]:
        left, events = world.left, []
        for i, node in enumerate(world.nodes):
            state, leads = node.raft._state, node.raft._role is Role.LEADER
            if not leads and state.term < left.terms and (i == 0 or world.leaders or state.term):
                events.append(("campaign", i))
            if node.writes:
                events.append(("persist", i))
            if left.crashes and state.term:
                events.append(("crash", i))
            if leads and left.proposals:
                events.append(("propose", i))
            if leads and left.heartbeats:
                events.append(("heartbeat", i))
            if leads and left.changes:
                events += [("change", i, change) for change in self._changes(node)]
        for link, queue in enumerate(world.links):
            if queue:
                events.append(("deliver", link))
                if left.losses:
                    events.append(("lose", link))
        return events

    def _changes(self, node: Node) -> list[Any]:
        configuration = node.raft._state.configurations.latest
        changes: list[Any] = [Remove(s.uuid) for s in configuration.servers]
        changes += [AddLearner(s) for s in self.spare if not configuration.find(s.uuid)]
        return changes + [Promote(s.uuid) for s in configuration.learners]

    # --- events ----------------------------------------------------------------------------------

    def _after(self, world: World, event: tuple[Any, ...]) -> World:
        kind, which = event[0], event[1]
        left = world.left
        if kind in ("deliver", "lose"):
            message, *rest = world.links[which]
            links = _replace(world.links, which, tuple(rest))
            world = world._replace(links=links)
            if kind == "lose":
                return world._replace(left=left._replace(losses=left.losses - 1))
            return self._act(world, IDS.index(message.to), ("step", message))
        if kind == "crash":
            node = world.nodes[which].copy()
            node.log, node.writes, node.commit = node.disk, (), 0
            node.raft = new_raft(IDS[which], node.hard, node.disk, self.first)
            return world._replace(
                nodes=_replace(world.nodes, which, node),
                left=left._replace(crashes=left.crashes - 1),
            )
        spent = {"propose": "proposals", "heartbeat": "heartbeats", "change": "changes"}
        if kind in spent:
            world = world._replace(
                left=left._replace(**{spent[kind]: getattr(left, spent[kind]) - 1})
            )
        return self._act(world, which, (kind, *event[2:]))

    def _act(self, world: World, i: int, action: tuple[Any, ...]) -> World:
        node = world.nodes[i].copy()
        raft = node.raft
        try:
            match action:
                case ("step", message):
                    raft.step(message)
                case ("campaign",):
                    raft.step(TimeoutNow(IDS[i], IDS[i], raft._state.term))
                case ("persist",):
                    (number, truncate_from, entries), *rest = node.writes
                    node.disk = _written(node.disk, truncate_from, entries)
                    node.writes = tuple(rest)
                    raft.persisted(number)
                case ("propose",):
                    raft.propose([1])
                case ("heartbeat",):
                    raft._leader._heartbeat_ticks = CONFIG.heartbeat_ticks
                    raft.tick()
                case ("change", change):
                    raft.propose_change(change)
        except ProglogError:
            pass
        return self._pump(world._replace(nodes=_replace(world.nodes, i, node)), i)

    def _pump(self, world: World, i: int) -> World:
        node, me = world.nodes[i], IDS[i]
        while (ready := node.raft.ready()) is not None:
            node.log = _written(node.log, ready.truncate_from, tuple(ready.entries))
            if ready.hard_state is not None:
                node.hard = ready.hard_state
                if ready.hard_state.voted_for is not None:
                    vote = (me, ready.hard_state.term, ready.hard_state.voted_for)
                    world = world._replace(votes=_added(world.votes, vote))
            if ready.write:
                write = (ready.write, ready.truncate_from, tuple(ready.entries))
                node.writes = (*node.writes, write)
            if ready.soft_state is not None and ready.soft_state.role is Role.LEADER:
                leader = (ready.soft_state.term, me)
                world = world._replace(leaders=_added(world.leaders, leader))
                for entry, term in zip(world.committed, world.committed_in, strict=True):
                    if term < leader[0]:
                        assert entry in node.log, f"leader completeness: {me} lacks {entry}"
            if ready.commit is not None:
                world = self._committed(world, node, ready.commit)
            for message in ready.messages + ready.messages_after_persist:
                world = self._sent(world, node, message)
        self._check(world)
        return world

    def _sent(self, world: World, node: Node, message: Message) -> World:
        if isinstance(message, AppendRequest):
            entries = node.log[message.prev_index : message.last_index]
            message = message._replace(entries=entries)
        elif isinstance(message, AppendResponse) and not message.rejected:
            if message.term == node.raft._state.term:
                held = node.disk[: message.index] == node.log[: message.index]
                assert held, f"ack before persist: {message}"
        elif isinstance(message, VoteResponse) and message.granted and not message.pre_vote:
            assert node.hard == (message.term, message.to), "vote sent before persisted"
        link = IDS.index(message.sender) * 3 + IDS.index(message.to)
        return world._replace(links=_replace(world.links, link, (*world.links[link], message)))

    # --- invariants ------------------------------------------------------------------------------

    def _committed(self, world: World, node: Node, commit: int) -> World:
        assert commit > node.commit, "commit goes back"
        node.commit = commit
        known, found = world.committed, node.log[:commit]
        common = min(len(known), len(found))
        assert known[:common] == found[:common], f"state machine safety: {known} {found}"
        if node.raft._role is Role.LEADER:
            voters = node.raft._state.configurations.latest.voter_ids
            disks = {i: n.disk for i, n in zip(IDS, world.nodes, strict=True)}
            holding = sum(disks[v][:commit] == found for v in voters)
            assert holding >= majority(len(voters)), f"not durable on a majority: {found}"
        term = node.raft._state.term
        terms = world.committed_in + (term,) * (len(found) - common)
        return world._replace(committed=max(known, found, key=len), committed_in=terms)

    def _check(self, world: World) -> None:
        terms = [t for t, _ in world.leaders]
        assert len(set(terms)) == len(terms), f"election safety: {world.leaders}"
        ballots = [(v, t) for v, t, _ in world.votes]
        assert len(set(ballots)) == len(ballots), f"one vote a term: {world.votes}"
        for node in world.nodes:
            for other in world.nodes:
                common = min(len(node.log), len(other.log))
                for i in range(common - 1, -1, -1):
                    if node.log[i].term == other.log[i].term:
                        same = node.log[: i + 1] == other.log[: i + 1]
                        assert same, f"log matching: {node.log} {other.log}"
                        break
            latest = [e.configuration for e in node.log if e.configuration] or [self.first]
            assert node.raft._state.configurations.latest == latest[-1], "configuration in force"


def _written(
    log: tuple[Entry, ...], truncate_from: int | None, entries: tuple[Entry, ...]
) -> tuple[Entry, ...]:
    return (log if truncate_from is None else log[: truncate_from - 1]) + entries


def _replace(values: tuple[Any, ...], i: int, value: Any) -> tuple[Any, ...]:
    return (*values[:i], value, *values[i + 1 :])


def _added(values: tuple[Any, ...], value: Any) -> tuple[Any, ...]:
    return values if value in values else tuple(sorted((*values, value)))


def _steps(path: Any) -> str:
    steps: list[str] = []
    while path is not None:
        path, event = path
        steps.append(str(event))
    return "\n".join(reversed(steps))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, default in Bounds()._asdict().items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--voters", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=1e9)
    options = vars(parser.parse_args())
    seconds, voters = options.pop("seconds"), options.pop("voters")
    explorer = Explorer(Bounds(**options), voters)
    began = time.process_time()
    explorer.run(seconds)
    spent = time.process_time() - began
    print(
        f"{'complete' if explorer.complete else 'stopped'}: {explorer.worlds} worlds, "
        f"{explorer.transitions} transitions, {spent:.1f} s"
    )


if __name__ == "__main__":
    main()
