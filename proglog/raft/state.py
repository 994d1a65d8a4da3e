"""State: what figure 2 of the Raft paper lists under that name, and the effects waiting for Ready.

Shared by the roles. The rules that hold whoever leads are kept here, as assertions.
"""

from __future__ import annotations

from collections.abc import Sequence

from proglog.raft.config import RaftConfig
from proglog.raft.configuration import ConfigurationHistory, NodeId
from proglog.raft.log_view import LogView
from proglog.raft.messages import Entry, HardState, Message, ReadResult, Snapshot
from proglog.raft.writes import Writes


class State:
    """One server's persistent and volatile state."""

    __slots__ = (
        "commit",
        "config",
        "configurations",
        "id",
        "leader",
        "log",
        "messages",
        "messages_after_persist",
        "reads",
        "snapshot",
        "term",
        "voted_for",
        "writes",
    )

    def __init__(
        self,
        *,
        id: NodeId,  # noqa: A002 - the name everybody uses for it
        config: RaftConfig,
        hard_state: HardState,
        log: LogView,
        configurations: ConfigurationHistory,
        commit: int,
    ) -> None:
        # Hard state is durable before entries of its term are written, so a log that is ahead of
        # it means that the hard state was lost: this server might vote twice in a term.
        assert hard_state.term >= log.last_term, "the log is newer than the hard state"
        assert configurations.latest_index <= log.last_index
        self.id = id
        self.config = config
        self.term, self.voted_for = hard_state
        self.log = log
        self.writes = Writes(log.last_index)
        self.configurations = configurations
        # A hint: a commit index is learned again from the leader, it only saves time.
        self.commit = max(log.base_index, min(commit, log.last_index))
        self.configurations.commit(self.commit)
        self.leader: NodeId | None = None
        self.messages: list[Message] = []
        self.messages_after_persist: list[Message] = []
        self.reads: list[ReadResult] = []
        self.snapshot: Snapshot | None = None

    def append(self, entries: Sequence[Entry]) -> None:
        self.log.append(entries)
        self.writes.append(entries)
        for entry in entries:
            if entry.configuration is not None:
                self.configurations.append(entry.index, entry.configuration)

    def truncate(self, first: int) -> None:
        # What is committed may have been acknowledged to a client: to cut it is to lie.
        assert first > self.commit, f"truncation at {first} below commit {self.commit}"
        self.log.truncate(first)
        self.writes.truncate(first)
        self.configurations.truncate(first)

    def commit_to(self, index: int) -> None:
        assert index > self.commit, "the commit index never goes back"
        assert index <= self.log.last_index, (
            f"commit {index} is beyond the log's end {self.log.last_index}: "
            "acknowledged entries were lost here"
        )
        self.commit = index
        self.configurations.commit(index)
        self.log.forget_sizes_before(index)

    def reset(self, snapshot: Snapshot) -> None:
        """A snapshot was durably installed in place of the log."""
        assert snapshot.index > self.commit
        self.log.reset(snapshot.index, snapshot.term)
        self.writes.reset(snapshot.index)
        self.commit = snapshot.index
        self.configurations = ConfigurationHistory([(snapshot.index, snapshot.configuration)])
