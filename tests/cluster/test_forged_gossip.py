"""Gossip proposes, Raft decides: forged packets to real nodes take no vote away."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterable, Sequence
from pathlib import Path

import pytest

import proglog
from proglog._generated.log import v1
from proglog.cli import cluster as cluster_commands
from proglog.cli.parameters import PLAINTEXT
from proglog.membership import limits
from proglog.membership.address import Address
from proglog.membership.codec import packets
from proglog.membership.codec.keyring import Keyring
from proglog.membership.codec.messages import OURS, Alive, Dead, encode_message
from proglog.membership.codec.serf_messages import encode_tags
from tests.cluster.harness import Processes, Server, processes
from tests.waiting import meanwhile, until

pytestmark = pytest.mark.timeout(300)

PLAIN = Keyring((), bytes)
ATTACK_SECONDS = 5.0


def forge(targets: Iterable[Server], messages: Sequence[Alive | Dead]) -> None:
    """Sends each message to each node, in one datagram each, as anybody on the network can."""
    with socket.socket(type=socket.SOCK_DGRAM) as sender:
        for message in messages:
            packet = packets.seal([encode_message(message)], PLAIN, checksum=False)
            for target in targets:
                sender.sendto(packet, target.gossip)


async def keep_saying(cluster: Processes, names: Sequence[str]) -> None:
    """ "These have left", faster than they can object, for as long as it is not cancelled."""
    ahead = 0
    while True:
        ahead += 1000
        forge(cluster.servers, [left(name, ahead) for name in names])
        await asyncio.sleep(0.02)


def left(name: str, incarnation: int = limits.incarnation_ahead_max) -> Dead:
    """ "I have left", at an incarnation far ahead."""
    return Dead(incarnation=incarnation, node=name, source=name)


def phantom(number: int, server: v1.ServerStatus) -> list[Alive | Dead]:
    """A node that nobody runs has this server's uuid, and leaves."""
    name = f"phantom{number}"
    tags = {"role": "proglog", "uuid": server.uuid, "rpc_addr": server.rpc_addr}
    alive = Alive(
        incarnation=1,
        node=name,
        host=Address("127.0.0.1", 1).packed,
        port=1,
        meta=encode_tags(tags),
        versions=OURS,
    )
    return [alive, Dead(incarnation=1, node=name, source=name)]


async def said(cluster: Processes, name: str) -> set[str]:
    """What the nodes' gossip says of a member."""
    found = set()
    for server in cluster.servers:
        if server.is_running:
            async with proglog.client.admin.Cluster([server.address]) as asked:
                members = (await asked.members()).members
                found |= {member.status for member in members if member.name == name}
    return found


async def voters(cluster: Processes) -> list[str]:
    async with cluster.admin() as admin:
        servers = (await admin.status()).servers
    return sorted(each.id for each in servers if each.suffrage == "voter")


async def test_a_forged_leave_takes_no_vote_away(tmp_path: Path) -> None:
    async with processes(tmp_path) as cluster:
        async with meanwhile(keep_saying(cluster, [each.name for each in cluster.servers])):
            await until(lambda: said_of_all(cluster, "left"), "gossip says that all have left")
            await asyncio.sleep(ATTACK_SECONDS)
            # The next leader has not heard from anybody when it first looks.
            async with cluster.admin() as admin:
                await admin.transfer()
            await asyncio.sleep(ATTACK_SECONDS)
        assert await voters(cluster) == ["n0", "n1", "n2"]
        async with proglog.connect(cluster.url) as log:
            assert await log.produce(b"goes on") == 0
        for server in cluster.servers:
            assert "server removed" not in server.log_path.read_text()


async def said_of_all(cluster: Processes, status: str) -> bool:
    return all([status in await said(cluster, server.name) for server in cluster.servers])


async def test_a_phantom_with_the_uuid_of_a_voter_changes_nothing(tmp_path: Path) -> None:
    async with processes(tmp_path) as cluster:
        async with cluster.admin() as admin:
            servers = (await admin.status()).servers
        for number, server in enumerate(servers):
            forge(cluster.servers, phantom(number, server))
        for number in range(len(servers)):
            name = f"phantom{number}"
            await until(lambda name=name: _has_left(cluster, name), "the phantom has left")
        await asyncio.sleep(ATTACK_SECONDS)
        assert await voters(cluster) == ["n0", "n1", "n2"]
        async with proglog.connect(cluster.url) as log:
            assert await log.produce(b"goes on") == 0
        leader = await cluster.leader()
        assert leader.log_path.read_text().count("but not its name") == len(servers)


async def _has_left(cluster: Processes, name: str) -> bool:
    return await said(cluster, name) == {"left"}


def elsewhere(server: v1.ServerStatus, gossip: Address, cluster_id: str, count: int) -> Alive:
    """ "This server is now at ...", where nobody is, each time somewhere else."""
    tags = {
        "cluster_name": "proglog",
        "role": "proglog",
        "cluster": cluster_id,
        "uuid": server.uuid,
        "rpc_addr": f"127.0.0.{2 + count % 200}:1",
    }
    return Alive(
        incarnation=10_000 + count,
        node=server.id,
        host=gossip.packed,
        port=gossip.port,
        meta=encode_tags(tags),
        versions=OURS,
    )


async def test_a_forged_address_cuts_nobody_off(tmp_path: Path) -> None:
    async with processes(tmp_path) as cluster:
        async with cluster.admin() as admin:
            status = await admin.status()
        gossip = {server.name: Address(*server.gossip) for server in cluster.servers}
        loop = asyncio.get_running_loop()
        end, count, produced = loop.time() + 2 * ATTACK_SECONDS, 0, 0
        async with proglog.connect(cluster.url) as log:
            while loop.time() < end:
                for server in status.servers:
                    claim = elsewhere(server, gossip[server.id], status.cluster_id, count)
                    forge([one for one in cluster.servers if one.name != server.id], [claim])
                    count += 1
                # Far longer than it takes, far shorter than what a wrong address cost.
                async with asyncio.timeout(10):
                    assert await log.produce(b"goes on") == produced
                produced += 1
                await asyncio.sleep(0.15)
        assert produced > 3 * ATTACK_SECONDS
        for server in cluster.servers:
            assert "cannot reach peer" not in server.log_path.read_text()


async def test_a_node_that_leaves_is_removed_however_it_says_so(tmp_path: Path) -> None:
    async with processes(tmp_path, count=5) as cluster:
        leader = await cluster.leader()
        planned, stock = [server for server in cluster.servers if server is not leader][:2]
        async with proglog.client.admin.Cluster([planned.address]) as admin:
            await admin.leave()
        assert planned.process is not None
        assert await planned.process.wait() == 0
        rest = sorted({f"n{i}" for i in range(5)} - {planned.name})
        await until(lambda: _are(cluster, rest), "the one that asked is out")
        # As a stock agent goes: its gossip says that it has left, and the process ends.
        await stock.kill()
        forge([each for each in cluster.servers if each.is_running], [left(stock.name)])
        rest.remove(stock.name)
        await until(lambda: _are(cluster, rest), "the one that went is out")


async def _are(cluster: Processes, names: list[str]) -> bool:
    return await voters(cluster) == names


async def test_many_members_are_listed_whole(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    server = Server(tmp_path, "n0", ["--bootstrap"])
    await server.start()
    try:
        await until(server.status, "it answers")
        names = [f"fake{number:04}" for number in range(600)]
        wanted = sorted([*names, "n0"])

        async def listed() -> bool:
            # Again, what it was not there yet to hear, or had no room for.
            for start in range(0, len(names), 50):
                forge([server], [made_up(name) for name in names[start : start + 50]])
                await asyncio.sleep(0.02)
            async with proglog.client.admin.Cluster([server.address]) as asked:
                return [member.name for member in (await asked.members()).members] == wanted

        await until(listed, "all are listed")
        assert await cluster_commands._members([server.address], PLAINTEXT, as_json=True) == 0
        assert len(capsys.readouterr().out.splitlines()) == len(wanted)
        assert await cluster_commands._status([server.address], PLAINTEXT, as_json=False) == 0
    finally:
        await server.kill()


def made_up(name: str) -> Alive:
    return Alive(
        incarnation=1,
        node=name,
        host=Address("127.0.0.1", 1).packed,
        port=1,
        meta=encode_tags({"role": "x", "dc": "y", "rack": "z"}),
        versions=OURS,
    )
