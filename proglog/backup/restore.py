"""From a backup to a data directory: a new cluster of one server, with all records in place."""

from __future__ import annotations

import asyncio
from functools import partial
from pathlib import Path

from proglog import batch as batches
from proglog import limits
from proglog.backup.contents import Contents, Refused, load
from proglog.backup.contents import batches as batches_of
from proglog.backup.place import Place
from proglog.batch import HEADER_BYTES, BatchHeader, Body, Kind
from proglog.config import LogConfig
from proglog.errors import DiskFull
from proglog.log import snapshot as snapshots
from proglog.log.envelope import MANIFEST
from proglog.log.format import Tip
from proglog.log.log import Log
from proglog.log.manifest import Change, Manifest
from proglog.log.names import DEFAULT_GROUP, group_folder
from proglog.log.names import MANIFEST as MANIFEST_NAME
from proglog.log.operations import Group
from proglog.log.twin import TwinFile
from proglog.ports import Offload, Ports
from proglog.raft.configuration import Configuration, Server
from proglog.raft.hard_state import HardStateFile, new_id
from proglog.raft.messages import HardState
from proglog.replica.identity import NodeDirectory, open_node_directory
from proglog.replica.opening import FIRST_TERM, Opened, open_log
from proglog.replica.state import ReplicatedState

_BEGINNING = 1
"""Index of the snapshot that the log begins with."""


async def verify(place: Place) -> Contents:
    """Reads every byte. Raises Refused, OSError."""
    contents = await load(place)
    if contents is None:
        raise Refused(f"there is no backup in {place}")
    async for _ in batches_of(place, contents):
        pass
    return contents


async def restore(place: Place, data_dir: Path, *, node_name: str, ports: Ports) -> Contents:
    """Makes the directory. The backup is read twice: nothing is made of one that is damaged.

    Raises Refused, ProglogError, OSError.
    """
    contents = await verify(place)
    offload = Offload(ports.worker("proglog-restoring"))
    try:
        directory = await offload.run(partial(_begin, data_dir, node_name, contents, ports))
        try:
            await _fill(place, contents, directory, ports, offload)
        finally:
            await offload.run(directory.close)
    finally:
        offload.stop()
    return contents


def _begin(data_dir: Path, node_name: str, contents: Contents, ports: Ports) -> NodeDirectory:
    files = ports.files
    if files.exists(data_dir) and set(files.listdir(data_dir)) - {"lost+found"}:
        raise Refused(f"{data_dir} is not empty: a restore makes a new directory")
    directory = open_node_directory(data_dir, node_name=node_name, ports=ports)
    try:
        directory.adopt(new_id(ports.random))
        folder = group_folder(data_dir, DEFAULT_GROUP)
        files.mkdir(folder)
        HardStateFile.create(
            files, folder, DEFAULT_GROUP, directory.identity, HardState(FIRST_TERM)
        ).close()
        tip = Tip(_BEGINNING, FIRST_TERM, contents.first, 0, 0)
        snapshots.write(files, folder, snapshots.Snapshot(tip, _state(directory, contents)))
        # The start ends the change: the log begins behind the snapshot.
        manifest = Manifest(DEFAULT_GROUP, change=Change.RESET, tip=tip)
        TwinFile.create(files, folder / MANIFEST_NAME, MANIFEST, manifest.pack()).close()
        files.sync_directory(folder)
    except BaseException:
        directory.close()
        raise
    return directory


def _state(directory: NodeDirectory, contents: Contents) -> bytes:
    state = ReplicatedState()
    state.start_offset = contents.first
    identity = directory.identity
    state.configuration = Configuration((Server(identity.uuid, identity.name, ""),))
    state.configuration_index = _BEGINNING
    return state.encode()


class _Events:
    """What the log tells: when it is durable, and that it failed."""

    def __init__(self) -> None:
        self.moved = asyncio.Event()
        self.failure: BaseException | None = None

    def durable(self, index: int) -> None:
        del index
        self.moved.set()

    def group_written(self, group: Group) -> None: ...

    def sealed(self, last: Tip) -> None: ...

    def failed(self, error: BaseException) -> None:
        self.failure = error
        self.moved.set()


async def _fill(
    place: Place, contents: Contents, directory: NodeDirectory, ports: Ports, offload: Offload
) -> None:
    config, events = LogConfig(), _Events()
    opened: Opened = await offload.run(
        partial(
            open_log,
            directory,
            DEFAULT_GROUP,
            config=config,
            ports=ports,
            rpc_addr="",
            bootstrap=False,
        )
    )
    opened.hard_state.close()
    log = Log(opened.folder, opened.recovered, config, ports, events, offload)
    try:
        async for header, batch in batches_of(place, contents):
            await _append(log, header, batch)
            log.set_commit(log.tip.index)
            while log.tip.index - log.durable_index > limits.restore_batches_ahead_max:
                await _wait(events)
        while log.durable_index < log.tip.index:
            await _wait(events)
    finally:
        await log.close()


async def _wait(events: _Events) -> None:
    if events.failure is not None:
        raise events.failure
    events.moved.clear()
    await events.moved.wait()
    if events.failure is not None:
        raise events.failure


async def _append(log: Log, header: BatchHeader, batch: bytes) -> None:
    """The same batch at its place in the new log: what records are, and what producers sent, stays;
    where it stands is new."""
    data = batch[HEADER_BYTES:]
    placed, packed = batches.build(
        Body(header.codec, header.columns, header.count, header.body_crc, data),
        kind=Kind(header.kind),
        index=log.tip.index + 1,
        term=FIRST_TERM,
        base_offset=header.base_offset,
        timestamp=header.timestamp,
        chain_crc=log.tip.chain,
        producer_id=header.producer_id,
        sequence=header.sequence,
    )
    if not log.has_room(placed.size):
        await log.make_room(placed.size)
        if not log.has_room(placed.size):
            raise DiskFull(f"no space for the batch at offset {header.base_offset}")
    log.append(placed, (packed, data))
