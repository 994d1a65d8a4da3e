"""Messages: the same bytes as Go, there and back; only MalformedMessage from strangers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from proglog.membership import limits
from proglog.membership.address import Address, split_host_port
from proglog.membership.codec import messages, packets, serf_messages, streams, wire
from proglog.membership.codec.keyring import Keyring
from proglog.membership.codec.messages import (
    OURS,
    Alive,
    Dead,
    Nack,
    NodeState,
    Ping,
    Suspect,
    Versions,
)
from proglog.membership.codec.serf_messages import (
    JoinIntent,
    KeptEvents,
    QueryMessage,
    SerfState,
    SerfType,
    UserEventMessage,
)
from proglog.membership.errors import MalformedMessage

GOLDEN: dict[str, bytes] = {
    name: bytes.fromhex(data)
    for name, data in json.loads((Path(__file__).parent / "golden.json").read_text()).items()
}
"""What two stock agents (serf 0.10.1, memberlist 0.5.0) sent to a node of ours, byte for byte."""
PLAIN = Keyring((), bytes)
SECRET = Keyring((bytes(range(32)),), bytes)
NAMES = [name for name in GOLDEN if name.startswith("packet")]


def keyring(name: str) -> Keyring:
    return SECRET if "encrypted" in name else PLAIN


def parse(message: bytes) -> Any:
    if message[0] == messages.Type.USER:
        return serf_messages.decode_serf(SerfType(message[1]), message[1:])
    return wire.decode(messages.BODIES[messages.Type(message[0])], message[1:])


def build(message: Any) -> bytes:
    if type(message) in messages._TYPES:
        return messages.encode_message(message)
    return bytes([messages.Type.USER]) + serf_messages.encode_serf(message)


@pytest.mark.parametrize("name", NAMES)
def test_we_encode_what_go_sent_to_the_same_bytes(name: str) -> None:
    for message in packets.open_packet(GOLDEN[name], keyring(name)):
        assert build(parse(message)) == message


def test_golden_packets_say_what_the_agents_meant() -> None:
    meant = {
        name: [parse(message) for message in packets.open_packet(GOLDEN[name], keyring(name))]
        for name in NAMES
    }
    assert meant["packet ping 0"] == [
        Ping(
            sequence=1,
            node="ours",
            source_host=b"\x7f\0\0\1",
            source_port=60287,
            source_name="other",
        )
    ]
    assert meant["packet nack 0"] == [Nack(sequence=226104134)]
    assert meant["packet checksummed 4"] == [Suspect(incarnation=1, node="other", source="stock")]
    assert meant["packet checksummed 5"] == [
        Dead(incarnation=1, node="other", source="stock"),
        JoinIntent(ltime=2, node="stock"),
    ]
    query, event = meant["packet checksummed 2"]
    assert isinstance(query, QueryMessage)
    assert (query.name, query.payload, query.timeout_ns) == ("hello", b"x", 10**9)
    assert query.reply_to == Address("127.0.0.1", 51351)
    assert event == UserEventMessage(ltime=1, name="deploy", payload=b"v2")
    alive = next(one for one in meant["packet encrypted 1"] if isinstance(one, Alive))
    assert (alive.node, alive.versions) == ("ours", OURS)
    assert serf_messages.decode_tags(alive.meta) == {"rpc_addr": "127.0.0.1:8400"}


def test_golden_push_pull() -> None:
    message = streams.StreamDecoder(SECRET).feed(GOLDEN["stream encrypted 2"])
    assert isinstance(message, streams.PushPull)
    assert [(node.node, node.state) for node in message.nodes] == [
        ("ours", messages.State.ALIVE),
        ("other", messages.State.SUSPECT),
        ("stock", messages.State.ALIVE),
    ]
    state = serf_messages.decode_serf(SerfType.PUSH_PULL, message.user_state)
    assert isinstance(state, SerfState)
    assert state.status_ltimes == {"stock": 0, "other": 1, "ours": 1}
    (kept,) = [one for one in state.events if one is not None]
    assert [(event.name, event.payload) for event in kept.events] == [("deploy", b"v2")]


# --- there and back ------------------------------------------------------------------------------

names = st.text(min_size=1, max_size=20)
u32 = st.integers(0, 2**32 - 1)
ltimes = st.integers(0, limits.lamport_time_max)
hosts = st.binary(min_size=4, max_size=4) | st.binary(min_size=16, max_size=16)
ports = st.integers(1, 65535)
payloads = st.binary(max_size=300)
versions = st.builds(Versions, st.integers(1, 2), st.integers(2, 5), *[st.integers(0, 255)] * 4)
everything = st.one_of(
    st.builds(Ping, sequence=u32, node=names, source_host=hosts, source_port=ports),
    st.builds(
        messages.IndirectPing,
        sequence=u32,
        host=hosts,
        port=ports,
        node=names,
        nack=st.booleans(),
    ),
    st.builds(messages.Ack, sequence=u32, payload=payloads),
    st.builds(Nack, sequence=u32),
    st.builds(Suspect, incarnation=u32, node=names, source=names),
    st.builds(Dead, incarnation=u32, node=names, source=names),
    st.builds(
        Alive,
        incarnation=u32,
        node=names,
        host=hosts,
        port=ports,
        meta=st.binary(max_size=limits.meta_bytes_max),
        versions=versions,
    ),
    st.builds(JoinIntent, ltime=ltimes, node=names),
    st.builds(serf_messages.LeaveIntent, ltime=ltimes, node=names, prune=st.booleans()),
    st.builds(UserEventMessage, ltime=ltimes, name=names, payload=payloads),
    st.builds(
        SerfState,
        ltime=ltimes,
        status_ltimes=st.dictionaries(names, ltimes, max_size=5),
        left=st.lists(names, max_size=5).map(tuple),
        events=st.lists(
            st.none()
            | st.builds(
                KeptEvents,
                ltime=ltimes,
                events=st.lists(
                    st.builds(serf_messages.KeptEvent, name=names, payload=payloads), max_size=3
                ).map(tuple),
            ),
            max_size=5,
        ).map(tuple),
    ),
    st.builds(
        QueryMessage,
        ltime=ltimes,
        id=u32,
        host=hosts,
        port=ports,
        source=names,
        filters=st.lists(payloads, max_size=3).map(tuple),
        name=names,
        payload=payloads,
    ),
    st.builds(serf_messages.QueryResponse, ltime=ltimes, id=u32, source=names, payload=payloads),
    st.builds(serf_messages.KeyResponse, result=st.booleans(), keys=st.lists(names).map(tuple)),
)


@given(everything)
def test_messages_round_trip(message: Any) -> None:
    assert parse(build(message)) == message


@given(everything, st.data())
def test_a_message_cut_short_is_malformed(message: Any, data: st.DataObject) -> None:
    encoded = build(message)
    cut = data.draw(st.integers(1, len(encoded) - 1))
    with pytest.raises((MalformedMessage, IndexError)) as raised:
        parse(encoded[:cut])
    # Only the helper above indexes the second byte.
    assert raised.type is MalformedMessage or cut == 1


@given(everything, st.data())
def test_a_message_with_a_wrong_byte_is_a_message_or_malformed(
    message: Any, data: st.DataObject
) -> None:
    encoded = bytearray(build(message))
    start = 2 if encoded[0] == messages.Type.USER else 1
    position = data.draw(st.integers(start, len(encoded) - 1))
    encoded[position] = data.draw(st.integers(0, 255))
    try:
        parse(bytes(encoded))
    except MalformedMessage:
        pass


ALL_KINDS = [*messages.BODIES.values(), *serf_messages.SERF_BODIES.values(), NodeState]


@given(st.binary(max_size=400), st.sampled_from(ALL_KINDS))
def test_random_bytes_are_malformed_or_a_message(data: bytes, kind: type) -> None:
    try:
        wire.decode(kind, data)
    except MalformedMessage:
        pass


anything = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.binary(max_size=30),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.binary(max_size=8), inner),
    max_leaves=12,
)


@given(st.sampled_from(ALL_KINDS), st.data())
def test_fields_of_the_wrong_type_are_malformed_or_a_message(
    kind: type, data: st.DataObject
) -> None:
    go_names = [field.go_name for field in wire._fields(kind)]
    values = {name: data.draw(anything) for name in go_names}
    try:
        wire.decode(kind, wire.pack(values))
    except MalformedMessage:
        pass


@pytest.mark.parametrize(
    "bomb",
    [
        b"\xdd\xff\xff\xff\xff",
        b"\xdf\xff\xff\xff\xff",
        b"\xdb\xff\xff\xff\xff",
        b"\xdc\xff\xff" * 500,
        b"\x91" * 100_000,
        b"\xc7\xff\x05" + bytes(255),
        b"\x81\x90\x90",
    ],
)
def test_bombs_are_malformed(bomb: bytes) -> None:
    """Lengths that nothing follows, nesting without end, extensions, keys that cannot be keys."""
    with pytest.raises(MalformedMessage):
        wire.unpack(bomb)


def test_a_nil_is_the_zero_value_and_unknown_fields_are_skipped() -> None:
    data = msgpack.packb({"SeqNo": 7, "Node": None, "Tomorrow": [1]}, use_bin_type=False)
    assert wire.decode(Ping, data) == Ping(sequence=7)


def test_a_missing_field_is_named() -> None:
    with pytest.raises(MalformedMessage, match="Ping without SeqNo"):
        wire.decode(Ping, msgpack.packb({"Node": "a"}))


def test_names_are_text_and_never_empty() -> None:
    for node in ("", b"\xff"):
        with pytest.raises(MalformedMessage):
            wire.decode(Suspect, wire.pack({"Incarnation": 1, "Node": node, "From": "b"}))


# --- addresses and tags --------------------------------------------------------------------------


def test_an_ipv4_address_is_one_however_go_keeps_it() -> None:
    short = Address.unpack(b"\x7f\0\0\1", 1)
    assert short == Address.unpack(bytes(10) + b"\xff\xff\x7f\0\0\1", 1) == ("127.0.0.1", 1)
    assert Address.unpack(bytes(15) + b"\1", 2) == ("::1", 2)


@pytest.mark.parametrize(("host", "port"), [(b"abc", 1), (b"", 1), (b"\x7f\0\0\1", 0)])
def test_what_is_no_address_is_malformed(host: bytes, port: int) -> None:
    with pytest.raises(MalformedMessage):
        Address.unpack(host, port)


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("node-a", ("node-a", 7946)),
        ("node-a:8401", ("node-a", 8401)),
        ("[::1]:9", ("::1", 9)),
        ("::1", ("::1", 7946)),
        ("[::1]", ("::1", 7946)),
    ],
)
def test_host_and_port(text: str, place: tuple[str, int]) -> None:
    assert split_host_port(text, 7946) == place


@pytest.mark.parametrize("text", ["a:b", ":1", "a:0", "a:99999", ""])
def test_what_is_no_host_and_port(text: str) -> None:
    with pytest.raises(ValueError):
        split_host_port(text, 7946)


def test_tags_old_and_new() -> None:
    tags = {"role": "proglog", "rpc_addr": "a:8400"}
    assert serf_messages.decode_tags(serf_messages.encode_tags(tags)) == tags
    assert serf_messages.decode_tags(b"web") == {"role": "web"}
    assert serf_messages.decode_tags(b"") == {}
