"""Before a node stops on purpose: what it does goes on elsewhere first (`proglog drain`).

Nothing of it is durable, and the others keep nothing of it but a tag in gossip, which ends with the
process: a drain that is interrupted leaves nothing behind.

Two that drain at the same time would stop a cluster of three. So each tells it by gossip, waits
until that is about, and lets those go first that began before it. It is a courtesy: gossip may be
wrong, and after a while nobody waits any longer. Nothing is lost either way, only time.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

import structlog

from proglog import limits
from proglog.agent.policy import DRAINING_TAG, ROLE
from proglog.errors import InvalidRequest, NotLeader, ProglogError, Unavailable, quoted
from proglog.membership import Member, Membership, Status
from proglog.raft.configuration import Configuration
from proglog.raft.quorum import majority
from proglog.replica.replica import Replica

_logger = structlog.get_logger("drain")


class Result(IntEnum):
    """What came of it: the exit status of `proglog drain`."""

    DRAINED = 0
    UNSAFE = 3
    """The deadline is over, and without this node the others may have no quorum for now."""
    NOT_LEFT = 4
    """It was to leave, and is still a server of the cluster."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """What to do, in seconds from when it is asked for."""

    leave: bool = False
    deadline_seconds: float = 40.0
    wait_unready_seconds: float = 3.0


def read_order(fields: Mapping[str, Any]) -> Order:
    """From what the command sends. Raises InvalidRequest."""
    types = {"leave": bool, "deadline_seconds": float, "wait_unready_seconds": float}
    for name, value in fields.items():
        if name not in types or not isinstance(value, types[name]) or value < 0:
            raise InvalidRequest(f"{quoted(name)} is no part of a drain, or of another type")
    return Order(**fields)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of it, and one line about it."""

    result: Result
    said: str


def why_unsafe(
    configuration: Configuration, members: Sequence[Member], own: str, began: str
) -> str:
    """Why this server should not stop now; empty if it may.

    It may if it has no vote, or if the voters that answer gossip and do not go before it are a
    quorum without it.
    """
    if not configuration.is_voter(own):
        return ""
    there = {
        member.tags.get("uuid", ""): member
        for member in members
        if member.status is Status.ALIVE and member.tags.get("role") == ROLE
    }

    def stays(uuid: str) -> bool:
        member = there.get(uuid)
        if member is None:
            return False
        theirs = member.tags.get(DRAINING_TAG, "")
        # As numbers; the uuid parts those that began at the same time.
        return not theirs or (len(theirs), theirs, uuid) > (len(began), began, own)

    others = [server for server in configuration.voters if server.uuid != own]
    missed = [server.name for server in others if not stays(server.uuid)]
    needed = majority(len(configuration.voters))
    if len(others) - len(missed) >= needed:
        return ""
    return f"{', '.join(missed)} must be back first" if missed else "two voters need each other"


class Drain:
    """One a node. A second order joins the first, whatever it says."""

    def __init__(
        self,
        replica: Replica,
        membership: Membership,
        *,
        tell: Callable[[], None],
        send_away: Callable[[], None],
        leave: Callable[[], Awaitable[None]],
        now_ms: Callable[[], int],
    ) -> None:
        """`tell` brings the tag about; `send_away` ends the streams of clients, which go elsewhere;
        `leave` raises ProglogError where the node must stay."""
        self._replica = replica
        self._membership = membership
        self._tell = tell
        self._send_away = send_away
        self._leave = leave
        self._now_ms = now_ms
        self._loop = asyncio.get_running_loop()
        self._task: asyncio.Task[Outcome] | None = None
        self._forgetting: asyncio.TimerHandle | None = None
        self.began = ""
        """The value of the tag; empty while the node does not drain."""
        self.has_left = False

    async def run(self, order: Order) -> Outcome:
        """Drains the node, which goes on serving what still comes. Raises ProglogError."""
        if self._task is None:
            _logger.info("draining", leave=order.leave, deadline_seconds=order.deadline_seconds)
            self._announce()
            self._task = self._loop.create_task(self._run(order))
            self._forgetting = self._loop.call_later(limits.drain_kept_seconds, self._forget)
        task = self._task
        await asyncio.wait([task])  # which, unlike it, may be cancelled without harm to the others
        if task.cancelled():
            raise Unavailable("the drain was undone, or the node stops")
        return task.result()

    async def leave(self) -> None:
        """Leaves the cluster for good, without more. Raises ProglogError: the node stays, as it
        was."""
        if not self.began:
            self._announce()
        try:
            await self._wait_told()
            await self._leave()
        except BaseException:  # cancelled too
            self._forget()
            raise
        self.has_left = True

    def _announce(self) -> None:
        self.began = str(self._now_ms())
        self._tell()

    async def _wait_told(self) -> None:
        """Until the others know. A leader that found by gossip a node which it has just removed
        would add it again; and who drains as well must hear of it before anybody decides."""
        await asyncio.sleep(limits.drain_told_seconds)

    def undo(self) -> str:
        """The node takes part again; what came of it. One that has left does not."""
        if self.has_left:
            return "the node has left its cluster: start it again to bring it back"
        if self._task is None:
            return "the node was not draining"
        self._forget()
        return "the node takes part again"

    def _forget(self) -> None:
        """Nobody stopped it: it is of more use as it was."""
        if not self.has_left:
            _logger.info("the node takes part again")
            self.close()
            self._task, self.began = None, ""
            self._tell()

    def close(self) -> None:
        """Ends what is under way."""
        if self._forgetting is not None:
            self._forgetting.cancel()
        if self._task is not None:
            self._task.cancel()

    async def _run(self, order: Order) -> Outcome:
        deadline = self._loop.time() + order.deadline_seconds
        await self._wait_told()
        if order.leave:
            outcome = await self._try_to_leave(deadline)
        else:
            outcome = await self._make_safe(deadline)
        self._send_away()
        _logger.info("drained", result=outcome.result.name.lower(), said=outcome.said)
        # Who spreads the requests needs time to notice.
        await asyncio.sleep(max(0.0, min(order.wait_unready_seconds, deadline - self._loop.time())))
        return outcome

    # --- stopping --------------------------------------------------------------------------------

    async def _make_safe(self, deadline: float) -> Outcome:
        if len(self._replica.leadership.configuration.voters) < 2:
            return Outcome(Result.DRAINED, "drained: there is nobody to hand over to")
        handed = await self._hand_over(deadline)
        deadline = min(deadline, self._loop.time() + limits.drain_safe_seconds_max)
        while why := self._why_unsafe():
            if self._loop.time() >= deadline:
                return Outcome(Result.UNSAFE, f"not safe to stop, {why}: stopping costs a pause")
            await asyncio.sleep(limits.health_seconds)
        return Outcome(Result.DRAINED, f"drained: {handed}the others are a quorum by themselves")

    async def _hand_over(self, deadline: float) -> str:
        """Lets another server lead. Where none does in some tries, the others elect one."""
        for _ in range(limits.drain_transfers_max):
            if not self._replica.leadership.is_mine or self._loop.time() >= deadline:
                break
            try:
                await self._replica.members.transfer()
            except NotLeader:
                break
            except ProglogError as error:
                _logger.info("leadership stays for now", why=str(error))
                await asyncio.sleep(limits.health_seconds)
            else:
                return "another server leads, and "
        return ""

    def _why_unsafe(self) -> str:
        leadership = self._replica.leadership
        if leadership.state.leader is None:
            return "the cluster has no leader"
        return why_unsafe(
            leadership.configuration,
            self._membership.members(),
            self._replica.identity.uuid,
            self.began,
        )

    # --- leaving ---------------------------------------------------------------------------------

    async def _try_to_leave(self, deadline: float) -> Outcome:
        until = min(deadline, self._loop.time() + limits.leave_seconds_max)
        while True:
            try:
                async with asyncio.timeout_at(until):
                    await self._leave()
            except (ProglogError, TimeoutError) as error:
                why = str(error) or "the leader did not answer in time"
            else:
                self.has_left = True
                return Outcome(Result.DRAINED, "left the cluster")
            if self._loop.time() + limits.health_seconds >= until:
                safe = await self._make_safe(deadline)
                return Outcome(Result.NOT_LEFT, f"not left: {why}; {safe.said}")
            await asyncio.sleep(limits.health_seconds)
