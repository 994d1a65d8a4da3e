"""Three nodes on hosts of their own, whose network loses everything for a while: how long after it
is whole again somebody leads, and a client's record is acknowledged. Prints a line of JSON a loss.

Run it by `make net`; a loss is its seconds, or "mute": only what the leader says is lost.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from time import monotonic

import uvloop

import proglog
from proglog.client.admin import Cluster
from proglog.config import Address
from proglog.errors import ProglogError
from tests.net.network import Network

COUNT = 3
RPC, GOSSIP = 8400, 8401
WAIT_SECONDS = 60.0
ASK_SECONDS = 0.5
PAUSE_SECONDS = 0.01


class Nodes:
    """A whole cluster, and who of it leads."""

    def __init__(self, network: Network, folder: Path) -> None:
        self.network = network
        self._folder = folder
        self._processes: list[asyncio.subprocess.Process] = []
        self.terms = [0] * COUNT
        """By node, the term that it leads in; 0 if it does not."""
        self.ready = 0

    async def start(self) -> None:
        for i in range(COUNT):
            command = [
                *(sys.executable, "-m", "proglog.cli", "serve", f"--node-name=n{i}"),
                f"--data-dir={self._folder / f'n{i}'}",
                f"--rpc-port={RPC}",
                f"--bind-addr={self.network.address(i)}:{GOSSIP}",
                *(
                    "--http-addr=none",
                    "--allow-plaintext",
                    "--log-format=json",
                    "--segment-bytes=1MiB",
                ),
                f"--start-join-addrs={self.network.address(0)}:{GOSSIP}" if i else "--bootstrap",
            ]
            output = self._folder / f"n{i}.log"
            self._processes.append(await self.network.start(i, command, output))

    def stop(self) -> None:
        for process in self._processes:
            process.kill()

    @property
    def url(self) -> str:
        return "proglog://" + ",".join(f"{self.network.address(i)}:{RPC}" for i in range(COUNT))

    async def watch(self, i: int) -> None:
        """Asks a node over and over, from next to it, whatever the others can hear."""
        address = Address(self.network.address(i), RPC)
        while True:
            with contextlib.suppress(ProglogError):
                async with Cluster([address], timeout_seconds=ASK_SECONDS) as asked:
                    while True:
                        status = await asked.status()
                        leads = status.role == "leader"
                        self.terms[i] = status.term if leads else 0
                        voters = sum(each.suffrage == "voter" for each in status.servers)
                        self.ready = max(self.ready, voters if leads else 0)
                        await asyncio.sleep(PAUSE_SECONDS)
            self.terms[i] = 0
            await asyncio.sleep(PAUSE_SECONDS)

    async def led(self) -> int:
        """Until somebody leads; its term."""
        async with asyncio.timeout(WAIT_SECONDS):
            while not any(self.terms):
                await asyncio.sleep(PAUSE_SECONDS)
        return max(self.terms)

    def show(self) -> None:
        for path in sorted(self._folder.glob("*.log")):
            print(
                f"--- {path.name}", *path.read_text().splitlines()[-40:], sep="\n", file=sys.stderr
            )


class Load:
    """Produces one record after the other, for as long as the world is there."""

    def __init__(self) -> None:
        self.acknowledged: dict[int, bytes] = {}
        self.unknown = 0
        self.told = monotonic()

    async def run(self, url: str) -> None:
        number = 0
        async with proglog.connect(url, timeout_seconds=5.0) as log:
            while True:
                number += 1
                value = b"%d" % number
                try:
                    offset = await log.produce(value)
                except ProglogError:
                    self.unknown += 1
                else:
                    assert offset not in self.acknowledged, "an offset is given twice"
                    self.acknowledged[offset] = value
                    self.told = monotonic()
                await asyncio.sleep(PAUSE_SECONDS)

    async def news(self) -> float:
        """Until a record is acknowledged that was not before; when."""
        before = self.told
        async with asyncio.timeout(WAIT_SECONDS):
            while self.told == before:
                await asyncio.sleep(PAUSE_SECONDS / 10)
        return self.told

    async def check(self, url: str) -> None:
        """All that was acknowledged is there once, where it was said to be."""
        acknowledged, found = dict(self.acknowledged), dict[int, bytes]()
        async with asyncio.timeout(WAIT_SECONDS), proglog.connect(url) as log:
            async for record in log.consume("earliest"):
                found[record.offset] = record.value
                if record.offset >= max(acknowledged):
                    break
        missing = {o: v for o, v in acknowledged.items() if found.get(o) != v}
        assert not missing, f"{len(missing)} acknowledged records are lost: {missing}"
        assert len(set(found.values())) == len(found), "a record is there twice"


@contextlib.asynccontextmanager
async def nodes_with_load(folder: Path) -> AsyncIterator[tuple[Nodes, Load]]:
    nodes, load = Nodes(Network(COUNT), folder), Load()
    try:
        await nodes.start()
        async with asyncio.TaskGroup() as tasks:
            background = [tasks.create_task(nodes.watch(i)) for i in range(COUNT)]
            async with asyncio.timeout(WAIT_SECONDS):
                while nodes.ready < COUNT:
                    await asyncio.sleep(PAUSE_SECONDS)
            background.append(tasks.create_task(load.run(nodes.url)))
            await load.news()
            yield nodes, load
            await load.check(nodes.url)
            for task in background:
                task.cancel()
    except BaseException:
        nodes.show()
        raise
    finally:
        nodes.stop()


async def lose(nodes: Nodes, load: Load, seconds: float) -> dict[str, float]:
    """What a loss of everything for so long costs once it is over."""
    await load.news()
    before = await nodes.led()
    nodes.network.lose_everything()
    await asyncio.sleep(seconds)
    nodes.network.heal()
    healed = monotonic()
    term = await nodes.led()
    led = monotonic()
    written = await load.news()
    return {
        "loss": seconds,
        "leader": round(led - healed, 3),
        "write": round(written - healed, 3),
        "terms": term - before,
    }


async def mute_leader(nodes: Nodes, load: Load, seconds: float = 5.0) -> dict[str, float | str]:
    """Nobody hears the leader, which hears everybody: another one leads, and it knows in time."""
    await load.news()
    before = await nodes.led()
    leader = nodes.terms.index(before)
    nodes.network.lose((leader, other) for other in range(COUNT) if other != leader)
    cut = monotonic()
    async with asyncio.timeout(WAIT_SECONDS):
        while max(nodes.terms) <= before or nodes.terms[leader]:
            await asyncio.sleep(PAUSE_SECONDS)
    led = monotonic()
    await load.news()
    written = await load.news()
    await asyncio.sleep(seconds)
    nodes.network.heal()
    return {"loss": "mute", "leader": round(led - cut, 3), "write": round(written - cut, 3)}


async def main() -> None:
    losses = sys.argv[1:] or ["2", "5", "14"]
    with tempfile.TemporaryDirectory() as folder:
        async with nodes_with_load(Path(folder)) as (nodes, load):
            for each in losses:
                mute = each == "mute"
                told = await (mute_leader(nodes, load) if mute else lose(nodes, load, float(each)))
                print(json.dumps(told), flush=True)
                await asyncio.sleep(1.0)


uvloop.run(main())
