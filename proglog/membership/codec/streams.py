"""Messages on a TCP connection: push/pull, the fallback ping, user messages.

    type body                            plain; the type says how the body ends
    9 {Algo, Buf: lzw( type body )}      compressed
    10 length(4) sealed( either )        encrypted; type and length are authenticated too

A connection carries one message in each direction, and nothing but its content says where a plain
message ends: `StreamDecoder` takes bytes as they arrive and says when it has one.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

import msgpack

from proglog.membership import limits
from proglog.membership.codec.keyring import OVERHEAD_BYTES, Keyring
from proglog.membership.codec.messages import (
    Ack,
    Compressed,
    NodeState,
    Ping,
    PushPullHeader,
    RemoteError,
    Type,
    UserHeader,
    encode_message,
)
from proglog.membership.codec.packets import inflate
from proglog.membership.codec.wire import UNPACK_ERRORS, UNPACK_LIMITS, encode, from_map
from proglog.membership.errors import MalformedMessage

_ENCRYPTED_HEADER = struct.Struct(">BI")


@dataclass(frozen=True, slots=True, kw_only=True)
class PushPull:
    """One side's whole view: memberlist's nodes, and Serf's state as bytes."""

    join: bool
    nodes: tuple[NodeState, ...]
    user_state: bytes = b""


@dataclass(frozen=True, slots=True, kw_only=True)
class UserMessage:
    payload: bytes


StreamMessage = PushPull | UserMessage | Ping | Ack | RemoteError


def encode_stream(message: StreamMessage, keyring: Keyring) -> bytes:
    """The bytes to write for one message."""
    plain = _encode_plain(message)
    if not keyring:
        return plain
    header = _ENCRYPTED_HEADER.pack(Type.ENCRYPTED, len(plain) + OVERHEAD_BYTES)
    return header + keyring.seal(plain, associated=header)


def _encode_plain(message: StreamMessage) -> bytes:
    if isinstance(message, PushPull):
        header = PushPullHeader(
            nodes=len(message.nodes), user_state_bytes=len(message.user_state), join=message.join
        )
        parts = [bytes([Type.PUSH_PULL]), encode(header), *map(encode, message.nodes)]
        return b"".join([*parts, message.user_state])
    if isinstance(message, UserMessage):
        user_header = UserHeader(payload_bytes=len(message.payload))
        return bytes([Type.USER]) + encode(user_header) + message.payload
    return encode_message(message)


class StreamDecoder:
    """Collects the bytes of one connection until they are one message.

    `feed` raises MalformedMessage; after that, or after a message, the decoder is spent.
    """

    def __init__(self, keyring: Keyring) -> None:
        self._keyring = keyring
        self._sealed = bytearray()
        self._plain: _PlainDecoder | None = None
        self.size = 0

    def feed(self, data: bytes) -> StreamMessage | None:
        """The message, once `data` completes it."""
        self.size += len(data)
        if self.size > limits.stream_bytes_max:
            raise MalformedMessage(f"stream message of more than {limits.stream_bytes_max} bytes")
        if self._plain is not None:
            return self._plain.feed(data)
        self._sealed += data
        if not self._sealed:
            return None
        if self._sealed[0] == Type.ENCRYPTED:
            return self._feed_sealed()
        if self._keyring:
            raise MalformedMessage("plaintext stream while encryption is configured")
        self._plain = _PlainDecoder()
        return self._plain.feed(bytes(self._sealed))

    def _feed_sealed(self) -> StreamMessage | None:
        if not self._keyring:
            raise MalformedMessage("encrypted stream while encryption is not configured")
        start = _ENCRYPTED_HEADER.size
        if len(self._sealed) < start:
            return None
        _, length = _ENCRYPTED_HEADER.unpack_from(self._sealed)
        if length > limits.stream_bytes_max:
            raise MalformedMessage(f"encrypted stream message of {length} bytes")
        if len(self._sealed) < start + length:
            return None
        header, body = bytes(self._sealed[:start]), bytes(self._sealed[start : start + length])
        return _decode_whole(self._keyring.open(body, associated=header))


def _decode_whole(plain: bytes) -> StreamMessage:
    message = _PlainDecoder().feed(plain)
    if message is None:
        raise MalformedMessage("stream message cut short")
    return message


class _PlainDecoder:
    """A message that is not, or not any more, encrypted: a type byte, then msgpack values, then for
    some types counted bytes."""

    def __init__(self, *, nested: bool = False) -> None:
        self._nested = nested
        self._type: Type | None = None
        self._unpacker = msgpack.Unpacker(max_buffer_size=limits.stream_bytes_max, **UNPACK_LIMITS)
        self._header: PushPullHeader | UserHeader | None = None
        self._nodes: list[NodeState] = []
        self._rest = bytearray()

    def feed(self, data: bytes) -> StreamMessage | None:
        if self._type is None:
            if not data:
                return None
            self._type = _stream_type(data[0])
            data = data[1:]
        try:
            self._unpacker.feed(data)
            return self._advance(self._type)
        except msgpack.OutOfData:
            # The unpacker has gone back to where the unfinished value starts.
            return None
        except UNPACK_ERRORS as error:
            raise MalformedMessage(f"no msgpack: {error or type(error).__name__}") from error

    def _advance(self, kind: Type) -> StreamMessage | None:
        match kind:
            case Type.PUSH_PULL:
                return self._push_pull()
            case Type.USER:
                return self._user()
            case Type.COMPRESSED:
                return self._compressed()
            case Type.PING:
                return from_map(Ping, self._unpacker.unpack())
            case Type.ACK:
                return from_map(Ack, self._unpacker.unpack())
            case _:
                return from_map(RemoteError, self._unpacker.unpack())

    def _push_pull(self) -> StreamMessage | None:
        if self._header is None:
            self._header = from_map(PushPullHeader, self._unpacker.unpack())
            _bounded("nodes", self._header.nodes, limits.nodes_max)
            _bounded("bytes of user state", self._header.user_state_bytes, limits.stream_bytes_max)
        header = self._header
        assert isinstance(header, PushPullHeader)
        while len(self._nodes) < header.nodes:
            self._nodes.append(from_map(NodeState, self._unpacker.unpack()))
        state = self._counted(header.user_state_bytes)
        if state is None:
            return None
        return PushPull(join=header.join, nodes=tuple(self._nodes), user_state=state)

    def _user(self) -> StreamMessage | None:
        if self._header is None:
            self._header = from_map(UserHeader, self._unpacker.unpack())
            _bounded("bytes of user message", self._header.payload_bytes, limits.stream_bytes_max)
        assert isinstance(self._header, UserHeader)
        payload = self._counted(self._header.payload_bytes)
        return None if payload is None else UserMessage(payload=payload)

    def _compressed(self) -> StreamMessage:
        if self._nested:
            raise MalformedMessage("compressed twice")
        message = from_map(Compressed, self._unpacker.unpack())
        plain = inflate(message, limits.stream_decompressed_bytes_max)
        inner = _PlainDecoder(nested=True).feed(plain)
        if inner is None:
            raise MalformedMessage("compressed stream message cut short")
        return inner

    def _counted(self, size: int) -> bytes | None:
        """The next `size` bytes, which are no msgpack; None until they are there."""
        self._rest += self._unpacker.read_bytes(size - len(self._rest))
        return bytes(self._rest) if len(self._rest) == size else None


def _stream_type(value: int) -> Type:
    try:
        kind = Type(value)
    except ValueError:
        raise MalformedMessage(f"stream message of unknown type {value}") from None
    if kind not in _STREAM_TYPES:
        raise MalformedMessage(f"stream message of type {kind.name}")
    return kind


_STREAM_TYPES = {
    Type.PING,
    Type.ACK,
    Type.PUSH_PULL,
    Type.USER,
    Type.COMPRESSED,
    Type.ERROR,
}


def _bounded(what: str, count: int, count_max: int) -> None:
    if count > count_max:
        raise MalformedMessage(f"stream message announces {count} {what}")
