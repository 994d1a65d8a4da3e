"""What a leader does: replicate, commit, confirm reads, change members, hand over.

A Leader lives exactly as long as one leadership: core.py makes it when an election is won and drops
it when the role ends, and all that is known of followers, rounds and transfers is gone with it.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence

from proglog.errors import ChangeRefused, Overloaded, Unavailable
from proglog.raft.commitment import Commitment
from proglog.raft.configuration import Change, NodeId, Promote, changed
from proglog.raft.messages import (
    AppendRequest,
    AppendResponse,
    Entry,
    Heartbeat,
    HeartbeatResponse,
    InstallSnapshot,
    TimeoutNow,
)
from proglog.raft.progress import Flow, Progress
from proglog.raft.quorum import majority, reached_by_majority
from proglog.raft.read_index import ReadIndexQueue
from proglog.raft.state import State


class Leader:
    """One leadership. `tick` and `removed` tell core.py when it ends."""

    __slots__ = (
        "_commitment",
        "_heartbeat_ticks",
        "_now",
        "_quorum_ticks",
        "_reads",
        "_state",
        "_transfer_ticks",
        "peers",
        "removed",
        "transferee",
    )

    def __init__(self, state: State) -> None:
        self._state = state
        self._reads = ReadIndexQueue()
        self._now = 0  # ticks of this leadership
        self._heartbeat_ticks = 0
        self._quorum_ticks = 0
        self._transfer_ticks = 0
        self.transferee: NodeId | None = None
        self.removed = False
        """A configuration without this server is committed: its work is done."""
        self.peers: dict[NodeId, Progress] = {}
        # A no-op at once: entries of former terms cannot be committed by counting (Commitment), so
        # without one the log, and every read, would wait for the next proposal. The commit of this
        # entry is also what proves that our commit index is not behind any acknowledged entry.
        start = state.log.last_index + 1
        self._commitment = Commitment(start)
        state.append([Entry(start, state.term, 0)])
        self._watch_members()

    @property
    def committed_own_term(self) -> bool:
        return self._state.commit >= self._commitment.start

    # --- time ------------------------------------------------------------------------------------

    def tick(self, ticks: int) -> bool:
        """False: no quorum was heard of for an election timeout, and this leadership is over.

        A leader that is cut off would otherwise keep its clients waiting, and keep a server that
        hears only it from voting for a leader that a majority hears (thesis section 6.2).
        """
        config = self._state.config
        self._now += ticks
        self._quorum_ticks += ticks
        if self._quorum_ticks >= config.election_ticks:
            self._quorum_ticks = 0
            if not self._heard_quorum():
                return False
        self._tick_transfer(ticks)
        self._tick_snapshots(ticks)
        self._heartbeat_ticks += ticks
        if self._heartbeat_ticks >= config.heartbeat_ticks:
            self._start_round()
            self._hand_over()
        else:
            self._tell_commit()
        return True

    def _heard_quorum(self) -> bool:
        voters = self._state.configurations.voter_ids
        heard = sum(v == self._state.id or self.peers[v].heard for v in voters)
        for peer in self.peers.values():
            peer.checked()
        return heard >= majority(len(voters))

    def quiet_ticks(self) -> int:
        """See `Raft.quiet_ticks`. How long a snapshot or a transfer may take is seen with the next
        heartbeat."""
        if any(self._has_commit_to_tell(peer) for peer in self.peers.values()):
            return 0
        config = self._state.config
        return min(
            config.heartbeat_ticks - self._heartbeat_ticks - 1,
            config.election_ticks - self._quorum_ticks - 1,
        )

    def _tick_snapshots(self, ticks: int) -> None:
        for peer in self.peers.values():
            if peer.flow is Flow.SNAPSHOT:
                peer.snapshot_ticks += ticks
                if peer.snapshot_ticks >= self._state.config.snapshot_ticks_max:
                    # The message that it is done may be lost: ask. If it has nothing, it says so.
                    peer.become_probe(peer.snapshot_index + 1)

    # --- heartbeats and reads --------------------------------------------------------------------

    def _start_round(self) -> None:
        self._heartbeat_ticks = 0
        self._reads.start_round(self._state.commit if self.committed_own_term else None)
        for peer in self.peers.values():
            self._send_heartbeat(peer)
        self._confirm_reads()

    def _send_heartbeat(self, peer: Progress) -> None:
        state = self._state
        # Not our commit index alone: behind match the follower may hold entries that are not ours,
        # and would commit those.
        commit = min(peer.match, state.commit)
        peer.commit_sent = max(peer.commit_sent, commit)
        state.messages.append(Heartbeat(state.id, peer.id, state.term, commit, self._reads.round))

    def _tell_commit(self) -> None:
        """A commit index travels with the next append; if there is none, with the next tick, so
        that readers of followers need not wait for a heartbeat."""
        for peer in self.peers.values():
            if self._has_commit_to_tell(peer):
                self._send_heartbeat(peer)

    def _has_commit_to_tell(self, peer: Progress) -> bool:
        return peer.commit_sent < min(peer.match, self._state.commit)

    def on_heartbeat_response(self, response: HeartbeatResponse) -> None:
        peer = self.peers[response.sender]
        peer.answered_heartbeat(response.round, self._state.log.last_index)
        self._confirm_reads()

    def request_read(self, ticket: Hashable) -> None:
        if len(self._reads) >= self._state.config.reads_pending_max:
            raise Overloaded("too many linearizable reads are waiting")
        self._reads.add(ticket)

    def _confirm_reads(self) -> None:
        if len(self._reads):
            answered = reached_by_majority(
                self._reads.round if v == self._state.id else self.peers[v].round
                for v in self._state.configurations.voter_ids
            )
            self._state.reads += self._reads.confirm(answered)

    def close(self) -> None:
        """The leadership is over. Proposals are left alone: other servers may hold them and commit
        them yet. Reads have no effect, so they are known to have failed."""
        self._state.reads += self._reads.fail()

    # --- proposals -------------------------------------------------------------------------------

    def propose(self, sizes_bytes: Sequence[int]) -> int:
        """Append entries of these sizes; the index of the first. Raises before any is appended."""
        state, log = self._state, self._state.log
        assert all(sizes_bytes), "size 0 is the no-op's"
        self._refuse_while_transferring()
        pending = log.bytes_after(state.commit)
        if pending and pending + sum(sizes_bytes) > state.config.uncommitted_bytes_max:
            raise Overloaded("too many bytes wait to be committed", pending_bytes=pending)
        first, term = log.last_index + 1, state.term
        state.append([Entry(i, term, size) for i, size in enumerate(sizes_bytes, first)])
        return first

    def propose_change(self, change: Change) -> int:
        """Append a configuration; its index. Raises ChangeRefused or Unavailable."""
        state = self._state
        self._refuse_while_transferring()
        # The configuration before must be committed: only neighbours are sure to have quorums that
        # overlap (thesis section 4.1).
        if state.configurations.latest_index > state.commit:
            raise ChangeRefused("another change of members is not committed yet")
        # And it must be committed *in this term*, the fix of 2015 (Ongaro, raft-dev, "bug in
        # single-server membership changes"). Else, with S1-S4 and one change a leader:
        #
        #   term 1  S1 appends C1 = {1,2,3,4,5} to itself only, and stops
        #   term 2  S2 wins with S3, S4 (they know 4 voters) and appends D1 = {2,3,4}: commits
        #           with S2, S3 (2 of 3). Its own term had no commit before, so nothing told it
        #           of C1 and nothing made C1's holder lose.
        #   term 3  S1 wins with S4 and S5 by C1 (3 of 5) and overwrites D1: committed, and lost.
        #
        # With the no-op of term 2 on a majority of {1,2,3,4} first, S1 cannot win any more.
        if not self.committed_own_term:
            raise ChangeRefused("this leader has not committed an entry of its term yet")
        if isinstance(change, Promote) and not self.caught_up(change.uuid):
            raise ChangeRefused(f"{change.uuid} has not caught up yet")
        configuration = changed(state.configurations.latest, change)
        index = state.log.last_index + 1
        state.append([Entry(index, state.term, len(configuration.encode()), configuration)])
        self._watch_members()
        return index

    def caught_up(self, uuid: NodeId) -> bool:
        """Whether a learner may be given a vote. One that is dead may not, however much it had: the
        promotion itself might then need its vote, and could not be taken back."""
        peer, config = self.peers.get(uuid), self._state.config
        return (
            peer is not None
            and peer.active
            and peer.catch_up.caught_up(
                peer.match,
                last_index=self._state.log.last_index,
                now=self._now,
                lag_max=config.promotion_lag_entries_max,
            )
        )

    def _watch_members(self) -> None:
        """One Progress for each other member of the configuration in force, in its order: what a
        removed server still says does not count any more, what it is still sent is nothing."""
        state, known, last = self._state, self.peers, self._state.log.last_index
        self.peers = {
            server.uuid: known.get(server.uuid)
            or Progress(server.uuid, next_=last, config=state.config, now=self._now)
            for server in state.configurations.latest.servers
            if server.uuid != state.id
        }
        if self.transferee not in self.peers:
            self.transferee = None

    # --- commit ----------------------------------------------------------------------------------

    def on_persisted(self) -> None:
        """Our own disk is a replica like any other: it counts when it has the entry, not before
        (thesis section 10.2.1 lets the write run in parallel with those of the followers)."""
        self._commit()
        self._hand_over()

    def _commit(self) -> None:
        state = self._state
        own = state.writes.durable
        # Voters only. We count ourselves if we are one: a leader that removes itself manages the
        # cluster until that is committed, by a majority without it (thesis section 4.2.2).
        commit = self._commitment.advance(
            state.commit,
            [own if v == state.id else self.peers[v].match for v in state.configurations.voter_ids],
        )
        if commit == state.commit:
            return
        state.commit_to(commit)
        configurations = state.configurations
        if configurations.latest_index <= commit and state.id not in configurations.voter_ids:
            self._leave()

    def _leave(self) -> None:
        """We are no member any more. The best follower is told to run, so that the cluster need not
        wait for an election timeout."""
        self.removed = True
        for peer in self.peers.values():
            self._send_heartbeat(peer)
        self._send_timeout_now(self._best_voter())

    # --- replication -----------------------------------------------------------------------------

    def replicate(self) -> None:
        """Send what may be sent. Called once a Ready, so that all that was proposed since the last
        one travels in one append a follower."""
        if self._reads.wants_round and self.committed_own_term:
            self._start_round()
        for peer in self.peers.values():
            if peer.flow is Flow.REPLICATE:
                self._replicate_to(peer)
            elif peer.flow is Flow.PROBE and not peer.probe_sent:
                self._probe(peer)

    def _replicate_to(self, peer: Progress) -> None:
        log, config = self._state.log, self._state.config
        if peer.next <= log.base_index:
            peer.become_probe()  # Compaction overtook it.
            self._probe(peer)
            return
        while peer.next <= log.last_index and not peer.inflight.full:
            last, size = log.fit(peer.next, config.append_entries_max, config.append_bytes_max)
            self._send_append(peer, last)
            peer.inflight.add(last, size)
            peer.next = last + 1
            peer.nudge = False
        if peer.nudge:
            peer.nudge = False
            self._send_append(peer, peer.next - 1)

    def _probe(self, peer: Progress) -> None:
        """One entry is enough to learn where the logs match, and after an election it is the no-op
        that everybody waits for."""
        log = self._state.log
        peer.probe_sent = True
        if peer.next > log.base_index:
            self._send_append(peer, min(peer.next, log.last_index))
        elif peer.active:
            self._send_snapshot(peer)

    def _send_append(self, peer: Progress, last_index: int) -> None:
        state = self._state
        prev_index = peer.next - 1
        prev_term = state.log.term_at(prev_index)
        assert prev_term is not None, "what precedes an append is in the log or its base"
        peer.commit_sent = max(peer.commit_sent, min(state.commit, last_index))
        state.messages.append(
            AppendRequest(
                state.id, peer.id, state.term, prev_index, prev_term, last_index, state.commit
            )
        )

    def _send_snapshot(self, peer: Progress) -> None:
        state, log = self._state, self._state.log
        peer.become_snapshot(log.base_index)
        state.messages.append(
            InstallSnapshot(state.id, peer.id, state.term, log.base_index, log.base_term)
        )

    def on_append_response(self, response: AppendResponse) -> None:
        state = self._state
        peer = self.peers[response.sender]
        peer.heard = True
        if response.rejected:
            match = state.log.last_possible_match(response.hint_index, response.hint_term)
            peer.rejected(response.index, match)
            return
        assert response.index <= state.log.last_index, "an ack of what was never sent"
        if peer.accepted(response.index, state.log.base_index):
            peer.catch_up.acknowledged(peer.match, last_index=state.log.last_index, now=self._now)
            self._commit()
            self._hand_over()

    def unreachable(self, uuid: NodeId) -> None:
        """The driver lost the connection, and with it what was in flight, or failed to send."""
        peer = self.peers.get(uuid)
        if peer is not None and peer.flow is not Flow.PROBE:
            peer.become_probe()
            peer.probe_sent = True  # The answer to a heartbeat says when to try again.

    def restarted(self, uuid: NodeId, end: int) -> None:
        """A follower's process is another one. What the one before acknowledged is not counted any
        more: of what was not committed yet its disk may have lost what it said it had, and whoever
        commits by it would commit what fewer disks hold."""
        if (peer := self.peers.get(uuid)) is not None:
            peer.match = 0
            peer.become_probe(min(end, self._state.log.last_index) + 1)

    def acknowledged(self) -> dict[NodeId, int]:
        """Of each follower: the last that is on its disk and committed."""
        commit = self._state.commit
        return {peer.id: min(peer.match, commit) for peer in self.peers.values()}

    # --- transfer --------------------------------------------------------------------------------

    def transfer(self, to: NodeId | None) -> NodeId:
        """Refuse proposals, wait until all that was proposed is committed and the target holds it,
        then let the target run (thesis section 3.10). None: the voter that holds most.

        Draining first means that no proposal is in doubt afterwards. If it does not happen within
        an election timeout the leadership goes on as before.
        """
        state = self._state
        self._refuse_while_transferring()
        target = self._best_voter() if to is None else to
        if target is None or target == state.id or target not in state.configurations.voter_ids:
            raise ChangeRefused("leadership can be transferred to another voter only", to=to)
        self.transferee = target
        self._transfer_ticks = 0
        self._hand_over()
        return target

    def _refuse_while_transferring(self) -> None:
        if self.transferee is not None:
            raise Unavailable("leadership is being transferred")

    def _best_voter(self) -> NodeId | None:
        voters = [self.peers[v] for v in self._state.configurations.voter_ids if v in self.peers]
        best = max(voters, key=lambda p: (p.active, p.match), default=None)
        return None if best is None else best.id

    def _tick_transfer(self, ticks: int) -> None:
        if self.transferee is not None:
            self._transfer_ticks += ticks
            if self._transfer_ticks >= self._state.config.election_ticks:
                self.transferee = None

    def _hand_over(self) -> None:
        """Repeated with every heartbeat while the transfer lasts: the message may be lost, and one
        that comes too late is of an old term and is dropped."""
        state = self._state
        if self.transferee is not None:
            drained = state.commit == state.log.last_index
            if drained and self.peers[self.transferee].match == state.log.last_index:
                self._send_timeout_now(self.transferee)

    def _send_timeout_now(self, to: NodeId | None) -> None:
        if to is not None:
            self._state.messages.append(TimeoutNow(self._state.id, to, self._state.term))
