"""One replicated log, as gateways and services see it.

A replica is the log engine, the consensus core with its driver, and the replicated state. All
decisions are made on the loop, each in one step: check, then act, with no `await` between.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Sequence
from dataclasses import replace

import structlog

from proglog import limits
from proglog.aio.tasks import Tasks
from proglog.batch import ProposedBatch
from proglog.config import LogConfig
from proglog.errors import (
    CorruptionError,
    ProglogError,
    RangeCorrupt,
    Unavailable,
    UnknownFormat,
)
from proglog.log.format import Tip
from proglog.log.log import Log
from proglog.log.names import DEFAULT_GROUP
from proglog.log.operations import Group
from proglog.log.snapshot import Snapshot
from proglog.peers.peers import Peers
from proglog.ports import Offload, Ports
from proglog.raft.config import RaftConfig
from proglog.raft.configuration import Configuration
from proglog.raft.core import Raft
from proglog.raft.driver import Driver, ReceivedBatch
from proglog.raft.hard_state import Identity
from proglog.raft.log_view import LogView
from proglog.raft.messages import ReadResult, SoftState
from proglog.raft.status import Status
from proglog.replica import views
from proglog.replica.applier import Applier
from proglog.replica.barriers import Barriers
from proglog.replica.budgets import Budgets
from proglog.replica.exchange import Exchange
from proglog.replica.fitness import Fitness
from proglog.replica.home import Home
from proglog.replica.identity import NodeDirectory
from proglog.replica.leadership import Leadership
from proglog.replica.members import Members
from proglog.replica.observer import Observer
from proglog.replica.opening import FIRST_TERM, Opened, first_batch, open_log
from proglog.replica.proposer import Proposer
from proglog.replica.reading import read_data
from proglog.replica.repair import Repair
from proglog.replica.retention import Retention
from proglog.replica.settings import LEVEL
from proglog.replica.timekeeper import StampClock, Timekeeper
from proglog.replica.upgrade import Upgrade
from proglog.replica.waiters import CommitWaiters
from proglog.types import Appended, Chunk, ClusterStatus, Description, ServerInfo

_logger = structlog.get_logger("replica")


class Replica:
    """See the module. `open_replica` makes one; `close` ends it."""

    def __init__(
        self,
        *,
        name: str,
        opened: Opened,
        config: LogConfig,
        raft_config: RaftConfig,
        ports: Ports,
        observer: Observer,
        peers: Peers,
        budgets: Budgets,
    ) -> None:
        self.name = name
        self._budgets = budgets
        self._ports = ports
        self._config = config
        self._raft_config = raft_config
        self._observer = observer
        self._loop = asyncio.get_running_loop()
        self._offload = Offload(ports.worker("proglog-reader"))
        self._node = opened.node
        self._hard_state = opened.hard_state
        self.stamps = StampClock(ports.clock, self._loop.time)
        stamping = replace(ports, clock=self.stamps)
        self.log = Log(opened.folder, opened.recovered, config, stamping, self, self._offload)
        self._waiters = CommitWaiters()
        self._closing = self._failed = False
        self._close: asyncio.Task[None] | None = None
        self._tasks = Tasks(self.failed)
        self.home = self._make_home(opened)
        self.standing = self.home.standing
        self._applier = self._make_applier(opened)
        self._ticker = peers.ticker
        self.exchange = self._make_exchange(peers)
        self.leadership = Leadership(
            self.identity,
            opened.hard_state.hard_state.term,
            opened.configurations[-1][1] if opened.configurations else Configuration(),
            self.exchange.name_of,
            self.exchange.address_of,
        )
        self._driver = self._make_driver(opened)
        self.exchange.begin(self._driver)
        self.exchange.set_configuration(self.leadership.configuration)
        self.members = Members(self.leadership, self._driver, self.log, self._waiters)
        self._proposer = self._make_proposer()
        self._timekeeper = self._make_timekeeper(peers)
        self._retention = self._make_retention()
        applier, exchange = self._applier, self.exchange
        self._upgrade = Upgrade(applier, self.leadership, self._driver, self.members, exchange)
        self._barriers = Barriers(self._driver)
        self._fitness = Fitness(self.log, self._driver, self.leadership, self.standing)
        self._handing_over_until = 0.0
        # Before the first tick: a server with no room for its no-op must not win at once.
        self._look_at_fitness()
        self.repair = Repair(
            applier=self._applier,
            fitness=self._fitness,
            log=self.log,
            exchange=self.exchange,
            leadership=self.leadership,
            own_uuid=self.identity.uuid,
            hand_over=self.hand_over,
            resign=self._driver.resign,
            spawn=self._tasks.spawn,
        )
        self._committed_at_start = self._driver.raft.status().commit
        self.committed(self._committed_at_start)
        self._begin_work()

    def _begin_work(self) -> None:
        for work in (
            self._retention.run(),
            self.repair.run(),
            self.repair.scrub(),
            self.exchange.restate(),
            self.home.keep_memory(),
        ):
            self._tasks.spawn(work)
        self._ticker.add(self._tick)

    def _make_applier(self, opened: Opened) -> Applier:
        return Applier(
            self.log,
            opened.state,
            opened.applied,
            self._waiters,
            spawn=self._tasks.spawn,
            on_start_moved=lambda: self._retention.trim(),  # noqa: PLW0108  # made later
            on_damage=lambda error: self.repair.cannot_apply(error),  # noqa: PLW0108  # likewise
            on_unknown=self.failed,
        )

    def _make_home(self, opened: Opened) -> Home:
        return Home(
            opened,
            log=self.log,
            ports=self._ports,
            raft=lambda: self._driver.raft,
            retire=self._retire,
            spawn=self._tasks.spawn,
            failed=self.failed,
        )

    def _make_exchange(self, peers: Peers) -> Exchange:
        if not peers.has_begun:
            # The first log of a node speaks for it. There is a second one only in a cluster, which
            # a node joins once.
            peers.begin(self.home)
        return Exchange(
            host=self,
            log=self.log,
            peers=peers,
            group=self._hard_state.seal.group,
            uuid=self.identity.uuid,
            held=self._budgets.held,
            standing=self.standing,
            level_max=self._applier.state.level_max,
        )

    def _make_proposer(self) -> Proposer:
        return Proposer(
            log=self.log,
            driver=self._driver,
            leadership=self.leadership,
            applier=self._applier,
            waiters=self._waiters,
            offload=self._offload,
            clock=self._ports.clock,
            check_open=self._check_open,
            observe=self._observer.appended,
            budget=self._budgets.inflight,
        )

    def _make_driver(self, opened: Opened) -> Driver:
        return Driver(
            raft=self._make_raft(
                opened.log_view(self.log.size_of),
                opened.configurations,
                opened.recovered.commit_hint,
            ),
            log=self.log,
            hard_state=opened.hard_state,
            clock=self.stamps,
            events=self,
            send=self.exchange.send,
            tick_soon=self._ticker.soon,
        )

    def _make_timekeeper(self, peers: Peers) -> Timekeeper:
        return Timekeeper(
            stamps=self.stamps,
            clock=self._ports.clock,
            time=self._loop.time,
            own_uuid=self.identity.uuid,
            voters=lambda: self.leadership.configuration.voter_ids,
            offset_of=peers.clock_offset,
            last_stamp=lambda: self.log.tip.timestamp,
        )

    def _make_retention(self) -> Retention:
        return Retention(
            log=self.log,
            driver=self._driver,
            members=self.members,
            applier=self._applier,
            timekeeper=self._timekeeper,
            config=self._config,
            leads=lambda: self.leadership.is_mine,
        )

    def _make_raft(
        self, log: LogView, configurations: list[tuple[int, Configuration]], commit: int
    ) -> Raft:
        return Raft(
            id=self.identity.uuid,
            config=self._raft_config,
            hard_state=self._hard_state.hard_state,
            log=log,
            configurations=configurations,
            commit=commit,
            rng=random.Random(self._ports.random.getrandbits(64)),
        )

    @property
    def identity(self) -> Identity:
        """Who this server is. Without a cluster id it belongs to none yet."""
        return self._node.identity

    def _tick(self, ticks: int) -> int:
        try:
            left = self._driver.tick(ticks)
            self._timekeeper.look(may_step=not self._driver.pending_batches)
            self._upgrade.look()
            self._waiters.expire(self._loop.time())
            self.members.promote()
            self._look_at_fitness()
        except BaseException as error:
            self.failed(error)
            raise
        return left

    def _look_at_fitness(self) -> None:
        now = self._loop.time()
        fit = self._fitness.look(now)
        if not fit and self.leadership.is_mine and now >= self._handing_over_until:
            self._handing_over_until = now + limits.unfit_retry_seconds
            self._tasks.spawn(self.hand_over())

    # --- proposing -------------------------------------------------------------------------------

    async def propose(
        self, batch: ProposedBatch, after: asyncio.Future[Appended] | None = None
    ) -> asyncio.Future[Appended]:
        """Appends a batch; the future tells when it is committed, and where.

        Waits while too much is in flight or space is being allocated. Raises a definite
        ProglogError: then nothing was appended. The future raises one if the batch certainly is
        not in the log, else OutcomeUnknown. Batches proposed one after the other keep their order;
        nothing is appended if the batch `after` which it comes has failed by then.
        """
        return await self._proposer.propose(batch, after)

    # --- reading ---------------------------------------------------------------------------------

    @property
    def earliest(self) -> int:
        """Oldest offset served."""
        return self._applier.earliest

    @property
    def next_offset(self) -> int:
        """Offset that the next committed record gets."""
        return self._applier.next_offset

    @property
    def applied_index(self) -> int:
        """The last batch that is part of what is served."""
        return self._applier.applied_index

    @property
    def commit_index(self) -> int:
        """The last batch that is known to be committed."""
        return self._applier.commit_index

    async def read(self, offset: int, bytes_max: int) -> Chunk:
        """Committed batches from the one that holds `offset` on, about `bytes_max`, at least one.

        Empty if `offset` is the next, or nothing but a gap follows: then the answer's next offset
        is after that. Raises OffsetOutOfRange or RangeCorrupt.
        """
        self._check_caught_up()
        self._check_open()
        try:
            chunk = await read_data(self.log, self._applier, offset, bytes_max, self._check_open)
        except RangeCorrupt as error:
            self.repair.report(error)
            raise
        if chunk.data:
            self._observer.consumed(len(chunk.data))
        return chunk

    def _check_open(self) -> None:
        if self._closing:
            raise Unavailable("the node is stopping")

    async def wait_past(self, offset: int) -> None:
        """Until a record at `offset` is committed, or gone. Raises Unavailable at the end."""
        while self.earliest <= offset and self.next_offset <= offset:
            await self._applier.news.wait()

    async def seek(self, timestamp: int) -> int:
        """Offset of the first record appended at or after a time (ms); the next one if none was."""
        self._check_caught_up()
        index = self.log.index_of_time(timestamp)
        offset = self.next_offset if index > self.applied_index else self.log.base_offset(index)
        return max(min(offset, self.next_offset), self.earliest)

    async def barrier(self) -> None:
        """Until this node has applied all that was acknowledged anywhere before this call.

        Raises NotLeader or Unavailable.
        """
        self._check_open()
        if not self.leadership.is_mine:
            raise self.leadership.refusal()
        index = await self._barriers.index()
        while self.applied_index < index:
            await self._applier.applied.wait()

    # --- looking ---------------------------------------------------------------------------------

    def _check_caught_up(self) -> None:
        """Until a node that was started has applied what it knew to be committed, it would show an
        end of the log that was passed long ago."""
        if self.standing.doubt:
            raise Unavailable(self.standing.doubt)
        if self.applied_index < max(self._committed_at_start, self._led_from()):
            raise Unavailable("the node is still starting: it reads its log")

    def _led_from(self) -> int:
        return self.leadership.led_from if self.leadership.is_mine else 0

    def describe(self) -> Description:
        """What the log holds. Raises Unavailable while the node is starting."""
        self._check_caught_up()
        return views.describe(self)

    def servers(self) -> list[ServerInfo]:
        """The servers of the cluster's configuration."""
        return self.leadership.servers

    def status(self) -> Status:
        """Consensus as this server sees it."""
        return self._driver.raft.status()

    def cluster_status(self) -> ClusterStatus:
        """The cluster as this server sees it."""
        notes = [*self.exchange.notes(), *self._timekeeper.notes(), *self._upgrade.notes()]
        return views.cluster_status(self, filter(None, [*notes, self._retention.held]))

    async def fix_time(self) -> int:
        """Corrects log time that is ahead; returns and raises as `Members.fix_time`."""
        return await self.members.fix_time(self._timekeeper)

    async def wait_ready(self) -> None:
        """Until `is_ready`. Raises Unavailable if the replica ends first."""
        while not self.is_ready:
            await self._applier.applied.wait()

    @property
    def is_ready(self) -> bool:
        """Whether it serves: it leads and has applied all before, or follows a leader."""
        if self._closing or self.standing.doubt:
            return False
        if self.leadership.is_mine:
            return self.applied_index >= self.leadership.led_from
        return self.leadership.state.leader is not None

    # --- what the log tells ----------------------------------------------------------------------

    def durable(self, index: int) -> None:
        self._driver.durable(index)

    def group_written(self, group: Group) -> None:
        self._observer.group_written(group.batches, group.bytes, group.seconds)

    def sealed(self, last: Tip) -> None:
        self._applier.sealed(last)

    def failed(self, error: BaseException) -> None:
        # Also while it closes: what was appended last may not be durable.
        if not self._failed:
            self._failed = True
            self._observer.failed(error)
        why = " after a fault of its disk"
        if isinstance(error, UnknownFormat):
            why = " before a batch of a newer version"
        elif isinstance(error, CorruptionError):
            why = f": {error}"
        self._end(Unavailable(f"the node stopped{why}"))
        self._waiters.give_up()

    # --- what the driver tells -------------------------------------------------------------------

    def committed(self, index: int) -> None:
        self._applier.committed(index)

    def reads_confirmed(self, reads: Sequence[ReadResult]) -> None:
        self._barriers.confirmed(reads)

    def leadership_changed(self, state: SoftState) -> None:
        leadership = self.leadership
        before, was_mine = leadership.state, leadership.is_mine
        leadership.move_to(state)
        # One that follows another of this server at once, in a later term, is another one.
        is_another = state.term != before.term
        if was_mine and (is_another or not leadership.is_mine):
            self._applier.state.producers.forget_overlay()
            self._waiters.hurry(self._loop.time() + limits.deposed_answer_seconds_max)
        if leadership.is_mine and (is_another or not was_mine):
            # The no-op that the core has just appended is the first batch of this leadership.
            assert self.log.tip.term == state.term
            leadership.led_from = self.log.tip.index
            self._timekeeper.begin()
        leadership.changed.tell()
        self._applier.applied.tell()
        self._proposer.room.tell()

    def configured(self, configuration: Configuration) -> None:
        self.leadership.configuration = configuration
        self.exchange.set_configuration(configuration)

    def installed(self, snapshot: Snapshot) -> None:
        self._applier.installed(snapshot)

    # --- damage ----------------------------------------------------------------------------------

    def damaged(self, error: RangeCorrupt) -> None:
        """Somebody could not read a committed batch."""
        self.repair.report(error)

    def range_wanted(self, peer: str, first: int, last: int) -> None:
        self.repair.wanted(peer, first, last)

    def range_received(self, batches: list[ReceivedBatch]) -> None:
        self.repair.received(batches)

    # --- who this server is ----------------------------------------------------------------------

    def _retire(self) -> None:
        """This server takes part in nothing any more."""
        self._look_at_fitness()
        self._driver.resign()

    def is_missed(self, sender: str, index: int) -> None:
        self.home.is_missed(self.exchange.name_of(sender), index)

    async def begin(self, configuration: Configuration) -> None:
        """Begins a cluster with these servers, once: the log must be empty, and all of them must
        have promised to belong to this cluster."""
        assert self.log.tip.index == 0
        assert self.identity.cluster_id
        begin = await self.home.begin(configuration)
        header, packed, body = first_batch(begin.configuration.encode(), begin.timestamp)
        self.log.append(header, (packed, body))
        await self.log.run_job(lambda: self._node.has_begun(begin))
        log = LogView(runs=[(1, FIRST_TERM)], last_index=1, size_of=self.log.size_of)
        self._driver.raft = self._make_raft(log, [(1, configuration)], 1)
        self.configured(configuration)
        self.committed(1)

    def configuration_of(self, state: bytes) -> Configuration:
        """The configuration that a snapshot holds. Raises CorruptionError."""
        return self._applier.decode(state).configuration

    # --- end -------------------------------------------------------------------------------------

    async def hand_over(self) -> None:
        """Lets another server lead, if there is one."""
        if self.leadership.is_mine and len(self.leadership.configuration.voters) > 1:
            with contextlib.suppress(ProglogError):
                # Without it the others elect a leader all the same, an election timeout later.
                await self.members.transfer()

    async def close(self) -> None:
        """Stops. Everything that was appended is durable when this returns, to every caller, unless
        the observer was told of a failure."""
        if self._close is None:
            self._close = asyncio.get_running_loop().create_task(self._close_once())
        await asyncio.shield(self._close)

    async def _close_once(self) -> None:
        await self.hand_over()
        self._end(Unavailable("the node is stopping"))
        self._ticker.remove(self._tick)
        await self._tasks.end()
        self.exchange.close()
        await self._driver.close()
        await self._tasks.end()
        await self.home.save_memory()
        await self.log.close()
        self._waiters.give_up()
        self._proposer.close()
        self._offload.stop()
        self._hard_state.close()

    def _end(self, reason: ProglogError) -> None:
        self._closing = True
        self._barriers.close(reason)
        for news in (
            self._proposer.room,
            self._applier.news,
            self._applier.applied,
            self.leadership.changed,
            self._driver.taken,
        ):
            news.close(reason)


async def open_replica(
    name: str,
    node: NodeDirectory,
    *,
    rpc_addr: str,
    bootstrap: bool,
    config: LogConfig,
    raft_config: RaftConfig,
    ports: Ports,
    observer: Observer,
    peers: Peers,
    group: int = DEFAULT_GROUP,
    is_new: bool = False,
    budgets: Budgets | None = None,
    level_max: int = LEVEL,
) -> Replica:
    """Opens a log of a node, or makes it. `rpc_addr` is where a server that begins a cluster is
    reached. The first log of a node makes itself; a further one is made where it `is_new`, once
    the node belongs to a cluster. The logs of a node share `peers` and `budgets`. Raises as
    `open_log`."""
    opening = Offload(ports.worker("proglog-opening"))
    try:
        opened = await opening.run(
            lambda: open_log(
                node,
                group,
                is_new=is_new,
                config=config,
                ports=ports,
                rpc_addr=rpc_addr,
                bootstrap=bootstrap,
                level_max=level_max,
            )
        )
    finally:
        opening.stop()
    for note in opened.recovered.notes:
        _logger.warning("recovered", folder=str(opened.folder), note=note)
    return Replica(
        name=name,
        opened=opened,
        config=config,
        raft_config=raft_config,
        ports=ports,
        observer=observer,
        peers=peers,
        budgets=budgets or Budgets(),
    )
