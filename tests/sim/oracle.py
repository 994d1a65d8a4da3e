"""What must hold at every moment, whatever fails: checked as things happen, from outside.

The oracle sees every append, cut, commit, vote and message of every node, and their disks. Each
check has a name, by which reports and the table of mutants call it.
"""

from __future__ import annotations

import asyncio
import hashlib
from bisect import bisect_right
from collections import Counter
from typing import TYPE_CHECKING, NamedTuple

from proglog.batch import BatchHeader, Kind
from proglog.errors import OutcomeUnknown
from proglog.raft.messages import AppendResponse, Message, Role, VoteRequest, VoteResponse
from proglog.types import Appended
from tests.sim.disks import Promise

if TYPE_CHECKING:
    from tests.sim.node import SimNode

STATE_EVERY = 8
"""Replicated states are compared at indexes that this divides."""


class Violation(AssertionError):
    """A promise was broken. `check` names which."""

    def __init__(self, check: str, what: str) -> None:
        super().__init__(f"[{check}] {what}")
        self.check = check


def require(holds: bool, check: str, what: str) -> None:
    if not holds:
        raise Violation(check, what)


class Known(NamedTuple):
    """A batch somewhere. Its checksum covers the one before, so it names the log up to it."""

    term: int
    crc: int


class Oracle:
    """The truth of one world."""

    def __init__(self) -> None:
        self.batches: dict[tuple[int, int], int] = {}
        """(index, term) -> header checksum, of every batch that was ever appended anywhere."""
        self.committed: list[BatchHeader] = []
        self.commit_terms: list[int] = []
        """The terms in which these were committed, as far as is known: in no later ones."""
        """Batch i is at i - 1."""
        self.by_offset: dict[int, BatchHeader] = {}
        self.votes: dict[tuple[str, int], str] = {}
        self.leaders: dict[int, str] = {}
        self.states: dict[int, str] = {}
        self.counts: Counter[str] = Counter()

    # --- logs ------------------------------------------------------------------------------------

    def appended(self, node: SimNode, header: BatchHeader) -> None:
        require(
            header.index == node.last_index + 1,
            "index",
            f"{node.name} appends batch {header.index} behind {node.last_index}",
        )
        self.matches(node, header.index, Known(header.term, header.header_crc))
        node.logged[header.index] = Known(header.term, header.header_crc)
        node.last_index = header.index

    def matches(self, node: SimNode, index: int, known: Known) -> None:
        """Log matching: (index, term) names one batch, and all before it."""
        if self.batches.setdefault((index, known.term), known.crc) != known.crc:
            what = f"{node.name} holds another batch {index} of term {known.term}"
            raise Violation("log matching", what)

    def cut(self, node: SimNode, last_index: int) -> None:
        replica = node.replica
        require(
            last_index >= replica.commit_index,
            "committed is cut",
            f"{node.name} cuts to {last_index} below its commit {replica.commit_index}",
        )
        require(
            node.core.status().role is not Role.LEADER,
            "leader append-only",
            f"{node.name} leads and cuts to {last_index}",
        )
        self.counts["cuts"] += 1
        for index in range(last_index + 1, node.last_index + 1):
            node.logged.pop(index, None)
        node.last_index = last_index
        node.durable_seen = min(node.durable_seen, last_index)

    # --- commit ----------------------------------------------------------------------------------

    def commits(self, node: SimNode, before: int, index: int) -> None:
        """A node's commit index moved."""
        require(index >= before, "commit goes back", f"{node.name}: {before} to {index}")
        require(
            index <= node.last_index,
            "commit beyond the log",
            f"{node.name} commits {index} of {node.last_index}",
        )
        for number in range(before + 1, index + 1):
            if number <= len(self.committed):
                self._agrees(node, number)
            else:
                self._newly_committed(node, number)

    def _agrees(self, node: SimNode, index: int) -> None:
        header = self.committed[index - 1]
        known = node.logged.get(index)
        if index > node.base_index and known != (header.term, header.header_crc):
            raise Violation(
                "committed prefixes agree",
                f"{node.name} commits another batch {index} than was committed before: "
                f"{known} instead of {header}",
            )

    def _newly_committed(self, node: SimNode, index: int) -> None:
        entry = node.replica.log.in_memory(index)
        header = entry.header if entry is not None else node.read_header(index)
        require(
            node.logged.get(index) == (header.term, header.header_crc),
            "committed prefixes agree",
            f"{node.name} commits what it did not append at {index}",
        )
        self.committed.append(header)
        self.commit_terms.append(max([node.core.term, *self.commit_terms[-1:]]))
        if header.kind == Kind.DATA:
            expected = self.next_offset
            require(
                header.base_offset == expected,
                "offsets dense",
                f"batch {index} begins at {header.base_offset}, not {expected}",
            )
            self.by_offset[header.base_offset] = header
            self.next_offset = header.next_offset
        self.counts["commits"] += 1
        node.world.require_majority_durable(node, index)

    next_offset = 0
    """After the last committed record."""

    def acknowledged(self, offset: int, count: int, body_crc: int) -> None:
        """A client was told that its batch is at `offset`."""
        header = self.by_offset.get(offset)
        if header is None or header.count != count or header.body_crc != body_crc:
            raise Violation(
                "acked is committed",
                f"{count} records were acknowledged at {offset}, where {header} is committed",
            )

    def told(self, node: SimNode, index: int, term: int, answer: asyncio.Future[Appended]) -> None:
        """Whoever waits for a batch is told what became of it: only what is decided."""
        if answer.cancelled() or isinstance(answer.exception(), OutcomeUnknown):
            return
        at_index = self.committed[index - 1].term if index <= len(self.committed) else None
        decided = at_index == term if answer.exception() is None else at_index not in {None, term}
        if not decided:
            raise Violation(
                "answers are decided",
                f"{node.name}: {answer} for batch {index} of term {term}, where {at_index} is",
            )

    # --- roles and promises ----------------------------------------------------------------------

    def leads(self, node: SimNode, term: int) -> None:
        uuid = node.uuid
        leader = self.leaders.setdefault(term, uuid)
        require(leader == uuid, "one leader a term", f"term {term}: {leader} and {uuid}")
        # A vote may arrive late, when later leaders have committed more: it could do no harm.
        last = bisect_right(self.commit_terms, term)
        header = self.committed[last - 1] if last else None
        known = node.logged.get(last)
        require(
            header is None or node.base_index >= last or known == (header.term, header.header_crc),
            "leader completeness",
            f"{node.name} leads term {term} without the committed batch {last}",
        )

    def _votes_for(self, node: SimNode, vote: Promise) -> None:
        """Somebody hears of a vote."""
        before = self.votes.setdefault((node.uuid, vote.term), vote.vote)
        require(before == vote.vote, "one vote a term", f"{node.name}: {vote} after {before}")
        promised = node.promised()
        require(
            promised is not None and (promised == vote or promised.term > vote.term),
            "vote before durable",
            f"{node.name} tells of {vote}, on disk: {promised}",
        )
        if vote.term == node.spoken.term:
            node.spoken = vote

    def sent(self, node: SimNode, message: Message) -> None:
        """A message leaves a node: what it says must be on the disk already."""
        self.counts["messages"] += 1
        if isinstance(message, AppendResponse):
            if not message.rejected:
                require(
                    node.is_durable(message.index),
                    "ack before durable",
                    f"{node.name} acknowledges batch {message.index} that its disk may lose",
                )
        asks = isinstance(message, VoteRequest | VoteResponse) and message.pre_vote
        if message.term > node.spoken.term and not asks:
            promised = node.promised()
            require(
                promised is not None and message.term <= promised.term,
                "term before durable",
                f"{node.name} speaks in term {message.term}, on disk: {promised}",
            )
            node.spoken = Promise(message.term, "")
        if isinstance(message, VoteRequest) and not asks:
            self._votes_for(node, Promise(message.term, node.uuid))
        elif isinstance(message, VoteResponse) and message.granted and not asks:
            self._votes_for(node, Promise(message.term, message.to))

    # --- state -----------------------------------------------------------------------------------

    def applied(self, node: SimNode, index: int) -> None:
        require(
            index <= node.core.status().commit if index % 16 == 0 else True,
            "applied is committed",
            f"{node.name} applies {index}",
        )
        if index % STATE_EVERY == 0:
            self.state_is(node, index)

    def state_is(self, node: SimNode, index: int) -> None:
        """The replicated state after one index is the same everywhere."""
        encoded = node.replica._applier.state.encode()
        digest = hashlib.blake2b(encoded, digest_size=8).hexdigest()
        before = self.states.setdefault(index, digest)
        self.counts["states"] += 1
        require(
            before == digest,
            "replicated state",
            f"{node.name} has another state than others after batch {index}",
        )
