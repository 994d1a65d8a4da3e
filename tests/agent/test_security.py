"""Whole nodes that speak TLS with clients and with each other."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import os
import random
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

import proglog
from proglog.auth.certificates import Use
from proglog.cli import backup
from proglog.config import Address, NodeConfig, SecurityConfig
from proglog.errors import ConfigurationError, PermissionDenied, ProglogError, Unauthenticated
from tests.agent.nodes import Nodes, some_nodes
from tests.auth import original
from tests.pki import LOOPBACK, Authority, Files
from tests.waiting import until


class World:
    """Nodes of a cluster, and authorities for clients and peers."""

    def __init__(self, folder: Path, nodes: Nodes) -> None:
        self.nodes = nodes
        self.clients = Authority(folder / "pki", "clients")
        self.peers = Authority(folder / "pki", "peers")
        self.root = self.clients.client()
        self.server = self.clients.server()

    def security(self, name: str, peer: Files | None = None) -> SecurityConfig:
        own = peer or self.peers.peer(name)
        return SecurityConfig(
            server_tls_cert_file=self.server.cert,
            server_tls_key_file=self.server.key,
            server_tls_ca_file=self.server.ca,
            peer_tls_cert_file=own.cert,
            peer_tls_key_file=own.key,
            peer_tls_ca_file=own.ca,
            allow_all_clients=True,
        )

    def config(self, name: str, peer: Files | None = None) -> None:
        self.nodes.config(name, security=self.security(name, peer))

    def log(self, files: Files | None = None, seconds: float = 30.0) -> proglog.Log:
        mine = files or self.root
        return proglog.connect(
            self.nodes.url(self.nodes.running),
            tls=proglog.Tls(ca=mine.ca, cert=mine.cert, key=mine.key),
            timeout_seconds=seconds,
        )


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    async with some_nodes(tmp_path) as nodes:
        yield World(tmp_path, nodes)


async def test_a_cluster_with_tls_everywhere(world: World, tmp_path: Path) -> None:
    """Formed by gossip, so that nodes identify each other and become voters over TLS; and nobody
    without a certificate of the right kind gets a word."""
    nodes = world.nodes
    for name in "abc":
        world.config(name)
    await nodes.start("a", bootstrap=True)
    joined = nodes.gossip("a")
    await asyncio.gather(*(nodes.start(name, start_join_addrs=joined) for name in "bc"))
    await nodes.voters(*"abc")
    async with world.log() as log:
        offset = await log.produce(b"sealed")
        assert (await log.read(offset)).value == b"sealed"
    stranger = Authority(tmp_path / "strangers").client(trusts=world.clients)
    for refused in (stranger, dataclasses.replace(world.peers.peer("b"), ca=world.clients.ca)):
        async with world.log(refused) as log:
            with pytest.raises(Unauthenticated, match="does not accept our certificate"):
                await log.describe()
    async with proglog.connect(nodes.url("a"), timeout_seconds=1) as log:
        with pytest.raises(ProglogError):
            await log.describe()
    leader = await nodes.find_leader()
    leaving = next(name for name in "abc" if nodes.running[name] is not leader)
    await nodes.running[leaving].leave()
    await nodes.stop(leaving)
    await nodes.voters(*(name for name in "abc" if name != leaving))


async def test_w35_a_node_is_who_the_configuration_says_or_nobody(world: World) -> None:
    """A peer's certificate is another node's: it is not dialled, and its calls are refused."""
    nodes = world.nodes
    for name in "ab":
        world.config(name)
    await nodes.start("a", bootstrap=True)
    # A client's certificate of the peers' authority, and a wrong name.
    wrong = world.peers.issue(Use.PEER, "c", ("proglog:peer:c", *LOOPBACK))
    world.config("b", wrong)
    await nodes.start("b", start_join_addrs=nodes.gossip("a"))

    async def is_refused() -> bool:
        leader = nodes.running["a"].replica
        return any(server.name == "b" for server in leader.servers())

    # It says that it is b: a, which asks it, adds it; but no lane opens, so it never votes.
    await until(is_refused, "a has heard of b")
    peer = nodes.running["a"].peers.peer(nodes.running["b"].replica.identity.uuid)
    await until(lambda: peer.control._failures >= 3, "a has tried to reach b")
    assert not peer.control.is_open
    assert nodes.running["b"].replica.applied_index == 0


async def test_a_dns_name_will_do_where_no_uri_says_more(world: World) -> None:
    """As cfssl and cert-manager make them."""
    nodes = world.nodes
    for name in "ab":
        world.config(name, world.peers.issue(Use.PEER, f"host-{name}", LOOPBACK))
    await nodes.form(*"a")
    await nodes.start("b", start_join_addrs=nodes.gossip("a"))

    async def has_caught_up() -> bool:
        index = nodes.running["a"].replica.applied_index
        return nodes.running["b"].replica.applied_index == index > 0

    await until(has_caught_up, "b follows a")


async def test_optional_speaks_to_nodes_that_are_off(world: World) -> None:
    """In the middle of a rolling restart: nothing is lost whoever dials whom."""
    nodes = world.nodes
    for name in "bc":
        world.config(name)
        security = nodes.config(name).security
        nodes.config(name, security=dataclasses.replace(security, tls="optional"))
    await nodes.form(*"abc")
    async with proglog.connect(nodes.url()) as log:
        await log.produce(b"plain")
    async with proglog.connect(
        nodes.url("bc"), tls=proglog.Tls(ca=world.root.ca, cert=world.root.cert, key=world.root.key)
    ) as log:
        assert [record.value async for record in log.consume(follow=False)] == [b"plain"]


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"server_tls_ca_file": None}, "without server-tls-ca-file no client can prove"),
        ({"allow_all_clients": False}, "nothing says what clients may do"),
        ({"server_tls_key_file": None}, "server-tls-cert-file is given without server-tls-key-f"),
        ({"acl_policy_file": Path("p")}, "acl-policy-file is given without acl-model-file"),
    ],
)
async def test_w37_what_is_missing_is_said_before_anything_starts(
    world: World, changes: dict[str, object], why: str
) -> None:
    with pytest.raises(ConfigurationError, match=why):
        dataclasses.replace(world.security("a"), **changes)  # type: ignore[arg-type]


async def test_a_broken_file_ends_the_start(world: World) -> None:
    for broken, why in (
        (lambda files: files.key.write_text("nothing"), "cannot be used"),
        (lambda files: files.cert.unlink(), "peer-tls-cert-file .*No such file"),
    ):
        files = world.peers.peer("a")
        broken(files)
        world.config("a", files)
        with pytest.raises(ConfigurationError, match=why):
            await world.nodes.start("a", bootstrap=True)


async def test_plaintext_is_for_this_machine_unless_said_otherwise(tmp_path: Path) -> None:
    from proglog.agent.security import check_listener

    def config(**changes: object) -> NodeConfig:
        return NodeConfig(
            bind_addr=Address("10.1.2.3", 0),
            security=SecurityConfig(**changes),  # type: ignore[arg-type]
        )

    check_listener(config(), ("127.0.0.1", 1))
    check_listener(config(allow_plaintext=True), ("10.1.2.3", 1))
    with pytest.raises(ConfigurationError, match="say allow-plaintext"):
        check_listener(config(), ("10.1.2.3", 1))
    keys = dataclasses.replace(config(), gossip_keys=("a",))
    with pytest.raises(ConfigurationError, match="say allow-plaintext"):
        check_listener(keys, ("10.1.2.3", 1))


# --- changes while it runs -----------------------------------------------------------------------


class Load:
    """Produces one record after the other, and follows them, until it is told to end."""

    def __init__(self, log: proglog.Log) -> None:
        self._log = log
        self._ending = False
        self.acknowledged = 0
        self.consumed = 0

    async def run(self) -> None:
        """Raises what any call raises."""
        async with self._log as log:
            following = asyncio.ensure_future(self._follow(log))
            while not self._ending:
                await log.produce(b"x")
                self.acknowledged += 1
            await until(lambda: self.consumed >= self.acknowledged or following.done())
            following.cancel()
            await asyncio.gather(following, return_exceptions=True)
        assert self.consumed >= self.acknowledged

    async def _follow(self, log: proglog.Log) -> None:
        async for _ in log.consume("earliest"):
            self.consumed += 1

    def end(self) -> None:
        self._ending = True


def rotations() -> int:
    return int(os.environ.get("PROGLOG_ROTATIONS", "20"))


async def test_w39_every_file_is_rotated_under_load(world: World, tmp_path: Path) -> None:
    """Certificates, keys, authorities and policy, of nodes and of the client; each third time they
    are broken, and nothing changes."""
    nodes, changing = world.nodes, random.Random(39)
    peers = {name: world.peers.peer(name) for name in "abc"}
    acl = tmp_path / "model.conf", tmp_path / "policy.csv"
    acl[0].write_bytes(original.MODEL)
    acl[1].write_bytes(original.POLICY)
    for name in "abc":
        security = dataclasses.replace(
            world.security(name, peers[name]),
            acl_model_file=acl[0],
            acl_policy_file=acl[1],
            allow_all_clients=False,
        )
        nodes.config(name, security=security)
    await nodes.start("a", bootstrap=True)
    joined = nodes.gossip("a")
    await asyncio.gather(*(nodes.start(name, start_join_addrs=joined) for name in "bc"))
    await nodes.voters(*"abc")
    securities = [node.security for node in nodes.running.values()]
    load = Load(world.log())
    running = asyncio.ensure_future(load.run())
    broken = 0
    for number in range(rotations()):
        versions = [security._files.version for security in securities]
        seen = load.acknowledged
        if number % 3 == 2:
            broken += 1
            world.server.key.write_bytes(world.clients.client().key.read_bytes())
            acl[1].write_bytes(b"p, root\n")
        else:
            world.clients.server()
            world.clients.client()
            world.peers.peer(changing.choice("abc"))
            acl[1].write_bytes(original.POLICY + f"p, u{number}, *, consume\n".encode())
        for security in securities:
            await security.reload(at_once=True)
        now = [security._files.version for security in securities]
        assert now == [version + (number % 3 != 2) for version in versions]
        await until(lambda seen=seen: load.acknowledged > seen or running.done(), "calls go on")
    load.end()
    await running
    assert broken == rotations() // 3


async def test_a_policy_that_takes_a_right_away_ends_what_goes_on(
    world: World, tmp_path: Path
) -> None:
    acl = tmp_path / "model.conf", tmp_path / "policy.csv"
    acl[0].write_bytes(original.MODEL)
    acl[1].write_bytes(original.POLICY)
    security = dataclasses.replace(
        world.security("a"),
        acl_model_file=acl[0],
        acl_policy_file=acl[1],
        allow_all_clients=False,
        audit_file=tmp_path / "audit",
    )
    node = await world.nodes.start("a", bootstrap=True, security=security)
    async with world.log() as log:
        await log.produce(b"a")
        following = log.consume("earliest")
        assert (await anext(following)).value == b"a"
        waiting = asyncio.ensure_future(anext(following))
        await until(lambda: node.security.gate._waiting, "it waits for the next record")
        acl[1].write_bytes(b"p, root, *, produce\n")
        await node.security.reload(at_once=True)
        with pytest.raises(PermissionDenied):
            await waiting
        await log.produce(b"b")
    async with world.log(world.clients.client("nobody")) as log:
        with pytest.raises(PermissionDenied, match="'nobody' not permitted to produce"):
            await log.produce(b"c")
    wanted = {
        ("start", "Success"),
        ("produce", "Success"),
        ("consume", "Success"),
        ("consume", "Failure"),
        ("produce", "Failure"),
        ("reload acl", "Success"),
    }

    def told() -> set[tuple[str, str]]:
        lines = (tmp_path / "audit").read_text().splitlines()
        return {(line["activity"], line["status"]) for line in map(json.loads, lines)}

    await until(lambda: told() >= wanted, "all of it is told")


async def test_tls_is_turned_on_and_off_by_rolling_restarts(world: World) -> None:
    """off, optional, required, optional, off: the records of a client that speaks what both sides
    of a step speak are all acknowledged, and all are there."""
    nodes = world.nodes
    await nodes.form(*"abc")
    acknowledged = 0
    steps = [("off", "optional"), ("optional", "required")]
    for before, after in [*steps, *((b, a) for a, b in reversed(steps))]:
        encrypted = "required" in {before, after}
        load = Load(world.log() if encrypted else proglog.connect(nodes.url()))
        running = asyncio.ensure_future(load.run())
        for name in "abc":
            seen = load.acknowledged
            await nodes.stop(name)
            security = dataclasses.replace(world.security(name), tls=after)
            await nodes.start(
                name, bootstrap=None, security=security, start_join_addrs=nodes.gossip(*"abc")
            )
            await nodes.voters(*"abc")
            await until(lambda seen=seen: load.acknowledged > seen or running.done())
        load.end()
        await running
        acknowledged += load.acknowledged
    async with proglog.connect(nodes.url()) as log:

        async def all_are_there() -> bool:
            """Whoever is asked may be a follower, which hears of the last ones a moment later."""
            return (await log.describe()).next >= acknowledged

        await until(all_are_there, "what was acknowledged is there")


async def test_a_backup_is_taken_over_tls(world: World, tmp_path: Path) -> None:
    world.config("a")
    node = await world.nodes.start("a", bootstrap=True)
    async with world.log() as log:
        await log.produce(b"sealed")
    mine = proglog.Tls(ca=world.root.ca, cert=world.root.cert, key=world.root.key)
    taken = await backup._take(str(tmp_path / "backup"), [node.rpc_addr], mine, "leader", None)
    assert (taken.first, taken.next) == (0, 1)
