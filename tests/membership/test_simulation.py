"""Clusters of up to 50 nodes in virtual time: everybody agrees in the end, whatever the network
does; whoever lives is not held dead; whoever dies is found out."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys

import pytest

from proglog.membership.config import Timing
from proglog.membership.events import (
    MemberFailed,
    MemberJoined,
    MemberLeft,
    NameConflict,
    Status,
    UserEvent,
)
from proglog.membership.swim.suspicion import suspicion_timeout
from tests.membership.world import Faults, SimNode, World, halves

LAN = Timing.lan()
HEALED_S = 5.0


def suspicion_bound(count: int, timing: Timing = LAN) -> float:
    """The longest that a suspicion can last, in seconds."""
    shortest = suspicion_timeout(timing.suspicion_multiplier, count, timing.probe_interval_s)
    return shortest * timing.suspicion_max_multiplier


def formed(seed: int, count: int, timing: Timing | None = None) -> tuple[World, list[SimNode]]:
    world = World(seed, timing)
    nodes = world.start_many(count)
    took = world.run_until(world.agreed, 60)
    assert took is not None, "the cluster did not form"
    return world, nodes


@pytest.mark.parametrize("count", [2, 3, 10, 50])
def test_a_cluster_forms_and_stays(count: int) -> None:
    world, nodes = formed(count, count)
    print(f"\n{count} nodes agree {world.now - 1000:.1f} s after they started")
    world.run(60)
    assert world.agreed()
    assert world.counts["MemberFailed"] == 0
    assert all(len(node.core.members()) == count for node in nodes)
    joins = [e.member.name for _, e in nodes[-1].events if isinstance(e, MemberJoined)]
    assert sorted(joins) == sorted(node.name for node in nodes), "told once of each"


@pytest.mark.parametrize("count", [3, 5, 10, 50])
def test_a_dead_node_is_found_out_by_all(count: int) -> None:
    times = []
    for seed in range(3 if count == 50 else 8):
        world, nodes = formed(seed, count)
        nodes[-1].up = False
        others = nodes[:-1]
        dead = nodes[-1].name
        took = world.run_until(
            lambda others=others, dead=dead: all(
                node.statuses()[dead] is Status.FAILED for node in others
            ),
            300,
        )
        # A round of probes in random order may be begun just before, and another be at its end.
        rounds = 2 * count * LAN.probe_interval_s
        assert took is not None
        assert took <= rounds + suspicion_bound(count) + 5
        times.append(took)
        assert world.false_positives == 0
    print(
        f"\n{count} nodes: all know of a death after {statistics.mean(times):.1f} s "
        f"({min(times):.1f} to {max(times):.1f})"
    )


@pytest.mark.parametrize("count", [5, 20])
@pytest.mark.parametrize("loss", [0.05, 0.2])
def test_a_bad_network_costs_no_agreement(count: int, loss: float) -> None:
    world, _ = formed(1, count)
    world.faults = Faults(loss=loss, duplicate=0.1, jitter_s=0.3)
    world.run(180)
    wrong, packets = world.false_positives, world.counts["packets"]
    print(f"\n{count} nodes, {loss:.0%} loss: {wrong} false positives, {packets} packets in 180 s")
    world.faults = Faults()
    assert world.run_until(world.agreed, suspicion_bound(count)) is not None


@pytest.mark.parametrize("seed", range(4))
def test_after_a_short_partition_nobody_is_held_dead_longer_than_a_suspicion(seed: int) -> None:
    world, nodes = formed(seed, 10)
    world.doubted = lambda node, name: world.faults.blocked(node.name, name)
    world.faults.blocked = halves(node.name for node in nodes[:4])
    world.run(25)
    world.faults.blocked = lambda _a, _b: False
    took = world.run_until(world.agreed, suspicion_bound(10))
    assert took is not None
    assert world.false_positives == 0, "nobody doubted one of its own side"


@pytest.mark.parametrize("seconds", [5, 20, 40, 150, 600])
@pytest.mark.parametrize(("count", "cut"), [(2, 1), (3, 1), (5, 2), (9, 4)])
def test_gossip_heals_within_seconds_of_a_partitions_end(
    seconds: float, count: int, cut: int
) -> None:
    for seed in range(2):
        world, nodes = formed(seed, count)
        world.doubted = lambda node, name, world=world: world.faults.blocked(node.name, name)
        world.faults.blocked = halves(node.name for node in nodes[:cut])
        world.run(seconds)
        world.faults.blocked = lambda _a, _b: False
        took = world.run_until(world.agreed, HEALED_S)
        assert took is not None
        print(f"\n{count} nodes healed {took:.1f} s after a partition of {seconds} s")


def test_halves_that_have_forgotten_each_other_meet_again() -> None:
    timing = Timing.lan(failed_kept_s=60.0)
    world, nodes = formed(3, 6, timing)
    world.faults.blocked = halves(node.name for node in nodes[:3])
    world.run(200)
    assert all(len(node.statuses()) == 3 for node in nodes), "not even listed any more"
    world.faults.blocked = lambda _a, _b: False
    assert world.run_until(world.agreed, timing.rejoin_longest_s + HEALED_S) is not None


def test_one_who_was_stopped_for_a_minute_doubts_nobody_and_is_believed_again() -> None:
    """Its timers have all run out when it wakes, with everybody's answers unread."""
    for seed in range(4):
        world, nodes = formed(seed, 6)
        sleeper = nodes[2]
        world.pause(sleeper)
        world.run(60)
        assert nodes[0].statuses()[sleeper.name] is Status.FAILED
        world.resume(sleeper)
        took = world.run_until(world.agreed, suspicion_bound(6) + LAN.reconnect_interval_s)
        assert took is not None
        world.run(30)
        accused = [e for _, e in sleeper.events if isinstance(e, MemberFailed)]
        assert accused == []


def test_asymmetric_loss_of_one_node_is_bridged_by_the_others() -> None:
    """Indirect probes: `a` and `b` cannot reach each other, everybody else can reach both."""
    world, nodes = formed(3, 6)
    a, b = nodes[1].name, nodes[2].name
    world.faults.blocked = lambda x, y: {x, y} == {a, b}
    world.run(120)
    assert world.counts["MemberFailed"] == 0


def test_udp_alone_is_not_needed() -> None:
    """The TCP fallback ping: a network that drops all datagrams makes nobody dead."""
    world, _ = formed(4, 4)
    world.faults = Faults(loss=1.0)
    world.run(60)
    assert world.counts["MemberFailed"] == 0


@pytest.mark.parametrize("seed", range(4))
def test_leaving_is_never_taken_for_failing(seed: int) -> None:
    world, nodes = formed(seed, 8)
    world.faults = Faults(loss=0.1, duplicate=0.5, jitter_s=0.5)
    leaver = nodes[3]
    done: list[float] = []
    leaver.act(lambda: leaver.core.leave(lambda: done.append(world.now), leaver.clock.now()))
    assert world.run_until(lambda: bool(done), 20) is not None
    leaver.up = False
    world.faults = Faults()
    others = [node for node in nodes if node is not leaver]
    assert (
        world.run_until(
            lambda: all(node.statuses()[leaver.name] is Status.LEFT for node in others), 60
        )
        is not None
    )
    for node in others:
        left = [e for _, e in node.events if isinstance(e, MemberLeft)]
        assert len(left) == 1, "told once, though half of the packets came twice"
        assert not any(isinstance(e, MemberFailed) for _, e in node.events)
    # It may come back, under its old name, at another address, at once.
    back = world.start(leaver.name)
    world.join(back, nodes[0])
    assert world.run_until(world.agreed, 30) is not None


def test_a_dead_name_is_reclaimed_from_another_address() -> None:
    world, nodes = formed(5, 5)
    nodes[4].up = False
    assert world.run_until(lambda: nodes[0].statuses()["n04"] is Status.FAILED, 60) is not None
    world.run(LAN.reclaim_after_s + 3)
    back = world.start("n04")
    world.join(back, nodes[0])
    assert world.run_until(world.agreed, suspicion_bound(5)) is not None
    addresses = {m.name: m.address for m in nodes[1].core.members()}
    assert addresses["n04"] == back.address.host


def test_a_name_that_lives_cannot_be_taken() -> None:
    world, nodes = formed(6, 4)
    victim = nodes[3]
    impostor = SimNode(world, victim.name, victim.address._replace(host="10.9.9.9"), LAN)
    world.nodes["impostor"] = impostor
    impostor.act(lambda: impostor.core.start(impostor.clock.now()))
    world.join(impostor, nodes[0])
    world.run(30)
    seen = {m.name: m.address for m in nodes[1].core.members()}
    assert seen[victim.name] == victim.address.host
    reported = [e for node in nodes for _, e in node.events if isinstance(e, NameConflict)]
    assert reported
    assert {e.address for e in reported} == {"10.9.9.9"}
    assert len(reported) < 4 * 30, "now and then, not with every packet"


def test_user_events_reach_everybody_once() -> None:
    world, nodes = formed(7, 12)
    world.faults = Faults(loss=0.2, duplicate=0.3, jitter_s=0.4)
    for number in range(20):
        node = nodes[number % 12]
        name = f"event-{number}"
        node.act(lambda node=node, name=name: node.core.user_event(name, b"x", node.clock.now()))
        world.run(0.5)
    world.run(40)
    for node in nodes:
        heard = [e.name for _, e in node.events if isinstance(e, UserEvent)]
        assert sorted(heard) == sorted(f"event-{number}" for number in range(20))


@pytest.mark.parametrize("seed", range(12))
def test_swarm(seed: int) -> None:
    """Random faults, deaths, pauses, restarts (also elsewhere), leaves, tag changes; then peace:
    everybody agrees, and whoever lives is alive to all."""
    print()
    swarm(seed)


def swarm(seed: int) -> str:
    timing = Timing.lan(reconnect_interval_s=5.0, push_pull_interval_s=10.0, reclaim_after_s=2.0)
    world, nodes = formed(100 + seed, 4 + seed % 5, timing)
    world.doubted = lambda _node, _name: True
    chance = world.stream("swarm")
    strength = chance.choice([0.0, 0.1, 0.3])
    for _ in range(25):
        world.faults.loss = strength * chance.random()
        world.faults.duplicate = strength * chance.random()
        world.faults.jitter_s = chance.choice([0.0, 0.1, 1.0])
        _disturb(world, [node.name for node in nodes], chance)
        world.run(chance.random() * 8)
    world.faults = Faults()
    for node in world.live():
        if node.paused:
            world.resume(node)
    live = world.live()
    for node in live[1:]:
        world.join(node, live[0])
    bound = suspicion_bound(len(nodes), timing) + 60
    took = world.run_until(world.agreed, bound)
    views = {node.name: node.statuses() for node in live}
    assert took is not None, views
    print(f"seed {seed}: {len(live)} of {len(nodes)} live, agreed after {took:.1f} s of peace")
    return world.trace


def _disturb(world: World, names: list[str], chance) -> None:
    name = chance.choice(names)
    node = world.nodes[name]
    match chance.choice(["kill", "pause", "restart", "move", "leave", "tags", "cut", "heal"]):
        case "kill" if len(world.live()) > 2:
            node.up = False
        case "pause" if node.up:
            world.pause(node)
        case "restart" if not node.up:
            _rejoin(world, world.start(name, node.address), chance)
        case "move" if not node.up:
            _rejoin(world, world.start(name), chance)
        case "leave" if len(world.live()) > 2 and not node.paused:
            node.act(lambda: node.core.leave(lambda: setattr(node, "up", False), node.clock.now()))
        case "tags" if node.core.phase.value == "running":
            tags = {"version": str(chance.randrange(9))}
            node.act(
                lambda: (
                    node.core.phase.value == "running"
                    and node.core.set_tags(tags, node.clock.now())
                )
            )
        case "cut":
            world.faults.blocked = halves(chance.sample(names, len(names) // 2))
        case "heal":
            world.faults.blocked = lambda _a, _b: False
            for one in world.live():
                if one.paused:
                    world.resume(one)


def _rejoin(world: World, node: SimNode, chance) -> None:
    peers = [peer for peer in world.live() if peer is not node]
    if peers:
        world.join(node, chance.choice(peers))


def test_a_seed_is_a_run() -> None:
    """The same trace, byte for byte, also where Python hashes text differently."""
    program = "from tests.membership.test_simulation import swarm; print(swarm(3))"
    traces = {
        subprocess.run(
            [sys.executable, "-c", program],
            check=True,
            capture_output=True,
            text=True,
            env={**os.environ, "PYTHONHASHSEED": hash_seed, "PYTHONPATH": os.getcwd()},
        ).stdout.split()[-1]
        for hash_seed in ("1", "2")
    }
    assert len(traces) == 1
