"""What a follower does with what a leader of its term sends."""

from __future__ import annotations

from collections.abc import Sequence

from proglog.raft.messages import (
    AppendRequest,
    AppendResponse,
    Entry,
    Heartbeat,
    HeartbeatResponse,
    InstallSnapshot,
    Snapshot,
)
from proglog.raft.state import State


class Follower:
    """Receives the log. One object for the life of the server: a snapshot under way outlives terms.

    Acknowledgements follow one rule: what is acked is min(verified, durable). `verified` is the
    prefix known to equal the log of this term's leader, `durable` moves in Writes.persisted only.
    So no path through this file can acknowledge an entry before it is on disk, whatever it does;
    "at once" below is the case where the driver had reported it before.
    """

    __slots__ = ("_acknowledged", "_state", "installing", "verified")

    def __init__(self, state: State) -> None:
        self._state = state
        self.verified = 0
        self._acknowledged = 0
        self.installing: Snapshot | None = None

    def new_term(self) -> None:
        """Another leader, another log: nothing is verified against it yet."""
        self.verified = self._acknowledged = 0

    # --- appends ---------------------------------------------------------------------------------

    def on_append(self, request: AppendRequest) -> None:
        state, log = self._state, self._state.log
        _, _, _, prev_index, prev_term, last_index, commit, entries = request
        assert len(entries) == last_index - prev_index, "the driver fills in the entries"
        # Else the log would be newer than the hard state, and this server never start again.
        assert not entries or entries[-1].term <= request.term, "entries of a later term"
        if self.installing is not None:
            return  # The log is about to be replaced; the leader will ask again.
        if prev_index < state.commit:
            # Committed entries are in the log of every leader of a later term (leader
            # completeness): the logs match at our commit index, and before it there is nothing to
            # compare, perhaps nothing left (compaction).
            entries = entries[state.commit - prev_index :]
            prev_index = state.commit
        elif log.term_at(prev_index) != prev_term:
            self._reject(prev_index, prev_term)
            return
        self._take(self._unknown(entries))
        last_index = max(last_index, prev_index)
        self.verified = max(self.verified, last_index)
        # Not the leader's commit alone: behind last_index our log may differ from the leader's.
        if (commit := min(commit, last_index)) > state.commit:
            state.commit_to(commit)
        if state.writes.durable >= self.verified:
            self._acknowledge()

    def on_persisted(self) -> None:
        """More is durable: news for the leader as far as it is verified."""
        if min(self.verified, self._state.writes.durable) > self._acknowledged:
            self._acknowledge()

    def _acknowledge(self) -> None:
        state = self._state
        if state.leader is not None:
            self._acknowledged = min(self.verified, state.writes.durable)
            state.messages_after_persist.append(
                AppendResponse(state.id, state.leader, state.term, self._acknowledged)
            )

    def _unknown(self, entries: Sequence[Entry]) -> Sequence[Entry]:
        """The entries from the first that is not in the log."""
        log = self._state.log
        for i, entry in enumerate(entries):
            if entry.index > log.last_index or log.term_at(entry.index) != entry.term:
                return entries[i:]
        return ()

    def _take(self, entries: Sequence[Entry]) -> None:
        """Append, cutting the log first only where an entry of another term stands.

        Never because a message is short: appends may be repeated and reordered.

            leader sends A = (4,5], then B = (4,7]; B comes first: 1 2 3 4 5 6 7 is acked to 7
            A comes late: it ends at 5. To cut 6 and 7 now is to lose what the leader counts.
        """
        if not entries:
            return
        first = entries[0].index
        if first <= self._state.log.last_index:
            assert first > self.verified, "the log of a leader does not change in its term"
            self._state.truncate(first)
        self._state.append(entries)

    def _reject(self, prev_index: int, prev_term: int) -> None:
        state, log = self._state, self._state.log
        hint = log.last_possible_match(prev_index, prev_term)
        hint_term = log.term_at(hint)
        assert state.leader is not None
        assert hint_term is not None, "the commit index matches, so the hint is not before it"
        state.messages_after_persist.append(
            AppendResponse(
                state.id,
                state.leader,
                state.term,
                prev_index,
                rejected=True,
                hint_index=hint,
                hint_term=hint_term,
            )
        )

    # --- heartbeats ------------------------------------------------------------------------------

    def on_heartbeat(self, heartbeat: Heartbeat) -> None:
        state = self._state
        # At most what we acknowledged in this term, so it is in our log and equals the leader's.
        if heartbeat.commit > state.commit:
            state.commit_to(heartbeat.commit)
        state.messages_after_persist.append(
            HeartbeatResponse(state.id, heartbeat.sender, state.term, heartbeat.round)
        )

    # --- snapshots -------------------------------------------------------------------------------

    def on_install(self, request: InstallSnapshot) -> None:
        """Nothing changes here until the snapshot is durable; see `installed`."""
        state, index, term = self._state, request.index, request.snapshot_term
        assert request.configuration is not None, "the driver fills in the configuration"
        if self.installing is not None:
            return
        if index > state.commit and state.log.term_at(index) != term:
            self.installing = state.snapshot = Snapshot(index, term, request.configuration)
            return
        # We hold all of it: what the entry (index, term) follows equals what the snapshot was made
        # of (log matching). Only the news that it is committed is taken. To replace the log would
        # throw away acknowledged entries behind it, and fetch them again.
        if index > state.commit:
            state.commit_to(index)
        self.verified = max(self.verified, index)
        self._acknowledge()

    def installed(self, index: int, term: int) -> None:
        """The snapshot is durable and the log is empty behind it.

        Safe even if the term has changed since: a snapshot holds committed entries only, which are
        in the log of this term's leader too. Nothing acknowledged is lost with the old log: had its
        entry at `index` been the committed one it would have matched above, so from there on it
        held nothing committed, and what stood before is in the snapshot.
        """
        snapshot, self.installing = self.installing, None
        assert snapshot is not None
        assert (snapshot.index, snapshot.term) == (index, term)
        self._state.reset(snapshot)
        self.verified = max(self.verified, index)
        self._acknowledge()
