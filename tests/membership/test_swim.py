"""The rules of SWIM one by one."""

from __future__ import annotations

import pytest

from proglog.membership import limits
from proglog.membership.address import Address
from proglog.membership.codec.messages import (
    OURS,
    Ack,
    Alive,
    Dead,
    IndirectPing,
    Nack,
    Ping,
    State,
    Suspect,
    Versions,
)
from proglog.membership.codec.serf_messages import (
    LeaveIntent,
    encode_tags,
)
from proglog.membership.codec.streams import PushPull
from proglog.membership.errors import (
    MalformedMessage,
)
from proglog.membership.events import (
    MemberFailed,
    MemberJoined,
    MemberUpdated,
    NameConflict,
    Status,
)
from proglog.membership.swim.suspicion import suspicion_timeout
from tests.membership.core import US, Core, alive


def test_news_of_a_node_are_reported_and_passed_on() -> None:
    core = Core()
    core.tell(alive("a"), alive("b"))
    assert [e.member.name for e in core.told(MemberJoined)] == ["us", "a", "b"]
    core.wait(1)
    assert {message.node for message in core.said(Alive)} >= {"a", "b"}


def test_the_higher_incarnation_wins_and_of_equal_ones_the_worse() -> None:
    core = Core()
    core.tell(alive("a", 5, x="old"), alive("a", 4, x="older"), alive("a", 5, x="same"))
    assert core.serf.members()[0].tags == {"x": "old"}
    core.tell(Suspect(incarnation=4, node="a", source="b"))
    assert core.serf._swim.nodes.get("a").state is State.ALIVE
    core.tell(Suspect(incarnation=5, node="a", source="b"))
    assert core.serf._swim.nodes.get("a").state is State.SUSPECT
    core.tell(alive("a", 5))
    assert core.serf._swim.nodes.get("a").state is State.SUSPECT, "not raised by the node itself"
    core.tell(alive("a", 6, x="new"))
    assert core.serf._swim.nodes.get("a").state is State.ALIVE
    assert core.told(MemberUpdated)[-1].member.tags == {"x": "new"}
    core.tell(Dead(incarnation=5, node="a", source="b"))
    assert core.status("a") is Status.ALIVE
    core.tell(Dead(incarnation=6, node="a", source="b"))
    assert core.status("a") is Status.FAILED
    core.tell(alive("a", 6))
    assert core.status("a") is Status.FAILED
    core.tell(alive("a", 7))
    assert core.status("a") is Status.ALIVE


@pytest.mark.parametrize("accusation", [Suspect, Dead])
def test_we_object_to_our_own_death(accusation: type) -> None:
    core = Core()
    core.tell(alive("a"))
    core.tell(accusation(incarnation=9, node="us", source="a"))
    core.wait(1)
    assert core.said(Alive)[-1].incarnation == 10 or any(
        message.node == "us" and message.incarnation == 10 for message in core.said(Alive)
    )
    assert core.status("us") is Status.ALIVE
    assert core.serf.statistics().health == 1, "we were too slow for somebody"


def test_an_accusation_at_the_last_incarnation_does_not_break_us() -> None:
    core = Core()
    core.tell(Dead(incarnation=limits.incarnation_max, node="us", source="a"))
    core.tell(Suspect(incarnation=limits.incarnation_max, node="us", source="a"))
    assert core.status("us") is Status.ALIVE


def test_our_former_life_at_the_same_incarnation_is_overridden() -> None:
    core = Core()
    former = Alive(
        incarnation=1,
        node="us",
        host=US.packed,
        port=US.port,
        meta=encode_tags({"role": "old"}),
        versions=OURS,
    )
    core.tell(alive("a"), former)
    core.wait(1)
    ours = [message for message in core.said(Alive) if message.node == "us"]
    assert ours[-1].incarnation == 2
    assert ours[-1].meta == encode_tags({"role": "proglog"})


def test_a_suspect_that_stays_silent_dies_when_its_time_is_over() -> None:
    core = Core()
    core.tell(alive("a"), alive("b"), alive("c"))
    core.tell(Suspect(incarnation=1, node="a", source="b"))
    shortest = suspicion_timeout(4, 4, 1.0)
    core.wait(shortest * 6 - 2)
    assert core.told(MemberFailed) == [] or core.status("a") is Status.FAILED
    core.wait(4)
    assert core.status("a") is Status.FAILED


def test_second_hand_deaths_are_only_suspicions() -> None:
    core = Core()
    core.tell(alive("a"))
    remote = core.serf._swim.nodes.get("a").snapshot()
    dead = type(remote)(
        **{f: getattr(remote, f) for f in remote.__slots__ if f != "state"}, state=State.DEAD
    )
    core.serf.serve(PushPull(join=False, nodes=(dead,)), core.now)
    assert core.serf._swim.nodes.get("a").state is State.SUSPECT
    left = type(remote)(
        **{f: getattr(remote, f) for f in remote.__slots__ if f != "state"}, state=State.LEFT
    )
    core.serf.serve(PushPull(join=False, nodes=(left,)), core.now)
    assert core.status("a") is Status.LEFT


def test_a_cluster_of_incompatible_versions_is_refused() -> None:
    core = Core()
    other = Core().serf._swim.local.snapshot()
    future = type(other)(
        **{f: getattr(other, f) for f in other.__slots__ if f not in {"versions", "node"}},
        node="future",
        versions=Versions(6, 9, 7, 2, 5, 5),
    )
    with pytest.raises(MalformedMessage, match="future speaks"):
        core.serf.serve(PushPull(join=True, nodes=(future,)), core.now)
    assert core.status("future") is None


def test_names_at_new_addresses() -> None:
    core = Core(reclaim_after_s=5.0)
    core.tell(alive("a", 3, host="10.0.2.1"))
    core.tell(alive("a", 9, host="10.0.2.2"))
    conflict = core.told(NameConflict)[0]
    assert (conflict.member.address, conflict.address) == ("10.0.2.1", "10.0.2.2")
    core.tell(Dead(incarnation=3, node="a", source="b"), alive("a", 1, host="10.0.2.2"))
    assert core.status("a") is Status.FAILED, "not dead for long enough"
    core.wait(5.1)
    core.tell(alive("a", 1, host="10.0.2.2"))
    assert core.status("a") is Status.ALIVE
    core.tell(Dead(incarnation=1, node="a", source="a"), alive("a", 1, host="10.0.2.3"))
    assert core.status("a") is Status.ALIVE, "who has left gives its name free at once"


def test_no_more_nodes_than_the_limit() -> None:
    core = Core()
    for number in range(limits.nodes_max + 10):
        core.tell(alive(f"node-{number}"))
    assert core.serf.statistics().nodes == limits.nodes_max
    assert core.serf.statistics().ignored["node dropped to make room"] == 11
    assert core.status("node-0") is None, "of those who never answered the oldest gives way"
    assert core.status(f"node-{limits.nodes_max + 9}") is Status.ALIVE
    assert core.serf.statistics().broadcasts <= limits.broadcasts_max


# --- probes --------------------------------------------------------------------------------------


def test_a_silent_node_is_pinged_then_asked_for_then_tried_by_stream_then_suspected() -> None:
    core = Core()
    core.tell(alive("a"))
    core.wait(1.0)
    assert core.said(Ping)
    helper = alive("b")
    core.tell(helper)
    core.wait(8)
    assert core.said(IndirectPing)
    assert any(exchange.message.__class__ is Ping for exchange in core.exchanges)
    assert core.serf._swim.nodes.get("a").state in {State.SUSPECT, State.DEAD}


def test_an_ack_ends_a_probe() -> None:
    core = Core()
    core.tell(alive("a"))
    for _ in range(20):
        core.wait(0.4)
        for ping in core.said(Ping):
            core.tell(Ack(sequence=ping.sequence))
    assert core.serf._swim.nodes.get("a").state is State.ALIVE
    assert core.serf.statistics().health == 0


def test_we_answer_pings_for_us_alone() -> None:
    core = Core()
    source = Address("10.0.0.9", 99)
    core.tell(Ping(sequence=7, node="us"), source=source)
    assert [(to, m) for to, m in core.sent if isinstance(m, Ack)] == [(source, Ack(sequence=7))]
    core.tell(Ping(sequence=8, node="me"), source=source)
    assert len(core.said(Ack)) == 1


def test_answers_go_to_a_claimed_address_only_if_it_is_known() -> None:
    core = Core()
    core.tell(alive("a", host="10.0.3.1", port=7))
    forged = Ping(
        sequence=1,
        node="us",
        source_host=Address("10.9.9.9", 1).packed,
        source_port=1,
        source_name="a",
    )
    core.tell(forged, source=Address("10.0.0.9", 5))
    assert [to for to, m in core.sent if isinstance(m, Ack)] == [Address("10.0.0.9", 5)]
    honest = Ping(
        sequence=2,
        node="us",
        source_host=Address("10.0.3.1", 7).packed,
        source_port=7,
        source_name="a",
    )
    core.tell(honest, source=Address("10.0.0.9", 5))
    assert [to for to, m in core.sent if isinstance(m, Ack)][1:] == [Address("10.0.3.1", 7)]


@pytest.mark.parametrize("answers", [True, False])
def test_we_probe_for_others(answers: bool) -> None:
    core = Core()
    asker = Address("10.0.0.9", 5)
    request = IndirectPing(
        sequence=77, host=Address("10.0.4.4", 7).packed, port=7, node="t", nack=True
    )
    core.tell(request, source=asker)
    ((to, ping),) = [(to, m) for to, m in core.sent if isinstance(m, Ping)]
    assert (to, ping.node) == (Address("10.0.4.4", 7), "t")
    if answers:
        core.tell(Ack(sequence=ping.sequence))
    core.wait(1)
    assert core.said(Nack) == ([] if answers else [Nack(sequence=77)])
    acks = [(to, m) for to, m in core.sent if isinstance(m, Ack)]
    assert acks == ([(asker, Ack(sequence=77))] if answers else [])


def test_relayed_probes_are_bounded() -> None:
    core = Core()
    for number in range(limits.relays_max + 50):
        core.tell(
            IndirectPing(sequence=number, host=Address("10.0.4.4", 7).packed, port=7, node="t")
        )
    assert len(core.said(Ping)) == limits.relays_max
    core.wait(1)
    core.tell(IndirectPing(sequence=1, host=Address("10.0.4.4", 7).packed, port=7, node="t"))
    assert len(core.said(Ping)) > limits.relays_max


def test_gossip_goes_to_the_living_before_the_dead() -> None:
    core = Core()
    core.tell(alive("dead"), Dead(incarnation=1, node="dead", source="x"), alive("living"))
    living = alive("living").address
    core.wait(3)
    core.sent.clear()
    core.tell(LeaveIntent(ltime=5, node="other"))
    core.wait(1)
    first = next(to for to, message in core.sent if isinstance(message, LeaveIntent))
    assert first == living
