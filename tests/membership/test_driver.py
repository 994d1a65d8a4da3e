"""The driver: real sockets on 127.0.0.1, the in-memory network, files, subscribers, bounds."""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from proglog.errors import ConfigurationError, UnknownFormat
from proglog.membership import (
    CLUSTER_TAG,
    Address,
    BindFailed,
    EventsLost,
    EventTooLarge,
    JoinFailed,
    KeyringChanged,
    MemberJoined,
    Membership,
    MembershipConfig,
    NodeRefused,
    NotRunning,
    Query,
    Status,
    Subscription,
    Timing,
    UserEvent,
    limits,
)
from proglog.membership.codec.keyring import Keyring, decode_keyring
from proglog.membership.codec.messages import Ack, Ping
from proglog.membership.codec.snapshot import Snapshot, decode_snapshot, encode_snapshot
from proglog.membership.codec.streams import StreamDecoder, encode_stream
from proglog.ports import Ports
from tests.doubles.gossip import MemoryNetwork
from tests.doubles.loop import run
from tests.ports import free_port
from tests.waiting import until

PLAIN = Keyring((), bytes)
QUICK = Timing.local(
    probe_interval_s=0.2,
    probe_timeout_s=0.05,
    gossip_interval_s=0.02,
    leave_propagate_s=0.05,
    broadcast_timeout_s=1.0,
    reap_interval_s=0.2,
    reconnect_interval_s=0.5,
    # A busy machine takes its time, which is no reason for a test to fail.
    stream_timeout_s=10.0,
)


def config(name: str, **settings: Any) -> MembershipConfig:
    return MembershipConfig(name=name, **{"bind_port": 0, "timing": QUICK} | settings)


@contextlib.asynccontextmanager
async def running(name: str, **settings: Any) -> AsyncIterator[Membership]:
    membership = Membership(config(name, **settings))
    await membership.start()
    try:
        yield membership
    finally:
        await membership.close()


def address(membership: Membership) -> str:
    return f"127.0.0.1:{membership.local.port}"


def statuses(membership: Membership) -> dict[str, Status]:
    return {member.name: member.status for member in membership.members()}


# --- a life --------------------------------------------------------------------------------------


async def test_two_nodes_meet_talk_and_part() -> None:
    async with running("a") as a, running("b", tags={"rpc_addr": "b:1"}) as b:
        events = a.subscribe()
        assert await b.join([address(a)]) == 1
        await until(lambda: statuses(a) == statuses(b) == {"a": "alive", "b": "alive"})
        assert a.members()[1].tags == {"rpc_addr": "b:1"}
        b.user_event("hello", b"x")
        kinds = [type(await anext(events)) for _ in range(2)]
        assert kinds == [MemberJoined, UserEvent]
        await b.leave()
        await until(lambda: statuses(a)["b"] is Status.LEFT)
        with pytest.raises(NotRunning):
            b.user_event("late")
        events.close()
        assert [type(event).__name__ async for event in events] == ["MemberLeaving", "MemberLeft"]


async def test_closing_is_silent_and_may_be_repeated() -> None:
    async with running("a") as a:
        b = Membership(config("b"))
        await b.start()
        await b.join([address(a)])
        await until(lambda: len(a.members()) == 2)
        await b.close()
        await b.close()
        await b.wait_ended()
        await until(lambda: statuses(a)["b"] is Status.FAILED)


async def test_closing_before_starting_is_allowed() -> None:
    await Membership(config("a")).close()


async def test_names_are_resolved_when_joining() -> None:
    async with running("a") as a, running("b") as b:
        assert await b.join([f"localhost:{a.local.port}"]) == 1


async def test_joining_ourselves_is_neither_joining_nor_failing() -> None:
    async with running("a") as a:
        assert await a.join([address(a)]) == 0


async def test_each_failed_address_is_named_and_one_success_is_enough() -> None:
    async with running("a") as a, running("b") as b:
        dead = f"127.0.0.1:{free_port()}"
        with pytest.raises(JoinFailed) as raised:
            await b.join([dead, "no.such.host.invalid:1", "a:b:"])
        assert dead in str(raised.value)
        assert "no.such.host.invalid" in str(raised.value)
        assert await b.join([dead, address(a)]) == 1


async def test_clusters_of_different_names_do_not_meet() -> None:
    def named(name: str) -> dict[str, Any]:
        return {"tags": {CLUSTER_TAG: name}}

    async with (
        running("a", **named("one")) as a,
        running("b", **named("other")) as b,
        running("stock") as stock,
        running("c", **named("one")) as c,
    ):
        events = a.subscribe()
        with pytest.raises(JoinFailed, match="node b: it is of cluster 'other', not 'one'"):
            await b.join([address(a)])
        refused = await anext(events)
        assert refused == NodeRefused("b", Address("127.0.0.1", b.local.port), refused.why)
        # By gossip it gets in no more than by a join, nor by way of one that is in neither.
        assert await stock.join([address(b)]) == 1
        with pytest.raises(JoinFailed, match="of cluster 'other'"):
            await stock.join([address(a)])
        assert await c.join([address(a)]) == 1
        await until(lambda: statuses(a) == statuses(c) == {"a": "alive", "c": "alive"})
        await asyncio.sleep(0.5)
        assert "b" not in statuses(a) | statuses(c)


async def test_a_port_in_use_is_said_clearly() -> None:
    async with running("a") as a:
        said = f"127.0.0.1:{a.local.port}: Address already in use. Is another node running"
        with pytest.raises(BindFailed, match=said):
            await Membership(config("b", bind_port=a.local.port)).start()


async def test_an_address_of_somebody_else_is_said_clearly() -> None:
    said = "192.0.2.1:1234: Cannot assign requested address. Choose another address to bind"
    with pytest.raises(BindFailed, match=said):
        await Membership(config("a", bind_host="192.0.2.1", bind_port=1234)).start()


async def test_what_is_advertised_may_differ_from_what_is_bound() -> None:
    async with running("a", advertise_host="localhost", advertise_port=1234) as a:
        assert (a.local.address, a.local.port) == ("127.0.0.1", 1234)
    with pytest.raises(ConfigurationError, match="advertise"):
        await Membership(config("b", advertise_host="no.such.host.invalid")).start()


async def test_an_unspecified_address_advertises_an_interface() -> None:
    async with running("a", bind_host="0.0.0.0") as a:
        assert a.local.address != "0.0.0.0"


async def test_every_address_is_of_both_families() -> None:
    async with running("a", bind_host="::") as a, running("b", bind_host="::") as b:
        assert a.local.address != "::"
        await b.join([f"127.0.0.1:{a.local.port}"])
        # By datagrams too, which a probe is: nobody is suspected.
        await until(lambda: all(len(each.members()) == 2 for each in (a, b)))
        for each in (a, b):
            await until(lambda node=each: node.statistics().transport.packets_received > 2)
            assert not each.statistics().transport.packets_failed


async def test_a_query_and_its_answers() -> None:
    async with running("a") as a, running("b") as b:
        await b.join([address(a)])
        await until(lambda: len(a.members()) == 2)
        events = a.subscribe()

        async def answer() -> None:
            async for event in events:
                if isinstance(event, Query):
                    a.respond(event, b"from a")
                    return

        async with asyncio.TaskGroup() as group:
            group.create_task(answer())
            result = await b.query("who", timeout_s=0.5)
        assert sorted(result.acknowledged) == ["a", "b"]
        assert result.answers == {"a": b"from a"}
        with pytest.raises(EventTooLarge):
            await b.query("who", bytes(2000))


@pytest.mark.parametrize(
    "settings",
    [
        {"name": ""},
        {"name": "a" * 300},
        {"name": "a", "bind_port": 70000},
        {"name": "a", "keys": (b"short",)},
        {"name": "a", "tags": {"k": "v" * 600}},
    ],
)
def test_wrong_settings_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError):
        MembershipConfig(**settings)


@pytest.mark.parametrize(
    "change",
    [
        {"probe_timeout_s": 2.0},
        {"gossip_interval_s": 0.0},
        {"suspicion_multiplier": 0},
        {"reap_interval_s": -1.0},
    ],
)
def test_wrong_timings_are_refused(change: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError):
        Timing.lan(**change)


# --- bounds --------------------------------------------------------------------------------------


async def test_connections_are_bounded_in_number_and_time() -> None:
    async with running("a") as a:
        connections = [
            await asyncio.open_connection("127.0.0.1", a.local.port)
            for _ in range(limits.streams_max + 5)
        ]
        await until(lambda: a.statistics().transport.streams_refused == 5)
        # The oldest gave way; the others say nothing, and are cut off when their time is over.
        await until(lambda: a.statistics().transport.streams_failed == limits.streams_max + 5)
        for reader, writer in connections:
            with contextlib.suppress(OSError):
                await reader.read()
            writer.close()
        assert await _ping(a) == Ack(sequence=1)


async def _ping(membership: Membership) -> Any:
    reader, writer = await asyncio.open_connection("127.0.0.1", membership.local.port)
    writer.write(encode_stream(Ping(sequence=1), PLAIN))
    answer = StreamDecoder(PLAIN).feed(await reader.read())
    writer.close()
    return answer


async def test_garbage_is_counted_and_harms_nobody() -> None:
    async with running("a") as a:
        rng = random.Random(1)
        with socket.socket(type=socket.SOCK_DGRAM) as udp:
            udp.setblocking(False)
            for _ in range(200):
                udp.sendto(rng.randbytes(rng.randrange(1, 1400)), ("127.0.0.1", a.local.port))
        for _ in range(20):
            reader, writer = await asyncio.open_connection("127.0.0.1", a.local.port)
            writer.write(b"\x06" + rng.randbytes(200))
            writer.write_eof()
            await reader.read()
            writer.close()
        await until(lambda: sum(a.statistics().core.ignored.values()) > 50)
        assert await _ping(a) == Ack(sequence=1)
        assert statuses(a) == {"a": "alive"}


async def test_a_large_push_pull_is_decoded_off_the_loop() -> None:
    async with running("a") as a, running("b") as b:
        # Enough past events to exceed what is decoded inline.
        for number in range(limits.events_kept_max):
            a.user_event(f"event-{number}", bytes(400))
        assert await b.join([address(a)]) == 1
        assert statuses(b) == {"a": "alive", "b": "alive"}


# --- subscribers ---------------------------------------------------------------------------------


async def test_a_slow_subscriber_is_told_what_it_lost() -> None:
    subscription = Subscription()
    for number in range(limits.subscription_events_max + 7):
        subscription.put(UserEvent(str(number), b"", number))
    subscription.put(UserEvent("last", b"", 0))
    subscription.close()
    events = [event async for event in subscription]
    assert len(events) == limits.subscription_events_max + 1
    assert events[-1] == EventsLost(8)


async def test_a_subscription_ends_with_the_membership() -> None:
    async with running("a") as a:
        subscription = a.subscribe()
        waiting = asyncio.ensure_future(anext(subscription, None))
        await asyncio.sleep(0)
    assert await waiting is None


@pytest.mark.parametrize("where", ["tick", "receive_packet", "serve"])
async def test_after_a_fault_of_its_core_a_membership_begins_anew(where: str) -> None:
    async with running("a", tags={"role": "proglog"}) as a, running("b") as b:
        await b.join([address(a)])
        await until(lambda: statuses(a) == {"a": "alive", "b": "alive"})
        core = a._running()

        def broken(*_: object) -> None:
            raise AssertionError("impossible")

        setattr(core, where, broken)
        if where == "serve":
            with pytest.raises(JoinFailed):
                await b.join([address(a)])
        with pytest.raises(AssertionError, match="impossible"):
            await a.wait_ended()
        said = core.incarnation
        await a.begin_anew()
        await until(lambda: statuses(a) == statuses(b) == {"a": "alive", "b": "alive"})
        assert a.local.tags == {"role": "proglog"}
        assert a._running().incarnation > said, "what the old core said is old"


async def test_who_waits_for_a_core_that_fails_is_told() -> None:
    async with running("a") as a:
        with socket.create_server(("127.0.0.1", 0)) as silent:
            port = silent.getsockname()[1]
            joining = asyncio.ensure_future(a.join([f"127.0.0.1:{port}"]))
            await until(lambda: a.statistics().core.exchanges == 1)
            a._break(AssertionError("impossible"))
            await a.begin_anew()
            with pytest.raises(JoinFailed, match="begun anew"):
                await joining


# --- files ---------------------------------------------------------------------------------------


async def test_peers_are_remembered(tmp_path: Path) -> None:
    path = tmp_path / "peers.json"
    async with running("a") as a:
        async with running("b", snapshot_path=path) as b:
            await b.join([address(a)])
        assert decode_snapshot(path.read_bytes()).peers == (Address("127.0.0.1", a.local.port),)
        async with running("b", snapshot_path=path) as b:
            await until(lambda: statuses(b) == {"a": "alive", "b": "alive"})
            await b.leave()
        assert decode_snapshot(path.read_bytes()).peers == ()
    assert [one.name for one in tmp_path.iterdir()] == ["peers.json"]


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b'{"version": 1}',
        b"\xff",
        b"[" * 100_000,
        bytes(limits.snapshot_bytes_max),
    ],
)
async def test_a_broken_snapshot_is_none(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "peers.json"
    path.write_bytes(content)
    async with running("a", snapshot_path=path) as a:
        assert a.statistics().file_failures == 1
        assert str(path) in a.statistics().last_file_failure
    assert decode_snapshot(path.read_bytes()).peers == ()


async def test_a_snapshot_of_a_newer_version_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "peers.json"
    content = b'{"version": 2, "incarnation": 7}'
    path.write_bytes(content)
    with pytest.raises(UnknownFormat, match=f"{path} has format version 2"):
        async with running("a", snapshot_path=path):
            pass
    assert path.read_bytes() == content


def test_snapshots_round_trip() -> None:
    snapshot = Snapshot(
        member_time=3,
        event_time=2**40,
        query_time=1,
        peers=(Address("::1", 5), Address("10.0.0.1", 6)),
    )
    assert decode_snapshot(encode_snapshot(snapshot)) == snapshot


async def test_a_file_that_cannot_be_written_is_counted(tmp_path: Path) -> None:
    path = tmp_path / "missing" / "peers.json"
    async with running("a", snapshot_path=path) as a:
        pass
    assert a.statistics().file_failures > 0


async def test_keys_changed_here_are_kept(tmp_path: Path) -> None:
    path = tmp_path / "keyring.json"
    async with running("a", keys=(bytes(16),), keyring_path=path) as a:
        events = a.subscribe()
        a.install_key(bytes(32))
        a.use_key(bytes(32))
        a.remove_key(bytes(16))
        changes = [await anext(events) for _ in range(3)]
        assert all(isinstance(change, KeyringChanged) for change in changes)
    assert decode_keyring(path.read_bytes()) == (bytes(32),)
    path.write_bytes(b"[]x")
    with pytest.raises(ConfigurationError, match="keyring"):
        await Membership(config("a", keyring_path=path)).start()


# --- the in-memory network -----------------------------------------------------------------------


def test_a_cluster_in_one_simulated_loop() -> None:
    """Twenty nodes, real drivers, virtual time: a failure, a partition, a return."""

    async def scenario() -> None:
        cut: set[str] = set()
        network = MemoryNetwork(lambda a, b: None if (a.host in cut) != (b.host in cut) else 0.001)
        nodes = []
        for number in range(20):
            place = Address(f"10.0.0.{number + 1}", 7946)
            membership = Membership(
                MembershipConfig(name=f"n{number:02}"),
                ports=Ports(random=random.Random(number)),
                transport=lambda _config, keyring, place=place: network.transport(place, keyring),
            )
            await membership.start()
            nodes.append(membership)
        network.names["cluster"] = ["10.0.0.1", "10.0.0.2"]
        for node in nodes[2:]:
            assert await node.join(["cluster"]) == 2
        await _all(nodes, lambda node: list(statuses(node).values()) == [Status.ALIVE] * 20)
        cut.add("10.0.0.20")
        await _all(nodes[:-1], lambda node: statuses(node)["n19"] is Status.FAILED)
        cut.clear()
        await _all(nodes, lambda node: list(statuses(node).values()) == [Status.ALIVE] * 20)
        for node in nodes:
            await node.close()

    run(scenario(), seed=7)


async def _all(nodes: list[Membership], holds: Any) -> None:
    for _ in range(400):
        if all(map(holds, nodes)):
            return
        await asyncio.sleep(0.5)
    raise AssertionError("not in 200 virtual seconds")
