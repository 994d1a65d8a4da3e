"""One simulated world: nodes, clients, faults, and what is demanded of them.

First the safety phase, in which anything goes wrong and nothing may be wrong. Then the liveness
phase: a majority is healed, and has to get going within a bounded time, and the rest after it.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Coroutine
from functools import partial
from typing import Any

import structlog

from proglog import limits
from proglog.agent.policy import may_leave
from proglog.batch import Kind, ProposedBatch, decode_all
from proglog.errors import OffsetOutOfRange, ProglogError
from proglog.raft.configuration import Server
from proglog.raft.hard_state import FILE_NAME
from proglog.replica.replica import Replica
from proglog.types import Appended
from tests.doubles.inode import Operation
from tests.sim import faults as nemesis
from tests.sim.clients import Comparer, Consumer, Linearizer, Producer
from tests.sim.disks import FOLDER, read_batches
from tests.sim.events import Events
from tests.sim.faults import Nemesis
from tests.sim.history import History
from tests.sim.node import OPERATIONS_OF_A_CUT, PORT, START_MS, SimNode
from tests.sim.oracle import Oracle, Violation, require
from tests.sim.probe import Probe
from tests.sim.processes import Gone, Process, ProcessLoop, is_power_cut
from tests.sim.settings import ELECTION_SECONDS, Settings

LEADER_SECONDS_MAX = 10 * 2 * ELECTION_SECONDS
"""A healed majority has a leader within ten election timeouts,"""
CONVERGE_SECONDS_MAX = 40.0
"""and its followers are where it is within this time."""
FORM_SECONDS_MAX = 20.0
LAG_MAX = 50
"""While a server is this many batches behind, the operator removes no other one."""
MEND_SECONDS_MAX = 120.0
"""Damage is found by reading everything now and then."""
PROBE_RATE = 0.002
PROBE_RATE_RARE = 0.1
"""How many operations of a disk are looked at more closely, and how many of the rare ones: those on
the hard state and those after a cut."""
PROBED_SEGMENTS = 20
"""A log of more segments is looked at less often."""


class World:
    """See the module."""

    def __init__(
        self, settings: Settings, kept: list[int] | None = None, events: Events | None = None
    ) -> None:
        self.settings = settings
        self.events = events
        self.loop = ProcessLoop(settings.seed)
        self.loop.set_exception_handler(self._on_failure)
        self.loop.network.weather.buffer_bytes = settings.buffer_bytes
        self.oracle = Oracle()
        self.history = History()
        self.lost_with: dict[str, int] = {}
        """By uuid of a server whose disk was wiped: up to which batch it had been durable there."""
        self.chance = self.loop.chance("world")
        self._probes = self.loop.chance("probes")
        self.client_loss_rate = settings.client_loss_rate
        self.give_up_seconds = 20.0
        self.disk_errors = False
        self.lost_disk = False
        self.is_quiet = False
        self.is_over = False
        self.next_acknowledged = 0
        self.faults = nemesis.draw(settings)
        if kept is not None:
            self.faults = [fault for fault in self.faults if fault.number in kept]
        count = settings.nodes + settings.spare_nodes + settings.learners
        self.nodes = [SimNode(self, f"n{number}") for number in range(count)]
        # Those that are wrong are the last ones: the first begins the cluster alone.
        wrong = count - 1 if settings.wrong_clocks is None else settings.wrong_clocks
        self.wrong_clocks = self.nodes[count - wrong :]
        self.wanted = set(self._first_names())
        if events is not None:
            events.now, events.nodes = (lambda: self.loop.now), self.nodes
        self._tasks: list[asyncio.Task[Any]] = []
        self._undos: list[tuple[Callable[..., Any], tuple[Any, ...]]] = []
        self._violation: BaseException | None = None
        self._healed = False
        self._ended = self.loop.create_future()

    # --- running ---------------------------------------------------------------------------------

    def run(self) -> None:
        """Both phases. Raises Violation, or what a broken node raised."""
        with self.settings.in_force():
            main = self.loop.create_task(self._phases())
            main.add_done_callback(lambda _: self.loop.stop())
            try:
                self.loop.run_forever()
            finally:
                done = main.done() and not main.cancelled()
                error = main.exception() if done else None
                self.loop.end()
        if self._violation is not None:
            raise self._violation
        if error is not None:
            raise error

    async def _phases(self) -> None:
        await self._form()
        producers = [Producer(self, f"p{n}") for n in range(self.settings.producers)]
        clients = [
            *producers,
            *(Comparer(self, f"c{n}") for n in range(3)),
            Consumer(self, "r0", 0.0),
            Consumer(self, "r1", 0.3),
            Linearizer(self, "l0"),
        ]
        loads = [self.spawn(client.run()) for client in clients]
        self.spawn(self._operate())
        await Nemesis(self).run(self.faults)
        await asyncio.sleep(max(self.settings.safety_seconds - self.loop.now, 0))
        await self._liveness()
        await self._within(
            30.0, "the producers end", lambda: all(load.done() for load in loads[: len(producers)])
        )
        await self._within(CONVERGE_SECONDS_MAX, "followers converge", self._is_converged)
        self.is_over = True
        for node in self._members():
            await self._drain(node)
        await self._within(CONVERGE_SECONDS_MAX, "log time is right", self._is_time_right)
        await self._within(MEND_SECONDS_MAX, "damage is mended", self._is_mended)
        await self._within(CONVERGE_SECONDS_MAX, "followers converge", self._is_converged)
        self._compare_stores()
        self.history.check()

    def spawn(self, coroutine: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = self.loop.create_task(coroutine)
        task.add_done_callback(self._task_done)
        self._tasks.append(task)
        return task

    def _task_done(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            self.fail(error)

    def fail(self, error: BaseException) -> None:
        """The world ends here."""
        if self._violation is None:
            self._violation = error
        self.loop.stop()

    def _on_failure(self, _loop: asyncio.AbstractEventLoop, failure: dict[str, Any]) -> None:
        """An exception that nobody took."""
        error = failure.get("exception")
        # Of a process that was ended; its tasks would have taken it.
        orphaned = isinstance(error, ProglogError) and "future" in failure
        if not orphaned and not is_power_cut(error):
            self.fail(error or Violation("no node fails", str(failure)))

    def look_at(self, node: SimNode, process: Process) -> None:
        """After each callback of a process: has anything happened that must not?"""
        try:
            if node.is_open:
                node.look()
            if process.failure or not node.disk.powered:
                self._bury(node, process)
        except BaseException as error:  # all that goes wrong ends the world
            self.fail(error)

    def _bury(self, node: SimNode, process: Process) -> None:
        """The machine lost its power, or the daemon ended itself: is that how it should be?"""
        if not node.disk.powered:
            node.power_cut(node.plan)
            return
        why = node.explain()
        if why:
            raise Violation("no node fails", why) from process.failure
        node.kill()

    def trace(self, *event: object) -> None:
        self.loop.trace.add(self.loop.now, *event)

    def note(self, who: str, what: object) -> None:
        """An event for whoever reads them."""
        if self.events is not None:
            self.events.add(who, what)

    # --- what faults need ------------------------------------------------------------------------

    def later(self, seconds: float, undo: Any, *arguments: Any) -> None:
        """Ends a fault in its time, or with the safety phase."""
        self._undos.append((undo, arguments))
        self.loop.call_later(seconds, self._undo, undo, arguments)

    def _undo(self, undo: Any, arguments: tuple[Any, ...]) -> None:
        if not self._healed:
            undo(*arguments)

    def start(self, node: SimNode) -> None:
        if not node.is_up:
            node.start()

    def calm(self) -> None:
        weather = self.loop.network.weather
        weather.latency_seconds_mean = self.settings.latency_seconds
        weather.latency_seconds_min = self.settings.latency_seconds / 10
        self.client_loss_rate = self.settings.client_loss_rate

    def is_whole(self) -> bool:
        """Whether the voters are those who are wanted, and all know it."""
        leaders = [node for node in self.nodes if node.leads]
        if not leaders or not all(node.is_open for node in self.nodes):
            return False
        leader = max(leaders, key=lambda node: node.core._state.term)
        state = leader.core._state
        configuration = state.configurations.latest
        if state.configurations.latest_index > leader.replica.applied_index:
            return False
        uuids = {node.uuid for node in self.nodes if node.name in self.wanted}
        voters = set(configuration.voter_ids)
        all_ids = {server.uuid for server in configuration.servers}
        return all_ids == uuids and len(voters) == min(len(uuids), limits.voters_max)

    def acknowledged(self, proposed: ProposedBatch, answer: Appended) -> None:
        body = proposed.body
        self.oracle.acknowledged(answer.offset, body.count, body.crc)
        self.next_acknowledged = max(self.next_acknowledged, answer.offset + body.count)

    def require_majority_durable(self, node: SimNode, index: int) -> None:
        """A batch is just being committed: a majority of the disks must have it for good."""
        holders = {each.uuid for each in self.nodes if each.uuid and each.is_durable(index)}
        holders |= {uuid for uuid, last in self.lost_with.items() if index <= last}
        sets = [c.voter_ids for _, c in node.core._state.configurations.entries()]
        if not any(2 * len(holders.intersection(voters)) > len(voters) for voters in sets):
            raise Violation(
                "committed is durable",
                f"{node.name} commits {index}, which only {sorted(holders)} of {sets} would keep",
            )

    # --- time ------------------------------------------------------------------------------------

    @property
    def true_ms(self) -> float:
        """What right clocks show."""
        return START_MS + 1000 * self.loop.now

    @property
    def clock_error_ms(self) -> float | None:
        """How wrong agreed time may be; None if so many clocks are wrong that it may be anything.
        Where monotonic clocks run badly a sample is worse the older it is."""
        if self.settings.wrong_clocks not in {0, 1}:
            return None
        off = max(abs(rate - 1) for rate in self.settings.monotonic_rates)
        return 1000 + 1000 * off * limits.clock_sample_seconds_max

    def require_stamp(self, node: SimNode, stamp: int, last: int) -> None:
        """A leader stamps a batch: nobody's wrong clock moves log time ahead."""
        error = self.clock_error_ms
        may_go_back = error is None and "fix_time" in self.settings.faults
        ascends = stamp >= last or may_go_back
        require(ascends, "log time goes back", f"{node.name} stamps {stamp} after {last}")
        if error is not None and stamp - self.true_ms > error:
            ahead = (stamp - self.true_ms) / 1000
            raise Violation("log time is true", f"{node.name} stamps a batch {ahead:.3f} s ahead")

    def require_old(self, node: SimNode, last_index: int) -> None:
        """A node deletes batches up to this one."""
        config, error = self.settings.log, self.clock_error_ms
        if config.retention_bytes is not None or config.retention_seconds is None or error is None:
            return
        # Batches without records go with the last ones that have some.
        while last_index and self.oracle.committed[last_index - 1].kind != Kind.DATA:
            last_index -= 1
        if not last_index:
            return
        self.oracle.counts["aged"] += 1
        age = self.true_ms - self.oracle.committed[last_index - 1].timestamp
        require(
            age >= 1000 * config.retention_seconds - error,
            "nothing young is deleted",
            f"{node.name} deletes batch {last_index}, {age / 1000:.3f} s old",
        )

    def _is_time_right(self) -> bool:
        """Whether the next stamp would be."""
        leader, error = self._leader(), self.clock_error_ms
        if error is None or self.settings.monotonic_rates != (1.0,):
            # Where a monotonic clock runs 40 % too fast no clock seems to stand for ten seconds.
            return True
        return leader is not None and abs(leader.replica.stamps.now_ms() - self.true_ms) <= error

    # --- the operator ----------------------------------------------------------------------------

    async def _form(self) -> None:
        self.calm()
        self.nodes[0].bootstrap = True
        for node in self.nodes:
            node.start()
        self.spawn(self._form_members())
        await self._within(FORM_SECONDS_MAX, "the cluster forms", self.is_whole)

    async def _form_members(self) -> None:
        while not self.is_whole():
            await self._reconcile()
            await asyncio.sleep(0.05)

    async def _operate(self) -> None:
        """Adds who is wanted and removes who is not, as far as the leader lets it; in the liveness
        phase also starts what has stopped."""
        while True:
            await asyncio.sleep(self.chance.uniform(0.1, 0.4))
            for node in self.nodes if self._healed else ():
                if node.is_open and node.is_set_back and node.replica.standing.doubt:
                    self.oracle.counts["set back, and doubted"] += 1
                    node.renew()
                elif self._is_beyond_repair(node):
                    node.wipe()
                if not node.is_up:
                    node.start()
            await self._reconcile()

    def _is_beyond_repair(self, node: SimNode) -> bool:
        """It refuses to start, or its damage is where the others do not hold the log any more: only
        they can tell that, so somebody has to replace it."""
        if node.must_be_replaced:
            return True
        if not node.is_rotten or not node.is_open or node.is_mended():
            return False
        others = [each for each in self.nodes if each.is_open and each is not node]
        return all(each.base_index >= node.first_damaged() for each in others)

    async def _reconcile(self) -> None:
        leaders = [node for node in self.nodes if node.leads]
        if not leaders:
            return
        leader = self.chance.choice(leaders)
        members = leader.replica.members
        configuration = leader.replica.leadership.configuration
        for node in self.nodes:
            known = node.uuid and configuration.find(node.uuid) is not None
            # The second of two gets its vote from an operator, or not at all.
            pair = len(self.wanted) == 2
            waits = pair and known and not configuration.is_voter(node.uuid)
            if node.name in self.wanted and (not known or waits) and node.is_open:
                server = Server(node.uuid, node.name, f"{node.name}:{PORT}")
                await self._ask(leader, partial(members.add, server, by_operator=pair))
            elif node.name not in self.wanted and known:
                await self._ask(leader, partial(self._remove, leader.replica, node.uuid))

    async def _remove(self, replica: Replica, uuid: str) -> None:
        """As the agent does it: decided and proposed in one step, while the rest is a quorum that
        answers. An operator also knows who has lost a disk before the leader notices, and that with
        one who is far behind in the quorum all would wait for that one."""
        await replica.members.turn()
        status = replica.status()
        near = status.last_index - LAG_MAX
        healthy = {status.id, *(p.id for p in status.peers if p.active and p.match >= near)}
        if may_leave(status.configuration, healthy - self.lost_with.keys(), uuid):
            await replica.members.remove(uuid)

    async def _ask(self, leader: SimNode, change: Callable[[], Awaitable[None]]) -> None:
        if leader.process is None:
            return
        with contextlib.suppress(ProglogError, Gone, TimeoutError):
            async with asyncio.timeout(1.0):
                await leader.process.call(change)
            self.oracle.counts["changes"] += 1

    def probe(self, node: SimNode, operation: Operation) -> None:
        """Before some operations of a disk: would a power cut here, or a rotten bit, take away what
        was promised?"""
        rate = PROBE_RATE
        if node.operations_since_cut < OPERATIONS_OF_A_CUT:
            node.operations_since_cut += 1
            rate = PROBE_RATE_RARE
        elif str(operation.path).endswith(FILE_NAME):
            rate = PROBE_RATE_RARE
        # A probe opens everything: where that is much, there are fewer.
        rate /= max(len(node.replica.log._segments) / PROBED_SEGMENTS, 1.0)
        if self._probes.random() < rate and not node.is_rotten and not self.is_over:
            try:
                Probe(node, self._probes).run()
            except BaseException as error:  # it must not end in the node's hands
                self.fail(error)

    # --- liveness --------------------------------------------------------------------------------

    async def _liveness(self) -> None:
        self._heal()
        await self._within(LEADER_SECONDS_MAX, "a leader", lambda: self._leader() is not None)
        before = self.next_acknowledged
        await self._within(
            CONVERGE_SECONDS_MAX, "an append", lambda: self.next_acknowledged > before
        )
        self.is_quiet = True
        await self._within(CONVERGE_SECONDS_MAX, "every server is a member", self.is_whole)

    def _heal(self) -> None:
        self.trace("heal")
        self.note("", "all faults end")
        self._healed = True
        self.loop.network.heal()
        self.calm()
        for node in self.nodes:
            if node.process is not None:
                node.process.resume()
            node.has_space()
            node.disk.faults.power_cut_at = None
            node.disk.faults.next_error.clear()
            node.set_disk_seconds(self.settings.disk_seconds)
            # One cold read for each of hundreds of batches would take longer than what is allowed.
            node.set_reader_seconds(min(0.01, self.settings.reader_seconds))
            self.wanted.update(self._first_names())
            self.start(node)

    def _first_names(self) -> list[str]:
        count = self.settings.nodes + self.settings.learners
        return [node.name for node in self.nodes[:count]]

    def _leader(self) -> SimNode | None:
        leaders = [node for node in self.nodes if node.leads and node.replica.is_ready]
        return leaders[0] if len(leaders) == 1 else None

    def _is_converged(self) -> bool:
        leader = self._leader()
        if leader is None:
            return False
        tip = leader.replica.log.tip
        return all(
            node.is_open
            and node.replica.log.tip == tip
            and node.replica.applied_index == tip.index
            and node.replica.log.durable_index == tip.index
            for node in self.nodes
            if leader.replica.leadership.configuration.find(node.uuid)
        )

    def _is_mended(self) -> bool:
        return all(node.is_mended() for node in self.nodes if node.is_open)

    async def _within(self, seconds: float, what: str, holds: Callable[[], bool]) -> None:
        deadline = self.loop.now + seconds
        while not holds():
            if self.loop.now > deadline:
                raise Violation("liveness", f"not within {seconds} s: {what}. {self._describe()}")
            await asyncio.sleep(0.02)

    def _describe(self) -> str:
        return "; ".join(node.describe() for node in self.nodes)

    def _members(self) -> list[SimNode]:
        leader = self._leader()
        assert leader is not None
        configuration = leader.replica.leadership.configuration
        return [node for node in self.nodes if configuration.find(node.uuid)]

    async def _drain(self, node: SimNode) -> None:
        """Everything that was acknowledged and is retained is served by every node."""
        position = 0
        deadline = self.loop.now + CONVERGE_SECONDS_MAX
        while not node.is_open or position < node.replica.next_offset:
            require(self.loop.now < deadline, "liveness", f"{node.name} does not serve {position}")
            try:
                position = await self._read_on(node, position)
            except OffsetOutOfRange as error:
                position = error.number("earliest") or 0
            except (ProglogError, Gone):
                # It is damaged and mends itself from a peer, or was just started.
                await asyncio.sleep(0.1)
        require(
            position >= self.next_acknowledged,
            "durability",
            f"{node.name} has {position} records, {self.next_acknowledged} were acknowledged",
        )

    async def _read_on(self, node: SimNode, position: int) -> int:
        if node.process is None or not node.is_open:
            raise Gone
        chunk = await node.process.call(partial(node.replica.read, position, 64_000))
        for records in decode_all(chunk.data):
            self.history.read(records.base_offset, records.values, self.loop.now)
        return chunk.next_offset

    def _compare_stores(self) -> None:
        """The same bytes from the highest base to the lowest end, read past all of Proglog."""
        stores = [
            {batch.index: batch.data for batch in read_batches(node.disk, FOLDER)}
            for node in self._members()
        ]
        first = max(min(store, default=0) for store in stores)
        last = min(max(store, default=0) for store in stores)
        ends = [max(store, default=0) for store in stores]
        committed = len(self.oracle.committed)
        require(last == committed, "durability", f"{ends} are left of {committed} batches")
        for index in range(first, last + 1):
            crc = self.oracle.committed[index - 1].header_crc
            found = {store.get(index) for store in stores}
            require(len(found) == 1, "stores are equal", f"batch {index} differs between disks")
            data = found.pop()
            require(
                data is not None and int.from_bytes(data[:4], "little") == crc,
                "durability",
                f"batch {index} is not the one that was committed",
            )


def silence() -> None:
    """What nodes log is for people; a simulated minute has an hour of it."""
    structlog.configure(
        processors=[],
        wrapper_class=structlog.make_filtering_bound_logger(50),
        logger_factory=structlog.ReturnLoggerFactory(),
    )


def run_seed(seed: int, nodes: int | None = None, kept: list[int] | None = None) -> World:
    """One world. Raises what is wrong with it."""
    world = World(Settings.draw(seed, nodes), kept)
    world.run()
    return world
