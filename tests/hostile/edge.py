"""One real node whose RPC port is attacked, one attack after the other, beside a modest client.

Prints a table: what the client's calls took meanwhile, which nobody judges, and what the node took
for it, which is judged. Run it by `make hostile`.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import random
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

import uvloop
from hpack import Encoder

import proglog
from proglog import limits
from proglog._generated.log import v1
from tests.ports import free_port
from tests.rpc.raw import PREFACE, frame, message

MIB = 1 << 20
MEMORY_MAX = limits.edge_bytes_max + 160 * MIB
DESCRIPTORS_MAX = 700
LINES_MAX = 40
"""Of the log, for each attack."""
DATA, HEADERS, PRIORITY, RST, SETTINGS, _, PING, _, WINDOW, CONTINUATION = range(10)
HOST = "127.0.0.1"


def request(stream_id: int, method: str, *more: tuple[str, str]) -> bytes:
    """HEADERS of a call, whatever has been sent before."""
    fields = [
        (":method", "POST"),
        (":scheme", "http"),
        (":path", f"/log.v1.Log/{method}"),
        (":authority", "x"),
        ("te", "trailers"),
        ("content-type", "application/grpc"),
        *more,
    ]
    return frame(HEADERS, 4, stream_id, Encoder().encode([(*f, True) for f in fields]))


def setting(number: int, value: int) -> bytes:
    return frame(SETTINGS, 0, 0, struct.pack(">HL", number, value))


HELLO = PREFACE + frame(SETTINGS, 0, 0, b"") + 2 * frame(SETTINGS, 1, 0, b"")
ROOM = setting(4, 2**31 - 1) + frame(WINDOW, 0, 0, struct.pack(">L", 2**30))


class Flood:
    """Sends something over and over, on connections that are made anew where they end."""

    def __init__(self, port: int, seconds: float, *, reads: bool = True) -> None:
        self.port = port
        self.deadline = time.monotonic() + seconds
        self.reads = reads

    async def run(
        self, begin: bytes, unit: Callable[[int], bytes], *, connections: int = 1
    ) -> None:
        await asyncio.gather(*(self._one(begin, unit) for _ in range(connections)))

    async def _one(self, begin: bytes, unit: Callable[[int], bytes]) -> None:
        while time.monotonic() < self.deadline:
            with contextlib.suppress(OSError, TimeoutError):
                async with asyncio.timeout(max(self.deadline - time.monotonic(), 0.01)):
                    await self._connection(begin, unit)
            await asyncio.sleep(0.01)

    async def _connection(self, begin: bytes, unit: Callable[[int], bytes]) -> None:
        reader, writer = await asyncio.open_connection(HOST, self.port)
        reading = asyncio.create_task(self._read(reader)) if self.reads else None
        try:
            writer.write(begin)
            for number in range(1, 2**30):
                data = unit(number)
                writer.write(data)
                await writer.drain()
                if writer.transport.is_closing() or (reading is not None and reading.done()):
                    return
                await asyncio.sleep(0 if data else 0.02)
        finally:
            if reading is not None:
                reading.cancel()
            writer.transport.abort()

    async def _read(self, reader: asyncio.StreamReader) -> None:
        with contextlib.suppress(OSError):
            while await reader.read(65536):
                pass


Attack = Callable[[int, float], Awaitable[None]]
ATTACKS: dict[str, Attack] = {}


def attack(name: str) -> Callable[[Attack], Attack]:
    def add(function: Attack) -> Attack:
        ATTACKS[name] = function
        return function

    return add


def _of_frames(name: str, unit: bytes, begin: bytes = b"", connections: int = 4) -> None:
    async def run(port: int, seconds: float) -> None:
        many = unit * (8192 // len(unit) + 1)
        await Flood(port, seconds).run(HELLO + begin, lambda _: many, connections=connections)

    ATTACKS[name] = run


_of_frames("WINDOW_UPDATE (E2)", frame(WINDOW, 0, 0, b"\0\0\0\1"))
_of_frames("PING (CVE-2019-9512)", frame(PING, 0, 0, bytes(8)))
_of_frames("SETTINGS (CVE-2019-9515)", setting(4, 100))
_of_frames("table sizes of headers (E6)", setting(1, 2**32 - 1))
_of_frames("PRIORITY (CVE-2019-9513)", frame(PRIORITY, 0, 1, b"\0\0\0\0\x10"))
_of_frames("unknown frames", frame(0x2A, 0, 0, b""))
_of_frames("empty DATA (CVE-2019-9518)", frame(DATA, 0, 1, b""), request(1, "ProduceBatches"))
_of_frames(
    "DATA of a byte (E4)",
    frame(DATA, 0, 1, b"x"),
    request(1, "ProduceBatches") + frame(DATA, 0, 1, b"\0\0\x40\0\0"),
)
_of_frames(
    "CONTINUATION (CVE-2024-27316)", frame(CONTINUATION, 0, 1, b""), frame(HEADERS, 0, 1, b"")
)
_of_frames(
    "frames of a stream that is over",
    frame(DATA, 0, 1, b"x"),
    request(1, "ProduceBatches") + frame(RST, 0, 1, bytes(4)),
)


def _streams(number: int) -> list[int]:
    return [2 * each - 1 for each in range(64 * number - 63, 64 * number + 1)]


@attack("rapid reset (CVE-2023-44487)")
async def rapid_reset(port: int, seconds: float) -> None:
    def unit(number: int) -> bytes:
        pairs = [request(i, "Consume") + frame(RST, 0, i, bytes(4)) for i in _streams(number)]
        return b"".join(pairs)

    await Flood(port, seconds).run(HELLO, unit, connections=4)


@attack("MadeYouReset (CVE-2025-8671)")
async def made_you_reset(port: int, seconds: float) -> None:
    def unit(number: int) -> bytes:
        ids = _streams(number)
        broken = [request(i, "ProduceBatches") + frame(WINDOW, 0, i, bytes(4)) for i in ids]
        return b"".join(broken)

    await Flood(port, seconds).run(HELLO, unit, connections=4)


@attack("records of a byte (E3)")
async def small_records(port: int, seconds: float) -> None:
    record = message(bytes(v1.ProduceRequest(record=v1.Record(value=b"x"))))
    part = frame(DATA, 0, 1, record * 500)
    begin = HELLO + ROOM + request(1, "ProduceStream")
    await Flood(port, seconds).run(begin, lambda _: part, connections=4)


@attack("messages that never end (E4)")
async def endless_messages(port: int, seconds: float) -> None:
    def unit(number: int) -> bytes:
        if number > 31:
            return b""
        i = 2 * number - 1
        opened = request(i, "ProduceBatches") + frame(DATA, 0, i, b"\0\0\x40\0\0")
        return opened + b"".join(frame(DATA, 0, i, bytes(16_000)) for _ in range(60))

    await Flood(port, seconds).run(HELLO, unit, connections=12)


@attack("answers that nobody reads (E4)")
async def unread_answers(port: int, seconds: float) -> None:
    def unit(number: int) -> bytes:
        i = 2 * number - 1
        ask = frame(DATA, 1, i, message(b""))
        return request(i, "ConsumeStream") + ask if number < 100 else b""

    await Flood(port, seconds, reads=False).run(HELLO + ROOM, unit, connections=8)


@attack("prefaces alone (E6)")
async def prefaces(port: int, seconds: float) -> None:
    await Flood(port, seconds).run(b"PRI * ", lambda _: b"", connections=200)


@attack("connections that say nothing (E7)")
async def silence(port: int, seconds: float) -> None:
    await Flood(port, seconds).run(b"", lambda _: b"", connections=200)


@attack("long names in errors (E1)")
async def long_names(port: int, seconds: float) -> None:
    asked = message(bytes(v1.DescribeRequest(log="é" * 100_000)))
    parts = [asked[start : start + 16_000] for start in range(0, len(asked), 16_000)]

    def unit(number: int) -> bytes:
        i = 2 * number - 1
        frames = [frame(DATA, part is parts[-1], i, part) for part in parts]
        return request(i, "Describe") + b"".join(frames)

    await Flood(port, seconds).run(HELLO + ROOM, unit, connections=2)


@attack("paths that are not quite ours (CVE-2026-33186)")
async def paths(port: int, seconds: float) -> None:
    tried = ["Describe/", "Describe?x", "%44escribe", "describe", "/Describe", "../Log/Describe"]

    def unit(number: int) -> bytes:
        i = 2 * number - 1
        return request(i, tried[number % len(tried)]) + frame(DATA, 1, i, message(b""))

    await Flood(port, seconds).run(HELLO + ROOM, unit, connections=2)


_POST = b"POST / HTTP/1.1\r\nHost: 127.0.0.1\r\n"
_TWO_WAYS = [
    _POST + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    _POST + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\nabcdef",
    _POST + b"Transfer-Encoding: chunked\r\n\r\n2\r\nabXX0\r\n\r\n",
    _POST + b"Transfer-Encoding: chunked, x\r\n\r\n0\r\n\r\n",
    b"GET / HTTP/1.1\nHost: 127.0.0.1\n\n",
    b"GET /" + b"a" * 20_000 + b" HTTP/1.1\r\n",
]


@attack("HTTP/1.1 that two servers read differently (CVE-2025-43859)")
async def smuggling(port: int, seconds: float) -> None:
    for said in _TWO_WAYS:
        flood = Flood(port, seconds / len(_TWO_WAYS))
        await flood.run(said, lambda _, said=said: said, connections=2)  # type: ignore[misc]


def _fuzz(name: str, begin: bytes, piece: Callable[[random.Random], bytes]) -> None:
    async def run(port: int, seconds: float) -> None:
        chance = random.Random(name)
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            await Flood(port, 0.05).run(begin, lambda _: piece(chance), connections=4)

    ATTACKS[name] = run


def _any_frame(chance: random.Random) -> bytes:
    if chance.random() < 0.4:
        return request(chance.randrange(1, 64), chance.choice(["Produce", "ConsumeStream", "x"]))
    body = chance.randbytes(chance.choice([0, 1, 4, 5, 6, 8, 30, 300]))
    return frame(chance.randrange(12), chance.randrange(256), chance.randrange(12), body)


def _any_record(chance: random.Random) -> bytes:
    length = chance.choice([0, 1, 100, 2**14, 2**16 - 1])
    kind = chance.choice([20, 21, 22, 23, 255])
    body = chance.randbytes(chance.randrange(400))
    return bytes((kind, 3, chance.randrange(5))) + length.to_bytes(2, "big") + body


def _any_hello(chance: random.Random) -> bytes:
    length = chance.choice([0, 1, 2**31, 2**32 - 1, chance.randrange(4096)])
    head = length.to_bytes(4, chance.choice(["big", "little"]))  # type: ignore[arg-type]
    return b"\1" + head + chance.randbytes(chance.randrange(200))


_fuzz("fuzz: bytes", b"", lambda chance: chance.randbytes(chance.randrange(1, 400)))
_fuzz("fuzz: frames", HELLO, _any_frame)
_fuzz("fuzz: records of TLS", b"\x16\3\1", _any_record)
_fuzz("fuzz: HTTP/1.1", b"GET /v1/records?", lambda chance: chance.randbytes(200) + b"\r\n")
_fuzz("fuzz: handshakes of nodes", b"", _any_hello)


# --- the node and the client ---------------------------------------------------------------------


class Node:
    """A node of the command line."""

    def __init__(self, folder: Path) -> None:
        self.port = free_port()
        self.output = folder / "output"
        with self.output.open("wb") as file:
            self.process = subprocess.Popen(
                [
                    *(sys.executable, "-m", "proglog.cli", "serve", "--quiet", "--log-level=info"),
                    *(f"--data-dir={folder / 'data'}", f"--bind-addr={HOST}:0"),
                    *(f"--rpc-port={self.port}", "--http-addr=none"),
                ],
                stdout=file,
                stderr=file,
            )

    @property
    def memory_bytes(self) -> int:
        for line in Path(f"/proc/{self.process.pid}/status").read_text().splitlines():
            if line.startswith("RssAnon:"):
                return int(line.split()[1]) * 1024
        raise ProcessLookupError(self.process.pid)

    @property
    def descriptors(self) -> int:
        return len(list(Path(f"/proc/{self.process.pid}/fd").iterdir()))

    @property
    def lines(self) -> int:
        return self.output.read_bytes().count(b"\n")

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait(30)


@dataclass(slots=True)
class Outcome:
    """One attack: what the client's calls took, and what the node did."""

    name: str
    latencies: list[float]
    memory_bytes: int
    descriptors: int
    lines: int
    traceback: bool

    def faults(self) -> list[str]:
        found = []
        if self.memory_bytes > MEMORY_MAX:
            found.append(f"it holds {self.memory_bytes // MIB} MiB")
        if self.descriptors > DESCRIPTORS_MAX:
            found.append(f"it has {self.descriptors} descriptors open")
        if self.lines > LINES_MAX:
            found.append(f"it logs {self.lines} lines")
        if self.traceback:
            found.append("it logs a traceback")
        return found

    def row(self) -> str:
        ordered = sorted(self.latencies) or [float("nan")]
        p50, p99 = (1000 * ordered[int(len(ordered) * share)] for share in (0.5, 0.99))
        return (
            f"{self.name:<62} {len(self.latencies):>6} {p50:>8.2f} {p99:>8.2f} "
            f"{self.memory_bytes // MIB:>5} {self.descriptors:>5} {self.lines:>5}"
        )


_COLUMNS = f"{'calls':>6} {'p50 ms':>8} {'p99 ms':>8} {'MiB':>5} {'files':>5} {'lines':>5}"
HEAD = f"{'attack':<62} {_COLUMNS}"


async def _canary(log: proglog.Log, latencies: list[float]) -> None:
    while True:
        begun = time.perf_counter()
        await log.produce(b"canary")
        latencies.append(time.perf_counter() - begun)
        await asyncio.sleep(0.01)


async def besieged(node: Node, log: proglog.Log, name: str, seconds: float) -> Outcome:
    """Lets one attack run beside a modest client. Raises what the client's calls raise."""
    before = node.lines
    latencies: list[float] = []
    canary = asyncio.create_task(_canary(log, latencies))
    try:
        await ATTACKS[name](node.port, seconds)
        memory, descriptors = node.memory_bytes, node.descriptors
        await log.produce(b"after")
    finally:
        canary.cancel()
        await asyncio.wait([canary])
    if not canary.cancelled():
        canary.result()
    traceback = "Traceback" in node.output.read_text(errors="replace")
    return Outcome(name, latencies, memory, descriptors, node.lines - before, traceback)


async def besiege_all(folder: Path, seconds: float) -> list[Outcome]:
    """Every attack. Raises where the node ended, or leads anew."""
    node = Node(folder)
    try:
        async with proglog.connect(f"proglog://{HOST}:{node.port}", timeout_seconds=60) as log:
            for _ in range(200):
                await log.produce(b"x" * 10_000)
            term = (await log.describe()).term
            outcomes = []
            for name in ATTACKS:
                outcomes.append(await besieged(node, log, name, seconds))
                assert node.process.poll() is None, f"the node ended: {name}"
            assert (await log.describe()).term == term, "the node gave up leading"
            return outcomes
    finally:
        node.stop()


async def main(seconds: float) -> int:
    with tempfile.TemporaryDirectory() as folder:
        outcomes = await besiege_all(Path(folder), seconds)
    print(HEAD)
    for outcome in outcomes:
        print(outcome.row(), "; ".join(outcome.faults()))
    return int(any(outcome.faults() for outcome in outcomes))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m tests.hostile.edge", description=__doc__)
    parser.add_argument("--minutes", type=float, default=4.0, help="all attacks together")
    sys.exit(uvloop.run(main(60 * parser.parse_args().minutes / len(ATTACKS))))
