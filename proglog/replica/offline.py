"""What the replicated state of a stopped node says, as far as it can be read."""

from __future__ import annotations

from collections.abc import Iterator

from proglog import limits
from proglog.batch import HEADER_BYTES, BadBatch, Kind, check_stored_body, parse_header
from proglog.log import format as fmt
from proglog.log.gaps import read_leniently
from proglog.log.names import snapshot_path
from proglog.log.plan import Found, Plan
from proglog.log.reading import CheckedFile, Damage, Reading
from proglog.ports import Files, RealFiles
from proglog.raft.configuration import Configuration
from proglog.replica.state import ReplicatedState

_CONFIGURATION = bytes([Kind.CONFIGURATION]) + bytes(7)
"""What is special about the header of such a batch: kind, no codec, columns or records."""
_KIND_AT = 8


def why_not_given_up(plan: Plan, files: Files | None = None) -> str | None:
    """Why records of this log must not be given up: others may count on this server having them.

    The newest snapshot says who they are, and every batch after it that can be found, also beyond
    the damage.
    """
    reading = Reading(files or RealFiles(), writable=False)
    known = 0
    configurations: list[Configuration] = []
    if plan.snapshot is not None:
        known = plan.snapshot.tip.index
        path = snapshot_path(plan.folder, known)
        configurations.append(ReplicatedState.decode(plan.snapshot.state, path).configuration)
    for slot, found in enumerate(plan.segments):
        following = plan.segments[slot + 1 : slot + 2]
        if not following or following[0].first_index > known + 1:
            configurations += _configurations_in(reading, found, known)
    names = next((each for each in reversed(configurations) if len(each.servers) > 1), None)
    if names is None:
        return None
    return (
        f"It is a member of a cluster ({', '.join(server.name for server in names.servers)}), "
        "where others count on what it acknowledged: "
        "remove it there with proglog cluster remove NAME, delete its data, and start it again, "
        "as a new server"
    )


def _configurations_in(reading: Reading, found: Found, known: int) -> Iterator[Configuration]:
    """Those in a store that come after batch `known`, wherever they can be read."""
    store = reading.open(found.store_path)
    if isinstance(store, Damage):
        return
    try:
        size = store.file.size()
        for start in range(fmt.PREAMBLE_BYTES, size, limits.walk_window_bytes):
            window = min(limits.walk_window_bytes + HEADER_BYTES, size - start)
            data = read_leniently(store, window, start)
            at = data.find(_CONFIGURATION)
            while at >= 0:
                configuration = _configuration_at(store, start + at - _KIND_AT, known)
                if configuration is not None:
                    yield configuration
                at = data.find(_CONFIGURATION, at + 1)
    finally:
        store.close()


def _configuration_at(store: CheckedFile, position: int, known: int) -> Configuration | None:
    data = store.read(HEADER_BYTES, position)
    try:
        if isinstance(data, Damage) or (header := parse_header(data)).index <= known:
            return None
        body = store.read(header.length, position + HEADER_BYTES)
        if isinstance(body, Damage):
            return None
        check_stored_body(header, body)
    except BadBatch:
        return None
    return Configuration.decode(body)
