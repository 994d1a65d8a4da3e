"""Raft: DESIGN.md says what is where. This package's sans-io core is what is named here."""

from __future__ import annotations

from proglog.raft.config import RaftConfig
from proglog.raft.configuration import (
    AddLearner,
    Change,
    Configuration,
    MalformedConfiguration,
    NodeId,
    Promote,
    Remove,
    Server,
)
from proglog.raft.core import Raft
from proglog.raft.log_view import LogView
from proglog.raft.messages import (
    AppendRequest,
    AppendResponse,
    Entry,
    HardState,
    Heartbeat,
    HeartbeatResponse,
    InstallSnapshot,
    Message,
    ReadResult,
    Ready,
    Role,
    Snapshot,
    SoftState,
    TimeoutNow,
    VoteRequest,
    VoteResponse,
)
from proglog.raft.status import PeerStatus, Status

__all__ = [
    "AddLearner",
    "AppendRequest",
    "AppendResponse",
    "Change",
    "Configuration",
    "Entry",
    "HardState",
    "Heartbeat",
    "HeartbeatResponse",
    "InstallSnapshot",
    "LogView",
    "MalformedConfiguration",
    "Message",
    "NodeId",
    "PeerStatus",
    "Promote",
    "Raft",
    "RaftConfig",
    "ReadResult",
    "Ready",
    "Remove",
    "Role",
    "Server",
    "Snapshot",
    "SoftState",
    "Status",
    "TimeoutNow",
    "VoteRequest",
    "VoteResponse",
]
