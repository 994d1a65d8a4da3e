"""From a directory to what a replica starts with. May wait for the disk.

Without being told otherwise, the first start begins a cluster of one, so that nothing has to be
migrated when it grows: a cluster id in the hard state, a configuration batch at index 1. A node
that is to join a cluster begins without both, and waits to be called.
"""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from proglog import batch as batches
from proglog import limits
from proglog.batch import HEADER_BYTES, BatchHeader, Buffer, Kind
from proglog.config import LogConfig
from proglog.errors import ConfigurationError, CorruptionError, DiskFull, RangeCorrupt
from proglog.log import format as fmt
from proglog.log.names import group_folder, snapshot_path
from proglog.log.reading import Damage
from proglog.log.recovery import Recovered, recover
from proglog.log.segment import REFUSALS, Segment
from proglog.log.snapshot import Snapshot
from proglog.log.tail import TailEntry
from proglog.ports import Files, Ports
from proglog.raft.configuration import Configuration, Server
from proglog.raft.hard_state import HardStateFile, Identity, new_id
from proglog.raft.log_view import LogView
from proglog.raft.messages import HardState
from proglog.replica import commands, floors
from proglog.replica.floors import Memory
from proglog.replica.identity import Begin, NodeDirectory, check_seal
from proglog.replica.settings import LEVEL
from proglog.replica.state import ReplicatedState

FIRST_TERM = 1
"""Of the configuration batch that begins a cluster; elections begin behind it."""


@dataclass(slots=True, kw_only=True)
class Opened:
    """A log that is ready to run. Everything in its folder is durable."""

    folder: Path
    node: NodeDirectory
    recovered: Recovered
    hard_state: HardStateFile
    state: ReplicatedState
    """After batch `applied`."""
    applied: int
    configurations: list[tuple[int, Configuration]]
    """That of `state`, then those in the log behind it."""
    memory: Memory
    """Of the other servers."""

    def log_view(self, size_of: Callable[[int], int]) -> LogView:
        """The core's view of the log."""
        segments = self.recovered.segments
        before, tip = segments[0].index.before, self.recovered.tip
        runs: list[tuple[int, int]] = []
        for segment in segments:
            runs += (run for run in segment.index.runs if not runs or runs[-1][1] != run[1])
        return LogView(
            base_index=before.index,
            base_term=before.term,
            runs=runs,
            last_index=tip.index,
            size_of=size_of,
        )


def open_log(
    node: NodeDirectory,
    group: int,
    *,
    config: LogConfig,
    ports: Ports,
    rpc_addr: str,
    bootstrap: bool,
    is_new: bool = False,
    level_max: int = LEVEL,
) -> Opened:
    """Opens a log in a node's directory, or makes it where there is none.

    `bootstrap` begins a cluster of one if the node belongs to none; else it is without effect. A
    node of a cluster has its logs, unless this one `is_new` there. `level_max` is the latest level
    (see `settings`) that this version can compute.

    Raises CorruptionError, UnknownFormat, DiskFull, OSError, and ConfigurationError if the log is
    another node's.
    """
    assert node.identity.cluster_id or not is_new, "a node without a cluster makes its first log"
    if node.rebirth is not None:
        command = f"proglog {node.rebirth.command} {node.path}"
        raise ConfigurationError(f"{command} was cut off: run it again", setting="data-dir")
    folder = group_folder(node.path, group)
    with _telling_where(folder, config.segment_bytes), contextlib.ExitStack() as undo:
        check_seal(ports.files, folder, group, node.identity, is_new=is_new)
        ports.files.mkdir(folder)
        replay = _Replay(folder, level_max)
        recovered = recover(
            ports.files,
            folder,
            segment_bytes=config.segment_bytes,
            segment_batches=config.segment_batches,
            group=group,
            replay=replay,
        )
        undo.callback(recovered.close)
        replay.hand_over(recovered)
        hard_state = _hard_state(ports, folder, group, node.identity)
        undo.callback(hard_state.close)
        if bootstrap and not hard_state.seal.cluster_id and node.beginning is None:
            node.intend(_alone(node.identity, group, rpc_addr, ports))
        if node.beginning is not None and node.beginning.group == group:
            _begin_cluster(node.beginning, node, recovered, hard_state)
        elif node.identity.cluster_id != hard_state.seal.cluster_id:
            node.adopt(hard_state.seal.cluster_id)
        configurations = _configurations(recovered, replay)
        memory = floors.load(ports.files, folder)
        node.begin_life()
        undo.pop_all()
    return Opened(
        folder=folder,
        node=node,
        recovered=recovered,
        hard_state=hard_state,
        state=replay.state,
        applied=replay.applied,
        configurations=configurations,
        memory=memory,
    )


def look_into(
    files: Files, folder: Path, group: int, config: LogConfig
) -> tuple[Recovered, list[tuple[int, Configuration]]]:
    """A log as `open_log` finds it, or a new one, and the configurations in it. Raises as that."""
    with contextlib.ExitStack() as undo:
        replay = _Replay(folder)
        recovered = recover(
            files,
            folder,
            segment_bytes=config.segment_bytes,
            segment_batches=config.segment_batches,
            group=group,
            replay=replay,
        )
        undo.callback(recovered.close)
        replay.hand_over(recovered)
        configurations = _configurations(recovered, replay)
        undo.pop_all()
    return recovered, configurations


class _Replay:
    """Applies the committed batches of the active segment while recovery verifies them, and keeps
    those that are not known to be committed: so nothing of it is read a second time."""

    def __init__(self, folder: Path, level_max: int = LEVEL) -> None:
        self._folder = folder
        self.state = ReplicatedState(level_max=level_max)
        self.applied = 0
        self.configurations: list[tuple[int, Configuration]] = []
        """Those of the active segment that are not part of the state."""
        self._commit = 0
        self._begun = False
        self._tail: deque[TailEntry] = deque()
        self._tail_bytes = 0

    def begin(self, snapshot: Snapshot | None, commit: int) -> None:
        self._begun = True
        self._commit = commit
        if snapshot is not None:
            path = snapshot_path(self._folder, snapshot.tip.index)
            self.state = ReplicatedState.decode(snapshot.state, path, self.state.level_max)
            self.applied = snapshot.tip.index

    def batch(self, header: BatchHeader, data: memoryview) -> None:
        body = data[HEADER_BYTES:]
        if header.index == self.applied + 1 and header.index <= self._commit:
            self.state.apply(header, body)
            self.applied = header.index
            return
        if header.kind == Kind.COMMAND and header.index > self.applied:
            # Held by a newer version that ran here before: this one must not acknowledge it.
            commands.decode(body, header.index, self.state.level_max)
        if header.index > self.applied and header.kind == Kind.CONFIGURATION:
            self.configurations.append((header.index, Configuration.decode(bytes(body))))
        if header.index > self._commit:
            self._keep(TailEntry(header, (bytes(data),)))

    def _keep(self, entry: TailEntry) -> None:
        self._tail.append(entry)
        self._tail_bytes += entry.header.size
        while self._tail_bytes > limits.tail_bytes_max:
            self._tail_bytes -= self._tail.popleft().header.size

    def hand_over(self, recovered: Recovered) -> None:
        """To the log, what was kept for it."""
        if not self._begun:
            self.begin(recovered.snapshot, recovered.commit_hint)
        recovered.snapshot = None
        recovered.tail = list(self._tail)
        self._tail.clear()


def _hard_state(ports: Ports, folder: Path, group: int, identity: Identity) -> HardStateFile:
    if HardStateFile.exists(ports.files, folder):
        return HardStateFile(ports.files, folder)
    # Recovery has made sure that the log is a new one.
    return HardStateFile.create(ports.files, folder, group, identity, HardState())


@contextlib.contextmanager
def _telling_where(folder: Path, segment_bytes: int) -> Iterator[None]:
    """An error of a call on an open file does not say where it was."""
    try:
        yield
    except OSError as error:
        if error.errno in REFUSALS:
            raise DiskFull(
                f"no space to open the log in {folder}: {error.strerror}. A new log takes a "
                f"segment of {segment_bytes} bytes at once and reserves the next: free space, or "
                "choose a smaller --segment-bytes"
            ) from error
        error.filename = error.filename or str(folder)
        raise


def first_batch(configuration: bytes, timestamp: int) -> tuple[BatchHeader, bytes, Buffer]:
    """The batch at index 1 of a new cluster: header, its bytes, body."""
    body = batches.plain_body(configuration)
    header, packed = batches.build(
        body,
        kind=Kind.CONFIGURATION,
        index=1,
        term=FIRST_TERM,
        base_offset=0,
        timestamp=timestamp,
        chain_crc=0,
    )
    return header, packed, body.data


def _alone(identity: Identity, group: int, rpc_addr: str, ports: Ports) -> Begin:
    """A cluster in which this server is the only voter."""
    configuration = Configuration((Server(identity.uuid, identity.name, rpc_addr),))
    text = configuration.encode().decode()
    return Begin(group, new_id(ports.random), text, ports.clock.now_ms())


def _begin_cluster(
    begin: Begin, node: NodeDirectory, recovered: Recovered, hard_state: HardStateFile
) -> None:
    """Does what is left of it: the term, then the first batch, then it is done."""
    if recovered.tip.index == 0:
        hard_state.save(HardState(FIRST_TERM), begin.cluster_id)
        header, packed, body = first_batch(begin.configuration.encode(), begin.timestamp)
        segment = recovered.segments[-1]
        store = segment.open()
        store.pwritev([packed, body, fmt.END_OF_LOG], segment.index.end_position)
        store.fdatasync()
        segment.index.append(header)
        recovered.commit_hint = 1
    node.has_begun(begin)


def _configurations(recovered: Recovered, replay: _Replay) -> list[tuple[int, Configuration]]:
    """The one of the state, then those that follow it in the log."""
    applied, state = replay.applied, replay.state
    found = [(state.configuration_index, state.configuration)] if applied else []
    *sealed, active = recovered.segments
    for segment in sealed:
        if segment.last_index > applied:
            found += _configurations_of(segment, applied)
    if not replay.configurations and active.last_index == 1 and applied == 0:
        # It was written just now.
        found += _configurations_of(active, applied)
    return found + replay.configurations


def _configurations_of(segment: Segment, applied: int) -> Iterator[tuple[int, Configuration]]:
    """Those of a segment that stand after batch `applied`."""
    for slot in range(max(applied + 1 - segment.first_index, 0), len(segment.index)):
        if segment.index.kind(slot) == Kind.CONFIGURATION:
            position = segment.index.position(slot)
            size = segment.index.position(slot + 1) - position
            index = segment.first_index + slot
            data = segment.read(size, position)
            try:
                if isinstance(data, Damage):
                    raise segment.damaged(data, index)
                segment.check(data, position, index)
            except RangeCorrupt as error:
                raise CorruptionError(
                    f"{error}. It is a change of the cluster's members, and no snapshot holds "
                    "it yet: this server does not know who could mend it. Replace it",
                    file=segment.store_path,
                    position=position,
                ) from None
            yield index, Configuration.decode(data[HEADER_BYTES:])
