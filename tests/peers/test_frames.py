"""Frames, however the bytes of them arrive."""

from __future__ import annotations

from typing import cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proglog.peers.frames import FrameError, FrameReader, Type, frame
from proglog.peers.hello import (
    Hello,
    Life,
    Refusal,
    Welcome,
    common_protocol,
    decode_hello,
    decode_refusal,
    decode_welcome,
    encode_hello,
    encode_refusal,
    encode_welcome,
)

LIFE = Life("uuid", "name", 2**63, "ab" * 16)


@given(
    st.lists(st.tuples(st.integers(0, 2**64 - 1), st.binary(max_size=300)), max_size=20),
    st.lists(st.integers(1, 400), min_size=1),
)
def test_frames_come_out_as_they_went_in(said: list[tuple[int, bytes]], sizes: list[int]) -> None:
    stream = b"".join(b"".join(frame(Type.APPEND, group, body)) for group, body in said)
    reader, heard, turn = FrameReader(), [], 0
    while stream:
        size = sizes[turn % len(sizes)]
        reader.feed(stream[:size])
        stream, turn = stream[size:], turn + 1
        while (got := reader.next()) is not None:
            heard.append((got[1], bytes(got[2])))
    assert heard == said


def test_a_frame_is_as_the_design_says() -> None:
    assert b"".join(frame(Type.VOTE, 2, b"ab", b"c")) == bytes(
        [3, 0, 0, 0, 14, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, *b"abc"]
    )


def test_a_frame_beyond_the_bound_is_refused_by_its_head() -> None:
    reader = FrameReader()
    reader.feed(b"".join(frame(Type.APPEND, 2, bytes(5000)))[:16])
    with pytest.raises(FrameError):
        reader.next()


def test_greetings_come_out_as_they_went_in() -> None:
    hello = Hello(LIFE, "h:1", "id", "prod", "to", "bulk", (2, 3), ("beats", "sleep"))
    welcome = Welcome(LIFE, "id", 2, ("beats",))
    refusal = Refusal("NAME", "not you")
    assert decode_hello(b"".join(encode_hello(hello))[16:]) == hello
    assert decode_welcome(b"".join(encode_welcome(welcome))[16:]) == welcome
    assert decode_refusal(b"".join(encode_refusal(refusal))[16:]) == refusal


@given(st.binary(max_size=200) | st.text(max_size=200).map(str.encode))
def test_whatever_is_no_greeting_is_refused(payload: bytes) -> None:
    for decode in (decode_hello, decode_welcome, decode_refusal):
        with pytest.raises(FrameError):
            decode(payload)


@pytest.mark.parametrize(
    ("member", "value"),
    [("incarnation", -1), ("incarnation", "1"), ("protocols", [1]), ("protocols", 2), ("to", 1)],
)
def test_members_of_the_wrong_kind_are_refused(member: str, value: object) -> None:
    import json

    document = json.loads(b"".join(encode_hello(Hello(LIFE, "", "", "", "", "")))[16:])
    document[member] = value
    with pytest.raises(FrameError):
        decode_hello(json.dumps(document).encode())


@pytest.mark.parametrize(("theirs", "common"), [((2, 2), 2), ((1, 1), 0), ((3, 4), 0), ((1, 9), 2)])
def test_the_newest_protocol_that_both_speak(theirs: tuple[int, int], common: int) -> None:
    assert common_protocol(theirs) == common
    assert cast("int", common) >= 0
