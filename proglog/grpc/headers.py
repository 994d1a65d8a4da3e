"""HPACK (RFC 7541) for gRPC: the same few headers in every call.

hpack is right but takes time for text that never changes, and by the square of the length for
Huffman's code: 50 ms for 16 KiB.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable
from typing import Any, Final, TypeAlias

import hpack

# They say every header, in two lines each, where somebody asks for debug lines of ours.
logging.getLogger("hpack").setLevel(logging.INFO)

Header: TypeAlias = tuple[Any, Any]
_TABLE_BYTES_MAX: Final = 4096
_INDEXED, _INCREMENTAL, _PLAIN = 0x80, 0x40, 0x00
_FIRST_DYNAMIC = 62
_KNOWN_BLOCKS_MAX = 64


def _text(value: str | bytes) -> bytes:
    return value if isinstance(value, bytes) else value.encode()


def _number(value: int, prefix_bits: int, high: int = 0) -> bytes:
    """An integer (5.1), whose first byte has `high` in the bits before the prefix."""
    most = (1 << prefix_bits) - 1
    if value < most:
        return bytes((high | value,))
    out = bytearray((high | most,))
    value -= most
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _literal(kind: int, name: bytes, value: bytes) -> bytes:
    return bytes((kind,)) + _number(len(name), 7) + name + _number(len(value), 7) + value


_OF_A_REQUEST = frozenset({":method", ":scheme", ":path", ":authority"})
_OF_A_CONNECTION = frozenset(
    {"connection", "keep-alive", "proxy-connection", "transfer-encoding", "upgrade"}
)
_NEVER_IN_A_VALUE = re.compile(r"[\0\r\n]")


def is_malformed(headers: Iterable[tuple[str, str]]) -> bool:
    """Whether a request breaks the rules of RFC 9113, 8.2 and 8.3: two programs could read it as
    two requests. h2's own check would end the connection."""
    found: set[str] = set()
    regular = False
    for name, value in headers:
        if name.startswith(":"):
            if regular or name in found or name not in _OF_A_REQUEST:
                return True
            found.add(name)
        else:
            regular = True
            if (
                not name
                or name != name.lower()
                or name in _OF_A_CONNECTION
                or (name == "te" and value != "trailers")
                or not name.isprintable()
            ):
                return True
        if _NEVER_IN_A_VALUE.search(value):
            return True
    return False


class RequestEncoder(hpack.Encoder):
    """A client's: hpack's own, without Huffman's code."""

    def encode(self, headers: Any, huffman: bool = False) -> bytes:
        return super().encode(headers, huffman)


class AnswerEncoder:
    """A server's: what all answers say takes a byte, everything else is never in the table.

    So what a peer says of its table's size changes little: a smaller one than HTTP/2 begins with is
    not used at all.
    """

    _COMMON: Final = frozenset(
        ((b"content-type", b"application/grpc+proto"), (b"grpc-status", b"0"))
    )

    def __init__(self) -> None:
        self._table: list[tuple[bytes, bytes]] = []
        self._uses_table = True
        self._due = b""
        self._known: dict[Any, bytes] = {}

    @property
    def header_table_size(self) -> int:
        """What the peer's table may take at most."""
        return _TABLE_BYTES_MAX if self._uses_table else 0

    @header_table_size.setter
    def header_table_size(self, value: int) -> None:
        if value < _TABLE_BYTES_MAX and self._uses_table:
            self._uses_table = False
            self._table.clear()
            self._known.clear()
            self._due = _number(0, 5, 0x20)  # a dynamic table of no bytes (6.3)

    def encode(self, headers: Iterable[Header]) -> bytes:
        due, self._due = self._due, b""
        return due + b"".join(self._field(_text(name), _text(value)) for name, value in headers)

    def encode_known(self, headers: tuple[Header, ...]) -> bytes:
        """The same, remembered: for the few blocks that most answers consist of."""
        block = self._known.get(headers)
        if block is not None and not self._due:
            return block
        was_complete = len(self._table) == len(self._COMMON) or not self._uses_table
        block = self.encode(headers)
        if was_complete and not block.startswith(b"\x20"):
            # Nothing enters the table any more, so these bytes always mean the same.
            self._known[headers] = block
        return block

    def _field(self, name: bytes, value: bytes) -> bytes:
        if (name, value) == (b":status", b"200"):
            return b"\x88"
        if not self._uses_table or (name, value) not in self._COMMON:
            return _literal(_PLAIN, name, value)
        if (name, value) in self._table:
            return _number(_FIRST_DYNAMIC + self._table.index((name, value)), 7, _INDEXED)
        self._table.insert(0, (name, value))
        return _literal(_INCREMENTAL, name, value)


class Decoder(hpack.Decoder):
    """Knows the last blocks again that consist of table entries alone, as those of most calls do.

    Such a block leaves the table as it is, and means the same until another kind of block comes.
    """

    def __init__(self) -> None:
        super().__init__()
        self._known: dict[bytes, Any] = {}

    def decode(self, data: bytes, raw: bool = False) -> Any:
        """The headers, which nobody may change."""
        found = self._known.get(data)
        if found is not None:
            return found
        headers = super().decode(data, raw)
        if raw and data and min(data) > _INDEXED and max(data) < 0xFF:
            if len(self._known) == _KNOWN_BLOCKS_MAX:
                self._known.clear()
            self._known[data] = headers
        else:
            self._known.clear()
        return headers
