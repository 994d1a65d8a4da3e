"""A stopped node becomes a new server: `proglog renew`, and `proglog recover` for a cluster whose
majority is lost for good.

What a server promised is dead with its uuid. What is on its disk may come back under a new one: a
new server has promised nothing, and what it acknowledges is compared with the log of its leader
first. So only the log stays, as a hint: nothing of it is held to be committed, since a server that
led where it should not have may have committed what its cluster never did.

Both are in the file `node` before anything else is changed, and done again from the beginning where
they were cut off: no node starts meanwhile.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from proglog import batch as batches
from proglog.batch import Kind
from proglog.config import LogConfig
from proglog.errors import ConfigurationError, CorruptionError
from proglog.log import changes
from proglog.log.names import (
    ASIDE,
    DEFAULT_GROUP,
    GROUPS,
    HARD_STATE,
    group_folder,
    group_of,
    snapshot_path,
    stores,
)
from proglog.log.recovery import Recovered
from proglog.log.verify import analyse_thoroughly, report_of
from proglog.ports import Files, Ports
from proglog.raft.configuration import Configuration, Server
from proglog.raft.hard_state import HardStateFile, Identity, new_id
from proglog.raft.messages import HardState
from proglog.replica import floors
from proglog.replica.identity import (
    FILE_NAME,
    NodeDirectory,
    Rebirth,
    open_node_directory,
)
from proglog.replica.opening import look_into


@dataclass(frozen=True, slots=True, kw_only=True)
class Renewed:
    """What became of a node."""

    name: str
    uuid: str
    cluster_id: str
    kept: int
    """Batches of its log that stay, to be compared with the cluster's."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Survivor:
    """What one node has of its cluster."""

    name: str
    uuid: str
    cluster_id: str
    last_term: int
    last_index: int
    known_commit: int
    servers: tuple[Server, ...]
    others: tuple[tuple[str, int], ...]
    """By name of another server: up to which committed batch that is known to have been there."""
    doubts: str

    @property
    def lost_at_least(self) -> int:
        """How many committed batches are known to be lost if this is the one that goes on."""
        return max([0, *(index - self.last_index for _, index in self.others)])


# --- renew ---------------------------------------------------------------------------------------


def renew(data_dir: Path, *, cluster_id: str = "", ports: Ports | None = None) -> Renewed:
    """Gives the node of a directory a new uuid. It is to join its cluster again, or the one of
    `cluster_id`, as a new server, and copies only what it lacks. May wait for the disk.

    Raises ConfigurationError if the directory is in use or none of a node's, or if nobody else has
    its records; CorruptionError, UnknownFormat, OSError.
    """
    ports = ports or Ports()
    node = _open(data_dir, ports)
    try:
        rebirth = node.rebirth or _renewal(node, cluster_id, ports)
        if rebirth.recovers is not None:
            raise _unfinished(rebirth, data_dir)
        node.intend_rebirth(rebirth)
        kept = 0
        for group, folder in _logs(ports.files, data_dir):
            last = _renew_log(ports.files, folder, group, _identity(node, rebirth))
            kept = last if group == DEFAULT_GROUP else kept
        node.reborn(rebirth)
        return Renewed(
            name=node.identity.name, uuid=rebirth.uuid, cluster_id=rebirth.cluster_id, kept=kept
        )
    finally:
        node.close()


def _renewal(node: NodeDirectory, cluster_id: str, ports: Ports) -> Rebirth:
    _refuse_the_only_one(node, cluster_id, ports.files)
    return Rebirth(new_id(ports.random), cluster_id or node.identity.cluster_id)


def _refuse_the_only_one(node: NodeDirectory, cluster_id: str, files: Files) -> None:
    """Nobody could give it its records back, or a vote. Unless others have said that it is old."""
    folder = group_folder(node.path, DEFAULT_GROUP)
    if node.doubts or cluster_id or not HardStateFile.exists(files, folder):
        return
    try:
        recovered, configurations = look_into(files, folder, DEFAULT_GROUP, LogConfig())
    except CorruptionError:
        return  # Then it is not known, and the log says nothing any more.
    recovered.close()
    servers = configurations[-1][1].servers if configurations else ()
    if [server.uuid for server in servers] == [node.identity.uuid]:
        raise ConfigurationError(
            f"{node.identity.name} is the only server of its cluster: no other has its records, so "
            "there is nobody to join",
            setting="DIR",
        )


def _renew_log(files: Files, folder: Path, group: int, identity: Identity) -> int:
    """Makes a log that of a new server; the last batch that it keeps."""
    term = _term_of(files, folder)
    if not _is_a_hint(files, folder):
        _drop(files, folder)
    try:
        recovered, _ = look_into(files, folder, group, LogConfig())
    except CorruptionError:
        _drop(files, folder)
        recovered, _ = look_into(files, folder, group, LogConfig())
    try:
        tip = recovered.tip
        _forget_commit(files, folder, recovered)
    finally:
        recovered.close()
    promise = HardState(max(term, tip.term))
    HardStateFile.create(files, folder, group, identity, promise).close()
    changes.unlink_if_there(files, folder / floors.FILE_NAME)
    files.sync_directory(folder)
    return tip.index


def _is_a_hint(files: Files, folder: Path) -> bool:
    """Only a log that is there from its first batch can be compared from end to end. What one that
    was compacted begins with is no hint: it would have to be believed."""
    firsts = stores(files.listdir(folder))
    return bool(firsts) and firsts[0] == 1


def _forget_commit(files: Files, folder: Path, recovered: Recovered) -> None:
    """Nothing of the log is known to be committed any more, and nothing was built from it."""
    segment = recovered.segments[-1]
    changes.end_store(
        segment.open(),
        recovered.tip,
        segment.index.end_position,
        sequence=recovered.mark_sequence,
        commit=0,
    )
    for index in recovered.snapshot_indexes:
        changes.unlink_if_there(files, snapshot_path(folder, index))


def _drop(files: Files, folder: Path) -> None:
    """Deletes a log, but not what was kept for people. The hard state first: without it what is
    left is nobody's."""
    names = [name for name in files.listdir(folder) if not name.startswith(ASIDE)]
    for name in sorted(names, key=lambda name: name != HARD_STATE):
        files.unlink(folder / name)
    files.sync_directory(folder)


def _term_of(files: Files, folder: Path) -> int:
    try:
        file = HardStateFile(files, folder)
    except (CorruptionError, FileNotFoundError):
        return 0
    file.close()
    return file.hard_state.term


# --- recover -------------------------------------------------------------------------------------


def look_at_survivor(data_dir: Path, ports: Ports | None = None) -> Survivor:
    """What a stopped node has, for whoever is to choose among several. Changes nothing but what a
    start changes as well. Raises as `renew`."""
    ports = ports or Ports()
    node = _open(data_dir, ports)
    try:
        return _survivor(node, ports.files)
    finally:
        node.close()


def _survivor(node: NodeDirectory, files: Files) -> Survivor:
    folder = group_folder(node.path, DEFAULT_GROUP)
    recovered, configurations = look_into(files, folder, DEFAULT_GROUP, LogConfig())
    recovered.close()
    servers = configurations[-1][1].servers if configurations else ()
    names = {server.uuid: server.name for server in servers}
    known = floors.load(files, folder).floors
    return Survivor(
        name=node.identity.name,
        uuid=node.identity.uuid,
        cluster_id=node.identity.cluster_id,
        last_term=recovered.tip.term,
        last_index=recovered.tip.index,
        known_commit=min(recovered.commit_hint, recovered.tip.index),
        servers=servers,
        others=tuple((names[uuid], known[uuid].index) for uuid in known if uuid in names),
        doubts=node.doubts,
    )


def recover(data_dir: Path, ports: Ports | None = None) -> Renewed:
    """Makes the node of a directory the only voter of a new cluster, which goes on where its log
    ends. May wait for the disk. Raises as `renew`."""
    ports = ports or Ports()
    node = _open(data_dir, ports)
    try:
        rebirth = node.rebirth or _recovery(node, ports)
        if rebirth.recovers is None:
            raise _unfinished(rebirth, data_dir)
        node.intend_rebirth(rebirth)
        last = 0
        for group, folder in _logs(ports.files, data_dir):
            end = _recover_log(ports.files, folder, group, _identity(node, rebirth), rebirth)
            last = end if group == DEFAULT_GROUP else last
        node.reborn(rebirth)
        return Renewed(
            name=node.identity.name, uuid=rebirth.uuid, cluster_id=rebirth.cluster_id, kept=last
        )
    finally:
        node.close()


def _recovery(node: NodeDirectory, ports: Ports) -> Rebirth:
    survivor = _survivor(node, ports.files)
    own = next((server for server in survivor.servers if server.uuid == survivor.uuid), None)
    if survivor.doubts:
        raise ConfigurationError(f"{survivor.doubts}", setting="DIR")
    if own is None:
        raise ConfigurationError(
            f"{survivor.name} is no server of a cluster, by its own log: there is nothing to "
            "recover here",
            setting="DIR",
        )
    folder = group_folder(node.path, DEFAULT_GROUP)
    report = report_of(analyse_thoroughly(ports.files, folder))
    if report.is_damaged:
        raise CorruptionError(
            f"the log of {survivor.name} is damaged: proglog verify {node.path} says where, and "
            "another survivor may be whole",
            file=folder,
            position=0,
        )
    uuid = new_id(ports.random)
    configuration = Configuration((replace(own, uuid=uuid),)).encode().decode()
    return Rebirth(uuid, new_id(ports.random), configuration)


def _recover_log(
    files: Files, folder: Path, group: int, identity: Identity, rebirth: Rebirth
) -> int:
    """Appends the configuration of the new cluster, in a term of its own: it is committed with
    everything before, since its only voter has it."""
    assert rebirth.recovers is not None
    recovered, configurations = look_into(files, folder, group, LogConfig())
    try:
        new = Configuration.decode(rebirth.recovers.encode())
        if configurations[-1][1] != new:
            _append(recovered, rebirth, max(_term_of(files, folder), recovered.tip.term) + 1)
        tip, segment = recovered.tip, recovered.segments[-1]
        changes.end_store(
            segment.open(),
            tip,
            segment.index.end_position,
            sequence=recovered.mark_sequence,
            commit=tip.index,
        )
    finally:
        recovered.close()
    HardStateFile.create(files, folder, group, identity, HardState(tip.term)).close()
    changes.unlink_if_there(files, folder / floors.FILE_NAME)
    files.sync_directory(folder)
    return tip.index


def _append(recovered: Recovered, rebirth: Rebirth, term: int) -> None:
    assert rebirth.recovers is not None
    body, tip = batches.plain_body(rebirth.recovers.encode()), recovered.tip
    header, packed = batches.build(
        body,
        kind=Kind.CONFIGURATION,
        index=tip.index + 1,
        term=term,
        base_offset=tip.next_offset,
        timestamp=tip.timestamp,  # One of another day might not fit into this segment.
        chain_crc=tip.chain,
    )
    segment = recovered.segments[-1]
    store = segment.open()
    store.pwritev([packed, body.data], segment.index.end_position)
    store.fdatasync()
    segment.index.append(header)


# --- both ----------------------------------------------------------------------------------------


def _open(data_dir: Path, ports: Ports) -> NodeDirectory:
    if not ports.files.exists(data_dir / FILE_NAME) and not ports.files.exists(data_dir / GROUPS):
        raise ConfigurationError(f"{data_dir} is no node's data directory", setting="DIR")
    return open_node_directory(data_dir, node_name="", ports=ports)


def _logs(files: Files, data_dir: Path) -> Iterator[tuple[int, Path]]:
    if files.exists(data_dir / GROUPS):
        for name in sorted(files.listdir(data_dir / GROUPS)):
            folder = data_dir / GROUPS / name
            if folder == group_folder(data_dir, group_of(folder)):
                yield group_of(folder), folder


def _identity(node: NodeDirectory, rebirth: Rebirth) -> Identity:
    return Identity(rebirth.cluster_id, rebirth.uuid, node.identity.name)


def _unfinished(rebirth: Rebirth, data_dir: Path) -> ConfigurationError:
    return ConfigurationError(
        f"{rebirth.command} of this directory was begun and cut off: run proglog {rebirth.command} "
        f"{data_dir} again",
        setting="DIR",
    )
