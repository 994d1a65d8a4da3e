"""What goes wrong, and when: a list that is drawn from the seed before the world begins.

So the list can be shortened (any subset of it is a valid run), and a run replayed from the seed and
the numbers of the faults that matter.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import random
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, NamedTuple

from proglog.errors import ProglogError
from proglog.replica import commands
from tests.doubles import crash
from tests.doubles.disk import SimDisk
from tests.doubles.inode import Kind
from tests.sim.disks import FOLDER, PREAMBLE_BYTES, read_batches, read_floors, read_saved
from tests.sim.node import SimNode
from tests.sim.processes import Gone, Process
from tests.sim.settings import Settings

if TYPE_CHECKING:
    from tests.sim.world import World


YEAR = 365 * 86_400.0
LATER = 2
"""The level of a version that is to come."""


class Fault(NamedTuple):
    """`seed` decides all that is left open: the node, how strong."""

    number: int
    at: float
    kind: str
    seconds: float
    seed: int

    def __str__(self) -> str:
        return f"{self.number}: {self.kind} at {self.at:.3f} s for {self.seconds:.3f} s"


def draw(settings: Settings) -> list[Fault]:
    """The faults of a seed, in order of time."""
    chance = random.Random(f"{settings.seed}/faults")
    faults: list[Fault] = []
    at = 1.0
    while settings.faults:
        at += chance.expovariate(1 / settings.fault_seconds)
        if at > settings.safety_seconds:
            break
        seconds = chance.choice((0.01, 0.2, 0.5, 1.5)) * chance.uniform(0.5, 1.5)
        kind = chance.choice(settings.faults)
        faults.append(Fault(len(faults), at, kind, seconds, chance.getrandbits(32)))
    return faults


class Nemesis:
    """Does to a world what the list says."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._network = world.loop.network
        self._rotted = False

    async def run(self, faults: list[Fault]) -> None:
        for fault in faults:
            await asyncio.sleep(max(fault.at - self._world.loop.now, 0))
            chance = random.Random(fault.seed)
            node = chance.choice(self._world.nodes)
            self._world.trace("fault", fault.kind, node.name)
            self._world.note(node.name, f"FAULT {fault}")
            if await getattr(self, f"_{fault.kind}")(fault, node, chance):
                self._world.oracle.counts[f"fault: {fault.kind}"] += 1

    def _later(self, seconds: float, undo: object, *arguments: object) -> None:
        """Ends a fault, unless the safety phase is over and all have ended."""
        self._world.later(seconds, undo, *arguments)

    # --- network ---------------------------------------------------------------------------------

    async def _partition(self, fault: Fault, node: SimNode, chance: random.Random) -> bool:
        names = [each.name for each in self._world.nodes]
        chance.shuffle(names)
        half = names[: chance.randint(1, len(names) - 1)]
        rest = [name for name in names if name not in half]
        match chance.randrange(4):
            case 0:
                self._network.partition(half, rest)
            case 1:
                for a in half:
                    for b in rest:
                        self._network.block(a, b)
            case 2:
                self._network.partition([node.name], [name for name in names if name != node.name])
            case _:  # a bridge: two sides that only names[0] can see
                middle = len(names) // 2 + 1
                self._network.partition(names[1:middle], names[middle:])
        self._later(fault.seconds, self._network.heal)
        return True

    async def _isolate_leader(self, fault: Fault, node: SimNode, chance: random.Random) -> bool:
        """Long enough for another to be elected, while clients still talk to this one: what it
        appends meanwhile is cut when it comes back."""
        leader = next((each for each in self._world.nodes if each.leads), node)
        held = chance.sample(self._world.nodes, chance.choice((0, 0, 1)))
        for other in self._world.nodes:
            if other is not leader and other not in held:
                self._network.block(leader.name, other.name)
                self._network.block(other.name, leader.name)
        self._later(max(fault.seconds, chance.uniform(0.5, 1.5)), self._network.heal)
        return True

    async def _cut(self, _fault: Fault, node: SimNode, _chance: random.Random) -> bool:
        for other in self._world.nodes:
            if other is not node:
                self._network.cut(node.name, other.name)
        return True

    async def _stall(self, fault: Fault, node: SimNode, chance: random.Random) -> bool:
        """Some of the streams from the leader to another node wait, the rest goes on. Perhaps these
        two are cut off from the others then, and the leader, deposed, hears of it first: what waits
        behind a full stream is of a log that the leader no longer has."""
        leader = next((each for each in self._world.nodes if each.leads), node)
        names = [each.name for each in self._world.nodes if each is not leader]
        behind = names.pop(chance.randrange(len(names)))
        if chance.random() < 0.3:
            self._network.stall(leader.name, behind, fault.seconds)
            return True
        full, apart, after = (chance.uniform(0.0, most) for most in (0.3, 1.5, 0.3))
        self._network.stall(leader.name, behind, full + apart + after)
        await asyncio.sleep(full)
        self._network.partition([leader.name, behind], names)
        self._later(apart, self._network.heal, leader.name)
        self._later(apart + after + 0.5, self._network.heal)
        return True

    async def _silence(self, fault: Fault, _node: SimNode, _chance: random.Random) -> bool:
        """Nobody hears anybody, and TCP waits longer and longer. Not drawn for the swarm: where
        nothing else goes wrong, somebody leads soon after it is over, and producers go on."""
        world = self._world
        self._network.partition(*([node.name] for node in world.nodes))
        await asyncio.sleep(fault.seconds)
        self._network.heal()
        acknowledged = world.next_acknowledged
        await world._within(2.0, "somebody leads", lambda: any(node.leads for node in world.nodes))
        await world._within(3.0, "it goes on", lambda: world.next_acknowledged > acknowledged)
        return True

    async def _slow_network(self, fault: Fault, _node: SimNode, chance: random.Random) -> bool:
        self._network.weather.latency_seconds_mean = chance.choice((0.02, 0.1))
        self._world.client_loss_rate = chance.choice((0.0, 0.1, 0.3))
        self._later(fault.seconds, self._world.calm)
        return True

    # --- processes -------------------------------------------------------------------------------

    def _plan(self, disk: SimDisk, chance: random.Random) -> crash.Plan:
        changes = disk.unsynced()
        plans = list(crash.extremes(changes))
        return chance.choice([*plans, *(crash.subset(changes, chance) for _ in range(3))])

    async def _power_cut(self, fault: Fault, node: SimNode, chance: random.Random) -> bool:
        node.power_cut(lambda disk: self._plan(disk, chance))
        self._later(fault.seconds, self._world.start, node)
        return True

    async def _power_cut_at_operation(
        self, fault: Fault, node: SimNode, chance: random.Random
    ) -> bool:
        node.disk.faults.power_cut_at = node.disk.operations + chance.randint(0, 12)
        node.plan = lambda disk: self._plan(disk, chance)
        self._later(fault.seconds, self._world.start, node)
        return True

    async def _power_cut_all(self, fault: Fault, _node: SimNode, chance: random.Random) -> bool:
        for each in self._world.nodes:
            each.power_cut(lambda disk: self._plan(disk, chance))
            self._later(fault.seconds * chance.random(), self._world.start, each)
        return True

    async def _kill(self, fault: Fault, node: SimNode, _chance: random.Random) -> bool:
        if node.is_up:
            node.kill()
        self._later(fault.seconds, self._world.start, node)
        return True

    async def _upgrade(self, fault: Fault, node: SimNode, _chance: random.Random) -> bool:
        """A newer version takes the place of the one that runs. Not drawn for the swarm."""
        if node.is_up:
            node.kill()
        node.level_max = LATER
        self._later(fault.seconds, self._world.start, node)
        return True

    async def _stop(self, fault: Fault, node: SimNode, _chance: random.Random) -> bool:
        """SIGTERM; then the power goes, and takes nothing with it."""
        process = node.process
        if process is None or not node.serves or process.is_stopping:
            return False
        process.is_stopping = True
        self._world.spawn(self._stopping(fault, node, process))
        return True

    async def _stopping(self, fault: Fault, node: SimNode, process: Process) -> None:
        try:
            await process.call(node.replica.close)
        except Gone:
            return
        if node.process is process:
            if process.failure is None:
                node.require_all_durable()
            node.power_cut(lambda disk: next(crash.extremes(disk.unsynced())))
            self._later(fault.seconds, self._world.start, node)

    async def _pause(self, fault: Fault, node: SimNode, _chance: random.Random) -> bool:
        process = node.process
        if process is None:
            return False
        process.pause()
        self._later(fault.seconds, process.resume)
        return True

    async def _clock(self, _fault: Fault, node: SimNode, chance: random.Random) -> bool:
        """It jumps, and perhaps runs badly from then on; one that is never wrong stays within what
        NTP does."""
        if node not in self._world.wrong_clocks:
            seconds = chance.uniform(-0.1, 0.1)
            node.clock.change(seconds=seconds - node.clock.wrong_seconds())
            return True
        years = chance.choice((-30, -1, 1, 30))
        seconds = chance.choice((-600.0, -3.0, 3.0, 600.0, years * YEAR, years * YEAR))
        back = chance.random() < 0.3
        node.clock.change(
            seconds=-node.clock.wrong_seconds() if back else seconds,
            rate=chance.choice((0.7, 1.0, 1.0, 1.4)),
        )
        return True

    async def _replay(self, _fault: Fault, node: SimNode, chance: random.Random) -> bool:
        """What was said some time ago, perhaps in an earlier term, arrives once more."""
        if not node.serves or not node.sent or node.process is None:
            return False
        chosen = chance.sample(list(node.sent), min(len(node.sent), 10))

        async def send_again() -> None:
            for message, send in chosen:
                send(message)

        with contextlib.suppress(Gone):
            await node.process.call(send_again)
        return True

    async def _fix_time(self, _fault: Fault, _node: SimNode, _chance: random.Random) -> bool:
        """An operator, whom nobody asks whether that is right: in worlds where any time is."""
        leaders = [each for each in self._world.nodes if each.leads]
        if not leaders or self._world.clock_error_ms is not None or leaders[0].process is None:
            return False
        replica = leaders[0].replica
        replica._timekeeper.why_not_corrected = lambda: None  # type: ignore[method-assign]
        self._world.spawn(_within_a_second(leaders[0].process, replica.fix_time))
        return True

    async def _ignorable(self, _fault: Fault, _node: SimNode, chance: random.Random) -> bool:
        """A leader of a later version appends what others may skip."""
        leaders = [each for each in self._world.nodes if each.leads]
        if not leaders or not leaders[0].replica.members.has_room():
            return False
        type_ = chance.choice((15, 16, 2**16 - 1))
        body = commands.frame(type_, 1, commands.MAY_BE_IGNORED, chance.randbytes(20))
        with contextlib.suppress(ProglogError):
            leaders[0].replica._driver.propose_command(body)
        return True

    # --- disks -----------------------------------------------------------------------------------

    async def _slow_disk(self, fault: Fault, node: SimNode, chance: random.Random) -> bool:
        node.set_disk_seconds(chance.choice((0.05, 0.3, 1.0)))
        self._later(fault.seconds, node.set_disk_seconds, self._world.settings.disk_seconds)
        return True

    async def _disk_full(self, fault: Fault, node: SimNode, chance: random.Random) -> bool:
        left = chance.choice((0, 3_000, 2 * self._world.settings.log.segment_bytes))
        node.disk.faults.capacity_bytes = node.disk._space_used() + left
        self._later(fault.seconds * 4, node.has_space)
        return True

    async def _disk_error(self, fault: Fault, node: SimNode, chance: random.Random) -> bool:
        """The daemon ends itself, and is started again by whoever supervises it."""
        if not node.is_open:
            return False
        self._world.disk_errors = True
        kind = chance.choice((Kind.SYNC, Kind.SYNC, Kind.WRITE, Kind.SYNC_DIRECTORY))
        node.disk.faults.next_error[kind] = errno.EIO
        self._later(fault.seconds, self._world.start, node)
        return True

    async def _rot(self, _fault: Fault, node: SimNode, chance: random.Random) -> bool:
        """One bit of a sealed segment, on one disk of the cluster, once."""
        stores = [
            name
            for name in sorted(node.disk.listing(FOLDER, durable=True))
            if name.endswith(".store") and name[:20].isdigit()
        ][:-1]
        if self._rotted or not stores or not node.is_open or self._world.lost_disk:
            return False
        path = FOLDER / chance.choice(stores)
        size = node.disk.find(path).cached.size
        if size <= PREAMBLE_BYTES or path.name not in node.disk.listing(FOLDER, durable=True):
            return False
        node.disk.flip_bit(path, chance.randrange(PREAMBLE_BYTES * 8, size * 8))
        self._rotted = node.is_rotten = self._world.lost_disk = True
        node.rotten_path, node.rotten_last = path, node.last_index
        return True

    async def _wipe(self, fault: Fault, node: SimNode, _chance: random.Random) -> bool:
        """A disk is lost, one in the life of a world: a second might be the last copy of what was
        acknowledged."""
        if self._world.lost_disk or not self._world.is_whole():
            return False
        self._world.lost_disk = True
        node.wipe()
        self._later(fault.seconds, self._world.start, node)
        return True

    async def _set_back(self, fault: Fault, node: SimNode, _chance: random.Random) -> bool:
        """A machine comes back with an older copy of its disk. Not drawn for the swarm: see
        `test_lives`. Nothing is promised of a copy that says as much as the others have written
        down of its node."""
        world = self._world
        await world._within(10.0, "it is whole", world.is_whole)
        copy = node.disk.crash(next(crash.extremes(node.disk.unsynced())).fates)
        await asyncio.sleep(fault.seconds)
        if world.lost_disk or not node.is_open or not is_older(copy, node, world.nodes):
            return False
        world.lost_disk = True
        node.set_back(copy)
        world.start(node)
        return True

    async def _copy(self, fault: Fault, node: SimNode, _chance: random.Random) -> bool:
        """A copy of a running node's directory is started on another machine. The one that runs
        answers the others, so it is the copy that they refuse."""
        world = self._world
        await world._within(10.0, "it is whole", world.is_whole)
        twin = SimNode(world, f"{node.name}-{fault.number}", node.name)
        twin.is_set_back = True
        twin.disk = node.disk.crash(next(crash.extremes(node.disk.unsynced())).fates)
        await asyncio.sleep(fault.seconds)
        if not node.is_open:
            return False
        twin.start()

        def is_doubted() -> bool:
            return twin.is_open and bool(twin.replica.standing.doubt)

        await world._within(10.0, "the copy is doubted", is_doubted)
        await asyncio.sleep(fault.seconds)
        twin.kill()
        return True

    # --- members ---------------------------------------------------------------------------------

    async def _remove(self, fault: Fault, node: SimNode, _chance: random.Random) -> bool:
        """Takes a server out of the cluster, and back in later, with its old disk."""
        wanted = self._world.wanted
        if len(wanted) <= 3 and node.name in wanted:
            spare = [each.name for each in self._world.nodes if each.name not in wanted]
            if not spare:
                return False
            wanted.add(spare[0])
        if node.name in wanted:
            wanted.discard(node.name)
        self._later(fault.seconds, wanted.add, node.name)
        return True

    async def _transfer(self, _fault: Fault, node: SimNode, chance: random.Random) -> bool:
        leaders = [each for each in self._world.nodes if each.leads]
        if not leaders:
            return False
        leader = leaders[0]
        name = chance.choice(("", node.name))
        self._world.spawn(_transfer(leader, name))
        return True


def is_older(copy: SimDisk, node: SimNode, nodes: list[SimNode]) -> bool:
    """Whether every other server has written down more of a node than is on this copy."""
    sequence, promise = read_saved(copy, FOLDER / "hard-state")
    batches = read_batches(copy, FOLDER, durable=True)
    end = batches[-1].index if batches else 0
    for other in nodes:
        if other is not node:
            floor = read_floors(other.disk, FOLDER / "floors").get(node.uuid, (0, 0, 0))
            if sequence >= floor[0] and promise.term >= floor[1] and end >= floor[2]:
                return False
    return True


async def _within_a_second(process: Process, work: Callable[[], Awaitable[object]]) -> None:
    with contextlib.suppress(ProglogError, Gone, TimeoutError):
        async with asyncio.timeout(1.0):
            await process.call(work)


async def _transfer(leader: SimNode, name: str) -> None:
    try:
        if leader.process is not None:
            await leader.process.call(lambda: leader.replica.members.transfer(name))
    except (ProglogError, Gone):
        pass
