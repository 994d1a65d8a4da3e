"""Clusters of real processes on 127.0.0.1: started, killed, paused, wiped and watched."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import sys
from collections.abc import AsyncIterator, Iterable
from pathlib import Path

from proglog._generated.log import v1
from proglog.client.admin import Cluster
from proglog.config import Address
from proglog.errors import ProglogError
from tests.ports import free_port
from tests.waiting import DEADLINE_SECONDS, until

ROOT = Path(__file__).resolve().parent.parent.parent
ASK_SECONDS = 1.0


class Server:
    """One `proglog serve`, in as many lives as a test gives it."""

    def __init__(self, folder: Path, name: str, options: Iterable[str]) -> None:
        self.name = name
        self.data_dir = folder / name
        self.log_path = folder / f"{name}.log"
        self.address = Address("127.0.0.1", free_port())
        self.gossip = Address("127.0.0.1", free_port())
        self.options = tuple(options)
        self.process: asyncio.subprocess.Process | None = None

    @property
    def is_running(self) -> bool:
        return self.process is not None and self.process.returncode is None

    async def start(self) -> None:
        """Starts the process; `Processes.whole` waits until it is of use."""
        assert not self.is_running
        with self.log_path.open("ab") as log:
            self.process = await asyncio.create_subprocess_exec(
                sys.executable,
                *("-m", "proglog.cli", "serve"),
                f"--data-dir={self.data_dir}",
                f"--node-name={self.name}",
                f"--rpc-port={self.address.port}",
                f"--bind-addr={self.gossip}",
                *("--http-addr=none", "--log-format=json"),
                *self.options,
                cwd=ROOT,
                stdout=log,
                stderr=log,
            )

    def signal(self, number: signal.Signals) -> None:
        assert self.process is not None
        self.process.send_signal(number)

    def pause(self) -> None:
        self.signal(signal.SIGSTOP)

    def resume(self) -> None:
        self.signal(signal.SIGCONT)

    async def kill(self) -> None:
        self.signal(signal.SIGKILL)
        await self._wait()

    async def stop(self) -> None:
        """As an orchestrator does; it must end well."""
        self.signal(signal.SIGTERM)
        status = await self._wait()
        assert status == 0, f"{self.name} ended with {status}\n{self.log}"

    async def _wait(self) -> int:
        assert self.process is not None
        async with asyncio.timeout(DEADLINE_SECONDS):
            return await self.process.wait()

    async def wipe(self) -> None:
        """Its disk is lost."""
        assert not self.is_running
        await asyncio.to_thread(shutil.rmtree, self.data_dir)

    async def status(self) -> v1.StatusResponse | None:
        """What it knows of the cluster; None if it does not answer."""
        async with Cluster([self.address], timeout_seconds=ASK_SECONDS) as asked:
            with contextlib.suppress(ProglogError):
                return await asked.status()
        return None

    async def is_deposed(self) -> bool:
        """Whether it answers, and that it does not lead."""
        status = await self.status()
        return status is not None and status.role != "leader"

    @property
    def log(self) -> str:
        """The end of what it wrote."""
        if not self.log_path.exists():
            return f"--- {self.name}: never started"
        lines = self.log_path.read_text(errors="replace").splitlines()[-40:]
        return "\n".join([f"--- {self.name} ({self.address})", *lines])


class Processes:
    """A cluster. Its servers run until `close`."""

    def __init__(self, folder: Path, options: Iterable[str]) -> None:
        self._folder = folder
        self._options = tuple(options)
        self.servers: list[Server] = []

    def add(self) -> Server:
        """One more server, not started: the first begins the cluster, the others join it."""
        how = f"--start-join-addrs={self.servers[0].gossip}" if self.servers else "--bootstrap"
        server = Server(self._folder, f"n{len(self.servers)}", (how, *self._options))
        self.servers.append(server)
        return server

    async def start(self, servers: Iterable[Server] = ()) -> None:
        """Starts those that do not run, at once."""
        chosen = list(servers) or [each for each in self.servers if not each.is_running]
        await asyncio.gather(*(server.start() for server in chosen))

    @property
    def url(self) -> str:
        return "proglog://" + ",".join(str(server.address) for server in self.servers)

    def admin(self) -> Cluster:
        """An operator's view, through whichever server answers."""
        return Cluster([server.address for server in self.servers if server.is_running])

    async def leader(self) -> Server:
        """The one that leads, once one does."""
        return await until(self._leader, "somebody leads")

    async def _leader(self) -> Server | None:
        found: dict[int, Server] = {}
        for server in self.servers:
            status = await server.status() if server.is_running else None
            if status is not None and status.role == "leader":
                found[status.term] = server
        return found[max(found)] if found else None

    async def healthy(self) -> None:
        """Until all servers that run are voters, answer, and have what is committed by now."""
        leader = await self.leader()
        status = await until(leader.status, "the leader answers")
        await until(lambda: self._agree(status.commit_index), "all servers are up to date voters")

    async def whole(self) -> int:
        """Without load: until all servers that run are voters and have applied the same, up to the
        index that this returns."""
        return await until(self._agree, "all servers are voters and agree")

    async def _agree(self, upto: int = 0) -> int:
        running = [server for server in self.servers if server.is_running]
        found = await asyncio.gather(*(server.status() for server in running))
        told = [status for status in found if status is not None]
        leaders = [status for status in told if status.role == "leader"]
        if len(told) < len(running) or len(leaders) != 1:
            return 0
        servers = leaders[0].servers
        if sorted(each.id for each in servers) != [server.name for server in running]:
            return 0
        # How far it is itself, the leader does not say.
        peers = [each for each in servers if not each.is_leader]
        if not all(each.suffrage == "voter" for each in servers):
            return 0
        if not all(each.active for each in peers):
            return 0
        reached = {each.match_index or 0 for each in peers}
        if upto:
            return min(reached, default=upto) >= upto
        reached |= {status.applied_index for status in told}
        return reached.pop() if len(reached) == 1 else 0

    async def close(self) -> None:
        for server in self.servers:
            if server.is_running:
                await server.kill()


@contextlib.asynccontextmanager
async def processes(
    folder: Path, count: int = 3, options: Iterable[str] = ()
) -> AsyncIterator[Processes]:
    """A whole cluster of so many. If the test fails, the ends of the servers' logs are shown."""
    cluster = Processes(folder, options)
    try:
        for _ in range(count):
            cluster.add()
        await cluster.start()
        await cluster.whole()
        yield cluster
        for server in cluster.servers:
            assert "Traceback" not in server.log, server.log
    except BaseException:
        for server in cluster.servers:
            print(server.log)
        raise
    finally:
        await cluster.close()


def rounds(least: int) -> int:
    """How often a fault is repeated: `least`, or PROGLOG_CHAOS_ROUNDS (20 for a long look)."""
    return int(os.environ.get("PROGLOG_CHAOS_ROUNDS", "0")) or least
