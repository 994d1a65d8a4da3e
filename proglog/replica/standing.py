"""What a server states of itself, what it remembers of the others' statements, and whether it may
take part.

A server that has forgotten something, because its directory was set back to an older copy or its
disk lost what it had synced, must neither vote nor acknowledge: what it promised is counted by
others. It cannot know that itself, but they can. So each connection begins with a statement:

    sequence, term   of the hard state: they only grow
    end              the last batch that is durable here
    committed        of these, the last that is known to be committed

Each server keeps the highest of each that it ever heard of another: its floor. Whoever comes back
and states less has forgotten, and is refused. Nothing is refused wrongly where disks keep what they
sync: term and sequence are synced before they are told; and a committed batch that was durable here
is in the log of every later leader, so no conflict ever cuts it, a prefix goes only behind a
snapshot, and a snapshot is installed only where the log does not hold its last batch.

A leader knows more than what is stated: what each follower has acknowledged, as far as it is
committed. The others know what each stated last: at every change of its hard state, before a vote
that rests on it, and otherwise once a second.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable
from typing import NamedTuple

from proglog.log.log import Log
from proglog.peers.frames import FrameError
from proglog.peers.hello import Life, Refusal
from proglog.raft.core import Raft
from proglog.raft.hard_state import HardStateFile
from proglog.replica.floors import Floor, Memory
from proglog.replica.identity import NodeDirectory

_STATEMENT = struct.Struct("<QQQQ")


class Statement(NamedTuple):
    """Where a server stands in one log."""

    sequence: int
    term: int
    end: int
    committed: int

    def encode(self) -> bytes:
        return _STATEMENT.pack(*self)

    @classmethod
    def decode(cls, payload: memoryview) -> Statement:
        """What a later version adds is behind this. Raises FrameError."""
        try:
            return cls(*_STATEMENT.unpack_from(payload))
        except struct.error:
            raise FrameError("malformed statement: cut short") from None


def raised(floor: Floor, statement: Statement) -> Floor:
    """The floor of a server that has just said this."""
    return Floor(
        max(floor.sequence, statement.sequence),
        max(floor.term, statement.term),
        max(floor.index, statement.committed),
    )


def why_above(floor: Floor, statement: Statement) -> str:
    """What a server has forgotten by its own word; empty if nothing is known of that."""
    if statement.end < floor.index:
        return f"batch {floor.index} was acknowledged, and its log ends at {statement.end}"
    if statement.term < floor.term:
        return f"it was seen in term {floor.term}, and knows of {statement.term}"
    if statement.sequence < floor.sequence:
        return f"its vote was saved {floor.sequence} times, and it knows of {statement.sequence}"
    return ""


NOTHING = Floor(0, 0, 0)


def notes(doubt: str, refused: Iterable[tuple[str, Refusal]]) -> list[str]:
    """What operators are to know of who takes part in nothing, a sentence each."""
    said = [f"this node takes part in nothing: {doubt}"] if doubt else []
    return said + [f"{name} is refused ({each.code}): {each.why}" for name, each in refused]


class Standing:
    """Of one server in one log."""

    def __init__(
        self,
        *,
        log: Log,
        hard_state: HardStateFile,
        raft: Callable[[], Raft],
        node: NodeDirectory,
        memory: Memory,
    ) -> None:
        self._log = log
        self._hard_state = hard_state
        self._raft = raft
        self._name = node.identity.name
        self.doubt = node.doubts
        """Why this server takes part in nothing, for people; empty if it does."""
        self.memory = memory
        """Of the other servers of the configuration: their floors, and the lives that stated."""
        self._stated: Statement | None = None

    # --- of itself -------------------------------------------------------------------------------

    def state(self) -> bytes | None:
        """What to say of ourselves; None if that must count for nothing."""
        if self.doubt:
            return None
        self._stated = self._statement()
        return self._stated.encode()

    def _statement(self) -> Statement:
        """Only of what is durable. While a snapshot takes the place of the log, that is the log."""
        if self._log.is_void and self._stated is not None:
            return self._stated
        # In this order: the file is saved by another thread, which may just be at it.
        sequence = self._hard_state.sequence
        end, commit = self._log.durable_index, self._raft().commit
        return Statement(sequence, self._hard_state.hard_state.term, end, min(end, commit))

    @property
    def has_voted_since(self) -> bool:
        """Whether the hard state was saved since the last statement: a vote may follow."""
        return self._stated is not None and self._hard_state.sequence != self._stated.sequence

    @property
    def is_news(self) -> bool:
        return not self.doubt and self._stated != self._statement()

    # --- of others -------------------------------------------------------------------------------

    def judge(self, life: Life, statement: Statement) -> Refusal | None:
        """Another server says where it stands: why it must not take part, if so.

        Asked once in each of its lives, at the first it says. Later it is no proof: on another lane
        it may arrive behind an acknowledgement that was sent after it.
        """
        self.look()
        floor = self.memory.floors.get(life.uuid, NOTHING)
        is_new = self.memory.lives.get(life.uuid) != life
        if is_new and (why := why_above(floor, statement)):
            told = f"the directory of {life.name} is older than what {self._name} knew of it: {why}"
            return Refusal("ROLLED_BACK", told)
        if self._raft().configuration.find(life.uuid) is not None:
            self.memory.floors[life.uuid] = raised(floor, statement)
        if is_new:
            self.memory.lives[life.uuid] = life
            # What an earlier life had on disk and told of, beyond the floor, this one may not have.
            self._raft().restarted(life.uuid, statement.end)
        return None

    def look(self) -> None:
        """Keeps what is known now, if we lead; and of servers only."""
        raft = self._raft()
        for uuid, index in raft.acknowledged().items():
            floor = self.memory.floors.get(uuid, NOTHING)
            if index > floor.index:
                self.memory.floors[uuid] = floor._replace(index=index)
        for known in (self.memory.floors, self.memory.lives):
            for uuid in [uuid for uuid in known if raft.configuration.find(uuid) is None]:
                del known[uuid]
