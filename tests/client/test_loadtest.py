"""The load test: what it measures, and that it sees what is wrong."""

from __future__ import annotations

import asyncio
import json

import pytest

from proglog.client.client import Log
from proglog.errors import DiskFull
from scripts import loadtest
from scripts.loadtest import Options, Progress
from tests.client.fake import FakeBackend

pytestmark = pytest.mark.virtual_time


def answering_after(backend: FakeBackend, seconds) -> None:
    """Streams answer so long after each batch; `seconds` is asked for each."""
    open_produce = backend.open_produce
    backend.held = True

    async def opened():
        stream = await open_produce()
        submit = stream.submit

        async def submitted(proposed):
            answer = await submit(proposed)
            asyncio.get_running_loop().call_later(seconds(), stream.answer_one)
            return answer

        stream.submit = submitted
        return stream

    backend.open_produce = opened


async def report_of(backend: FakeBackend, *, verify: bool = True, **options):
    async with Log(backend) as log:
        return await loadtest.run(log, Options(**options), Progress(is_quiet=True), verify=verify)


@pytest.mark.parametrize("batch", [1, 5])
@pytest.mark.parametrize("rate", [0.0, 200.0])
async def test_what_was_acknowledged_is_there(backend, rate, batch):
    answering_after(backend, lambda: 0.01)
    report = await report_of(backend, seconds=3, rate=rate, producers=4, batch=batch, followers=2)
    assert report["verified"] is True
    assert report["records_acknowledged"] == report["records_sent"] == backend.log.next
    if rate:
        assert report["records_sent"] == 600
        assert 9 < report["append_ms"]["p50"] < 40
    assert report["follow_ms"]["p50"] > 0
    assert len(report["seconds"]) in (3, 4)


async def test_a_pause_shows_in_all_that_was_due_meanwhile(backend):
    """Not only in the records that were under way: no coordinated omission."""
    loop = asyncio.get_running_loop()
    began = loop.time()
    answering_after(backend, lambda: max(began + 2 - loop.time(), 0.001))
    report = await report_of(backend, seconds=4, rate=100, producers=2, followers=0)
    assert report["records_acknowledged"] == 400
    assert report["append_ms"]["p50"] < 200
    assert report["append_ms"]["p90"] > 1500
    assert report["append_ms"]["p100"] > 1900


async def test_it_sees_what_is_missing_wrong_or_twice(backend):
    async with Log(backend) as log:
        load = loadtest.Load(log, Options(seconds=1, rate=50, producers=2, followers=0))
        await load.run(Progress(is_quiet=True))
        assert await load.verify() == []
        backend.log.extend([backend.log.values()[7]])
        (twice,) = [line for line in await load.verify() if "again" in line]
        assert "offset 7 and again at 50" in twice
        load.acknowledged[0][1000] = 3
        assert any("record 1000 of producer 0" in line for line in await load.verify())
        report = load.report(await load.verify())
    assert report["verified"] is False


async def test_what_was_refused_is_counted_and_not_asked_for(backend):
    backend.faults.extend([None, DiskFull("full"), None, None])
    report = await report_of(backend, seconds=1, rate=10, producers=1, followers=0)
    assert report["records_unknown_or_refused"] == {"DISK_FULL": 1}
    assert report["records_acknowledged"] == report["records_sent"] - 1
    assert report["verified"] is True


async def test_the_plot_is_one_page_of_its_own(backend):
    report = await report_of(backend, seconds=2, rate=20, producers=1, followers=0, verify=False)
    json.dumps(report)
    page = loadtest.plot(report)
    assert page.count("<svg") == page.count("</svg>") == 2
    assert page.count("<polyline") == 4
    assert "http" not in page
    assert "nan" not in page


@pytest.mark.parametrize(
    "words", [["--producers", "0"], ["--size", "1"], ["--seconds", "0"], ["--rate", "-1"]]
)
async def test_wrong_arguments_are_told(words, capsys):
    with pytest.raises(SystemExit):
        loadtest.main(words)
    assert "expected" in capsys.readouterr().err or "--seconds" in words[0] or "--rate" in words[0]
