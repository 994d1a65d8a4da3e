"""A load on any cluster, and whether it kept what it promised.

    python -m scripts.loadtest --server a:8400,b:8400 --seconds 30 --rate 5000 --producers 8 \\
        --followers 2 --report load.json --plot load.html

With `--rate` the load is open: records are due at set times, whatever the cluster does, and latency
counts from when a record was due. So a pause of the cluster shows in all that should have been
appended meanwhile, not in one record per producer (coordinated omission). Without it each producer
sends its next record when the last one was answered: that measures how much, not how long.

At the end every acknowledged record is read back at its offset, and no record is there twice.
Exit status: 0 all is well, 1 something acknowledged is missing, wrong or twice.
"""

from __future__ import annotations

import argparse
import asyncio
import html
import json
import math
import random
import struct
import sys
from array import array
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import proglog

_STAMP = struct.Struct(">QIQd")
"""Of each record: the run, its producer, its number there, and when it was due."""
PERCENTILES = (50.0, 90.0, 99.0, 99.9, 100.0)
SIZE_MIN = _STAMP.size
READ_BACK_SECONDS_MAX = 300.0


class Options(NamedTuple):
    """`rate` is records a second of all producers together; 0: closed loop."""

    seconds: float = 10.0
    rate: float = 0.0
    producers: int = 8
    batch: int = 1
    size: int = 100
    followers: int = 1
    timeout_seconds: float = 30.0
    seed: int = 1


class Seconds:
    """What happened in each second since the start: latencies in seconds."""

    def __init__(self) -> None:
        self.all: dict[int, array[float]] = {}

    def add(self, at: float, latency: float, count: int = 1) -> None:
        self.all.setdefault(int(at), array("d")).extend([latency] * count)

    def merged(self) -> array[float]:
        merged: array[float] = array("d")
        for second in sorted(self.all):
            merged.extend(self.all[second])
        return merged

    def __len__(self) -> int:
        return sum(map(len, self.all.values()))


def percentiles(latencies: Sequence[float]) -> dict[str, float]:
    """In milliseconds: the smallest that so many percent do not exceed."""
    ranked = sorted(latencies)
    if not ranked:
        return {}
    at = {p: ranked[max(math.ceil(len(ranked) * p / 100) - 1, 0)] for p in PERCENTILES}
    return {f"p{p:g}": round(1000 * value, 3) for p, value in at.items()}


class Load:
    """One run against one log."""

    def __init__(self, log: proglog.Log, options: Options) -> None:
        self._log = log
        self._options = options
        self._loop = asyncio.get_running_loop()
        self._chance = random.Random(options.seed)
        self._run = self._chance.getrandbits(63)
        self._padding = self._chance.randbytes(max(options.size - SIZE_MIN, 0))
        self._began = 0.0
        self.appending = Seconds()
        self.following = Seconds()
        self.acknowledged: list[dict[int, int]] = [{} for _ in range(options.producers)]
        """Of each producer: the offsets of its records, by their numbers."""
        self.sent = [0] * options.producers
        self.unknown: set[tuple[int, int]] = set()
        self.refused: dict[str, int] = {}
        self.first = 0

    async def run(self, progress: Progress) -> None:
        self.first = (await self._log.describe(consistency="leader")).next
        self._began = self._loop.time()
        followers = [self._loop.create_task(self._follow()) for _ in range(self._options.followers)]
        told = self._loop.create_task(progress.run(self))
        try:
            async with asyncio.TaskGroup() as tasks:
                for number in range(self._options.producers):
                    tasks.create_task(self._produce(number))
        finally:
            for task in (told, *followers):
                task.cancel()
            ended = await asyncio.gather(told, *followers, return_exceptions=True)
        for error in ended:
            if isinstance(error, Exception):
                raise error

    @property
    def elapsed(self) -> float:
        return self._loop.time() - self._began

    async def _produce(self, producer: int) -> None:
        options = self._options
        if not options.rate:
            while self.elapsed < options.seconds:
                await self._append(producer, self._loop.time())
            return
        every = options.producers * options.batch / options.rate
        # Producers take turns, so that the load is even.
        due = self._began + every * producer / options.producers
        async with asyncio.TaskGroup() as tasks:
            while due < self._began + options.seconds:
                await asyncio.sleep(max(due - self._loop.time(), 0))
                tasks.create_task(self._append(producer, due))
                due += every

    async def _append(self, producer: int, due: float) -> None:
        count = self._options.batch
        first = self.sent[producer]
        self.sent[producer] += count
        values = [
            _STAMP.pack(self._run, producer, first + i, due) + self._padding for i in range(count)
        ]
        limit = self._options.timeout_seconds
        try:
            if count == 1:
                offsets: Sequence[int] = [await self._log.produce(values[0], timeout_seconds=limit)]
            else:
                offsets = await self._log.produce_many(values, timeout_seconds=limit)
        except proglog.ProglogError as error:
            # Some may be in: they are not asked for, nor held against it.
            self.unknown.update((producer, first + i) for i in range(count))
            name = type(error).reason
            self.refused[name] = self.refused.get(name, 0) + count
            return
        now = self._loop.time()
        self.appending.add(now - self._began, now - due, count)
        self.acknowledged[producer].update(zip(range(first, first + count), offsets, strict=True))

    async def _follow(self) -> None:
        async for batch in self._log.consume(self.first).batches():
            now = self._loop.time()
            for value in batch.values:
                if len(value) >= SIZE_MIN:
                    run, _, _, due = _STAMP.unpack_from(value)
                    if run == self._run:
                        self.following.add(now - self._began, now - due)

    # --- what was promised -----------------------------------------------------------------------

    async def verify(self) -> list[str]:
        """What is wrong with what is in the log; nothing, it is hoped."""
        wrong: list[str] = []
        seen: dict[tuple[int, int], int] = {}
        last = max((max(found.values(), default=-1) for found in self.acknowledged), default=-1)
        if last < 0:
            return wrong
        async with asyncio.timeout(READ_BACK_SECONDS_MAX):
            reading = self._log.consume(
                self.first, follow=False, after=last, consistency="linearizable"
            )
            async for record in reading:
                if len(record.value) < SIZE_MIN:
                    continue
                run, producer, number, _ = _STAMP.unpack_from(record.value)
                if run != self._run:
                    continue
                if (producer, number) in seen:
                    wrong.append(
                        f"record {number} of producer {producer} is at offset"
                        f" {seen[producer, number]} and again at {record.offset}"
                    )
                if record.value[SIZE_MIN:] != self._padding:
                    wrong.append(f"the record at offset {record.offset} holds other bytes")
                seen[producer, number] = record.offset
        for producer, acknowledged in enumerate(self.acknowledged):
            for number, offset in acknowledged.items():
                found = seen.get((producer, number))
                if found != offset:
                    wrong.append(
                        f"record {number} of producer {producer} was acknowledged at offset"
                        f" {offset} and is at {found}"
                    )
        return wrong

    def report(self, wrong: list[str] | None) -> dict[str, Any]:
        """The run as JSON has it."""
        acknowledged = len(self.appending)
        elapsed = max(self._options.seconds, 1e-9)
        return {
            "options": self._options._asdict(),
            "loop": "open" if self._options.rate else "closed",
            "records_sent": sum(self.sent),
            "records_acknowledged": acknowledged,
            "records_unknown_or_refused": self.refused,
            "records_a_second": round(acknowledged / elapsed, 1),
            "append_ms": percentiles(self.appending.merged()),
            "follow_ms": percentiles(self.following.merged()),
            "seconds": [
                {"second": second, "records": len(found), **percentiles(found)}
                for second, found in sorted(self.appending.all.items())
            ],
            "verified": None if wrong is None else not wrong,
            "wrong": (wrong or [])[:100],
        }


class Progress:
    """A line a second on stderr."""

    def __init__(self, *, is_quiet: bool = False) -> None:
        self._is_quiet = is_quiet

    async def run(self, load: Load) -> None:
        while True:
            await asyncio.sleep(1)
            second = int(load.elapsed) - 1
            found = load.appending.all.get(second, ())
            shown = ", ".join(f"{name} {ms:g} ms" for name, ms in percentiles(found).items())
            failed = sum(load.refused.values())
            if not self._is_quiet:
                line = f"{second + 1:4} s  {len(found):8} records/s  {shown}"
                print(line + (f"  {failed} failed" if failed else ""), file=sys.stderr, flush=True)


# --- a plot --------------------------------------------------------------------------------------

WIDTH, HEIGHT, MARGIN = 900, 260, 55


def _polyline(points: Sequence[tuple[float, float]], x_max: float, y_max: float, css: str) -> str:
    placed = " ".join(
        f"{MARGIN + x / x_max * (WIDTH - MARGIN):.1f},{HEIGHT - y / y_max * (HEIGHT - 20):.1f}"
        for x, y in points
    )
    return f'<polyline class="{css}" points="{placed}"/>'


def _chart(title: str, lines: dict[str, list[tuple[float, float]]]) -> Iterator[str]:
    x_max = max((x for points in lines.values() for x, _ in points), default=1) or 1
    y_max = max((y for points in lines.values() for _, y in points), default=1) or 1
    yield f"<h2>{html.escape(title)}</h2><svg viewBox='0 0 {WIDTH} {HEIGHT + 25}' role='img'>"
    for part in (0.0, 0.25, 0.5, 0.75, 1.0):
        y = HEIGHT - part * (HEIGHT - 20)
        yield f"<line x1='{MARGIN}' x2='{WIDTH}' y1='{y}' y2='{y}'/>"
        yield f"<text x='{MARGIN - 6}' y='{y + 4}' text-anchor='end'>{part * y_max:.4g}</text>"
        x = MARGIN + part * (WIDTH - MARGIN)
        yield f"<text x='{x}' y='{HEIGHT + 18}' text-anchor='middle'>{part * x_max:.4g}</text>"
    for number, points in enumerate(lines.values()):
        yield _polyline(points, x_max, y_max, f"line{number}")
    yield "</svg><p>"
    for number, name in enumerate(lines):
        yield f"<span class='key key{number}'></span>{html.escape(name)} "
    yield "</p>"


def plot(report: dict[str, Any]) -> str:
    """The report as one HTML page, without anything from elsewhere."""
    seconds = report["seconds"]
    latency = {
        f"p{p:g}": [(s["second"], s[f"p{p:g}"]) for s in seconds] for p in (50.0, 99.0, 100.0)
    }
    rate = {"records/s": [(s["second"], s["records"]) for s in seconds]}
    colours = ("#1f77b4", "#ff7f0e", "#d62728")
    css = "".join(
        f".line{n}{{fill:none;stroke:{c};stroke-width:1.5}}.key{n}{{background:{c}}}"
        for n, c in enumerate(colours)
    )
    summary = {name: report[name] for name in report if name not in {"seconds", "wrong"}}
    return "".join(
        [
            "<!doctype html><meta charset='utf-8'><title>Proglog load test</title><style>",
            "body{font:14px sans-serif;max-width:60em;margin:2em auto}svg line{stroke:#ddd}",
            "svg text{font-size:11px}",
            ".key{display:inline-block;width:1em;height:.6em;margin:0 .4em}",
            css,
            "</style><h1>Proglog load test</h1>",
            *_chart("Latency of appends over time, ms", latency),
            *_chart("Acknowledged over time", rate),
            f"<pre>{html.escape(json.dumps(summary, indent=2))}</pre>",
        ]
    )


# --- the command ---------------------------------------------------------------------------------


async def run(log: proglog.Log, options: Options, progress: Progress, *, verify: bool) -> Any:
    """The whole of it; the report."""
    load = Load(log, options)
    await load.run(progress)
    return load.report(await load.verify() if verify else None)


def _arguments(words: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="loadtest", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    default = Options()
    parser.add_argument("--server", default="127.0.0.1:8400", help="nodes: HOST:PORT,HOST:PORT")
    parser.add_argument("--seconds", type=float, default=default.seconds)
    parser.add_argument(
        "--rate", type=float, default=default.rate, help="records/s; 0: closed loop"
    )
    parser.add_argument("--producers", type=int, default=default.producers)
    parser.add_argument("--batch", type=int, default=default.batch, help="records a call")
    parser.add_argument("--size", type=int, default=default.size, help="bytes a record")
    parser.add_argument("--followers", type=int, default=default.followers)
    parser.add_argument("--timeout", type=float, default=default.timeout_seconds)
    parser.add_argument("--seed", type=int, default=default.seed)
    parser.add_argument("--report", type=Path, help="write the report as JSON")
    parser.add_argument("--plot", type=Path, help="write it as an HTML page")
    parser.add_argument("--no-verify", action="store_true", help="read nothing back")
    parser.add_argument("--quiet", action="store_true", help="no progress")
    found = parser.parse_args(words)
    for name, least in (("producers", 1), ("batch", 1), ("size", SIZE_MIN), ("followers", 0)):
        if getattr(found, name) < least:
            parser.error(f"--{name} is {getattr(found, name)}: expected {least} or more")
    if not 0 < found.seconds < math.inf or not 0 <= found.rate < math.inf:
        parser.error("--seconds is more than 0, and --rate 0 or more")
    return found


async def _main(found: argparse.Namespace) -> int:
    options = Options(
        seconds=found.seconds,
        rate=found.rate,
        producers=found.producers,
        batch=found.batch,
        size=found.size,
        followers=found.followers,
        timeout_seconds=found.timeout,
        seed=found.seed,
    )
    async with proglog.connect(f"proglog://{found.server}") as log:
        progress = Progress(is_quiet=found.quiet)
        report = await run(log, options, progress, verify=not found.no_verify)
    shown = json.dumps(report, indent=2)
    if found.report:
        found.report.write_text(shown + "\n")
    else:
        print(json.dumps({n: v for n, v in report.items() if n != "seconds"}, indent=2))
    if found.plot:
        found.plot.write_text(plot(report))
    return 1 if report["verified"] is False else 0


def main(words: Sequence[str] | None = None) -> int:
    """The exit status."""
    try:
        import uvloop
    except ImportError:
        return asyncio.run(_main(_arguments(words)))
    return uvloop.run(_main(_arguments(words)))


if __name__ == "__main__":
    sys.exit(main())
