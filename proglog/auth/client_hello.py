"""What a client offers before any cryptography: the protocols (ALPN) of its TLS ClientHello.

RFC 8446, 4.1.2; RFC 7301. It costs some microseconds, where a handshake costs most of a
millisecond, and tells which context a connection gets.
"""

from __future__ import annotations

RECORD_HEADER_BYTES = 5
HELLO_BYTES_MAX = 8192
"""A ClientHello with a post-quantum key share takes about 1,600 bytes."""
_CLIENT_HELLO = 1
_ALPN = 16


def record_bytes(prefix: bytes) -> int:
    """How many bytes the first record takes with its header, of which `prefix` holds all."""
    size = RECORD_HEADER_BYTES + int.from_bytes(prefix[3:5], "big")
    return min(size, HELLO_BYTES_MAX)


def offered_protocols(record: bytes) -> tuple[str, ...] | None:
    """The names offered by the ClientHello of a record, or None where it is not understood, cut
    short or split over records: what the handshake makes of those is its own business."""
    reader = _Reader(record[RECORD_HEADER_BYTES:])
    try:
        return _offered(reader)
    except IndexError:
        return None


def _offered(reader: _Reader) -> tuple[str, ...] | None:
    if reader.number(1) != _CLIENT_HELLO:
        return None
    hello = _Reader(reader.take(reader.number(3)))
    hello.take(2 + 32)  # version, random
    hello.take(hello.number(1))  # session
    hello.take(hello.number(2))  # cipher suites
    hello.take(hello.number(1))  # compression
    if hello.is_empty:
        return ()
    extensions = _Reader(hello.take(hello.number(2)))
    while not extensions.is_empty:
        kind = extensions.number(2)
        content = extensions.take(extensions.number(2))
        if kind == _ALPN:
            return _names(content)
    return ()


def _names(content: bytes) -> tuple[str, ...]:
    outer = _Reader(content)
    names = _Reader(outer.take(outer.number(2)))
    found = []
    while not names.is_empty:
        found.append(names.take(names.number(1)).decode("latin-1"))
    return tuple(found)


class _Reader:
    """Takes bytes off the front. Raises IndexError where there are not enough."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    @property
    def is_empty(self) -> bool:
        return self._at == len(self._data)

    def take(self, size: int) -> bytes:
        end = self._at + size
        if end > len(self._data):
            raise IndexError("cut short")
        taken = self._data[self._at : end]
        self._at = end
        return taken

    def number(self, size: int) -> int:
        return int.from_bytes(self.take(size), "big")
