"""The audit trail: one line for each kind of event, exact counts, and no silence about losses."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from proglog import limits
from proglog.auth.access import ACCESS
from proglog.auth.audit import Audit, FileSink
from proglog.auth.gate import OpenGate
from proglog.auth.principal import Kind, Principal
from proglog.errors import Unavailable
from tests.waiting import meanwhile, until

CHANGE, PRODUCE = "/log.v1.Cluster/RemoveServer", "/log.v1.Log/Produce"
ROOT = Principal(kind=Kind.CLIENT, subject="root", fingerprint="ab", source="10.0.0.1:5")


class ListSink:
    """Keeps lines, or fails."""

    def __init__(self) -> None:
        self.lines: list[dict] = []
        self.fails = False

    async def write(self, lines: list[str]) -> None:
        if self.fails:
            raise OSError(28, "No space left on device")
        self.lines += map(json.loads, lines)


def new(sink: ListSink, **options: bool) -> Audit:
    return Audit(sink, node="n1", cluster="c", now_ms=lambda: 1_000, **options)


@pytest.fixture
async def sink() -> AsyncIterator[ListSink]:
    yield ListSink()


async def test_what_a_line_says(sink: ListSink) -> None:
    audit = new(sink)
    audit.decided(ROOT, CHANGE, "*", "")
    await audit.flush()
    assert sink.lines == [
        {
            "time": 1_000,
            "class_uid": 6003,
            "activity": "admin",
            "status": "Success",
            "status_detail": "",
            "actor": {"user": {"name": "root", "type": "client", "uid": "ab"}},
            "src_endpoint": {"ip": "10.0.0.1", "port": "5"},
            "api": {"operation": CHANGE},
            "resource": {"name": "*"},
            "count": 1,
            "metadata": {"product": "proglog", "node": "n1", "cluster": "c", "sequence": 1},
        }
    ]


@pytest.mark.virtual_time
async def test_what_repeats_is_counted_and_told_with_its_count(sink: ListSink) -> None:
    audit = new(sink)
    async with meanwhile(audit.run()):
        for _ in range(1000):
            audit.decided(ROOT, PRODUCE, "secret", "the policy does not allow it")
            audit.refused("10.0.0.7:1", "unknown ca")
            audit.refused("10.0.0.8:2", "unknown ca")  # of the same network
        await asyncio.sleep(1)
        assert [line["count"] for line in sink.lines] == [1, 1]
        await asyncio.sleep(2 * limits.audit_merge_seconds)
    counts: dict[str, int] = {}
    for line in sink.lines:
        counts[line["activity"]] = counts.get(line["activity"], 0) + line["count"]
    assert counts == {"produce": 1000, "connect": 2000}
    assert len(sink.lines) == 4
    assert not audit._merged


async def test_each_change_of_the_cluster_is_a_line(sink: ListSink) -> None:
    audit = new(sink)
    for _ in range(3):
        audit.decided(ROOT, CHANGE, "*", "")
        audit.decided(ROOT, PRODUCE, "default", "")
        audit.decided(ROOT, "GET /livez", "*", "")
    await audit.flush()
    assert [line["activity"] for line in sink.lines] == ["admin", "produce", "admin", "admin"]


async def test_made_up_names_are_bounded_and_cut(
    sink: ListSink, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "audit_keys_max", 10)
    audit = new(sink)
    for number in range(100):
        audit.decided(ROOT, PRODUCE, f"é\n{'x' * 1000}{number}", "no")
    await audit.flush()
    assert len(audit._merged) == 11
    assert max(len(json.dumps(line)) for line in sink.lines) < 2048
    assert sum(line["count"] for line in sink.lines) + audit._merged[(0, "", "", "")].count == 100


async def test_a_sink_that_fails_is_told_of_and_counted(
    sink: ListSink, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "audit_lines_max", 5)
    audit = new(sink)
    sink.fails = True
    for _ in range(7):
        audit.decided(ROOT, CHANGE, "*", "")
    await audit.flush()
    assert (audit.lost, audit.is_failing) == (7, True)
    sink.fails = False
    audit.decided(ROOT, CHANGE, "*", "")
    await audit.flush()
    await audit.flush()
    assert [(line["activity"], line["count"]) for line in sink.lines] == [
        ("admin", 1),
        ("audit lost", 7),
    ]
    assert not audit.is_failing


async def test_where_it_is_required_no_change_goes_unwritten(sink: ListSink) -> None:
    audit = new(sink, is_required=True)
    gate = OpenGate(audit=audit)
    async with meanwhile(audit.run()):
        await gate.check(ROOT, CHANGE, ACCESS[CHANGE])
        assert len(sink.lines) == 1
        sink.fails = True
        with pytest.raises(Unavailable, match="audit trail cannot be written"):
            await gate.check(ROOT, CHANGE, ACCESS[CHANGE])
        sink.fails = False
        await gate.check(ROOT, CHANGE, ACCESS[CHANGE])
        await until(lambda: len(sink.lines) == 3, "the loss is told")


@pytest.fixture
def path(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path / "audit.log"


async def test_a_file_is_private_and_may_be_rotated(path: Path) -> None:
    sink = FileSink(path)
    await sink.write(["a", "b"])
    assert path.stat().st_mode & 0o777 == 0o600
    path.rename(path.with_suffix(".1"))
    await sink.write(["c"])
    assert path.read_text() == "c\n"
    assert path.with_suffix(".1").read_text() == "a\nb\n"
