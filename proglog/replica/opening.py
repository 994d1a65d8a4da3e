"""From a directory to what a replica starts with. May wait for the disk.

Without being told otherwise, the first start begins a cluster of one, so that nothing has to be
migrated when it grows: cluster id and node uuid in the hard state, a configuration batch at index
1. A node that is to join a cluster begins without both, and waits to be called.
"""

from __future__ import annotations

import contextlib
import random
import socket
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from proglog import batch as batches
from proglog.batch import HEADER_BYTES, BatchHeader, Buffer, Kind
from proglog.config import LogConfig
from proglog.errors import ConfigurationError, CorruptionError, DiskFull, RangeCorrupt
from proglog.log import format as fmt
from proglog.log.recovery import Recovered, recover
from proglog.log.segment import NO_SPACE
from proglog.ports import Clock, Files, Ports
from proglog.raft.configuration import Configuration, Server
from proglog.raft.hard_state import FILE_NAME, HardStateFile, Identity
from proglog.raft.log_view import LogView
from proglog.raft.messages import HardState
from proglog.replica.state import ReplicatedState

FIRST_TERM = 1
"""Of the configuration batch that begins a cluster; elections begin behind it."""


@dataclass(slots=True, kw_only=True)
class Opened:
    """A directory that is ready to run. Everything in it is durable."""

    folder: Path
    recovered: Recovered
    hard_state: HardStateFile
    state: ReplicatedState
    """After batch `applied`."""
    applied: int
    configurations: list[tuple[int, Configuration]]
    """That of `state`, then those in the log behind it."""
    unlock: Callable[[], None]

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


def open_directory(
    folder: Path,
    *,
    config: LogConfig,
    ports: Ports,
    node_name: str,
    rpc_addr: str,
    bootstrap: bool,
) -> Opened:
    """Opens a log's directory, or makes one where there is none.

    An empty `node_name` is the directory's, or the host's for a new one. `bootstrap` begins a
    cluster of one if the node belongs to none; else it is without effect.

    Raises CorruptionError, DiskFull, OSError, and ConfigurationError if it is in use, another
    node's, or part of another log's.
    """
    with _telling_where(folder, config.segment_bytes), contextlib.ExitStack() as undo:
        _refuse_inside_of_a_log(ports.files, folder)
        ports.files.mkdir(folder)
        unlock = _lock(ports, folder)
        undo.callback(unlock)
        is_new = not HardStateFile.exists(ports.files, folder)
        recovered = recover(
            ports.files,
            folder,
            segment_bytes=config.segment_bytes,
            segment_batches=config.segment_batches,
            may_be_new=is_new,
        )
        undo.callback(recovered.close)
        hard_state = _hard_state(folder, ports, recovered, node_name, is_new=is_new)
        undo.callback(hard_state.close)
        _check_name(folder, hard_state.identity.name, node_name)
        if bootstrap and not hard_state.identity.cluster_id:
            hard_state.save(HardState(FIRST_TERM), cluster_id=new_id(ports.random))
        if recovered.tip.index == 0 and hard_state.hard_state == HardState(FIRST_TERM):
            # Also where the line above was the last thing that a first start did.
            _begin_cluster(ports, recovered, hard_state.identity, rpc_addr)
        applied, state = _newest_state(recovered)
        configurations = _configurations(recovered, state, applied)
        undo.pop_all()
    return Opened(
        folder=folder,
        recovered=recovered,
        hard_state=hard_state,
        state=state,
        applied=applied,
        configurations=configurations,
        unlock=unlock,
    )


def _hard_state(
    folder: Path, ports: Ports, recovered: Recovered, node_name: str, *, is_new: bool
) -> HardStateFile:
    if not is_new:
        return HardStateFile(ports.files, folder)
    _refuse_if_used(folder, recovered)
    identity = Identity("", new_id(ports.random), node_name or socket.gethostname())
    return HardStateFile.create(ports.files, folder, identity, HardState())


@contextlib.contextmanager
def _telling_where(folder: Path, segment_bytes: int) -> Iterator[None]:
    """An error of a call on an open file does not say where it was."""
    try:
        yield
    except OSError as error:
        if error.errno in NO_SPACE:
            raise DiskFull(
                f"no space to open the log in {folder}: {error.strerror}. A new log takes a "
                f"segment of {segment_bytes} bytes at once and reserves the next: free space, or "
                "choose a smaller --segment-bytes"
            ) from error
        error.filename = error.filename or str(folder)
        raise


def _refuse_inside_of_a_log(files: Files, folder: Path) -> None:
    """Somebody may name the directory of a log, or that of all logs, for the data directory: a new
    log in there would look like a node that has lost everything."""
    data_dir = folder.parent.parent
    for place in (data_dir, data_dir / folder.name):
        if files.exists(place) and any(name.endswith(".store") for name in files.listdir(place)):
            raise ConfigurationError(
                f"{data_dir} is no data directory but part of one: there is a log in {place}. "
                "Name the directory that holds logs/, or a new one",
                setting="data-dir",
            )


def _check_name(folder: Path, name: str, wanted: str) -> None:
    if wanted and name != wanted:
        raise ConfigurationError(
            f"{folder} belongs to node {name}, not {wanted}: "
            "start it under that name, or with another --data-dir",
            setting="node-name",
        )


def _lock(ports: Ports, folder: Path) -> Callable[[], None]:
    try:
        return ports.files.lock(folder / "lock")
    except BlockingIOError:
        raise ConfigurationError(
            f"{folder} is in use by another process: stop it first, or choose another --data-dir",
            setting="data-dir",
        ) from None


def _refuse_if_used(folder: Path, recovered: Recovered) -> None:
    # An empty log without its hard state is a first start that was interrupted; anything more has
    # voted and acknowledged under a name that is lost.
    if recovered.tip.index:
        raise CorruptionError(
            f"{folder / FILE_NAME} is missing, though there is a log: this server does not know "
            "what it promised. Restore the file, or remove the server from its cluster and start "
            "it anew with an empty directory",
            file=folder / FILE_NAME,
            position=0,
        )


def new_id(chance: random.Random) -> str:
    """A random UUID, as text."""
    return str(uuid.UUID(int=chance.getrandbits(128), version=4))


def first_batch(configuration: Configuration, clock: Clock) -> tuple[BatchHeader, bytes, Buffer]:
    """The batch at index 1 of a new cluster: header, its bytes, body."""
    body = batches.plain_body(configuration.encode())
    header, packed = batches.build(
        body,
        kind=Kind.CONFIGURATION,
        index=1,
        term=FIRST_TERM,
        base_offset=0,
        timestamp=clock.now_ms(),
        chain_crc=0,
    )
    return header, packed, body.data


def _begin_cluster(ports: Ports, recovered: Recovered, identity: Identity, rpc_addr: str) -> None:
    """Writes the first batch: this server is the only voter."""
    configuration = Configuration((Server(identity.uuid, identity.name, rpc_addr),))
    header, packed, body = first_batch(configuration, ports.clock)
    segment = recovered.segments[-1]
    segment.file.pwritev([packed, body, fmt.END_OF_LOG], segment.index.end_position)
    segment.file.fdatasync()
    segment.index.append(header)
    recovered.commit_hint = 1


def _newest_state(recovered: Recovered) -> tuple[int, ReplicatedState]:
    if not recovered.snapshots:
        return 0, ReplicatedState()
    newest = max(recovered.snapshots)
    return newest, ReplicatedState.decode(recovered.snapshots[newest].state)


def _configurations(
    recovered: Recovered, state: ReplicatedState, applied: int
) -> list[tuple[int, Configuration]]:
    found = [(state.configuration_index, state.configuration)] if applied else []
    for segment in recovered.segments:
        for slot in range(max(applied + 1 - segment.first_index, 0), len(segment.index)):
            if segment.index.kind(slot) == Kind.CONFIGURATION:
                position = segment.index.position(slot)
                size = segment.index.position(slot + 1) - position
                index = segment.first_index + slot
                data = segment.file.pread(size, position)
                try:
                    segment.check(data, position, index)
                except RangeCorrupt as error:
                    raise CorruptionError(
                        f"{error}. It is a change of the cluster's members, and no snapshot holds "
                        "it yet: this server does not know who could mend it. Replace it",
                        file=segment.store_path,
                        position=position,
                    ) from None
                found.append((index, Configuration.decode(data[HEADER_BYTES:])))
    return found
