"""A look at a server from outside, for operators, metrics and tests. Decides nothing."""

from __future__ import annotations

import dataclasses

from proglog.raft.configuration import Configuration, NodeId
from proglog.raft.follower import Follower
from proglog.raft.leader import Leader
from proglog.raft.messages import Role
from proglog.raft.progress import Flow
from proglog.raft.state import State


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class PeerStatus:
    """What the leader knows of one other member."""

    id: NodeId
    match: int
    next: int
    flow: Flow
    active: bool
    """It has answered a moment ago."""
    silent: bool
    """It has not answered for a while. Neither: not known yet."""
    inflight_messages: int
    caught_up: bool


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Status:
    """One server at one moment; what only a leader knows is empty elsewhere."""

    id: NodeId
    role: Role
    term: int
    voted_for: NodeId | None
    leader: NodeId | None
    commit: int
    base_index: int
    last_index: int
    last_term: int
    durable: int
    configuration: Configuration
    configuration_index: int
    installing: bool
    committed_own_term: bool
    transferee: NodeId | None
    peers: tuple[PeerStatus, ...]


def status_of(role: Role, state: State, follower: Follower, leader: Leader | None) -> Status:
    return Status(
        id=state.id,
        role=role,
        term=state.term,
        voted_for=state.voted_for,
        leader=state.leader,
        commit=state.commit,
        base_index=state.log.base_index,
        last_index=state.log.last_index,
        last_term=state.log.last_term,
        durable=state.writes.durable,
        configuration=state.configurations.latest,
        configuration_index=state.configurations.latest_index,
        installing=follower.installing is not None,
        committed_own_term=leader is not None and leader.committed_own_term,
        transferee=None if leader is None else leader.transferee,
        peers=() if leader is None else _peers(leader),
    )


def _peers(leader: Leader) -> tuple[PeerStatus, ...]:
    return tuple(
        PeerStatus(
            id=peer.id,
            match=peer.match,
            next=peer.next,
            flow=peer.flow,
            active=peer.active,
            silent=peer.silent,
            inflight_messages=len(peer.inflight),
            caught_up=leader.caught_up(peer.id),
        )
        for peer in leader.peers.values()
    )
