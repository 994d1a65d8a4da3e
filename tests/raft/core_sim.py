"""Simulator of clusters of cores: seeded faults, all of Raft's promises checked at every step.

    python tests/raft/core_sim.py [--seed N] [--seconds S] [--nodes 3]

With --seed one run; with --seconds runs of many seeds until that much time has passed. Each server
is a core, a disk of which every effect is a step that a crash can come before or after, and a clock
of its own. Per seed it is drawn which faults exist and how strong they are (swarm testing). First
comes a phase in which anything may happen, then the network heals, everybody runs, and the cluster
must elect a leader, commit, and agree. The same seed gives the same trace.
"""

from __future__ import annotations

import argparse
import heapq
import random
import sys
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

# As a script, this file sees its own folder; what is imported from the tree stands behind whatever
# PYTHONPATH names (a mutant).
sys.path.append(str(Path(__file__).parents[2]))

from proglog.errors import ProglogError
from proglog.raft import (
    AddLearner,
    AppendRequest,
    AppendResponse,
    Configuration,
    Entry,
    HardState,
    InstallSnapshot,
    LogView,
    Message,
    Promote,
    Raft,
    RaftConfig,
    Ready,
    Remove,
    Role,
    Server,
    TimeoutNow,
    VoteRequest,
    VoteResponse,
)
from tests.raft.sim_log import Oracle, SimEntry, SimLog, Violation, require

TICK_MS = 10.0


class Crash(Exception):
    """The server stops here, between two effects."""


class Swarm:
    """Which faults this seed has, and how strong."""

    def __init__(self, rng: random.Random, nodes: int | None) -> None:
        def sometimes(chance: float, low: float, high: float) -> float:
            return rng.uniform(low, high) if rng.random() < chance else 0.0

        self.nodes = nodes or rng.choice((1, 2, 3, 3, 3, 4, 5, 5))
        self.duration_ms = rng.uniform(5_000, 20_000)
        self.loss = sometimes(0.5, 0.01, 0.3)
        self.duplicate = sometimes(0.5, 0.01, 0.3)
        self.delay_ms = rng.choice((0.2, 1.0, 5.0, 30.0))
        self.ordered = rng.random() < 0.6
        self.disk_ms = rng.choice((0.1, 0.5, 5.0, 40.0))
        self.crash_every_ms = sometimes(0.6, 500, 5000)
        self.crash_at_effect = sometimes(0.4, 0.0003, 0.003)
        self.down_ms = rng.choice((50.0, 500.0, 3000.0))
        self.pause_every_ms = sometimes(0.4, 1000, 6000)
        self.partition_every_ms = sometimes(0.6, 500, 4000)
        self.change_every_ms = sometimes(0.5, 200, 3000)
        self.transfer_every_ms = sometimes(0.4, 300, 5000)
        self.wipe_every_ms = sometimes(0.2, 3000, 10_000)
        self.compact_every_ms = sometimes(0.6, 50, 1000)
        self.propose_every_ms = rng.choice((5.0, 20.0, 20.0, 50.0, 50.0, 300.0))
        self.unreachable_every_ms = sometimes(0.4, 20, 500)
        self.stray_append_every_ms = sometimes(0.4, 5, 100)
        self.campaign_every_ms = sometimes(0.3, 50, 1000)
        self.read_every_ms = rng.choice((20.0, 100.0, 400.0))
        heartbeat = rng.choice((1, 2, 5))
        append_bytes = rng.choice((1, 300, 1 << 20))
        self.config = RaftConfig(
            heartbeat_ticks=heartbeat,
            election_ticks=heartbeat * rng.choice((2, 4, 6)) + rng.randrange(4),
            append_entries_max=rng.choice((1, 2, 1024)),
            append_bytes_max=append_bytes,
            # A network that reorders makes a wide window reject itself all day.
            inflight_messages_max=rng.choice((1, 2, 64 if self.ordered else 4)),
            inflight_bytes_max=max(append_bytes, rng.choice((1, 1000, 16 << 20))),
            uncommitted_bytes_max=max(append_bytes, rng.choice((500, 5000, 64 << 20))),
            snapshot_ticks_max=rng.choice((50, 200)),
            reads_pending_max=16,
            promotion_lag_entries_max=rng.choice((1, 10, 1000)),
        )
        self.disconnect_every_ms = sometimes(0.5, 20, 2000)
        self.reconnect_every_ms = sometimes(0.5, 5, 500)
        self.sleeps = rng.random() < 0.7


class Node:
    """One server: what survives a crash (disk), what does not, and its writer."""

    def __init__(self, server: Server, configuration: Configuration, tick_ms: float) -> None:
        self.server = server
        self.id = server.uuid
        self.tick_ms = tick_ms
        self.disk = SimLog(configuration)
        self.disk_hard_state = HardState()
        self.disk_commit = 0
        self.life = 0
        self.raft: Raft | None = None
        self.paused: list[Callable[[], None]] | None = None
        self.wiped = False
        self.commit = 0

    def start(self, config: RaftConfig, rng: random.Random) -> None:
        """Recovery: whatever is on the disk is durable, and all there is."""
        self.life += 1
        disk = self.disk
        self.memory = disk.copy()
        self.received: dict[tuple[int, int], int] = {}
        self.made: set[tuple[int, int]] = set()
        self.waiting: SimReady | None = None
        self.led_term = 0
        self.queue: list[SimReady] = []
        self.group: list[SimReady] = []
        self.raft = Raft(
            id=self.id,
            config=config,
            hard_state=self.disk_hard_state,
            log=LogView(
                base_index=disk.base_index,
                base_term=disk.base_term,
                runs=disk.runs(),
                last_index=disk.last_index,
                size_of=lambda index: self.memory[index].size_bytes,
            ),
            configurations=disk.configurations(),
            commit=self.disk_commit,
            rng=rng,
        )
        self.commit = self.raft.status().commit

    @property
    def up(self) -> bool:
        return self.raft is not None

    @property
    def leading(self) -> bool:
        return self.raft is not None and self.raft._role is Role.LEADER

    def configuration(self) -> Configuration:
        return self.memory.configurations()[-1][1]

    def apply(self, ready: SimReady, steps: int | None = None) -> None:
        """The write reaches the disk: all of it, or only the first `steps` of its steps."""
        done = 0
        if ready.truncate_from is not None:
            if done == steps:
                return
            self.disk.truncate(ready.truncate_from)
            done += 1
        for entry in ready.sim_entries:
            if done == steps:
                return
            self.disk.append(entry)
            done += 1
        if ready.snapshot is not None and done != steps:
            self.disk.reset(*ready.snapshot)


class Cluster:
    """The servers of one seed, the network between them, and time."""

    def __init__(self, seed: int, nodes: int | None = None) -> None:
        def stream(name: str) -> random.Random:
            return random.Random(f"{seed}/{name}")

        self.seed = seed
        self.swarm = Swarm(stream("swarm"), nodes)
        self.net, self.disk, self.faults, self.work = map(stream, ("net", "disk", "faults", "work"))
        self.now = 0.0
        self.trace = 0
        self.oracle = Oracle()
        self.events: list[tuple[float, int, Callable[[], None]]] = []
        self.sequence = 0
        self.values = 0
        self.blocked: set[tuple[str, str]] = set()
        self.last_delivery: dict[tuple[str, str], float] = {}
        self.healed = False
        self.reads: dict[int, int] = {}
        self.counts = {"messages": 0, "crashes": 0, "reads": 0, "changes": 0, "snapshots": 0}
        self.counts |= {"transfers": 0, "elections": 0, "pauses": 0, "partitions": 0, "wipes": 0}
        first = [self._server() for _ in range(self.swarm.nodes)]
        self.nodes: dict[str, Node] = {}
        self.lost_disks: dict[str, SimLog] = {}
        for server in first:
            self._add_node(server, Configuration(tuple(first)))
        self._schedule_faults()

    def _server(self) -> Server:
        self.values += 1
        return Server(f"u{self.values:03}", f"n{self.values}")

    def _add_node(self, server: Server, configuration: Configuration) -> Node:
        tick_ms = TICK_MS * self.faults.uniform(0.9, 1.1)
        node = self.nodes[server.uuid] = Node(server, configuration, tick_ms)
        self._start(node)
        return node

    def _start(self, node: Node) -> None:
        node.start(self.swarm.config, random.Random(f"{self.seed}/{node.id}/{node.life}"))
        life = node.life

        def tick(ticks: int) -> None:
            if node.life != life or not node.up:
                return
            if node.paused is None:
                self.act(node, lambda raft: raft.tick(ticks))
            quiet = node.raft.quiet_ticks() if node.raft and self.swarm.sleeps else 0
            self.after((quiet + 1) * node.tick_ms, lambda: tick(quiet + 1))

        self.after(self.faults.uniform(0, node.tick_ms), lambda: tick(1))

    # --- time ------------------------------------------------------------------------------------

    def after(self, delay_ms: float, action: Callable[[], None]) -> None:
        self.sequence += 1
        heapq.heappush(self.events, (self.now + delay_ms, self.sequence, action))

    def run_until(self, end_ms: float) -> None:
        events = self.events
        while events and events[0][0] <= end_ms:
            self.now, _, action = heapq.heappop(events)
            action()
        self.now = end_ms

    def record(self, *what: Any) -> None:
        self.trace = zlib.crc32(repr((round(self.now, 3), *what)).encode(), self.trace)

    # --- the driver ------------------------------------------------------------------------------

    def act(self, node: Node, action: Callable[[Raft], None]) -> None:
        """One input to a server, and all that follows from it."""
        if node.raft is None:
            return
        if node.paused is not None:
            node.paused.append(lambda: self.act(node, action))
            return
        try:
            action(node.raft)
            self._pump(node)
        except Crash:
            self.crash(node)

    def _pump(self, node: Node) -> None:
        assert node.raft is not None
        while node.waiting is None:
            ready = node.raft.ready()
            if ready is None:
                node.received.clear()
                return
            self._begin(node, ready)

    def _crash_point(self, node: Node) -> None:
        if self.faults.random() < self.swarm.crash_at_effect and not self.healed:
            raise Crash

    def _begin(self, node: Node, from_core: Ready) -> None:
        ready = self._remember(node, from_core)
        if ready.hard_state is None:
            self._check_appended(ready)
        self._crash_point(node)
        for message in ready.messages:
            self.send(node, message)
        self._crash_point(node)
        if ready.hard_state is None:
            self._finish(node, ready)
            return
        node.waiting = ready
        life = node.life

        def durable() -> None:
            if node.life == life and node.up:
                self.act(node, lambda _: self._hard_state_durable(node, ready))

        self.after(self.disk.expovariate(1 / self.swarm.disk_ms), durable)

    def _hard_state_durable(self, node: Node, ready: SimReady) -> None:
        assert ready.hard_state is not None
        self._save_hard_state(node, ready.hard_state)
        self._check_appended(ready)
        node.waiting = None
        self._crash_point(node)
        self._finish(node, ready)

    def _save_hard_state(self, node: Node, new: HardState) -> None:
        old, node.disk_hard_state = node.disk_hard_state, new
        require(new.term >= old.term, "term goes back", (node.id, old, new))
        self.oracle.entered(node.id, new.term, campaigns=new.voted_for == node.id)
        if new.voted_for is not None:
            self.oracle.voted(node.id, new.term, new.voted_for)

    def _remember(self, node: Node, ready: Ready) -> SimReady:
        """Bring the memory's log up to date, and give the new entries their values."""
        memory, entries, predecessors = node.memory, [], []
        if ready.truncate_from is not None:
            assert ready.truncate_from > node.commit
            memory.truncate(ready.truncate_from)
        for index, term, size_bytes, configuration in ready.entries:
            value = node.received.get((index, term))
            if value is None:
                # Appended here, perhaps by a leadership that is over by now.
                made = size_bytes == 0 or (index, term) in node.made
                require(made, "entry from nowhere", (node.id, index, term))
                self.values += 1
                value = self.values
                if configuration is not None:
                    before, old = memory.configurations()[-1]
                    self.oracle.configured(term, memory, before, old, configuration)
            entry = SimEntry(index, term, size_bytes, configuration, value)
            predecessors.append(memory.term_at(memory.last_index))
            memory.append(entry)
            entries.append(entry)
        if ready.truncate_from is not None or entries:
            self._check_configuration(node)
        return SimReady(ready, entries, predecessors)

    def _check_appended(self, ready: SimReady) -> None:
        """Not before the term is durable: a server that elects itself alone and crashes may use the
        term again, since nothing of it has left."""
        for entry, term in zip(ready.sim_entries, ready.predecessors, strict=True):
            self.oracle.appended(entry, term)

    def _check_configuration(self, node: Node) -> None:
        assert node.raft is not None
        said, found = node.raft._state.configurations, node.memory.configurations()[-1]
        if node.raft._state.log.last_index == node.memory.last_index:
            require(
                said.latest == found[1], "configuration in force", (node.id, said.latest, found)
            )

    def _finish(self, node: Node, ready: SimReady) -> None:
        for message in ready.messages_after_persist:
            self.send(node, message)
        self._crash_point(node)
        if ready.commit is not None:
            self._committed(node, ready.commit)
        if ready.soft_state is not None:
            leads = ready.soft_state.role is Role.LEADER
            node.led_term = ready.soft_state.term if leads else 0
            self.record(node.id, ready.soft_state.role.value, ready.soft_state.term)
            if ready.soft_state.role is Role.LEADER:
                self.counts["elections"] += 1
                self.oracle.elected(node.id, ready.soft_state.term, node.memory)
        for ticket, index in ready.reads:
            floor = self.reads.pop(ticket)
            if index is not None:
                self.counts["reads"] += 1
                require(index >= floor, "stale read", (node.id, index, floor))
        if ready.write or ready.snapshot:
            node.queue.append(ready)
            self._write(node)

    def _committed(self, node: Node, commit: int) -> None:
        old, node.commit = node.commit, commit
        self.record(node.id, "commit", commit)
        assert node.raft is not None
        self.oracle.commits(node.id, node.raft._state.term, node.memory, old, commit)
        term = node.raft._state.term
        if node.leading and node.led_term == term:
            # Figure 8: a leader counts replicas of its own entries only.
            own = node.memory.term_at(commit) == term
            require(own, "an entry of an older term counted", (node.id, term, commit))
        if node.leading or node.led_term:
            # A leader that removed itself does not lead any more when we hear of it. And a
            # configuration appended since it committed did not count yet.
            configurations = [c for i, c in node.memory.configurations() if i >= commit]
            configurations.append(
                node.memory.configurations(max(commit, node.memory.base_index))[-1][1]
            )
            # A lost disk held what it acknowledged, until it was lost.
            disks = self.lost_disks | {u: n.disk for u, n in self.nodes.items()}
            self.oracle.durable_on_majority(
                commit, node.memory.term_at(commit), [c.voter_ids for c in configurations], disks
            )

    # --- the disk --------------------------------------------------------------------------------

    def _write(self, node: Node) -> None:
        """One group at a time; all that waits goes together, a snapshot ends a group."""
        if node.group or not node.queue:
            return
        cut = next((i + 1 for i, r in enumerate(node.queue) if r.snapshot), len(node.queue))
        node.group, node.queue = node.queue[:cut], node.queue[cut:]
        life = node.life
        commit = node.commit

        def done() -> None:
            if node.life == life and node.up:
                group, node.group = node.group, []
                for ready in group:
                    node.apply(ready)
                node.disk_commit = max(node.disk_commit, min(commit, node.disk.last_index))
                self.act(node, lambda raft: self._written(node, raft, group))

        self.after(self.disk.expovariate(1 / self.swarm.disk_ms), done)

    def _written(self, node: Node, raft: Raft, group: list[SimReady]) -> None:
        self._crash_point(node)
        numbers = [r.write for r in group if r.write]
        if numbers:
            raft.persisted(numbers[-1])
        snapshot = group[-1].snapshot
        if snapshot is not None:
            self.counts["snapshots"] += 1
            node.memory.reset(*snapshot)
            raft.snapshot_installed(snapshot.index, snapshot.term)
        self._write(node)

    def crash(self, node: Node) -> None:
        """What was under way reached the disk up to some step; what waited is lost."""
        self.counts["crashes"] += 1
        self.record(node.id, "crash")
        if node.waiting is not None and self.disk.random() < 0.5:
            assert node.waiting.hard_state is not None
            self._save_hard_state(node, node.waiting.hard_state)
        steps = [r for r in node.group for _ in range(r.steps)]
        survived = self.disk.randint(0, len(steps))
        for ready in node.group:
            node.apply(ready, min(survived, ready.steps))
            survived -= min(survived, ready.steps)
        node.raft, node.paused = None, None
        if self.swarm.disconnect_every_ms is not None:
            for other in self._living():
                self.after(0.1, lambda other=other: self._disconnected(other, node.id))
        if not node.wiped:
            life = node.life
            self.after(
                self.faults.expovariate(1 / self.swarm.down_ms),
                lambda: self._start(node) if not node.up and node.life == life else None,
            )

    # --- the network -----------------------------------------------------------------------------

    def send(self, node: Node, message: Message) -> None:
        self._check_durable_before_send(node, message)
        values: tuple[int, ...] = ()
        if isinstance(message, AppendRequest):
            entries = [
                node.memory[i] for i in range(message.prev_index + 1, message.last_index + 1)
            ]
            values = tuple(e.value for e in entries)
            message = message._replace(entries=tuple(Entry(*e[:4]) for e in entries))
        elif isinstance(message, InstallSnapshot):
            if node.memory.base_index != message.index:
                return
            message = message._replace(configuration=node.memory.base_configuration)
        self.counts["messages"] += 1
        copies = 1
        if not self.healed:
            copies -= self.net.random() < self.swarm.loss
            copies += self.net.random() < self.swarm.duplicate
        for _ in range(copies):
            delay = self.net.expovariate(1 / (0.5 if self.healed else self.swarm.delay_ms))
            if self.swarm.ordered:
                link = (node.id, message.to)
                arrival = max(self.now + delay, self.last_delivery.get(link, 0.0))
                self.last_delivery[link] = arrival
                delay = arrival - self.now
            self.after(delay, lambda: self._deliver(message, values))

    def _deliver(self, message: Message, values: tuple[int, ...]) -> None:
        node = self.nodes.get(message.to)
        if node is None or not node.up or (message.sender, message.to) in self.blocked:
            return
        self.record(type(message).__name__, *message[:5])

        def step(raft: Raft) -> None:
            if isinstance(message, AppendRequest):
                for entry, value in zip(message.entries, values, strict=True):
                    node.received[entry.index, entry.term] = value
            raft.step(message)

        self.act(node, step)

    def _check_durable_before_send(self, node: Node, message: Message) -> None:
        """No message that depends on state leaves before that state is on the disk."""
        kind, hard, disk = type(message).__name__, node.disk_hard_state, node.disk
        pre_vote = isinstance(message, VoteRequest | VoteResponse) and message.pre_vote
        if not pre_vote:
            require(message.term <= hard.term, "term sent before persisted", (kind, node.id))
        if isinstance(message, VoteResponse) and message.granted and not message.pre_vote:
            # With a later term durable, no other vote of this one can follow either.
            saved = hard.term > message.term or hard == (message.term, message.to)
            require(saved, "vote sent before persisted", (node.id, hard, message))
            self.oracle.voted(node.id, message.term, message.to)
        if isinstance(message, VoteRequest) and not message.pre_vote:
            saved = hard.term > message.term or hard == (message.term, node.id)
            require(saved, "own vote not persisted", (node.id, hard))
            self.oracle.entered(node.id, message.term, campaigns=True)
        assert node.raft is not None
        current = message.term == node.raft._state.term
        if isinstance(message, AppendResponse) and not message.rejected and current:
            held = message.index <= disk.base_index or (
                message.index <= disk.last_index
                and disk.term_at(message.index) == node.memory.term_at(message.index)
            )
            require(held, "ack before persist", (node.id, message.index, disk.last_index))

    # --- faults and work -------------------------------------------------------------------------

    def _every(self, mean_ms: float, rng: random.Random, action: Callable[[], None]) -> None:
        if not mean_ms:
            return

        def again() -> None:
            if not self.healed:
                action()
                self.after(rng.expovariate(1 / mean_ms), again)

        self.after(rng.expovariate(1 / mean_ms), again)

    def _schedule_faults(self) -> None:
        swarm, faults, work = self.swarm, self.faults, self.work
        self._every(swarm.crash_every_ms, faults, self._fault_crash)
        self._every(swarm.pause_every_ms, faults, self._fault_pause)
        self._every(swarm.partition_every_ms, faults, self._fault_partition)
        self._every(swarm.campaign_every_ms, faults, self._fault_campaign)
        self._every(swarm.wipe_every_ms, faults, self._fault_wipe)
        self._every(swarm.change_every_ms, work, self._work_change)
        self._every(swarm.transfer_every_ms, work, self._work_transfer)
        self._every(swarm.compact_every_ms, work, self._work_compact)
        self._every(swarm.propose_every_ms, work, self._work_propose)
        self._every(swarm.read_every_ms, work, self._work_read)
        self._every(swarm.stray_append_every_ms, work, self._work_stray_append)
        self._every(swarm.unreachable_every_ms, work, self._work_unreachable)
        self._every(swarm.disconnect_every_ms, work, self._work_disconnect)
        self._every(swarm.reconnect_every_ms, work, self._work_reconnect)

    def _living(self) -> list[Node]:
        return [n for n in self.nodes.values() if n.up]

    def _leaders(self) -> list[Node]:
        return [n for n in self._living() if n.leading]

    def _fault_crash(self) -> None:
        # Leaders more often: that is where the work is.
        candidates = self._leaders() if self.faults.random() < 0.4 else self._living()
        if candidates:
            self.crash(self.faults.choice(candidates))
        if self.faults.random() < 0.1:
            for node in self._living():
                self.crash(node)

    def _fault_pause(self) -> None:
        candidates = self._leaders() if self.faults.random() < 0.5 else self._living()
        candidates = [n for n in candidates if n.paused is None]
        if candidates:
            self.counts["pauses"] += 1
            node = self.faults.choice(candidates)
            node.paused = []
            life = node.life
            longest = 6 * self.swarm.config.election_ticks * TICK_MS
            self.after(self.faults.uniform(0, longest), lambda: self._resume(node, life))

    def _resume(self, node: Node, life: int) -> None:
        if node.life == life and node.up and node.paused is not None:
            backlog, node.paused = node.paused, None
            for action in backlog:
                action()

    def _fault_partition(self) -> None:
        self.counts["partitions"] += 1
        ids, rng = list(self.nodes), self.faults
        rng.shuffle(ids)
        half = ids[: rng.randint(1, len(ids))]
        match rng.randrange(8):
            case 0 | 1:
                self.blocked = set()
            case 2:
                self.blocked = {(a, b) for a in ids for b in ids if (a in half) != (b in half)}
            case 3:
                self.blocked = {(a, b) for a in half for b in ids if b not in half}
            case 4:  # a bridge: two sides that only ids[0] can see
                left, right = ids[1 : len(ids) // 2 + 1], ids[len(ids) // 2 + 1 :]
                pairs = [(a, b) for a in left for b in right]
                self.blocked = {*pairs, *((b, a) for a, b in pairs)}
            case 5 | 6 if leaders := self._leaders():  # it goes on appending what nobody gets
                alone = rng.choice(leaders).id
                self.blocked = {p for b in ids if b != alone for p in ((alone, b), (b, alone))}
            case _:  # single directed links
                self.blocked |= {(rng.choice(ids), rng.choice(ids)) for _ in range(2)}

    def _fault_campaign(self) -> None:
        """A TimeoutNow from nowhere: an election for no reason, without a pre-vote."""
        if living := self._living():
            node = self.faults.choice(living)
            self.act(node, lambda raft: raft.step(TimeoutNow("", node.id, raft._state.term)))

    def _wiped_members(self) -> list[str]:
        members = {s.uuid for n in self._living() for s in n.configuration().servers}
        return sorted(u for u in members if u not in self.nodes or self.nodes[u].wiped)

    def _fault_wipe(self) -> None:
        """A disk is lost: this uuid never comes back. One at a time, or nothing could go on."""
        living = [n for n in self._living() if len(n.configuration().voters) >= 3]
        if living and not self._wiped_members() and len(living) == len(self.nodes):
            self.counts["wipes"] += 1
            node = self.faults.choice(living)
            node.wiped = True
            self.crash(node)
            self.lost_disks[node.id] = node.disk
            del self.nodes[node.id]

    def _work_change(self) -> None:
        leaders = self._leaders()
        if not leaders:
            return
        rng = self.work
        leader = rng.choice(leaders)
        configuration = leader.configuration()
        wiped = [u for u in self._wiped_members() if configuration.find(u) is not None]
        if wiped:
            change: Any = Remove(wiped[0])
        elif self._wiped_members():
            return
        elif configuration.learners and rng.random() < 0.7:
            change = Promote(rng.choice(configuration.learners).uuid)
        elif rng.random() < 0.5 and len(configuration.servers) < 6:
            outside = [n.server for n in self._living() if not configuration.find(n.id)]
            server = rng.choice(outside) if outside and rng.random() < 0.5 else self._server()
            if server.uuid not in self.nodes:
                self._add_node(server, Configuration())
            change = AddLearner(server)
        else:
            change = Remove(rng.choice(configuration.servers).uuid)

        def propose(raft: Raft) -> None:
            self._try(lambda: self._append(leader, raft.propose_change(change), 1), count="changes")

        self.act(leader, propose)

    def _try(self, action: Callable[[], object], count: str | None = None) -> None:
        try:
            action()
        except ProglogError:
            return
        if count:
            self.counts[count] += 1

    def _append(self, node: Node, at: tuple[int, int], entries: int) -> None:
        node.made |= {(at[0] + i, at[1]) for i in range(entries)}

    def _work_transfer(self) -> None:
        if leaders := self._leaders():
            to = self.work.choice([None, *self.nodes])
            leader = self.work.choice(leaders)
            self.act(leader, lambda raft: self._try(lambda: raft.transfer(to), "transfers"))

    def _work_compact(self) -> None:
        node = self.work.choice(self._living() or [None])
        if node is None or node.paused is not None or node.waiting or node.group or node.queue:
            return
        index = min(node.commit, node.disk.last_index)
        if self.work.random() < 0.3:
            index = self.work.randint(node.disk.base_index, index)
        node.disk.compact(index)
        node.memory.compact(index)
        self.act(node, lambda raft: raft.compacted(index))

    def _work_propose(self) -> None:
        if leaders := self._leaders():
            sizes = [self.work.randint(1, 300) for _ in range(self.work.randint(1, 3))]
            leader = self.work.choice(leaders)

            def propose(raft: Raft) -> None:
                self._try(lambda: self._append(leader, raft.propose(sizes), len(sizes)))

            self.act(leader, propose)

    def _work_disconnect(self) -> None:
        """A connection ends though nobody has."""
        if living := self._living():
            self._disconnected(self.work.choice(living), self.work.choice(list(self.nodes)))

    def _disconnected(self, node: Node, peer: str) -> None:
        self.act(node, lambda raft: raft.disconnected(peer))

    def _work_reconnect(self) -> None:
        """A connection is there again, though it was never lost."""
        if living := self._living():
            peer = self.work.choice(list(self.nodes))
            self.act(self.work.choice(living), lambda raft: raft.reconnected(peer))

    def _work_unreachable(self) -> None:
        """The bulk connection is lost, or the driver says so for nothing."""
        if leaders := self._leaders():
            peer = self.work.choice(list(self.nodes))
            self.act(self.work.choice(leaders), lambda raft: raft.unreachable(peer))

    def _work_stray_append(self) -> None:
        """A leader may send any part of its log to anybody at any time; ours seldom has reason to,
        and a follower must not rely on that."""
        leaders = [n for n in self._leaders() if n.paused is None and n.waiting is None]
        if not leaders:
            return
        leader, rng = self.work.choice(leaders), self.work
        term, memory = leader.raft._state.term, leader.memory
        to = rng.choice(list(self.nodes))
        if to == leader.id or leader.raft._state.log.last_index != memory.last_index:
            return
        # About where the logs may differ: behind what the receiver knows to be committed.
        prev = max(memory.base_index, self.nodes[to].commit + rng.randrange(3))
        if prev > memory.last_index:
            return
        last = min(memory.last_index, prev + rng.randrange(3))
        prev_term = memory.term_at(prev)
        self.send(leader, AppendRequest(leader.id, to, term, prev, prev_term, last, leader.commit))

    def _work_read(self) -> None:
        """The read must see whatever was committed anywhere before it was asked for."""
        if leaders := self._leaders():
            self.values += 1
            ticket = self.values

            def ask(raft: Raft) -> None:
                self.reads[ticket] = self.oracle.committed_max
                self._try(lambda: raft.request_read(ticket))

            self.act(self.work.choice(leaders), ask)

    # --- the two phases --------------------------------------------------------------------------

    def run(self) -> None:
        self.run_until(self.swarm.duration_ms)
        self.heal()
        self.check_liveness()

    def heal(self) -> None:
        self.healed = True
        self.blocked = set()
        for node in list(self.nodes.values()):
            self._resume(node, node.life)
            if not node.up and not node.wiped:
                self._start(node)

    def check_liveness(self) -> None:
        """A leader, a commit in its term, and equal logs everywhere, within bounded time."""
        leader = self._wait(self._converged)
        # It goes on: one more entry reaches everybody, and reads are answered.
        target = leader.memory.last_index + 1
        self.act(leader, lambda raft: self._append(leader, raft.propose([1]), 1))
        self._wait(lambda: self._converged() if leader.commit >= target else None)

    def _wait(self, done: Callable[[], Node | None]) -> Node:
        """Something must grow within so many election timeouts, disk delays and snapshots."""
        config = self.swarm.config
        patience_ms = (80 * config.election_ticks + 2 * config.snapshot_ticks_max) * TICK_MS
        patience_ms += 100 * self.swarm.disk_ms
        best, deadline, last = 0, self.now + patience_ms, self.now + 100 * patience_ms
        while (node := done()) is None:
            grown = sum(n.commit + n.disk.last_index for n in self.nodes.values())
            if grown > best:
                best, deadline = grown, min(last, self.now + patience_ms)
            require(self.now < deadline, "liveness", self._describe())
            self.run_until(self.now + TICK_MS * 5)
        return node

    def _converged(self) -> Node | None:
        leaders = self._leaders()
        if not leaders:
            return None
        leader = max(leaders, key=lambda n: n.raft._state.term)
        last = leader.memory.last_index
        if leader.commit != last or leader.disk.last_index != last:
            return None
        for server in leader.configuration().servers:
            node = self.nodes.get(server.uuid)
            if node is None:
                continue
            if node.commit != last or node.disk.last_index != last:
                return None
            if node.disk.term_at(last) != leader.memory.term_at(last):
                return None
        return leader

    def _describe(self) -> str:
        return "; ".join(
            f"{n.id} {n.raft._role.value} term {n.raft._state.term} leader {n.raft._state.leader} "
            f"commit {n.commit} last {n.memory.last_index} disk {n.disk.last_index} "
            f"voters {n.configuration().voter_ids} {n.raft.status().peers if n.leading else ''}"
            for n in self._living()
            if n.raft is not None
        )


class SimReady:
    """A Ready with the values of its entries."""

    def __init__(self, ready: Ready, entries: list[SimEntry], predecessors: list[int]) -> None:
        self.ready = ready
        self.sim_entries = entries
        self.predecessors = predecessors
        self.snapshot = ready.snapshot
        self.truncate_from = ready.truncate_from
        self.steps = len(entries) + (ready.truncate_from is not None) + (ready.snapshot is not None)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.ready, name)


def run_seed(seed: int, nodes: int | None = None) -> Cluster:
    """One run. Raises Violation, or whatever assertion of the core failed."""
    cluster = Cluster(seed, nodes)
    cluster.run()
    return cluster


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=None, help="run this seed only")
    parser.add_argument("--first", type=int, default=1, help="first of many seeds")
    parser.add_argument("--seconds", type=float, default=20.0, help="of CPU, for many seeds")
    parser.add_argument("--nodes", type=int, default=None, help="default: drawn per seed")
    options = parser.parse_args()
    began, simulated_ms, commits, seeds = time.process_time(), 0.0, 0, 0
    totals: dict[str, int] = {}
    seed = options.first if options.seed is None else options.seed
    while True:
        try:
            cluster = run_seed(seed, options.nodes)
        except AssertionError as error:
            check = error.check if isinstance(error, Violation) else "assertion"
            print(f"seed {seed} FAILED [{check}] {error!r}")
            print(f"replay: python tests/raft/core_sim.py --seed {seed}")
            if options.seed is not None:
                raise
            return 1
        seeds += 1
        simulated_ms += cluster.now
        commits += cluster.oracle.commits_checked
        for name, count in cluster.counts.items():
            totals[name] = totals.get(name, 0) + count
        spent = time.process_time() - began
        if options.seed is not None or spent >= options.seconds:
            break
        seed += 1
    print(
        f"{seeds} seeds, {simulated_ms / 3.6e6:.3f} simulated hours in {spent:.1f} s of CPU "
        f"({simulated_ms / 1000 / spent:.0f}x real time), {commits} commits checked "
        f"({commits / spent:.0f}/s), trace {cluster.trace:08x}"
    )
    print(", ".join(f"{name} {count}" for name, count in totals.items()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
