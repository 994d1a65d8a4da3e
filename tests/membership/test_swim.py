"""The rules of SWIM and Serf one by one: one core, and what it says when it is told something."""

from __future__ import annotations

import random
from typing import Any

import pytest

from proglog.membership import limits, packets
from proglog.membership.address import Address
from proglog.membership.awareness import Awareness
from proglog.membership.broadcast import BroadcastQueue, retransmit_limit
from proglog.membership.config import Timing
from proglog.membership.errors import (
    EventTooLarge,
    MalformedMessage,
    NotRunning,
    TagsTooLarge,
)
from proglog.membership.events import (
    Event,
    MemberFailed,
    MemberJoined,
    MemberLeaving,
    MemberLeft,
    MemberUpdated,
    NameConflict,
    Query,
    Status,
    UserEvent,
)
from proglog.membership.filters import is_asked
from proglog.membership.keyring import Keyring
from proglog.membership.lamport import LamportClock, RecentPast
from proglog.membership.messages import (
    OURS,
    Ack,
    Alive,
    Dead,
    IndirectPing,
    Nack,
    Ping,
    State,
    Suspect,
    Type,
    Versions,
    encode_message,
)
from proglog.membership.outbox import OpenExchange, Report, SendPacket
from proglog.membership.serf import Serf
from proglog.membership.serf_messages import (
    JoinIntent,
    LeaveIntent,
    QueryFlag,
    QueryMessage,
    QueryResponse,
    RelayDestination,
    RelayHeader,
    SerfType,
    TagFilter,
    UserEventMessage,
    encode_serf,
    encode_tags,
)
from proglog.membership.streams import PushPull
from proglog.membership.suspicion import Suspicion, suspicion_timeout
from proglog.membership.timers import PauseClock, Timers
from proglog.membership.wire import encode, pack
from tests.membership.test_messages import parse

PLAIN = Keyring((), bytes)
US = Address("10.0.0.1", 7)


class Core:
    """One node under the microscope."""

    def __init__(self, **timing: Any) -> None:
        self.now = 100.0
        self.timing = Timing.lan(**timing)
        self.serf = Serf(
            name="us",
            address=US,
            tags={"role": "proglog"},
            timing=self.timing,
            keyring=PLAIN,
            rng=random.Random(1),
            now=self.now,
        )
        self.sent: list[tuple[Address, Any]] = []
        self.exchanges: list[OpenExchange] = []
        self.events: list[Event] = []
        self.serf.start(self.now)
        self.collect()

    def collect(self) -> None:
        for effect in self.serf.take():
            match effect:
                case SendPacket(address, data):
                    parts = packets.open_packet(data, PLAIN)
                    self.sent += [(address, parse(part)) for part in parts]
                case OpenExchange():
                    self.exchanges.append(effect)
                case Report(event):
                    self.events.append(event)

    def tell(self, *messages: Any, source: Address = Address("10.0.0.9", 7)) -> None:
        for message in messages:
            if type(message).__module__.endswith("serf_messages"):
                data = bytes([Type.USER]) + encode_serf(message)
            else:
                data = encode_message(message)
            self.serf.receive_packet(data, source, self.now)
        self.collect()

    def wait(self, seconds: float) -> None:
        end = self.now + seconds
        while True:
            deadline = self.serf.next_deadline
            assert deadline is not None
            if deadline > end:
                break
            self.now = deadline
            self.serf.tick(self.now)
            self.collect()
        self.now = end

    def said(self, kind: type) -> list[Any]:
        return [message for _, message in self.sent if isinstance(message, kind)]

    def told(self, kind: type) -> list[Any]:
        return [event for event in self.events if isinstance(event, kind)]

    def status(self, name: str) -> Status | None:
        return {m.name: m.status for m in self.serf.members()}.get(name)


def alive(name: str, incarnation: int = 1, host: str = "", port: int = 7, **tags: str) -> Alive:
    address = Address(host or f"10.0.1.{sum(name.encode()) % 250}", port)
    return Alive(
        incarnation=incarnation,
        node=name,
        host=address.packed,
        port=address.port,
        meta=encode_tags(tags),
        versions=OURS,
    )


# --- transitions ---------------------------------------------------------------------------------


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
    assert core.serf.statistics().ignored["node beyond the limit"] == 11
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


# --- Serf ----------------------------------------------------------------------------------------


def test_intents_before_their_node_are_remembered_and_the_later_wins() -> None:
    for first, second, status in (
        (LeaveIntent(ltime=5, node="a"), JoinIntent(ltime=6, node="a"), Status.ALIVE),
        (JoinIntent(ltime=5, node="a"), LeaveIntent(ltime=6, node="a"), Status.LEAVING),
        (LeaveIntent(ltime=6, node="a"), JoinIntent(ltime=5, node="a"), Status.LEAVING),
    ):
        core = Core()
        core.tell(first, second, alive("a"))
        assert core.status("a") is status


def test_an_announced_leave_makes_the_difference_between_left_and_failed() -> None:
    core = Core()
    core.tell(alive("a"), alive("b"), LeaveIntent(ltime=5, node="a"))
    assert core.status("a") is Status.LEAVING
    core.tell(Dead(incarnation=1, node="a", source="x"), Dead(incarnation=1, node="b", source="x"))
    assert (core.status("a"), core.status("b")) == (Status.LEFT, Status.FAILED)
    core.tell(LeaveIntent(ltime=6, node="b"))
    assert core.status("b") is Status.LEFT
    assert [e.member.name for e in core.told(MemberLeft)] == ["a", "b"]


def test_intents_repeated_change_nothing() -> None:
    core = Core()
    core.tell(alive("a"))
    for _ in range(3):
        core.tell(LeaveIntent(ltime=5, node="a"), JoinIntent(ltime=4, node="a"))
    assert len(core.told(MemberLeaving)) == 1
    assert core.status("a") is Status.LEAVING
    core.tell(JoinIntent(ltime=6, node="a"), LeaveIntent(ltime=5, node="a"))
    assert core.status("a") is Status.ALIVE


def test_we_deny_that_we_leave() -> None:
    core = Core()
    core.tell(alive("a"), LeaveIntent(ltime=50, node="us"))
    core.wait(1)
    assert core.status("us") is Status.ALIVE
    assert core.said(JoinIntent)[-1].ltime == 51


def test_pruning_forgets_the_gone_and_spares_the_living() -> None:
    core = Core()
    core.tell(alive("a"), alive("b"), Dead(incarnation=1, node="a", source="x"))
    core.tell(
        LeaveIntent(ltime=5, node="a", prune=True), LeaveIntent(ltime=6, node="b", prune=True)
    )
    core.tell(JoinIntent(ltime=7, node="b"))
    for _ in range(16):
        core.wait(0.5)
        for ping in core.said(Ping):
            core.tell(Ack(sequence=ping.sequence))
    assert core.status("a") is None
    assert core.status("b") is Status.ALIVE


def test_the_gone_are_reaped_in_their_time() -> None:
    core = Core(failed_kept_s=100.0, left_kept_s=50.0, reap_interval_s=1.0)
    core.tell(alive("a"), alive("b"), LeaveIntent(ltime=5, node="a"))
    core.tell(Dead(incarnation=1, node="a", source="x"), Dead(incarnation=1, node="b", source="x"))
    core.wait(53)
    assert (core.status("a"), core.status("b")) == (None, Status.FAILED)
    core.wait(50)
    assert core.status("b") is None


def test_user_events_are_told_once_and_passed_on() -> None:
    core = Core()
    core.tell(alive("a"))
    event = UserEventMessage(ltime=9, name="deploy", payload=b"x")
    core.tell(event, event, UserEventMessage(ltime=9, name="deploy", payload=b"y"))
    assert [e.payload for e in core.told(UserEvent)] == [b"x", b"y"]
    core.serf.user_event("mine", b"", core.now)
    core.wait(1)
    assert {(m.name, m.ltime) for m in core.said(UserEventMessage)} == {("deploy", 9), ("mine", 10)}
    with pytest.raises(EventTooLarge):
        core.serf.user_event("big", bytes(limits.user_event_bytes_max), core.now)


def test_tags_beyond_their_space_are_refused_and_nothing_changes() -> None:
    core = Core()
    with pytest.raises(TagsTooLarge):
        core.serf.set_tags({"k": "v" * limits.meta_bytes_max}, core.now)
    assert core.serf.tags == {"role": "proglog"}
    core.serf.set_tags({}, core.now)
    assert core.serf.members()[0].tags == {}


def query(name: str, **changes: Any) -> QueryMessage:
    settings: dict[str, Any] = {"ltime": 3, "id": 4, "flags": int(QueryFlag.ACK)}
    settings |= {"host": Address("10.0.5.5", 7).packed, "port": 7, "name": name} | changes
    return QueryMessage(**settings)


def test_queries_are_acknowledged_told_once_and_answered() -> None:
    core = Core()
    core.tell(query("load", payload=b"1m"), query("load", payload=b"1m"))
    (told,) = core.told(Query)
    assert told.payload == b"1m"
    assert [m.flags for m in core.said(QueryResponse)] == [QueryFlag.ACK]
    core.serf.respond(told, b"0.7", core.now)
    core.collect()
    to, answer = core.sent[-1]
    assert (to, answer.payload, answer.ltime, answer.id) == (Address("10.0.5.5", 7), b"0.7", 3, 4)
    with pytest.raises(EventTooLarge):
        core.serf.respond(told, bytes(limits.query_bytes_max), core.now)


def test_internal_queries_are_no_events() -> None:
    core = Core()
    core.tell(alive("a"))
    core.tell(query("_serf_ping"), query("_serf_conflict", id=5, payload=b"a"))
    core.tell(query("_serf_conflict", id=6, payload=b"us"), query("_serf_tomorrow", id=7))
    core.tell(query("_serf_conflict", id=8, payload=b"nobody"), query("_serf_list-keys", id=9))
    assert core.told(Query) == []
    answers = {m.id: m.payload for m in core.said(QueryResponse) if m.payload}
    assert answers[5][0] == SerfType.CONFLICT_RESPONSE
    assert answers[8] == bytes([SerfType.CONFLICT_RESPONSE]) + pack(None)
    assert answers[9][0] == SerfType.KEY_RESPONSE
    assert set(answers) == {5, 8, 9}


def test_messages_are_relayed_to_members_only() -> None:
    core = Core()
    core.tell(alive("a", host="10.0.6.6"))
    for host, relayed in (("10.0.6.6", True), ("10.9.9.9", False)):
        core.sent.clear()
        destination = RelayDestination(host=Address(host, 7).packed, port=7)
        inner = encode_serf(QueryResponse(ltime=1, id=2, source="b", payload=b"x"))
        data = bytes([Type.USER, SerfType.RELAY]) + encode(RelayHeader(destination=destination))
        core.serf.receive_packet(data + inner, Address("10.0.0.9", 7), core.now)
        core.collect()
        assert (len(core.said(QueryResponse)) == 1) is relayed


@pytest.mark.parametrize(
    ("expression", "value", "asked"),
    [
        ("^pro", "proglog", True),
        ("web|proglog", "proglog", True),
        ("web", "proglog", False),
        (r"v1\.[0-9]+$", "v1.22", True),
    ],
)
def test_tag_filters(expression: str, value: str, asked: bool) -> None:
    one = b"\x01" + encode(TagFilter(tag="t", expression=expression))
    assert is_asked((one,), "us", {"t": value}) is asked


@pytest.mark.parametrize(
    "expression",
    ["(a+)+$", "(a|a)(a|a)(a|a)b", r"(a)\1", "a*a*a*a*b", "[", "a" * 200, r"a{1,99999999999}"],
)
def test_tag_filters_that_could_run_for_ever_are_refused(expression: str) -> None:
    one = b"\x01" + encode(TagFilter(tag="t", expression=expression))
    with pytest.raises(MalformedMessage):
        is_asked((one,), "us", {"t": "a" * 500})


@pytest.mark.parametrize("one", [b"", b"\x07", b"\x00", b"\x00\xc1", b"\x01\x80"])
def test_broken_filters_are_malformed(one: bytes) -> None:
    with pytest.raises(MalformedMessage):
        is_asked((one,), "us", {})


def test_leaving_alone_is_immediate_and_final() -> None:
    core = Core()
    left: list[bool] = []
    core.serf.leave(lambda: left.append(True), core.now)
    assert left == [True]
    for use in (
        lambda: core.serf.join(US, core.now),
        lambda: core.serf.user_event("x", b"", core.now),
        lambda: core.serf.set_tags({}, core.now),
    ):
        with pytest.raises(NotRunning):
            use()
    core.serf.leave(lambda: left.append(True), core.now)
    assert left == [True, True]


def test_leaving_says_so_then_goes_then_lingers() -> None:
    core = Core()
    core.tell(alive("a"))
    left: list[float] = []
    core.serf.leave(lambda: left.append(core.now), core.now)
    start = core.now
    core.wait(12)
    order = [
        type(message)
        for _, message in core.sent
        if isinstance(message, LeaveIntent) or (isinstance(message, Dead) and message.node == "us")
    ]
    assert order[0] is LeaveIntent
    assert Dead in order
    assert 1.0 <= left[0] - start <= 11
    core.tell(Ping(sequence=5, node="us"))
    assert core.said(Ack)[-1].sequence == 5


def test_what_is_not_understood_is_counted_and_ignored() -> None:
    core = Core()
    source = Address("10.0.0.9", 7)
    for data in (
        b"",
        b"\xff",
        b"\x63x",
        b"\x00\xc1",
        b"\x08",
        b"\x08\x63",
        b"\x06\x80",
        b"\x0d\x80",
    ):
        core.serf.receive_packet(data, source, core.now)
    assert sum(core.serf.statistics().ignored.values()) == 8


# --- small parts ---------------------------------------------------------------------------------


def test_retransmits_grow_with_the_logarithm_of_the_cluster() -> None:
    assert [retransmit_limit(4, n) for n in (1, 9, 10, 99, 100)] == [4, 4, 8, 8, 12]


def test_broadcasts_least_sent_first_and_each_so_often() -> None:
    queue = BroadcastQueue(10)
    queue.add(b"one")
    queue.add(b"two")
    assert queue.take(5, 2, 3) == [b"two"]
    assert queue.take(5, 2, 3) == [b"one"]
    queue.add(b"new")
    for _ in range(2):
        first, *others = queue.take(100, 2, 3)
        assert first == b"new"
        assert sorted(others) == [b"one", b"two"]
    assert queue.take(100, 2, 3) == [b"new"]
    assert len(queue) == 0


def test_newer_news_of_a_subject_replace_older_and_both_are_done() -> None:
    queue, done = BroadcastQueue(10), []
    queue.add(b"old", subject="a", on_done=lambda: done.append("old"))
    queue.add(b"new", subject="a", on_done=lambda: done.append("new"))
    assert done == ["old"]
    assert queue.take(100, 0, 1) == [b"new"]
    assert done == ["old", "new"]


def test_a_full_queue_drops_what_was_sent_most() -> None:
    queue = BroadcastQueue(2)
    queue.add(b"sent")
    queue.take(100, 0, 9)
    queue.add(b"fresh")
    queue.add(b"newest")
    assert queue.take(100, 0, 9) == [b"newest", b"fresh"]
    assert queue.dropped == 1


def test_suspicion_shrinks_with_confirmations() -> None:
    suspicion = Suspicion("a", wanted=2, min_s=4.0, max_s=24.0, started=100.0)
    assert suspicion.deadline == 124.0
    assert not suspicion.confirm("a")
    assert suspicion.confirm("b")
    assert 104.0 < suspicion.deadline < 124.0
    assert not suspicion.confirm("b")
    assert suspicion.confirm("c")
    assert suspicion.deadline == 104.0
    assert not suspicion.confirm("d")
    alone = Suspicion("a", wanted=0, min_s=4.0, max_s=24.0, started=0.0)
    assert alone.deadline == 4.0


def test_awareness_stays_in_its_bounds() -> None:
    awareness = Awareness(7)
    awareness.adjust(-3)
    assert awareness.stretch(1.0) == 1.0
    awareness.adjust(100)
    assert awareness.stretch(1.0) == 8.0


def test_lamport_clocks_never_go_back() -> None:
    clock = LamportClock()
    clock.witness(10)
    clock.witness(3)
    assert clock.time == 11
    clock.advance()
    assert clock.time == 12
    clock.witness(limits.lamport_time_max)
    clock.advance()
    assert clock.time == limits.lamport_time_max


def test_what_had_to_be_forgotten_is_never_news_again() -> None:
    past: RecentPast[str] = RecentPast(3)
    assert [past.add(time, "x") for time in (1, 2, 3, 3, 4, 1)] == [
        True,
        True,
        True,
        False,
        True,
        False,
    ]
    assert len(past) == 3
    past.ignore_before(4)
    assert not past.add(3, "y")
    assert past.add(4, "y")


def test_a_late_wake_fires_a_periodic_timer_once() -> None:
    timers, fired = Timers(0.0), []

    def again() -> None:
        fired.append(timers.now)
        timers.after(1.0, again)

    timers.after(1.0, again)
    timers.after(5.0, lambda: fired.append(-1.0)).cancel()
    timers.fire(60.0)
    assert fired == [60.0]
    assert timers.next_deadline == 61.0


def test_a_pause_is_not_the_others_silence() -> None:
    real = [0.0]
    clock = PauseClock(lambda: real[0], 1.0)
    times = []
    for real[0] in (0.5, 1.4, 61.4, 61.9):
        times.append(round(clock.now(), 6))
    assert times == [0.5, 1.4, 2.4, 2.9]
