"""Real nodes whose disks go back in time, and a majority that is lost for good."""

from __future__ import annotations

import asyncio
import shutil
import sys
import urllib.error
import urllib.request
from pathlib import Path

import pytest

import proglog
from tests.cluster.harness import ROOT, Processes, Server, processes
from tests.waiting import until

pytestmark = pytest.mark.timeout(600)


async def command(*arguments: str) -> tuple[int, str]:
    """Exit status and all that a command says."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "proglog.cli", *arguments),
        cwd=ROOT,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    said, _ = await process.communicate()
    return process.returncode or 0, said.decode()


async def why_not_ready(server: Server) -> str:
    """What /readyz says, if it is 503."""

    def ask() -> str:
        try:
            urllib.request.urlopen(f"http://{server.address}/readyz", timeout=5).close()
        except urllib.error.HTTPError as error:
            with error:
                return error.read().decode()
        except OSError:
            return ""
        return ""

    return await asyncio.to_thread(ask)


async def produce(cluster: Processes, values: list[bytes]) -> None:
    async with proglog.connect(cluster.url) as log:
        await asyncio.gather(*(log.produce(value) for value in values))
    await cluster.whole()


async def test_a_disk_that_went_back_and_a_majority_that_is_lost(tmp_path: Path) -> None:
    first, second = [b"a%d" % n for n in range(50)], [b"b%d" % n for n in range(50)]
    async with processes(tmp_path) as cluster:
        n0, n1, n2 = cluster.servers
        await produce(cluster, first)
        await n2.stop()
        await asyncio.to_thread(shutil.copytree, n2.data_dir, tmp_path / "copy")
        await n2.start()
        await produce(cluster, second)

        # It is set back, says why it does nothing, and comes back as a new server.
        await n2.kill()
        await n2.wipe()
        await asyncio.to_thread(shutil.copytree, tmp_path / "copy", n2.data_dir)
        await n2.start()

        async def is_doubted() -> bool:
            return f"proglog renew {n2.data_dir}" in await why_not_ready(n2)

        await until(is_doubted, "it says what to do")
        status, said = await command("renew", str(n2.data_dir))
        assert (status, "in use" in said) == (2, True), said
        await n2.stop()
        status, said = await command("renew", str(n2.data_dir))
        assert (status, "is a new server now" in said) == (0, True), said
        await n2.start()
        await cluster.whole()

        # Two of three are lost for good; not while they answer.
        await n2.stop()
        status, said = await command("recover", str(n2.data_dir), "--accept-loss")
        assert (status, "the cluster has its majority" in said) == (2, True), said
        await n0.kill()
        await n1.kill()
        status, said = await command("recover", str(n2.data_dir))
        assert (status, "its log ends at" in said) == (0, True), said
        status, said = await command("recover", str(n2.data_dir), "--accept-loss")
        assert (status, "is the only server of cluster" in said) == (0, True), said
        cluster_id = said.rsplit("--cluster ", 1)[1].strip()
        for other in (n0, n1):
            status, said = await command("renew", str(other.data_dir), "--cluster", cluster_id)
            assert (status, cluster_id in said) == (0, True), said
        await cluster.start()
        await cluster.whole()
        async with proglog.connect(cluster.url) as log:
            found = [record.value async for record in log.consume("earliest", follow=False)]
        assert sorted(found) == sorted(first + second)
