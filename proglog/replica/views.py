"""A look at a replica from outside, for gateways and services. Decides nothing."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import TYPE_CHECKING

from proglog.replica import explained
from proglog.types import ClusterStatus, Description

if TYPE_CHECKING:
    from proglog.replica.replica import Replica


def describe(replica: Replica) -> Description:
    """What its log holds."""
    leader = replica.leadership.leader
    return Description(
        log=replica.name,
        cluster_id=replica.identity.cluster_id,
        node=replica.identity.name,
        node_uuid=replica.identity.uuid,
        earliest=replica.earliest,
        next=replica.next_offset,
        bytes=replica.log.bytes_upto(replica.applied_index),
        leader=leader.name if leader else "",
        leader_addr=leader.rpc_addr if leader else "",
        term=replica.leadership.state.term,
        commit_index=replica.commit_index,
        cluster_name=replica.exchange.cluster_name,
    )


def why_no_leader(replica: Replica) -> str:
    """One sentence where nobody leads, else empty."""
    state, configuration = replica.leadership.state, replica.leadership.configuration
    own, is_reached = replica.identity.uuid, replica.exchange.is_reached
    return explained.why_no_leader(state, configuration, own, is_reached)


def cluster_status(replica: Replica, notes: Iterable[str]) -> ClusterStatus:
    """The cluster as this server sees it. `notes` are what else operators should know."""
    status = replica.status()
    peers = {peer.id: peer for peer in status.peers}
    return ClusterStatus(
        servers=tuple(
            replace(server, match_index=peer.match, active=peer.active) if peer else server
            for server in replica.servers()
            for peer in [peers.get(server.uuid)]
        ),
        term=status.term,
        commit_index=replica.commit_index,
        applied_index=replica.applied_index,
        cluster_id=replica.identity.cluster_id,
        node=replica.identity.name,
        role=status.role.value,
        notes=tuple(filter(None, [*notes, why_no_leader(replica)])),
    )
