"""Reading lines: every byte but the newline is kept, however the input arrives."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest

from proglog.cli.lines import LINE_BYTES_MAX, READ_BYTES, read_lines
from proglog.errors import TooLarge


async def _lines(path: Path) -> list[bytes]:
    return [line async for lines in read_lines(path) for line in lines]


@pytest.mark.parametrize(
    ("data", "lines"),
    [
        (b"", []),
        (b"\n", [b""]),
        (b"a", [b"a"]),
        (b"a\n", [b"a"]),
        (b"a\n\nb", [b"a", b"", b"b"]),
        (
            b"\x00\xff\r\n\x0b\x0c\x1c\x85\n\xe2\x80\xa8",
            [b"\x00\xff\r", b"\x0b\x0c\x1c\x85", b"\xe2\x80\xa8"],
        ),
        (b"x" * (READ_BYTES - 1) + b"\ny\n", [b"x" * (READ_BYTES - 1), b"y"]),
        (b"x" * READ_BYTES + b"\ny\n", [b"x" * READ_BYTES, b"y"]),
        (b"x" * LINE_BYTES_MAX + b"\n", [b"x" * LINE_BYTES_MAX]),
    ],
    ids=range(9),
)
async def test_lines_of_a_file(data: bytes, lines: list[bytes], tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(data)
    assert await _lines(file) == lines


async def test_lines_of_a_pipe_arrive_as_they_are_written(tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    writer = os.open(fifo, os.O_RDWR)
    lines = read_lines(fifo)
    os.write(writer, b"one\ntw")
    assert await anext(lines) == [b"one"]
    os.write(writer, b"o\nthree")
    assert await anext(lines) == [b"two"]
    os.close(writer)
    assert await anext(lines) == [b"three"]
    with pytest.raises(StopAsyncIteration):
        await anext(lines)


async def test_a_silent_pipe_does_not_keep_the_command(tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    writer = os.open(fifo, os.O_RDWR)
    waiting = asyncio.create_task(_lines(fifo))
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    os.close(writer)


async def test_a_line_without_end_is_refused_by_its_number(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"a\nb\n" + b"x" * (LINE_BYTES_MAX + READ_BYTES + 1))
    with pytest.raises(TooLarge, match=r"file, line 3: longer than \d+ bytes"):
        await _lines(file)


async def test_an_absent_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="absent"):
        await _lines(tmp_path / "absent")
