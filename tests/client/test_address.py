"""URLs."""

from __future__ import annotations

import pytest

from proglog.client.address import parse_url
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
