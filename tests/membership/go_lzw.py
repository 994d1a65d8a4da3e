"""Go's `compress/lzw` encoder (LSB, 8-bit literals): the other half of what we only decode."""

from __future__ import annotations


def compress(data: bytes) -> bytes:
    output = bytearray()
    bits = bit_count = 0

    def emit(code: int, width: int) -> None:
        nonlocal bits, bit_count
        bits |= code << bit_count
        bit_count += width
        while bit_count >= 8:
            output.append(bits & 0xFF)
            bits >>= 8
            bit_count -= 8

    width, last, overflow = 9, 257, 512
    table: dict[tuple[int, int], int] = {}

    def advance() -> None:
        """One more code is known; the width grows with it, and at 12 bits all starts anew."""
        nonlocal width, last, overflow
        last += 1
        if last == overflow:
            width, overflow = width + 1, overflow << 1
        if last == 4095:
            emit(256, width)
            width, last, overflow = 9, 257, 512
            table.clear()

    emit(256, width)
    if data:
        code = data[0]
        for byte in data[1:]:
            known = table.get((code, byte))
            if known is not None:
                code = known
                continue
            emit(code, width)
            previous, code = code, byte
            before = last
            advance()
            if last == before + 1:
                table[previous, byte] = last
        emit(code, width)
        advance()
    emit(257, width)
    if bit_count:
        output.append(bits & 0xFF)
    return bytes(output)
