"""Messages as bytes, on both ends: a strict protobuf decoder and the codecs that gRPC calls use.

The decoder trusts nothing: wire types, lengths, varints, text, repetition and unknown fields are
checked or bounded, and the work is linear in the bytes. (betterproto2's own `parse` is quadratic in
unknown fields and takes broken input for good, so no byte from outside reaches it.) It is driven by
the generated message classes, which stay the one description of the messages.

Messages that carry batches have hand-made encodings that copy no batch: `ProduceBatch`, `Produced`
and `Consumed` stand for the generated classes ProduceBatchesRequest, ProduceBatchesResponse and
ConsumeBatchesResponse wherever `Codec` meets them.

Format: https://protobuf.dev/programming-guides/encoding/.
"""

from __future__ import annotations

import functools
import struct
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final, NamedTuple, TypeAlias

import betterproto2
from grpclib.const import Status as GrpcStatus
from grpclib.encoding.base import CodecBase, StatusDetailsCodecBase

from proglog import errors, limits
from proglog._generated.log import v1
from proglog.batch import Body, Buffer, ProposedBatch, RecordBatch

VARINT, FIXED64, LENGTH, FIXED32 = 0, 1, 2, 5
"""Wire types. The others are groups (3, 4), long deprecated and refused, and undefined."""


class BadMessage(Exception):
    """Received bytes are not the message that they should be. Says what is wrong."""


# --- decoding ------------------------------------------------------------------------------------


class Rule(NamedTuple):
    """What may stand in one field of a message.

    `slot` is the oneof that the field belongs to, else its name: a slot is filled at most once
    unless `repeated`. `convert` makes the value of what stands on the wire: an int or a memoryview.
    """

    name: str
    slot: str
    wire_type: int
    value_max: int
    convert: Callable[[Any], Any]
    repeated: bool = False
    nested: type[betterproto2.Message] | Rules | None = None


Rules: TypeAlias = "Mapping[int, Rule]"


def _text(raw: memoryview) -> str:
    try:
        return str(raw, "utf-8")
    except UnicodeDecodeError:
        raise BadMessage("text is not UTF-8") from None


def _same(raw: Any) -> Any:
    return raw


_KINDS: Final[Mapping[str, tuple[int, int, Callable[[Any], Any]]]] = {
    "uint32": (VARINT, 2**32 - 1, _same),
    "uint64": (VARINT, 2**64 - 1, _same),
    "bool": (VARINT, 1, bool),
    "fixed32": (FIXED32, 0, _same),
    "fixed64": (FIXED64, 0, _same),
    "bytes": (LENGTH, 0, bytes),
    "string": (LENGTH, 0, _text),
    "message": (LENGTH, 0, _same),
}


@functools.cache
def rules_of(message_type: type[betterproto2.Message]) -> Rules:
    """The rules of a generated message class, by field number."""
    generated: Any = message_type
    meta = generated._betterproto
    return {
        field.number: Rule(
            name,
            field.group or name,
            *_KINDS[field.proto_type],
            repeated=bool(field.repeated),
            nested=meta.cls_by_field[name] if field.proto_type == "message" else None,
        )
        for name, field in meta.meta_by_field_name.items()
    }


def decode(message_type: type[betterproto2.Message], data: Buffer) -> Any:
    """A message of a generated class. Raises BadMessage."""
    return message_type(**scan(rules_of(message_type), data))


def scan(rules: Rules, data: Buffer) -> dict[str, Any]:
    """The fields that are present in a message, by name. Raises BadMessage.

    Refused although protobuf allows it: a field that occurs twice without being repeated, numbers
    outside the field's type, and more unknown bytes or repeated elements than the limits allow.
    """
    return _Scanner().scan(rules, memoryview(data))


class _Scanner:
    """One message and those nested in it share one allowance of unknown bytes and of elements."""

    __slots__ = ("elements", "unknown")

    def __init__(self) -> None:
        self.unknown = 0
        self.elements = 0

    def scan(self, rules: Rules, data: memoryview) -> dict[str, Any]:
        found: dict[str, Any] = {}
        filled: set[str] = set()
        position, end = 0, len(data)
        while position < end:
            start = position
            key, position = _varint(data, position)
            raw, position = _value(data, key & 7, position)
            rule = rules.get(key >> 3)
            if rule is None:
                self._skip(key >> 3, position - start)
                continue
            if rule.wire_type != key & 7 or (rule.value_max and raw > rule.value_max):
                raise BadMessage(f"field {rule.name} has a wrong type or value")
            value = rule.convert(raw) if rule.nested is None else self._nested(rule.nested, raw)
            if rule.repeated:
                self._count_element()
                found.setdefault(rule.name, []).append(value)
                continue
            if rule.slot in filled:
                raise BadMessage(f"field {rule.slot} occurs more than once")
            filled.add(rule.slot)
            found[rule.name] = value
        return found

    def _nested(self, nested: type[betterproto2.Message] | Rules, raw: memoryview) -> Any:
        # Depth is bounded by the rules: no message of ours nests in itself.
        if isinstance(nested, type):
            return nested(**self.scan(rules_of(nested), raw))
        return self.scan(nested, raw)

    def _skip(self, number: int, size: int) -> None:
        if not 0 < number < 2**29:
            raise BadMessage(f"there is no field number {number}")
        self.unknown += size
        if self.unknown > limits.message_unknown_bytes_max:
            raise BadMessage(
                f"more than {limits.message_unknown_bytes_max} bytes of unknown fields"
            )

    def _count_element(self) -> None:
        self.elements += 1
        if self.elements > limits.message_elements_max:
            raise BadMessage(f"more than {limits.message_elements_max} repeated elements")


def _varint(data: memoryview, position: int) -> tuple[int, int]:
    """A number of at most 64 bits, and the position after it."""
    if position < len(data) and (byte := data[position]) < 0x80:
        return byte, position + 1
    value = 0
    for shift in range(0, 70, 7):
        if position >= len(data):
            break
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            if value >= 2**64:
                break
            return value, position
    raise BadMessage("a number is cut short or has more than 64 bits")


def _value(data: memoryview, wire_type: int, position: int) -> tuple[Any, int]:
    """What stands in a field, an int or a memoryview, and the position after it."""
    if wire_type == VARINT:
        return _varint(data, position)
    if wire_type == LENGTH:
        size, position = _varint(data, position)
    elif wire_type == FIXED64:
        size = 8
    elif wire_type == FIXED32:
        size = 4
    else:
        raise BadMessage(f"wire type {wire_type} is not in use")
    end = position + size
    if end > len(data):
        raise BadMessage("a field reaches beyond the end of the message")
    raw = data[position:end]
    return (raw if wire_type == LENGTH else int.from_bytes(raw, "little")), end


# --- encoding ------------------------------------------------------------------------------------

_FIXED32 = struct.Struct("<I")
_FIXED64 = struct.Struct("<Q")


def _number(value: int) -> bytes:
    """A varint."""
    if value < 0x80:
        return bytes((value,))
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _varint_field(number: int, value: int) -> bytes:
    assert 0 <= value < 2**64, "a field holds an unsigned number of 64 bits"
    return _number(number << 3 | VARINT) + _number(value)


def _length_field(number: int, value: bytes) -> bytes:
    return _number(number << 3 | LENGTH) + _number(len(value)) + value


# --- messages that carry batches -----------------------------------------------------------------


class ProduceBatch(NamedTuple):
    """ProduceBatchesRequest. A decoded body is a view of the received message."""

    batch: ProposedBatch
    log: str = ""


class Produced(NamedTuple):
    """ProduceBatchesResponse: offset of the first record, time of the append in ms."""

    offset: int
    timestamp: int


class Consumed(NamedTuple):
    """ConsumeBatchesResponse: whole batches, and the offset after the last of their records."""

    batches: Buffer
    next_offset: int


Parts: TypeAlias = Sequence[Buffer]


def _produce_batch_parts(message: ProduceBatch) -> Parts:
    body, producer_id, sequence, expected_offset, seen_index = message.batch
    head = [
        _varint_field(1, body.codec) if body.codec else b"",
        _varint_field(2, body.columns) if body.columns else b"",
        _varint_field(3, body.count),
        b"\x21" + _FIXED64.pack(producer_id) if producer_id else b"",
        _varint_field(5, sequence) if sequence else b"",
        b"\x35" + _FIXED32.pack(body.crc),
        _varint_field(8, expected_offset) if expected_offset is not None else b"",
        _length_field(9, message.log.encode()) if message.log else b"",
        _varint_field(10, seen_index) if seen_index else b"",
        b"\x3a" + _number(len(body.data)),
    ]
    return b"".join(head), body.data


_BATCH_RULES: Final = {
    **rules_of(v1.ProduceBatchesRequest),
    7: rules_of(v1.ProduceBatchesRequest)[7]._replace(convert=_same),
}
_CONSUMED_RULES: Final = {
    **rules_of(v1.ConsumeBatchesResponse),
    1: rules_of(v1.ConsumeBatchesResponse)[1]._replace(convert=_same),
}
_PRODUCED_RULES: Final = rules_of(v1.ProduceBatchesResponse)


def _decode_produce_batch(data: Buffer) -> ProduceBatch:
    get = scan(_BATCH_RULES, data).get
    body = Body(
        get("codec", 0), get("columns", 0), get("count", 0), get("body_crc", 0), get("body", b"")
    )
    batch = ProposedBatch(
        body,
        get("producer_id", 0),
        get("sequence", 0),
        get("expected_offset", None),
        get("seen_index", 0),
    )
    return ProduceBatch(batch, get("log", ""))


def _produced_parts(message: tuple[int, int]) -> Parts:
    offset, timestamp = message
    return (_varint_field(1, offset) + _varint_field(2, timestamp),)


def _decode_produced(data: Buffer) -> Produced:
    get = scan(_PRODUCED_RULES, data).get
    return Produced(get("offset", 0), get("timestamp", 0))


def _consumed_parts(message: tuple[Buffer, int]) -> Parts:
    batches, next_offset = message
    head = _varint_field(2, next_offset)
    return (head + b"\x0a" + _number(len(batches)), batches) if batches else (head,)


def _decode_consumed(data: Buffer) -> Consumed:
    get = scan(_CONSUMED_RULES, data).get
    return Consumed(get("batches", b""), get("next_offset", 0))


_BATCH_CODECS: Final[Mapping[Any, tuple[Callable[[Any], Parts], Callable[[Buffer], Any]]]] = {
    v1.ProduceBatchesRequest: (_produce_batch_parts, _decode_produce_batch),
    v1.ProduceBatchesResponse: (_produced_parts, _decode_produced),
    v1.ConsumeBatchesResponse: (_consumed_parts, _decode_consumed),
}


# --- messages of one record ----------------------------------------------------------------------


def framed(message: bytes) -> bytes:
    """A message as it stands in a gRPC stream: not compressed, its length, itself."""
    return len(message).to_bytes(5, "big") + message


def bare_record(data: memoryview) -> bytes | None:
    """The value in a ProduceRequest that holds nothing else; None where it may hold more.

    What almost all are: {record: {value}}, both with their lengths.
    """
    size = len(data)
    if size < 2 or data[0] != 0x0A:
        return None
    outer, at = _varint(data, 1)
    if at + outer != size or not outer or data[at] != 0x0A:
        return None
    inner, at = _varint(data, at + 1)
    return bytes(data[at:]) if at + inner == size else None


def produce_response(offset: int) -> bytes:
    """ProduceResponse."""
    return b"\x08" + _number(offset) if offset else b""


def consume_responses(records: RecordBatch) -> bytes:
    """A ConsumeResponse for each record, framed. By hand: 2 us each in place of 30."""
    term = b"\x18" + _number(records.term) if records.term else b""
    parts: list[bytes] = []
    keys, stamps, headers = records.keys, records.timestamps, records.headers
    common = term + _stamp(records.timestamp)
    for at, value in enumerate(records.values):
        offset = records.base_offset + at
        tail = b"\x10" + _number(offset) if offset else b""
        if keys is None and stamps is None and headers is None:
            tail += common
        else:
            key = keys[at] if keys is not None else None
            tail += term + (b"" if key is None else _length_field(5, key))
            tail += _stamp(records.timestamp if stamps is None else stamps[at])
            if headers is not None:
                tail += b"".join(_header(*pair) for pair in headers[at])
        if value:
            tail = b"".join((b"\x0a", _number(len(value)), value, tail))
        head = b"\x12" + _number(len(tail))
        parts += (len(head + tail).to_bytes(5, "big"), head, tail)
    return b"".join(parts)


def _stamp(timestamp: int) -> bytes:
    return b"\x30" + _number(timestamp) if timestamp else b""


def _header(name: str, value: bytes) -> bytes:
    pair = _length_field(1, name.encode()) + (_length_field(2, value) if value else b"")
    return _length_field(7, pair)


class Codec(CodecBase):
    """The gRPC codec of both ends. `decode` raises BadMessage.

    For the three generated classes that carry batches a message is a `ProduceBatch`, `Produced`
    or `Consumed` (any pair will do to encode the last two), else an instance of the class.
    """

    __content_subtype__ = "proto"

    def parts(self, message: Any, message_type: Any) -> Parts:
        """The encoded message in one or more buffers, so that a batch need not be copied."""
        special = _BATCH_CODECS.get(message_type)
        return (bytes(message),) if special is None else special[0](message)

    def encode(self, message: Any, message_type: Any) -> bytes:
        return b"".join(self.parts(message, message_type))

    def decode(self, data: Buffer, message_type: Any) -> Any:
        special = _BATCH_CODECS.get(message_type)
        return decode(message_type, data) if special is None else special[1](data)


# --- errors --------------------------------------------------------------------------------------

_ERROR_INFO_URL: Final = "type.googleapis.com/google.rpc.ErrorInfo"


def _rule(kind: str, name: str, *, repeated: bool = False, nested: Rules | None = None) -> Rule:
    return Rule(name, name, *_KINDS[kind], repeated=repeated, nested=nested)


# google/rpc/status.proto, google/protobuf/any.proto, google/rpc/error_details.proto
_FACT: Final = {1: _rule("string", "key"), 2: _rule("string", "value")}
_ERROR_INFO: Final = {
    1: _rule("string", "reason"),
    2: _rule("string", "domain"),
    3: _rule("message", "facts", repeated=True, nested=_FACT),
}
_ANY: Final = {1: _rule("string", "url"), 2: _rule("bytes", "value")}
_STATUS: Final = {
    1: _rule("uint64", "code"),
    2: _rule("string", "message"),
    3: _rule("message", "details", repeated=True, nested=_ANY),
}


def encode_error(error: errors.ProglogError) -> bytes:
    """The error as google.rpc.Status with one ErrorInfo: what grpc-status-details-bin holds."""
    facts = (_text_field(1, name) + _text_field(2, value) for name, value in error.facts.items())
    info = _text_field(1, error.reason) + _text_field(2, errors.DOMAIN) + _lengths(3, facts)
    detail = _text_field(1, _ERROR_INFO_URL) + _length_field(2, info)
    message = _text_field(2, str(error), limits.error_text_bytes_max)
    return _varint_field(1, error.status) + message + _length_field(3, detail)


def _text_field(number: int, text: str, bytes_max: int = limits.error_fact_bytes_max) -> bytes:
    return _length_field(number, errors.clip(text, bytes_max).encode())


def _lengths(number: int, values: Iterable[bytes]) -> bytes:
    return b"".join(_length_field(number, value) for value in values)


def decode_error(data: Buffer) -> errors.ProglogError | None:
    """The error in a google.rpc.Status; None where it holds none of ours or is malformed."""
    try:
        status = scan(_STATUS, data)
        for detail in status.get("details", ()):
            if detail.get("url") != _ERROR_INFO_URL:
                continue
            info = scan(_ERROR_INFO, detail.get("value", b""))
            if info.get("domain") == errors.DOMAIN:
                pairs = info.get("facts", ())
                facts = {pair.get("key", ""): pair.get("value", "") for pair in pairs}
                message = status.get("message", "")
                return errors.from_reason(info.get("reason", ""), message, facts)
    except BadMessage:
        pass  # A status without its detail is still a status: the caller goes by its code.
    return None


class ErrorDetails(StatusDetailsCodecBase):
    """Puts a ProglogError beside a gRPC status; `GRPCError.details` is that error, or None."""

    def encode(self, _status: GrpcStatus, _message: str | None, details: Any) -> bytes:
        return encode_error(details)

    def decode(
        self, _status: GrpcStatus, _message: str | None, data: bytes
    ) -> errors.ProglogError | None:
        return decode_error(data)
