"""Whose a data directory is: the lock on it, and the file `node` at its top.

The file belongs to the node, not to a log: every log in the directory is that node's, and the hard
state of each names it, as a seal. `incarnation` counts the lives of the node. It is raised on disk,
in both copies, before the first replica is made, which may speak to others: no two lives that
anybody hears of bear one number. A start that is refused is none, and changes nothing.

The file is the first thing that a new directory gets and `groups/` comes after it, so where there
are logs and no file, it was lost. Whatever writes both goes the same way round: first the hard
state, which says what a server promised, then this file, which the next start completes from it.
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from proglog.errors import ConfigurationError, CorruptionError, DiskFull, clip
from proglog.log.envelope import NODE
from proglog.log.names import DEFAULT_GROUP, GROUPS, HARD_STATE, group_folder
from proglog.log.plan import Entry, Verdict
from proglog.log.reading import Damage, Reading
from proglog.log.segment import REFUSALS
from proglog.log.twin import TwinFile, TwinState, pack_members, parse_members, read_twin
from proglog.ports import Files, Offload, Ports, RealFiles
from proglog.raft.hard_state import HardStateFile, Identity, Seal, new_id

FILE_NAME = "node"
EVIDENCE_BYTES_MAX = 1000
LOST = (
    "this directory does not say any more whose it is, so the node does not know what it promised. "
    "Restore the file, or remove the node from its cluster and start it anew with an empty "
    "directory"
)


class Begin(NamedTuple):
    """A cluster that this node is about to begin: everything that its first batch is made of. It is
    in the file before the first term is, so that a start that finds it does the same again,
    whatever was done of it. Without it an empty log leads nobody."""

    group: int
    cluster_id: str
    configuration: str
    """As it is encoded."""
    timestamp: int


class Rebirth(NamedTuple):
    """A new identity that this node is about to take: see `proglog.replica.renewal`."""

    uuid: str
    cluster_id: str
    recovers: str | None = None
    """The configuration of the cluster that goes on from this node's log, if that is what for."""

    @property
    def command(self) -> str:
        """What does it."""
        return "renew" if self.recovers is None else "recover"


class NodeDirectory:
    """A data directory that is locked, and the file `node` in it. Close it after its logs."""

    def __init__(
        self, path: Path, members: dict[str, Any], file: TwinFile, unlock: Callable[[], None]
    ) -> None:
        self.path = path
        self._members = members
        self._file = file
        self._unlock = unlock
        self._lives = False

    @property
    def identity(self) -> Identity:
        """Who the node is. Without a cluster id it belongs to none yet."""
        return _identity(self._members)

    @property
    def incarnation(self) -> int:
        """Which life of this node the present one is, once it has begun."""
        return int(self._members["incarnation"])

    @property
    def doubts(self) -> str:
        """Why this node takes part in nothing, for people; empty if nothing speaks against it."""
        return str(self._members.get("evidence", ""))

    def doubt(self, why: str) -> None:
        """Durably takes part in nothing from now on. May wait for the disk, raises OSError."""
        evidence = clip(why, EVIDENCE_BYTES_MAX)
        self._save({**self._members, "state": "suspect", "evidence": evidence})

    @property
    def beginning(self) -> Begin | None:
        """The cluster that this node was about to begin, if that is not known to be done."""
        begin = self._members.get("intent", {}).get("begin")
        return None if begin is None else Begin(**begin)

    def intend(self, begin: Begin) -> None:
        """Durably; from here on there is no way back. May wait for the disk, raises OSError."""
        assert self.identity.cluster_id in {"", begin.cluster_id}
        self._save({**self._members, "intent": {"begin": begin._asdict()}})

    def has_begun(self, begin: Begin) -> None:
        """Its first batch is durable. May wait for the disk, raises OSError."""
        members = {**self._members, "cluster_id": begin.cluster_id}
        members.pop("intent", None)
        self._save(members)

    @property
    def rebirth(self) -> Rebirth | None:
        """The identity that this node was about to take; until it has, it must not start."""
        rebirth = self._members.get("intent", {}).get("rebirth")
        return None if rebirth is None else Rebirth(**rebirth)

    def intend_rebirth(self, rebirth: Rebirth) -> None:
        """Durably; from here on there is no way back. May wait for the disk, raises OSError."""
        if self.rebirth != rebirth:
            self._save({**self._members, "intent": {"rebirth": rebirth._asdict()}})

    def reborn(self, rebirth: Rebirth) -> None:
        """All its logs are those of the new server. May wait for the disk, raises OSError."""
        old = self._members
        members = {name: old[name] for name in old if name not in {"intent", "state", "evidence"}}
        identity = {"uuid": rebirth.uuid, "cluster_id": rebirth.cluster_id, "incarnation": 0}
        self._save({**members, **identity})

    def adopt(self, cluster_id: str) -> None:
        """Durably belongs to a cluster from now on. May wait for the disk, raises OSError."""
        assert self.identity.cluster_id in {"", cluster_id}, "a node never changes its cluster"
        self._save({**self._members, "cluster_id": cluster_id})

    def release(self) -> None:
        """Durably belongs to none any more: the cluster that it promised to join never was."""
        self._save({**self._members, "cluster_id": ""})

    def begin_life(self) -> None:
        """Before this process says anything to others as this node. May wait for the disk, raises
        OSError."""
        if not self._lives:
            self._save({**self._members, "incarnation": self.incarnation + 1})
            self._lives = True

    def _save(self, members: dict[str, Any]) -> None:
        self._file.save(pack_members(members))
        self._members = members

    def close(self) -> None:
        self._file.close()
        self._unlock()


async def open_node(data_dir: Path, *, node_name: str, ports: Ports) -> NodeDirectory:
    """As `open_node_directory`, off the loop."""
    opening = Offload(ports.worker("proglog-opening"))
    try:
        return await opening.run(
            lambda: open_node_directory(data_dir, node_name=node_name, ports=ports)
        )
    finally:
        opening.stop()


def open_node_directory(data_dir: Path, *, node_name: str, ports: Ports) -> NodeDirectory:
    """Locks a data directory and reads whose it is; makes one where there is none. May wait for the
    disk.

    An empty `node_name` is the directory's, or the host's for a new one.

    Raises CorruptionError, UnknownFormat, DiskFull, OSError, and ConfigurationError if it is in
    use, another node's, or part of another directory.
    """
    files = ports.files
    try:
        _refuse_inside_of_a_log(files, data_dir)
        files.mkdir(data_dir)
        unlock = _lock(files, data_dir)
        try:
            directory = _open_locked(data_dir, node_name, ports, unlock)
        except BaseException:
            unlock()
            raise
    except OSError as error:
        if error.errno in REFUSALS:
            raise DiskFull(
                f"no space to open {data_dir}: {error.strerror}. Free some, or choose another "
                "--data-dir"
            ) from error
        # That of a call on an open file does not say where it was.
        error.filename = error.filename or str(data_dir)
        raise
    return directory


def _open_locked(
    data_dir: Path, node_name: str, ports: Ports, unlock: Callable[[], None]
) -> NodeDirectory:
    files, path = ports.files, data_dir / FILE_NAME
    state = _read(files, data_dir)
    if state is None:
        members = {
            "cluster": "",
            "cluster_id": "",
            "created": ports.clock.now_ms(),
            "incarnation": 0,
            "journal": 0,
            "labels": {},
            "name": node_name or socket.gethostname(),
            "uuid": new_id(ports.random),
        }
        file = TwinFile.create(files, path, NODE, pack_members(members))
        return NodeDirectory(data_dir, members, file, unlock)
    if state.payload is None:
        raise CorruptionError(
            f"{state.damages[0]}; {LOST}", file=path, position=state.damages[0].position
        )
    members = parse_members(state.payload, path)
    if node_name not in {"", members["name"]}:
        raise ConfigurationError(
            f"{data_dir} belongs to node {members['name']}, not {node_name}: "
            "start it under that name, or with another --data-dir",
            setting="node-name",
        )
    return NodeDirectory(data_dir, members, TwinFile(files, path, NODE, state), unlock)


def _identity(members: dict[str, Any]) -> Identity:
    return Identity(members["cluster_id"], members["uuid"], members["name"])


def _read(files: Files, data_dir: Path) -> TwinState | None:
    """What the file holds; None where there is none and never was."""
    path = data_dir / FILE_NAME
    if not files.exists(path) and not files.exists(data_dir / GROUPS):
        return None
    return read_twin(Reading(files, writable=False), path, NODE)


def _refuse_inside_of_a_log(files: Files, data_dir: Path) -> None:
    """Somebody may name the directory of a log, or that of all logs, for the data directory: a new
    log in there would look like a node that has lost everything."""
    for place in (data_dir, data_dir / group_folder(data_dir, DEFAULT_GROUP).name):
        if files.exists(place) and any(name.endswith(".store") for name in files.listdir(place)):
            raise ConfigurationError(
                f"{data_dir} is no data directory but part of one: there is a log in {place}. "
                f"Name the directory that holds {GROUPS}/, or a new one",
                setting="data-dir",
            )


def _lock(files: Files, data_dir: Path) -> Callable[[], None]:
    try:
        return files.lock(data_dir)
    except BlockingIOError:
        raise ConfigurationError(
            f"{data_dir} is in use by another process: stop it first, or choose another --data-dir",
            setting="data-dir",
        ) from None


# --- the seal on a log ---------------------------------------------------------------------------


def check_seal(
    files: Files, folder: Path, group: int, identity: Identity, *, is_new: bool = False
) -> None:
    """Before anything of a log is touched: it is this node's, and there if it is not `is_new`.

    Raises ConfigurationError if it is another's, and CorruptionError if the node had one that is
    gone.
    """
    seal = HardStateFile.peek(files, folder)
    if seal is not None and (why := _why_foreign(seal, group, identity)):
        raise ConfigurationError(f"{folder} {why}", setting="data-dir")
    if identity.cluster_id and not is_new and not HardStateFile.exists(files, folder):
        raise CorruptionError(_lost_log(folder), file=folder / HARD_STATE, position=0)


def _why_foreign(seal: Seal, group: int, identity: Identity) -> str:
    """Why a log is not this node's; empty if it is."""
    back = "Put each log's folder back into the data directory that it was made in"
    if seal.node != identity.uuid:
        return (
            f"is the log of another node: it was made by {seal.node}, and this directory is that "
            f"of {identity.name}, {identity.uuid}. {back}"
        )
    if seal.group != group:
        return f"is the folder of log {seal.group}, not of {group}. {back}"
    # Both may be without one, and the node alone, for it is told last.
    if identity.cluster_id not in {"", seal.cluster_id}:
        return (
            f"belongs to cluster {seal.cluster_id or '(none)'}, and its node to "
            f"{identity.cluster_id}. {back}"
        )
    return ""


def _lost_log(folder: Path) -> str:
    return (
        f"{folder / HARD_STATE} is missing, though its node belongs to a cluster: this server does "
        "not know what it promised. Restore the log, or remove the server from its cluster and "
        "start it anew with an empty directory"
    )


# --- looking -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeReport:
    """What `verify_node` saw."""

    file: Path
    entries: tuple[Entry, ...]

    @property
    def is_damaged(self) -> bool:
        """Whether the node does not start."""
        return any(entry.verdict is Verdict.REFUSED for entry in self.entries)


def verify_node(data_dir: Path, files: Files | None = None) -> NodeReport:
    """Looks at the file `node`, and at how the log belongs to it. The node must be stopped. Needs
    no write access. Raises ConfigurationError if it is in use, UnknownFormat, OSError."""
    files = files or RealFiles()
    try:
        unlock = files.lock(data_dir, shared=True)
    except BlockingIOError:
        raise ConfigurationError(f"{data_dir} is in use: stop its node first") from None
    try:
        entries = _look_at_node(files, data_dir)
    finally:
        unlock()
    return NodeReport(file=data_dir / FILE_NAME, entries=tuple(entries))


def _look_at_node(files: Files, data_dir: Path) -> list[Entry]:
    path = data_dir / FILE_NAME
    state = _read(files, data_dir)
    if state is None:
        return []
    if state.payload is None:
        return [_entry(damage, Verdict.REFUSED, LOST) for damage in state.damages]
    members = parse_members(state.payload, path)
    entries = [
        _entry(damage, Verdict.REWRITTEN, "the other copy is whole") for damage in state.damages
    ]
    folder = group_folder(data_dir, DEFAULT_GROUP)
    try:
        check_seal(files, folder, DEFAULT_GROUP, _identity(members))
    except (ConfigurationError, CorruptionError) as error:
        path = folder / HARD_STATE
        damage = Damage(path, 0, str(error).removeprefix(f"{path} "))
        entries.append(_entry(damage, Verdict.REFUSED, ""))
    return entries


def _entry(damage: Damage, verdict: Verdict, then: str) -> Entry:
    what = f"{damage.why}; {then}" if then else damage.why
    return Entry(file=damage.path, position=damage.position, what=what, verdict=verdict)
