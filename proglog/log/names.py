"""The names in a log's directory. What has none of these is left alone."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from proglog.ports import TEMPORARY

GROUPS = "groups"
"""In a node's directory: the logs, each in a folder that is named by its number."""
DEFAULT_GROUP = 2
"""The number of the log called `default`. 0 is the node, 1 the catalog of logs."""
MANIFEST = "manifest"
HARD_STATE = "hard-state"
"""Belongs to `proglog.raft`."""
RESERVED_STORE = "reserved.store"
RESERVED_INDEX = "reserved.index"
ASIDE = "aside-"
"""Begins the name of what was cut off and is kept for people."""

_GROUP = re.compile(r"[0-9a-f]{16}")
_STORE = re.compile(r"(\d{20})\.store")
_INDEX = re.compile(r"(\d{20})\.index")
_SNAPSHOT = re.compile(r"snapshot-(\d{20})")


def group_folder(data_dir: Path, group: int) -> Path:
    """The directory of a log."""
    return data_dir / GROUPS / f"{group:016x}"


def group_of(folder: Path) -> int:
    """The number of the log whose directory this is."""
    return int(folder.name, 16) if _GROUP.fullmatch(folder.name) else DEFAULT_GROUP


def node_folder(folder: Path) -> Path:
    """The directory that whoever uses a log's locks: its node's, or its own if it is in none."""
    return folder.parent.parent if folder.parent.name == GROUPS else folder


def store_name(first_index: int) -> str:
    return f"{first_index:020d}.store"


def index_name(first_index: int) -> str:
    return f"{first_index:020d}.index"


def snapshot_name(index: int) -> str:
    return f"snapshot-{index:020d}"


def snapshot_path(folder: Path, index: int) -> Path:
    return folder / snapshot_name(index)


def stores(names: Iterable[str]) -> list[int]:
    """First indexes of the segments among these names, ascending."""
    return _numbers(_STORE, names)


def indexes(names: Iterable[str]) -> list[int]:
    """First indexes of the index files among these names, ascending."""
    return _numbers(_INDEX, names)


def snapshots(names: Iterable[str]) -> list[int]:
    """Batches of the snapshots among these names, ascending."""
    return _numbers(_SNAPSHOT, names)


def is_worthless(name: str) -> bool:
    """Whether no process ever relies on what an earlier one left under this name."""
    return name in {RESERVED_STORE, RESERVED_INDEX} or name.endswith(TEMPORARY)


def _numbers(pattern: re.Pattern[str], names: Iterable[str]) -> list[int]:
    return sorted(int(match[1]) for name in names if (match := pattern.fullmatch(name)))
