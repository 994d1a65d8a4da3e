"""Sizes, durations and times as people write them."""

from __future__ import annotations

import pytest

from proglog.cli.units import (
    counted,
    format_bytes,
    format_seconds,
    parse_bytes,
    parse_seconds,
    parse_timestamp,
)


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("0", 0),
        ("4096", 4096),
        ("4096B", 4096),
        ("1KiB", 1024),
        ("128MiB", 128 * 2**20),
        ("1.5 GiB", 3 * 2**29),
        ("2KB", 2000),
        ("1TB", 10**12),
    ],
)
def test_sizes(text: str, count: int) -> None:
    assert parse_bytes(text) == count


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("30", 30), ("250ms", 0.25), ("90m", 5400), ("1.5h", 5400), ("7d", 604800), ("1w", 604800)],
)
def test_durations(text: str, seconds: float) -> None:
    assert parse_seconds(text) == seconds


@pytest.mark.parametrize("text", ["", "x", "-1", "12x", "1e3", "12 MiB MiB", "MiB", "0x10", "١"])
def test_nonsense_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(ValueError, match="is not like"):
        parse_bytes(text)
    with pytest.raises(ValueError, match="is not like"):
        parse_seconds(text)


def test_times_are_iso_8601_or_milliseconds() -> None:
    assert parse_timestamp("1000") == 1000
    assert parse_timestamp("1970-01-01T00:00:01.5Z") == 1500
    assert parse_timestamp("1970-01-01T01:00:01+01:00") == 1000
    with pytest.raises(ValueError, match="is not like"):
        parse_timestamp("yesterday")


def test_one_is_no_plural() -> None:
    assert counted(1, "record") == "1 record"
    assert counted(0, "record") == "0 records"
    assert counted(1_234, "batch") == "1,234 batches"


def test_what_is_shown_can_be_read_again() -> None:
    assert format_bytes(128 * 2**20) == "128 MiB"
    assert parse_bytes(format_bytes(128 * 2**20)) == 128 * 2**20
    assert [format_seconds(s) for s in (0.25, 10.0, 90, 5400.0, 604800)] == [
        "0.25s",
        "10s",
        "90s",
        "90m",
        "1w",
    ]
