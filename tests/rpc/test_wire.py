"""The strict decoder and the hand-made encodings, with google.protobuf as the oracle."""

from __future__ import annotations

import base64
import time
import tracemalloc

import hpack
import pytest
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.message import DecodeError, Message
from hypothesis import given, settings
from hypothesis import strategies as st

import proglog._generated
from proglog import errors, limits, wire
from proglog._generated.log import v1
from proglog.batch import Body, ProposedBatch
from proglog.grpc import http2
from proglog.grpc.frames import Http2Connection

U32 = st.integers(0, 2**32 - 1)
U64 = st.integers(0, 2**64 - 1)
TEXT = st.text(max_size=20)
BYTES = st.binary(max_size=300)


def _oracle() -> dict[str, type[Message]]:
    path = proglog._generated.__path__[0] + "/log_v1.fds"
    pool = descriptor_pool.DescriptorPool()
    with open(path, "rb") as file:
        for proto in descriptor_pb2.FileDescriptorSet.FromString(file.read()).file:
            pool.Add(proto)
    file = pool.FindFileByName("log/v1/log.proto")
    return {
        name: message_factory.GetMessageClass(descriptor)
        for name, descriptor in file.message_types_by_name.items()
    }


ORACLE = _oracle()
headers = st.lists(st.fixed_dictionaries({}, optional={"name": TEXT, "value": BYTES}), max_size=4)
records = st.fixed_dictionaries(
    {},
    optional={
        "value": BYTES,
        "offset": U64,
        "term": U64,
        "type": U32,
        "key": BYTES,
        "timestamp": U64,
        "headers": headers,
    },
)
servers = st.lists(
    st.fixed_dictionaries({}, optional={"id": TEXT, "rpc_addr": TEXT, "is_leader": st.booleans()}),
    max_size=4,
)
start = st.one_of(
    st.just({}),
    st.fixed_dictionaries({"offset": U64}),
    st.fixed_dictionaries({"timestamp": U64}),
    st.fixed_dictionaries({"earliest": st.booleans()}),
    st.fixed_dictionaries({"latest": st.booleans()}),
)
batches = st.builds(
    ProposedBatch,
    st.builds(Body, U32, U32, U32, U32, BYTES),
    U64,
    U64,
    st.one_of(st.none(), U64),
    U64,
)


def same(ours: object, theirs: Message) -> bool:
    """Whether a generated message holds what google's message holds."""
    for name, field in theirs.DESCRIPTOR.fields_by_name.items():
        mine, other = getattr(ours, name), getattr(theirs, name)
        if field.is_repeated:
            if len(mine) != len(other) or not all(map(same, mine, other)):
                return False
        elif field.message_type is not None:
            if (mine is not None) != theirs.HasField(name) or (mine and not same(mine, other)):
                return False
        elif field.has_presence:
            if mine != (other if theirs.HasField(name) else None):
                return False
        elif mine != other:
            return False
    return True


@given(records, TEXT)
def test_decodes_what_google_encodes(record, log):
    theirs = ORACLE["ProduceRequest"](record=record, log=log)
    ours = wire.decode(v1.ProduceRequest, theirs.SerializeToString())
    assert same(ours, theirs)
    assert same(
        wire.decode(v1.ConsumeResponse, bytes(v1.ConsumeResponse(record=ours.record))),
        ORACLE["ConsumeResponse"](record=record),
    )


@given(servers)
def test_decodes_repeated_messages(found):
    theirs = ORACLE["GetServersResponse"](servers=found)
    assert same(wire.decode(v1.GetServersResponse, theirs.SerializeToString()), theirs)


@given(start, st.booleans(), U32, TEXT)
def test_decodes_a_oneof(begin, follow, max_bytes, log):
    theirs = ORACLE["ConsumeBatchesRequest"](follow=follow, max_bytes=max_bytes, log=log, **begin)
    ours = wire.decode(v1.ConsumeBatchesRequest, theirs.SerializeToString())
    assert same(ours, theirs)
    for name in ("offset", "timestamp", "earliest", "latest"):
        assert getattr(ours, name) == begin.get(name)


@given(batches, TEXT)
def test_produce_batch_round_trip(batch, log):
    codec = wire.Codec()
    encoded = codec.encode(wire.ProduceBatch(batch, log), v1.ProduceBatchesRequest)
    theirs = ORACLE["ProduceBatchesRequest"].FromString(encoded)
    body = Body(theirs.codec, theirs.columns, theirs.count, theirs.body_crc, theirs.body)
    expected = theirs.expected_offset if theirs.HasField("expected_offset") else None
    of = (theirs.producer_id, theirs.sequence, expected, theirs.seen_index)
    assert ProposedBatch(body, *of) == batch
    assert theirs.log == log
    for data in (encoded, theirs.SerializeToString()):
        assert codec.decode(data, v1.ProduceBatchesRequest) == wire.ProduceBatch(batch, log)


@given(BYTES, U64, U64)
def test_answers_round_trip(data, offset, timestamp):
    codec = wire.Codec()
    encoded = codec.encode((data, offset), v1.ConsumeBatchesResponse)
    theirs = ORACLE["ConsumeBatchesResponse"].FromString(encoded)
    assert (theirs.batches, theirs.next_offset) == (data, offset)
    assert codec.decode(theirs.SerializeToString(), v1.ConsumeBatchesResponse) == (data, offset)
    encoded = codec.encode((offset, timestamp), v1.ProduceBatchesResponse)
    theirs = ORACLE["ProduceBatchesResponse"].FromString(encoded)
    assert (theirs.offset, theirs.timestamp) == (offset, timestamp)
    assert codec.decode(theirs.SerializeToString(), v1.ProduceBatchesResponse) == (
        offset,
        timestamp,
    )


def test_a_batch_is_not_copied():
    data = b"x" * 100_000
    batch = ProposedBatch(Body(0, 0, 1, 7, data))
    parts = wire.Codec().parts(wire.ProduceBatch(batch), v1.ProduceBatchesRequest)
    assert parts[-1] is data
    assert wire.Codec().parts((data, 9), v1.ConsumeBatchesResponse)[-1] is data
    decoded = wire.Codec().decode(b"".join(parts), v1.ProduceBatchesRequest)
    assert isinstance(decoded.batch.body.data, memoryview)


@settings(max_examples=500)
@given(st.data())
def test_damaged_messages_are_refused_or_read_as_google_reads_them(data):
    name = data.draw(st.sampled_from(sorted(ORACLE)))
    record = {"value": b"abc", "offset": 300, "headers": [{"name": "n", "value": b"v"}]}
    whole = {
        "ProduceRequest": ORACLE["ProduceRequest"](record=record, log="l"),
        "ConsumeResponse": ORACLE["ConsumeResponse"](record=record),
        "Record": ORACLE["Record"](**record),
    }.get(name, ORACLE[name]())
    damaged = bytearray(whole.SerializeToString() + data.draw(st.binary(max_size=12)))
    for _ in range(data.draw(st.integers(0, 3))):
        if damaged:
            damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    message = bytes(damaged[: data.draw(st.integers(0, len(damaged)))])
    try:
        ours = wire.decode(getattr(v1, name), message)
    except wire.BadMessage:
        return
    assert same(ours, ORACLE[name].FromString(message))  # DecodeError: we are not strict enough


@given(st.binary(max_size=400))
def test_random_bytes_give_a_message_or_a_named_error(data):
    for kind in (v1.ProduceBatchesRequest, v1.ConsumeBatchesResponse, v1.ProduceRequest):
        try:
            wire.Codec().decode(data, kind)
        except wire.BadMessage:
            continue
        ORACLE[kind.__name__].FromString(data)


@pytest.mark.parametrize(
    ("data", "what"),
    [
        (b"\x08", "cut short"),
        (b"\x08" + b"\xff" * 10, "64 bits"),
        (b"\x08" + b"\xff" * 9 + b"\x02", "64 bits"),
        (b"\x08\x01\x08\x02", "more than once"),
        (b"\x0a\x01a", "wrong type"),
        (b"\x12\x05ab", "beyond the end"),
        (b"\x12\x01\xff", "UTF-8"),
        (b"\x0b\x0c", "wire type 3"),
        (b"\x00\x01", "field number 0"),
        (b"\xff\xff", "cut short"),
    ],
)
def test_what_is_refused_is_named(data, what):
    with pytest.raises(wire.BadMessage, match=what):
        wire.decode(v1.ConsumeRequest, data)


def test_numbers_beyond_their_type_are_refused():
    with pytest.raises(wire.BadMessage, match="codec"):
        wire.Codec().decode(b"\x08" + b"\xff" * 4 + b"\x10", v1.ProduceBatchesRequest)


def test_two_of_a_oneof_are_refused():
    with pytest.raises(wire.BadMessage, match="start"):
        wire.decode(v1.ConsumeBatchesRequest, b"\x08\x01\x18\x01")


def test_unknown_fields_are_skipped_within_a_bound():
    room = b"\xf8\x07\x01" * (limits.message_unknown_bytes_max // 3)
    assert wire.decode(v1.ConsumeRequest, room + b"\x08\x07").offset == 7
    with pytest.raises(wire.BadMessage, match="unknown"):
        wire.decode(v1.ConsumeRequest, room + b"\xf8\x07\x01")
    # Nested ones draw on the same allowance.
    record = wire._length_field(1, room[: len(room) // 2 // 3 * 3])
    with pytest.raises(wire.BadMessage, match="unknown"):
        wire.decode(v1.ProduceRequest, room + record)


@pytest.mark.parametrize("unit", [b"\xf8\x07\x01", b"\xfa\x07\x00", b"\x0a\x02\x3a\x00"])
def test_a_message_full_of_small_fields_costs_little(unit):
    """betterproto2's own decoder takes seconds for this, on the event loop."""
    data = unit * (limits.message_bytes_max // len(unit))
    tracemalloc.start()
    started = time.process_time()
    with pytest.raises(wire.BadMessage):
        wire.decode(v1.ProduceRequest, data)
    spent = time.process_time() - started
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1 << 20
    assert spent < 2  # a sanity bound a hundred times above what it takes


def test_repeated_elements_are_bounded():
    header = wire._length_field(7, b"")
    record = wire._length_field(1, header * limits.message_elements_max)
    assert len(wire.decode(v1.ProduceRequest, record).record.headers) == limits.message_elements_max
    with pytest.raises(wire.BadMessage, match="elements"):
        wire.decode(
            v1.ProduceRequest, wire._length_field(1, header * (limits.message_elements_max + 1))
        )


@pytest.mark.parametrize("row", errors.ROWS)
def test_every_error_of_the_table_survives_the_network(row):
    error = row("what is wrong – ünd where", offset=7, leader_addr="127.0.0.1:8400")
    back = wire.decode_error(wire.encode_error(error))
    assert type(back) is row
    assert (str(back), back.facts) == (str(error), error.facts)


def test_error_details_are_what_google_says_they_are():
    pool = descriptor_pool.DescriptorPool()
    status = descriptor_pb2.FileDescriptorProto(name="s.proto", package="google.rpc")
    status.message_type.add(name="Any").field.extend(_fields("type_url:9", "value:12"))
    status.message_type.add(name="Status").field.extend(
        [*_fields("code:5", "message:9"), _repeated(3, "details", ".google.rpc.Any")]
    )
    entry = status.message_type.add(name="ErrorInfo")
    entry.field.extend(
        [*_fields("reason:9", "domain:9"), _repeated(3, "metadata", ".google.rpc.ErrorInfo.E")]
    )
    entry.nested_type.add(name="E").field.extend(_fields("key:9", "value:9"))
    pool.Add(status)
    new = message_factory.GetMessageClass
    theirs = new(pool.FindMessageTypeByName("google.rpc.Status")).FromString(
        wire.encode_error(errors.OffsetOutOfRange.of(9, 2, 5))
    )
    info = new(pool.FindMessageTypeByName("google.rpc.ErrorInfo")).FromString(
        theirs.details[0].value
    )
    assert (theirs.code, info.reason, info.domain) == (11, "OFFSET_OUT_OF_RANGE", "proglog")
    assert theirs.details[0].type_url == "type.googleapis.com/google.rpc.ErrorInfo"
    assert {e.key: e.value for e in info.metadata} == {"offset": "9", "earliest": "2", "next": "5"}


def _fields(*specs: str) -> list[descriptor_pb2.FieldDescriptorProto]:
    return [
        descriptor_pb2.FieldDescriptorProto(
            name=spec.split(":")[0], number=number, label=1, type=int(spec.split(":")[1])
        )
        for number, spec in enumerate(specs, 1)
    ]


def _repeated(number: int, name: str, of: str) -> descriptor_pb2.FieldDescriptorProto:
    return descriptor_pb2.FieldDescriptorProto(
        name=name, number=number, label=3, type=11, type_name=of
    )


@given(st.binary(max_size=200))
def test_broken_error_details_are_no_error_of_ours(data):
    try:
        found = wire.decode_error(data)
    except DecodeError:  # pragma: no cover
        pytest.fail("google's errors do not come from here")
    assert found is None


def test_a_large_error_stays_within_what_trailers_hold():
    text = "é" * 100_000
    error = errors.Internal(text, one=text, two=text, three=text, four=text)
    details = len(base64.b64encode(wire.encode_error(error)))
    assert details + 3 * limits.error_text_bytes_max < 7 * 1024
    assert set(str(wire.decode_error(wire.encode_error(error)))) == {"é"}


def test_a_long_name_is_shortened_where_it_is_quoted():
    assert errors.quoted("short") == "'short'"
    assert errors.quoted("é" * 1000) == f"'{'é' * 50}'..."
    assert errors.quoted("\U00010000" * 1000) == f"'{chr(0x10000) * 25}'..."
    assert errors.clip("\ud800", 10) == "?"


def test_headers_are_not_coded_at_a_cost_that_grows_with_their_square():
    state = Http2Connection(http2.configuration(client_side=False), lambda: 0.0)
    block = state.encoder.encode([("grpc-message", "x" * 4000)])
    assert b"x" * 4000 in block
    assert hpack.Decoder().decode(block) == [("grpc-message", "x" * 4000)]
