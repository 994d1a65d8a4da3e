"""Sizes, durations and times as people write them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import datetime

_BYTES: dict[str, float] = {"": 1, "B": 1} | {
    f"{letter}{suffix}": base**power
    for power, letter in enumerate("KMGT", 1)
    for suffix, base in (("iB", 1024), ("B", 1000))
}
_SECONDS: dict[str, float] = {
    "": 1,
    "ms": 0.001,
    "s": 1,
    "m": 60,
    "h": 3600,
    "d": 86400,
    "w": 604800,
}
_NUMBER = re.compile(r"([0-9]+(?:\.[0-9]+)?)\s*([A-Za-z]*)")


def _scaled(text: str, units: Mapping[str, float], example: str) -> float:
    match = _NUMBER.fullmatch(text.strip())
    if match is None or match[2] not in units:
        names = ", ".join(filter(None, units))
        raise ValueError(f"{text!r} is not like {example} (units: {names})")
    return float(match[1]) * units[match[2]]


def parse_bytes(text: str) -> int:
    """Reads "128MiB", "1GB" or "4096" as bytes. Raises ValueError."""
    return int(_scaled(text, _BYTES, "128MiB"))


def parse_seconds(text: str) -> float:
    """Reads "7d", "90m", "250ms" or "30" as seconds. Raises ValueError."""
    return _scaled(text, _SECONDS, "7d")


def parse_timestamp(text: str) -> int:
    """Reads an ISO 8601 time (local unless it names a zone), or milliseconds since the epoch.

    Returns milliseconds since the epoch. Raises ValueError.
    """
    if text.isdecimal():
        return int(text)
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise ValueError(f"{text!r} is not like 2026-03-01T12:00:00Z, nor milliseconds") from None
    return max(0, int(moment.timestamp() * 1000))


def counted(number: int, noun: str) -> str:
    """A number of things: "1 record", "1,234 records"."""
    ending = "" if number == 1 else "es" if noun.endswith("h") else "s"
    return f"{number:,} {noun}{ending}"


def format_bytes(count: float) -> str:
    """A size for people: three digits and a binary unit."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1024
    return f"{count:.3g} TiB"


def format_seconds(seconds: float) -> str:
    """A duration for people, in the largest unit that divides it: "7d", "10s"."""
    for unit in ("w", "d", "h", "m"):
        if seconds and seconds % _SECONDS[unit] == 0:
            return f"{seconds / _SECONDS[unit]:g}{unit}"
    return f"{seconds:g}s"
