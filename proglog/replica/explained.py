"""What this server is and how it became that, in words for operators. Pure."""

from __future__ import annotations

from collections.abc import Callable

from proglog.raft.configuration import Configuration
from proglog.raft.messages import Role, SoftState
from proglog.raft.quorum import majority

NameOf = Callable[[str], str]


def why_no_leader(
    state: SoftState, configuration: Configuration, own: str, answers: Callable[[str], bool]
) -> str:
    """One sentence where nobody leads; empty where somebody does, or there is no cluster yet."""
    if state.leader is not None or state.role is Role.LEADER or not configuration.servers:
        return ""
    voters = configuration.voters
    there = [voter for voter in voters if voter.uuid == own or answers(voter.uuid)]
    needed = majority(len(voters))
    answer = "answers" if len(there) == 1 else "answer"
    if len(there) >= needed:
        return f"no leader: {len(there)} of {len(voters)} voters {answer}, which is enough"
    missing = ", ".join(sorted(voter.name for voter in voters if voter not in there))
    return (
        f"no leader: {len(there)} of {len(voters)} voters {answer}, {needed} are needed "
        f"({missing}: no connection)"
    )


def transition(
    before: SoftState, after: SoftState, name_of: NameOf, *, is_member: bool
) -> tuple[str, dict[str, object]] | None:
    """The line of the log for a change: its event and facts. None where nothing is to be told."""
    facts: dict[str, object] = {"term": after.term}
    if after.role is Role.LEADER:
        return "leading", facts
    if after.leader is not None:
        return "following", {"leader": name_of(after.leader), **facts}
    if before.role is Role.LEADER:
        return "leads no more", {**facts, "why": _why_deposed(before, after, is_member)}
    if after.role is Role.CANDIDATE:
        return "asks for votes", facts
    if before.leader is not None:
        why = "it says nothing any more" if after.term == before.term else "a later term began"
        return "without a leader", {"was": name_of(before.leader), **facts, "why": why}
    if after.role is Role.PRE_CANDIDATE and before.role is Role.FOLLOWER:
        return "asks whether it would get votes", facts
    if before.role is Role.CANDIDATE:
        return "not elected", facts
    return None


def _why_deposed(before: SoftState, after: SoftState, is_member: bool) -> str:
    if after.term > before.term:
        return "a later term began"
    if not is_member:
        return "it is no server of the cluster any more"
    return "no majority answered for an election timeout, or it resigned"
