"""What a node remembers over a restart: its peers, so that it finds the cluster again without being
told any, and its Lamport times, so that old news are not told twice.

A small JSON file, replaced as a whole. It is a hint: lost or broken, the node starts without. One
of a newer version is neither: it would be replaced, so the node does not start.

    {"version": 1, "member_time": 17, "event_time": 3, "query_time": 1,
     "peers": [["10.0.0.2", 7946], ...]}
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
    peers: tuple[Address, ...]


def encode_snapshot(snapshot: Snapshot) -> bytes:
    times = {name: getattr(snapshot, name) for name in _TIMES}
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
    times = {name: _time(value.get(name)) for name in _TIMES}
    return Snapshot(**times, peers=tuple(map(_peer, peers)))


def _time(value: object) -> int:
    if type(value) is not int or not 0 <= value < limits.lamport_time_max:
        raise MalformedMessage("snapshot with a broken Lamport time")
    return value


def _peer(value: object) -> Address:
    match value:
        case [str(host), int(port)]:
            try:
                return Address.unpack(ipaddress.ip_address(host).packed, port)
            except ValueError as error:
                raise MalformedMessage("snapshot with a broken peer") from error
    raise MalformedMessage("snapshot with a broken peer")
