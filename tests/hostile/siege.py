"""Three real nodes whose gossip ports are under attack from outside, while clients go on.

With keys the attacker has none: it sends what is sealed with another key or not at all, and again
what the nodes themselves, and somebody with their key, sealed before.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic

import proglog
from proglog._generated.log import v1
from proglog.client.admin import Cluster
from proglog.membership import Status
from proglog.membership.address import Address
from proglog.membership.codec import packets
from proglog.membership.codec.keyring import Keyring, encode_key
from proglog.membership.codec.streams import encode_stream
from tests.cluster.harness import Processes, Server, processes
from tests.hostile.forger import Forger, Target, member
from tests.waiting import meanwhile, until

KEY, OTHER_KEY = bytes(range(32)), bytes(32)
PLAIN = Keyring((), bytes)
ROUND_SECONDS = 0.04
NONSENSE_A_ROUND = 4
RECORDED_MAX = 2000
IDLE_CONNECTIONS = 90
RECORD_SECONDS = 1.0


@dataclass(slots=True, kw_only=True)
class Outcome:
    """What came of it. Bytes of memory and seconds are for people."""

    packets: int = 0
    voters: list[str] = field(default_factory=list)
    changes: int = 0
    """Lines of the nodes' logs that tell of a server that was added or removed."""
    terms: tuple[int, int] = (0, 0)
    leaders: tuple[str, str] = ("", "")
    memory: dict[str, tuple[int, int]] = field(default_factory=dict)
    """Of each node, half-way and at the end."""
    latencies: list[float] = field(default_factory=list)

    def percentile(self, share: float) -> float:
        ordered = sorted(self.latencies)
        return ordered[min(int(share * len(ordered)), len(ordered) - 1)] if ordered else 0.0


async def besiege(folder: Path, seconds: float, *, sealed: bool, seed: int) -> Outcome:
    """Raises AssertionError where a node ends, does not answer at last, or has lost sight of the
    others."""
    options = [f"--gossip-keys={encode_key(KEY)}"] if sealed else []
    async with processes(folder, options=options) as cluster:
        siege = _Siege(cluster, await _targets(cluster), sealed, random.Random(seed))
        return await siege.run(seconds)


async def _targets(cluster: Processes) -> tuple[list[Target], str]:
    async with cluster.admin() as admin:
        status = await admin.status()
    gossip = {server.name: Address(*server.gossip) for server in cluster.servers}
    return [
        Target(name=each.id, uuid=each.uuid, rpc_addr=each.rpc_addr, gossip=gossip[each.id])
        for each in status.servers
    ], status.cluster_id


class _Siege:
    def __init__(
        self,
        cluster: Processes,
        known: tuple[list[Target], str],
        sealed: bool,
        chance: random.Random,
    ) -> None:
        self._cluster = cluster
        self._targets, cluster_id = known
        self._chance = chance
        self._forger = Forger(self._targets, cluster_id, chance)
        self._sealed = sealed
        self._wrong = Keyring((OTHER_KEY,), chance.randbytes)
        self._recorded: list[bytes] = []
        self.outcome = Outcome()

    async def run(self, seconds: float) -> Outcome:
        outcome, begun = self.outcome, await self._leader()
        if self._sealed:
            await self._record()
        changes = self._changes()
        async with (
            self._idle_connections(),
            meanwhile(self._flood()) as flood,
            meanwhile(self._streams()) as streams,
            meanwhile(self._produce()) as producing,
        ):
            await asyncio.wait([flood, streams, producing], timeout=seconds / 2)
            half_way = self._memory()
            await asyncio.wait([flood, streams, producing], timeout=seconds / 2)
            for task in (flood, streams, producing):
                assert not task.done(), task.exception()
        for server in self._cluster.servers:
            assert server.is_running, server.log
        memory = self._memory()
        outcome.memory = {name: (half_way[name], memory[name]) for name in memory}
        await self._come_to_rest()
        ended = await self._leader()
        outcome.terms = (begun.term, ended.term)
        outcome.leaders = (begun.node, ended.node)
        outcome.voters = sorted(each.id for each in ended.servers if each.suffrage == "voter")
        outcome.changes = self._changes() - changes
        return outcome

    async def _leader(self) -> v1.StatusResponse:
        leader = await self._cluster.leader()
        return await until(leader.status, "the leader answers")

    async def _come_to_rest(self) -> None:
        """Each sees the others, and a record is acknowledged."""
        names = {server.name for server in self._cluster.servers}

        async def seen(server: Server) -> bool:
            async with Cluster([server.address]) as asked:
                members = (await asked.members()).members
            return names <= {each.name for each in members if each.status == Status.ALIVE.value}

        for server in self._cluster.servers:
            await until(lambda server=server: seen(server), f"{server.name} sees the others")
        async with proglog.connect(self._cluster.url) as log:
            await log.produce(b"the siege is over")

    def _changes(self) -> int:
        texts = [server.log_path.read_text(errors="replace") for server in self._cluster.servers]
        return sum(text.count("server added") + text.count("server removed") for text in texts)

    def _memory(self) -> dict[str, int]:
        return {server.name: _resident(server) for server in self._cluster.servers}

    # --- the attacker ----------------------------------------------------------------------------

    async def _record(self) -> None:
        """What nodes send to one who is, or says that it is, a member; and accusations that were
        once sealed with their key."""
        keyring = Keyring((KEY,), self._chance.randbytes)
        self._recorded += [
            packets.seal([message], keyring, checksum=False)
            for attack in (self._forger.leaves, self._forger.deaths, self._forger.leave_intents)
            for message in attack()
        ]
        with socket.socket(type=socket.SOCK_DGRAM) as witness:
            witness.setblocking(False)
            witness.bind(("127.0.0.1", 0))
            at = Address(*witness.getsockname())
            for target in self._targets:
                alive = packets.seal([member("witness", at, 1, {})], keyring, checksum=False)
                witness.sendto(alive, target.gossip)
            loop = asyncio.get_running_loop()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(RECORD_SECONDS):
                    while len(self._recorded) < RECORDED_MAX:
                        self._recorded.append(await loop.sock_recv(witness, 65536))

    async def _flood(self) -> None:
        with socket.socket(type=socket.SOCK_DGRAM) as sender:
            sender.setblocking(False)
            while True:
                for data in self._round():
                    for target in self._targets:
                        with contextlib.suppress(OSError):  # its queue is full: a packet lost
                            sender.sendto(data, target.gossip)
                            self.outcome.packets += 1
                await asyncio.sleep(ROUND_SECONDS)

    def _round(self) -> list[bytes]:
        attack = self._chance.choice(self._forger.attacks)
        sensible = attack()
        nonsense = [self._forger.nonsense() for _ in range(NONSENSE_A_ROUND)]
        keyring = self._wrong if self._sealed and self._chance.random() < 0.5 else PLAIN
        made = [packets.seal([each], keyring, checksum=False) for each in sensible]
        made.append(packets.seal(nonsense, keyring, checksum=self._chance.random() < 0.5))
        made += self._chance.sample(self._recorded, min(len(self._recorded), len(made)))
        if not self._sealed:
            # Some of it comes again, out of its order.
            self._recorded = [*self._recorded[-RECORDED_MAX:], *self._chance.sample(made, 1)]
        return made

    async def _streams(self) -> None:
        """Whole states, halves of them, and bytes without any meaning, one connection each."""
        while True:
            for target in self._targets:
                for message in self._forger.push_pulls():
                    data = encode_stream(message, self._wrong if self._sealed else PLAIN)
                    for sent in (data, data[: len(data) // 2], self._chance.randbytes(2000)):
                        # uvloop raises RuntimeError for what is written once the node has closed.
                        with contextlib.suppress(OSError, TimeoutError, RuntimeError):
                            async with asyncio.timeout(2):
                                await _say(target.gossip, sent)
            await asyncio.sleep(ROUND_SECONDS)

    @contextlib.asynccontextmanager
    async def _idle_connections(self) -> AsyncIterator[None]:
        async with contextlib.AsyncExitStack() as idle:
            for target in self._targets:
                for _ in range(IDLE_CONNECTIONS):
                    _, writer = await asyncio.open_connection(*target.gossip)
                    idle.callback(writer.close)
            yield

    async def _produce(self) -> None:
        async with proglog.connect(self._cluster.url) as log:
            while True:
                begun = monotonic()
                await log.produce(b"goes on")
                self.outcome.latencies.append(monotonic() - begun)
                await asyncio.sleep(0.005)


async def _say(address: Address, data: bytes) -> None:
    reader, writer = await asyncio.open_connection(*address)
    try:
        writer.write(data)
        writer.write_eof()
        await reader.read()
    finally:
        writer.close()


def _resident(server: Server) -> int:
    assert server.process is not None
    status = Path(f"/proc/{server.process.pid}/status").read_text()
    (line,) = [line for line in status.splitlines() if line.startswith("VmRSS")]
    return int(line.split()[1]) * 1024
