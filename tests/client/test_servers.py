"""Which node is asked: the list of servers, and the choice from it."""

from __future__ import annotations

import random
from contextlib import AsyncExitStack

import pytest

import proglog
from proglog import limits
from proglog._generated.log import v1
from proglog.client.servers import Known, Servers
from proglog.config import Address
from tests.client.server import serving
from tests.client.test_network import url
from tests.client.test_silence import mute_server
from tests.ports import free_port

A, B, C = Address("a", 1), Address("b", 2), Address("c", 3)
ALL = [Known(A, True), Known(B, False), Known(C, False)]


def servers(*seeds: Address) -> Servers:
    return Servers(seeds, random.Random(1))


def test_addresses_are_tried_in_turn():
    known = servers(A, B)
    assert known.to_write == A
    known.failed(A, 0)
    assert known.to_write == B
    known.failed(A, 0)  # Old news.
    assert known.to_write == B
    known.failed(B, 0)
    assert known.to_write == A


def test_the_leader_is_followed_until_it_fails():
    known = servers(A, B)
    known.redirect(A, "c:3")
    assert known.to_write == C
    known.failed(C, 0)
    assert known.to_write == A
    known.redirect(A, "")
    assert known.to_write == B
    known.redirect(B, "b:2")
    assert known.to_write == A
    known.redirect(A, "not an address:::")
    assert known.to_write == B


def test_reads_go_round_the_followers_and_writes_to_the_leader():
    known = servers(B)
    assert {known.to_read(0) for _ in range(10)} == {B}, "nothing else is known yet"
    known.told(ALL)
    assert known.to_write == A
    assert [known.to_read(0) for _ in range(4)] in ([B, C, B, C], [C, B, C, B])
    known.redirect(A, "b:2")
    assert {known.to_read(0) for _ in range(10)} == {A, C}
    known.told([Known(A, True)])
    assert known.to_write == B, "what a node said of itself is newer than a list"
    known.failed(B, 0)
    assert known.to_read(0) == A, "a leader without followers is read from"


def test_clients_begin_with_different_followers():
    begins = set()
    for seed in range(20):
        known = Servers([A], random.Random(seed))
        known.told(ALL)
        begins.add(known.to_read(0))
    assert begins == {B, C}


def test_one_that_failed_is_left_alone_for_a_while_and_each_time_for_longer():
    known = servers(A)
    known.told(ALL)
    known.failed(B, 0.0)
    assert {known.to_read(0.9) for _ in range(10)} == {C}
    assert {known.to_read(1.1) for _ in range(10)} == {B, C}
    known.failed(B, 1.1)
    assert {known.to_read(3.0) for _ in range(10)} == {C}
    known.worked(B)
    assert {known.to_read(3.0) for _ in range(10)} == {B, C}
    known.failed(B, 3.0)
    known.failed(C, 3.0)
    assert known.to_read(3.5) == A, "where all have failed, the leader is asked"
    now = 3.0
    for _ in range(10):
        now += limits.client_failed_seconds_max
        known.failed(C, now)
    assert known.to_read(now + limits.client_failed_seconds_max + 1) in (B, C)


def test_the_list_is_asked_for_when_it_is_old_or_nobody_leads():
    known = servers(A, B)
    assert known.is_due(0)
    known.asked(0)
    assert not known.is_due(0.1)
    assert known.is_due(1), "nobody is known to lead"
    known.told(ALL)
    assert not known.is_due(1)
    assert known.is_due(limits.client_servers_seconds)


def test_all_that_are_known_are_asked_where_no_seed_answers():
    known = servers(A)
    known.told(ALL)
    asked = set()
    for _ in range(5):
        asked.add(known.to_write)
        known.failed(known.to_write, 0)
    assert asked == {A, B, C}


# --- with servers --------------------------------------------------------------------------------


def tell(server, cluster, leader) -> None:
    """A server tells these as the cluster."""

    async def get_servers(stream) -> None:
        await stream.recv_message()
        await stream.send_message(
            v1.GetServersResponse(
                servers=[
                    v1.Server(
                        id=str(each.port),
                        rpc_addr=f"127.0.0.1:{each.port}",
                        is_leader=each is leader,
                        suffrage="voter",
                    )
                    for each in cluster
                ]
            )
        )

    server.service.get_servers = get_servers
    server.remap()


async def test_a_cluster_is_found_by_one_of_its_nodes():
    async with AsyncExitStack() as stack:
        one, two, three = [await stack.enter_async_context(serving()) for _ in range(3)]
        for server in (one, two, three):
            server.service.fake.log = one.service.fake.log
            tell(server, [one, two, three], leader=two)
        async with proglog.connect(url(one), timeout_seconds=10) as log:
            await log.describe(consistency="leader")
            assert await log.produce(b"a") == 0
            assert two.service.calls == ["describe", "produce"]
            assert one.service.calls == three.service.calls == []
            for _ in range(4):
                assert [r.value async for r in log.consume(0, follow=False)] == [b"a"]
            assert one.service.calls == three.service.calls == ["consume"] * 2
            assert [
                r.value async for r in log.consume(0, follow=False, consistency="linearizable")
            ] == [b"a"]
            assert two.service.calls == ["describe", "produce", "consume"]
            await three.stop()
            for _ in range(4):
                assert [r.value async for r in log.consume(0, follow=False)] == [b"a"]


async def test_seeds_are_asked_side_by_side():
    """One that is not there, one that accepts and says nothing, and one that answers."""
    async with mute_server() as port, serving() as server:
        tell(server, [server], leader=server)
        seeds = f"127.0.0.1:{free_port()},127.0.0.1:{port},127.0.0.1:{server.port}"
        async with proglog.connect(f"proglog://{seeds}", timeout_seconds=30) as log:
            assert await log.produce(b"a") == 0
            assert log._backend._servers.to_write == Address("127.0.0.1", server.port)
            assert (await log.read(0)).value == b"a"


@pytest.mark.parametrize("answer", ["unknown call", "nobody"])
async def test_without_a_list_the_seeds_are_all_there_is(answer):
    async with serving() as server:
        if answer == "nobody":
            tell(server, [], leader=None)
        async with proglog.connect(url(server), timeout_seconds=5) as log:
            assert await log.produce(b"a") == 0
            assert (await log.read(0)).value == b"a"
