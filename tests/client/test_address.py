"""URLs and the choice of the next node."""

from __future__ import annotations

import pytest

from proglog.client.address import Picker, parse_url
from proglog.config import Address
from proglog.errors import ConfigurationError


@pytest.mark.parametrize(
    ("url", "addresses", "log"),
    [
        ("proglog://a:1", ["a:1"], ""),
        ("proglog://a", ["a:8400"], ""),
        ("proglog://a:1,b,[::1]:3/orders", ["a:1", "b:8400", "[::1]:3"], "orders"),
        ("proglog://a:1/", ["a:1"], ""),
        ("proglog://a:1/two%20words", ["a:1"], "two words"),
    ],
)
def test_urls(url, addresses, log):
    parsed, name = parse_url(url)
    assert [str(address) for address in parsed] == addresses
    assert name == log


@pytest.mark.parametrize(
    "url",
    [
        "",
        "a:1",
        "http://a:1",
        "proglog://",
        "proglog:///log",
        "proglog://a:1,",
        "proglog://a:x",
        "proglog://a:70000",
        "proglog://a:1/b/c",
        "proglog://a:1?x=1",
    ],
)
def test_what_is_no_url(url):
    with pytest.raises(ConfigurationError):
        parse_url(url)


A, B, C = Address("a", 1), Address("b", 2), Address("c", 3)


def test_addresses_are_tried_in_turn():
    picker = Picker([A, B])
    assert picker.current == A
    picker.failed(A)
    assert picker.current == B
    picker.failed(A)  # Old news.
    assert picker.current == B
    picker.failed(B)
    assert picker.current == A


def test_the_leader_is_followed_until_it_fails():
    picker = Picker([A, B])
    picker.redirect(A, "c:3")
    assert picker.current == C
    picker.failed(C)
    assert picker.current == A
    picker.redirect(A, "")
    assert picker.current == B
    picker.redirect(B, "b:2")
    assert picker.current == A
    picker.redirect(A, "not an address:::")
    assert picker.current == B
