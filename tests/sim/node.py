"""One simulated node: its disk, its process with a whole Replica, and what can be seen of it."""

from __future__ import annotations

import asyncio
import random
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from proglog.batch import HEADER_BYTES, BatchHeader, parse_header
from proglog.config import Address
from proglog.errors import CorruptionError, DiskFull, RangeCorrupt, StorageFailed
from proglog.log.names import store_name
from proglog.log.snapshot import Snapshot
from proglog.log.tail import Run
from proglog.peers.peers import Peers
from proglog.ports import Ports
from proglog.raft.core import Raft
from proglog.raft.messages import AppendRequest, InstallSnapshot, Message, Role
from proglog.replica.identity import open_node
from proglog.replica.renewal import renew
from proglog.replica.replica import Replica, open_replica
from proglog.replica.settings import LEVEL
from proglog.types import Appended
from tests.doubles import crash
from tests.doubles.disk import SimDisk
from tests.doubles.files import SimFiles
from tests.doubles.inode import Operation
from tests.doubles.worker import SimWorker
from tests.sim.disks import DATA_DIR, FOLDER, Promise, read_batches, read_promise
from tests.sim.oracle import Known, Oracle, Violation, require
from tests.sim.processes import Process, ProcessLoop, is_power_cut

if TYPE_CHECKING:
    from tests.sim.world import World

PORT = 8400
START_MS = 1_700_000_000_000
"""The true time when a world begins; ms since the epoch."""
SENT_MAX = 50
"""Messages of a life that may be sent again."""
OPERATIONS_OF_A_CUT = 20
"""On the disk: those of the cut itself, and of what is appended behind it."""


class WallClock:
    """`ports.Clock` of a machine: how wrong it is may change at any time, and how fast it runs."""

    def __init__(self, loop: ProcessLoop) -> None:
        self._loop = loop
        self._set_at = self._shown = 0.0
        self.rate = 1.0

    def wrong_seconds(self) -> float:
        """How far it is from the true time."""
        return self._shown + self.rate * (self._loop.now - self._set_at) - self._loop.now

    def change(self, *, seconds: float = 0.0, rate: float = 1.0) -> None:
        """It jumps, and runs at this rate from now on."""
        self._shown += self.rate * (self._loop.now - self._set_at) + seconds
        self._set_at, self.rate = self._loop.now, rate

    def now_ms(self) -> int:
        return START_MS + round(1000 * (self._loop.now + self.wrong_seconds()))

    def stopwatch(self) -> float:
        return self._loop.now


class SimNode:
    """A machine. `process` is the present life of its daemon, if it has one."""

    def __init__(self, world: World, name: str, node_name: str = "") -> None:
        self.world = world
        self.name = name
        self.node_name = node_name or name
        """Another than the machine's where the directory was copied to it."""
        self.oracle: Oracle = world.oracle
        self.chance = world.loop.chance(f"node {name}")
        self.disk = SimDisk(self.chance.getrandbits(32))
        self.disk.faults.uncached_rate = world.settings.uncached_rate
        self.clock = WallClock(world.loop)
        self.disk_seconds = world.settings.disk_seconds
        self.reader_seconds = world.settings.reader_seconds
        self.lives = 0
        self.wipes = 0
        self.bootstrap = False
        self.level_max = LEVEL
        """The version of Proglog that it runs, by what that can compute."""
        self.process: Process | None = None
        self.replica: Replica
        self.is_open = False
        self.spoken = Promise(0, "")
        """The latest term in which it sent anything, and the vote that it told of then."""
        self.is_set_back = False
        """Its disk is an older one than it had: it must not take part any more."""
        self.is_rotten = False
        self.must_be_replaced = False
        """It refuses to start: what rotted is a change of members that no snapshot holds, or a cut
        has made the segment in which it is the last one, which is not mended."""
        self.rotten_path = Path()
        self.rotten_last = 0
        """The damage is at this batch or before."""
        self.reset_to: int | None = None
        """The snapshot that is being installed."""
        self.uuid = ""
        self.plan: Callable[[SimDisk], crash.Plan] = lambda disk: next(
            crash.extremes(disk.unsynced())
        )
        """What a power cut at an operation leaves."""
        self._workers: list[SimWorker] = []
        self._readers: list[SimWorker] = []
        self._files: SimFiles
        self._forget()

    def _forget(self) -> None:
        """What the oracle knows of this life."""
        self.logged: dict[int, Known] = {}
        self.last_index = self.base_index = 0
        self.durable_seen = 0
        self._commit_seen = self._applied_seen = 0
        self._led_term = 0
        self.operations_since_cut = OPERATIONS_OF_A_CUT
        self.sent: deque[tuple[Message, Callable[[Message], None]]] = deque(maxlen=SENT_MAX)
        """By this life, the last of them, and how."""
        self._left_durable: int | None = None
        """What the last life left on its disk for good, once somebody asked."""

    @property
    def is_up(self) -> bool:
        """Whether there is a process, paused or not."""
        return self.process is not None

    @property
    def serves(self) -> bool:
        return self.is_open and self.process is not None and not self.process.is_paused

    @property
    def core(self) -> Raft:
        return self.replica._driver.raft

    @property
    def leads(self) -> bool:
        return self.serves and self.replica.leadership.is_mine

    # --- life ------------------------------------------------------------------------------------

    def start(self) -> None:
        """Power on, boot, start the daemon."""
        assert self.process is None
        self.lives += 1
        self.world.note(self.name, f"starts (life {self.lives})")
        self._left_durable = None
        self.world.loop.network.power_on(self.name)
        rates = self.world.settings.monotonic_rates
        rate = rates[0] if len(rates) == 1 else self.chance.choice(rates)
        self.process = process = Process(self.world.loop, self.name, self._ran, rate=rate)
        self._files = SimFiles(self.disk)
        self._watch(self.disk)
        self._workers, self._readers = [], []
        process.spawn(self._run(process))

    def _ran(self, process: Process) -> None:
        if not self._is_as_seen(process) and process is self.process:
            self.world.look_at(self, process)

    def _is_as_seen(self, process: Process) -> bool:
        """Whether a callback has decided nothing; most do not."""
        if process.failure is not None or not self.disk.powered:
            return False
        if not self.is_open:
            return True
        core = self.replica._driver.raft
        state = core._state
        return (
            state.commit == self._commit_seen
            and self.replica._applier.applied_index == self._applied_seen
            and (core._role is not Role.LEADER or state.term == self._led_term)
        )

    async def _run(self, process: Process) -> None:
        try:
            await self._open(process)
        except Exception as error:  # the world looks at it
            process.failure = error

    async def _open(self, process: Process) -> None:
        settings = self.world.settings
        ports = Ports(
            files=self._files,
            clock=self.clock,
            random=random.Random(f"{settings.seed}/{self.name}/{self.lives}"),
            worker=self._worker,
        )
        address = f"{self.name}:{PORT}"
        directory = await open_node(DATA_DIR, node_name=self.node_name, ports=ports)
        peers = Peers(
            connect=_connect,
            chance=random.Random(f"{settings.seed}/{self.name}/{self.lives}/peers"),
            clock=self.clock,
            rpc_addr=address,
            incarnation=directory.incarnation + 1,
        )
        replica = await open_replica(
            "default",
            directory,
            rpc_addr=address,
            bootstrap=self.bootstrap,
            config=settings.log,
            raft_config=settings.raft,
            ports=ports,
            observer=self,
            peers=peers,
            level_max=self.level_max,
        )
        if self.process is process:
            self._opened(replica)
            loop = asyncio.get_running_loop()
            await loop.create_server(peers.accept, self.name, PORT)

    def _worker(self, name: str) -> SimWorker:
        chance = random.Random(f"{self.world.settings.seed}/{self.name}/{self.lives}/{name}")
        reads = name == "proglog-reader"
        seconds = self.reader_seconds if reads else self.disk_seconds
        worker = SimWorker(name, chance=chance, delay_seconds_max=seconds)
        (self._readers if reads else self._workers).append(worker)
        return worker

    def _watch(self, disk: SimDisk) -> None:
        perform = SimDisk.perform

        def on_perform(operation: Operation) -> None:
            if self.is_open:
                self.world.probe(self, operation)
            perform(disk, operation)

        disk.perform = on_perform  # type: ignore[method-assign]

    def set_reader_seconds(self, seconds: float) -> None:
        self.reader_seconds = seconds
        for worker in self._readers:
            worker.delay_seconds_max = seconds

    def set_disk_seconds(self, seconds: float) -> None:
        self.disk_seconds = seconds
        for worker in self._workers:
            worker.delay_seconds_max = seconds

    def has_space(self) -> None:
        self.disk.faults.capacity_bytes = None

    def require_all_durable(self) -> None:
        """The daemon stopped in peace."""
        require(
            self.is_durable(self.last_index),
            "stop is durable",
            f"{self.name} stopped and may lose what is behind {self.durable_seen}",
        )

    def kill(self) -> None:
        """kill -9: the disk keeps what it was told, as unsynced as it was."""
        assert self.process is not None
        process, self.process = self.process, None
        self.world.note(self.name, f"ends (life {self.lives})")
        self.is_open = False
        self._files.kill()
        for worker in self._workers + self._readers:
            worker.kill()
        process.kill()
        self.world.loop.network.crash(self.name)

    def power_cut(self, plan: Callable[[SimDisk], crash.Plan]) -> None:
        """The machine loses its power, and its disk what `plan` says."""
        if self.process is not None:
            self.kill()
        self.world.note(self.name, "loses its power, and what was not synced")
        self.world.loop.network.power_off(self.name)
        self._left_durable = None
        after = self.disk.crash(plan(self.disk).fates)
        after.faults.uncached_rate = self.world.settings.uncached_rate
        self.disk = after

    def set_back(self, disk: SimDisk) -> None:
        """Its disk is an older one than it was, and it does not know."""
        self._remember_loss()
        if self.process is not None:
            self.kill()
        self.is_set_back = True
        self.disk = disk
        self.spoken = Promise(0, "")
        self._forget()

    def _remember_loss(self) -> None:
        # Acks that it gave are perhaps still on their way, and count: nobody can know.
        last = self.durable_seen
        while last < max(self.logged, default=0) and self.is_durable(last + 1):
            last += 1
        self.world.lost_with[self.uuid] = last

    def renew(self) -> None:
        """An operator makes it a new server, with what is on its disk."""
        if self.process is not None:
            self.kill()
        chance = random.Random(f"{self.world.settings.seed}/{self.name}/{self.lives}/renew")
        self.disk.faults.next_error.clear()
        ports = Ports(files=SimFiles(self.disk), clock=self.clock, random=chance, worker=SimWorker)
        renew(DATA_DIR, ports=ports)
        self.uuid = ""
        self.is_set_back = self.bootstrap = False
        self.spoken = Promise(0, "")
        self._forget()

    def wipe(self) -> None:
        """The disk is lost: what comes back is another server."""
        self._remember_loss()
        if self.process is not None:
            self.kill()
        self.wipes += 1
        self.bootstrap = False
        self.disk = SimDisk(self.chance.getrandbits(32))
        self.disk.faults.uncached_rate = self.world.settings.uncached_rate
        self.uuid = ""
        self.spoken = Promise(0, "")
        self.is_rotten = self.must_be_replaced = self.is_set_back = False
        self._forget()

    # --- Observer --------------------------------------------------------------------------------

    def consumed(self, size: int) -> None: ...

    def group_written(self, batches: int, size: int, seconds: float) -> None:
        pass

    def appended(self, records: int, size: int, seconds: float) -> None:
        pass

    def failed(self, error: BaseException) -> None:
        if self.process is not None and self.process.failure is None:
            self.process.failure = error

    # --- what the oracle sees --------------------------------------------------------------------

    def _opened(self, replica: Replica) -> None:
        before, last_before = self.logged, self.last_index
        durable_before = self.durable_seen
        uuid_before = self.uuid
        self._forget()
        self.replica = replica
        self.uuid = replica.identity.uuid
        require(uuid_before in {"", self.uuid}, "identity", f"{self.name} has another uuid")
        self.base_index = replica.log.before.index
        for batch in read_batches(self.disk, FOLDER):
            self.oracle.matches(self, batch.index, Known(batch.term, batch.crc))
            self.logged[batch.index] = Known(batch.term, batch.crc)
        self.last_index = replica.log.tip.index
        found = max(self.logged, default=self.base_index)
        if self.is_rotten and found < self.last_index:
            # Behind the damage the stores say nothing; they still hold what they held.
            self.logged = {**{i: k for i, k in before.items() if i > found}, **self.logged}
            found = self.last_index
        require(
            self.last_index == found,
            "recovery",
            f"{self.name} recovers up to {self.last_index}, its stores hold {found}",
        )
        self._kept_promises(before, last_before, durable_before)
        status = self.core.status()
        require(
            status.term >= self.spoken.term,
            "term goes back",
            f"{self.name} forgets term {self.spoken.term}, has {status.term}",
        )
        self._commit_seen = 0
        self._hook(replica)
        self.is_open = True
        self.oracle.commits(self, self.base_index, status.commit)
        self._commit_seen = status.commit
        if replica.applied_index in self.oracle.states:
            self.oracle.state_is(self, replica.applied_index)

    def _kept_promises(self, before: dict[int, Known], last: int, durable: int) -> None:
        reset_to, self.reset_to = self.reset_to, None
        if self.base_index == reset_to:
            return  # A snapshot was being installed, which made the old log void: see Follower.
        for index in range(self.base_index + 1, min(durable, last) + 1):
            known, now = before.get(index), self.logged.get(index)
            if known not in {None, now}:
                what = f"batch {index} that was durable ({known}, now {now})"
                raise Violation("durable is lost", f"{self.name} comes back without {what}")

    def _hook(self, replica: Replica) -> None:
        log, exchange, hidden = replica.log, replica.exchange, replica._applier
        append, cut, reset, send = log.append, log.cut_suffix, log.reset, exchange.send
        apply_one, drop, read = hidden._apply_one, log.drop_prefix, log.read
        oracle, driver = self.oracle, replica._driver
        wait = replica._waiters.add

        def on_append(header: BatchHeader, parts: Any) -> None:
            last_stamp = log.tip.timestamp
            append(header, parts)
            oracle.appended(self, header)
            if self.core._role is Role.LEADER and header.term == self.core.term:
                self.world.require_stamp(self, header.timestamp, last_stamp)

        def on_cut(last_index: int) -> None:
            oracle.cut(self, last_index)
            self.world.note(self.name, f"cuts its log to batch {last_index}")
            self.operations_since_cut = 0
            cut(last_index)

        async def on_reset(snapshot: Snapshot) -> None:
            self.reset_to = snapshot.tip.index
            self.world.note(self.name, f"installs the snapshot at batch {snapshot.tip.index}")
            await reset(snapshot)
            self.reset_to = None
            self.logged = {}
            self.last_index = self.base_index = self.durable_seen = snapshot.tip.index

        def on_send(message: Message) -> None:
            oracle.sent(self, message)
            if self.world.events is not None:
                self.world.events.sent(self.name, message)
            if not isinstance(message, AppendRequest | InstallSnapshot):
                self.sent.append((message, send))
            send(message)

        def on_apply(header: BatchHeader, body: Any) -> None:
            apply_one(header, body)
            oracle.applied(self, header.index)

        async def on_read(first: int, last: int, bytes_max: int) -> Run:
            try:
                return await read(first, last, bytes_max)
            except RangeCorrupt as error:
                if not self.is_rotten:
                    self.world.fail(Violation("no damage", f"{self.name}: {error}"))
                raise

        def on_wait(index: int, term: int, deadline: float) -> asyncio.Future[Appended]:
            answer = wait(index, term, deadline)
            answer.add_done_callback(lambda told: oracle.told(self, index, term, told))
            return answer

        def on_drop(first_index: int) -> int:
            count = drop(first_index)
            if count:
                self.world.require_old(self, first_index - 1)
            self.base_index = log.before.index
            return count

        log.append, log.cut_suffix, log.reset = on_append, on_cut, on_reset  # type: ignore[method-assign]
        replica._waiters.add = on_wait  # type: ignore[method-assign]
        log.read = on_read  # type: ignore[method-assign]
        log.drop_prefix = on_drop  # type: ignore[method-assign]
        exchange.send = on_send  # type: ignore[method-assign]
        driver._send = on_send
        hidden._apply_one = on_apply  # type: ignore[method-assign]

    def look(self) -> None:
        """Has the replica decided anything that must not be?"""
        if self.replica._driver._waiting_for_disk is not None:
            return  # The core is ahead of the log, which is still to be cut, say: nobody was told.
        core, applied = self.replica._driver.raft, self.replica._applier.applied_index
        doubt = self.replica.standing.doubt
        require(self.is_set_back or not doubt, "nobody is doubted wrongly", doubt)
        term, commit, role = core._state.term, core._state.commit, core._role
        self._applied_seen = applied
        if commit != self._commit_seen:
            self.oracle.commits(self, self._commit_seen, commit)
            self.world.loop.trace.add(self.name, "commit", commit)
            self.world.note(self.name, f"commits batch {commit}")
            self._commit_seen = commit
        require(
            applied <= commit <= self.last_index,
            "applied <= commit <= last",
            f"{self.name}: {applied} {commit} {self.last_index}",
        )
        if role is Role.LEADER and term != self._led_term:
            self._led_term = term
            self.oracle.counts["elections"] += 1
            self.world.loop.trace.add(self.name, "leads", term)
            self.world.note(self.name, f"LEADS term {term}")
            self.oracle.leads(self, term)

    # --- the disk --------------------------------------------------------------------------------

    def is_durable(self, index: int) -> bool:
        """Whether the disk holds everything up to batch `index` even if all unsynced is lost."""
        self.durable_seen = max(self.durable_seen, self.base_index)
        if not self.is_open:
            return self._is_durable_without_process(index)
        log = self.replica.log
        while self.durable_seen < index:
            number = self.durable_seen + 1
            if number > log.tip.index:
                return False
            segment = log.segment_of(number)
            if segment.retired:  # The log is closed, and with it all that knows where they are.
                return self._stores_hold(index)
            slot = number - segment.first_index
            start, stop = segment.index.position(slot), segment.index.position(slot + 1)
            name = store_name(segment.first_index)
            named = self.disk.listing(FOLDER, durable=True).get(name)
            if named is None or named != self.disk.listing(FOLDER).get(name):
                return False
            inode = self.disk.inodes[named]
            data = inode.durable.data[start:stop]
            whole = (
                len(data) == stop - start
                and parse_crc(data) == self.logged[number].crc
                and data == inode.cached.data[start:stop]
            )
            if not whole and not (self.is_rotten and number <= self.rotten_last):
                return False
            self.durable_seen = number
        return True

    def _stores_hold(self, index: int) -> bool:
        """As `is_durable`, by reading them. Behind damage they say nothing."""
        held = {batch.index: batch.crc for batch in read_batches(self.disk, FOLDER, durable=True)}
        numbers = range(max(self.durable_seen, min(held, default=1) - 1) + 1, index + 1)
        return self.is_rotten or all(held.get(i) == self.logged[i].crc for i in numbers)

    def _is_durable_without_process(self, index: int) -> bool:
        if self.durable_seen >= index:
            return True
        if self._left_durable is None:
            found = read_batches(self.disk, FOLDER, durable=True)
            last = found[-1].index if found else 0
            if self.process is not None:  # which is about to open it
                return last >= index
            self._left_durable = last
        return self._left_durable >= index

    def is_mended(self) -> bool:
        """Whether the stores can be read from end to end. Where mending them failed as it was
        synced, what is read may come from the cache, and the disk is as rotten as before."""
        if not self.is_rotten:
            return True
        mended = self.first_damaged() > self.last_index
        if mended and self.first_damaged(durable=True) > min(self.rotten_last, self.last_index):
            self.is_rotten = False
        return mended

    def first_damaged(self, *, durable: bool = False) -> int:
        """The first batch that the stores do not hold whole, or the next one."""
        found = read_batches(self.disk, FOLDER, durable=durable)
        return (found[-1].index if found else self.base_index) + 1

    def promised(self) -> Promise | None:
        return read_promise(self.disk, FOLDER / "hard-state")

    def read_header(self, index: int) -> BatchHeader:
        """Of a batch in the log, past all caches."""
        segment = self.replica.log.segment_of(index)
        position = segment.index.position(index - segment.first_index)
        inode = self.disk.find(segment.store_path)
        return parse_header(inode.cached.read(HEADER_BYTES, position))

    def explain(self) -> str:
        """Why the process must be ended; empty if that is no fault of the program."""
        assert self.process is not None
        failure = self.process.failure
        if failure is None or is_power_cut(failure):
            return ""
        if isinstance(failure, Violation):
            raise failure
        if isinstance(failure, StorageFailed | OSError) and self.world.disk_errors:
            return ""
        if isinstance(failure, DiskFull) and not self.is_open:
            return ""
        if isinstance(failure, CorruptionError) and self.is_rotten and not self.is_open:
            is_last = "in what was synced" in str(failure)
            self.must_be_replaced = "change of the cluster's members" in str(failure) or (
                is_last and failure.facts["file"] == str(self.rotten_path)
            )
            return "" if self.must_be_replaced else f"{self.name} does not start: {failure}"
        return f"{self.name} failed: {failure!r}"

    def describe(self) -> str:
        """One line, for whoever looks for what went wrong."""
        if not self.is_open:
            return f"{self.name} is {'not open' if self.is_up else 'down'}"
        status = self.core.status()
        peers = [
            f"{peer.id[:4]} {peer.flow.name} match {peer.match} next {peer.next} "
            f"active {peer.active} caught up {peer.caught_up}"
            for peer in status.peers
        ]
        voters = [server.name for server in status.configuration.voters]
        learners = [server.name for server in status.configuration.learners]
        return (
            f"{self.name} {self.uuid[:4]} {status.role.value} term {status.term} "
            f"base {status.base_index} commit {status.commit} applied {self.replica.applied_index} "
            f"last {status.last_index} durable {status.durable} installing {status.installing} "
            f"{voters}+{learners} at {status.configuration_index} {peers}"
        )


def parse_crc(data: bytes | bytearray) -> int:
    return int.from_bytes(data[:4], "little")


async def _connect(address: str, factory: Callable[[], asyncio.Protocol]) -> None:
    host, port = Address.parse(address)
    await asyncio.get_running_loop().create_connection(factory, host, port)
