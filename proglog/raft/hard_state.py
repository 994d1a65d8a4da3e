"""Term and vote: what a server must never forget, in a file that keeps two copies.

It names the node, the cluster and the log that it belongs to, as a seal: the promises of another
server are not this one's.

A save writes and syncs one copy, then the other. One that is damaged is rewritten from the other
before anything else happens; both damaged means that this server may have promised what it does not
know any more: it must not start.
"""

from __future__ import annotations

import random
import uuid
from pathlib import Path
from typing import Any, NamedTuple

from proglog.errors import CorruptionError
from proglog.log.envelope import HARD_STATE
from proglog.log.names import HARD_STATE as FILE_NAME
from proglog.log.reading import Reading
from proglog.log.twin import TwinFile, pack_members, parse_members, read_twin
from proglog.ports import Files
from proglog.raft.messages import HardState


class Identity(NamedTuple):
    """Who a node is. Ids are UUIDs as text; the name is for people."""

    cluster_id: str
    uuid: str
    name: str


class Seal(NamedTuple):
    """Whose promises these are: of which node, as a server of which log, in which cluster."""

    group: int
    cluster_id: str
    node: str


def new_id(chance: random.Random) -> str:
    """A random UUID, as text."""
    return str(uuid.UUID(int=chance.getrandbits(128), version=4))


class HardStateFile:
    """Reads once when made; afterwards only writes. All methods may wait for the disk."""

    def __init__(self, files: Files, folder: Path) -> None:
        """Opens an existing file and rewrites a damaged copy of it.

        Raises CorruptionError, UnknownFormat, OSError.
        """
        path = folder / FILE_NAME
        state = read_twin(Reading(files, writable=False), path, HARD_STATE)
        if state.payload is None:
            raise CorruptionError(
                f"{state.damages[0]}; no copy is whole, so this server does not know what it "
                "promised. Remove it from its cluster and start it anew with an empty directory",
                file=path,
                position=state.damages[0].position,
            )
        self._members = parse_members(state.payload, path)
        self._file = TwinFile(files, path, HARD_STATE, state)
        self._sequence = state.sequence

    @property
    def seal(self) -> Seal:
        return _seal(self._members)

    @property
    def sequence(self) -> int:
        """Counts what was saved; only grows. Of what is durable."""
        return self._sequence

    @property
    def hard_state(self) -> HardState:
        return HardState(self._members["term"], self._members["voted_for"])

    @staticmethod
    def exists(files: Files, folder: Path) -> bool:
        return files.exists(folder / FILE_NAME)

    @staticmethod
    def peek(files: Files, folder: Path) -> Seal | None:
        """The seal of a file that is not opened; None where there is none that is whole.

        Raises UnknownFormat.
        """
        path = folder / FILE_NAME
        if not files.exists(path):
            return None
        payload = read_twin(Reading(files, writable=False), path, HARD_STATE).payload
        return None if payload is None else _seal(parse_members(payload, path))

    @staticmethod
    def create(
        files: Files, folder: Path, group: int, identity: Identity, hard_state: HardState
    ) -> HardStateFile:
        """Makes the file of a new server, durably; it appears whole or not at all."""
        members = {
            "group": group,
            "journal": 0,
            "cluster": identity.cluster_id,
            "node": identity.uuid,
            "term": hard_state.term,
            "voted_for": hard_state.voted_for,
        }
        TwinFile.create(files, folder / FILE_NAME, HARD_STATE, pack_members(members)).close()
        return HardStateFile(files, folder)

    def save(self, hard_state: HardState, cluster_id: str | None = None) -> None:
        """Makes a new term and vote durable. Raises OSError."""
        members = {**self._members, "term": hard_state.term, "voted_for": hard_state.voted_for}
        if cluster_id is not None:
            members["cluster"] = cluster_id
        self._sequence = self._file.save(pack_members(members))
        self._members = members

    def close(self) -> None:
        self._file.close()


def _seal(members: dict[str, Any]) -> Seal:
    return Seal(members["group"], members["cluster"], members["node"])
