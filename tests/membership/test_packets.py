"""Datagrams and streams: wrappers, bounds, compression, encryption."""

from __future__ import annotations

import contextlib
import random
import struct
import tracemalloc
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proglog.membership import limits
from proglog.membership.codec import lzw, packets, streams, wire
from proglog.membership.codec.keyring import Keyring, decode_key, decode_keyring, encode_keyring
from proglog.membership.codec.messages import (
    OURS,
    Ack,
    Compressed,
    NodeState,
    Ping,
    RemoteError,
    Type,
    encode_message,
)
from proglog.membership.errors import KeyRefused, MalformedMessage
from tests.membership.go_lzw import compress
from tests.membership.test_messages import GOLDEN, PLAIN, SECRET, keyring

KEY_A, KEY_B, KEY_C = bytes(16), bytes(range(24)), bytes(range(32))
PING = encode_message(Ping(sequence=1, node="a"))


def compressed(data: bytes) -> bytes:
    return bytes([Type.COMPRESSED]) + wire.encode(Compressed(data=compress(data)))


# --- datagrams -----------------------------------------------------------------------------------


@given(
    st.lists(st.binary(min_size=1, max_size=90), min_size=1, max_size=14),
    st.booleans(),
    st.sampled_from([PLAIN, SECRET]),
)
def test_packets_round_trip(parts: list[bytes], checksum: bool, keys: Keyring) -> None:
    plain = [bytes([Type.PING]) + part for part in parts]
    sealed = packets.seal(plain, keys, checksum=checksum)
    assert packets.open_packet(sealed, keys) == plain


@pytest.mark.parametrize("keys", [PLAIN, SECRET])
def test_a_full_packet_keeps_to_the_size_that_networks_carry(keys: Keyring) -> None:
    size = packets.room(keys) // 2 - packets.PART_BYTES
    sealed = packets.seal([bytes([Type.PING]) * size] * 2, keys, checksum=True)
    assert limits.packet_bytes - 1 <= len(sealed) <= limits.packet_bytes


@pytest.mark.parametrize("name", [name for name in GOLDEN if name.startswith("packet")])
def test_a_golden_packet_cut_anywhere_raises_nothing_else(name: str) -> None:
    data = GOLDEN[name]
    whole = packets.open_packet(data, keyring(name))
    for cut in range(len(data)):
        try:
            parts = packets.open_packet(data[:cut], keyring(name))
        except MalformedMessage:
            continue
        assert parts != whole


@given(st.binary(max_size=200), st.sampled_from([7, 9, 10, 12, 244, 1, 0]))
def test_random_packets_raise_nothing_else(data: bytes, first: int) -> None:
    for keys in (PLAIN, SECRET):
        try:
            packets.open_packet(bytes([first]) + data, keys)
        except MalformedMessage:
            pass


def test_a_wrong_checksum_is_refused() -> None:
    packet = struct.pack(">BI", Type.CHECKSUMMED, zlib.crc32(PING)) + PING
    assert packets.open_packet(packet, PLAIN) == [PING]
    for position in range(1, len(packet)):
        broken = bytearray(packet)
        broken[position] ^= 1
        with pytest.raises(MalformedMessage):
            packets.open_packet(bytes(broken), PLAIN)


def test_go_nests_checksum_compression_and_compound() -> None:
    inner = compressed(packets.seal([PING, PING], PLAIN, checksum=False))
    packet = struct.pack(">BI", Type.CHECKSUMMED, zlib.crc32(inner)) + inner
    assert packets.open_packet(packet, PLAIN) == [PING, PING]


def test_compression_inside_a_compound_or_itself_is_refused() -> None:
    """Otherwise each level multiplies what the level below may expand to."""
    for packet in (
        packets.seal([compressed(PING), PING], PLAIN, checksum=False),
        compressed(compressed(PING)),
    ):
        with pytest.raises(MalformedMessage):
            packets.open_packet(packet, PLAIN)


def test_compounds_nested_without_end_are_refused() -> None:
    packet = PING
    for _ in range(limits.packet_nesting_max + 1):
        packet = bytes([Type.COMPOUND, 1]) + struct.pack(">H", len(packet)) + packet
    with pytest.raises(MalformedMessage):
        packets.open_packet(packet, PLAIN)


def test_an_oversized_packet_is_refused() -> None:
    with pytest.raises(MalformedMessage):
        packets.open_packet(bytes(limits.packet_received_bytes_max + 1), PLAIN)


# --- compression ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [n for n in GOLDEN if GOLDEN[n][0] in {9, 12}])
def test_our_reading_of_lzw_is_gos(name: str) -> None:
    """Decoded, and encoded again as Go does, every compressed packet of an agent comes out."""
    data = GOLDEN[name]
    data = data[5:] if data[0] == Type.CHECKSUMMED else data
    if data[0] != Type.COMPRESSED:
        return
    message = wire.decode(Compressed, data[1:])
    assert compress(lzw.decompress(message.data, limits.KiB * 64)) == message.data


@given(st.binary(max_size=3000))
def test_lzw_round_trips(data: bytes) -> None:
    assert lzw.decompress(compress(data), len(data)) == data


@pytest.mark.parametrize("alphabet", [1, 2, 30, 256])
def test_lzw_round_trips_over_full_tables(alphabet: int) -> None:
    rng = random.Random(alphabet)
    data = bytes(rng.randrange(alphabet) for _ in range(40_000))
    assert lzw.decompress(compress(data), len(data)) == data


@given(st.binary(max_size=300))
def test_random_lzw_is_malformed_or_bounded(data: bytes) -> None:
    try:
        assert len(lzw.decompress(data, 1000)) <= 1000
    except MalformedMessage:
        pass


def test_a_bomb_is_refused_before_it_takes_memory() -> None:
    bomb = compress(bytes(20 * limits.MiB))
    assert len(bomb) < 50 * limits.KiB
    tracemalloc.start()
    try:
        with pytest.raises(MalformedMessage, match="more than"):
            lzw.decompress(bomb, limits.packet_decompressed_bytes_max)
        assert tracemalloc.get_traced_memory()[1] < limits.MiB
    finally:
        tracemalloc.stop()


def test_a_bomb_on_a_stream_is_refused() -> None:
    bomb = compressed(bytes(limits.stream_decompressed_bytes_max + 1))
    with pytest.raises(MalformedMessage, match="more than"):
        streams.StreamDecoder(PLAIN).feed(bomb)


@pytest.mark.parametrize("array", [b"\xdd\x00\x0f\xff\xff", b"\xdc\x0f\xff"])
def test_nested_arrays_ask_for_little_memory(array: bytes) -> None:
    """Each announces a million items, or what is allowed, and holds the next."""
    tracemalloc.start()
    try:
        with contextlib.suppress(MalformedMessage):
            streams.StreamDecoder(PLAIN).feed(bytes([Type.PUSH_PULL]) + array * 400)
        assert tracemalloc.get_traced_memory()[1] < 16 * limits.MiB
    finally:
        tracemalloc.stop()


# --- streams -------------------------------------------------------------------------------------

NODE = NodeState(
    node="a", host=b"\x7f\0\0\1", port=7, incarnation=3, meta=b"\xff\x80", versions=OURS
)
MESSAGES: list[streams.StreamMessage] = [
    streams.PushPull(join=True, nodes=(NODE,) * 3, user_state=b"\x02state"),
    streams.PushPull(join=False, nodes=(), user_state=b""),
    streams.UserMessage(payload=b"hello"),
    Ping(sequence=5, node="a"),
    Ack(sequence=5),
    RemoteError(reason="no"),
]


@pytest.mark.parametrize("keys", [PLAIN, SECRET])
@pytest.mark.parametrize("message", MESSAGES)
def test_streams_round_trip_byte_by_byte(message: streams.StreamMessage, keys: Keyring) -> None:
    data = streams.encode_stream(message, keys)
    assert streams.StreamDecoder(keys).feed(data) == message
    decoder = streams.StreamDecoder(keys)
    for position in range(len(data) - 1):
        assert decoder.feed(data[position : position + 1]) is None
    assert decoder.feed(data[-1:]) == message


@pytest.mark.parametrize("name", [name for name in GOLDEN if name.startswith("stream")])
def test_golden_streams_decode_byte_by_byte(name: str) -> None:
    data = GOLDEN[name]
    decoder = streams.StreamDecoder(keyring(name))
    for position in range(len(data) - 1):
        assert decoder.feed(data[position : position + 1]) is None
    assert isinstance(decoder.feed(data[-1:]), streams.PushPull)


@given(st.binary(max_size=200), st.sampled_from([0, 2, 6, 8, 9, 10, 13, 99]))
def test_random_streams_raise_nothing_else(data: bytes, first: int) -> None:
    for keys in (PLAIN, SECRET):
        try:
            streams.StreamDecoder(keys).feed(bytes([first]) + data)
        except MalformedMessage:
            pass


@given(st.sampled_from(MESSAGES), st.data())
def test_streams_with_a_wrong_byte_raise_nothing_else(
    message: streams.StreamMessage, data: st.DataObject
) -> None:
    encoded = bytearray(streams.encode_stream(message, PLAIN))
    encoded[data.draw(st.integers(0, len(encoded) - 1))] = data.draw(st.integers(0, 255))
    try:
        streams.StreamDecoder(PLAIN).feed(bytes(encoded))
    except MalformedMessage:
        pass


@pytest.mark.parametrize(
    "start",
    [
        bytes([Type.ENCRYPTED]) + struct.pack(">I", limits.stream_bytes_max + 1),
        bytes([Type.PUSH_PULL]) + wire.pack({"Nodes": limits.nodes_max + 1}),
        bytes([Type.PUSH_PULL]) + wire.pack({"UserStateLen": limits.stream_bytes_max + 1}),
        bytes([Type.USER]) + wire.pack({"UserMsgLen": 2**32 - 1}),
        bytes([Type.COMPOUND]),
        bytes([200]),
    ],
)
def test_announced_sizes_are_refused_at_once(start: bytes) -> None:
    keys = SECRET if start[0] == Type.ENCRYPTED else PLAIN
    with pytest.raises(MalformedMessage):
        streams.StreamDecoder(keys).feed(start)


def test_an_endless_stream_is_refused() -> None:
    decoder = streams.StreamDecoder(PLAIN)
    decoder.feed(bytes([Type.COMPRESSED, 0x81, 0xA3]) + b"Buf" + b"\xdb\x00\x1f\xff\xff")
    with pytest.raises(MalformedMessage):
        for _ in range(100):
            decoder.feed(bytes(64 * limits.KiB))


def test_plain_and_encrypted_never_mix() -> None:
    ping = Ping(sequence=1)
    with pytest.raises(MalformedMessage, match="plaintext"):
        streams.StreamDecoder(SECRET).feed(streams.encode_stream(ping, PLAIN))
    with pytest.raises(MalformedMessage, match="not configured"):
        streams.StreamDecoder(PLAIN).feed(streams.encode_stream(ping, SECRET))
    with pytest.raises(MalformedMessage):
        packets.open_packet(PING, SECRET)


def test_length_and_type_of_an_encrypted_stream_are_authenticated() -> None:
    data = bytearray(streams.encode_stream(Ping(sequence=1), SECRET))
    longer = bytes(data[:4]) + bytes([data[4] + 1]) + bytes(data[5:]) + b"\0"
    with pytest.raises(MalformedMessage, match="opens"):
        streams.StreamDecoder(SECRET).feed(longer)


# --- keys ----------------------------------------------------------------------------------------


def fresh(*keys: bytes) -> Keyring:
    return Keyring(keys, random.Random(1).randbytes)


def test_keys_are_rotated_in_three_steps_without_a_gap() -> None:
    first, second = fresh(KEY_A), fresh(KEY_A)
    for step in ("install", "use", "remove"):
        key = KEY_A if step == "remove" else KEY_B
        for changed, other in ((first, second), (second, first)):
            getattr(changed, step)(key)
            assert other.open(changed.seal(b"x")) == b"x"
            assert changed.open(other.seal(b"x")) == b"x"
    assert first.keys == second.keys == (KEY_B,)


def test_operations_that_are_refused_change_nothing() -> None:
    ring = fresh(KEY_A, KEY_B)
    for operation, key in ((ring.install, b"short"), (ring.use, KEY_C), (ring.remove, KEY_A)):
        with pytest.raises(KeyRefused):
            operation(key)
    with pytest.raises(KeyRefused, match="not enabled"):
        fresh().install(KEY_A)
    assert ring.keys == (KEY_A, KEY_B)
    ring.install(KEY_B)
    ring.remove(KEY_C)
    assert ring.keys == (KEY_A, KEY_B)


def test_version_zero_is_read_with_its_padding() -> None:
    ring = fresh(KEY_A)
    cipher = next(iter(ring._keys.values()))
    padded = b"\0" + bytes(12) + cipher.encrypt(bytes(12), b"hello" + bytes([11]) * 11, None)
    assert ring.open(padded) == b"hello"
    for plain in (b"", b"hello\0", bytes([17]) * 17):
        sealed = b"\0" + bytes(12) + cipher.encrypt(bytes(12), plain, None)
        with pytest.raises(MalformedMessage):
            ring.open(sealed)


@given(st.binary(max_size=100))
def test_what_no_key_sealed_is_malformed(data: bytes) -> None:
    with pytest.raises(MalformedMessage):
        SECRET.open(data)


def test_nonces_differ() -> None:
    ring = fresh(KEY_A)
    assert ring.seal(b"x") != ring.seal(b"x")


def test_keyring_files_are_serfs() -> None:
    keys = (KEY_C, KEY_A)
    assert decode_keyring(encode_keyring(keys)) == keys
    assert encode_keyring((KEY_A,)) == b'[\n  "AAAAAAAAAAAAAAAAAAAAAA=="\n]'
    for broken in (b"", b"{}", b"[1]", b'["short"]', b'["AAAA"]', b"\xff"):
        with pytest.raises(KeyRefused):
            decode_keyring(broken)
    with pytest.raises(KeyRefused):
        decode_key("not base64!")
