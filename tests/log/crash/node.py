"""The real engine on a simulated disk: opening a directory and looking at all of it."""

from __future__ import annotations

import random
from pathlib import Path
from typing import NamedTuple

from proglog import batch as batches
from proglog.batch import BatchHeader, Kind
from proglog.config import LogConfig
from proglog.log import format as fmt
from proglog.log import snapshot as snapshots
from proglog.log.format import Tip
from proglog.log.log import Log, LogEvents
from proglog.log.names import DEFAULT_GROUP, group_folder, snapshot_path
from proglog.log.operations import Group
from proglog.log.reading import Damage
from proglog.log.segment import Segment
from proglog.ports import Offload, Ports
from proglog.raft.messages import HardState
from proglog.replica.opening import Opened
from proglog.replica.state import ReplicatedState
from tests.doubles.disk import Faults, SimDisk
from tests.doubles.files import SimFiles
from tests.doubles.loop import SimClock
from tests.doubles.worker import SimWorker
from tests.log.crash.history import Outcome
from tests.opening import open_directory

FOLDER = group_folder(Path("/data"), DEFAULT_GROUP)
CONFIG = LogConfig(segment_bytes=fmt.PREAMBLE_BYTES + 8192, segment_batches=5)
SMALL = LogConfig(segment_bytes=fmt.PREAMBLE_BYTES + 4096, segment_batches=3)
NO_HARD_STATE = HardState(0)
SNAPSHOTS_MAX = 2

written: dict[int, bytes] = {}
"""Every batch that any test appended, by its header checksum: what may be served."""


class Process(NamedTuple):
    """A process that has opened the log's directory."""

    files: SimFiles
    ports: Ports
    opened: Opened

    def start_log(self, events: LogEvents) -> Log:
        """The log, ready for use."""
        reader = Offload(self.ports.worker("reader"))
        return Log(FOLDER, self.opened.recovered, CONFIG, self.ports, events, reader)


def open_log(disk: SimDisk, files: SimFiles | None = None) -> Process:
    """Starts a process on the disk, as a daemon would. Raises what it raises."""
    files = files or SimFiles(disk)
    ports = Ports(files=files, clock=SimClock(), random=random.Random(1), worker=SimWorker)
    opened = open_directory(
        FOLDER, config=CONFIG, ports=ports, node_name="n", rpc_addr="n:8400", bootstrap=True
    )
    return Process(files, ports, opened)


def snapshot_state(index: int) -> bytes:
    """The state that a snapshot at a batch holds in these tests."""
    state = ReplicatedState()
    state.configuration_index = 1
    state.start_offset = index
    return state.encode()


def outcome(process: Process) -> Outcome:
    """Everything that the directory holds, read and compared with what was ever written."""
    opened, disk = process.opened, process.files.disk
    # Looking is no part of the test.
    faults, told = disk.faults, disk.on_access
    disk.faults, disk.on_access = Faults(), None
    try:
        return _outcome(opened, disk)
    finally:
        disk.faults, disk.on_access = faults, told


def _outcome(opened: Opened, disk: SimDisk) -> Outcome:
    recovered = opened.recovered
    crcs: list[int] = []
    error = ""
    for segment in recovered.segments:
        error = error or _read_segment(segment, crcs)
    newest = max(recovered.snapshot_indexes, default=0)
    if newest:
        error = error or _check_snapshot(disk, opened, newest)
    if len(recovered.snapshot_indexes) > SNAPSHOTS_MAX:
        error = error or f"{len(recovered.snapshot_indexes)} snapshots are kept"
    return Outcome(
        base=recovered.segments[0].index.before.index,
        crcs=tuple(crcs),
        snapshots=frozenset(recovered.snapshot_indexes),
        hard_state=opened.hard_state.hard_state,
        commit_hint=recovered.commit_hint,
        error=error,
    )


def _check_snapshot(disk: SimDisk, opened: Opened, newest: int) -> str:
    """What is wrong with the newest snapshot and what was made of it."""
    path = snapshot_path(FOLDER, newest)
    found = disk.find(path).cached
    snapshot = snapshots.parse(found.read(found.size, 0), path)
    if snapshot is None or snapshot.state != snapshot_state(newest):
        return f"snapshot {newest} holds another state"
    if opened.applied < newest or opened.state.start_offset != newest:
        return f"the state was not made of snapshot {newest}"
    return ""


def _read_segment(segment: Segment, crcs: list[int]) -> str:
    index = segment.index
    start = index.position(0)
    data = segment.read(index.end_position - start, start)
    if isinstance(data, Damage):
        raise segment.damaged(data, segment.first_index)
    position = 0
    for header in segment.check(data, start, segment.first_index):
        packed = data[position : position + header.size]
        position += header.size
        crcs.append(header.header_crc)
        if written.setdefault(header.header_crc, packed) != packed:
            return f"batch {header.index} is served with other bytes than were written"
    if position != len(data) or len(index) != segment.last_index - index.before.index:
        return f"segment {segment.first_index} and its index disagree"
    return ""


def build_batch(
    tip: Tip, values: list[bytes], *, term: int = 0, timestamp: int = 0
) -> tuple[BatchHeader, tuple[bytes, ...]]:
    """A batch that continues the log at `tip`: data, or a no-op if there are no values."""
    body = batches.encode(values) if values else batches.plain_body(b"")
    header, packed = batches.build(
        body,
        kind=Kind.DATA if values else Kind.NOOP,
        index=tip.index + 1,
        term=max(term, tip.term),
        base_offset=tip.next_offset,
        timestamp=max(timestamp, tip.timestamp),
        chain_crc=tip.chain,
    )
    written[header.header_crc] = packed + bytes(body.data)
    return header, (packed, bytes(body.data))


class Events:
    """`LogEvents` that notes what became durable and lets nothing fail silently."""

    def __init__(self) -> None:
        self.durable_index = 0
        self.failure: BaseException | None = None

    def durable(self, index: int) -> None:
        self.durable_index = index

    def group_written(self, group: Group) -> None: ...

    def sealed(self, last: Tip) -> None: ...

    def failed(self, error: BaseException) -> None:
        self.failure = error
