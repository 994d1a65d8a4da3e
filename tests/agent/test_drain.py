"""`proglog drain`: what it waits for, what it hands over, and what comes of it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import stat
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

import proglog
from proglog import limits
from proglog.agent.admin_socket import NAME, AdminSocket, ask
from proglog.agent.drain import Order, Result, read_order, why_unsafe
from proglog.agent.policy import DRAINING_TAG
from proglog.cli.app import run
from proglog.errors import InvalidRequest, Unavailable
from proglog.membership import Status
from proglog.raft.configuration import Configuration
from tests.agent.nodes import Nodes, some_nodes
from tests.agent.test_policy import member, servers
from tests.waiting import meanwhile, until

# --- who may stop: a table -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("voters", "gone", "draining", "why"),
    [
        (2, [], {}, "two voters need each other"),
        (2, [1], {}, "n1 must be back first"),
        (3, [], {}, ""),
        (3, [1], {}, "n1 must be back first"),
        (3, [], {1: "99"}, "n1 must be back first"),  # it began before
        (3, [], {1: "101"}, ""),  # it began after
        (3, [], {1: "100"}, ""),  # at the same time: the smaller uuid goes first
        (3, [], {1: "1000"}, ""),  # a number, not a word
        (5, [1], {}, ""),
        (5, [1], {2: "99"}, "n1, n2 must be back first"),
        (5, [], {1: "1", 2: "2"}, "n1, n2 must be back first"),
        (5, [], {1: "1", 2: "2000"}, ""),
    ],
)
def test_who_must_be_back_first(
    voters: int, gone: list[int], draining: dict[int, str], why: str
) -> None:
    configuration = Configuration(servers(voters))
    members = [
        member(
            number,
            Status.FAILED if number in gone else Status.ALIVE,
            **({DRAINING_TAG: draining[number]} if number in draining else {}),
        )
        for number in range(voters)
    ]
    assert why_unsafe(configuration, members, "uuid-0", "100") == why


def test_a_learner_may_always_stop() -> None:
    configuration = Configuration(servers(2), servers(1, first=2))
    assert why_unsafe(configuration, [], "uuid-2", "1") == ""


@pytest.mark.parametrize(
    "wrong", [{"leave": 1}, {"deadline_seconds": "1"}, {"deadline_seconds": -1.0}, {"x": 1}]
)
def test_a_wrong_order_is_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(InvalidRequest, match="is no part of a drain"):
        read_order(wrong)
    assert read_order({}) == Order()


# --- the socket ----------------------------------------------------------------------------------


async def test_the_socket_is_the_owners_alone_and_replaces_one_that_was_left(
    tmp_path: Path,
) -> None:
    folder = tmp_path / ("long" * 40)  # longer than the address of a socket may be
    await asyncio.to_thread(folder.mkdir)
    await asyncio.to_thread((folder / NAME).touch)

    async def answer(request: object) -> dict[str, object]:
        return {"heard": request}

    admin = AdminSocket(folder, answer)
    await admin.start()
    mode = (await asyncio.to_thread((folder / NAME).stat)).st_mode
    assert stat.S_ISSOCK(mode)
    assert stat.S_IMODE(mode) == 0o600
    assert await ask(folder, {"a": 1}) == {"heard": {"a": 1}}
    for wrong in (b"[]\n", b"{\n", b"\xff\n", b"{" + b" " * 10_000):
        reader, writer = await asyncio.open_unix_connection(
            f"/proc/self/fd/{(opened := os.open(folder, os.O_RDONLY))}/{NAME}"
        )
        os.close(opened)
        writer.write(wrong)
        writer.write_eof()
        assert "error" in json.loads(await reader.readline())
        writer.close()
    await admin.close()
    assert not await asyncio.to_thread((folder / NAME).exists)


# --- nodes ---------------------------------------------------------------------------------------


@pytest.fixture
async def nodes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Nodes]:
    monkeypatch.setattr(limits, "drain_told_seconds", 0.3)
    async with some_nodes(tmp_path) as made:
        yield made


QUICK = Order(wait_unready_seconds=0.0)


async def test_a_leader_that_drains_leads_no_more_and_its_streams_go_on_elsewhere(
    nodes: Nodes,
) -> None:
    await nodes.form("n0", "n1", "n2")
    leader = await nodes.find_leader()
    async with proglog.connect(nodes.url()) as log:
        await log.produce(b"before")
        read = log.consume()
        assert (await anext(read)).value == b"before"
        outcome = await leader.drain.run(QUICK)
        assert (outcome.result, outcome.said) == (
            Result.DRAINED,
            "drained: another server leads, and the others are a quorum by themselves",
        )
        assert not leader.replica.leadership.is_mine
        assert leader._why_not_ready() == "it is drained, to be stopped"
        await log.produce(b"after")
        assert (await anext(read)).value == b"after"
        await read.aclose()
    other = next(node for node in nodes.running.values() if node is not leader)
    name = leader.replica.identity.name

    async def left_out() -> bool:
        servers = other.replica.servers()
        admin_servers = other_servers(other)
        return len(servers) == 3 and name not in admin_servers

    await until(left_out, "clients are not sent to it")
    # Taken back, it is as before.
    assert leader.drain.undo() == "the node takes part again"
    assert leader._why_not_ready() == ""
    await until(lambda: name in other_servers(other), "clients are sent to it again")


def other_servers(node: object) -> set[str]:
    from proglog.agent.policy import in_reach

    return {each.name for each in in_reach(node.replica.servers(), node.membership.members())}


async def test_a_drained_node_is_itself_again_at_another_address_at_once(nodes: Nodes) -> None:
    await nodes.form("n0", "n1", "n2")
    leader = await nodes.find_leader()
    node = next(each for each in nodes.running.values() if each is not leader)
    name, uuid = node.replica.identity.name, node.replica.identity.uuid
    other = leader.replica.identity.name
    await node.drain.run(QUICK)
    await nodes.stop(name)
    # Not "failed", as whose address could not be taken by another one for a while.
    await nodes.sees(other, name, Status.LEFT)
    nodes.move(name)
    await nodes.start(name, start_join_addrs=nodes.gossip(other))
    await nodes.sees(other, name, Status.ALIVE)
    await nodes.voters("n0", "n1", "n2")
    assert nodes.running[name].replica.identity.uuid == uuid


async def test_two_that_drain_follow_each_other(nodes: Nodes) -> None:
    await nodes.form("n0", "n1", "n2")
    followers = [node for node in nodes.running.values() if not node.replica.leadership.is_mine]
    first, second = followers
    async with meanwhile(first.drain.run(QUICK)) as one:
        await until(lambda: first.drain.began)
        second.drain._now_ms = lambda: int(first.drain.began) + 1
        async with meanwhile(second.drain.run(QUICK)) as two:
            assert (await one).result is Result.DRAINED
            name = first.replica.identity.name
            await nodes.stop(name)
            await nodes.sees(second.replica.identity.name, name, Status.LEFT)
            assert not two.done()
            await nodes.start(name)
            assert (await two).result is Result.DRAINED


async def test_without_a_quorum_of_the_others_it_is_said_and_not_waited_for_ever(
    nodes: Nodes, monkeypatch: pytest.MonkeyPatch
) -> None:
    await nodes.form("n0", "n1", "n2")
    monkeypatch.setattr(limits, "drain_safe_seconds_max", 0.5)
    leader = await nodes.find_leader()
    gone, stays = (
        node.replica.identity.name for node in nodes.running.values() if node is not leader
    )
    await nodes.stop(gone)
    await nodes.sees(stays, gone, Status.FAILED)
    await nodes.sees(leader.replica.identity.name, gone, Status.FAILED)
    outcome = await nodes.running[stays].drain.run(QUICK)
    assert outcome.result is Result.UNSAFE
    assert outcome.said == (f"not safe to stop, {gone} must be back first: stopping costs a pause")


async def test_leaving_is_out_of_the_cluster_and_the_node_stays_up(nodes: Nodes) -> None:
    await nodes.form("n0", "n1", "n2")
    leader = await nodes.find_leader()
    name = leader.replica.identity.name
    outcome = await leader.drain.run(Order(leave=True, wait_unready_seconds=0.0))
    assert (outcome.result, outcome.said) == (Result.DRAINED, "left the cluster")
    assert not leader.left.done()
    assert leader.drain.undo().startswith("the node has left")
    rest = [each for each in nodes.running if each != name]
    await until(
        lambda: all(
            {server.name for server in nodes.running[each].replica.servers()} == set(rest)
            for each in rest
        )
    )
    # Nothing of it fails where it has no part in gossip any more.
    await asyncio.sleep(3 * limits.reconcile_seconds)
    assert not leader.failure.done()
    await nodes.stop(name)


async def test_who_cannot_leave_says_so(nodes: Nodes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "leave_seconds_max", 0.3)
    await nodes.start("n0", bootstrap=True)
    outcome = await nodes.running["n0"].drain.run(Order(leave=True, wait_unready_seconds=0.0))
    assert outcome.result is Result.NOT_LEFT
    assert outcome.said == (
        "not left: the last server cannot leave its cluster; "
        "drained: there is nobody to hand over to"
    )


async def test_a_drain_that_nobody_follows_up_is_forgotten(
    nodes: Nodes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "drain_told_seconds", 0.0)
    monkeypatch.setattr(limits, "drain_kept_seconds", 0.2)
    node = await nodes.start("n0", bootstrap=True)
    assert (await node.drain.run(QUICK)).result is Result.DRAINED
    await until(lambda: node._why_not_ready() == "")
    assert node.drain.undo() == "the node was not draining"


async def test_who_waits_for_a_drain_hears_that_it_was_undone(nodes: Nodes) -> None:
    node = await nodes.start("n0", bootstrap=True)
    async with meanwhile(node.drain.run(Order(wait_unready_seconds=30.0))) as draining:
        await until(lambda: node.drain.began)
        node.drain.undo()
        with pytest.raises(Unavailable, match="undone"):
            await draining
    assert node._why_not_ready() == ""


# --- the command ---------------------------------------------------------------------------------


async def test_the_command_drains_a_node_on_this_machine(nodes: Nodes, tmp_path: Path) -> None:
    node = await nodes.start("n0", bootstrap=True)
    command = (sys.executable, "-m", "proglog.cli", "drain", "--wait-unready=0s")
    environment = {**os.environ, "PROGLOG_DATA_DIR": str(tmp_path / "n0")}
    for options, said in (
        ((), "drained: there is nobody to hand over to\n"),
        (("--undo",), "the node takes part again\n"),
    ):
        process = await asyncio.create_subprocess_exec(
            *command, *options, env=environment, stdout=asyncio.subprocess.PIPE
        )
        output, _ = await process.communicate()
        assert (process.returncode, output.decode()) == (0, said)
    assert node._why_not_ready() == ""


def test_nobody_is_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["drain", f"--data-dir={tmp_path}"]) == 1
    assert capsys.readouterr().err == (
        f"proglog drain: {tmp_path / NAME}: No such file or directory\n"
    )
    with contextlib.suppress(SystemExit):
        assert run(["drain", "--leave=perhaps"]) == 2
