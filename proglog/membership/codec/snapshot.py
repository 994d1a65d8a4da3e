"""What a node remembers over a restart: its peers, so that it finds the cluster again without being
told any; its Lamport times, so that old news are not told twice; and which incarnation comes next,
so that what was said of a former life, recorded and sent again, is old news.

A small JSON file, replaced as a whole. It is a hint: lost or broken, the node starts without. One
of a newer version is neither: it would be replaced, so the node does not start.

    {"version": 1, "member_time": 17, "event_time": 3, "query_time": 1, "incarnation": 513,
     "peers": [["10.0.0.2", 7946], ...]}

Peers stand in the order in which they are worth a try. A time or an incarnation that nothing honest
reaches is not gone on from.
"""

from __future__ import annotations

import ipaddress
import json
from dataclasses import dataclass

from proglog.membership import limits
from proglog.membership.address import Address
from proglog.membership.errors import MalformedMessage

_VERSION = 1
_TIMES = ("member_time", "event_time", "query_time")


class NewerVersion(Exception):
    """The file has this version."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    member_time: int
    event_time: int
    query_time: int
    incarnation: int = 1
    """With which the next life begins."""
    peers: tuple[Address, ...]


def encode_snapshot(snapshot: Snapshot) -> bytes:
    times = {name: getattr(snapshot, name) for name in _TIMES}
    times["incarnation"] = snapshot.incarnation
    return json.dumps({"version": _VERSION, **times, "peers": snapshot.peers}).encode()


def decode_snapshot(data: bytes) -> Snapshot:
    """Raises MalformedMessage, and NewerVersion."""
    if len(data) > limits.snapshot_bytes_max:
        raise MalformedMessage(f"snapshot of {len(data)} bytes")
    try:
        value = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise MalformedMessage("snapshot that is no JSON") from error
    version = value.get("version") if isinstance(value, dict) else None
    if type(version) is int and version > _VERSION:
        raise NewerVersion(str(version))
    if version != _VERSION:
        raise MalformedMessage("snapshot without a version")
    peers = value.get("peers")
    if not isinstance(peers, list) or len(peers) > limits.snapshot_peers_max:
        raise MalformedMessage("snapshot without a list of peers")
    times = {name: _counter(value.get(name), limits.lamport_saved_max) for name in _TIMES}
    incarnation = _counter(value.get("incarnation", 1), limits.incarnation_saved_max) or 1
    return Snapshot(**times, incarnation=incarnation, peers=tuple(map(_peer, peers)))


def _counter(value: object, value_max: int) -> int:
    """A time or an incarnation, or 0 for one beyond the bound: some liar's, but not broken."""
    if type(value) is not int or value < 0:
        raise MalformedMessage("snapshot with a broken time or incarnation")
    return value if value <= value_max else 0


def _peer(value: object) -> Address:
    match value:
        case [str(host), int(port)]:
            try:
                return Address.unpack(ipaddress.ip_address(host).packed, port)
            except ValueError as error:
                raise MalformedMessage("snapshot with a broken peer") from error
    raise MalformedMessage("snapshot with a broken peer")
