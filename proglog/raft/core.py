"""The Raft core: roles, terms, elections. Every role transition of a server is in this file.

Rule 1: a role changes only in the `_become_*` methods below, and they are called only here.
Rule 2: this file decides who leads; what a leader does is leader.py, what a follower does with the
leader's messages is follower.py, and neither knows the other.

Sans-io: no clock, socket, file, task. Time comes as `tick`, messages as `step`, the progress of the
disk as `persisted`; what is to be done about it leaves as one `Ready`. Nothing here waits, so every
call sees one consistent state. An assertion that fails means that a promise is broken: the process
must end, whatever it was doing.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Hashable, Sequence
from typing import Any

from proglog.errors import NotLeader
from proglog.raft.config import RaftConfig
from proglog.raft.configuration import (
    Change,
    Configuration,
    ConfigurationHistory,
    NodeId,
)
from proglog.raft.follower import Follower
from proglog.raft.leader import Leader
from proglog.raft.log_view import LogView
from proglog.raft.messages import (
    AppendRequest,
    AppendResponse,
    HardState,
    Heartbeat,
    HeartbeatResponse,
    InstallSnapshot,
    Message,
    Ready,
    Role,
    SoftState,
    TimeoutNow,
    VoteRequest,
    VoteResponse,
)
from proglog.raft.quorum import majority
from proglog.raft.state import State
from proglog.raft.status import Status, status_of
from proglog.raft.timer import ElectionTimer

_RESPONSES = (AppendResponse, HeartbeatResponse, VoteResponse)
_FROM_LEADER = (AppendRequest, Heartbeat, InstallSnapshot)


class Raft:
    """One server of one cluster."""

    __slots__ = (
        "_follower",
        "_leader",
        "_role",
        "_seen_commit",
        "_seen_configuration",
        "_seen_hard_state",
        "_seen_soft_state",
        "_state",
        "_timer",
        "_votes",
        "may_campaign",
    )

    def __init__(
        self,
        *,
        id: NodeId,  # noqa: A002 - the name everybody uses for it
        config: RaftConfig,
        hard_state: HardState,
        log: LogView,
        configurations: Sequence[tuple[int, Configuration]],
        commit: int,
        rng: random.Random,
    ) -> None:
        """What recovery found, all of it durable.

        Args:
            configurations: (index, configuration), ascending: the one of the base snapshot or the
                last one known to be committed, then those in the log behind it.
            commit: the best lower bound known of the commit index, 0 if none.
            rng: of this server alone; seeded differently on each, or elections collide.
        """
        self._state = State(
            id=id,
            config=config,
            hard_state=hard_state,
            log=log,
            configurations=ConfigurationHistory(list(configurations)),
            commit=commit,
        )
        self._timer = ElectionTimer(config.election_ticks, rng)
        self._follower = Follower(self._state)
        self._leader: Leader | None = None
        self._role = Role.FOLLOWER
        self._votes: dict[NodeId, bool] = {}
        self.may_campaign = True
        """Set to False while this server must not lead (a corrupt range, a full disk)."""
        self._seen_hard_state = hard_state
        self._seen_soft_state = self._soft_state()
        self._seen_commit = self._state.commit
        self._seen_configuration = self._configuration()

    @property
    def term(self) -> int:
        """The newest term that this server knows of."""
        return self._state.term

    @property
    def commit(self) -> int:
        """The last entry that this server knows to be committed."""
        return self._state.commit

    @property
    def configuration(self) -> Configuration:
        """The newest one in the log, which is in force, committed or not."""
        return self._state.configurations.latest

    # --- in --------------------------------------------------------------------------------------

    def tick(self, ticks: int = 1) -> None:
        """So much time has passed since the last call: at most one tick more than `quiet_ticks`
        said then. A driver that wakes late tells no more than it had set out to wait: it could not
        have heard the leader in the meantime, so silence proves nothing, and one election timeout
        too many is better than an election for nothing."""
        if self._leader is not None:
            if not self._leader.tick(ticks):
                self._become_follower(self._state.term, None)
            return
        self._timer.passed(ticks)
        if (self._is_alone() or self._timer.left <= 0) and self._promotable():
            self._become_pre_candidate()

    def _is_alone(self) -> bool:
        # Not while a leader is heard: one that removes itself has the last word on its removal.
        state = self._state
        return state.leader is None and state.configurations.voter_ids == (state.id,)

    def quiet_ticks(self) -> int:
        """So many ticks will do nothing, if nothing else happens meanwhile: they may be told
        together with the one after them. Fewer than make a heartbeat, so that little is hidden from
        whoever looks how late it wakes."""
        if self._leader is not None:
            return self._leader.quiet_ticks()
        if self._is_alone():
            return 0
        return min(self._state.config.heartbeat_ticks - 1, self._timer.quiet)

    def step(self, message: Message) -> None:
        """A message arrived. Whatever it is, it is never an error to be late, repeated or alone."""
        state = self._state
        if message.to != state.id:
            return  # Our address was that of another server; its promises are not ours.
        if (
            isinstance(message, _RESPONSES)
            and state.configurations.latest.find(message.sender) is None
        ):
            return  # Votes and acks of a non-member do not count, nor does its term.
        if message.term > state.term and not self._adopt_term(message):
            return
        if message.term < state.term:
            self._answer_stale(message)
            return
        _HANDLERS[type(message)](self, message)
        self._leave_if_removed()

    def propose(self, sizes_bytes: Sequence[int]) -> tuple[int, int]:
        """Append one entry for each size (> 0); (first index, term) if this server leads.

        Raises NotLeader, Unavailable (a transfer is under way) or Overloaded (uncommitted bytes);
        then nothing was appended. The caller's batches follow in the entries of the next Ready.
        """
        return self._leading().propose(sizes_bytes), self._state.term

    def propose_change(self, change: Change) -> tuple[int, int]:
        """Append a change of members; (index, term). Raises as `propose`, or ChangeRefused."""
        return self._leading().propose_change(change), self._state.term

    def request_read(self, ticket: Hashable) -> None:
        """Ask for a linearizable read: the ticket comes back in Ready.reads. Raises NotLeader or
        Overloaded."""
        self._leading().request_read(ticket)

    def transfer(self, to: NodeId | None = None) -> NodeId:
        """Hand leadership to a voter (None: the best one), whose uuid is returned.

        Raises NotLeader, ChangeRefused, or Unavailable if a transfer is under way.

        It succeeded when another leader shows up in Ready.soft_state; if none does within an
        election timeout, this server leads on.
        """
        return self._leading().transfer(to)

    def resign(self) -> None:
        """Leads no more, if it did, and names no successor: for a leader that cannot send what its
        followers need. They elect one of theirs after an election timeout, if they are a majority
        without this one's vote, whose log is the longer one; set `may_campaign`."""
        if self._leader is not None:
            self._become_follower(self._state.term, None)

    def persisted(self, write: int) -> None:
        """All log writes up to this number (Ready.write) are durable."""
        durable = self._state.writes.durable
        self._state.writes.persisted(write)
        if self._state.writes.durable == durable:
            return
        if self._leader is not None:
            self._leader.on_persisted()
            self._leave_if_removed()
        else:
            self._follower.on_persisted()

    def snapshot_installed(self, index: int, term: int) -> None:
        """The snapshot of Ready.snapshot is durable and has replaced the log."""
        self._follower.installed(index, term)

    def unreachable(self, peer: NodeId) -> None:
        """What was sent to this peer on the bulk connection may be lost."""
        if self._leader is not None:
            self._leader.unreachable(peer)

    def disconnected(self, peer: NodeId) -> None:
        """The connection on which this peer's heartbeats came has ended. If it leads, its process
        has ended most likely, and there is no need to wait for an election timeout.

        A guess, as a timeout is, and no less safe: it only ends our own protection of the leader.
        If that works after all, those who hear it ignore our pre-vote, and its next heartbeat makes
        up for everything. The voters notice at once, so they run in turn, in the order of the
        configuration: one has won, as a rule, before the next begins. If nobody has, the timeouts
        are random again.
        """
        state = self._state
        if self._role is not Role.FOLLOWER or state.leader != peer:
            return
        config = state.config
        others = [v for v in state.configurations.voter_ids if v != peer]
        turn = others.index(state.id) if state.id in others else len(others)
        # One tick may be over in no time; by the second the others have noticed. Never later than
        # without this, or a connection that comes and goes would put the election off for ever.
        self._timer.hurry(2 + turn * config.heartbeat_ticks)

    def reconnected(self, peer: NodeId) -> None:
        """A connection to this peer is there again. A question that it has not answered is most
        likely lost with the one before; the timeout that would ask again is not shortened.

        Only pre-votes: they promise nothing, and may be asked as often as one likes.
        """
        voters = self._state.configurations.voter_ids
        if self._role is Role.PRE_CANDIDATE and peer in voters and peer not in self._votes:
            self._request_vote(peer, pre_vote=True, transfer=False)

    def restarted(self, peer: NodeId, end: int) -> None:
        """Its disk ends at `end` now: see `Leader.restarted`."""
        if self._leader is not None:
            self._leader.restarted(peer, end)

    def acknowledged(self) -> dict[NodeId, int]:
        """If this server leads: what each other has on its disk of what is committed."""
        return {} if self._leader is None else self._leader.acknowledged()

    def is_missed_by_us(self, heartbeat: Heartbeat) -> bool:
        """Whether a leader counts on us for what we do not hold: a heartbeat says what is committed
        of that which *we* acknowledged to it."""
        state = self._state
        return heartbeat.term >= state.term and heartbeat.commit > state.log.last_index

    def compacted(self, index: int) -> None:
        """The driver dropped the log up to this index; it has a durable snapshot of it."""
        state = self._state
        assert index <= min(state.commit, state.writes.durable), (
            "only what is committed and durable"
        )
        state.log.compact(index)

    # --- out -------------------------------------------------------------------------------------

    def ready(self) -> Ready | None:
        """All effects since the last call, None if there are none."""
        state = self._state
        if self._leader is not None:
            self._leader.replicate()
        hard_state = self._changed_hard_state()
        messages, after = state.messages, state.messages_after_persist
        if hard_state is not None and messages:
            # Only a leader's and a pre-candidate's requests may leave before the disk is done. A
            # leader that needed votes has a durable term: its VoteRequests waited for it. But one
            # that elected itself alone may have a learner, and must not send it entries of a term
            # that it could, after a crash, use again for others.
            messages, after = [], messages + after
        truncate_from, entries, write = state.writes.take()
        commit = state.commit if state.commit != self._seen_commit else None
        configuration = self._changed_configuration()
        soft_state = self._changed_soft_state()
        snapshot, reads = state.snapshot, state.reads
        if not (
            messages
            or after
            or write
            or reads
            or commit is not None
            or hard_state is not None
            or soft_state is not None
            or snapshot is not None
            or configuration is not None
        ):
            return None
        self._seen_commit = state.commit
        state.messages, state.messages_after_persist = [], []
        state.reads, state.snapshot = [], None
        return Ready(
            hard_state,
            messages,
            after,
            truncate_from,
            entries,
            write,
            snapshot,
            commit,
            reads,
            soft_state,
            configuration,
        )

    def _changed_hard_state(self) -> HardState | None:
        state, seen = self._state, self._seen_hard_state
        if seen.term == state.term and seen.voted_for == state.voted_for:
            return None
        self._seen_hard_state = HardState(state.term, state.voted_for)
        return self._seen_hard_state

    def _changed_soft_state(self) -> SoftState | None:
        state, seen = self._state, self._seen_soft_state
        if seen.role is self._role and seen.leader == state.leader and seen.term == state.term:
            return None
        self._seen_soft_state = self._soft_state()
        return self._seen_soft_state

    def _soft_state(self) -> SoftState:
        return SoftState(self._role, self._state.leader, self._state.term)

    def _changed_configuration(self) -> tuple[int, Configuration] | None:
        configuration = self._configuration()
        if configuration == self._seen_configuration:
            return None
        self._seen_configuration = configuration
        return configuration

    def _configuration(self) -> tuple[int, Configuration]:
        # The index alone does not tell: another leader's, or a snapshot's, may stand at the same.
        return self._state.configurations.latest_index, self._state.configurations.latest

    def status(self) -> Status:
        return status_of(self._role, self._state, self._follower, self._leader)

    # --- terms -----------------------------------------------------------------------------------

    def _adopt_term(self, message: Message) -> bool:
        """A message of a later term. False: it is dropped."""
        if isinstance(message, VoteRequest):
            if self._hears_leader() and not message.transfer:
                # A server that was cut off, removed, or is just impatient must not depose a leader
                # that works (thesis section 4.2.3). Its term is not taken over either: that alone
                # would depose it. No answer is needed; it asks again, or hears the leader.
                return False
            if message.pre_vote:
                return True  # A question about a future term changes nothing.
        elif isinstance(message, VoteResponse) and message.pre_vote and message.granted:
            return True  # It carries the term we asked for, which nobody has entered.
        leader = message.sender if isinstance(message, _FROM_LEADER) else None
        self._become_follower(message.term, leader)
        return True

    def _answer_stale(self, message: Message) -> None:
        """A message of an earlier term.

        A leader of that term must learn ours. With pre-vote nobody else tells it: a server whose
        term is higher (it was elected or campaigned behind a partition) drops the appends of the
        leader, and its pre-votes are refused by those that hear the leader. It would be stuck.
        An old pre-vote or vote is refused with our term, so that its sender catches up.
        """
        state = self._state
        if isinstance(message, _FROM_LEADER):
            state.messages_after_persist.append(
                HeartbeatResponse(state.id, message.sender, state.term, 0)
            )
        elif isinstance(message, VoteRequest):
            self._answer_vote(message, granted=False)

    def _hears_leader(self) -> bool:
        """A leader was heard of within the shortest election timeout. A leader hears itself: it
        steps down on its own when it has no quorum."""
        return self._role is Role.LEADER or (
            self._state.leader is not None and self._timer.protects
        )

    # --- role transitions ------------------------------------------------------------------------

    def _become_follower(self, term: int, leader: NodeId | None) -> None:
        state = self._state
        assert term >= state.term, "terms never go back"
        if self._leader is not None:
            self._leader.close()
            self._leader = None
        if term > state.term:
            # One assignment of both: a vote belongs to its term.
            state.term, state.voted_for = term, None
            self._follower.new_term()
        self._role = Role.FOLLOWER
        state.leader = leader
        self._votes = {}
        self._timer.reset()

    def _become_pre_candidate(self) -> None:
        """Ask first whether an election could be won (thesis section 9.6): a server that comes back
        from a partition must not depose a leader with the high term it would have collected."""
        self._role = Role.PRE_CANDIDATE
        self._state.leader = None
        self._timer.reset()
        self._request_votes(pre_vote=True, transfer=False)

    def _become_candidate(self, *, transfer: bool) -> None:
        state = self._state
        self._role = Role.CANDIDATE
        state.leader = None
        state.term, state.voted_for = state.term + 1, state.id
        self._follower.new_term()
        self._timer.reset()
        self._request_votes(pre_vote=False, transfer=transfer)

    def _become_leader(self) -> None:
        assert self._role is Role.CANDIDATE
        self._role = Role.LEADER
        self._state.leader = self._state.id
        self._votes = {}
        self._leader = Leader(self._state)

    def _leave_if_removed(self) -> None:
        """A leader that removed itself is done when that is committed, not before: until then
        nobody else is sure to be able to commit it (thesis section 4.2.2)."""
        if self._leader is not None and self._leader.removed:
            self._become_follower(self._state.term, None)

    # --- elections -------------------------------------------------------------------------------

    def _promotable(self) -> bool:
        """A learner, a removed server and one whose log is just being replaced do not run.

        Removed means that the removal is committed, as far as we know. Until then a server that is
        no voter in its latest configuration may be the only one that can win (thesis section
        4.2.2); it needs a majority of that configuration, and its own vote is none of it:

            S1 (leader)  1 2 R     R = "S2 alone", not replicated when S1 restarts
            S2           1 2       cannot win: it needs S1, whose log is longer
            S1 wins by the vote of S2, replicates and commits R, and is done.
        """
        return (
            self.may_campaign
            and self._follower.installing is None
            and self._state.configurations.may_be_voter(self._state.id)
        )

    def _request_votes(self, *, pre_vote: bool, transfer: bool) -> None:
        """Vote for ourselves and ask the other voters.

        A real request waits until our own vote is durable. Otherwise, with an entry e that is
        committed on S2 and S3, and on S1 not yet on disk:

            S1 asks for term 5 with e in its log; S2 grants; S1 crashes, losing e and the term
            S1 asks again for term 5, without e; the grant of S2 arrives late: S1 leads without e

        A durable term is never asked for twice. Pre-votes promise nothing and need not wait.
        """
        state = self._state
        self._votes = {state.id: True}
        for voter in state.configurations.voter_ids:
            if voter != state.id:
                self._request_vote(voter, pre_vote=pre_vote, transfer=transfer)
        self._count_votes()

    def _request_vote(self, voter: NodeId, *, pre_vote: bool, transfer: bool) -> None:
        state, log = self._state, self._state.log
        term = state.term + 1 if pre_vote else state.term
        outbox = state.messages if pre_vote else state.messages_after_persist
        outbox.append(
            VoteRequest(state.id, voter, term, log.last_index, log.last_term, pre_vote, transfer)
        )

    def _on_vote_request(self, request: VoteRequest) -> None:
        """Grant by the rules of thesis section 3.4 and 3.6.1: one vote a term, and only to a log
        that holds everything ours may have committed.

        Nothing is asked about membership, as in thesis section 4.1. A learner answers, since the
        candidate may know that it was promoted. And a candidate unknown to us is no intruder:

            S1 S2 (S3 learner)  ->  S3 becomes a voter, committed by S1 and S3; S1 dies.
            S3 alone holds it and must win with the vote of S2, which has not heard of it.

        A removed server gets no vote by this: whoever holds its removal has the longer log.
        """
        state = self._state
        free = state.voted_for is None and state.leader is None
        may_vote = (
            free
            or state.voted_for == request.sender
            or (request.pre_vote and request.term > state.term)
        )
        granted = may_vote and state.log.up_to_date(request.last_index, request.last_term)
        if granted and not request.pre_vote:
            state.voted_for = request.sender
            self._timer.reset()
        self._answer_vote(request, granted=granted)

    def _answer_vote(self, request: VoteRequest, *, granted: bool) -> None:
        state = self._state
        term = request.term if granted else state.term
        state.messages_after_persist.append(
            VoteResponse(state.id, request.sender, term, granted, request.pre_vote)
        )

    def _on_vote_response(self, response: VoteResponse) -> None:
        asking = Role.PRE_CANDIDATE if response.pre_vote else Role.CANDIDATE
        if self._role is not asking:
            return
        if response.pre_vote and response.granted and response.term != self._state.term + 1:
            return  # Granted for a term that we have passed since.
        self._votes.setdefault(response.sender, response.granted)
        self._count_votes()

    def _count_votes(self) -> None:
        """Of voters of the configuration in force; one each, however often it answers."""
        voters = self._state.configurations.voter_ids
        answers = [self._votes[v] for v in voters if v in self._votes]
        needed = majority(len(voters))
        if answers.count(True) >= needed:
            if self._role is Role.PRE_CANDIDATE:
                self._become_candidate(transfer=False)
            else:
                self._become_leader()
        elif answers.count(False) >= needed:
            self._become_follower(self._state.term, None)

    def _on_timeout_now(self, _: TimeoutNow) -> None:
        """Our leader hands over: no pre-vote, and a flag for those that still hear it. That is safe
        as any election is; a stray TimeoutNow costs an election, not an entry."""
        if self._role is not Role.LEADER and self._promotable():
            self._become_candidate(transfer=True)

    # --- what is for the roles -------------------------------------------------------------------

    def _leading(self) -> Leader:
        if self._leader is None:
            state = self._state
            raise NotLeader("this server does not lead", leader=state.leader or "", term=state.term)
        return self._leader

    def _follow(self, leader: NodeId) -> None:
        """A message from the leader of our term: a candidate of this term has lost."""
        assert self._role is not Role.LEADER, f"two leaders in term {self._state.term}"
        if self._role is not Role.FOLLOWER:
            self._become_follower(self._state.term, leader)
        self._state.leader = leader
        self._timer.reset()

    def _on_append(self, request: AppendRequest) -> None:
        self._follow(request.sender)
        self._follower.on_append(request)

    def _on_heartbeat(self, heartbeat: Heartbeat) -> None:
        self._follow(heartbeat.sender)
        self._follower.on_heartbeat(heartbeat)

    def _on_install(self, request: InstallSnapshot) -> None:
        self._follow(request.sender)
        self._follower.on_install(request)

    def _on_append_response(self, response: AppendResponse) -> None:
        if self._leader is not None:
            self._leader.on_append_response(response)

    def _on_heartbeat_response(self, response: HeartbeatResponse) -> None:
        if self._leader is not None:
            self._leader.on_heartbeat_response(response)


_HANDLERS: dict[type, Callable[[Raft, Any], None]] = {
    AppendRequest: Raft._on_append,
    AppendResponse: Raft._on_append_response,
    Heartbeat: Raft._on_heartbeat,
    HeartbeatResponse: Raft._on_heartbeat_response,
    VoteRequest: Raft._on_vote_request,
    VoteResponse: Raft._on_vote_response,
    InstallSnapshot: Raft._on_install,
    TimeoutNow: Raft._on_timeout_now,
}
