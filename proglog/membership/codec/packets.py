"""Datagrams: what is wrapped around memberlist messages on their way over UDP.

    encrypted( 12 crc32 ( 9 {Algo, Buf: lzw( message )} ) )      any wrapper may be absent
    message = 7 count lengths... messages...                     a compound, or
              type body                                          one message

Received packets may use all of it. What we send is never compressed (peers accept that, and there
is no fast LZW in Python), carries a checksum where the receiver knows checksums, and is encrypted
with the keyring's primary key where there is one.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator, Sequence

from proglog.membership import limits
from proglog.membership.codec import lzw
from proglog.membership.codec.keyring import OVERHEAD_BYTES, Keyring
from proglog.membership.codec.messages import Compressed, Type
from proglog.membership.codec.wire import decode
from proglog.membership.errors import MalformedMessage

COMPOUND_BYTES = 2
"""Type and count of a compound packet."""
PART_BYTES = 2
"""Length of one of its messages."""
CHECKSUM_BYTES = 5

_COMPOUND, _COMPRESSED, _CHECKSUMMED = (
    bytes([kind]) for kind in (Type.COMPOUND, Type.COMPRESSED, Type.CHECKSUMMED)
)


def room(keyring: Keyring) -> int:
    """Bytes of messages and part lengths that fit into one compound packet of ours."""
    sealed = OVERHEAD_BYTES if keyring else 0
    return limits.packet_bytes - COMPOUND_BYTES - CHECKSUM_BYTES - sealed


def seal(messages: Sequence[bytes], keyring: Keyring, *, checksum: bool) -> bytes:
    """One datagram that carries these messages."""
    assert messages, "a packet carries something"
    data = messages[0] if len(messages) == 1 else _compound(messages)
    if checksum:
        data = struct.pack(">BI", Type.CHECKSUMMED, zlib.crc32(data)) + data
    return keyring.seal(data) if keyring else data


def _compound(messages: Sequence[bytes]) -> bytes:
    count = len(messages)
    assert count <= limits.compound_parts_max
    lengths = struct.pack(f">{count}H", *map(len, messages))
    return b"".join((bytes([Type.COMPOUND, count]), lengths, *messages))


def open_packet(data: bytes, keyring: Keyring) -> list[bytes]:
    """The messages of one datagram, each with its type byte. Raises MalformedMessage."""
    if len(data) > limits.packet_received_bytes_max:
        raise MalformedMessage(f"packet of {len(data)} bytes")
    if keyring:
        data = keyring.open(data)
    if data[:1] == _CHECKSUMMED and len(data) >= CHECKSUM_BYTES:
        data = _checked(data)
    if data[:1] == _COMPRESSED:
        # Compression is only believed here, once and outermost: nothing else in a packet can make
        # more bytes of fewer, so this bound is the bound of the whole.
        data = inflate(decode(Compressed, data[1:]), limits.packet_decompressed_bytes_max)
    return list(_unwrap(data, limits.packet_nesting_max))


def _checked(data: bytes) -> bytes:
    (checksum,) = struct.unpack_from(">I", data, 1)
    body = data[CHECKSUM_BYTES:]
    if zlib.crc32(body) != checksum:
        raise MalformedMessage("packet with a wrong checksum")
    return body


def _unwrap(data: bytes, nesting: int) -> Iterator[bytes]:
    """The plain messages inside `data`, which holds each of their bytes once."""
    if not data:
        raise MalformedMessage("empty message")
    if data[:1] == _COMPRESSED:
        raise MalformedMessage("compression inside a packet")
    if data[:1] != _COMPOUND:
        yield data
        return
    if nesting == 0:
        raise MalformedMessage("packet nested too deeply")
    for part in split(data[1:]):
        yield from _unwrap(part, nesting - 1)


def split(data: bytes) -> list[bytes]:
    """The messages of a compound packet, given without its type byte. Raises MalformedMessage."""
    count = data[0] if data else 0
    start = 1 + count * PART_BYTES
    if not count or len(data) < start:
        raise MalformedMessage("compound packet without its lengths")
    parts = []
    for length in struct.unpack_from(f">{count}H", data, 1):
        if start + length > len(data):
            raise MalformedMessage("compound packet cut short")
        parts.append(data[start : start + length])
        start += length
    return parts


def inflate(message: Compressed, size_max: int) -> bytes:
    """What a compressed message holds. Raises MalformedMessage, in particular above `size_max`."""
    if message.algorithm != 0:
        raise MalformedMessage(f"compression algorithm {message.algorithm}")
    return lzw.decompress(message.data, size_max)
