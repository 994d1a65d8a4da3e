"""Who the servers are: one configuration, its changes, its codec, and its history in the log.

A server is (name, uuid). The uuid is made together with a data directory and dies with it, so a
server that lost its disk returns as somebody else: everything it may have promised (votes, acks)
stays with the old uuid, which no live process answers for. Names are for people; addresses are
hints and decide nothing.
"""

from __future__ import annotations

import dataclasses
import json
from typing import Any, Final

from proglog.errors import ChangeRefused, ProglogError, UnknownFormat

NodeId = str
"""A server's uuid as text: what messages carry and votes and acks are counted by."""

SERVERS_MAX: Final = 64
TEXT_CHARS_MAX: Final = 256
VERSION: Final = 1
"""Of the encoding. Whatever is added to a configuration, as labels of servers or those that were
removed, raises it: who dropped what he does not know would count other majorities."""
ENCODED_BYTES_MAX: Final = SERVERS_MAX * (3 * 6 * TEXT_CHARS_MAX + 64)


class MalformedConfiguration(ProglogError):
    """The body of a configuration batch is none; it came from a peer or a disk."""


@dataclasses.dataclass(frozen=True, slots=True, order=True)
class Server:
    """One member. Ordered by uuid, so that a configuration has one canonical form."""

    uuid: NodeId
    name: str
    address: str = ""

    def __post_init__(self) -> None:
        for text in (self.uuid, self.name, self.address):
            if not isinstance(text, str) or len(text) > TEXT_CHARS_MAX:
                raise ChangeRefused(f"server: texts have at most {TEXT_CHARS_MAX} characters")
        if not self.uuid or not self.name:
            raise ChangeRefused("server: uuid and name must not be empty")


@dataclasses.dataclass(frozen=True, slots=True)
class Configuration:
    """Voters decide elections and commits; learners only receive the log. Sorted by uuid."""

    voters: tuple[Server, ...] = ()
    learners: tuple[Server, ...] = ()

    def __post_init__(self) -> None:
        servers = self.voters + self.learners
        if len(servers) > SERVERS_MAX:
            raise ChangeRefused(f"a configuration has at most {SERVERS_MAX} servers")
        if len({s.uuid for s in servers}) != len(servers):
            raise ChangeRefused("a uuid stands twice in the configuration")
        if len({s.name for s in servers}) != len(servers):
            raise ChangeRefused("a name stands twice in the configuration")
        object.__setattr__(self, "voters", tuple(sorted(self.voters)))
        object.__setattr__(self, "learners", tuple(sorted(self.learners)))

    @property
    def servers(self) -> tuple[Server, ...]:
        return self.voters + self.learners

    @property
    def voter_ids(self) -> tuple[NodeId, ...]:
        return tuple(s.uuid for s in self.voters)

    def find(self, uuid: NodeId) -> Server | None:
        return next((s for s in self.servers if s.uuid == uuid), None)

    def is_voter(self, uuid: NodeId) -> bool:
        return any(s.uuid == uuid for s in self.voters)

    def encode(self) -> bytes:
        """Canonical JSON: the same configuration has the same bytes on every node."""
        document = {
            "learners": _rows(self.learners),
            "version": VERSION,
            "voters": _rows(self.voters),
        }
        return json.dumps(document, separators=(",", ":"), ensure_ascii=True).encode("ascii")

    @classmethod
    def decode(cls, data: bytes) -> Configuration:
        """The inverse of `encode`; raises UnknownFormat for a newer version, and
        MalformedConfiguration for anything else.

        Strict: what `encode` would not have written is refused, so equal meaning is equal bytes.
        """
        if len(data) > ENCODED_BYTES_MAX:
            raise MalformedConfiguration(f"configuration: {len(data)} bytes are too many")
        try:
            document = json.loads(data)
            version = document["version"]
            if isinstance(version, int) and version > VERSION:
                raise UnknownFormat(
                    f"the configuration of the cluster has version {version}, which this version "
                    "of Proglog does not know: use the version that wrote it, or a newer one",
                    version=version,
                )
            learners, voters = document["learners"], document["voters"]
            configuration = cls(_servers(voters), _servers(learners))
            encoded = configuration.encode()
        except (ValueError, TypeError, KeyError, RecursionError, ChangeRefused) as error:
            raise MalformedConfiguration(f"configuration: {error!r}") from error
        if encoded != data:
            raise MalformedConfiguration("configuration: not in canonical form")
        return configuration


def _rows(servers: tuple[Server, ...]) -> list[list[str]]:
    return [[s.uuid, s.name, s.address] for s in servers]


def _servers(rows: Any) -> tuple[Server, ...]:
    return tuple(Server(uuid, name, address) for uuid, name, address in rows)


# --- changes -------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, slots=True)
class AddLearner:
    """Starts to receive the log. It has no vote, so a slow or dead newcomer costs no availability
    (Raft thesis section 4.2.1)."""

    server: Server


@dataclasses.dataclass(frozen=True, slots=True)
class Promote:
    """A learner that has caught up becomes a voter."""

    uuid: NodeId


@dataclasses.dataclass(frozen=True, slots=True)
class Remove:
    """A voter or learner leaves; the leader may remove itself."""

    uuid: NodeId


Change = AddLearner | Promote | Remove


def changed(configuration: Configuration, change: Change) -> Configuration:
    """The configuration after one change. Raises ChangeRefused.

    Each change adds or takes at most one voter. That is what makes the simple protocol of Raft
    thesis section 4.1 safe: with n and n + 1 voters any majority of one set and any majority of the
    other share a server, since floor(n/2) + 1 + floor((n+1)/2) + 1 > n + 1.
    """
    voters, learners = configuration.voters, configuration.learners
    match change:
        case AddLearner(server):
            if configuration.find(server.uuid) is not None:
                raise ChangeRefused(f"server {server.name} is already a member")
            return Configuration(voters, (*learners, server))
        case Promote(uuid):
            server_ = next((s for s in learners if s.uuid == uuid), None)
            if server_ is None:
                raise ChangeRefused(f"{uuid} is not a learner")
            return Configuration((*voters, server_), tuple(s for s in learners if s.uuid != uuid))
        case Remove(uuid):
            if configuration.find(uuid) is None:
                raise ChangeRefused(f"{uuid} is not a member")
            if configuration.voter_ids == (uuid,):
                raise ChangeRefused("the last voter cannot be removed")
            return Configuration(
                tuple(s for s in voters if s.uuid != uuid),
                tuple(s for s in learners if s.uuid != uuid),
            )


# --- history -------------------------------------------------------------------------------------


class ConfigurationHistory:
    """The configurations in force or possibly in force again: the last committed one, then those
    in the uncommitted part of the log.

    A configuration takes effect when it is appended, not when it is committed (Raft thesis
    section 4.1): the entry itself is then committed by the new majority. The price is that
    truncation must bring the old one back:

        S1 (leader, term 2)  1 2 C     C = "S4 is a voter", not replicated: S1 dies
        S2 (leader, term 3)  1 2 3     S1 returns, its C is cut by 3: S4 is no voter any more

    A follower that lags may hold several at once (it learns of commits late), hence a list and not
    a pair; all but the last of them are committed somewhere, since a leader appends the next only
    after the commit of the one before.
    """

    __slots__ = ("_entries", "latest", "latest_index", "voter_ids")

    def __init__(self, entries: list[tuple[int, Configuration]]) -> None:
        assert [i for i, _ in entries] == sorted({i for i, _ in entries}), "indexes must ascend"
        self._entries = entries or [(0, Configuration())]
        self._cache_latest()

    def _cache_latest(self) -> None:
        self.latest_index, self.latest = self._entries[-1]
        self.voter_ids = self.latest.voter_ids

    def append(self, index: int, configuration: Configuration) -> None:
        assert index > self.latest_index
        self._entries.append((index, configuration))
        self._cache_latest()

    def truncate(self, first: int) -> None:
        """Forget what stood at `first` and later; the one before is in force again."""
        while self.latest_index >= first:
            assert len(self._entries) > 1, "a committed configuration is never truncated"
            self._entries.pop()
            self._cache_latest()

    def commit(self, index: int) -> None:
        """Those before the last committed one can never return."""
        while len(self._entries) > 1 and self._entries[1][0] <= index:
            del self._entries[0]

    def may_be_voter(self, uuid: NodeId) -> bool:
        """Whether it is a voter in any that is, or may yet be, in force."""
        return any(configuration.is_voter(uuid) for _, configuration in self._entries)

    def entries(self) -> tuple[tuple[int, Configuration], ...]:
        return tuple(self._entries)
