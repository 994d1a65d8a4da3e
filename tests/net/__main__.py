"""Three nodes and a client on hosts of their own, whose network fails in ways that one can name:
how long it takes until somebody leads, and a client's record is acknowledged. A line of JSON each.

Run it by `make net`. What is tried, one after the other, is named by arguments:

    SECONDS   everything is lost for so long; counted from the end
    mute      nobody hears the leader, which hears everybody; counted from the beginning, as below
    vanish    the leader is cut off from everybody, clients too, without a word
    stop      the leader's process stands still (SIGSTOP)
    bridge    the leader and one follower do not hear each other; the third hears both
    slow      the leader's link has 400 kbit/s
    move      a follower comes back at another address
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import sys
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from time import monotonic

import uvloop

import proglog
from proglog.client.admin import Cluster
from proglog.config import Address
from proglog.errors import ProglogError
from tests.net.network import Network

COUNT = 3
CLIENT = COUNT
"""The number of the client's host."""
RPC, GOSSIP = 8400, 8401
WAIT_SECONDS = 60.0
ASK_SECONDS = 0.5
PAUSE_SECONDS = 0.01
FAULT_SECONDS = 4.0
"""How long what is not a loss of everything lasts."""


class Nodes:
    """A whole cluster, and who of it leads."""

    def __init__(self, network: Network, folder: Path) -> None:
        self.network = network
        self._folder = folder
        self.processes: list[asyncio.subprocess.Process] = []
        self.terms = [0] * COUNT
        """By node, the term that it leads in; 0 if it does not."""
        self.follows = [False] * COUNT
        """By node, whether it follows a leader."""
        self.ready = 0

    async def start(self) -> None:
        for i in range(COUNT):
            self.processes.append(await self.start_one(i))

    async def start_one(self, i: int) -> asyncio.subprocess.Process:
        command = [
            *(sys.executable, "-m", "proglog.cli", "serve", f"--node-name=n{i}"),
            f"--data-dir={self._folder / f'n{i}'}",
            f"--rpc-port={RPC}",
            f"--bind-addr={self.network.address(i)}:{GOSSIP}",
            *("--http-addr=none", "--log-format=json", "--segment-bytes=1MiB", "--allow-plaintext"),
            f"--start-join-addrs={self.network.address(0)}:{GOSSIP}" if i else "--bootstrap",
        ]
        return await self.network.start(i, command, self._folder / f"n{i}.log")

    def stop(self) -> None:
        for process in self.processes:
            with contextlib.suppress(ProcessLookupError):
                process.kill()

    @property
    def url(self) -> str:
        return "proglog://" + ",".join(f"{self.network.address(i)}:{RPC}" for i in range(COUNT))

    async def watch(self, i: int) -> None:
        """Asks a node over and over, from next to it, whatever the others can hear."""
        while True:
            address = Address(self.network.address(i), RPC)
            with contextlib.suppress(ProglogError):
                async with Cluster([address], timeout_seconds=ASK_SECONDS) as asked:
                    while True:
                        status = await asked.status()
                        leads = status.role == "leader"
                        self.terms[i] = status.term if leads else 0
                        self.follows[i] = status.role == "follower" and any(
                            server.is_leader for server in status.servers
                        )
                        voters = sum(each.suffrage == "voter" for each in status.servers)
                        self.ready = max(self.ready, voters if leads else 0)
                        await asyncio.sleep(PAUSE_SECONDS)
            self.terms[i], self.follows[i] = 0, False
            await asyncio.sleep(PAUSE_SECONDS)

    async def led(self) -> int:
        """Until somebody leads; its term."""
        await until(lambda: any(self.terms))
        return max(self.terms)

    async def leader(self) -> int:
        """Until just one leads; its number."""
        await until(lambda: sum(map(bool, self.terms)) == 1)
        return self.terms.index(max(self.terms))

    def show(self) -> None:
        for path in sorted(self._folder.glob("*.log")):
            print(
                f"--- {path.name}", *path.read_text().splitlines()[-40:], sep="\n", file=sys.stderr
            )


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(WAIT_SECONDS):
        while not condition():
            await asyncio.sleep(PAUSE_SECONDS / 10)


class Load:
    """What the client on the host of its own had acknowledged, see `tests.net.client`."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self.acknowledged: dict[int, int] = {}
        self.told = 0.0
        """When, by the clock of all hosts, the last one was."""

    async def read(self) -> None:
        assert self._process.stdout is not None
        async for line in self._process.stdout:
            offset, number, self.told = json.loads(line)
            assert offset not in self.acknowledged, "an offset is given twice"
            self.acknowledged[offset] = number

    async def news(self, since: float) -> float:
        """Until a record is acknowledged after `since`; when."""
        await until(lambda: self.told > since)
        return self.told

    async def check(self, url: str) -> None:
        """All that was acknowledged is there once, where it was said to be."""
        acknowledged, found = dict(self.acknowledged), dict[int, bytes]()
        async with asyncio.timeout(WAIT_SECONDS), proglog.connect(url) as log:
            async for record in log.consume("earliest"):
                found[record.offset] = record.value
                if record.offset >= max(acknowledged):
                    break
        missing = {o: v for o, v in acknowledged.items() if found.get(o) != b"%d" % v}
        assert not missing, f"{len(missing)} acknowledged records are lost: {missing}"
        assert len(set(found.values())) == len(found), "a record is there twice"


@contextlib.asynccontextmanager
async def nodes_with_load(folder: Path) -> AsyncIterator[tuple[Nodes, Load]]:
    nodes = Nodes(Network(COUNT + 1), folder)
    client = None
    try:
        await nodes.start()
        async with asyncio.TaskGroup() as tasks:
            background = [tasks.create_task(nodes.watch(i)) for i in range(COUNT)]
            await until(lambda: nodes.ready >= COUNT)
            command = [sys.executable, "-m", "tests.net.client", nodes.url]
            output = folder / "client.log"
            pipe = asyncio.subprocess.PIPE
            client = await nodes.network.start(CLIENT, command, output, stdout=pipe)
            load = Load(client)
            background.append(tasks.create_task(load.read()))
            await load.news(0.0)
            yield nodes, load
            client.kill()
            await load.check(nodes.url)
            for task in background:
                task.cancel()
    except BaseException:
        nodes.show()
        raise
    finally:
        nodes.stop()
        if client is not None:
            with contextlib.suppress(ProcessLookupError):
                client.kill()


Told = dict[str, float | str]


async def lose(nodes: Nodes, load: Load, seconds: float) -> Told:
    """What a loss of everything for so long costs once it is over."""
    before = await nodes.led()
    nodes.network.lose_everything()
    await asyncio.sleep(seconds)
    nodes.network.heal()
    healed = monotonic()
    term = await nodes.led()
    led = monotonic()
    written = await load.news(healed)
    return {
        "loss": seconds,
        "leader": round(led - healed, 3),
        "write": round(written - healed, 3),
        "terms": term - before,
    }


async def _deposed(nodes: Nodes, load: Load, name: str, before: int, began: float) -> Told:
    """Until another one leads, and the client has noticed."""
    await until(lambda: max(nodes.terms) > before)
    led = monotonic()
    # What was on its way is acknowledged at once; the next that is was sent to the new leader.
    written = await load.news(led)
    return {"loss": name, "leader": round(led - began, 3), "write": round(written - began, 3)}


async def mute(nodes: Nodes, load: Load) -> Told:
    leader, before = await nodes.leader(), max(nodes.terms)
    began = monotonic()
    nodes.network.lose((leader, other) for other in range(COUNT) if other != leader)
    told = await _deposed(nodes, load, "mute", before, began)
    await until(lambda: not nodes.terms[leader])
    await asyncio.sleep(FAULT_SECONDS)
    nodes.network.heal()
    return told


async def vanish(nodes: Nodes, load: Load) -> Told:
    leader, before = await nodes.leader(), max(nodes.terms)
    others = [other for other in range(COUNT + 1) if other != leader]
    began = monotonic()
    nodes.network.lose([*((leader, o) for o in others), *((o, leader) for o in others)])
    told = await _deposed(nodes, load, "vanish", before, began)
    await asyncio.sleep(FAULT_SECONDS)
    nodes.network.heal()
    return told


async def stop(nodes: Nodes, load: Load) -> Told:
    leader, before = await nodes.leader(), max(nodes.terms)
    began = monotonic()
    nodes.processes[leader].send_signal(signal.SIGSTOP)
    told = await _deposed(nodes, load, "stop", before, began)
    await asyncio.sleep(FAULT_SECONDS)
    nodes.processes[leader].send_signal(signal.SIGCONT)
    return told


async def bridge(nodes: Nodes, load: Load) -> Told:
    """The leader stays, or another one does; the client's longest wait meanwhile, and how many
    terms it took."""
    leader, before = await nodes.leader(), max(nodes.terms)
    other = (leader + 1) % COUNT
    began = monotonic()
    nodes.network.lose([(leader, other), (other, leader)])
    longest, last = 0.0, began
    while monotonic() - began < FAULT_SECONDS:
        now = await load.news(last)
        longest, last = max(longest, now - last), now
    nodes.network.heal()
    return {"loss": "bridge", "write": round(longest, 3), "terms": await nodes.led() - before}


async def slow(nodes: Nodes, load: Load) -> Told:
    """As `bridge`, while the leader's link carries little."""
    leader, before = await nodes.leader(), max(nodes.terms)
    nodes.network.slow_down(leader)
    began = last = monotonic()
    longest = 0.0
    while monotonic() - began < FAULT_SECONDS:
        now = await load.news(last)
        longest, last = max(longest, now - last), now
    nodes.network.speed_up(leader)
    return {"loss": "slow", "write": round(longest, 3), "terms": await nodes.led() - before}


async def move(nodes: Nodes, load: Load) -> Told:
    """A follower comes back at another address: how long after its start it follows."""
    leader = await nodes.leader()
    moved = max(i for i in range(COUNT) if i != leader)
    nodes.processes[moved].terminate()
    await nodes.processes[moved].wait()
    await until(lambda: not nodes.follows[moved])
    nodes.network.move(moved, 3)
    began = monotonic()
    nodes.processes[moved] = await nodes.start_one(moved)
    await until(lambda: nodes.follows[moved])
    follows = monotonic()
    written = await load.news(follows)
    return {"loss": "move", "leader": round(follows - began, 3), "write": round(written - began, 3)}


FAULTS: dict[str, Callable[[Nodes, Load], Awaitable[Told]]] = {
    fault.__name__: fault for fault in (mute, vanish, stop, bridge, slow, move)
}


async def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        async with nodes_with_load(Path(folder)) as (nodes, load):
            for each in sys.argv[1:] or ["2", "5", *FAULTS]:
                fault = FAULTS.get(each)
                told = await (fault(nodes, load) if fault else lose(nodes, load, float(each)))
                print(json.dumps(told), flush=True)
                await asyncio.sleep(1.0)
                await load.news(monotonic())


if __name__ == "__main__":
    uvloop.run(main())
