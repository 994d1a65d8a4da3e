"""Offline: what is in a log's directory, every byte of it checked. Changes nothing."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from proglog.errors import ConfigurationError
from proglog.log import format as fmt
from proglog.log import names as naming
from proglog.log.analysis import analyse
from proglog.log.manifest import Manifest
from proglog.log.plan import Entry, Plan, Verdict
from proglog.ports import Files, RealFiles


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What `verify` saw."""

    folder: Path
    segments: int
    batches: int
    records: int
    bytes: int
    entries: tuple[Entry, ...]

    @property
    def is_damaged(self) -> bool:
        """Whether records cannot be read, or the node does not start."""
        bad = {Verdict.UNREADABLE, Verdict.REFUSED}
        return any(entry.verdict in bad for entry in self.entries)


def verify(folder: Path, files: Files | None = None) -> Report:
    """Reads everything in a log's directory. The node must be stopped. Needs no write access.

    Raises ConfigurationError if it is in use or no log's directory, UnknownFormat, OSError.
    """
    files = files or RealFiles()
    with locked(files, folder, shared=True):
        return report_of(analyse_thoroughly(files, folder))


def analyse_thoroughly(files: Files, folder: Path, begun: Manifest | None = None) -> Plan:
    """The plan for all of a directory, which must be locked; `begun` as of `analyse`."""
    with_hard_state = naming.HARD_STATE in files.listdir(folder) or _is_of_node(folder)
    return analyse(
        files,
        folder,
        group=naming.group_of(folder),
        thorough=True,
        with_hard_state=with_hard_state,
        begun=begun,
    )


def _is_of_node(folder: Path) -> bool:
    return folder.parent.name == naming.GROUPS


def report_of(plan: Plan) -> Report:
    """A plan as people and programs read it."""
    indexes = [found.index for found in plan.segments]
    return Report(
        folder=plan.folder,
        segments=len(indexes),
        batches=sum(len(index) for index in indexes),
        records=sum(index.last.next_offset - index.before.next_offset for index in indexes),
        bytes=sum(index.end_position - fmt.PREAMBLE_BYTES for index in indexes),
        entries=tuple(plan.entries),
    )


@contextlib.contextmanager
def locked(files: Files, folder: Path, *, shared: bool = False) -> Iterator[None]:
    """No node, and nobody who repairs, has the directory meanwhile."""
    names = files.listdir(folder) if files.exists(folder) else []
    if naming.MANIFEST not in names and not naming.stores(names):
        raise ConfigurationError(
            f"{folder} is no log's directory: there are no segments in it. A node keeps its log in "
            f"{naming.group_folder(Path('<data-dir>'), naming.DEFAULT_GROUP)}",
            setting="DIR",
        )
    try:
        unlock = files.lock(naming.node_folder(folder), shared=shared)
    except BlockingIOError:
        raise ConfigurationError(f"{folder} is in use: stop its node first") from None
    try:
        yield
    except OSError as error:
        # An error of a call on an open file does not say where it was.
        error.filename = error.filename or str(folder)
        raise
    finally:
        unlock()
