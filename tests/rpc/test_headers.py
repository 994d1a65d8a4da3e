"""HPACK: what others decode of our answers, and what we decode of their requests."""

from __future__ import annotations

import hpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from proglog.grpc.headers import AnswerEncoder, Decoder

OK = ((":status", "200"), ("content-type", "application/grpc+proto"))
DONE = (("grpc-status", "0"),)
FAILED = (("grpc-status", "13"), ("grpc-message", "é" * 400), ("x", ""))

_text = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=200)
_block = st.one_of(
    st.sampled_from([OK, DONE, FAILED]), st.lists(st.tuples(_text, _text), max_size=4).map(tuple)
)


@given(st.lists(st.one_of(_block, st.sampled_from([0, 100, 4095, 4096, 65536])), max_size=30))
def test_answers_are_decoded_whatever_the_peer_says_of_its_table(steps):
    ours, theirs = AnswerEncoder(), hpack.Decoder()
    for step in steps:
        if isinstance(step, int):
            # As SETTINGS_HEADER_TABLE_SIZE is applied at both ends.
            ours.header_table_size = step
            theirs.max_allowed_table_size = step
            continue
        for encode in (ours.encode, ours.encode_known):
            assert tuple(theirs.decode(encode(step))) == step


@pytest.mark.parametrize("size", [None, 0, 4095])
def test_a_usual_answer_is_short_where_the_peer_has_a_table(size):
    encoder = AnswerEncoder()
    if size is not None:
        encoder.header_table_size = size
    first = len(encoder.encode_known(OK)), len(encoder.encode_known(DONE))
    assert max(first) > 10
    lengths = len(encoder.encode_known(OK)), len(encoder.encode_known(DONE))
    assert lengths == ((2, 1) if size is None else (first[0] - 1, first[1]))


def test_a_long_text_is_encoded_in_time_that_grows_with_it():
    """hpack's way by Huffman's code takes an hour for this."""
    assert len(AnswerEncoder().encode([("grpc-message", "é" * 2_000_000)])) > 4_000_000


_names = st.sampled_from([":path", "te", "grpc-timeout", "user-agent", "x"])
_values = st.sampled_from(["/a", "/b", "1S", "2S", "trailers", "v" * 300])


@given(
    st.lists(st.lists(st.tuples(_names, _values), min_size=1, max_size=5), max_size=40),
    st.booleans(),
)
def test_requests_mean_what_they_mean_to_hpack(blocks, huffman):
    """Also where a block is known again, and where the table has changed in between."""
    theirs, ours, plain = hpack.Encoder(), Decoder(), hpack.Decoder()
    for headers in blocks:
        for _ in range(2):
            block = theirs.encode(headers, huffman)
            assert list(ours.decode(block, raw=True)) == list(plain.decode(block, raw=True))


def test_a_known_block_is_not_decoded_again(monkeypatch):
    theirs, ours = hpack.Encoder(), Decoder()
    headers = [(":path", "/a"), ("te", "trailers")]
    for _ in range(2):
        ours.decode(theirs.encode(headers), raw=True)
    block = theirs.encode(headers)
    ours.decode(block, raw=True)
    monkeypatch.setattr(hpack.Decoder, "decode", None)
    assert next(iter(ours.decode(block, raw=True))) == (b":path", b"/a")
