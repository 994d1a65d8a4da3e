"""`produce` and `consume` against a log in memory: order, bytes, limits, and what ends them."""

from __future__ import annotations

import asyncio
import base64
import errno
import json
import os
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path

import pytest

from proglog.batch import RecordBatch
from proglog.cli.app import run
from proglog.cli.lines import LINE_BYTES_MAX
from proglog.cli.produce import CHUNKS_INFLIGHT_MAX
from proglog.client.client import Log
from proglog.errors import DiskFull
from tests.client.fake import FakeBackend


class MemoryLog:
    """What the commands use of a log. `batch_records` go into one batch."""

    def __init__(self) -> None:
        self.values: list[bytes] = []
        self.starts: list[object] = []
        self.batch_records = 3
        self.chunks = 0
        self.chunks_most = 0
        self.room: int | None = None
        self.full = asyncio.Event()
        self.answers_after = 0.001
        self.described = False

    @asynccontextmanager
    async def producer(self) -> AsyncIterator[MemoryLog]:
        yield self

    async def produce_many(self, values: Sequence[bytes]) -> Sequence[int]:
        self.chunks += 1
        self.chunks_most = max(self.chunks, self.chunks_most)
        try:
            if self.room is not None and len(self.values) + len(values) > self.room:
                self.full.set()
                raise DiskFull("the disk is full")
            first = len(self.values)
            self.values.extend(values)
            if self.room is not None:
                # Answered at the very moment at which what is behind it is refused.
                await self.full.wait()
            await asyncio.sleep(self.answers_after)
        finally:
            self.chunks -= 1
        return range(first, first + len(values))

    async def describe(self) -> None:
        self.described = True

    async def consume_batches(self, start: object, *, follow: bool) -> AsyncIterator[RecordBatch]:
        assert self.described
        self.starts.append(start)
        offset = start if isinstance(start, int) else 0
        while offset < len(self.values):
            values = self.values[offset : offset + self.batch_records]
            yield RecordBatch(offset, 1000, 1, values, keys=[b"k", *[None] * (len(values) - 1)])
            offset += len(values)
        if follow:
            raise KeyboardInterrupt


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch) -> MemoryLog:
    memory = MemoryLog()

    @asynccontextmanager
    async def connect(url: str, **_: object) -> AsyncIterator[MemoryLog]:
        assert url == "proglog://127.0.0.1:8400"
        yield memory

    monkeypatch.setattr("proglog.connect", connect, raising=False)
    return memory


@pytest.fixture
def stdin() -> AsyncIterator[Callable[[bytes], None]]:
    """Gives the process's stdin these bytes."""
    kept = os.dup(0)

    def give(data: bytes) -> None:
        reading, writing = os.pipe()
        os.write(writing, data)
        os.close(writing)
        os.dup2(reading, 0)
        os.close(reading)

    yield give
    os.dup2(kept, 0)
    os.close(kept)


# --- produce -------------------------------------------------------------------------------------


def test_lines_of_files_and_stdin_in_the_order_named(
    log: MemoryLog, tmp_path: Path, stdin: Callable[[bytes], None]
) -> None:
    (tmp_path / "a").write_bytes(b"1\n\xff\x00\n")
    (tmp_path / "b").write_bytes(b"\n4")
    stdin(b"3\n")
    assert run(["produce", str(tmp_path / "a"), "/dev/stdin", str(tmp_path / "b")]) == 0
    assert log.values == [b"1", b"\xff\x00", b"3", b"", b"4"]


def test_stdin_without_files(log: MemoryLog, stdin: Callable[[bytes], None]) -> None:
    stdin(b"a\nb")
    assert run(["produce"]) == 0
    assert log.values == [b"a", b"b"]


def test_a_large_file_goes_in_order_in_a_bounded_number_of_chunks(
    log: MemoryLog, tmp_path: Path
) -> None:
    lines = [b"%d" % number for number in range(2_000_000)]
    (tmp_path / "many").write_bytes(b"\n".join(lines))
    assert run(["produce", str(tmp_path / "many")]) == 0
    assert log.values == lines
    assert 1 < log.chunks_most <= CHUNKS_INFLIGHT_MAX + 2


def test_the_summary_as_json(
    log: MemoryLog, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log.values = [b"before"]
    (tmp_path / "a").write_bytes(b"1\n22\n")
    assert run(["produce", "--json", str(tmp_path / "a")]) == 0
    output = capsys.readouterr()
    summary = json.loads(output.out)
    assert summary.pop("seconds") > 0
    assert summary == {"records": 2, "bytes": 5, "first_offset": 1, "last_offset": 2}
    assert output.err.startswith("2 records, 5 B, ")


def test_nothing_to_produce(
    log: MemoryLog, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty").touch()
    assert run(["produce", "--json", str(tmp_path / "empty")]) == 0
    assert json.loads(capsys.readouterr().out)["first_offset"] is None


def test_a_refusal_ends_it_and_says_what_is_in(
    log: MemoryLog, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a").write_bytes(b"1\n2\n")
    (tmp_path / "b").write_bytes(b"3\n4\n")
    log.room, log.answers_after = 3, 0
    assert run(["produce", str(tmp_path / "a"), str(tmp_path / "b")]) == 1
    assert log.values == [b"1", b"2"]
    summary, error = capsys.readouterr().err.splitlines()
    assert summary.startswith("2 records, 4 B, ")
    assert error == "proglog: the disk is full"


def test_a_line_too_long_ends_it_and_says_what_is_in(
    log: MemoryLog, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a").write_bytes(b"1\n2\n")
    (tmp_path / "b").write_bytes(bytes(LINE_BYTES_MAX + 1))
    log.answers_after = 0.2
    assert run(["produce", str(tmp_path / "a"), str(tmp_path / "b")]) == 1
    summary, error = capsys.readouterr().err.splitlines()
    assert summary.startswith("2 records, 4 B, ")
    assert f"{tmp_path / 'b'}, line 1: longer than" in error


def test_nothing_behind_a_refusal_is_in_the_log(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With the real client: what is said to be in the log is what is there, up to the record."""
    lines = [b"%d" % number for number in range(400_000)]
    (tmp_path / "many").write_bytes(b"\n".join(lines))
    backend = FakeBackend()
    backend.faults.extend([*[None] * 4, DiskFull("the disk is full")])
    monkeypatch.setattr("proglog.connect", lambda url, **_: Log(backend), raising=False)
    assert run(["produce", str(tmp_path / "many")]) == 1
    count = len(backend.log.values())
    assert 0 < count < len(lines)
    assert backend.log.values() == lines[:count]
    assert capsys.readouterr().err.startswith(f"{count:,} records, ")


@pytest.mark.parametrize("path", ["/absent", "/tmp"])
def test_what_is_no_file(path: str, log: MemoryLog, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["produce", path]) == 2
    assert f'"{path}"' in capsys.readouterr().err


def test_a_file_that_may_not_be_read(
    log: MemoryLog, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*arguments: object) -> int:
        raise PermissionError(errno.EACCES, "Permission denied", "secret")

    monkeypatch.setattr("proglog.cli.lines.os.open", refuse)
    assert run(["produce", __file__]) == 1
    assert capsys.readouterr().err.endswith("proglog: secret: Permission denied\n")


# --- consume -------------------------------------------------------------------------------------


def test_values_are_lines(log: MemoryLog, capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    log.values = [b"a", b"\xff\x00", b"", b"d"]
    assert run(["consume"]) == 0
    assert capfdbinary.readouterr().out == b"a\n\xff\x00\n\nd\n"
    assert log.starts == ["earliest"]


def test_raw_values_stand_back_to_back(
    log: MemoryLog, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    log.values = [b"a\n", b"\xff\x00", b"", b"d"]
    assert run(["consume", "--raw"]) == 0
    assert capfdbinary.readouterr().out == b"a\n\xff\x00d"


def test_json_has_all_of_a_record(
    log: MemoryLog, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    log.values = [b"\xff\x00", b"b"]
    assert run(["consume", "--json"]) == 0
    first, second = map(json.loads, capfdbinary.readouterr().out.splitlines())
    assert base64.b64decode(first.pop("value")) == b"\xff\x00"
    assert base64.b64decode(first.pop("key")) == b"k"
    assert first == {"offset": 0, "timestamp": 1000, "headers": []}
    assert (second["offset"], second["key"]) == (1, None)


@pytest.mark.parametrize(
    ("words", "start", "output"),
    [
        (["--offset", "2"], 2, b"2\n3\n4\n5\n6\n"),
        (["--offset", "latest"], "latest", b"0\n1\n2\n3\n4\n5\n6\n"),
        (["--offset", "1", "--limit", "4"], 1, b"1\n2\n3\n4\n"),
        (["-n", "3"], "earliest", b"0\n1\n2\n"),
        (["--limit", "100"], "earliest", b"0\n1\n2\n3\n4\n5\n6\n"),
        (["--timestamp", "1970-01-01T00:00:01Z", "-n1"], datetime.fromtimestamp(1, UTC), b"0\n"),
        (["--follow", "-n", "2"], "earliest", b"0\n1\n"),
    ],
)
def test_where_it_begins_and_ends(
    words: list[str],
    start: object,
    output: bytes,
    log: MemoryLog,
    capfdbinary: pytest.CaptureFixture[bytes],
) -> None:
    log.values = [b"%d" % number for number in range(7)]
    assert run(["consume", *words]) == 0
    assert capfdbinary.readouterr().out == output
    assert log.starts == [start]


def test_no_records_wanted(log: MemoryLog, capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    assert run(["consume", "--limit", "0"]) == 0
    assert log.starts == []


def test_following_shows_what_there_is_before_it_waits(
    log: MemoryLog, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    log.values = [b"a"]
    assert run(["consume", "-f"]) == 130
    assert capfdbinary.readouterr().out == b"a\n"


# --- records with all they have ------------------------------------------------------------------


@pytest.fixture
def backend(monkeypatch: pytest.MonkeyPatch) -> FakeBackend:
    fake = FakeBackend()
    monkeypatch.setattr("proglog.connect", lambda url, **_: Log(fake), raising=False)
    return fake


def test_a_key_and_headers_for_each_line(backend: FakeBackend, tmp_path: Path) -> None:
    (tmp_path / "in").write_bytes(b"a\nb\n")
    words = ["--key", "k", "--header", "h=1", "--header", "h=x=y", str(tmp_path / "in")]
    assert run(["produce", *words]) == 0
    assert [record[1:4] for record in backend.log.records()] == [
        (b"a", b"k", (("h", b"1"), ("h", b"x=y"))),
        (b"b", b"k", (("h", b"1"), ("h", b"x=y"))),
    ]


def test_what_was_printed_as_json_is_read_back(
    backend: FakeBackend, tmp_path: Path, capsysbinary: pytest.CaptureFixture[bytes]
) -> None:
    (tmp_path / "in").write_bytes(b"a\n\xff\n")
    assert run(["produce", "--key", "k", "--header", "h=1", str(tmp_path / "in")]) == 0
    assert run(["produce", str(tmp_path / "in")]) == 0
    capsysbinary.readouterr()
    assert run(["consume", "--json"]) == 0
    (tmp_path / "json").write_bytes(capsysbinary.readouterr().out)
    assert run(["produce", "--from-json", str(tmp_path / "json")]) == 0
    records = [record[1:] for record in backend.log.records()]
    assert len(records) == 8
    assert records[4:] == records[:4]


@pytest.mark.parametrize(
    "line", ["", "[]", "5", "{}", '{"value": 5}', '{"value": "?"}', '{"value": "", "headers": 5}']
)
def test_a_line_that_is_no_record_ends_it(
    backend: FakeBackend, tmp_path: Path, capsys: pytest.CaptureFixture[str], line: str
) -> None:
    (tmp_path / "in").write_text(f'{{"value": "YQ=="}}\n{line}\n{{"value": "Yg=="}}\n')
    assert run(["produce", "--from-json", str(tmp_path / "in")]) == 1
    assert "line 2 is no record in JSON" in capsys.readouterr().err
    assert backend.log.values() in ([], [b"a"])


def test_the_last_records(backend: FakeBackend, capsysbinary: pytest.CaptureFixture[bytes]) -> None:
    backend.log.extend([b"%d" % number for number in range(10)])
    assert run(["consume", "--tail", "3"]) == 0
    assert capsysbinary.readouterr().out == b"7\n8\n9\n"
    assert run(["consume", "--tail", "0"]) == 0
    assert capsysbinary.readouterr().out == b""


@pytest.mark.parametrize(
    "words",
    [
        ["produce", "--header", "x"],
        ["produce", "--header", "=x"],
        ["produce", "--header", "\u00e4=x"],
        ["produce", "--from-json", "--key", "k"],
        ["consume", "--tail", "-1"],
        ["consume", "--tail", "1", "--offset", "0"],
        ["bench", "--seconds", "0"],
        ["bench", "--tasks", "10000000"],
    ],
    ids=" ".join,
)
def test_what_makes_no_sense_is_told_in_a_line(
    capsys: pytest.CaptureFixture[str], words: list[str]
) -> None:
    assert run(words) == 2
    told = capsys.readouterr().err
    assert told.startswith("proglog: ")
    assert told.count("\n") == 1
