"""LZW as Go's `compress/lzw` writes it: LSB first, 8-bit literals, codes of 9 to 12 bits.

We only decode: peers accept packets that are not compressed, and a stock agent compresses by
default. Source: Go's compress/lzw documentation; Welch, "A Technique for High-Performance Data
Compression", 1984. Code 256 clears the table, 257 ends the stream.
"""

from __future__ import annotations

from proglog.membership.errors import MalformedMessage

_CLEAR, _END = 256, 257
_WIDTH_FIRST, _WIDTH_LAST = 9, 12
_TABLE_START = [*(bytes([value]) for value in range(256)), b"", b""]


def decompress(data: bytes, size_max: int) -> bytes:
    """The bytes that `data` stands for. Raises MalformedMessage, in particular above `size_max`.

    Memory is bounded by the output: each table entry is one byte longer than an output of its own,
    the table has 4096 entries and starts anew at each clear code.
    """
    table = list(_TABLE_START)
    width, previous = _WIDTH_FIRST, b""
    output: list[bytes] = []
    size = 0
    bits, bit_count, position = 0, 0, 0
    while True:
        while bit_count < width:
            if position == len(data):
                raise MalformedMessage("compressed data ends without its end code")
            bits |= data[position] << bit_count
            bit_count += 8
            position += 1
        code = bits & ((1 << width) - 1)
        bits >>= width
        bit_count -= width
        if code == _END:
            return b"".join(output)
        if code == _CLEAR:
            del table[_END + 1 :]
            width, previous = _WIDTH_FIRST, b""
            continue
        if code < len(table):
            entry = table[code]
        elif code == len(table) and previous and len(table) < 1 << _WIDTH_LAST:
            # The code just being defined: its string starts and ends with the same byte.
            entry = previous + previous[:1]
        else:
            raise MalformedMessage(f"compressed data has code {code} before it is defined")
        size += len(entry)
        if size > size_max:
            raise MalformedMessage(f"compressed data of more than {size_max} bytes")
        output.append(entry)
        if previous and len(table) < 1 << _WIDTH_LAST:
            table.append(previous + entry[:1])
        previous = entry
        if len(table) >= 1 << width and width < _WIDTH_LAST:
            width += 1
