"""The rules of Serf one by one: intents, user events, queries, leaving."""

from __future__ import annotations

from typing import Any

import pytest

from proglog.membership import limits
from proglog.membership.address import Address
from proglog.membership.codec.messages import (
    Ack,
    Dead,
    Ping,
    Type,
)
from proglog.membership.codec.serf_messages import (
    JoinIntent,
    LeaveIntent,
    QueryFlag,
    QueryMessage,
    QueryResponse,
    RelayDestination,
    RelayHeader,
    SerfState,
    SerfType,
    TagFilter,
    UserEventMessage,
    encode_serf,
)
from proglog.membership.codec.streams import PushPull
from proglog.membership.codec.wire import encode, pack
from proglog.membership.errors import (
    EventTooLarge,
    MalformedMessage,
    NotRunning,
    TagsTooLarge,
)
from proglog.membership.events import (
    MemberLeaving,
    MemberLeft,
    Query,
    Status,
    UserEvent,
)
from proglog.membership.serf.filters import is_asked
from tests.membership.core import US, Core, alive


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


def test_a_peer_that_lists_a_living_member_as_left_is_behind() -> None:
    core = Core()
    core.tell(alive("a"), alive("b"), Dead(incarnation=1, node="b", source="x"))
    state = SerfState(ltime=9, status_ltimes={"a": 5, "b": 5, "us": 5}, left=("a", "b", "us"))
    message = PushPull(join=False, nodes=(), user_state=encode_serf(state))
    core.serf.serve(message, core.now)
    core.collect()
    assert core.status("a") is Status.ALIVE
    assert core.status("b") is Status.LEFT
    core.wait(1)
    (denial,) = {message.ltime for message in core.said(JoinIntent) if message.node == "us"}
    assert denial > 6
